"""Matchers on a spec that has every construct at once."""

import itertools

import jax
import numpy as np
import pytest

from git_rebasin.symmetry.entries import (
    Concat,
    Coordinate,
    Fixed,
    Group,
    Interleave,
    Part,
    Product,
    Split,
)
from git_rebasin.matching.frank_wolfe import frank_wolfe_matching
from git_rebasin.symmetry.permutation import (
    apply_permutation,
    check_permutation,
    invert_permutation,
    random_permutation,
    same_permutation,
)
from git_rebasin.symmetry.spec import PermutationSpec
from git_rebasin.tree import inner, norm
from git_rebasin.matching.weights import weight_matching

ROWS = {
    "in": (None, "D"),
    "conv": (3, "D", "C"),
    "flat": (Product(2, Concat("C", "E")), "D"),
    "query": ("D", "H", Group("Q", within="H")),
    "qkv": Split(1, ("D", 2, "H", "Q"), ("D", 1, "H", Group("V", within="H"))),
    "out": (Product("H", "V"), "D"),
    "grouped": (3, Group("V", within="H"), Product("H", "Q")),
    "stack": (Fixed(3, "L"), "D", Group("U", within="L")),
    "deep": (Fixed(3, "L"), Group("B", within="L"), Group("S", within="B"), "D"),
    "recurrent": ("E", "E"),
    "pads": (Concat(Part("Z", 1), "C", Part("Z", 3)), "D"),
    "grid": (Coordinate("J", 1), "D", Coordinate("J", 0)),
    "shuffled": (Interleave(Concat(Part("Y", 6), "E"), "C"), "D"),
    "again": (Interleave(Part("Y", 4), Interleave(Part("Y", 2), 2)), 4, "D"),
    "spread": (None, Concat(Part("Y", 1), Part("Y", 4), 2, Part("Y", 1)), "D"),
    "sets": ("H", Coordinate("K", 1, within="H"), "D", Coordinate("K", 0)),
}
SHAPES = {
    "in": (40, 16),
    "conv": (3, 16, 12),
    "flat": (38, 16),
    "query": (16, 4, 8),
    "qkv": (16, 3, 4, 8),
    "out": (32, 16),
    "grouped": (3, 8, 32),
    "stack": (3, 16, 9),
    "deep": (3, 4, 5, 16),
    "recurrent": (7, 7),
    "pads": (16, 16),
    "grid": (4, 16, 3),
    "shuffled": (25, 16),
    "again": (8, 4, 16),
    "spread": (3, 8, 16),
    "sets": (4, 2, 16, 3),
}
SPEC = PermutationSpec(ROWS).bind_shapes(SHAPES)


def models(seed):
    "Two models of independent normal weights, and a shuffled copy of the first with its way back"
    rng = np.random.default_rng(seed)
    a, other = ({p: rng.normal(size=s) for p, s in SHAPES.items()} for _ in range(2))
    plant = random_permutation(jax.random.key(seed), SPEC)
    return a, other, apply_permutation(SPEC, plant, a), invert_permutation(SPEC, plant)


@pytest.mark.parametrize("init", ["identity", "greedy"])
def test_weight_matching(init):
    for seed in range(4):
        a, other, copy, back = models(seed)
        match = weight_matching(jax.random.key(9), SPEC, a, copy, init=init)
        assert match.converged
        if init == "greedy":
            assert same_permutation(match.perm, back)
        apart = weight_matching(jax.random.key(seed), SPEC, a, other, init=init)
        values = (
            apart.objective if init == "greedy" else (apart.initial_objective, *apart.objective)
        )
        assert apart.converged and all(x <= y for x, y in itertools.pairwise(values))
        check_permutation(SPEC, apart.perm)
        end = inner(a, apply_permutation(SPEC, apart.perm, other))
        np.testing.assert_allclose(apart.objective[-1], end, atol=1e-6 * norm(a) * norm(other))


def test_frank_wolfe_matching():
    for seed in range(3):
        a, other, copy, back = models(seed)
        match = frank_wolfe_matching(jax.random.key(9), SPEC, a, copy)
        assert match.converged and same_permutation(match.perm, back)
    apart = frank_wolfe_matching(jax.random.key(9), SPEC, a, other)
    end = inner(a, apply_permutation(SPEC, apart.perm, other))
    np.testing.assert_allclose(apart.objective[-1], end, rtol=1e-5)
    assert end > weight_matching(jax.random.key(9), SPEC, a, other).objective[-1]
