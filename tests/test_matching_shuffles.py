"""Every matcher on networks whose channels take turns: a planted permutation is found."""

from functools import cache, partial

import jax
import numpy as np
import optax
import pytest
from inference_networks import NETWORKS

from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.matching.activations import activation_matching
from git_rebasin.matching.frank_wolfe import frank_wolfe_matching
from git_rebasin.matching.merge import merge_many
from git_rebasin.matching.sinkhorn import sinkhorn_matching
from git_rebasin.matching.soft import apply_soft, soften
from git_rebasin.matching.straight_through import straight_through_matching
from git_rebasin.matching.weights import weight_matching
from git_rebasin.merging.one_call import rebasin
from git_rebasin.symmetry.entries import Interleave
from git_rebasin.symmetry.permutation import (
    apply_permutation,
    check_permutation,
    invert_permutation,
    random_permutation,
    same_permutation,
)
from git_rebasin.tree import flatten

NAMES = ["shufflenet_v2_stage", "shufflenet_v2_stage_in_torch", "shufflenet_v1_of_three_groups"]


@cache
def planted(name: str):
    "A network, its spec, a copy with its units in another order, and the way back"
    net = NETWORKS[name]()
    spec = infer_permutation_spec(net.fn, net.params, *net.args, verify=False)
    plant = random_permutation(jax.random.key(3), spec)
    copy = apply_permutation(spec, plant, net.params)
    return net, spec, copy, invert_permutation(spec, plant)


def entries(spec):
    "All entries of a spec, however deep"
    todo = [entry for row in spec.rows.values() for entry in (row if isinstance(row, tuple) else ())]
    while todo:
        entry = todo.pop()
        yield entry
        todo += getattr(entry, "terms", ())


@pytest.mark.parametrize("name", NAMES)
def test_weight_matching(name):
    net, spec, copy, back = planted(name)
    assert any(isinstance(entry, Interleave) for entry in entries(spec))
    match = weight_matching(jax.random.key(0), spec, net.params, copy)
    assert match.converged and same_permutation(match.perm, back)
    again = flatten(apply_permutation(spec, match.perm, copy))
    for path, w in flatten(net.params).items():
        np.testing.assert_array_equal(again[path], w, err_msg=path)


def loss(fn, params, batch):
    x, y = batch
    return ((fn(params, x) - y) ** 2).mean()


@pytest.mark.parametrize("name", NAMES[::2])
def test_matchers_that_need_data(name):
    net, spec, copy, back = planted(name)
    (x,) = net.args
    batches = [(x, net.fn(net.params, x))]
    found = activation_matching(
        jax.random.key(0), spec, net.params, copy, fn=net.fn, batches=[x, 2 * x - 1]
    )
    assert same_permutation(found.perm, back)
    learnt = straight_through_matching(
        jax.random.key(0),
        spec,
        net.params,
        copy,
        loss_fn=partial(loss, net.fn),
        batches=batches,
        optimizer=optax.adam(1e-3),
    )
    assert same_permutation(learnt.perm, back)


def test_other_matchers():
    net, spec, copy, back = planted(NAMES[0])
    match = frank_wolfe_matching(jax.random.key(9), spec, net.params, copy)
    assert same_permutation(match.perm, back)
    (x,) = net.args
    soft = soften(spec, back)
    again = flatten(apply_soft(spec, soft, copy))
    for path, w in flatten(net.params).items():
        np.testing.assert_allclose(again[path], w, atol=1e-6, err_msg=path)
    learnt = sinkhorn_matching(
        jax.random.key(0),
        spec,
        net.params,
        copy,
        loss_fn=partial(loss, net.fn),
        batches=[(x, net.fn(net.params, x))],
        optimizer=optax.adam(0.1),
        max_steps=1,
    )
    check_permutation(spec, learnt.perm)


def test_the_one_call_and_several_models():
    net, spec, copy, _ = planted(NAMES[0])
    result = rebasin(net.fn, net.params, copy, example=net.args)
    for path, w in flatten(result.merged).items():
        np.testing.assert_allclose(w, flatten(net.params)[path], atol=1e-6, err_msg=path)
    merged = merge_many(jax.random.key(1), spec, [net.params, copy, net.params])
    assert merged.converged
