"""Find the permutation that brings independently trained JAX networks into one basin, and merge them.

The public API: everything that most people need is here; the modules have the rest.
"""

__version__ = "0.1.0"

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from git_rebasin.matching.activations import activation_matching
    from git_rebasin.statistics.batch_stats import reset_batch_stats
    from git_rebasin.inference.explain import check_permutation_spec
    from git_rebasin.matching.frank_wolfe import frank_wolfe_matching
    from git_rebasin.inference.infer import infer_permutation_spec
    from git_rebasin.inference.own_rules import register_rule
    from git_rebasin.interpolation import interpolate, loss_barrier
    from git_rebasin.checkpoints.io import load_params, save_params
    from git_rebasin.matching.match import Match
    from git_rebasin.matching.merge import merge_many
    from git_rebasin.merging.one_call import rebasin
    from git_rebasin.merging.result import RebasinResult
    from git_rebasin.symmetry.permutation import (
        apply_permutation,
        identity_permutation,
        invert_permutation,
        random_permutation,
    )
    from git_rebasin.plot import plot_interpolation, plot_match, plot_spec
    from git_rebasin.statistics.repaired import repair
    from git_rebasin.matching.sinkhorn import sinkhorn_matching
    from git_rebasin.symmetry.spec import PermutationSpec, PermutationSpecError
    from git_rebasin.matching.straight_through import straight_through_matching
    from git_rebasin.tree import lerp
    from git_rebasin.matching.weights import weight_matching

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless it is asked for

__all__ = [
    "Match",
    "PermutationSpec",
    "PermutationSpecError",
    "RebasinResult",
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
    "rebasin",
    "register_rule",
    "repair",
    "reset_batch_stats",
    "save_params",
    "sinkhorn_matching",
    "straight_through_matching",
    "weight_matching",
]

_NAMES = {  # module → what is taken from it
    "checkpoints.io": ("load_params", "save_params"),
    "inference.explain": ("check_permutation_spec",),
    "inference.infer": ("infer_permutation_spec",),
    "inference.own_rules": ("register_rule",),
    "interpolation": ("interpolate", "loss_barrier"),
    "matching.activations": ("activation_matching",),
    "matching.frank_wolfe": ("frank_wolfe_matching",),
    "matching.match": ("Match",),
    "matching.merge": ("merge_many",),
    "matching.sinkhorn": ("sinkhorn_matching",),
    "matching.straight_through": ("straight_through_matching",),
    "matching.weights": ("weight_matching",),
    "merging.one_call": ("rebasin",),
    "merging.result": ("RebasinResult",),
    "plot": ("plot_interpolation", "plot_match", "plot_spec"),
    "statistics.batch_stats": ("reset_batch_stats",),
    "statistics.repaired": ("repair",),
    "symmetry.permutation": (
        "apply_permutation",
        "identity_permutation",
        "invert_permutation",
        "random_permutation",
    ),
    "symmetry.spec": ("PermutationSpec", "PermutationSpecError"),
    "tree": ("lerp",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """What is asked for the first time is imported then, so that the command starts at once."""
        if name in _MODULES:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        elif name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        else:
            value = _submodule(name)
        globals()[name] = value
        return value


def _submodule(name: str) -> Any:
    """A module of the package, as `git_rebasin.tree` without an import of it."""
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise  # of another package, which it needs
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return [*__all__, "__all__", "__doc__", "__file__", "__path__", "__version__"]
