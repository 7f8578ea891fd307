"""Random programs: is what is inferred for them true, and is anything left out?

    python tests/random_programs.py 1000 --seed 12345

tries so many fresh seeds. For each program the spec is inferred without being verified; then, in
float64 and with other weights, all groups are moved at once and each by itself. A program that
differs is printed. With `--twins` each program is also written in another way, which computes the
same and should have as many symmetries.
"""

import argparse
import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from random_operations import OPERATIONS, SIZES, WITHIN, Operation, Shape, Step

from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.symmetry.permutation import apply_permutation
from git_rebasin.symmetry.spec import BoundSpec

LARGEST = 3000  # entries of a value
DEPTH = 2  # of operations within operations


class Program:
    "Values made one after the other, each from earlier ones; axis 0 is always the batch"

    def __init__(self, seed: int, way: int = 0, only: str | None = None):
        self.rng = np.random.default_rng(seed)
        self.way, self.only = way, only  # how operations are written, or the one of this name is
        self.making: list[str] = []  # names of the operations at hand
        self.params: dict[str, np.ndarray] = {}
        self.steps: list[Step] = []
        self.used: list[str] = []  # names of operations
        self.shapes: list[Shape] = [(2, 3)]  # of the values; the first is the input
        self.x = self.normal(*self.shapes[0])
        self.depth, self.sharded = 0, False  # of operations within operations
        self.within: list[str] = []  # their names
        for _ in range(2):
            self.add(self.lift(), "lift")
        length = len(self.steps) + self.integer(3, 9)
        while len(self.steps) < length:
            self.try_one()
        last = len(self.shapes) - 1
        first = max(1, last - 2)
        read = [i for i in range(first, last + 1) if i == last or self.chance(0.7)]
        self.outputs = [self.readout(i) for i in read]

    def __call__(self, params: dict, x: Any) -> list:
        values = [x]
        run = lambda step: step.fn(params, *(values[i] for i in step.sources))
        for step in self.steps:
            values.append(run(step))
        return [run(step) for step in self.outputs]

    def function(self) -> Callable:
        "A new function, as JAX remembers what it has traced, and outputs may have been left out"
        return lambda params, x: self(params, x)

    def __str__(self) -> str:
        needed = {i for step in self.outputs for i in step.sources}
        for k in range(len(self.steps), 0, -1):
            needed |= set(self.steps[k - 1].sources) if k in needed else set()
        lines = [
            f"v{k} = {self.used[k - 1]} {self.steps[k - 1].sources}: {self.shapes[k]}"
            for k in sorted(needed - {0})
        ]
        outputs = ", ".join(f"v{step.sources[0]}" for step in self.outputs)
        return "\n".join([*lines, f"out: {outputs}"])

    # --------------------------------------------------------------------------------- building

    def shape_of(self, fn: Callable, *shapes: Shape) -> Shape:
        "What a step would give"
        struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.result_type(float))
        return jax.eval_shape(fn, self.params, *map(struct, shapes)).shape

    def add(self, step: Step, name: str) -> None:
        self.shapes.append(self.shape_of(step.fn, *(self.shapes[i] for i in step.sources)))
        self.steps.append(step)
        self.used.append(name)

    def try_one(self) -> None:
        "A random operation on a recent value, if it can be applied and does not grow too large"
        within = self.chance(0.3)  # of other things: loops, calls, derivatives
        make, i = (
            self.choice(WITHIN if within else OPERATIONS),
            self.integer(max(0, len(self.shapes) - 4), None),
        )
        before, self.within = dict(self.params), []
        step = self.made(make, i, self.shapes[i])
        if step is not None:
            shape = self.shape_of(step.fn, *(self.shapes[j] for j in step.sources))
            if math.prod(shape) <= LARGEST and 2 <= len(shape) <= 4 and math.prod(shape):
                self.add(step, " of ".join([make.__name__, *self.within]))
                return
        self.params = before

    def made(self, make: Operation, i: int, shape: Shape) -> Step | None:
        "The step of an operation, which knows its name meanwhile"
        self.making.append(make.__name__)
        step = make(self, i, shape)
        self.making.pop()
        return step

    def inner(self, shape: Shape) -> tuple[Callable, Shape, list[str]] | None:
        "A function of one value for another operation, what it gives, and its new parameters"
        if self.depth >= DEPTH or len(shape) < 2:
            return None
        self.depth += 1
        before, make, shapes = set(self.params), self.choice(OPERATIONS), self.shapes
        self.shapes = [shape]  # all that it can read
        step = self.made(make, 0, shape)
        self.shapes = shapes
        self.depth -= 1
        if step is None:
            return None
        fn = lambda p, x: step.fn(p, *(x for _ in step.sources))
        out = self.shape_of(fn, shape)
        if math.prod(out) > LARGEST or not 1 <= len(out) <= 4:
            return None
        self.within = [make.__name__, *self.within]
        return fn, out, [name for name in self.params if name not in before]

    def one_of(self, *ways: Callable) -> Callable:
        "One of several functions that compute the same"
        written = self.only is None or self.making[-1] == self.only
        return ways[self.way % len(ways) if written else 0]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def choice(self, items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def integer(self, low: int, high: int | None) -> int:
        "From low to high − 1; None: as many as there are values"
        return int(self.rng.integers(low, len(self.shapes) if high is None else high))

    def axis(self, shape: Shape) -> int:
        "Any axis but that of the batch"
        return self.integer(1, len(shape))

    def order(self, n: int) -> tuple[int, ...]:
        "Any order of axes, that of the batch first"
        return (0, *(1 + self.rng.permutation(n - 1)).tolist())

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(jnp.result_type(float))

    def param(self, *shape: int, kind: str = "float") -> str:
        "The name of a new parameter"
        name = f"p{len(self.params)}"
        dtype = {
            "float": jnp.result_type(float),
            "complex": jnp.result_type(complex),
            "int": np.int8,
        }
        self.params[name] = np.zeros(shape, dtype[kind])
        return name

    def others(self, fits: Callable[[Shape], bool]) -> list[int]:
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

    def weights(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        "Other weights, of the same shapes and dtypes"

        def one(w):
            if w.dtype == np.int8:
                return rng.integers(-5, 6, w.shape).astype(np.int8)
            drawn = 0.5 * rng.normal(size=w.shape) + 0.1
            return (drawn + 1j * rng.normal(size=w.shape) if w.dtype.kind == "c" else drawn).astype(
                w.dtype
            )

        return {name: one(w) for name, w in self.params.items()}


# ------------------------------------------------------------------------------------ what is true


def moves(spec: BoundSpec, rng: np.random.Generator) -> Iterator[tuple[str, dict]]:
    "Permutations: of all groups, twice, and of each group by itself"
    shapes = {g: s if isinstance(s, tuple) else (s,) for g, s in spec.perm_shapes.items()}
    still = {g: np.broadcast_to(np.arange(s[-1]), s) for g, s in shapes.items()}
    drawn = lambda g: rng.permuted(still[g], axis=-1)
    for _ in range(2):
        yield "all groups", {g: drawn(g) for g in shapes}
    for g in shapes:
        yield g, still | {g: drawn(g)}


def difference(a: list, b: list) -> float:
    "Of outputs, beside the largest of them"
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        if not np.array_equal(np.isfinite(x), np.isfinite(y)):
            return math.inf
        x, y = np.nan_to_num(x, posinf=0, neginf=0), np.nan_to_num(y, posinf=0, neginf=0)
        worst = max(
            worst, float(np.max(np.abs(x - y), initial=0) / max(1e-3, np.max(np.abs(x), initial=0)))
        )
    return worst


def faults(program: Program, spec: BoundSpec, seed: int = 0) -> tuple[list[str], list[str]]:
    "What of a spec is not true: the groups that change the outputs; and groups that nothing reads"
    rng, fn, found = np.random.default_rng(seed), jax.jit(program.function()), []
    unread: dict[str, bool] = {}
    for _ in range(2):
        params = program.weights(rng)
        x = rng.normal(size=program.x.shape).astype(program.x.dtype)
        before = fn(params, x)
        for name, perm in moves(spec, rng):
            moved = apply_permutation(spec, perm, params)
            by = difference(before, fn(moved, x))
            if by > 1e-6:
                found.append(f"{name} changes the outputs")
            if name in perm:
                unread[name] = unread.get(name, True) and _ignores(fn, params, moved, before, x)
    return list(dict.fromkeys(found)), [name for name, is_so in unread.items() if is_so]


def _ignores(fn: Callable, params: dict, moved: dict, before: list, x: np.ndarray) -> bool:
    "Whether entries that are moved do not matter: other values in their place change nothing"
    changed = {
        p: np.where(np.asarray(moved[p]) != w, 3 - 2 * w, w).astype(w.dtype)
        for p, w in params.items()
    }
    same = all(np.array_equal(changed[p], w) for p, w in params.items())
    return not same and difference(before, fn(changed, x)) == 0


def inferred(program: Program) -> BoundSpec:
    "The spec of a program, as it is before it is verified"
    return infer_permutation_spec(program.function(), program.params, program.x, verify=False)


def reduced(program: Program, wrong: list[str]) -> list[str]:
    "Leave out outputs of a faulty program as long as it stays faulty; its faults then"
    for step in list(program.outputs):
        kept = program.outputs
        program.outputs = [s for s in kept if s is not step]
        try:
            less = faults(program, inferred(program))[0] if program.outputs else []
        except Exception:
            less = [traceback.format_exc(limit=-6)]
        if less:
            wrong = less
        else:
            program.outputs = kept
    return wrong


def run(seeds: range, twins: bool, quiet: bool) -> Counter:
    "Try programs, print those that have faults, and count"
    counts, start = Counter(), time.perf_counter()
    for seed in seeds:
        program = Program(seed)
        try:
            spec = inferred(program)
            wrong, idle = faults(program, spec)
            counts["groups that nothing reads"] += len(idle)
            if idle and not wrong:
                print(f"seed {seed}: nothing reads {idle}", program, sep="\n", flush=True)
        except Exception:
            wrong, spec = [traceback.format_exc(limit=-6)], None
        counts["programs"] += 1
        if spec is not None:
            counts["groups"] += len(spec.groups)
            counts["families"] += len(spec.families)
            counts["programs with groups"] += bool(spec.groups)
        if wrong:
            counts["faulty"] += 1
            wrong = reduced(program, wrong)
            print(f"seed {seed}:", *wrong, program, sep="\n", flush=True)
        if twins and spec is not None:
            for way in (1, 2):
                counts += differs(program, spec, seed, way)
        if not quiet and counts["programs"] % 50 == 0:
            print(f"{time.perf_counter() - start:.0f} s", dict(counts), file=sys.stderr, flush=True)
    return counts


def differs(program: Program, spec: BoundSpec, seed: int, way: int) -> Counter:
    "The operations that, written in another way, leave fewer symmetries, or more"
    found: Counter = Counter()
    other = Program(seed, way)
    params, x = program.weights(np.random.default_rng(seed)), program.x
    pair = [jax.jit(each.function())(params, x) for each in (program, other)]
    if difference(*pair) > 1e-6:
        found["not the same function"] += 1
        print(f"seed {seed}: way {way} computes something else", program, sep="\n", flush=True)
    elif abs(inferred(other).log10_symmetries - spec.log10_symmetries) > 1e-6:
        names = {name for used in program.used for name in used.split(" of ")}
        for name in sorted(names):
            many = inferred(Program(seed, way, name)).log10_symmetries
            if abs(many - spec.log10_symmetries) > 1e-6:
                found[f"{name} {'+' if many > spec.log10_symmetries else '-'}"] += 1
                print(f"seed {seed}: {name} in way {way}: {spec.log10_symmetries:.2f} → {many:.2f}")
        print(program, flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("programs", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=1000, help="the first one")
    parser.add_argument("--twins", action="store_true", help="compare with other ways to write it")
    parser.add_argument("--more", nargs="*", default=[], help="operations to draw more often")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    OPERATIONS.extend([make for make in OPERATIONS if make.__name__ in args.more] * 10)
    counts = run(range(args.seed, args.seed + args.programs), args.twins, args.quiet)
    print(dict(counts))
    return int(counts["faulty"] > 0)


if __name__ == "__main__":
    sys.exit(main())
