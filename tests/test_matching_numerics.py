"""Weights of any scale, in few digits, complex, or none at all: every matcher gives what it gives
for the same weights near one, and numbers that make no sense are refused by name."""

import math
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import git_rebasin as gr
from git_rebasin.matching import soft
from git_rebasin.matching.frank_wolfe import frank_wolfe_merge
from git_rebasin.matching.learn_scaling import learn_scaling
from git_rebasin.matching.match import ModelError
from git_rebasin.matching.sinkhorn import squared_distance
from git_rebasin.matching.solve import solve
from git_rebasin.matching.straight_through import Projection
from git_rebasin.matching.weights import unit_similarity
from git_rebasin.statistics.moments import CrossMoments, Moments
from git_rebasin.symmetry.entries import Concat, Fixed, Group, Product
from git_rebasin.symmetry.permutation import (
    apply_permutation,
    identity_permutation,
    random_permutation,
    same_permutation,
)
from git_rebasin.symmetry.scaling import Scalings
from git_rebasin.symmetry.spec import PermutationSpec

KEY = jax.random.key(0)
ROWS = {
    "in": (None, "D"),
    "bias": ("D",),
    "query": ("D", "H", Group("Q", within="H")),
    "out": (Product("H", "Q"), "D"),
    "last": ("D", None),
}
SHAPES = {"in": (3, 7), "bias": (7,), "query": (7, 2, 4), "out": (8, 7), "last": (7, 2)}
SPEC = PermutationSpec(ROWS)


