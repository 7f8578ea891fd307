"""What an installed package must do: `python tests/use_installed.py [compiled | plain]`.

A permutation is applied, found again and undone, by the compiled parts, without them, or by
whatever there is.
"""

import sys

if sys.argv[1:] == ["plain"]:  # a clone that is installed in place would lend its compiled parts
    sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in str(f)]

import jax
import numpy as np

from git_rebasin import (
    PermutationSpec,
    apply_permutation,
    native,
    random_permutation,
    weight_matching,
)
from git_rebasin.matching import assignment
from git_rebasin.symmetry import gather

SPEC = PermutationSpec.from_axes_to_perm({"in": (None, "P"), "out": ("P", None)})


def main(parts: str | None) -> None:
    parts_of = (assignment._assignment, gather._gather, native._halves)
    built = [part is not None for part in parts_of]
    if parts is not None:
        assert built == [parts == "compiled"] * 3, f"compiled parts: {built}"
    rng, n = np.random.default_rng(0), 300
    a = {
        "in": rng.normal(size=(40, n)).astype(np.float32),
        "out": rng.normal(size=(n, 40)).astype(np.float32),
    }
    perm = {g: np.asarray(p) for g, p in random_permutation(jax.random.key(0), SPEC, a).items()}
    assert perm["P"].dtype == np.int32
    b = apply_permutation(SPEC, perm, a)
    np.testing.assert_array_equal(b["in"], a["in"][:, perm["P"]])
    np.testing.assert_array_equal(b["out"], a["out"][perm["P"]])
    match = weight_matching(jax.random.key(0), SPEC, a, b)
    again = apply_permutation(SPEC, match.perm, b)
    for path, leaf in a.items():
        np.testing.assert_array_equal(again[path], leaf)


if __name__ == "__main__":
    main(*sys.argv[1:] or [None])
