"""Models of Keras and Haiku, held as their users hold them, from the spec to the repaired midpoint."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import git_rebasin as gr
from git_rebasin.statistics.batch_norm import find_batch_stats
from git_rebasin.tree import flatten, unflatten

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def ranks_may_mix() -> Iterator[None]:
    """These libraries add biases of one axis to batches."""
    with jax.numpy_rank_promotion("allow"):
        yield


def whole_way(
    fn: Callable[[Any, Any], jax.Array],
    a: Any,
    b: Any,
    groups: list[int],
    stats: dict[str, str],
    moments: Callable[[Any], list[np.ndarray]],
) -> None:
    """What a user does with two trained models; `moments` gives BatchNorm's of a model's batch."""
    spec = gr.infer_permutation_spec(fn, a, X)
    assert sorted(spec.groups.values()) == groups

    planted = gr.random_permutation(KEY, spec, b)
    moved = gr.apply_permutation(spec, planted, a)
    np.testing.assert_allclose(fn(moved, X), fn(a, X), atol=1e-5)
    back = gr.apply_permutation(spec, gr.weight_matching(KEY, spec, a, moved).perm, moved)
    same(a, back)
    found = gr.activation_matching(KEY, spec, a, moved, fn=fn, batches=[X])
    same(a, gr.apply_permutation(spec, found.perm, moved))

    aligned = gr.apply_permutation(spec, gr.weight_matching(KEY, spec, a, b).perm, b)
    curve = gr.interpolate(lambda v, x: jnp.mean(fn(v, x) ** 2), a, aligned, [X], lambdas=3)
    ends = [np.mean(np.asarray(fn(v, X)) ** 2) for v in (a, aligned)]
    np.testing.assert_allclose(curve["loss"][[0, 2]], ends, rtol=1e-4)

    middle = gr.lerp(a, aligned, 0.5)
    assert find_batch_stats(fn, middle, X) == stats
    reset = flatten(gr.reset_batch_stats(fn, middle, [X]))
    new = [np.ravel(reset[path]) for pair in stats.items() for path in pair]
    np.testing.assert_allclose(new, moments(middle), rtol=1e-4, atol=1e-5)
    repaired = gr.repair(fn, middle, [a, aligned], [X])
    assert np.all(np.isfinite(repaired.fn(repaired.params, X)))


def same(a: Any, b: Any) -> None:
    one, two = flatten(a), flatten(b)
    assert list(one) == list(two)
    assert all(np.array_equal(one[p], two[p]) for p in one)


def mean_and_variance(z: Any) -> list[np.ndarray]:
    z = np.asarray(z, np.float64)
    return [z.mean(0), z.var(0)]


def test_haiku(tmp_path):
    hk = pytest.importorskip("haiku")

    def forward(x, train):
        h = hk.Linear(8, name="first")(x)
        h = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(h, train))
        return hk.nets.MLP([7, 3])(h)

    net = hk.without_apply_rng(hk.transform_with_state(forward))

    def make(seed):
        params, state = net.init(jax.random.key(seed), X, True)
        for shift in range(3):
            state = net.apply(params, state, X + shift, True)[1]
        return {"params": params, "state": state}

    def fn(variables, x):
        return net.apply(variables["params"], variables["state"], x, False)[0]

    a, b = make(0), make(1)
    assert "params/mlp/~/linear_0/w" in flatten(a)  # a module's name holds slashes
    emas = [f"state/batch_norm/~/{name}_ema/average" for name in ("mean", "var")]

    def moments(v):
        return mean_and_variance(X @ v["params"]["first"]["w"] + v["params"]["first"]["b"])

    whole_way(fn, a, b, [7, 8], {emas[0]: emas[1]}, moments)
    gr.save_params(tmp_path / "haiku.safetensors", a)
    same(a, unflatten(flatten(gr.load_params(tmp_path / "haiku.safetensors")), like=a))


@pytest.mark.parametrize("held", ["arrays", "variables"])
def test_keras(held, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    assert keras.backend.backend() == "jax"

    def make(seed):
        keras.utils.set_random_seed(seed)
        layers = keras.layers
        normed = [layers.Dense(8), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.1)]
        head = [layers.Dense(7, activation="gelu"), layers.Dense(3)]
        model = keras.Sequential([layers.Input((4,)), *normed, *head])
        for shift in range(3):
            model(X + shift, training=True)
        return model

    models = make(0), make(1)

    def fn(variables, x):
        trainable, rest = variables
        return models[0].stateless_call(trainable, rest, x, training=False)[0]

    read = list if held == "variables" else lambda kept: [v.value for v in kept]
    a, b = ((read(m.trainable_variables), read(m.non_trainable_variables)) for m in models)

    def moments(v):
        return mean_and_variance(X @ np.asarray(v[0][0]) + np.asarray(v[0][1]))

    whole_way(fn, a, b, [7, 8], {"1/0": "1/1"}, moments)