def draw(seed, dtype=np.float32, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {p: rng.standard_normal(s).astype(dtype) for p, s in shapes.items()}


def times(model, power):
    "A model times a power of two, exactly, in its own dtype"
    wide = {p: np.ldexp(np.asarray(w, np.float64), power) for p, w in model.items()}
    return {p: w.astype(model[p].dtype) for p, w in wide.items()}


def scalar_product(a, b):
    return sum(np.vdot(a[p], b[p]).real for p in a)


MATCHERS = {
    "weights": gr.weight_matching,
    "greedy": lambda *args: gr.weight_matching(*args, init="greedy"),
    "Frank–Wolfe": gr.frank_wolfe_matching,
}


# ---- scales


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize(
    ("dtype", "powers"),
    [
        (np.float32, [(-76, -76), (-120, -100), (64, 64), (100, 110), (-70, 90)]),
        (jnp.bfloat16, [(-76, -76), (90, 64)]),
        (np.float64, [(-332, -332), (-400, 380), (300, 200), (-500, -550)]),
    ],
    ids=["float32", "bfloat16", "float64"],
)
def test_a_match_does_not_depend_on_the_scale(name, dtype, powers):
    a, b = draw(0, dtype), draw(1, dtype)
    want = MATCHERS[name](KEY, SPEC, a, b)
    assert want.sweeps > 1 and not same_permutation(want.perm, identity_permutation(SPEC, a))
    for p, q in powers:
        got = MATCHERS[name](KEY, SPEC, times(a, p), times(b, q))
        assert same_permutation(got.perm, want.perm) and got.converged == want.converged
        objectives = np.ldexp([want.initial_objective, *want.objective], p + q)
        np.testing.assert_allclose([got.initial_objective, *got.objective], objectives, rtol=1e-6)


def test_beyond_float64_only_the_objective_is_infinite_or_zero():
    a, b = draw(0, np.float64), draw(1, np.float64)
    want = gr.weight_matching(KEY, SPEC, a, b)
    for power, value in ((600, math.inf), (-700, 0.0)):
        heard = []
        args = KEY, SPEC, times(a, power), times(b, power)
        got = gr.weight_matching(*args, callback=heard.append)
        assert same_permutation(got.perm, want.perm) and got.objective[-1] == value
        assert not np.isnan(got.objective).any() and heard[-1].values["objective"] == value


def test_what_is_small_decides_where_nothing_large_does():
    spec = PermutationSpec(
        {"w": (None, "P"), "v": (None, "Q"), "qkv": (Product(2, "R"), None), "m": ("R",)}
    )
    shapes = {"w": (4, 9), "v": (4, 8), "qkv": (12, 3), "m": (6,)}
    a = draw(2, np.float64, shapes)
    a = a | {"w": a["w"] * 1e-23, "m": a["m"] * 1e-35, "qkv": a["qkv"] * 1e90}
    plant = random_permutation(jax.random.key(1), spec, a)
    b = apply_permutation(spec, plant, a)
    for init in ("identity", "greedy"):
        back = apply_permutation(spec, gr.weight_matching(KEY, spec, a, b, init=init).perm, b)
        assert all(np.array_equal(back[p], a[p]) for p in a)


def test_parts_of_one_array_may_differ_in_scale():
    "As queries and values in one kernel: each part is a block with a scale of its own"
    spec = PermutationSpec({"w": (Concat("P", "Q"), None), "p": ("P",), "q": ("Q",)})
    a = {"w": draw(0, np.float64, {"w": (12, 3)})["w"], "p": np.zeros(5), "q": np.zeros(7)}
    a["w"] *= np.repeat([1e-60, 1e40], [5, 7])[:, None]
    plant = random_permutation(jax.random.key(1), spec, a)
    b = apply_permutation(spec, plant, a)
    back = apply_permutation(spec, gr.weight_matching(KEY, spec, a, b).perm, b)
    assert np.array_equal(back["w"], a["w"])


def test_moments_of_an_optimizer_beside_its_weights():
    a = draw(0) | {f"nu/{p}": np.square(w) * 1e-22 for p, w in draw(3).items()}
    spec = PermutationSpec(ROWS | {f"nu/{p}": row for p, row in ROWS.items()})
    b = apply_permutation(spec, random_permutation(jax.random.key(1), spec, a), a)
    alone = [{p: w for p, w in m.items() if p.startswith("nu/")} for m in (a, b)]
    for models in ((a, b), alone):
        only = PermutationSpec({p: spec.axes_to_perm[p] for p in models[0]})
        match = gr.weight_matching(KEY, only, *models, init="greedy")
        back = apply_permutation(only, match.perm, models[1])
        assert all(np.array_equal(back[p], w) for p, w in models[0].items())
        value = scalar_product(models[0], models[0])
        assert match.objective[-1] == pytest.approx(float(value), rel=1e-5)


class Late:
    "An array in the place of one in a file"

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.reads = values, values.shape, values.dtype, 0

    def __array__(self, dtype=None, copy=None):
        self.reads += 1
        return self.values.copy()


def test_models_read_lazily_are_matched_at_any_scale_without_more_reads():
    for dtype in (np.float32, np.float64):
        a, b = draw(0, dtype), draw(1, dtype)
        reads = {}
        for power in (0, -80, 90):
            models = [{p: Late(w) for p, w in times(m, power).items()} for m in (a, b)]
            match = gr.weight_matching(KEY, SPEC, *models, budget=0)
            want = gr.weight_matching(KEY, SPEC, times(a, power), times(b, power))
            assert same_permutation(match.perm, want.perm) and match.objective == want.objective
            reads[power] = sum(w.reads for model in models for w in model.values())
        more = len(a) * 2 if dtype == np.float64 else 0  # once more, to look beyond float32
        assert reads[-80] <= reads[0] + more and reads[90] <= reads[0] + more


def test_merges_do_not_depend_on_the_scale():
    models = [draw(k, np.float64) for k in range(3)]
    for merge in (gr.merge_many, frank_wolfe_merge):
        want = merge(KEY, SPEC, models)
        for power in (-80, 70, -330, 400):
            got = merge(KEY, SPEC, [times(m, power) for m in models])
            for p, q in zip(got.perms, want.perms, strict=True):
                assert same_permutation(p, q)
            np.testing.assert_allclose(
                got.objective, np.ldexp(want.objective, 2 * power), rtol=1e-5
            )
            for path, w in times(want.params, power).items():
                np.testing.assert_allclose(got.params[path], w, rtol=1e-12)
    for power, value in ((600, math.inf), (-700, 0.0)):
        got = gr.merge_many(KEY, SPEC, [times(m, power) for m in models])
        want = gr.merge_many(KEY, SPEC, models)
        assert all(map(same_permutation, got.perms, want.perms)) and got.objective[-1] == value


def test_similarities_do_not_depend_on_the_scale():
    a, b = draw(0), draw(1)
    perm = identity_permutation(SPEC, a)
    want = unit_similarity(SPEC, perm, a, b)
    for p, q in ((-76, -76), (70, 80), (-90, 90)):
        got = unit_similarity(SPEC, perm, times(a, p), times(b, q))
        for group, cosines in want.items():
            np.testing.assert_allclose(got[group], cosines, rtol=1e-5, atol=1e-7)


def relu_net(p, x):
    h = jax.nn.relu(x @ p["w"] + p["b"][None])
    return h @ p["v"]


NET = PermutationSpec({"w": (None, "P"), "b": ("P",), "v": ("P", None)})
NET_SHAPES = {"w": (5, 8), "b": (8,), "v": (8, 3)}


@pytest.mark.parametrize("kind", ["inner", "correlation"])
def test_activations_of_any_scale_are_matched(kind):
    a, batches = draw(0, shapes=NET_SHAPES), [draw(k, shapes={"x": (20, 5)})["x"] for k in (5, 6)]
    b = apply_permutation(
        NET, random_permutation(jax.random.key(1), NET, a), draw(1, shapes=NET_SHAPES)
    )
    how = {"fn": relu_net, "similarity": kind, "keep_similarity": True}
    want = gr.activation_matching(KEY, NET, a, b, batches=batches, **how)
    for power in (-83, 83):  # the bias has the scale of the products
        small = [m | {"b": np.ldexp(m["b"], power)} for m in (a, b)]
        got = gr.activation_matching(
            KEY, NET, *small, batches=[np.ldexp(x, power) for x in batches], **how
        )
        assert same_permutation(got.perm, want.perm)
        np.testing.assert_allclose(got.objective, want.objective, rtol=1e-5)
        np.testing.assert_allclose(got.similarity["P"], want.similarity["P"], atol=1e-5)


def test_moments_of_units_of_any_scale():
    rng, scale = np.random.default_rng(0), np.array([1e-25, 1.0, 1e25, 1e-30], np.float32)
    a, b = (rng.normal(size=(1, 40, 4)).astype(np.float32) * scale for _ in range(2))
    b[..., 3] = a[..., 0] * 2
    of = jax.jit(CrossMoments.of)
    whole, halves = of(a, b), of(a[:, :9], b[:, :9]).merge(of(a[:, 9:], b[:, 9:]))
    wide_a, wide_b = a[0].astype(np.float64), b[0].astype(np.float64)
    for m in (whole, halves):
        np.testing.assert_allclose(m.inner[0], wide_a.T @ wide_b, rtol=1e-3)
        np.testing.assert_allclose(m.a.var[0], wide_a.var(0), rtol=1e-5)
        np.testing.assert_allclose(m.b.squares[0], np.square(wide_b).sum(0), rtol=1e-5)
        want = np.corrcoef(wide_a.T, wide_b.T)[:4, 4:]
        np.testing.assert_allclose(m.correlation[0], want, atol=1e-5)
        assert not m.a.constant.any()
    alone = jax.jit(lambda z: Moments.of(z, [0], any_scale=True))(a[0])
    np.testing.assert_allclose(alone.var, wide_a.var(0), rtol=1e-5)


def test_projections_do_not_depend_on_the_scale():
    a, b = draw(0), draw(1)
    bound = SPEC.bind(a)
    start = identity_permutation(bound)
    want = Projection(bound, a, b, start).project(a, [0])
    for power in (-76, 70):
        small = times(a, power), times(b, power)
        search = Projection(bound, *small, start)
        assert same_permutation(search.project(small[0], [0]), want)
        assert search.project({p: w * np.float32(1.5) for p, w in small[0].items()}, [0])


def test_distances_whose_squares_float32_cannot_hold_are_refused():
    for power in (-76, 70):
        with pytest.raises(ValueError, match=r"the norm of 'in'.*multiply both models by 2\^"):
            squared_distance(times({"in": draw(0)["in"]}, power))
    squared_distance(times(draw(0), 20)), squared_distance({"w": np.zeros(3)})


# ---- few digits, on devices


def test_leaves_that_stay_on_devices():
    code = """
    import jax, jax.numpy as jnp, ml_dtypes, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    import git_rebasin as gr
    mesh = Mesh(np.array(jax.devices()), ("x",))
    spread = lambda tree: {
        p: jax.device_put(jnp.asarray(w), NamedSharding(mesh, PartitionSpec())) for p, w in tree.items()
    }
    spec = gr.PermutationSpec.from_axes_to_perm(
        {"w1": (None, "P"), "b1": ("P",), "w2": ("P", "Q"), "w3": ("Q", None)}
    )
    shapes = {"w1": (20, 64), "b1": (64,), "w2": (64, 40), "w3": (40, 9)}
    def draw(seed, dtype, scale):
        rng, tree = np.random.default_rng(seed), {}
        for p, s in shapes.items():
            w = rng.standard_normal(s) * scale
            tree[p] = (w + 1j * rng.standard_normal(s) * scale if dtype == np.complex64 else w).astype(dtype)
        return tree
    cases = [(np.float32, 1), (np.float32, 1e-23), (np.float32, 1e25), (jnp.bfloat16, 1e-25),
             (np.float16, 9000), (np.float16, 1e-4), (ml_dtypes.float8_e4m3fn, 60),
             (ml_dtypes.float8_e5m2, 9000), (np.int8, 25), (np.complex64, 1e-24), (np.complex64, 1)]
    for dtype, scale in cases:
        a = draw(0, dtype, scale)
        plant = gr.random_permutation(jax.random.key(1), spec, a)
        b = gr.apply_permutation(spec, plant, a)
        key = jax.random.key(0)
        host, device = (gr.weight_matching(key, spec, *pair, init="greedy") for pair in ((a, b), (spread(a), spread(b))))
        back = gr.apply_permutation(spec, device.perm, b)
        assert all(np.array_equal(back[p], a[p]) for p in a), (dtype, scale)
        np.testing.assert_allclose(device.objective[-1], host.objective[-1], rtol=1e-3)
        other = draw(2, dtype, scale)  # nothing is planted: late sweeps move few units
        host, device = (gr.weight_matching(key, spec, *pair) for pair in ((a, other), (spread(a), spread(other))))
        np.testing.assert_allclose(device.objective[-1], host.objective[-1], rtol=0.05)
    """
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    run = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(run, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_few_digits_on_the_host(dtype):
    a = {p: (w * 50).astype(dtype) for p, w in draw(0).items()}
    b = apply_permutation(SPEC, random_permutation(jax.random.key(1), SPEC, a), a)
    for matcher in MATCHERS.values():
        back = apply_permutation(SPEC, matcher(KEY, SPEC, a, b).perm, b)
        assert all(np.array_equal(back[p], a[p]) for p in a)


def test_scores_of_few_digits_do_not_overflow_in_their_sums():
    spec = PermutationSpec({"w": ("H", Group("Q", within="H"))}).bind_shapes({"w": (2, 40)})
    rng, big = np.random.default_rng(0), np.float16(30000)
    scores = {
        "H": np.zeros((1, 2, 2), np.float16),
        "Q": (rng.random((1, 80, 80)) * big).astype(np.float16),
    }
    wide = {g: s.astype(np.float64) for g, s in scores.items()}
    assert same_permutation(solve(spec, scores), solve(spec, wide))
    plain = PermutationSpec({"v": ("P",)}).bind_shapes({"v": (6,)})
    tiny = {"P": rng.random((6, 6)) * 1e-60}
    got = soft.harden(plain, tiny)
    assert same_permutation(got, soft.harden(plain, {"P": tiny["P"] * 1e60}))


# ---- complex weights


def complex_model(seed, shapes=SHAPES, scale=1.0):
    rng = np.random.default_rng(seed)
    draws = ((rng.standard_normal(s), rng.standard_normal(s)) for s in shapes.values())
    pairs = zip(shapes, draws, strict=True)
    return {p: ((x + 1j * y) * scale).astype(np.complex64) for p, (x, y) in pairs}


def test_complex_weights_are_matched_by_the_real_part_of_their_inner_product():
    a, b = complex_model(0), complex_model(1)
    parts = [
        {f"{p}/{k}": getattr(w, k) for p, w in m.items() for k in ("real", "imag")} for m in (a, b)
    ]
    spec = PermutationSpec({f"{p}/{k}": row for p, row in ROWS.items() for k in ("real", "imag")})
    for name, matcher in MATCHERS.items():
        got, want = matcher(KEY, SPEC, a, b), matcher(KEY, spec, *parts)
        assert same_permutation(got.perm, want.perm), name
        np.testing.assert_allclose(got.objective, want.objective, rtol=1e-5)
        value = scalar_product(a, apply_permutation(SPEC, got.perm, b))
        assert got.objective[-1] == pytest.approx(float(value), rel=1e-5)
    hard = gr.frank_wolfe_matching(KEY, SPEC, a, b, polish=False)
    value = scalar_product(a, apply_permutation(SPEC, hard.perm, b))
    assert hard.objective[-1] == pytest.approx(float(value), rel=1e-5)
    cosines, want = (
        unit_similarity(s, hard.perm, *models) for s, models in ((SPEC, (a, b)), (spec, parts))
    )
    for group in want:
        np.testing.assert_allclose(cosines[group], want[group], atol=1e-5)


def test_imaginary_weights_count_beside_real_ones():
    real, mixed = draw(0), draw(0) | {"in": 1j * draw(0)["in"]}
    match = gr.weight_matching(KEY, SPEC, real, mixed)  # of "in" every product is imaginary
    rest = {p: w for p, w in real.items() if p != "in"}
    value = scalar_product(rest, apply_permutation(SPEC, match.perm, mixed))
    assert match.objective[-1] == pytest.approx(float(value), rel=1e-5)


def test_complex_models_are_merged():
    a = complex_model(0, scale=1e-23)
    copies = [
        a,
        *(
            apply_permutation(SPEC, random_permutation(jax.random.key(k), SPEC, a), a)
            for k in (1, 2)
        ),
    ]
    for merge in (gr.merge_many, frank_wolfe_merge):
        merged = merge(KEY, SPEC, copies)
        for path, w in a.items():
            assert merged.params[path].dtype == w.dtype
            np.testing.assert_allclose(merged.params[path], w, rtol=1e-6)
        assert merged.objective[-1] == pytest.approx(3 * float(scalar_product(a, a)), rel=1e-5)
    with pytest.raises(
        ModelError, match=r"models\[1\] has complex weights in 'in', where the first"
    ):
        gr.merge_many(KEY, SPEC, [draw(0), draw(0) | {"in": a["in"]}])


def complex_net(p, x):
    h = x @ p["w"] + p["b"][None]
    return jnp.real((h * jnp.abs(h)) @ p["v"])


@pytest.mark.parametrize("kind", ["inner", "correlation"])
def test_complex_activations(kind):
    a, rng = complex_model(0, NET_SHAPES), np.random.default_rng(3)
    plant = random_permutation(jax.random.key(1), NET, a)
    b = apply_permutation(NET, plant, a)
    batches = [rng.standard_normal((30, 5)).astype(np.float32) for _ in range(2)]
    how = {"fn": complex_net, "similarity": kind}
    match = gr.activation_matching(KEY, NET, a, b, batches=batches, keep_similarity=True, **how)
    back = apply_permutation(NET, match.perm, b)
    assert all(np.array_equal(back[p], a[p]) for p in a)
    np.testing.assert_allclose(match.objective, 1, rtol=1e-4)
    za, zb = (rng.standard_normal((1, 50, 3)) + 1j * rng.standard_normal((1, 50, 3)) for _ in "ab")
    za, zb = (za + (2 - 1j)).astype(np.complex64), (zb + za[..., :1]).astype(np.complex64)
    m = CrossMoments.of(za, zb)
    np.testing.assert_allclose(m.inner[0], (za[0].conj().T @ zb[0]).real, rtol=1e-4)
    ca, cb = (z[0] - z[0].mean(0) for z in (za, zb))
    sizes = (np.linalg.norm(c, axis=0) for c in (ca, cb))
    np.testing.assert_allclose(
        m.correlation[0], (ca.conj().T @ cb).real / np.outer(*sizes), atol=1e-5
    )


@pytest.mark.filterwarnings(  # of JAX 0.5, as real numbers that become complex are learned
    *["ignore:Casting complex values to real"] * (jax.__version_info__ < (0, 6))
)
def test_complex_weights_are_learned():
    a = complex_model(0, NET_SHAPES)
    b = apply_permutation(NET, random_permutation(jax.random.key(1), NET, a), a)
    x = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    want = complex_net(a, x)

    def loss(params, batch):
        return jnp.mean(jnp.square(complex_net(params, batch) - want))

    how = {"loss_fn": loss, "optimizer": optax.adam(0.01), "batches": [x] * 3}
    match = gr.straight_through_matching(KEY, NET, a, b, **how)
    assert match.best_loss < 1e-8  # weight matching found it; its gradient is that of both parts
    distance = squared_distance(a)
    assert float(distance(b)) == pytest.approx(
        float(sum(np.sum(np.abs(a[p] - b[p]) ** 2) for p in a)), rel=1e-5
    )
    soft_match = gr.sinkhorn_matching(
        KEY, NET, a, b, loss_fn=distance, optimizer=optax.adam(0.5), max_steps=60, eval_every=20
    )
    assert min(soft_match.hard_losses) < 1e-8


# ---- groups without units


EMPTY = {
    "alone": ({"a": (None, "P"), "b": ("P", None)}, {"a": (3, 0), "b": (0, 2)}),
    "beside": (
        {"a": (None, "P"), "ab": ("P",), "b": ("P", "Q"), "c": ("Q", None)},
        {"a": (3, 0), "ab": (0,), "b": (0, 5), "c": (5, 2)},
    ),
    "within": (
        {"w": (None, "H", Group("U", within="H")), "o": (Product("H", "U"), None), "z": ("H",)},
        {"w": (3, 2, 0), "o": (0, 2), "z": (2,)},
    ),
    "no parents": ({"w": (None, "H", Group("U", within="H"))}, {"w": (3, 0, 4)}),
    "fixed": ({"w": (Fixed(2, "L"), None, Group("U", within="L"))}, {"w": (2, 3, 0)}),
}


@pytest.mark.parametrize("case", EMPTY)
def test_groups_without_units(case):
    rows, shapes = EMPTY[case]
    spec = PermutationSpec(rows)
    a, b = draw(0, shapes=shapes), draw(1, shapes=shapes)
    bound, found = spec.bind(a), []

    def loss(params, batch):
        return sum(jnp.sum(jnp.square(w)) for w in params.values()) + 0 * jnp.sum(batch)

    for matcher in MATCHERS.values():
        found.append(matcher(KEY, spec, a, b))
    found.append(gr.frank_wolfe_matching(KEY, spec, a, b, polish=False))
    for match in found:
        assert {g: p.shape for g, p in match.perm.items()} == bound.perm_shapes
        value = scalar_product(a, apply_permutation(spec, match.perm, b))
        assert match.objective[-1] == pytest.approx(float(value), rel=1e-5, abs=1e-6)
        assert same_permutation(match.alignment.perm, match.perm)
    learn = {"loss_fn": loss, "batches": [np.ones(2, np.float32)] * 3, "optimizer": optax.adam(0.1)}
    for match in (
        gr.straight_through_matching(KEY, spec, a, b, **learn),
        gr.sinkhorn_matching(KEY, spec, a, b, max_steps=3, **learn),
        gr.sinkhorn_matching(
            KEY, spec, a, b, max_steps=3, init=found[0].perm, forward="hard", **learn
        ),
    ):
        assert {g: p.shape for g, p in match.perm.items()} == bound.perm_shapes
    for merge in (gr.merge_many, frank_wolfe_merge):
        merged = merge(KEY, spec, [a, b, a])
        assert {p: w.shape for p, w in merged.params.items()} == shapes
    cosines = unit_similarity(spec, found[0].perm, a, b)
    assert {g: c.shape for g, c in cosines.items()} == soft.soft_shapes(bound)
    mixed = soft.soft_permutation(bound, soft.uniform(bound))
    assert {g: np.shape(m) for g, m in mixed.items()} == soft.soft_shapes(bound)


def test_no_units_have_activations_and_factors_too():
    rows, shapes = EMPTY["beside"]
    spec, a, b = PermutationSpec(rows), draw(0, shapes=shapes), draw(1, shapes=shapes)

    def net(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["a"] + p["ab"][None]) @ p["b"] + 1) @ p["c"]

    x = np.ones((4, 3), np.float32)
    match = gr.activation_matching(KEY, spec, a, b, fn=net, batches=[x])
    assert match.perm["P"].shape == (0,) and match.perm["Q"].shape == (5,)
    scalings = Scalings(spec.bind(a), {"P": np.array([[1, 1, -1]]), "Q": np.array([[1, -1]])})
    learned = learn_scaling(
        KEY,
        scalings,
        a,
        b,
        loss_fn=lambda p, x: jnp.mean(net(p, x) ** 2),
        optimizer=optax.adam(0.1),
        batches=[x] * 2,
        eval_batches=[x],
    )
    assert learned.factors["P"].shape == (1, 0) and learned.factors["Q"].shape == (1, 5)


# ---- numbers that make no sense


A, B = draw(0, shapes=NET_SHAPES), draw(1, shapes=NET_SHAPES)
X = np.ones((4, 5), np.float32)
DESCENT = {
    "loss_fn": lambda p, x: jnp.mean(relu_net(p, x) ** 2),
    "optimizer": optax.sgd(0.1),
    "batches": [X],
}
SCALINGS = Scalings(NET.bind(A), {"P": np.array([[1, 1, -1]])})
ZEROS = {"P": np.zeros((8, 8), np.float32)}
CALLS = {
    "weights": lambda **k: gr.weight_matching(KEY, NET, A, B, **k),
    "Frank–Wolfe": lambda **k: gr.frank_wolfe_matching(KEY, NET, A, B, **k),
    "Frank–Wolfe merge": lambda **k: frank_wolfe_merge(KEY, NET, [A, B], **k),
    "many": lambda **k: gr.merge_many(KEY, NET, [A, B], **k),
    "straight-through": lambda **k: gr.straight_through_matching(KEY, NET, A, B, **DESCENT, **k),
    "Sinkhorn": lambda **k: gr.sinkhorn_matching(KEY, NET, A, B, **DESCENT, **k),
    "scaling": lambda **k: learn_scaling(KEY, SCALINGS, A, B, **DESCENT, **k),
    "soft": lambda **k: soft.soft_permutation(NET.bind(A), ZEROS, **k),
    "sinkhorn": lambda **k: soft.sinkhorn(ZEROS["P"], **k),
    "logits": lambda **k: soft.confident_logits(NET.bind(A), {"P": np.arange(8)}, **k),
    "projection": lambda **k: Projection(NET.bind(A), A, B, {"P": np.arange(8)}).project(
        A, [0], **k
    ),
}
STEPS = [0, -1, 2.5, math.nan, math.inf, True, "3"]
REFUSED = {
    "max_sweeps": (STEPS, ["weights", "many", "projection"]),
    "max_steps": (
        STEPS,
        ["Frank–Wolfe", "Frank–Wolfe merge", "straight-through", "Sinkhorn", "scaling"],
    ),
    "patience": (STEPS, ["straight-through"]),
    "eval_every": (STEPS, ["Sinkhorn", "scaling"]),
    "iterations": (STEPS, ["Sinkhorn", "soft", "sinkhorn"]),
    "budget": ([-1, math.nan, True, "1"], ["weights"]),
    "tolerance": ([-1e-3, math.nan, math.inf, True], ["Frank–Wolfe", "Frank–Wolfe merge"]),
    "lam": ([-0.1, 1.5, math.nan, math.inf, True], ["straight-through", "Sinkhorn", "scaling"]),
    "temperature": ([0, -1, math.nan, math.inf, True], ["Sinkhorn", "soft", "sinkhorn", "logits"]),
    "confidence": ([0, 1, -1, math.nan, True], ["Sinkhorn", "logits"]),
}
CASES = [(name, way) for name, (_, ways) in REFUSED.items() for way in ways]


@pytest.mark.parametrize(("name", "way"), CASES, ids=[f"{way}: {name}" for name, way in CASES])
def test_numbers_that_make_no_sense_are_refused_by_name(name, way):
    for bad in REFUSED[name][0]:
        with pytest.raises(ValueError, match=rf"^{name} is .*: give "):
            CALLS[way](**{name: bad})
