"""Random programs: whatever spec is inferred for one, it has to pass the check."""

import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.symmetry.spec import PermutationSpec

SEEDS = range(40)
SIZES = (2, 3, 4, 6)


class Step(NamedTuple):
    "How a value comes from earlier ones"

    fn: Callable  # fn(params, *values of the sources) → the new value
    sources: tuple[int, ...]


OPERATIONS: list[Callable] = []


def operation(method: Callable) -> Callable:
    "One of the methods that a program is made of"
    OPERATIONS.append(method)
    return method


class Program:
    "Values made one after the other, each from earlier ones; axis 0 is always the batch"

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.params: dict[str, np.ndarray] = {}
        self.steps: list[Step] = []
        self.used: list[str] = []  # names of operations
        self.shapes = [(2, 3)]  # of the values; the first is the input
        self.x = self.rng.normal(size=self.shapes[0]).astype(np.float32)
        for _ in range(2):
            self.add(self.lift())
        length = len(self.steps) + self.rng.integers(4, 12)
        while len(self.steps) < length:
            self.try_one()
        last = len(self.shapes) - 1
        first = max(1, last - 2)
        read = [i for i in range(first, last + 1) if i == last or self.chance(0.7)]
        self.outputs = [self.readout(i) for i in read]

    def __call__(self, params, x):
        values = [x]
        run = lambda step: step.fn(params, *(values[i] for i in step.sources))
        for step in self.steps:
            values.append(run(step))
        return [run(step) for step in self.outputs]

    # ---------------------------------------------------------------------------------- building

    def shape_of(self, step: Step) -> tuple[int, ...]:
        "What a step would give"
        struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
        values = [struct(self.shapes[i]) for i in step.sources]
        return jax.eval_shape(step.fn, self.params, *values).shape

    def add(self, step: Step) -> None:
        self.shapes.append(self.shape_of(step))
        self.steps.append(step)

    def try_one(self) -> None:
        "A random operation on a recent value, if it can be applied and does not grow too large"
        method, i = self.choice(OPERATIONS), self.integer(max(0, len(self.shapes) - 4), None)
        before = dict(self.params)
        step = method(self, i, self.shapes[i])
        if step is not None:
            shape = self.shape_of(step)
            if math.prod(shape) <= 3000 and 2 <= len(shape) <= 4:
                self.add(step)
                self.used.append(method.__name__)
                return
        self.params = before

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def choice(self, items):
        return items[int(self.rng.integers(len(items)))]

    def integer(self, low: int, high: int | None) -> int:
        "From low to high − 1; None: as many as there are values"
        return int(self.rng.integers(low, len(self.shapes) if high is None else high))

    def axis(self, shape: tuple[int, ...]) -> int:
        "Any axis but that of the batch"
        return self.integer(1, len(shape))

    def param(self, *shape: int) -> str:
        "The name of a new parameter"
        name = f"p{len(self.params)}"
        self.params[name] = (0.5 * self.rng.normal(size=shape) + 0.1).astype(np.float32)
        return name

    def others(self, fits: Callable[[tuple[int, ...]], bool]) -> list[int]:
        "All values whose shapes fit"
        return [j for j, shape in enumerate(self.shapes) if fits(shape)]

    def lift(self) -> Step:
        "From the input to up to three axes of units"
        sizes = [self.choice(SIZES) for _ in range(self.integer(1, 4))]
        w = self.param(3, *sizes)
        return Step(lambda p, x: jnp.tanh(jnp.tensordot(x, p[w], 1)), (0,))

    def readout(self, i: int) -> Step:
        "An output: a linear or nonlinear layer over all axes, or a sum over them"
        shape, kind = self.shapes[i], self.integer(0, 3)
        axes = tuple(range(1, len(shape)))
        if kind == 0:
            return Step(lambda p, x: jnp.sum(jnp.tanh(x), axes), (i,))
        w, squash = self.param(*shape[1:], 2), jnp.tanh if kind == 1 else lambda x: x
        return Step(lambda p, x: jnp.tensordot(squash(x), p[w], len(axes)), (i,))

    # ---------------------------------------------------------- layers and other uses of parameters

    @operation
    def dense(self, i, shape):
        a = self.axis(shape)
        w = self.param(shape[a], self.choice(SIZES))
        return Step(lambda p, x: contracted(x, p[w], a), (i,))

    @operation
    def bias(self, i, shape):
        w = self.param(*self.some_axes(shape))
        return Step(lambda p, x: jnp.tanh(x + p[w]), (i,))

    @operation
    def scale(self, i, shape):
        w = self.param(*self.some_axes(shape))
        return Step(lambda p, x: x * p[w], (i,))

    def some_axes(self, shape):
        "The shape of an array with some of the axes, and 1 for the others"
        return (1, *(n if self.chance(0.6) else 1 for n in shape[1:]))

    @operation
    def recurrent(self, i, shape):
        a = self.axis(shape)
        w = self.param(shape[a], shape[a])
        layer = lambda p, h: jnp.tanh(contracted(h, p[w], a)) + h
        return Step(
            lambda p, x: lax.scan(lambda h, _: (layer(p, h), None), x, None, length=2)[0], (i,)
        )

    @operation
    def stacked_layers(self, i, shape):
        a, hidden, residual = self.axis(shape), self.choice(SIZES), self.chance(0.6)
        w1, w2 = self.param(3, shape[a], hidden), self.param(3, hidden, shape[a])

        def layer(h, w):
            new = contracted(jnp.tanh(contracted(h, w[0], a)), w[1], a)
            return new + h if residual else new, None

        return Step(lambda p, x: lax.scan(layer, x, (p[w1], p[w2]))[0], (i,))

    # -------------------------------------------------------------------------------- two values

    @operation
    def combine(self, i, shape):
        j = self.choice(self.others(lambda other: other == shape))
        return Step(lambda p, x, y: x * y + y, (i, j))

    @operation
    def add_transposed(self, i, shape):
        j = self.choice(self.others(lambda other: sorted(other) == sorted(shape)))
        order = (0, *(1 + self.rng.permutation(len(shape) - 1)).tolist())
        if tuple(self.shapes[j][k] for k in order) != shape:
            return None
        return Step(lambda p, x, y: x + jnp.transpose(y, order), (i, j))

    @operation
    def concatenate(self, i, shape):
        a = self.axis(shape)
        without = lambda s: (*s[:a], *s[a + 1 :])
        fits = lambda s: len(s) == len(shape) and without(s) == without(shape)
        j, constants = self.choice(self.others(fits)), self.chance(0.3)

        def fn(p, x, y):
            more = [jnp.ones_like(x), jnp.zeros_like(y)] if constants else []
            return jnp.concatenate([x, y, *more], a)

        return Step(fn, (i, j))

    @operation
    def outer(self, i, shape):
        if len(shape) != 2:
            return None
        j = self.choice(self.others(lambda other: len(other) == 2))
        return Step(lambda p, x, y: jnp.einsum("ba,bc->bac", x, y), (i, j))

    @operation
    def einsum(self, i, shape):
        js = self.others(lambda other: set(other[1:]) & set(shape[1:]))
        if not js:
            return None
        j = self.choice(js)
        first, second = list("zabc"[: len(shape)]), list("zijk"[: len(self.shapes[j])])
        for k in range(1, len(second)):
            same = [c for c, n in zip(first, shape, strict=True) if n == self.shapes[j][k]]
            free = [c for c in same if c not in second]
            if free and self.chance(0.7):
                second[k] = self.choice(free)
        summed = {c for c in first[1:] if c in second and self.chance(0.6)}
        out = [c for c in dict.fromkeys(first + second) if c not in summed]
        formula = f"{''.join(first)},{''.join(second)}->{''.join(out)}"
        return Step(lambda p, x, y: jnp.tanh(jnp.einsum(formula, x, y)), (i, j))

    # ---------------------------------------------------------------------------- shapes and places

    @operation
    def transpose(self, i, shape):
        order = (0, *(1 + self.rng.permutation(len(shape) - 1)).tolist())
        return Step(lambda p, x: jnp.transpose(x, order), (i,))

    @operation
    def merge(self, i, shape):
        if len(shape) < 3:
            return None
        a = self.integer(1, len(shape) - 1)
        return Step(lambda p, x: x.reshape(*shape[:a], -1, *shape[a + 2 :]), (i,))

    @operation
    def divide(self, i, shape):
        a = self.axis(shape)
        divisors = [d for d in (2, 3, 4) if shape[a] % d == 0 and shape[a] > d]
        if not divisors:
            return None
        d = self.choice(divisors)
        return Step(lambda p, x: x.reshape(*shape[:a], -1, d, *shape[a + 1 :]), (i,))

    @operation
    def slice(self, i, shape):
        a = self.axis(shape)
        start = self.integer(0, shape[a])
        stop = self.integer(start + 1, shape[a] + 1)
        return Step(lambda p, x: lax.slice_in_dim(x, start, stop, axis=a), (i,))

    @operation
    def strided_slice(self, i, shape):
        a, start = self.axis(shape), self.integer(0, 2)
        if shape[a] < 3:
            return None
        return Step(lambda p, x: lax.slice_in_dim(x, start, None, 2, axis=a), (i,))

    @operation
    def two_indices(self, i, shape):
        if len(shape) < 3:
            return None
        a = self.axis(shape)
        k, l = self.integer(0, shape[a]), self.integer(0, shape[a])
        at = lambda x, k: lax.index_in_dim(x, k, a, keepdims=False)
        return Step(lambda p, x: at(x, k) * jnp.tanh(at(x, l)), (i,))

    @operation
    def take(self, i, shape):
        a = self.axis(shape)
        places = self.rng.integers(0, shape[a], 3)
        return Step(lambda p, x: jnp.take(x, places, axis=a), (i,))

    @operation
    def pad(self, i, shape):
        widths = [(0, 0)] * len(shape)
        widths[self.axis(shape)] = (self.integer(0, 3), self.integer(0, 3))
        return Step(lambda p, x: jnp.pad(x, widths, constant_values=0.5), (i,))

    @operation
    def repeat(self, i, shape):
        a = self.axis(shape)
        return Step(lambda p, x: jnp.repeat(x, 2, a), (i,))

    @operation
    def tile(self, i, shape):
        times = [1] * len(shape)
        times[self.axis(shape)] = 2
        return Step(lambda p, x: jnp.tile(x, times), (i,))

    # ---------------------------------------------------------------------------- along one axis

    @operation
    def reduce(self, i, shape):
        if len(shape) < 3:
            return None
        a, keep = self.axis(shape), self.chance(0.5)
        how = self.choice((jnp.sum, jnp.max, jnp.mean))
        return Step(lambda p, x: how(x, axis=a, keepdims=keep), (i,))

    @operation
    def softmax(self, i, shape):
        a = self.axis(shape)
        return Step(lambda p, x: jax.nn.softmax(x, a), (i,))

    @operation
    def cumulative_sum(self, i, shape):
        a = self.axis(shape)
        return Step(lambda p, x: jnp.cumsum(x, a), (i,))

    @operation
    def flip(self, i, shape):
        a = self.axis(shape)
        return Step(lambda p, x: jnp.flip(x, a), (i,))

    @operation
    def roll(self, i, shape):
        a = self.axis(shape)
        return Step(lambda p, x: jnp.roll(x, 1, a), (i,))

    @operation
    def sort(self, i, shape):
        a = self.axis(shape)
        return Step(lambda p, x: jnp.sort(x, a), (i,))


def contracted(x, w, axis):
    "An axis of x by a matrix, the new axis in the place of the old one"
    return jnp.moveaxis(jnp.tensordot(x, w, ((axis,), (0,))), -1, axis)


@cache
def program_of(seed: int) -> Program:
    return Program(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_inferred_for_a_random_program_is_true(seed):
    program = program_of(seed)
    spec = infer_permutation_spec(program, program.params, program.x)  # raises if it is not
    assert spec.shapes == {name: w.shape for name, w in program.params.items()}
    assert PermutationSpec.from_json(spec.to_json()) == spec


def test_random_programs_have_symmetries():
    counts = Counter()
    for program in map(program_of, SEEDS):
        spec = infer_permutation_spec(program, program.params, program.x, verify=False)
        counts["groups"] += len(spec.groups)
        counts["families"] += len(spec.families)
        counts["programs with groups"] += bool(spec.groups)
    assert counts["groups"] >= 60, counts
    assert counts["families"] >= 12, counts
    assert counts["programs with groups"] >= 22, counts


def test_random_programs_use_every_operation():
    used = {name for seed in SEEDS for name in program_of(seed).used}
    assert used == {method.__name__ for method in OPERATIONS}
