"""Find the permutation that brings independently trained JAX networks into one basin, and merge them.

The front door: everything that most people need is here; the modules have the rest.
"""

__version__ = "0.1.0"

from git_rebasin.builders import (
    mlp_permutation_spec,
    resnet20_permutation_spec,
    resnet50_permutation_spec,
    vgg16_permutation_spec,
)
from git_rebasin.check import check_permutation_spec
from git_rebasin.infer import infer_permutation_spec
from git_rebasin.interpolate import Interpolation, interpolate, loss_barrier
from git_rebasin.io import load_params, save_params
from git_rebasin.match import Match
from git_rebasin.permutation import (
    apply_permutation,
    compose_permutations,
    identity_permutation,
    invert_permutation,
    random_permutation,
)
from git_rebasin.plot import plot_interpolation, plot_match, plot_spec
from git_rebasin.spec import PermutationSpec, PermutationSpecError
from git_rebasin.tree import lerp, slerp
from git_rebasin.weight_matching import weight_matching

__all__ = [
    "Interpolation",
    "Match",
    "PermutationSpec",
    "PermutationSpecError",
    "apply_permutation",
    "check_permutation_spec",
    "compose_permutations",
    "identity_permutation",
    "infer_permutation_spec",
    "interpolate",
    "invert_permutation",
    "lerp",
    "load_params",
    "loss_barrier",
    "mlp_permutation_spec",
    "plot_interpolation",
    "plot_match",
    "plot_spec",
    "random_permutation",
    "resnet20_permutation_spec",
    "resnet50_permutation_spec",
    "save_params",
    "slerp",
    "vgg16_permutation_spec",
    "weight_matching",
]
