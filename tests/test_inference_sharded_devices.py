"""Sharded functions on four devices, in a process of their own: written out they compute the same, and what is inferred for them is true."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.inference.sharded import unsharded

DEVICES = 4


def over(shape, ins, outs, names=("data", "model"), check=True):
    "`shard_map` over a mesh of this shape, wherever it is in this version of JAX"
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    mesh = Mesh(devices, names[: len(shape)])
    try:
        mapped, checks = jax.shard_map, {"check_vma": check}
    except AttributeError:
        from jax.experimental.shard_map import shard_map as mapped

        checks = {"check_rep": check}
    return lambda fn: mapped(fn, mesh=mesh, in_specs=ins, out_specs=outs, **checks)


def floats(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ------------------------------------------------------------ what all devices compute, written out


def collectives(x):
    "Every collective, over one mesh axis and over both, in both orders"
    both, turned = ("data", "model"), ("model", "data")
    yield from (lax.axis_index("model"), lax.axis_index(both))
    yield from (lax.psum(x, "model"), lax.psum(x, both), lax.pmean(x, "data"), x * lax.psum(1.0, both))
    yield from (lax.pmax(x, "model"), lax.pmin(x, both))
    yield from (lax.all_gather(x, both), lax.all_gather(x, "model", axis=1))
    yield from (lax.all_gather(x, turned, axis=1, tiled=True), lax.all_gather(x, "data", tiled=True))
    yield from (lax.psum_scatter(x, "model", tiled=True), lax.psum_scatter(x[:2], "data"))
    yield lax.psum_scatter(x, both, scatter_dimension=1, tiled=True)
    yield lax.psum_scatter(x[:4], turned)
    for i, j in ((0, 1), (1, 0), (0, 0), (1, 1)):
        yield from (lax.all_to_all(x, names, i, j, tiled=True) for names in ("model", both, turned))
    yield lax.all_to_all(x[:2], "model", 0, 1)
    yield from (lax.ppermute(x, "model", [(0, 1), (1, 0)]), lax.ppermute(x, "data", [(0, 1)]))
    yield lax.ppermute(x, both, [(0, 2), (3, 1), (1, 3)])
    yield lax.pshuffle(x, "model", [1, 0])
    yield lax.psum(jnp.tanh(x @ x.T).astype(jnp.float16).T[None] * 2 - 1, "model")
    yield lax.psum((x[:, None] @ x[:4] + x[0, 0]).reshape(-1), both)


def programs(x):
    "Loops and branches within which devices communicate, calls, and another `shard_map`"
    i = lax.axis_index("model")

    def step(c, row):
        c = jnp.tanh(c + lax.psum(c * row + i, "model"))
        return c, (jnp.sum(c), lax.ppermute(c, "data", [(1, 0), (0, 1)]))

    yield lax.scan(step, jnp.ones(4), x[:3])
    yield lax.scan(step, x[0], x[:3], reverse=True)
    mean = lambda c: (c[0] + 1, jnp.sin(c[1]) + lax.pmean(c[1], "data"))
    yield lax.while_loop(lambda c: c[0] < 3, mean, (0, x))
    total = lax.psum(x, ("data", "model"))
    yield lax.cond(jnp.sum(total) > 0, lambda y: lax.psum(y, "data"), lambda y: y * 2, x)
    yield lax.fori_loop(0, i, lambda _, c: c * 2, x)  # each device to its own end
    yield jax.jit(lambda x: lax.psum(jax.nn.relu(x) @ x.T, "data"))(x)
    yield jax.checkpoint(lambda x: lax.psum(x, "model"))(x)
    yield jax.vmap(lambda row: lax.psum(row, "model") * row)(x)
    yield jax.grad(lambda x: jnp.sum(jnp.sin(lax.psum(x, "model"))))(x)


def same_as_written_out(fn, x, shape):
    "The outputs of all devices, and of the equations on whole arrays"
    collected = lambda x: jax.tree.map(lambda v: v[None], jax.tree.leaves(list(fn(x))))
    spec = P(None, ("data", "model"))
    sharded = over(shape, spec, P(("data", "model")), check=False)(collected)
    eqn = next(e for e in jax.make_jaxpr(sharded)(x).eqns if e.primitive.name == "shard_map")
    closed = unsharded(eqn)
    pairs = zip(jax.tree.leaves(jax.jit(sharded)(x)), jex.jaxpr_as_fun(closed)(x), strict=True)
    for k, (want, got) in enumerate(pairs):
        assert want.shape == got.shape, k
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3, err_msg=f"{shape}, output {k}")


def check_collectives():
    same_as_written_out(collectives, floats(0, 8, 16), (2, 2))


def check_programs():
    same_as_written_out(programs, floats(1, 8, 16), (2, 2))


def check_meshes_of_one():
    "Mesh axes of one device"
    some = lambda x: [lax.psum(x, "model"), lax.all_gather(x, "data"), lax.axis_index("data") * x]
    more = lambda x: [*some(x), lax.all_to_all(x, "data", 0, 1, tiled=True), lax.pmax(x, "data")]
    for shape in ((1, 4), (4, 1), (1, 1), (1, 2)):
        same_as_written_out(more, floats(2, 8, 16), shape)


def check_a_mesh_within_another():
    def inner(x):
        return lax.psum(jnp.sin(x), "model")

    def outer(x):
        nested = jax.shard_map(inner, in_specs=P(None, "model"), out_specs=P(), axis_names={"model"})
        return nested(x) * (1.0 + lax.axis_index("data"))

    if not hasattr(jax, "shard_map"):
        return
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    fn = jax.shard_map(
        outer, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"}
    )
    x = floats(3, 4, 6)
    (eqn,) = jax.make_jaxpr(fn)(x).eqns
    (got,) = jex.jaxpr_as_fun(unsharded(eqn))(x)
    np.testing.assert_allclose(got, jax.jit(fn)(x), rtol=1e-5)


# ------------------------------------------------------------------------- networks, and theory


def groups(fn, params, *args):
    "The shapes of all groups of a spec that was tried on the devices"
    spec = infer_permutation_spec(fn, params, *args)
    return sorted(spec.perm_shapes.values())


def check_tensor_and_data_parallel():
    params = {"w": floats(0, 5, 8), "b": floats(1, 8), "v": floats(2, 8, 3)}

    def layer(p, x):
        return lax.psum(jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"], "model")

    for shape in ((2, 2), (1, 4), (4, 1)):
        spec = {"w": P(None, "model"), "b": P("model"), "v": P("model")}
        fn = over(shape, (spec, P("data")), P("data"))(layer)
        assert groups(fn, params, floats(3, 4, 5)) == [(8,)], shape
        assert groups(jax.jit(fn), params, floats(3, 4, 5)) == [(8,)], shape


def check_one_axis_divided_among_two_mesh_axes():
    params = {"w": floats(0, 5, 8), "v": floats(2, 8, 3)}

    def layer(p, x):
        return lax.psum(jnp.sin(x @ p["w"]) @ p["v"], ("data", "model"))

    for names in (("data", "model"), ("model", "data")):
        fn = over((2, 2), ({"w": P(None, names), "v": P(names)}, P()), P())(layer)
        assert groups(fn, params, floats(3, 4, 5)) == [(8,)], names


def check_fully_sharded():
    params = {"w": floats(0, 5, 8), "b": floats(1, 8), "v": floats(2, 8, 3)}

    def layer(p, x):
        whole = lambda w, k: lax.all_gather(w, "data", axis=k, tiled=True)
        w, b, v = whole(p["w"], 1), whole(p["b"], 0), whole(p["v"], 0)
        return jnp.tanh(x @ w + b[None]) @ v

    spec = {"w": P(None, "data"), "b": P("data"), "v": P("data")}
    fn = over((4,), (spec, P("data")), P("data"))(layer)
    assert groups(fn, params, floats(3, 4, 5)) == [(8,)]


def check_sharded_heads():
    shapes = {"q": (6, 4, 3), "k": (6, 4, 3), "v": (6, 4, 5), "o": (4, 5, 6)}
    params = {name: floats(i, *shape) for i, (name, shape) in enumerate(shapes.items())}

    def attention(p, x):
        q, k, v = (jnp.einsum("btd,dhq->bthq", x, p[name]) for name in "qkv")
        scores = jax.nn.softmax(jnp.einsum("bthq,bshq->bhts", q, k))
        out = jnp.einsum("bhts,bshv->bthv", scores, v)
        return lax.psum(jnp.einsum("bthv,hvd->btd", out, p["o"]), "model")

    spec = {name: P(None, "model") for name in "qkv"} | {"o": P("model")}
    fn = over((2, 2), (spec, P("data")), P("data"))(attention)
    assert groups(fn, params, floats(9, 2, 3, 6)) == [(4,), (4, 3), (4, 5)]


def check_sequence_parallel():
    params = {"w": floats(0, 5, 8), "v": floats(2, 8, 5)}

    def block(p, x):
        h = lax.all_gather(x, "model", axis=1, tiled=True)  # (batch, time, features)
        out = jnp.tanh(h @ p["w"]) @ p["v"]
        return x + lax.psum_scatter(out, "model", scatter_dimension=1, tiled=True)

    spec = {"w": P(None, "model"), "v": P("model")}
    fn = over((2, 2), (spec, P("data", "model")), P("data", "model"))(block)
    assert groups(fn, params, floats(3, 2, 4, 5)) == [(8,)]


def check_expert_parallel():
    params = {"w": floats(0, 4, 5, 6), "v": floats(1, 4, 6, 5)}

    def experts(p, x):  # (experts, places, features), places for each device
        x = lax.all_to_all(x, "model", 0, 1, tiled=True)
        out = jnp.einsum("ecf,efo->eco", jnp.tanh(jnp.einsum("ecd,edf->ecf", x, p["w"])), p["v"])
        return lax.all_to_all(out, "model", 1, 0, tiled=True)

    spec = {"w": P("model"), "v": P("model")}
    fn = over((1, 4), (spec, P(None, "model")), P(None, "model"))(experts)
    assert groups(fn, params, floats(3, 4, 8, 5)) == [(4, 6)]


def check_a_ring():
    "Each device has its units, and looks at the tokens of all others, one after the other"
    params = {"w": floats(0, 5, 8), "v": floats(2, 8, 3)}

    def ring(p, x):
        def turn(carry, _):
            x, total = carry
            total = total + jnp.tanh(x @ p["w"]).mean(0) @ p["v"]
            return (lax.ppermute(x, "model", [(i, (i + 1) % 4) for i in range(4)]), total), None

        zero = jnp.zeros(3) + 0 * jnp.sum(x)
        (_, total), _ = lax.scan(turn, (x, zero), None, length=4)
        return lax.psum(total, "model")

    fn = over((1, 4), ({"w": P(None, "model"), "v": P("model")}, P("model")), P())(ring)
    assert groups(fn, params, floats(3, 8, 5)) == [(4, 2)]  # within devices, which are numbered


def check_layers_in_a_scan():
    params = {"w": floats(0, 3, 5, 8), "v": floats(2, 3, 8, 5)}

    def deep(p, x):
        one = lambda h, p: (h + lax.psum(jnp.tanh(h @ p["w"]) @ p["v"], "model"), None)
        return lax.scan(one, x, p)[0]

    spec = {"w": P(None, None, "model"), "v": P(None, "model")}
    fn = over((2, 2), (spec, P("data")), P("data"))(deep)
    spec = infer_permutation_spec(fn, params, floats(3, 4, 5))
    assert np.isclose(spec.log10_symmetries, 3 * np.log10(40320))  # 8! in each layer


CHECKS = {name: fn for name, fn in globals().items() if name.startswith("check_")}


@pytest.fixture(scope="module")
def output():
    "What the checks say, all in one process that has four devices"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    source = Path(__file__).resolve()
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(source.parent.parent), *sys.path])
    ran = subprocess.run(
        [sys.executable, str(source)], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.mark.parametrize("name", CHECKS)
def test_on_four_devices(output, name):
    assert f"{name}: fine\n" in output, output.partition(f"{name}: ")[2][:3000]


if __name__ == "__main__":
    import traceback

    for name, check in CHECKS.items():
        try:
            check()
            print(f"{name}: fine")
        except Exception:
            print(f"{name}: {traceback.format_exc()}")
