"""Every public function takes models of Equinox as they are: with functions, numbers, state and None in them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

import git_rebasin as gr
from git_rebasin.inference.own_rules import axes_rule
from git_rebasin.statistics.batch_norm import find_batch_stats
from git_rebasin.tree import flatten, is_array, slerp, unflatten

eqx = pytest.importorskip("equinox")

KEY = jax.random.key(0)
AXES = {"in_axes": (0, None), "out_axes": (0, None)}  # of a model with state, over a batch


class Normed(eqx.Module):
    """A convolution with BatchNorm, and leaves that are functions, numbers, flags and None."""

    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    act: eqx.nn.Lambda
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear
    slope: float
    name: str = eqx.field(static=True)

    def __init__(self, mode: str, key: jax.Array) -> None:
        one, two = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(2, 6, 3, use_bias=False, key=one)
        self.norm = eqx.nn.BatchNorm(6, axis_name="batch", mode=mode)
        self.act = eqx.nn.Lambda(jax.nn.relu)
        self.drop = eqx.nn.Dropout(0.1)
        self.last = eqx.nn.Linear(6, 3, key=two)
        self.slope, self.name = 0.1, "normed"

    def __call__(self, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        h, state = self.norm(self.conv(x), state)
        h = self.drop(self.act(h)) + self.slope * h
        return self.last(jnp.mean(h, (1, 2))), state


class Tied(eqx.Module):
    """An embedding that is also the last layer."""

    shared: eqx.nn.Shared
    act: Callable

    def __init__(self, key: jax.Array) -> None:
        one, two = jax.random.split(key)
        layers = eqx.nn.Embedding(7, 5, key=one), eqx.nn.Linear(5, 7, key=two)
        self.shared = eqx.nn.Shared(layers, lambda x: x[1].weight, lambda x: x[0].weight)
        self.act = jnp.tanh

    def __call__(self, x: jax.Array) -> jax.Array:
        embedding, last = self.shared()
        return last(self.act(embedding(x)))


@dataclass(frozen=True)
class Case:
    """Two models of one kind, what they compute, and data."""

    fn: Callable[[Any, Any], jax.Array]
    models: tuple[Any, Any]
    x: np.ndarray
    spec: Any
    groups: list[int]  # the sizes that theory gives

    def loss(self, model: Any, x: Any) -> jax.Array:
        return jnp.mean(self.fn(model, x) ** 2)

    def more(self, model: Any, x: Any) -> tuple[jax.Array, dict[str, Any]]:
        return self.loss(model, x), {"largest": jnp.max(self.fn(model, x)), "fn": self.fn}

    def same(self, one: Any, other: Any) -> None:
        """Two models compute the same, and hold the same besides their arrays."""
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert a.dtype == b.dtype if is_array(a) and is_array(b) else a is b or a == b
        want, got = (np.asarray(self.fn(m, self.x)) for m in (one, other))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def of_batch(model: Any, x: Any) -> jax.Array:
    return jax.vmap(model)(x)


def of_normed(params: Any, x: Any) -> jax.Array:
    model, state = params
    return jax.vmap(model, axis_name="batch", **AXES)(x, state)[0]


def trained(mode: str, seed: int, x: np.ndarray) -> tuple[Any, Any]:
    """A network whose BatchNorm has seen data, in inference mode."""
    model, state = eqx.nn.make_with_state(Normed)(mode, jax.random.key(seed))
    model = eqx.tree_at(lambda m: m.norm.weight, model, jnp.linspace(0.5, 2, 6))
    calm = eqx.tree_at(lambda m: m.drop.inference, model, True)
    for batch in (x, x + 1):
        state = jax.vmap(calm, axis_name="batch", **AXES)(batch, state)[1]
    return eqx.nn.inference_mode(model), state


@cache
def case(kind: str) -> Case:
    rng = np.random.default_rng(0)
    keys = jax.random.key(1), jax.random.key(2)
    if kind == "mlp":
        x = rng.normal(size=(16, 4)).astype(np.float32)
        models = tuple(eqx.nn.MLP(4, 3, 8, depth=2, activation=jax.nn.gelu, key=k) for k in keys)
    elif kind == "tied":
        x = rng.integers(0, 7, 16)
        models = tuple(map(Tied, keys))
    else:
        x = rng.normal(size=(16, 2, 5, 5)).astype(np.float32)
        models = tuple(trained(kind, seed, x) for seed in (1, 2))
    fn = of_normed if kind in ("ema", "batch") else of_batch
    groups = {"mlp": [8, 8], "tied": [5]}.get(kind, [6])
    return Case(fn, models, x, gr.infer_permutation_spec(fn, models[0], x), groups)


KINDS = ["mlp", "tied", "ema", "batch"]
USES: dict[str, Callable] = {}


def use(function: Callable) -> Callable:
    """A use of the public function of that name."""
    USES[function.__name__.removeprefix("use_")] = function
    return function


def learned(matcher: Callable, c: Case, **more: Any) -> Any:
    a, b = c.models
    given = {"optimizer": optax.sgd(0.1), "batches": [c.x] * 2, "loss_fn": c.more, **more}
    return matcher(KEY, c.spec, a, b, **given)


@use
def use_Match(c: Case) -> None:
    assert isinstance(gr.weight_matching(KEY, c.spec, *c.models), gr.Match)


@use
def use_PermutationSpec(c: Case) -> None:
    spec = gr.PermutationSpec.from_json(c.spec.to_json())
    assert spec.bind(c.models[1]).groups == c.spec.groups


@use
def use_PermutationSpecError(c: Case) -> None:
    with pytest.raises(gr.PermutationSpecError):
        c.spec.bind(eqx.nn.Linear(2, 2, key=KEY))


@use
def use_activation_matching(c: Case) -> None:
    a, planted = c.models[0], gr.random_permutation(KEY, c.spec)
    match = gr.activation_matching(
        KEY, c.spec, a, gr.apply_permutation(c.spec, planted, a), fn=c.fn, batches=[c.x]
    )
    aligned = gr.apply_permutation(c.spec, match.perm, gr.apply_permutation(c.spec, planted, a))
    c.same(a, aligned)
    assert all(np.array_equal(w, flatten(a)[p]) for p, w in flatten(aligned).items())


@use
def use_apply_permutation(c: Case) -> None:
    a = c.models[0]
    moved = gr.apply_permutation(c.spec, gr.random_permutation(KEY, c.spec), a)
    c.same(a, moved)
    assert any(not np.array_equal(w, flatten(a)[p]) for p, w in flatten(moved).items())


@use
def use_check_permutation_spec(c: Case) -> None:
    assert set(gr.check_permutation_spec(c.spec, c.fn, c.models[0], c.x)) == set(c.spec.groups)


@use
def use_frank_wolfe_matching(c: Case) -> None:
    match = gr.frank_wolfe_matching(KEY, c.spec, *c.models, max_steps=2)
    assert set(match.perm) == set(c.spec.groups)


@use
def use_identity_permutation(c: Case) -> None:
    perm = gr.identity_permutation(c.spec, c.models[0])
    assert all(
        p.tolist() == list(range(n))
        for p, n in zip(perm.values(), c.spec.groups.values(), strict=True)
    )


@use
def use_infer_permutation_spec(c: Case) -> None:
    assert sorted(c.spec.groups.values()) == c.groups


@use
def use_interpolate(c: Case) -> None:
    a, b = c.models
    curve = gr.interpolate(c.more, a, b, [c.x], lambdas=3)
    assert set(curve.metrics) == {"loss", "largest"}
    want = [c.loss(gr.lerp(a, b, lam), c.x) for lam in (0, 0.5, 1)]
    np.testing.assert_allclose(curve["loss"], want, rtol=1e-4)
    gr.interpolate(c.loss, a, b, [c.x], lambdas=2, path=slerp)


@use
def use_invert_permutation(c: Case) -> None:
    perm = gr.random_permutation(KEY, c.spec, c.models[0])
    there = gr.apply_permutation(c.spec, perm, c.models[0])
    back = gr.apply_permutation(c.spec, gr.invert_permutation(perm=perm, spec=c.spec), there)
    assert all(np.array_equal(w, flatten(c.models[0])[p]) for p, w in flatten(back).items())


@use
def use_lerp(c: Case) -> None:
    a, b = c.models
    c.same(a, gr.lerp(a, b, 0.0))
    c.same(a, gr.lerp(a, a, 0.5))
    for path, w in flatten(gr.lerp(a, b, 0.25)).items():
        one, two = flatten(a)[path], flatten(b)[path]
        real = jnp.issubdtype(w.dtype, jnp.inexact)
        np.testing.assert_allclose(
            w, 0.75 * one + 0.25 * two if real else one, rtol=1e-5, atol=1e-7
        )


@use
def use_loss_barrier(c: Case) -> None:
    curve = gr.interpolate(c.loss, *c.models, [c.x], lambdas=3)
    assert np.isfinite(gr.loss_barrier(curve))


@use
def use_merge_many(c: Case) -> None:
    merged = gr.merge_many(KEY, c.spec, [*c.models, c.models[0]])
    assert jax.tree.structure(merged.params) == jax.tree.structure(c.models[0])
    assert np.all(np.isfinite(c.fn(merged.params, c.x)))


@use
def use_plot_interpolation(c: Case) -> None:
    plt.close(gr.plot_interpolation(gr.interpolate(c.loss, *c.models, [c.x], lambdas=3)))


@use
def use_plot_match(c: Case) -> None:
    plt.close(gr.plot_match(gr.weight_matching(KEY, c.spec, *c.models)))


@use
def use_plot_spec(c: Case) -> None:
    plt.close(gr.plot_spec(c.spec))


@use
def use_random_permutation(c: Case) -> None:
    assert set(gr.random_permutation(KEY, c.spec, c.models[0])) == set(c.spec.groups)


@use
def use_rebasin(c: Case) -> None:
    found = gr.rebasin(c.fn, *c.models, example=c.x, batches=[c.x] * 4, metrics=c.loss)
    assert jax.tree.structure(found.merged) == jax.tree.structure(c.models[0])
    assert np.isfinite(found.metrics["merged"]["loss"]) and "matched" in found.curves


@use
def use_RebasinResult(c: Case) -> None:
    found = gr.rebasin(c.fn, *c.models, example=c.x, method="weights")
    assert isinstance(found, gr.RebasinResult) and isinstance(repr(found), str)


@use
def use_repair(c: Case) -> None:
    merged = gr.lerp(*c.models, 0.5)
    if jnp.issubdtype(c.x.dtype, jnp.integer):  # no product's output carries the group
        names = [name for group in c.spec.groups for name in find_names(c, group)]
        repaired = gr.repair(c.fn, merged, c.models, [c.x], names=names)
    else:
        repaired = gr.repair(c.fn, merged, c.models, [c.x])
    c.same(repaired.params["params"], merged)
    assert np.all(np.isfinite(repaired.fn(repaired.params, c.x)))
    alone = gr.repair(c.fn, c.models[0], c.models[:1], [c.x], names=list(repaired.goals))
    np.testing.assert_allclose(
        alone.fn(alone.params, c.x), c.fn(c.models[0], c.x), rtol=1e-3, atol=1e-3
    )


def find_names(c: Case, group: str) -> tuple[str, ...]:
    from git_rebasin.inference.taps import find_taps

    return find_taps(c.fn, c.models[0], c.x).groups[group][:1]


@use
def use_register_rule(c: Case) -> None:
    with gr.register_rule("tanh")(axes_rule("... -> ...")) as own:
        assert own.primitive == "tanh"
        assert gr.infer_permutation_spec(c.fn, c.models[0], c.x).groups == c.spec.groups


@use
def use_reset_batch_stats(c: Case) -> None:
    if not isinstance(c.models[0], tuple):
        with pytest.raises(ValueError, match="no BatchNorm was found"):
            gr.reset_batch_stats(c.fn, c.models[0], [c.x])
        return
    merged = gr.lerp(*c.models, 0.5)
    reset = gr.reset_batch_stats(c.fn, merged, [c.x[:9], c.x[9:]])
    leaves, treedef = jax.tree.flatten(reset)  # a state that is set is not to be used again
    model, state = treedef.unflatten(leaves)
    if (first := model.norm.ema_first_time_index) is not None:
        state = state.set(first, jnp.array(True))
    training = eqx.tree_at(lambda m: m.norm.inference, model, False)
    want, _ = jax.vmap(training, axis_name="batch", **AXES)(c.x, state)
    np.testing.assert_allclose(c.fn(reset, c.x), want, rtol=1e-4, atol=1e-4)
    assert len(find_batch_stats(c.fn, merged, c.x)) == 1


def as_jax(leaf: Any) -> Any:
    return jnp.asarray(leaf) if is_array(leaf) else leaf


@use
def use_save_params(c: Case, folder: Path | None = None) -> None:
    assert folder is not None
    gr.save_params(folder / "model.safetensors", c.models[0])
    saved = gr.load_params(folder / "model.safetensors", flat=True)
    back = unflatten(saved, like=c.models[0])  # numbers too: a rate, a flag
    c.same(c.models[0], jax.tree.map(as_jax, back))


@use
def use_load_params(c: Case, folder: Path | None = None) -> None:
    use_save_params(c, folder)


@use
def use_sinkhorn_matching(c: Case) -> None:
    match = learned(gr.sinkhorn_matching, c, max_steps=2)
    assert set(match.perm) == set(c.spec.groups)


@use
def use_straight_through_matching(c: Case) -> None:
    match = learned(gr.straight_through_matching, c, max_steps=2)
    assert set(match.perm) == set(c.spec.groups)


@use
def use_weight_matching(c: Case) -> None:
    a, planted = c.models[0], gr.random_permutation(KEY, c.spec)
    moved = gr.apply_permutation(c.spec, planted, a)
    match = gr.weight_matching(KEY, c.spec, a, moved)
    back = flatten(gr.apply_permutation(c.spec, match.perm, moved))
    assert all(np.array_equal(w, back[p]) for p, w in flatten(a).items())


def test_every_public_name_is_tried():
    assert set(USES) == set(gr.__all__), "add a use of the new name to this file"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(USES))
def test_a_public_function_takes_equinox(name, kind, tmp_path):
    function = USES[name]
    before = [np.array(w) for m in case(kind).models for w in flatten(m).values()]
    folder = {"folder": tmp_path} if "folder" in inspect.signature(function).parameters else {}
    function(case(kind), **folder)
    after = [w for m in case(kind).models for w in flatten(m).values()]
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
