"""Texts of specs that were damaged at random are read as a spec, whole, or refused: nothing else."""

import copy
import json

import jax
import jaxtyping
import numpy as np
import pytest

from git_rebasin.symmetry.entries import (
    Concat,
    Coordinate,
    Fixed,
    Group,
    Interleave,
    Part,
    PermutationSpecError,
    Product,
    Split,
)
from git_rebasin.symmetry.permutation import apply_permutation, random_permutation
from git_rebasin.symmetry.spec import BoundSpec, PermutationSpec

ROWS = {
    "qkv": Split(1, (None, 1, "H", Group("Q", within="H")), (None, 1, "H", "Q")),
    "out": (Product("H", "Q"), None),
    "pad": (Concat(Part("Z", 2), "C", Part("Z", 1)), Fixed(2, "layers")),
    "joint": (Coordinate("J", 0), Coordinate("J", 1)),
    "shuffled": (Interleave(Concat(Part("Z", 1), Part("Z", 2)), "C"), "Z"),
    "sets": ("H", Coordinate("K", 0, within="H"), Coordinate("K", 1)),
    "flat": ("J", Group("R", 2, within="layers"), Fixed(2, "layers")),
}
SHAPES = {"qkv": (3, 2, 2, 4), "out": (8, 3), "pad": (5, 2), "joint": (2, 3), "flat": (6, 2, 2)}
SHAPES |= {"shuffled": (5, 3), "sets": (2, 3, 2)}
REASONS = {"out": (None, "output 0, axis 1"), "pad": (None, None)}
SPECS = [
    PermutationSpec(ROWS, REASONS),
    BoundSpec(ROWS, REASONS, shapes=SHAPES),
    BoundSpec({"a": (None, "P"), "b": ("P",)}, shapes={"a": (4, 3), "b": (3,)}),
]
VALUES = [
    None, True, False, 0, 1, 2, 3, -1, 2.5, 4.0, 2**31, 10**30, "", "P", "H", "é", [], [1], ["P"],
    {}, {"a": 1}, {"group": "H", "size": 2, "within": ["Q"]}, {"split": 0, "rows": [["P"], [1]]},
    {"product": ["H", "Q"]}, {"concat": ["C", {"part": "Z", "size": 1}]},
    {"coordinate": "J", "axis": 1, "size": None}, {"fixed": "layers", "size": 2},
    {"interleave": ["C", 2]}, {"coordinate": "K", "axis": 1, "size": 2, "within": ["H"]},
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_types_checked():
    """Users run without these checks, and it is their errors that are looked at."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def places(data, path=()):
    """The path of everything in nested lists and objects."""
    inner = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in inner:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def damage(rng, data) -> None:
    """Something is replaced, left out, renamed, repeated, or changes its place."""
    every = list(places(data))
    *path, last = every[rng.integers(len(every))]
    parent = data
    for key in path:
        parent = parent[key]
    value, kind = copy.deepcopy(VALUES[rng.integers(len(VALUES))]), rng.integers(5)
    if kind == 0:
        del parent[last]
    elif kind == 1 and isinstance(parent, dict):
        parent[str(value)] = parent.pop(last)
    elif kind == 2 and isinstance(parent, list):
        parent.insert(last, parent[last])
    elif kind == 3:
        *path, other = every[rng.integers(len(every))]
        source = data
        for key in path:
            source = source[key]
        parent[last] = copy.deepcopy(source[other])
    else:
        parent[last] = value


def assert_whole(spec: PermutationSpec) -> None:
    """A spec that was read is one: it is written and read again, and moves arrays of its shapes."""
    again = PermutationSpec.from_json(spec.to_json())
    assert again == spec and again.to_json() == spec.to_json() and again.groups == spec.groups
    assert repr(again) and spec._repr_markdown_()
    if not isinstance(spec, BoundSpec):
        return
    assert all(type(n) is int and n >= 0 for shape in spec.shapes.values() for n in shape)
    if sum(np.prod(shape, dtype=float) for shape in spec.shapes.values()) < 1e5:
        arrays = {
            path: np.arange(np.prod(shape, dtype=int)).reshape(shape)
            for path, shape in spec.shapes.items()
        }
        perm = random_permutation(jax.random.key(0), spec)
        moved = apply_permutation(spec, perm, arrays, partial=True)
        for path, array in arrays.items():
            np.testing.assert_array_equal(np.sort(moved[path], axis=None), array.ravel())


def read(text: str) -> bool:
    """Whether a text was read; if so, what it gives is whole."""
    try:
        spec = PermutationSpec.from_json(text)
    except PermutationSpecError as e:
        assert 10 < len(str(e)) < 3000
        return False
    assert_whole(spec)
    return True


@pytest.mark.parametrize("seed", range(4))
def test_damaged_data(seed):
    rng, counts = np.random.default_rng(seed), {True: 0, False: 0}
    for k in range(400):
        data = json.loads(SPECS[k % len(SPECS)].to_json())
        for _ in range(rng.integers(1, 4)):
            damage(rng, data)
        counts[read(json.dumps(data))] += 1
    assert counts[True] > 10 and counts[False] > 100, counts


def test_damaged_text():
    rng = np.random.default_rng(0)
    for k in range(600):
        text = SPECS[k % len(SPECS)].to_json()
        start, length = rng.integers(len(text)), rng.integers(0, 6)
        inserted = "".join(rng.choice(list('{}[]",:0 -9eE.aP\\\n')) for _ in range(rng.integers(4)))
        read(text[:start] + inserted + text[start + length :])
