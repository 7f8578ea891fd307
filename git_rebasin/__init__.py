"""Find the permutation that brings independently trained JAX networks into one basin, and merge them.

The front door: everything that most people need is here; the modules have the rest.
"""

__version__ = "0.1.0"

from git_rebasin import builders as builders  # tables for particular networks
from git_rebasin.activation_matching import activation_matching
from git_rebasin.batch_stats import reset_batch_stats
from git_rebasin.check import check_permutation_spec
from git_rebasin.frank_wolfe import frank_wolfe_matching
from git_rebasin.infer import infer_permutation_spec
from git_rebasin.interpolate import interpolate, loss_barrier
from git_rebasin.io import load_params, save_params
from git_rebasin.match import Match
from git_rebasin.merge import merge_many
from git_rebasin.permutation import (
    apply_permutation,
    identity_permutation,
    invert_permutation,
    random_permutation,
)
from git_rebasin.plot import plot_interpolation, plot_match, plot_spec
from git_rebasin.repair import repair
from git_rebasin.sinkhorn import sinkhorn_matching
from git_rebasin.spec import PermutationSpec, PermutationSpecError
from git_rebasin.straight_through import straight_through_matching
from git_rebasin.tree import lerp
from git_rebasin.weight_matching import weight_matching

__all__ = [
    "Match",
    "PermutationSpec",
    "PermutationSpecError",
    "activation_matching",
    "apply_permutation",
    "check_permutation_spec",
    "frank_wolfe_matching",
    "identity_permutation",
    "infer_permutation_spec",
    "interpolate",
    "invert_permutation",
    "lerp",
    "load_params",
    "loss_barrier",
    "merge_many",
    "plot_interpolation",
    "plot_match",
    "plot_spec",
    "random_permutation",
    "repair",
    "reset_batch_stats",
    "save_params",
    "sinkhorn_matching",
    "straight_through_matching",
    "weight_matching",
]
