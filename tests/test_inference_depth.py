"""The work of inference grows with depth as the number of equations does: in calls, not in time."""

import collections
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import git_rebasin.inference
from git_rebasin.inference.infer import infer_permutation_spec

PACKAGE = str(Path(git_rebasin.inference.__file__).parent)


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def calls(fn: Callable, *args) -> int:
    "How often functions of the inference are called, by a spec of a function"
    count = collections.Counter()

    def see(frame, event, _):
        count[event == "call" and frame.f_code.co_filename.startswith(PACKAGE)] += 1

    infer_permutation_spec(fn, *args, verify=False)  # what JAX keeps from call to call is kept now
    before = sys.getprofile()
    sys.setprofile(see)
    try:
        infer_permutation_spec(fn, *args, verify=False)
    finally:
        sys.setprofile(before)
    return count[True]


# ---- networks of n layers


def residual(n: int):
    "Blocks of attention with fused, rotated heads, and of a gate: nearly everything is cut"

    def turned(x):
        first, second = jnp.split(x, 2, -1)
        return jnp.concatenate([first - 2 * second, second + 2 * first], -1)

    def fn(p, x):
        for w in p:
            q, k, v = (h.reshape(*x.shape[:2], 4, 6) for h in jnp.split(x @ w["qkv"], 3, -1))
            scores = jax.nn.softmax(jnp.einsum("bthq,bshq->bhts", turned(q), turned(k)))
            x = x + jnp.einsum("bhts,bshq->bthq", scores, v).reshape(*x.shape[:2], 24) @ w["o"]
            gate, up = jnp.split(x @ w["up"], 2, -1)
            x = x + (jax.nn.silu(gate) * up) @ w["down"]
        return x.sum()

    layer = {"qkv": (10, 72), "o": (24, 10), "up": (10, 14), "down": (7, 10)}
    return fn, [{name: array(*shape) for name, shape in layer.items()}] * n, array(2, 3, 10)


def chain(n: int):
    "Layers without a stream, each with a gate from the same array: what is cut meets what is cut"

    def fn(p, x):
        for w in p:
            gate, up = jnp.split(x @ w, 2, -1)
            x = jax.nn.sigmoid(gate) * up
        return x.sum()

    return fn, [array(6, 12)] * n, array(2, 6)


def stacked(n: int):
    "The arrays of all layers in one, taken out one by one"

    def fn(p, x):
        for i in range(n):
            x = x + jax.nn.relu(x @ p["a"][i]) @ p["b"][i]
        return x.sum()

    return fn, {"a": array(n, 5, 7), "b": array(n, 7, 5)}, array(2, 5)


def dense(n: int):
    "Every layer sees the concatenation of the last three"

    def fn(p, x):
        seen = [x]
        for w in p:
            seen.append(jax.nn.relu(sum(s @ u for s, u in zip(seen[-3:], w, strict=False))))
        return jnp.concatenate(seen[-3:], -1).sum()

    return fn, [[array(6, 6)] * 3] * n, array(2, 6)


@pytest.mark.parametrize("network", [residual, chain, dense])
def test_twice_the_layers_are_twice_the_work(network):
    few, some, many = (calls(*network(n)) for n in (8, 16, 32))
    assert few < some < many
    assert many - some < 2.05 * (some - few)  # four times, if it were quadratic


def test_layers_taken_out_of_one_array_cost_little_more_than_that():
    few, some, many = (calls(*stacked(n)) for n in (8, 16, 32))
    assert many - some < 2.6 * (some - few)  # each slice passes over all segments of what is cut
