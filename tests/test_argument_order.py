"""One order of arguments, `(key, spec, perm, params…)`, and a match wherever a permutation goes."""

import jax
import numpy as np
import optax
import pytest

import git_rebasin as gr
from git_rebasin.matching.frank_wolfe import frank_wolfe_matching
from git_rebasin.matching.match import Alignment, Match, bind_models
from git_rebasin.matching.merge import merge_in_order, merge_many
from git_rebasin.matching.sinkhorn import sinkhorn_matching, squared_distance
from git_rebasin.matching.soft import confident_logits, soften
from git_rebasin.matching.straight_through import straight_through_matching
from git_rebasin.matching.weights import unit_similarity, weight_matching
from git_rebasin.symmetry.actions import act
from git_rebasin.symmetry.permutation import (
    HasPermutation,
    Permute,
    apply_permutation,
    as_permutation,
    check_permutation,
    compose_permutations,
    identity_permutation,
    invert_permutation,
    random_permutation,
    same_permutation,
)
from git_rebasin.symmetry.scaling import find_scalings

KEY = jax.random.key(0)
ROWS = {"in": (None, "P"), "bias": ("P",), "out": ("P", None)}
SPEC = gr.PermutationSpec.from_axes_to_perm(ROWS)
RNG = np.random.default_rng(0)
A = {
    "in": RNG.normal(size=(4, 5)).astype(np.float32),
    "bias": RNG.normal(size=5).astype(np.float32),
    "out": RNG.normal(size=(5, 3)).astype(np.float32),
}
BOUND = SPEC.bind(A)
PERM = {"P": np.array([2, 0, 1, 4, 3], np.int32)}
B = apply_permutation(SPEC, PERM, A)
MATCH = Match(PERM, (1.0,), True, 0.0)
X = np.ones((2, 4), np.float32)


def fn(params, x):
    return np.tanh(1) * jax.numpy.tanh(x @ params["in"] + params["bias"]) @ params["out"]


def loss_fn(params, batch):
    return squared_distance(A)(params)


def trees_equal(one, other):
    return all(np.array_equal(one[path], other[path]) for path in one)


def test_a_match_holds_a_permutation():
    assert isinstance(MATCH, HasPermutation) and as_permutation(MATCH) is MATCH.perm
    assert isinstance(MATCH.alignment, HasPermutation) and as_permutation(PERM) is PERM


def test_a_match_is_a_permutation_of_a_model():
    assert trees_equal(apply_permutation(SPEC, MATCH, A), B)
    assert trees_equal(apply_permutation(SPEC, MATCH.alignment, A), B)
    assert trees_equal(act(SPEC, Permute(MATCH), A), B)
    assert trees_equal(
        apply_permutation(SPEC, MATCH, {"in": A["in"]}, partial=True), {"in": B["in"]}
    )
    assert check_permutation(BOUND, MATCH) is MATCH.perm
    assert same_permutation(MATCH, PERM) and same_permutation(PERM, MATCH)
    assert same_permutation(invert_permutation(SPEC, MATCH), invert_permutation(SPEC, PERM))
    one = identity_permutation(BOUND)
    assert same_permutation(compose_permutations(SPEC, MATCH, one), MATCH)
    back = invert_permutation(SPEC, MATCH)
    assert same_permutation(compose_permutations(BOUND, back, MATCH), one)
    assert not same_permutation(MATCH, {}) and same_permutation({}, MATCH)


def test_a_match_is_a_permutation_in_matching():
    assert np.array_equal(soften(BOUND, MATCH)["P"], soften(BOUND, PERM)["P"])
    logits = [confident_logits(BOUND, p)["P"] for p in (MATCH, PERM)]
    assert np.array_equal(*logits)
    similar = [unit_similarity(SPEC, p, A, B)["P"] for p in (MATCH, PERM)]
    assert np.array_equal(*similar)
    pairs = [Alignment.of(p).pairs["P"] for p in (MATCH, PERM)]
    assert np.array_equal(*pairs)
    found = [merge_in_order(SPEC, [one, MATCH], [A, A]) for one in (PERM, MATCH)]
    assert same_permutation(found[0].perms[1], found[1].perms[1])


def test_a_match_is_where_another_search_starts():
    back = Match(invert_permutation(SPEC, PERM), (1.0,), True, 0.0)
    learning = {"batches": [None], "loss_fn": loss_fn, "optimizer": optax.adam(0.1)}
    found = [
        weight_matching(KEY, SPEC, A, B, init=back),
        frank_wolfe_matching(KEY, SPEC, A, B, init=back, max_steps=2),
        sinkhorn_matching(KEY, SPEC, A, B, init=back, max_steps=1, **learning),
        straight_through_matching(KEY, SPEC, A, B, init=back, max_steps=1, **learning),
    ]
    assert all(same_permutation(match, back) for match in found)
    merged = merge_many(KEY, SPEC, [A, B], init=[identity_permutation(BOUND), back])
    assert same_permutation(merged.perms[1], back)


SPEC_FIRST = "arguments go in the order"
SWAPPED = {
    "spec after perm": lambda: invert_permutation(PERM, SPEC),
    "match before spec": lambda: invert_permutation(MATCH, SPEC),
    "tree for perm, inverse": lambda: invert_permutation(SPEC, A),
    "spec last": lambda: compose_permutations(PERM, PERM, SPEC),
    "spec in the middle": lambda: compose_permutations(PERM, SPEC, PERM),
    "perm after params": lambda: apply_permutation(SPEC, A, PERM),
    "nested params": lambda: apply_permutation(SPEC, {"layer": A}, PERM),
    "perm before spec": lambda: apply_permutation(PERM, SPEC, A),
    "action": lambda: act(Permute(PERM), SPEC, A),
    "perm in check": lambda: check_permutation(PERM, BOUND),
    "tree for perm, check": lambda: check_permutation(BOUND, A),
    "params before spec": lambda: identity_permutation(A, SPEC),
    "spec before key": lambda: random_permutation(SPEC, KEY),
    "spec before key, matching": lambda: weight_matching(SPEC, KEY, A, B),
    "models before spec": lambda: bind_models(A, B, SPEC),
    "models before spec, merging": lambda: merge_many(KEY, [A, B], SPEC),
    "models before perms": lambda: merge_in_order(SPEC, [A, B], [PERM, PERM]),
    "similarity": lambda: unit_similarity(SPEC, A, B, PERM),
    "fn before spec": lambda: gr.check_permutation_spec(fn, SPEC, A, X),
    "fn before spec, scalings": lambda: find_scalings(fn, SPEC, A, X),
    "init": lambda: weight_matching(KEY, SPEC, A, B, init=A),
    "spec as init": lambda: weight_matching(KEY, SPEC, A, B, init=SPEC),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_swapped_arguments_are_told_the_order(name):
    with pytest.raises(TypeError, match=rf"{SPEC_FIRST}|no permutation.*{SPEC_FIRST[1:]}"):
        SWAPPED[name]()
