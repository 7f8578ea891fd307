"""A group may have no units: whatever takes a spec takes it, and moves nothing."""

import jax
import matplotlib
import numpy as np
import optax
import pytest

import git_rebasin as gr
from git_rebasin.matching.match import Alignment
from git_rebasin.matching.merge import merge_in_order
from git_rebasin.matching.soft import apply_soft, confident_logits, harden, soft_permutation
from git_rebasin.matching.soft import soften, uniform
from git_rebasin.matching.weights import unit_similarity
from git_rebasin.symmetry.entries import Concat, Coordinate, Fixed, Group, Part, Product
from git_rebasin.symmetry.permutation import compose_permutations, same_permutation
from git_rebasin.symmetry.scaling import find_scalings

matplotlib.use("Agg")

KEY = jax.random.key(0)
HEADS = {"in": (None, "H", Group("Q", 3, within="H")), "out": (Product("H", "Q"), None)}
CASES = {  # rows and shapes; `P` or what stands in its place has no units
    "alone": ({"in": (None, "P"), "out": ("P", None)}, {"in": (3, 0), "out": (0, 2)}),
    "beside another": (
        {"in": (None, "P"), "mid": ("P", "Q"), "out": ("Q", None)},
        {"in": (3, 0), "mid": (0, 4), "out": (4, 2)},
    ),
    "on one axis with another": (
        {"p": (None, "P"), "q": (None, "Q"), "out": (Concat("Q", "P"), None)},
        {"p": (3, 0), "q": (3, 4), "out": (4, 2)},
    ),
    "within another": (
        {"in": (None, "H", Group("P", within="H")), "out": (Product("H", "P"), None)},
        {"in": (3, 2, 0), "out": (0, 2)},
    ),
    "around another": (HEADS, {"in": (3, 0, 3), "out": (0, 2)}),
    "within nothing": (
        {"in": (Fixed(0, "layers"), Group("P", within="layers"))},
        {"in": (0, 3)},
    ),
    "of coordinates": ({"in": (Coordinate("P", 0), Coordinate("P", 1))}, {"in": (0, 3)}),
    "of parts": ({"in": (Concat(Part("P", 0), "C", Part("P", 0)),)}, {"in": (3,)}),
}


@pytest.fixture(params=CASES)
def case(request):
    rows, shapes = CASES[request.param]
    rng = np.random.default_rng(0)
    tree = {path: rng.normal(size=s).astype(np.float32) for path, s in shapes.items()}
    return gr.PermutationSpec(rows), tree


def loss_fn(params, batch):
    return sum(jax.numpy.sum(w**2) for w in params.values())


def test_permutations_of_it(case):
    spec, tree = case
    one, drawn = gr.identity_permutation(spec, tree), gr.random_permutation(KEY, spec, tree)
    assert 0 in [p.size for p in one.values()]
    assert same_permutation(gr.invert_permutation(spec, one), one)
    back = gr.invert_permutation(spec, drawn)
    assert same_permutation(compose_permutations(spec, back, drawn), one)
    for leaves in (tree, jax.tree.map(jax.numpy.asarray, tree)):
        there = gr.apply_permutation(spec, drawn, leaves)
        again = gr.apply_permutation(spec, back, there)
        jax.tree.map(np.testing.assert_array_equal, again, leaves)
        jitted = jax.jit(lambda p, x: gr.apply_permutation(spec, p, x))(drawn, leaves)
        jax.tree.map(np.testing.assert_array_equal, jitted, there)
    with pytest.raises(gr.PermutationSpecError, match="must be"):
        gr.apply_permutation(spec, {g: np.zeros((*p.shape, 1), int) for g, p in one.items()}, tree)


def test_what_is_said_of_it(case):
    spec, tree = case
    bound = spec.bind(tree)
    assert bound.log10_symmetries >= 0 and str(bound.report()) and bound.report()._repr_markdown_()
    assert (
        repr(bound)
        and bound._repr_markdown_()
        and Alignment.of(gr.identity_permutation(bound)).perm
    )
    assert gr.PermutationSpec.from_json(bound.to_json()) == bound
    gr.plot_spec(bound)
    gr.plot_match(gr.weight_matching(KEY, spec, tree, tree))
    matplotlib.pyplot.close("all")


def test_checks_of_it(case):
    spec, tree = case

    def fn(params, x):
        return x, *(jax.numpy.sum(jax.numpy.tanh(w)) for w in params.values())

    got = gr.check_permutation_spec(spec, fn, tree, np.ones(2, np.float32))
    assert got.keys().isdisjoint(got.unproven) and {*got, *got.unproven} == {*spec.groups}
    held = {g for g, p in gr.identity_permutation(spec, tree).items() if p.size == 0}
    assert held <= got.unproven.keys()
    assert isinstance(
        gr.infer_permutation_spec(fn, tree, np.ones(2, np.float32)), gr.PermutationSpec
    )
    if any(w.size for w in tree.values()):
        assert held.isdisjoint(find_scalings(spec, fn, tree, np.ones(2, np.float32)).shapes)


def test_matrices_of_it(case):
    spec, tree = case
    bound, one = spec.bind(tree), gr.identity_permutation(spec, tree)
    jax.tree.map(np.testing.assert_array_equal, apply_soft(spec, soften(bound, one), tree), tree)
    assert harden(bound, uniform(bound)).keys() == one.keys()
    assert soft_permutation(bound, confident_logits(bound, one)).keys() == one.keys()


def test_matches_of_it(case):
    spec, tree = case
    one = gr.identity_permutation(spec, tree)
    learning = {"batches": [None], "loss_fn": loss_fn, "optimizer": optax.adam(0.1), "max_steps": 1}
    for match in (
        gr.weight_matching(KEY, spec, tree, tree),
        gr.frank_wolfe_matching(KEY, spec, tree, tree),
        gr.sinkhorn_matching(KEY, spec, tree, tree, **learning),
        gr.straight_through_matching(KEY, spec, tree, tree, **learning),
    ):
        assert {g: p.shape for g, p in match.perm.items()} == {g: p.shape for g, p in one.items()}
    for merged in (
        gr.merge_many(KEY, spec, [tree, tree]),
        merge_in_order(spec, [one, one], [tree, tree]),
    ):
        jax.tree.map(np.testing.assert_array_equal, merged.params, tree)
    assert unit_similarity(spec, one, tree, tree).keys() == one.keys()
