"""PyTorch modules as functions of their parameters, and parameters back in modules."""

from git_rebasin.torch.modules import from_torch, to_torch
from git_rebasin.torch.operators import operator

__all__ = ["from_torch", "operator", "to_torch"]
