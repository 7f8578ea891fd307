"""Limits of axes: fn(M x) = M fn(x) for random M of all that is left, by theory, and by gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inference_networks import NETWORKS
from jax import lax
from scipy.linalg import block_diag

from git_rebasin.inference.axes import Limit, atoms, find, unify
from git_rebasin.inference.infer import infer_limits, infer_permutation_spec, trace_symmetry
from git_rebasin.inference.trace import Axis, constant, run
from git_rebasin.inference.values import Trace, Value
from git_rebasin.jaxprs import double_precision
from git_rebasin.symmetry.scaling import find_scalings


def draw(limit: Limit, n: int, rng: np.random.Generator) -> np.ndarray:
    "A random matrix of a group; a spec has no groups of one unit"
    orthogonal = [np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2)]
    match limit:
        case Limit.FIXED:
            return np.eye(n)
        case _ if n == 1:
            return np.eye(1)
        case Limit.ORTHOGONAL:
            return orthogonal[0]
        case Limit.INVERTIBLE:
            return orthogonal[0] @ np.diag(rng.uniform(0.5, 2, n)) @ orthogonal[1]
    order = np.eye(n)[rng.permutation(n)]
    factors = {Limit.SIGNED: rng.choice([-1, 1], n), Limit.SCALED: rng.uniform(0.5, 2, n)}
    return factors.get(limit, np.ones(n)) * order


def matrix(axis: Axis | None, n: int, of_atoms: dict) -> np.ndarray:
    "What the atoms of an axis are multiplied by makes of the axis"
    if axis is None:
        return np.eye(n)
    axis = find(axis)
    if axis.kind == "atom":
        return of_atoms[axis]
    parts = [matrix(part, find(part).size, of_atoms) for part in axis.parts]
    if axis.kind == "interleave":
        places = np.argsort(axis.order, kind="stable")  # where the entries of the parts lie
        back = np.argsort(places)
        return block_diag(*parts)[np.ix_(back, back)]
    if axis.kind == "concat":
        return block_diag(*parts)
    out = np.ones((1, 1))
    for part in parts:
        out = np.kron(out, part)
    return out


def moved(x, axes, of_atoms) -> np.ndarray:
    "An array with each of its axes multiplied by its matrix"
    x = np.asarray(x, np.float64)
    for k, axis in enumerate(axes):
        x = np.moveaxis(np.tensordot(matrix(axis, x.shape[k], of_atoms), x, (1, k)), 0, k)
    return x


def follow(fn, shapes):
    "The axes of the inputs and of the outputs, no axis with units of its own in a segment"
    closed = jax.make_jaxpr(fn)(*(jnp.ones(s) for s in shapes))
    trace = Trace()
    inputs = [Value(s, tuple(Axis(n) if n != 1 else None for n in s)) for s in shapes]
    consts = [constant(trace, c, frozen=True) for c in closed.consts]
    outs = run(trace, closed.jaxpr, consts, inputs)
    for record in trace.instances:
        unify(record.parent, record.child)
    for derived, source, what in trace.derived:  # in an order that depends on the entries
        trace.fix(source, what)
        trace.fix(derived, what)
    return [v.axes for v in inputs], [v.axes for v in outs]


def limits_of(fn, *shapes):
    "The limits of the atoms of the inputs, once fn(M x) = M fn(x) has been tried"
    ins, outs = follow(fn, shapes)
    every = [a for axes in (*ins, *outs) for axis in axes if axis is not None for a in atoms(axis)]
    for seed in range(2):
        rng = np.random.default_rng(seed)
        of_atoms = {a: draw(a.limit, a.size, rng) for a in dict.fromkeys(every)}
        xs = [0.3 * rng.normal(size=s) for s in shapes]
        xs = [abs(x) for x in xs] if seed % 2 else xs  # for logarithms and roots
        with double_precision():
            ys = map(jnp.asarray, map(moved, xs, ins, itertools.repeat(of_atoms)))
            want, got = jax.tree.leaves(fn(*map(jnp.asarray, xs))), jax.tree.leaves(fn(*ys))
        for w, g, axes in zip(want, got, outs, strict=True):
            if not np.all(np.isfinite(w)):
                continue
            np.testing.assert_allclose(g, moved(w, axes, of_atoms), rtol=1e-9, atol=1e-9)
    return [tuple(a.limit for x in axes if x is not None for a in atoms(x)) for axes in ins]


P, S, C, G = Limit.PERMUTATION, Limit.SIGNED, Limit.SCALED, Limit.INVERTIBLE
FIXED, O = Limit.FIXED, Limit.ORTHOGONAL
UNARY = [
    *(lax.abs, lax.acosh, lax.asin, lax.asinh, lax.atan, lax.atanh, lax.bessel_i0e, lax.bessel_i1e),
    *(lax.cbrt, lax.ceil, lax.cos, lax.cosh, lax.digamma, lax.erf, lax.erf_inv, lax.erfc, lax.exp),
    *(lax.exp2, lax.expm1, lax.floor, lax.is_finite, lax.lgamma, lax.log, lax.log1p, lax.logistic),
    *(lax.neg, lax.round, lax.rsqrt, lax.sign, lax.sin, lax.sinh, lax.sqrt, lax.square, lax.tan),
    *(lax.tanh, lambda x: x**3, lambda x: x**4, lambda x: x**-1, lambda x: x**0.5, jax.nn.gelu),
    *(jax.nn.leaky_relu, jax.nn.relu, jax.nn.silu, jax.nn.softplus, lambda x: x.astype(int)),
]
BINARY = [lax.add, lax.sub, lax.mul, lax.div, lax.max, lax.min, lax.atan2, lax.pow, lax.lt, lax.rem]


@pytest.mark.parametrize("fn", UNARY)
def test_functions_of_entries_commute_with_what_they_leave(fn):
    assert limits_of(fn, (3, 4)) == limits_of(lambda x: 2.5 * fn(x) + x, (3, 4))


@pytest.mark.parametrize("fn", BINARY)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_functions_of_two_arrays_commute_with_what_they_leave(fn):
    limits_of(fn, (3, 4), (3, 4))
    for number in (0.0, 1.0):
        limits_of(lambda x, n=number: fn(x, jnp.asarray(n, x.dtype)), (3, 4))
        limits_of(lambda x, n=number: fn(jnp.asarray(n, x.dtype), x), (3, 4))
    limits_of(lambda x, y: fn(x, jnp.broadcast_to(y, (3, 4))), (3, 4), (1, 4))
    limits_of(lambda x, y: fn(jnp.broadcast_to(y, (3, 4)), x), (3, 4), (3, 1))


def pooled(x):
    "The largest of every two neighbours"
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID")


SHAPES = [  # a function, the shapes of its inputs, and what theory leaves of their atoms
    (lambda x: x.T.reshape(4, 6), [(2, 3, 4)], [(G, G, G)]),
    (lambda x: x.reshape(6, 4), [(2, 3, 4)], [(G, G, G)]),
    (lambda x: x.reshape(3, 2, 4) * 2, [(3, 8)], [(G, G, G)]),
    (lambda x: jax.nn.relu(x.reshape(3, 2, 4)), [(3, 8)], [(C, C, C)]),
    (lambda x, y: jnp.concatenate([x, y], 1), [(3, 4), (3, 2)], [(G, G), (G, G)]),
    (lambda x: jnp.concatenate([x, jnp.zeros((3, 2))], 1), [(3, 4)], [(G, G)]),
    (lambda x: jnp.concatenate([x, jnp.ones((3, 2))], 1), [(3, 4)], [(P, G)]),
    (lambda x: jnp.pad(x, ((0, 0), (2, 1))), [(3, 4)], [(G, G)]),
    (lambda x: jnp.pad(x, ((0, 0), (2, 1)), constant_values=3.0), [(3, 4)], [(P, G)]),
    (lambda x: lax.pad(x, 0.0, ((-1, 2, 0), (0, -2, 0))), [(3, 4)], None),
    (lambda x: x[:, 1:3], [(3, 4)], None),
    (lambda x: jnp.tanh(x)[1], [(3, 4)], None),
    (lambda x: jnp.repeat(x, 3, 1), [(3, 4)], [(G, G)]),
    (lambda x: jnp.tile(x, (2, 3)), [(3, 4)], [(G, G)]),
    (lambda x: jnp.stack([x, 2 * x], 1), [(3, 4)], [(G, G)]),
    (lambda x: jnp.stack([x, jnp.ones_like(x)], 1), [(3, 4)], [(P, P)]),
    (lambda x: jnp.where(jnp.arange(4)[:, None] < 2, x, 0.0), [(4, 4)], [(P, P, G)]),
    (lambda x: x * jnp.array([1.0, 1.0, 0.0])[:, None], [(3, 4)], None),
    (lambda x, y: lax.dynamic_update_slice(x, y, (0, 1)), [(3, 4), (3, 2)], None),
    (lambda x: x.at[0].set(0.0), [(3, 4)], None),
    (lambda x: x.at[jnp.array([0, 2])].add(1.0), [(3, 4)], None),
    (lambda x: x.at[jnp.array([0, 2])].multiply(2.0), [(3, 4)], None),
    (lambda x: x[jnp.array([2, 0])], [(3, 4)], [(FIXED, G)]),
    (lambda x: x.sum(1), [(3, 4)], [(G, P)]),
    (lambda x: x.max(1), [(3, 4)], [(C, P)]),
    (lambda x: x.prod(1), [(3, 4)], [(P, P)]),
    (lambda x: jax.nn.softmax(x, 1), [(3, 4)], [(P, P)]),
    (lambda x: lax.cumsum(x, 1), [(3, 4)], [(G, FIXED)]),
    (lambda x: lax.cummax(x, 1), [(3, 4)], [(C, FIXED)]),
    (lambda x: lax.cumprod(x, 1), [(3, 4)], [(P, FIXED)]),
    (lambda x: lax.sort(x, dimension=1), [(3, 4)], [(C, P)]),
    (lambda x: lax.sort((x, 2 * x), dimension=1)[1], [(3, 4)], [(P, FIXED)]),
    (lambda x: lax.top_k(x, 2)[0], [(3, 4)], [(C, P)]),
    (lambda x: lax.top_k(x, 2), [(3, 4)], [(P, FIXED)]),
    (lambda x: lax.argmax(x, 1, jnp.int32), [(3, 4)], [(P, FIXED)]),
    (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 2), "VALID"),
        [(3, 4)],
        [(G, FIXED)],
    ),
    (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"),
        [(3, 4)],
        [(C, FIXED)],
    ),
    (lambda x, y: jnp.einsum("bi,bj->bij", x, y), [(3, 4), (3, 2)], [(P, G), (P, G)]),
    (lambda x: jnp.einsum("ij,j->i", x, jnp.ones(4)), [(3, 4)], [(G, P)]),
    (lambda x, y: lax.linalg.triangular_solve(y, x), [(3, 4), (4, 4)], None),
    (lambda x: jnp.linalg.svd(x, compute_uv=False), [(3, 4)], [(O, O)]),
    (lambda x: jnp.linalg.svd(x, compute_uv=False), [(2, 3, 4)], [(P, O, O)]),
    (lambda x: lax.reduce(x, -jnp.inf, jnp.logaddexp, (1,)), [(3, 4)], [(P, P)]),
    (lambda x: lax.reduce(x, 0.0, lambda a, b: b + 0 * a, (1,)), [(3, 4)], [(P, FIXED)]),
    (lambda x: jax.grad(lambda x: pooled(x).sum())(x), [(3, 4)], [(P, FIXED)]),
    (lambda x: jax.device_put([x, 2 * x]), [(3, 4)], [(G, G)]),
    (lambda x, i: lax.cond(i.sum() > 0, lambda: x, lambda: 2 * x), [(3, 4), (1,)], [(G, G), ()]),
    (lambda x: lax.cond(True, lambda: x, lambda: jnp.ones_like(x)), [(3, 4)], [(P, P)]),
    (lambda x: lax.map(lambda row: 2 * row, x), [(3, 4)], [(P, G)]),
    (lambda x: lax.scan(lambda c, r: (c + r, c), x[0], x), [(3, 4)], None),
    (lambda x: lax.scan(lambda c, r: (c + r, c), jnp.ones(4), x), [(3, 4)], [(FIXED, P)]),
    (lambda x: lax.fori_loop(0, 3, lambda _, c: c + x, x), [(3, 4)], [(G, G)]),
]


@pytest.mark.parametrize(("fn", "shapes", "limits"), SHAPES)
def test_what_moves_axes_commutes_with_what_it_leaves(fn, shapes, limits):
    got = limits_of(fn, *shapes)
    assert limits is None or got == limits


# ---------------------------------------------------------------------------------------- networks


def limits(fn, *shapes):
    "The limits of the groups of a network whose parameters have these shapes"
    params = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    x = jax.ShapeDtypeStruct((6, 5), jnp.float32)
    return [limit for limit, _ in infer_limits(lambda p, x: fn(x, *p), params, x).values()]


def test_the_residual_stream_is_what_its_readers_leave_of_it():
    shapes = (5, 12), (12, 8), (8, 12), (12, 3)
    block = lambda x, a, b, c, d, norm: (lambda h: (h + jnp.tanh(norm(h) @ b) @ c) @ d)(x @ a)
    centred = lambda h: (h - h.mean(1, keepdims=True)) / h.std(1, keepdims=True)
    assert limits(lambda x, *p: block(x, *p, lambda h: h), *shapes) == [G, S]
    assert limits(lambda x, *p: block(x, *p, centred), *shapes) == [P, S]
    assert limits(lambda x, *p: block(x, *p, jax.nn.relu), *shapes) == [C, S]
    assert limits(lambda x, *p: block(x, *p, lambda h: 3 * h), *shapes) == [G, S]


def test_gates_and_the_axes_of_stacks():
    gated = lambda x, a, b, c: (jax.nn.sigmoid(x @ a) * (x @ b)) @ c
    assert limits(gated, (5, 8), (5, 8), (8, 3)) == [P]
    deep = lambda x, a, w, b: lax.scan(lambda h, v: (h + h @ v, None), x @ a, w)[0] @ b
    assert limits(deep, (5, 8), (4, 8, 8), (8, 3)) == [G]
    sums = lambda x, a, b: lax.fori_loop(0, 3, lambda _, h: h + x @ a, x @ a) @ b
    assert limits(sums, (5, 8), (8, 3)) == [G]


def test_convolutions_limit_groups_of_features_only():
    def conv(x, w, groups=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )

    def net(x, a, b, c):
        image = jnp.tensordot(x, a, 1).reshape(6, 4, 4, 8)
        return jnp.mean(conv(conv(image, b, 2), c), (1, 2))

    x = (5, 4 * 4 * 8)
    assert limits(net, x, (3, 3, 4, 6), (3, 3, 6, 3)) == [P, G, G]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_has_a_limit(name):
    net = NETWORKS[name]()
    spec, _, naming = trace_symmetry(net.fn, net.params, net.args)
    assert naming.limits.keys() == spec.groups.keys()
    for limit, reason in naming.limits.values():
        assert P <= limit and (reason is None) == (limit is G)


TIED = {"tied_autoencoder": {"P_1"}, "tied_embeddings": {"P_0"}}  # read on both sides
RESCALED = ["mlp", "zero_padded_shortcut", "transformer_encoder", "grouped_convolution", *TIED]


@pytest.mark.parametrize("name", RESCALED)
def test_gradients_find_factors_wherever_a_limit_allows_them(name):
    net = NETWORKS[name]()
    spec = infer_permutation_spec(net.fn, net.params, *net.args, verify=False)
    limits = infer_limits(net.fn, net.params, *net.args)
    allowed = {group for group, (limit, _) in limits.items() if C <= limit}
    scaled = find_scalings(spec, net.fn, net.params, *net.args).shapes.keys()
    assert allowed - scaled == TIED.get(name, set())
