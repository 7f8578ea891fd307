"""The operations that random programs are made of. No tests here."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIZES = (2, 3, 4, 6)

Shape = tuple[int, ...]


class Step(NamedTuple):
    "How a value comes from earlier ones"

    fn: Callable  # fn(params, *values of the sources) → the new value
    sources: tuple[int, ...]


class Maker(Protocol):
    "What an operation asks of the program that it becomes a step of"

    shapes: list[Shape]  # of the values so far
    params: dict[str, np.ndarray]
    sharded: bool  # whether this is within `shard_map`

    def chance(self, p: float) -> bool: ...
    def choice(self, items: Any) -> Any: ...
    def integer(self, low: int, high: int | None) -> int: ...
    def axis(self, shape: Shape) -> int: ...
    def order(self, n: int) -> tuple[int, ...]: ...
    def normal(self, *shape: int) -> np.ndarray: ...
    def param(self, *shape: int, kind: str = "float") -> str: ...
    def others(self, fits: Callable[[Shape], bool]) -> list[int]: ...
    def one_of(self, *ways: Callable) -> Callable: ...
    def shape_of(self, fn: Callable, *shapes: Shape) -> Shape: ...
    def inner(self, shape: Shape) -> tuple[Callable, Shape, list[str]] | None: ...


Operation = Callable[[Any, int, Shape], Step | None]
OPERATIONS: list[Operation] = []


def operation(make: Operation) -> Operation:
    "One of the operations; it gives None where it cannot be applied"
    OPERATIONS.append(make)
    return make


def contracted(x, w, axis):
    "An axis of x by a matrix, the new axis in the place of the old one"
    return jnp.moveaxis(jnp.tensordot(x, w, ((axis,), (0,))), -1, axis)


def at(x, k, axis):
    "One entry along an axis"
    return lax.index_in_dim(x, k, axis, keepdims=False)


def summed(x, w, axis):
    "An axis of x by a matrix, by products and sums"
    y = jnp.expand_dims(jnp.moveaxis(x, axis, -1), -1) * w.reshape((1,) * (x.ndim - 1) + w.shape)
    return jnp.moveaxis(y.sum(-2), -1, axis)


# -------------------------------------------------------------- layers and other uses of parameters


@operation
def dense(m, i, shape):
    a = m.axis(shape)
    w = m.param(shape[a], m.choice(SIZES))
    by = m.one_of(contracted, summed)
    return Step(lambda p, x: by(x, p[w], a), (i,))


def some_axes(m, shape):
    "The shape of an array with some of the axes, and 1 for the others"
    return (1, *(n if m.chance(0.6) else 1 for n in shape[1:]))


@operation
def bias(m, i, shape):
    w = m.param(*some_axes(m, shape))
    return Step(lambda p, x: jnp.tanh(x + p[w]), (i,))


@operation
def scale(m, i, shape):
    w = m.param(*some_axes(m, shape))
    return Step(lambda p, x: x * p[w], (i,))


@operation
def recurrent(m, i, shape):
    a = m.axis(shape)
    w = m.param(shape[a], shape[a])
    layer = lambda p, h: jnp.tanh(contracted(h, p[w], a)) + h
    return Step(lambda p, x: lax.scan(lambda h, _: (layer(p, h), None), x, None, length=2)[0], (i,))


@operation
def stacked_layers(m, i, shape):
    a, hidden, residual = m.axis(shape), m.choice(SIZES), m.chance(0.6)
    w1, w2 = m.param(3, shape[a], hidden), m.param(3, hidden, shape[a])

    def layer(h, w):
        new = contracted(jnp.tanh(contracted(h, w[0], a)), w[1], a)
        return new + h if residual else new, None

    return Step(lambda p, x: lax.scan(layer, x, (p[w1], p[w2]))[0], (i,))


@operation
def indexed_layers(m, i, shape):
    "A `fori_loop` that indexes a stack, of which it may not read all layers"
    a, residual, layers = m.axis(shape), m.chance(0.6), m.integer(2, 4)
    w = m.param(3, shape[a], shape[a])

    def layer(h, k, p):
        return jnp.tanh(contracted(h, p[w][k], a)) + residual * h

    def looped(p, x):
        return lax.fori_loop(0, layers, lambda k, h: layer(h, k, p), x)

    def unrolled(p, x):
        for k in range(layers):
            x = layer(x, k, p)
        return x

    return Step(m.one_of(looped, unrolled), (i,))


@operation
def read_in_part(m, i, shape):
    "A table of which some entries are read: the first ones, a stride, or one of them"
    a = m.axis(shape)
    n, width = shape[a], m.choice(SIZES)
    more, kind = n + m.integer(1, 4), m.integer(0, 4)
    w = m.param(*((more, width) if kind < 2 else (3, n, width)))
    k = m.integer(0, 3)
    read = (
        lambda w: w[:n],
        lambda w: lax.dynamic_slice_in_dim(w, 1, n, 0),
        lambda w: w[k],
        lambda w: w[0] + jnp.tanh(w[2]),
    )[kind]
    return Step(lambda p, x: contracted(x, read(p[w]), a), (i,))


@operation
def positions(m, i, shape):
    "A table of positions, of which the first are added"
    a = m.axis(shape)
    w = m.param(shape[a] + m.integer(0, 3), *([] if m.chance(0.5) else [shape[-1]]))
    if a == len(shape) - 1 and len(m.params[w].shape) > 1:
        return None

    def fn(p, x):
        table = p[w][: x.shape[a]]
        sizes = [1] * x.ndim
        sizes[a] = x.shape[a]
        if table.ndim > 1:
            sizes[-1] = x.shape[-1]
        return jnp.tanh(x + table.reshape(sizes))

    return Step(fn, (i,))


@operation
def quantised(m, i, shape):
    "int8 values with a scale for each unit that comes out"
    a, width = m.axis(shape), m.choice(SIZES)
    w, s = m.param(shape[a], width, kind="int"), m.param(width)
    return Step(lambda p, x: contracted(x, p[w].astype(x.dtype) * p[s][None], a), (i,))


@operation
def convolution(m, i, shape):
    "Over one axis, with the last one as features"
    if len(shape) != 3:
        return None
    n, groups = shape[-1], m.choice([g for g in (1, 2, shape[-1]) if shape[-1] % g == 0])
    width, out = m.integer(1, 4), groups * m.integer(1, 4)
    w, padding = m.param(width, n // groups, out), m.choice(("SAME", [(1, 0)], [(-1, 2)]))
    stride = m.integer(1, 3)
    if shape[1] < width:
        return None
    conv = lambda p, x: lax.conv_general_dilated(
        x,
        p[w],
        (stride,),
        padding,
        dimension_numbers=("NHC", "HIO", "NHC"),
        feature_group_count=groups,
    )
    return Step(lambda p, x: jnp.tanh(conv(p, x)), (i,))


@operation
def table_by_label(m, i, shape):
    "Rows of a table, by the place of the largest entry along an axis (experts, codes)"
    a = m.axis(shape)
    width, ties = m.choice(SIZES), m.chance(0.3)
    w = m.param(shape[a], width)
    label = lambda x: jnp.argmax(jax.nn.relu(x) if ties else x, a)
    gathered = lambda p, x: p[w][label(x)]
    by_one_hot = lambda p, x: jax.nn.one_hot(label(x), shape[a], dtype=x.dtype) @ p[w]
    return Step(m.one_of(gathered, by_one_hot), (i,))


@operation
def experts(m, i, shape):
    "The two best of some experts, by top_k, each a matrix"
    a, e, width = m.axis(shape), m.choice((3, 4)), m.choice(SIZES)
    router, w = m.param(shape[a], e), m.param(e, shape[a], width)

    def gathered(p, x):
        best, which = lax.top_k(jnp.moveaxis(x, a, -1) @ p[router], 2)
        each = jnp.einsum("...i,...kio->...ko", jnp.moveaxis(x, a, -1), p[w][which])
        return jnp.moveaxis(jnp.sum(each * jax.nn.softmax(best)[..., None], -2), -1, a)

    def by_one_hot(p, x):
        best, which = lax.top_k(jnp.moveaxis(x, a, -1) @ p[router], 2)
        gates = jax.nn.softmax(best)[..., None] * jax.nn.one_hot(which, e, dtype=x.dtype)
        return jnp.moveaxis(
            jnp.einsum("...i,eio,...ke->...o", jnp.moveaxis(x, a, -1), p[w], gates), -1, a
        )

    return Step(m.one_of(gathered, by_one_hot), (i,))


@operation
def solved(m, i, shape):
    "A linear system in one axis"
    a = m.axis(shape)
    w = m.param(shape[a], shape[a])
    system = lambda p: p[w] @ p[w].T + 2 * jnp.eye(shape[a], dtype=p[w].dtype)
    solve = lambda p, x: jnp.linalg.solve(system(p), jnp.moveaxis(x, a, 0).reshape(shape[a], -1))
    back = lambda y: jnp.moveaxis(y.reshape(shape[a], *shape[:a], *shape[a + 1 :]), 0, a)
    return Step(lambda p, x: back(solve(p, x)), (i,))


# -------------------------------------------------------------------------------------- two values


@operation
def combine(m, i, shape):
    j = m.choice(m.others(lambda other: other == shape))
    return Step(lambda p, x, y: x * y + y, (i, j))


@operation
def add_transposed(m, i, shape):
    j = m.choice(m.others(lambda other: sorted(other) == sorted(shape)))
    order = m.order(len(shape))
    if tuple(m.shapes[j][k] for k in order) != shape:
        return None
    return Step(lambda p, x, y: x + jnp.transpose(y, order), (i, j))


@operation
def concatenate(m, i, shape):
    a = m.axis(shape)
    without = lambda s: (*s[:a], *s[a + 1 :])
    fits = lambda s: len(s) == len(shape) and without(s) == without(shape)
    j, constants = m.choice(m.others(fits)), m.chance(0.3)

    def fn(p, x, y):
        more = [jnp.ones_like(x), jnp.zeros_like(y)] if constants else []
        return jnp.concatenate([x, y, *more], a)

    return Step(fn, (i, j))


@operation
def outer(m, i, shape):
    if len(shape) != 2:
        return None
    j = m.choice(m.others(lambda other: len(other) == 2 and other[0] == shape[0]))
    return Step(lambda p, x, y: jnp.einsum("ba,bc->bac", x, y), (i, j))


@operation
def einsum(m, i, shape):
    js = m.others(lambda other: other[0] == shape[0] and bool(set(other[1:]) & set(shape[1:])))
    if not js:
        return None
    j = m.choice(js)
    first, second = list("zabc"[: len(shape)]), list("zijk"[: len(m.shapes[j])])
    for k in range(1, len(second)):
        same = [c for c, n in zip(first, shape, strict=True) if n == m.shapes[j][k]]
        free = [c for c in same if c not in second]
        if free and m.chance(0.7):
            second[k] = m.choice(free)
    left_out = {c for c in first[1:] if c in second and m.chance(0.6)}
    out = [c for c in dict.fromkeys(first + second) if c not in left_out]
    formula = f"{''.join(first)},{''.join(second)}->{''.join(out)}"
    return Step(lambda p, x, y: jnp.tanh(jnp.einsum(formula, x, y)), (i, j))


@operation
def attention(m, i, shape):
    "Softmax of products of one value's entries with each other"
    if len(shape) < 3:
        return None
    a, b = m.order(len(shape))[1:3]
    causal = m.chance(0.5)

    def fn(p, x):
        y = jnp.moveaxis(x, (a, b), (-2, -1))
        scores = jnp.einsum("...ti,...si->...ts", y, y)
        if causal:
            mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
            scores = jnp.where(mask.reshape((1,) * (scores.ndim - 2) + mask.shape), scores, -1e9)
        return jnp.moveaxis(jax.nn.softmax(scores) @ y, (-2, -1), (a, b))

    return Step(fn, (i,))


@operation
def branches(m, i, shape):
    "One value or another, by a sum that is known when it runs"
    j = m.choice(m.others(lambda other: other == shape))
    # not 0, which the sum of what was normalised is, but for rounding
    by_cond = lambda p, x, y: lax.cond(jnp.sum(x) > 0.1, lambda: x + y, lambda: x * 2)
    by_where = lambda p, x, y: jnp.where(jnp.sum(x) > 0.1, x + y, x * 2)
    return Step(m.one_of(by_cond, by_where), (i, j))


# ------------------------------------------------------------------------------- shapes and places


@operation
def transpose(m, i, shape):
    order = m.order(len(shape))
    return Step(lambda p, x: jnp.transpose(x, order), (i,))


@operation
def merge(m, i, shape):
    if len(shape) < 3:
        return None
    a = m.integer(1, len(shape) - 1)
    return Step(lambda p, x: x.reshape(*x.shape[:a], -1, *x.shape[a + 2 :]), (i,))


def divisor(m, n):
    "A proper divisor, or None"
    divisors = [d for d in (2, 3, 4) if n % d == 0 and n > d]
    return m.choice(divisors) if divisors else None


@operation
def divide(m, i, shape):
    a = m.axis(shape)
    d = divisor(m, shape[a])
    if d is None:
        return None
    return Step(lambda p, x: x.reshape(*x.shape[:a], -1, d, *x.shape[a + 1 :]), (i,))


@operation
def shuffle(m, i, shape):
    "An axis as a matrix, turned, and flat again"
    a = m.axis(shape)
    d = divisor(m, shape[a])
    if d is None:
        return None

    def turned(p, x):
        y = x.reshape(*x.shape[:a], -1, d, *x.shape[a + 1 :])
        return jnp.swapaxes(y, a, a + 1).reshape(x.shape)

    def strided(p, x):
        return jnp.concatenate([lax.slice_in_dim(x, k, None, d, axis=a) for k in range(d)], a)

    def taken(p, x):
        return jnp.take(x, np.arange(x.shape[a]).reshape(-1, d).T.ravel(), a)

    return Step(m.one_of(turned, strided, taken), (i,))


@operation
def interleave(m, i, shape):
    "The entries of two values by turns"
    a = m.axis(shape)
    j = m.choice(m.others(lambda other: other == shape))

    def fn(p, x, y):
        return jnp.stack([x, y], a + 1).reshape(*x.shape[:a], -1, *x.shape[a + 1 :])

    return Step(fn, (i, j))


@operation
def slice_(m, i, shape):
    a = m.axis(shape)
    start = m.integer(0, shape[a])
    stop = m.integer(start + 1, shape[a] + 1)
    sliced = lambda p, x: lax.slice_in_dim(x, start, stop, axis=a)
    dynamic = lambda p, x: lax.dynamic_slice_in_dim(x, start, stop - start, a)

    def cropped(p, x):
        config = [(0, 0, 0)] * x.ndim
        config[a] = (-start, stop - x.shape[a], 0)
        return lax.pad(x, jnp.zeros((), x.dtype), config)

    def parts(p, x):
        return jnp.split(x, [start, start, stop], a)[2]

    return Step(m.one_of(sliced, dynamic, cropped, parts), (i,))


@operation
def crop(m, i, shape):
    "Paddings of either sign, on both sides"
    a, edges = m.axis(shape), (m.integer(-2, 3), m.integer(-2, 3))
    if sum(edges) + shape[a] < 1 or shape[a] + min(edges) < 1:
        return None

    def fn(p, x):
        config = [(0, 0, 0)] * x.ndim
        config[a] = (*edges, 0)
        return lax.pad(x, jnp.asarray(m_value, x.dtype), config)

    m_value = m.choice((0.0, 0.5, -0.0))
    return Step(fn, (i,))


@operation
def strided_slice(m, i, shape):
    a, start = m.axis(shape), m.integer(0, 2)
    if shape[a] < 3:
        return None
    return Step(lambda p, x: lax.slice_in_dim(x, start, None, 2, axis=a), (i,))


@operation
def two_indices(m, i, shape):
    if len(shape) < 3:
        return None
    a = m.axis(shape)
    k, l = m.integer(0, shape[a]), m.integer(0, shape[a])
    return Step(lambda p, x: at(x, k, a) * jnp.tanh(at(x, l, a)), (i,))


@operation
def take(m, i, shape):
    a = m.axis(shape)
    places = [m.integer(0, shape[a]) for _ in range(3)]
    return Step(lambda p, x: jnp.take(x, np.array(places), axis=a), (i,))


@operation
def replace(m, i, shape):
    "Some entries along an axis, by others or by numbers"
    a, start = m.axis(shape), m.integer(0, 2)
    n = m.integer(1, shape[a] - start + 1) if shape[a] > start else 0
    if not n:
        return None
    index = (slice(None),) * a + (slice(start, start + n),)
    kind = m.integer(0, 3)

    def fn(p, x):
        if kind == 0:
            return x.at[index].set(1.0)
        return x.at[index].add(jnp.tanh(x[index])) if kind == 1 else x.at[index].set(x[index] ** 2)

    return Step(fn, (i,))


@operation
def pad(m, i, shape):
    widths = [(0, 0)] * len(shape)
    widths[m.axis(shape)] = (m.integer(0, 3), m.integer(0, 3))
    return Step(lambda p, x: jnp.pad(x, widths, constant_values=0.5), (i,))


@operation
def repeat(m, i, shape):
    a = m.axis(shape)
    repeated = lambda p, x: jnp.repeat(x, 2, a)

    def broadcast(p, x):
        y = jnp.broadcast_to(jnp.expand_dims(x, a + 1), (*x.shape[: a + 1], 2, *x.shape[a + 1 :]))
        return y.reshape(*x.shape[:a], -1, *x.shape[a + 1 :])

    return Step(m.one_of(repeated, broadcast), (i,))


@operation
def tile(m, i, shape):
    times = [1] * len(shape)
    a = m.axis(shape)
    times[a] = 2
    return Step(
        m.one_of(lambda p, x: jnp.tile(x, times), lambda p, x: jnp.concatenate([x, x], a)), (i,)
    )


@operation
def empty_split(m, i, shape):
    "Pieces, of which some are empty, treated differently"
    a = m.axis(shape)
    k = m.integer(0, shape[a] + 1)

    def fn(p, x):
        first, nothing, rest = jnp.split(x, [k, k], a)
        return jnp.concatenate([jnp.tanh(first), jnp.exp(nothing), rest], a)

    return Step(fn, (i,))


# ---------------------------------------------------------------------------------- along one axis


@operation
def reduce(m, i, shape):
    if len(shape) < 3:
        return None
    a, keep = m.axis(shape), m.chance(0.5)
    how = m.choice(
        (
            (jnp.sum, lambda x, axis, keepdims: x.mean(axis, keepdims=keepdims) * x.shape[axis]),
            (jnp.max, lambda x, axis, keepdims: -jnp.min(-x, axis, keepdims=keepdims)),
            (jnp.mean, lambda x, axis, keepdims: x.sum(axis, keepdims=keepdims) / x.shape[axis]),
            (jnp.std, jnp.std),
            (jnp.median, jnp.median),
            (jnp.prod, jnp.prod),
        )
    )
    return (
        Step(lambda p, x: m_how(x, axis=a, keepdims=keep), (i,))
        if (m_how := m.one_of(*how))
        else None
    )


@operation
def softmax(m, i, shape):
    a = m.axis(shape)

    def by_hand(p, x):
        e = jnp.exp(x - lax.stop_gradient(x.max(a, keepdims=True)))
        return e / e.sum(a, keepdims=True)

    return Step(m.one_of(lambda p, x: jax.nn.softmax(x, a), by_hand), (i,))


@operation
def normalise(m, i, shape):
    "By mean and variance, over one axis or more; the batch may be among them"
    axes = tuple(k for k in range(len(shape)) if m.chance(0.5)) or (len(shape) - 1,)

    def fn(p, x):
        return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(jnp.var(x, axes, keepdims=True) + 0.1)

    def by_hand(p, x):
        y = x - x.mean(axes, keepdims=True)
        return y * lax.rsqrt(jnp.square(y).mean(axes, keepdims=True) + 0.1)

    return Step(m.one_of(fn, by_hand), (i,))


@operation
def divide_by_sum(m, i, shape):
    "By the sum of all entries that there are"
    return Step(lambda p, x: x / (1 + jnp.abs(x).sum()), (i,))


@operation
def over_all(m, i, shape):
    "More by a number that all entries decide on"
    how = m.choice((jnp.max, jnp.sum, lambda x: jnp.argmax(x).astype(x.dtype), jnp.mean))
    return Step(lambda p, x: jnp.tanh(x + 0.1 * how(x)), (i,))  # too much would be 1 for all


@operation
def cumulative(m, i, shape):
    a = m.axis(shape)
    kind = m.integer(0, 3)
    jax_way = (lax.cumsum, lax.cummax, lax.cumprod)[kind]
    combine_two = (jnp.add, jnp.maximum, jnp.multiply)[kind]
    by_scan = lambda p, x: lax.associative_scan(combine_two, x, axis=a)
    return Step(m.one_of(lambda p, x: jax_way(x, axis=a), by_scan), (i,))


@operation
def flip(m, i, shape):
    a = m.axis(shape)
    return Step(lambda p, x: jnp.flip(x, a), (i,))


@operation
def roll(m, i, shape):
    a, by = m.axis(shape), m.integer(0, 3)
    return Step(lambda p, x: jnp.roll(x, by, a), (i,))


@operation
def sort(m, i, shape):
    a = m.axis(shape)
    by_order = lambda p, x: jnp.take_along_axis(x, jnp.argsort(x, a), a)
    return Step(m.one_of(lambda p, x: jnp.sort(x, a), by_order), (i,))


@operation
def quantile(m, i, shape):
    if len(shape) < 3:
        return None
    a = m.axis(shape)
    return Step(lambda p, x: jnp.quantile(x, 0.3, axis=a), (i,))


# ------------------------------------------------------------------------------------------ labels


@operation
def sorted_by_other(m, i, shape):
    "In the order of another value along the same axis, of one entry, or of an axis of that length"
    a = m.axis(shape)
    fits = lambda other: len(other) == len(shape) and other[a] == shape[a]
    j = m.choice(m.others(fits))
    k, ties = m.integer(0, 3), m.chance(0.3)

    def fn(p, x, y):
        key = jnp.moveaxis(jax.nn.relu(y) if ties else y, a, 0).reshape(y.shape[a], -1)[:, k % 2]
        order = jnp.argsort(key)
        return jnp.take(x, order[: 1 + k] if k else order, a)

    return Step(fn, (i, j))


@operation
def best_entries(m, i, shape):
    "The entries of one value where another one is largest"
    a = m.axis(shape)
    j = m.choice(m.others(lambda other: other == shape))
    k = m.integer(1, shape[a] + 1)

    def fn(p, x, y):
        which = lax.top_k(jnp.moveaxis(y, a, -1), k)[1]
        return jnp.moveaxis(jnp.take_along_axis(jnp.moveaxis(x, a, -1), which, -1), -1, a)

    return Step(fn, (i, j))


@operation
def label_elsewhere(m, i, shape):
    "The place of the largest entry along one axis, as an index into another one"
    a, b = m.axis(shape), m.axis(shape)
    kind = m.integer(0, 5)

    def fn(p, x):
        label = jnp.argmax(jnp.moveaxis(x, a, 0).reshape(x.shape[a], -1).sum(-1))
        if kind == 0:
            return jnp.tanh(x + jnp.take(x, label % x.shape[b], b, mode="clip").mean())
        if kind == 1:
            return jnp.take(x, (label + 1) % x.shape[a] + jnp.zeros(2, int), a)
        if kind == 2:
            hot = jax.nn.one_hot(label, x.shape[b], dtype=x.dtype)
            return jnp.moveaxis(
                jnp.moveaxis(x, b, -1) * hot.reshape((1,) * (x.ndim - 1) + (-1,)), -1, b
            )
        if kind == 3:
            index = (slice(None),) * b + (label,)
            return x.at[index].add(1.0, mode="drop")
        mask = jnp.arange(x.shape[b]) < label
        return jnp.moveaxis(
            jnp.where(mask.reshape((1,) * (x.ndim - 1) + (-1,)), jnp.moveaxis(x, b, -1), 0), -1, b
        )

    return Step(fn, (i,))


@operation
def scattered(m, i, shape):
    "Entries along an axis, added up by the place of the largest entry along another one"
    if len(shape) < 3:
        return None
    a, b = m.order(len(shape))[1:3]
    size = shape[b] + m.choice((0, 0, 1))

    def fn(p, x):
        y = jnp.moveaxis(x, (a, b), (0, 1)).reshape(x.shape[a], x.shape[b], -1)
        return y.sum(1), jnp.argmax(y[..., 0], 1), jnp.moveaxis(x, a, 0).shape[1:]

    def by_segments(p, x):
        values, labels, _ = fn(p, x)
        return jax.ops.segment_sum(values, labels, size).T.reshape(shape[0], -1, size)

    def by_one_hot(p, x):
        values, labels, _ = fn(p, x)
        return (values.T @ jax.nn.one_hot(labels, size, dtype=x.dtype)).reshape(shape[0], -1, size)

    return Step(m.one_of(by_segments, by_one_hot), (i,))


@operation
def compared_labels(m, i, shape):
    "Where two values have their largest entries in the same place"
    a = m.axis(shape)
    j = m.choice(m.others(lambda other: other == shape))
    fn = lambda x, y: (jnp.argmax(x, a) == jnp.argmax(y, a)).astype(x.dtype)
    return Step(lambda p, x, y: x * jnp.expand_dims(fn(x, y) + 0.5, a), (i, j))


@operation
def ranks(m, i, shape):
    "Each entry's rank"
    a = m.axis(shape)
    twice = lambda p, x: jnp.argsort(jnp.argsort(x, a), a).astype(x.dtype)

    def counted(p, x):
        y = jnp.moveaxis(x, a, -1)
        return jnp.moveaxis((y[..., None, :] < y[..., :, None]).sum(-1), -1, a).astype(x.dtype)

    return Step(m.one_of(twice, counted), (i,))


# --------------------------------------------------------------------------------------- constants


@operation
def constant_matrix(m, i, shape):
    "eye, tril, off the diagonal, equal parities, or an array from outside"
    a = m.axis(shape)
    n, kind = shape[a], m.integer(0, 6)
    outside = m.normal(n, n)

    def fn(p, x):
        k = jnp.arange(n)
        matrix = (
            lambda: jnp.eye(n, dtype=x.dtype),
            lambda: jnp.tril(jnp.ones((n, n), x.dtype)),
            lambda: 1 - jnp.eye(n, dtype=x.dtype),
            lambda: (k[:, None] % 2 == k % 2).astype(x.dtype),
            lambda: jnp.asarray(outside, x.dtype),
            lambda: jnp.full((n, n), 0.3, x.dtype),
        )[kind]()
        return contracted(x, matrix, a)

    return Step(fn, (i,))


@operation
def masked_pairs(m, i, shape):
    "Products of all pairs of entries, off the diagonal or on it"
    if len(shape) != 2:
        return None
    kind = m.integer(0, 3)

    def fn(p, x):
        pairs, n = x[:, :, None] * jnp.tanh(x)[:, None, :], x.shape[1]
        if kind == 0:
            return pairs * (1 - jnp.eye(n, dtype=x.dtype))[None]
        if kind == 1:
            return jnp.where(jnp.eye(n, dtype=bool)[None], -1.0, pairs)
        return jnp.diagonal(pairs, axis1=1, axis2=2)

    return Step(fn, (i,))


@operation
def constant_scale(m, i, shape):
    "Numbers along an axis: equal, in runs, signed zeros, NaN"
    a = m.axis(shape)
    n, kind = shape[a], m.integer(0, 5)

    def fn(p, x):
        k = jnp.arange(n)
        c = (
            lambda: jnp.full(n, 0.7),
            lambda: jnp.where(k < n // 2, 1.0, 2.0),
            lambda: 1 / jnp.where(k < n // 2, 1e-3, jnp.where(k > 0, -1e-3, 1e-3)) * 1e-3,
            lambda: jnp.where(k % 2 == 0, 1.0, 0.0),
            lambda: jnp.nan_to_num(jnp.where(k < 1, jnp.nan, jnp.full(n, jnp.nan)), nan=0.5),
        )[kind]().astype(x.dtype)
        return jnp.moveaxis(jnp.moveaxis(x, a, -1) * c.reshape((1,) * (x.ndim - 1) + (n,)), -1, a)

    return Step(fn, (i,))


@operation
def signed_zeros(m, i, shape):
    "0.0 and -0.0, which differ by what they divide"
    a = m.axis(shape)
    zeros = np.zeros(shape[a])
    zeros[: shape[a] // 2] = -0.0

    def fn(p, x):
        sign = jnp.sign(1 / jnp.asarray(zeros, x.dtype))
        return jnp.moveaxis(
            jnp.moveaxis(x, a, -1) * sign.reshape((1,) * (x.ndim - 1) + (-1,)), -1, a
        )

    return Step(fn, (i,))


@operation
def dropped(m, i, shape):
    "A mask at random, from a key that is a constant"
    a = m.axis(shape)
    whole = m.chance(0.5)

    def fn(p, x):
        sizes = x.shape if whole else [n if k == a else 1 for k, n in enumerate(x.shape)]
        mask = jax.random.bernoulli(jax.random.key(0), 0.6, sizes)
        return jnp.where(mask, x, 0.0)

    return Step(fn, (i,))


@operation
def clipped(m, i, shape):
    kind = m.integer(0, 3)
    return Step(
        lambda p, x: (
            jnp.clip(x, -0.5, 0.5),
            jnp.where(x > 0, x, 0.1 * x),
            jnp.nan_to_num(jnp.log(x), neginf=-9),
        )[kind],
        (i,),
    )


# ----------------------------------------------------------------------------------------- complex


@operation
def complex_scale(m, i, shape):
    "A rotation of each unit, and a real number of it"
    a, kind = m.axis(shape), m.integer(0, 4)
    w = m.param(shape[a], kind="complex")

    def fn(p, x):
        z = jnp.moveaxis(x, a, -1) * p[w].reshape((1,) * (x.ndim - 1) + (-1,))
        y = (
            lambda: z.real,
            lambda: jnp.abs(z),
            lambda: (z * jnp.conj(z) * 1j).imag,
            lambda: z.imag * z.real,
        )[kind]()
        return jnp.moveaxis(y, -1, a)

    return Step(fn, (i,))


@operation
def linear_recurrence(m, i, shape):
    "z ← λ z + x along one axis, with a complex λ for each entry of another one"
    if len(shape) < 3:
        return None
    a, b = m.order(len(shape))[1:3]
    w = m.param(shape[b], kind="complex")

    def start(p, x):
        y = jnp.moveaxis(x, (a, b), (0, -1))
        rate = jnp.exp(-jnp.abs(p[w].real) + 1j * p[w].imag)
        return y + 0j, jnp.broadcast_to(rate.reshape((1,) * (y.ndim - 1) + (-1,)), y.shape)

    def associative(p, x):
        y, rate = start(p, x)
        together = lambda l, r: (l[0] * r[0], l[1] * r[0] + r[1])
        return jnp.moveaxis(lax.associative_scan(together, (rate, y))[1].real, (0, -1), (a, b))

    def sequential(p, x):
        y, rate = start(p, x)
        step = lambda h, xs: (h * xs[1] + xs[0],) * 2
        return jnp.moveaxis(
            lax.scan(step, jnp.zeros_like(y[0]), (y, rate))[1].real, (0, -1), (a, b)
        )

    return Step(m.one_of(associative, sequential), (i,))


@operation
def fourier(m, i, shape):
    a = m.axis(shape)
    return Step(lambda p, x: jnp.abs(jnp.fft.fft(x, axis=a)), (i,))


# ------------------------------------------------------------------ operations within other things


def restored(params, names, values):
    "Parameters, some of which are replaced"
    return {**params, **dict(zip(names, values, strict=True))}


@operation
def mapped(m, i, shape):
    "Each entry along an axis by itself, with parameters in common or of its own"
    if len(shape) < 3:
        return None
    a = m.integer(0, len(shape))
    inner = m.inner((*shape[:a], *shape[a + 1 :]))
    if inner is None:
        return None
    fn, out, names = inner
    own = bool(names) and m.chance(0.5)
    for name in names if own else ():
        each = [m.params[name]] * shape[a]
        m.params[name] = np.stack(each)
    back = min(a, len(out))

    def stacks(p, x):
        return jnp.moveaxis(x, a, 0), tuple(p[name] for name in names) if own else ()

    def one(p, y, ws):
        return fn(restored(p, names, ws) if own else p, y)

    def by_map(p, x):
        return jnp.moveaxis(lax.map(lambda xs: one(p, *xs), stacks(p, x)), 0, back)

    def by_vmap(p, x):
        return jnp.moveaxis(jax.vmap(lambda y, ws: one(p, y, ws))(*stacks(p, x)), 0, back)

    def by_scan(p, x):
        step = lambda k, xs: (k + 1, one(p, *xs))
        return jnp.moveaxis(lax.scan(step, 0, stacks(p, x))[1], 0, back)

    return Step(m.one_of(*((by_map, by_vmap) if m.chance(0.7) else (by_scan, by_map))), (i,))


@operation
def iterated(m, i, shape):
    "The same again and again, each time with parameters of its own or not"
    inner = m.inner(shape)
    if inner is None or inner[1] != shape:
        return None
    fn, _, names = inner
    own, times = bool(names) and m.chance(0.6), m.integer(1, 4)
    for name in names if own else ():
        m.params[name] = np.stack([m.params[name]] * times)
    kind, residual = m.integer(0, 4), m.chance(0.5)

    def one(p, x, ws):
        new = fn(restored(p, names, ws) if own else p, x)
        return (new + x if residual else new).astype(x.dtype)

    def stacks(p):
        return tuple(p[name] for name in names) if own else ()

    def by_scan(p, x):
        return lax.scan(lambda h, ws: (one(p, h, ws), None), x, stacks(p), length=times)[0]

    def with_outputs(p, x):
        step = lambda h, ws: (one(p, h, ws), h.sum())
        h, sums = lax.scan(step, x, stacks(p), length=times, reverse=True)
        return h + sums[0]

    def by_index(p, x):
        step = lambda k, h: one(p, h, tuple(w[k] for w in stacks(p)))
        return lax.fori_loop(0, times, step, x)

    def unrolled(p, x):
        for k in range(times):
            x = one(p, x, tuple(w[k] for w in stacks(p)))
        return x

    def by_while(p, x):
        step = lambda c: (c[0] + 1, one(p, c[1], tuple(w[c[0]] for w in stacks(p))))
        return lax.while_loop(lambda c: (c[0] < times) & (c[1].sum() < 1e9), step, (0, x))[1]

    if kind == 0:
        return Step(with_outputs, (i,))
    return Step(
        m.one_of(*((by_scan, unrolled), (by_index, by_scan), (by_while, by_scan))[kind - 1]), (i,)
    )


@operation
def within_a_call(m, i, shape):
    "A function that is compiled, kept for later, has a derivative of its own, or a branch"
    inner = m.inner(shape)
    if inner is None:
        return None
    fn, kind = inner[0], m.integer(0, 4)
    step = (
        lambda p, x: jax.jit(fn)(p, x),
        lambda p, x: jax.checkpoint(fn)(p, x),
        lambda p, x: lax.cond(x.sum() > 0.1, lambda: fn(p, x), lambda: 2 * fn(p, x)),
        lambda p, x: jax.named_call(fn)(p, x),
    )[kind]
    return Step(
        m.one_of(step, lambda p, x: fn(p, x) * (1 + (x.sum() <= 0)) if kind == 2 else fn(p, x)),
        (i,),
    )


@operation
def gradient(m, i, shape):
    "The derivative of a sum of squares by the value"
    inner = m.inner(shape)
    if inner is None:
        return None
    fn = lambda p, x: jax.grad(lambda y: jnp.sum(jnp.tanh(inner[0](p, y)) ** 2))(x)
    try:
        m.shape_of(fn, shape)
    except ValueError:  # JAX does not differentiate `while` backwards
        return None
    return Step(fn, (i,))


@operation
def dead(m, i, shape):
    "Something that is computed and not used, in a call or in a loop"
    inner = m.inner(shape)
    if inner is None:
        return None
    fn, kind = inner[0], m.integer(0, 3)

    def fn_dead(p, x):
        if kind == 0:
            return jax.jit(lambda x: (jnp.tanh(x), fn(p, x)))(x)[0]
        if kind == 1:
            return lax.scan(lambda h, _: (jnp.tanh(h), fn(p, h)), x, None, length=2)[0]
        _ = fn(p, x)
        return jnp.tanh(x)

    alive = lambda p, x: jnp.tanh(jnp.tanh(x)) if kind == 1 else jnp.tanh(x)
    return Step(m.one_of(fn_dead, alive), (i,))


@operation
def sharded(m, i, shape):
    "On a mesh of one device, with a sum over it"
    if m.sharded:
        return None
    m.sharded = True
    inner = m.inner(shape)
    m.sharded = False
    if inner is None:
        return None
    fn, summed_up = inner[0], m.chance(0.5)
    P = jax.sharding.PartitionSpec

    def body(p, x):
        y = fn(p, x)
        return y + lax.psum(jnp.sum(y), "d") if summed_up else y

    def shard(p, x):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("d",))
        how = {"mesh": mesh, "in_specs": (P(), P("d")), "out_specs": P("d")}
        if hasattr(jax, "shard_map"):
            return jax.shard_map(body, check_vma=False, **how)(p, x)
        from jax.experimental.shard_map import shard_map

        return shard_map(body, check_rep=False, **how)(p, x)

    def alone(p, x):
        y = fn(p, x)
        return y + jnp.sum(y) if summed_up else y

    return Step(m.one_of(shard, alone), (i,))


@operation
def across_the_batch(m, i, shape):
    "A mean over a batch axis that has a name"
    inner = m.inner(shape[1:]) if len(shape) > 2 else None
    if inner is None:
        return None

    def one(p, y):
        z = inner[0](p, y)
        return z - lax.pmean(z, "batch") / 2

    def by_hand(p, x):
        z = jax.vmap(lambda y: inner[0](p, y))(x)
        return z - z.mean(0, keepdims=True) / 2

    named = lambda p, x: jax.vmap(lambda y: one(p, y), axis_name="batch")(x)
    return Step(m.one_of(named, by_hand), (i,))


WITHIN = (mapped, iterated, within_a_call, gradient, dead, sharded, across_the_batch)
