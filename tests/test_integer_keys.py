"""Layers may be numbered by integers, by texts or by their places in a list: the paths are the same.

So one spec, and one permutation, serve all of them. What adds leaf to leaf, as `lerp` does, wants
both models in the same containers, and says so.
"""

import itertools

import jax
import numpy as np
import pytest

import git_rebasin as gr
from git_rebasin.symmetry.permutation import same_permutation
from git_rebasin.tree import flatten, unflatten

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
LAYERS = [{"w": RNG.normal(size=s).astype(np.float32)} for s in ((3, 5), (5, 4), (4, 2))]
TREES = {
    "integers": {"layers": dict(enumerate(LAYERS))},
    "texts": {"layers": {str(i): layer for i, layer in enumerate(LAYERS)}},
    "a list": {"layers": list(LAYERS)},
}
ROWS = {"layers/0/w": (None, "P"), "layers/1/w": ("P", "Q"), "layers/2/w": ("Q", None)}
SPEC = gr.PermutationSpec.from_axes_to_perm(ROWS)


def fn(params, x):
    layers = [params["layers"][key] for key in params["layers"]]
    return jax.numpy.tanh(jax.numpy.tanh(x @ layers[0]["w"]) @ layers[1]["w"]) @ layers[2]["w"]


@pytest.mark.parametrize(("a", "b"), [*itertools.product(TREES, TREES)])
def test_models_are_matched_whatever_numbers_their_layers(a, b):
    a, b = TREES[a], TREES[b]
    plant = gr.random_permutation(KEY, SPEC, a)
    moved = gr.apply_permutation(SPEC, plant, b)
    assert jax.tree.structure(moved) == jax.tree.structure(b)
    match = gr.weight_matching(KEY, SPEC, a, moved)
    assert same_permutation(match, gr.invert_permutation(SPEC, plant))
    back = gr.apply_permutation(SPEC, match, moved)
    for path, leaf in flatten(a).items():
        np.testing.assert_array_equal(flatten(back)[path], leaf)
    merged = gr.merge_many(KEY, SPEC, [a, moved]).params
    assert jax.tree.structure(merged) == jax.tree.structure(a)
    if jax.tree.structure(a) != jax.tree.structure(b):
        with pytest.raises(
            ValueError, match=r"'layers/2/w' is reached by .*unflatten\(flatten\(b\)"
        ):
            gr.lerp(a, back, 0.5)
    middle = gr.lerp(a, unflatten(flatten(back), like=a), 0.5)
    jax.tree.map(np.testing.assert_array_equal, middle, a)


@pytest.mark.parametrize("tree", ["integers", "texts"])
def test_inference_names_the_same_paths(tree):
    spec = gr.infer_permutation_spec(fn, TREES[tree], np.ones((2, 3), np.float32))
    assert spec.axes_to_perm.keys() == ROWS.keys() and len(spec.groups) == 2


@pytest.mark.parametrize(
    ("rows", "path"),
    [
        ({"layers": {0: {"w": (None, "P")}}}, "layers/0/w"),
        ({"layers": {"0": {"w": (None, "P")}}}, "layers/0/w"),
        ({0: (None, "P")}, "0"),
        ({("layers", 0): (None, "P")}, "layers/0"),
        ({"layers/0": {"w": (None, "P")}}, "layers/0/w"),
    ],
)
def test_a_table_is_flat_and_its_keys_are_paths(rows, path):
    with pytest.raises(gr.PermutationSpecError, match=f"write it flat.*here '{path}'"):
        gr.PermutationSpec.from_axes_to_perm(rows)


def test_a_number_and_its_text_are_not_told_apart():
    mixed = {"layers": {0: LAYERS[0], "0": LAYERS[0]}}
    with pytest.raises(ValueError, match="keys 0 and '0'"):
        SPEC.bind(mixed)
