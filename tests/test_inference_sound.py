"""What holds beyond the traced example: unread entries, dead equations, loops, constants, names, several examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.inference.explain import check_permutation_spec

X = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


def draw(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    "Random parameters; by default of a hidden layer of 6 units"
    rng = np.random.default_rng(seed)
    shapes = shapes or {"w": (4, 6), "b": (1, 6), "v": (6, 3)}
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


def embedded(p, tokens):
    x = p["e"][tokens] + p["pos"].astype(jnp.bfloat16).astype(jnp.float32)[None, : tokens.shape[1]]
    return jnp.tanh(x @ p["a"]) @ p["o"]


@pytest.mark.xfail(
    jax.__version_info__ < (0, 10), strict=True, reason="a slice is a lookup there, and no slice"
)
def test_what_the_example_does_not_read_stays_with_the_rest_of_its_array():
    p = draw(e=(9, 6), pos=(16, 6), a=(6, 8), o=(8, 9))
    short, long = np.ones((2, 4), int), np.ones((2, 16), int)
    spec = infer_permutation_spec(embedded, p, short)
    assert spec.axes_to_perm["pos"] == (None, "P_0") and spec.groups == {"P_0": 6, "P_1": 8}
    assert spec == infer_permutation_spec(embedded, p, long)
    assert "also=" in spec.reasons["pos"][0]
    check_permutation_spec(spec, embedded, p, long)


def test_layers_of_a_stack_that_are_not_read_are_fixed():
    def fn(p, x):
        return jnp.tanh(jnp.tanh(x @ p["i"] @ p["w"][0]) @ p["w"][1]) @ p["o"]

    spec = infer_permutation_spec(fn, draw(i=(4, 6), w=(4, 6, 6), o=(6, 2)), X)
    unread = [block for block in spec.blocks if block.path == "w" and block.shape[0] == 2]
    assert len(spec.groups) == 3 and len(unread) == 1 and not any(unread[0].labels)


@pytest.mark.parametrize(("low", "high", "left"), [(0, -2, 4), (-1, -2, 3), (-5, 0, 1), (2, -3, 3)])
def test_units_that_a_padding_crops_are_fixed(low, high, left):
    def fn(p, x):
        h = jnp.tanh(x @ p["w"] + p["b"])
        return jnp.tanh(jax.lax.pad(h, np.float32(0.3), ((0, 0, 0), (low, high, 0)))).sum(1)

    spec = infer_permutation_spec(fn, {path: draw()[path] for path in "wb"}, X)
    assert list(spec.groups.values()) == [left] * (left > 1)


def metrics(p, x):
    h = jax.nn.relu(x @ p["w"] + p["b"])
    jax.debug.print("{}", h[0, 0])
    return h @ p["v"], {"argmax": h.argmax(-1), "in order": jnp.cumsum(h, 1)}


@pytest.mark.parametrize("fn", [metrics, jax.jit(metrics), jax.checkpoint(metrics)])
def test_dead_equations_fix_nothing(fn):
    assert infer_permutation_spec(lambda p, x: fn(p, x)[0], draw(), X).groups == {"P_0": 6}
    assert infer_permutation_spec(fn, draw(), X).groups == {}


def test_dead_parts_of_a_loop_fix_nothing():
    def fn(p, x):
        def layer(carry, w):
            h, seen = carry
            h = jnp.tanh(h @ w)
            return (h, jnp.cumsum(seen + h, 1)), h.argmax(-1)

        h = x @ p["i"]
        return jax.lax.scan(layer, (h, h), p["w"])[0][0] @ p["o"]

    spec = infer_permutation_spec(fn, draw(i=(4, 6), w=(3, 6, 6), o=(6, 2)), X)
    assert list(spec.groups.values()) == [6] * 4


def test_a_number_within_a_loop_belongs_to_its_iteration():
    def normalised(over):
        def fn(p):
            rows = over(lambda row: row / (1 + jnp.abs(row).sum()), jnp.tanh(p["w"]))
            return jax.nn.logsumexp(rows, axis=(0, 1))

        return fn

    p = {"w": draw()["w"]}
    mapped = infer_permutation_spec(normalised(jax.lax.map), p)
    vmapped = infer_permutation_spec(normalised(lambda f, w: jax.vmap(f)(w)), p)
    assert mapped.perm_shapes == vmapped.perm_shapes == {"P_0": (4,), "P_1": (4, 6)}
    entries = infer_permutation_spec(lambda p: jax.lax.map(jnp.tanh, p["w"]).sum(), p)
    assert entries.perm_shapes == {"P_0": (24,)}  # no number of a row: all are one group


@pytest.mark.parametrize(("sign", "groups"), [(1.0, [6]), (-1.0, [3, 3])])
def test_zeros_of_two_signs_are_two_constants(sign, groups):
    def fn(p, x):
        zeros = jnp.concatenate([jnp.zeros(3), sign * jnp.zeros(3)])
        return (jnp.arctan(1 / zeros)[None] * (x @ p["w"])) @ p["v"]

    p = draw(w=(4, 6), v=(6, 3))
    assert list(infer_permutation_spec(fn, p, X).groups.values()) == groups


def test_nan_is_a_constant_like_others():
    def fn(p, x):
        h = x @ p["w"]
        return jnp.where(jnp.isfinite(h), h, jnp.full((1, 6), jnp.nan)) @ p["v"]

    assert infer_permutation_spec(fn, draw(w=(4, 6), v=(6, 3)), X).groups == {"P_0": 6}


@pytest.mark.parametrize(
    "mean",
    [jnp.var, jnp.std, lambda h, axis, keepdims: jnp.median(h, axis=axis, keepdims=keepdims)],
)
def test_statistics_of_a_batch_leave_the_units(mean):
    def fn(p, x):
        h = x @ p["w"]
        return jnp.tanh(h / (mean(h, axis=0, keepdims=True) ** 2 + 1)) @ p["v"]

    assert infer_permutation_spec(fn, draw(w=(4, 6), v=(6, 3)), X).groups == {"P_0": 6}


def test_a_mask_from_outside_fixes_what_it_varies_over():
    mask = np.tril(np.ones((5, 5), bool))

    def attention(p, x):
        q, k, v = (jnp.einsum("td,dhq->htq", x, p[name]) for name in "qkv")
        scores = jnp.where(mask[None], jnp.einsum("htq,hsq->hts", q, k), -1e9)
        return jnp.einsum("hts,hsq,hqd->td", jax.nn.softmax(scores), v, p["o"])

    p = draw(q=(4, 3, 2), k=(4, 3, 2), v=(4, 3, 2), o=(3, 2, 4))
    spec = infer_permutation_spec(attention, p, X)
    assert sorted(spec.perm_shapes.values()) == [(3,), (3, 2), (3, 2)]


def test_quantised_weights_move_with_their_units():
    def fn(p, x):
        h = jnp.tanh(x @ (p["w"].astype(jnp.float32) * p["scale"]))
        return h @ p["v"] * p["steps"]

    rng = np.random.default_rng(0)
    w = rng.integers(-127, 127, (4, 6)).astype(np.int8)
    p = draw(scale=(1, 6), v=(6, 3)) | {"w": w, "steps": np.int32(3)}
    spec = infer_permutation_spec(fn, p, X)
    assert spec.groups == {"P_0": 6} and spec.axes_to_perm["w"] == (None, "P_0")


def test_integers_that_are_indices_fix_what_they_point_at():
    def fn(p, x):
        return jnp.tanh(x @ p["w"])[:, p["order"]].cumsum(1)

    p = draw(w=(4, 6)) | {"order": np.arange(6)[::-1].copy()}
    assert infer_permutation_spec(fn, p, X).groups == {}


def test_constants_among_the_parameters_are_fixed_by_name():
    def fn(p, x):
        return (jnp.tanh(x @ p["w"]) * p["rotary"]["inv_freq"][None]) @ p["v"]

    def renamed(p, x):
        return fn(p | {"rotary": {"inv_freq": p["rotary"]["other"]}}, x)

    p = draw(w=(4, 6), v=(6, 3))
    spec = infer_permutation_spec(fn, p | {"rotary": {"inv_freq": np.ones(6, np.float32)}}, X)
    assert spec.groups == {} and "inv_freq" in spec.reasons["rotary/inv_freq"][0]
    p["rotary"] = {"other": np.ones(6, np.float32)}
    assert infer_permutation_spec(renamed, p, X).groups == {"P_0": 6}
    assert infer_permutation_spec(renamed, p, X, fixed=["rotary/*"]).groups == {}
    with pytest.raises(ValueError, match="no array is called 'tabel'"):
        infer_permutation_spec(renamed, p, X, fixed=["tabel"])


def test_the_spec_is_what_several_examples_have_in_common():
    def fn(p, x):
        h = jnp.tanh(x @ p["w"])
        return h[:, : len(x)].sum(1) + (h**2).sum(1)

    p, two, four = {"w": draw()["w"]}, X[:2], X[:4]
    assert sorted(infer_permutation_spec(fn, p, two).groups.values()) == [2, 4]
    assert sorted(infer_permutation_spec(fn, p, four).groups.values()) == [2, 4]
    both = infer_permutation_spec(fn, p, two, also=[(four,)])
    assert sorted(both.groups.values()) == [2, 2, 2]
    assert both.examples == ({"0": (2, 4)}, {"0": (4, 4)})
    assert type(both).from_json(both.to_json()).examples == both.examples
    with pytest.raises(TypeError, match="the tuple of its arguments"):
        infer_permutation_spec(fn, p, two, also=[four])
    with pytest.raises(TypeError, match="an example is a ndarray: give the tuple of its arguments"):
        check_permutation_spec(both, fn, p, two, also=[four])


def test_empty_pieces_say_nothing():
    def fn(p, x):
        nothing, a, b = jnp.split(x @ p["w"], [0, 4], -1)
        return jnp.tanh(jnp.concatenate([nothing, a], -1)) @ p["v"] + b @ p["u"]

    spec = infer_permutation_spec(fn, draw(w=(4, 6), v=(4, 3), u=(2, 3)), X)
    assert sorted(spec.groups.values()) == [2, 4]


def test_factors_in_another_order_are_no_hosts():
    def fn(p, x):
        e = jnp.tanh(jnp.tensordot(x, p["w"], 1))
        shuffled = e.reshape(5, 6, 2, 3).swapaxes(2, 3).reshape(5, 6, 6)
        return jnp.tanh(e + shuffled).sum((1, 2))

    assert infer_permutation_spec(fn, draw(w=(4, 6, 6)), X).perm_shapes == {"P_0": (6,)}


def test_units_of_a_segment_that_is_cut_again_are_seen_with_all_its_segments():
    def fn(p, x):
        h = jnp.tanh(jnp.tensordot(x, p["w"], 1))
        product = h[:, :, 1] * jnp.tanh(h[:, :, 0])
        return (
            jnp.tanh(h @ p["v"]).sum((1, 2, 3))
            + jnp.tanh(product).sum((1, 2))
            + jnp.sin(product[..., 1]).sum(1)
        )

    spec = infer_permutation_spec(fn, draw(w=(4, 4, 3, 2), v=(2, 3)), X)
    assert sorted(spec.groups.values()) == [3, 4, 4]


def test_names_and_barriers_pass_on_what_is_known_of_entries():
    def fn(p, x):
        gates = checkpoint_name(jax.nn.softmax(x @ p["router"]), "gates")
        weight, at = jax.lax.top_k(gates, 2)
        weight, at = jax.lax.optimization_barrier((weight, checkpoint_name(at, "places")))
        h = jax.nn.relu(jnp.einsum("nd,nkdf->nkf", x, p["up"][at]))
        return jnp.einsum("nk,nkf,nkfd->nd", weight, h, p["down"][at])

    spec = infer_permutation_spec(fn, draw(router=(4, 3), up=(3, 4, 6), down=(3, 6, 2)), X)
    assert sorted(spec.perm_shapes.values()) == [(3,), (3, 6)]
