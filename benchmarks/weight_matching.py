"""Weight matching against the published algorithm and against the machine: time, memory, objective.

    python benchmarks/weight_matching.py                  all cases, and the record (minutes)
    python benchmarks/weight_matching.py --quick          two small cases (a minute), no record
    python benchmarks/weight_matching.py --cases vgg16 --keys 1 --out vgg.json

The baseline is the paper's Algorithm 1 in plain, eager JAX, float32, from the identity. Ours is
measured from each of its starts, and as shipped ("auto", which tries both). Every measurement has a
process of its own, baseline and ours in turn: a cold call, the first of the process, and then warm
ones with the same random key, which prepare everything anew. The weights are independent normal
numbers (kind I), or B is A with all groups shuffled (kind P). The floor is the time that the
products of one full sweep take at the speed of the machine's own matrix product.

Memory is read in processes that run ours alone, from Linux: the bytes of both models, and what the
call has resident on top of them at its peak (VmHWM, started anew by writing 5 to
/proc/self/clear_refs, less VmRSS before the call, when freed memory is back with the system), over
the bytes of both models. Before that, one product of large matrices and one match of a tiny network
let the libraries take the buffers that they keep.
"""

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib
import inspect
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

import git_rebasin.symmetry.builders as builders
from git_rebasin import random_permutation, weight_matching
from git_rebasin.experiments.records import timed_record, write_record
from git_rebasin.matching.assignment import RepeatedAssignment, assignment_backend
from git_rebasin.matching.weights import sweep_order
from git_rebasin.symmetry.permutation import permute_block
from git_rebasin.symmetry.spec import BoundSpec, PermutationSpec
from git_rebasin.tree import flatten

RECORD = Path(__file__).parent / "records" / "weight_matching.json"
KINDS = {"I": "independent", "P": "planted"}
CONTENDERS = ["baseline", "identity", "greedy", "auto"]  # all but the first are ours, by the start
DEFAULT = inspect.signature(weight_matching).parameters["init"].default  # ours as shipped


# ---- the cases


@dataclass(frozen=True)
class Case:
    """An architecture of the zoo, and how often it is measured."""

    init: str  # module:function, whose shapes are used
    spec: Callable[[], PermutationSpec]
    options: dict = field(default_factory=dict)  # of `init`
    keys: int = 3  # random keys: each has its own models, its own processes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path → shape of every array; nothing is computed."""
        module, name = self.init.split(":")
        init = getattr(importlib.import_module(f"git_rebasin.zoo.{module}"), name)
        tree = jax.eval_shape(functools.partial(init, **self.options), jax.random.key(0))
        return {path: leaf.shape for path, leaf in flatten(tree).items()}


def resnet20(multiplier: float, keys: int) -> Case:
    options = {"width_multiplier": multiplier}
    return Case("resnet:init_resnet20", builders.resnet20_permutation_spec, options, keys)


CASES = {
    "mlp": Case("mlp:init_mlp", lambda: builders.mlp_permutation_spec(3)),
    "vgg16": Case("vgg:init_vgg16", builders.vgg16_permutation_spec, keys=2),
    "resnet20x1": resnet20(1, 3),
    "resnet20x4": resnet20(4, 3),
    "resnet20x8": resnet20(8, 2),
    "resnet20x16": resnet20(16, 1),
    "resnet50": Case("resnet:init_resnet50", builders.resnet50_permutation_spec, keys=1),
}
QUICK = ["mlp", "resnet20x1"]
TINY = {"Dense_0/kernel": 2, "Dense_0/bias": 1, "Dense_1/kernel": 2, "Dense_1/bias": 1}  # ranks


def shuffle(spec: BoundSpec, kind: str, key: int) -> dict[str, np.ndarray] | None:
    """The permutation that makes B of A, for planted models."""
    if kind == "I":
        return None
    drawn = random_permutation(jax.random.key(key), spec)
    return {group: np.asarray(perm) for group, perm in drawn.items()}


def models(spec: BoundSpec, key: int, planted: dict | None) -> tuple[dict, dict]:
    """Models A and B as {path: array}, both of normal numbers, or B as A in another order."""
    rng = np.random.default_rng([key, 2022])

    def normal(shape):
        return jnp.asarray(rng.standard_normal(shape, dtype=np.float32))

    a = {path: normal(shape) for path, shape in spec.shapes.items()}
    if planted is None:
        b = {path: normal(shape) for path, shape in spec.shapes.items()}
    else:
        b = {
            block.path: jnp.asarray(permute_block(block, np.asarray(a[block.path]), planted))
            for block in spec.blocks
        }
    jax.block_until_ready((a, b))
    return a, b


# ---- the baseline


def _permuted(spec: BoundSpec, perm: dict, path: str, w, skip: int):
    """An array of B with its axes in their new order, but for one."""
    for axis, group in enumerate(spec.axes_to_perm[path]):
        if group is not None and axis != skip:
            w = jnp.take(w, perm[group], axis=axis)
    return w


def _cost_matrix(spec: BoundSpec, perm: dict, group: str, a: dict, b: dict):
    """Inner products of all places of A with all units of B, the other groups where they are."""
    n = spec.groups[group]
    total = jnp.zeros((n, n))
    for path, axis in spec.perm_to_axes[group]:
        left = jnp.moveaxis(a[path], axis, 0).reshape(n, -1)
        right = _permuted(spec, perm, path, b[path], axis)
        total = total + left @ jnp.moveaxis(right, axis, 0).reshape(n, -1).T
    return total


def published(
    key,
    spec: BoundSpec,
    a: dict,
    b: dict,
    max_sweeps: int = 100,
    start: dict | None = None,  # a permutation; default: the identity
):
    """Algorithm 1 of the paper, eagerly: the permutation, the sweeps, whether it converged."""
    groups = list(spec.groups)
    perm = {g: jnp.arange(n) for g, n in spec.groups.items()} if start is None else dict(start)
    for sweep in range(max_sweeps):
        progress = False
        for k in sweep_order(key, sweep, len(groups)):
            group = groups[k]
            scores = _cost_matrix(spec, perm, group, a, b)
            _, best = linear_sum_assignment(np.asarray(scores), maximize=True)
            one_hot = jnp.eye(spec.groups[group])
            old = jnp.vdot(scores, one_hot[perm[group]])
            new = jnp.vdot(scores, one_hot[best])
            progress = progress or bool(new > old + 1e-12)
            perm[group] = jnp.asarray(best)
        if not progress:
            return perm, sweep + 1, True
    return perm, max_sweeps, False


# ---- what a contender is asked, and its answer


def solve(contender: str, key: jax.Array, spec: BoundSpec, a: dict, b: dict):
    """One call of a contender: the permutation, the sweeps, whether it converged."""
    if contender == "baseline":
        return published(key, spec, a, b)
    start = {} if contender == DEFAULT else {"init": contender}
    match = weight_matching(key, spec, a, b, ignore=(), **start)  # the baseline counts all leaves
    return match.perm, match.sweeps, match.converged


def objective(spec: BoundSpec, a: dict, b: dict, perm: dict) -> float:
    """⟨A, π(B)⟩ in float64, by the same function for all contenders."""
    perm, total = {g: np.asarray(p) for g, p in perm.items()}, 0.0
    for block in spec.blocks:
        moved = permute_block(block, np.asarray(b[block.path]), perm)
        left = np.asarray(a[block.path]).ravel().astype(np.float64)
        total += float(left @ moved.ravel().astype(np.float64))
    return total


def sweep_flops(spec: BoundSpec) -> int:
    """Floating-point operations of all products of one full sweep."""
    return sum(
        2 * math.prod(block.shape) * n
        for block in spec.blocks
        for n, group in zip(block.shape, block.labels, strict=True)
        if group is not None
    )


def resident(name: str, process: int | str = "self") -> int | None:
    """Bytes of a process in memory: VmRSS now, or VmHWM at most so far; None if unknown."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        match = re.search(rf"^{name}:\s*(\d+) kB", status, re.M)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def forget_peak() -> None:
    """Let VmHWM start again from what is in memory now (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def release_freed() -> None:
    """Give memory that was freed back to the system (glibc)."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def timed(contender: str, key: int, spec: BoundSpec, a: dict, b: dict):
    """The seconds of a call, and what it gave; its random key is there before, as models are."""
    random_key = jax.block_until_ready(jax.random.key(key))
    start = time.perf_counter()
    result = solve(contender, random_key, spec, a, b)
    jax.block_until_ready(dict(result[0]))
    return time.perf_counter() - start, result


def bound(job: dict) -> BoundSpec:
    """The spec of a job, bound to its shapes."""
    return bind(PermutationSpec.from_json(job["spec"]), job["shapes"])


def bind(spec: PermutationSpec, shapes: dict) -> BoundSpec:
    """A spec bound to {path: shape}."""
    return spec.bind_shapes({path: tuple(shape) for path, shape in shapes.items()})


@contextlib.contextmanager
def clocked_assignments(contender: str) -> Iterator[list[float]]:
    """A list that gets the seconds of every assignment which a contender solves meanwhile."""
    ours = sys.modules["git_rebasin.matching.solve"]
    places = [(ours, "linear_assignments"), (RepeatedAssignment, "solve")]
    if contender == "baseline":
        places = [(sys.modules[__name__], "linear_sum_assignment")]
    spent: list[float] = []

    def clocked(solver):
        def solve_and_note(*args, **options):
            start = time.perf_counter()
            result = solver(*args, **options)
            spent.append(time.perf_counter() - start)
            return result

        return solve_and_note

    with contextlib.ExitStack() as stack:
        for owner, name in places:
            new = clocked(getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, new))
        yield spent


def measure(job: dict) -> dict:
    """The seconds of one contender on one case: {"shapes", "spec", "kind", "contender", "key"}, and
    the limits of the warm calls."""
    spec, contender, key = bound(job), job["contender"], job["key"]
    a, b = models(spec, key, shuffle(spec, job["kind"], key))
    cold, (perm, sweeps, converged) = timed(contender, key, spec, a, b)
    warm: list[float] = []
    with clocked_assignments(contender) as assignments:
        while not warm or (len(warm) < job["most"] and sum(warm) < job["seconds"]):
            warm.append(timed(contender, key, spec, a, b)[0])
    return {
        "cold": cold,
        "warm": warm,
        "assignments": sum(assignments) / sum(warm),  # share of the warm calls
        "sweeps": sweeps,
        "converged": converged,
        "objective": objective(spec, a, b, perm),
    }


def measure_memory(job: dict) -> dict:
    """The peak of one call of ours over the size of the models, or None where it is unknown."""
    spec, contender, key = bound(job), job["contender"], job["key"]
    tiny = bind(builders.mlp_permutation_spec(1), {p: (8,) * r for p, r in TINY.items()})
    solve(contender, jax.random.key(0), tiny, *models(tiny, 0, None))
    large = np.ones((1024, 1024), np.float32)
    _ = large @ large
    del large, _
    a, b = models(spec, key, shuffle(spec, job["kind"], key))
    size = sum(w.nbytes for m in (a, b) for w in m.values())
    release_freed()
    forget_peak()
    before = resident("VmRSS")
    solve(contender, jax.random.key(key), spec, a, b)
    peak = resident("VmHWM")
    return {"memory": None if before is None or peak is None else 1 + (peak - before) / size}


# ---- the machine


def openblas_kernel() -> str | None:
    """The kernel that numpy's OpenBLAS chose, asked of the library that is loaded."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    for library in sorted(set(re.findall(r"(/\S*numpy\S*openblas\S*)", maps))):
        for prefix in ("scipy_", ""):
            for suffix in ("64_", ""):
                ask = getattr(ctypes.CDLL(library), f"{prefix}openblas_get_corename{suffix}", None)
                if ask is not None:
                    ask.restype = ctypes.c_char_p
                    return ask().decode()
    return None


def blas() -> str:
    """numpy's BLAS and, where it is known, its kernel."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        config = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        kernel = openblas_kernel()
        return f"{config['name']} {config['version']}" + (f", kernel {kernel}" if kernel else "")
    libraries = [x for x in threadpool_info() if x["user_api"] == "blas"]
    return "; ".join(
        f"{x['internal_api']} {x['version']}, kernel {x.get('architecture')}" for x in libraries
    )


def product_rate(product: Callable, size: int) -> float:
    """The best of ten products of two square matrices: operations per second."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        jax.block_until_ready(product(x, y))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def describe_machine(job: dict) -> dict:
    """The speed of matrix products, and which libraries make them: {"size"} of the matrices."""
    return {
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # of the last minute
        "product_size": job["size"],
        "rates": {
            "numpy": product_rate(np.matmul, job["size"]),
            "jax": product_rate(jax.jit(jnp.matmul), job["size"]),
        },
        "blas": blas(),
        "OPENBLAS_CORETYPE": os.environ.get("OPENBLAS_CORETYPE"),
        "assignment": assignment_backend(),
    }


# ---- one process for each question


def answer(job: dict) -> dict:
    """What a process is asked, answered here."""
    return {"machine": describe_machine, "time": measure, "memory": measure_memory}[job["ask"]](job)


def isolated(job: dict, script: str = __file__) -> dict:
    """The answer of a fresh process, on the CPU, which finds nothing compiled by earlier ones."""
    done = subprocess.run(
        [sys.executable, script, "--answer"],
        input=json.dumps(job),
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def runs(
    cases: dict[str, Case], kinds: Sequence[str], most_keys: int, ask: Callable[[dict], dict]
) -> Iterator[dict]:
    """Every measurement: for each case, kind and key, one contender after the other."""
    for name, case in cases.items():
        common = {"shapes": case.shapes(), "spec": case.spec().to_json()}
        for kind in kinds:
            for key in range(min(case.keys, most_keys)):
                for contender in CONTENDERS:
                    what = {"case": name, "kind": kind, "key": key, "contender": contender}
                    limits = {"most": 5, "seconds": 1.0}  # warm calls: at least one
                    run = what | ask({"ask": "time"} | common | what | limits)
                    if key == 0 and contender != "baseline":
                        run |= ask({"ask": "memory"} | common | what)
                    yield run


# ---- what came out


def median(values) -> float:
    return statistics.median(list(values))


def typical(seconds: float | list[float]) -> float:
    """The seconds of the cold call, or the median of the warm ones."""
    return median(seconds) if isinstance(seconds, list) else seconds


def summarize(case: Case, name: str, kind: str, start: str, runs: list[dict], rate: float) -> dict:
    """One case from one start: ours beside the baseline and the floor; medians over the keys."""

    def of(contender):
        same = [r for r in runs if (r["case"], r["kind"]) == (name, kind)]
        return sorted((r for r in same if r["contender"] == contender), key=lambda r: r["key"])

    base, ours, first = of("baseline"), of(start), of("identity")
    floor = sweep_flops(bind(case.spec(), case.shapes())) / rate
    row = {"case": name, "kind": kind, "start": start, "keys": len(ours), "floor": floor}
    for way in ("cold", "warm"):
        theirs, mine = (median(typical(r[way]) for r in rs) for rs in (base, ours))
        row[way] = {"baseline": theirs, "ours": mine, "ratio": theirs / mine}
    objectives = [o["objective"] / p["objective"] for o, p in zip(ours, base, strict=True)]
    both = {"baseline": base, "ours": ours}
    medians = {
        what: {who: median(r[what] for r in rs) for who, rs in both.items()}
        for what in ("sweeps", "assignments")
    }
    pairs = zip(ours, first, strict=True)
    return row | {
        "over_identity": median(typical(r["warm"]) / typical(one["warm"]) for r, one in pairs),
        "over_floor": row["warm"]["ours"] / floor,
        "objective": {"mean": statistics.mean(objectives), "lowest": min(objectives)},
        "memory": ours[0]["memory"],
        **medians,
    }


def wanted(name: str, kind: str) -> Iterator[tuple[str, str, float]]:
    """The targets of a case: which figure, ≥ or ≤, and the bound."""
    if kind == "P":
        yield "warm", "≥", 3.0
    else:
        warm = {"resnet50": 15, "vgg16": 15, "resnet20x1": 15, "resnet20x4": 6}
        warm |= {"resnet20x8": 3, "resnet20x16": 3}
        cold = {"resnet50": 15, "vgg16": 15, "resnet20x1": 40, "resnet20x4": 40}
        for way, bounds in (("warm", warm), ("cold", cold)):
            if name in bounds:
                yield way, "≥", float(bounds[name])
    yield "over_identity", "≤", 2.5
    yield "memory", "≤", 2.0
    yield "objective", "≥", 1.0


def targets(row: dict) -> Iterator[dict]:
    """Each target of a row with its figure, and whether it is met."""
    figures = {way: row[way]["ratio"] for way in ("cold", "warm")}
    figures |= {"memory": row["memory"], "objective": row["objective"]["lowest"]}
    if row["start"] == "auto":
        figures |= {"over_identity": row["over_identity"]}
    for what, sign, bound in wanted(row["case"], row["kind"]):
        value = figures.get(what)
        if value is not None:
            slack = 1e-6 if what == "objective" else 0.0  # as the baseline computes in float32
            met = value >= bound - slack if sign == "≥" else value <= bound
            same = {k: row[k] for k in ("case", "kind", "start")}
            yield same | {"what": what, "sign": sign, "bound": bound, "value": value, "met": met}


def benchmark(
    cases: dict[str, Case],
    kinds: Sequence[str] = tuple(KINDS),
    most_keys: int = 3,
    ask: Callable[[dict], dict] = isolated,
    size: int = 2048,  # of the matrices whose product is the measure of the machine
    progress: Callable[[str], None] = lambda line: None,
) -> dict:
    """Measure all cases: the record."""
    began, measured = time.perf_counter(), []
    machine = ask({"ask": "machine", "size": size})
    for run in runs(cases, kinds, most_keys, ask):
        measured.append(run)
        what = " ".join(str(run[k]) for k in ("case", "kind", "key", "contender"))
        times = f"cold {run['cold']:.3g} s, warm {median(run['warm']):.3g} s"
        spent = time.perf_counter() - began
        progress(f"[{spent:4.0f} s] {what}: {times}, {run['sweeps']} sweeps")
    rate = max(machine["rates"].values())
    rows = [
        summarize(case, name, kind, start, measured, rate)
        for name, case in cases.items()
        for kind in kinds
        for start in CONTENDERS[1:]
    ]
    return timed_record(
        "weight matching",
        began,
        machine=machine,
        default_start=DEFAULT,
        summary=rows,
        targets=[target for row in rows for target in targets(row)],
        runs=measured,
    )


def machine_lines(record: dict) -> Iterator[str]:
    """Where the record was made."""
    machine, made = record["machine"], record["provenance"]
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in machine["rates"].items())
    yield f"{made['processor']}, {made['cores']} cores; {made['versions']}"
    yield f"float32 product of {machine['product_size']}²: {rates} GFLOP/s; BLAS {machine['blas']}"
    if machine["load"] is not None:
        busy = ": it was not idle, so beware of the times" if machine["load"] > 1 else ""
        yield f"load before the first measurement: {machine['load']:.2f}{busy}"
    yield (
        f"OPENBLAS_CORETYPE {machine['OPENBLAS_CORETYPE'] or 'not set'}; "
        f"assignment backend {machine['assignment']}; "
        f"as shipped, it starts from {record['default_start']!r}"
    )


def table(record: dict) -> Iterator[str]:
    """The summary as text: seconds, baseline over ours, ours warm over the floor, the objective
    over the baseline's (worst key), sweeps of ours and the baseline, memory over the models'."""
    yield (
        f"{'case':12} {'start':9} {'baseline cold/warm s':>21} {'ours cold/warm s':>19} "
        f"{'ratio cold':>10} {'warm':>7} {'/floor':>7} {'objective':>10} {'sweeps':>9} "
        f"{'memory':>7}"
    )
    for row in record["summary"]:
        cold, warm, sweeps = row["cold"], row["warm"], row["sweeps"]
        memory = "–" if row["memory"] is None else f"{row['memory']:.2f}"
        yield (
            f"{row['case'] + ' ' + row['kind']:12.14} {row['start']:9} "
            f"{cold['baseline']:11.3f} {warm['baseline']:9.3f} "
            f"{cold['ours']:9.3f} {warm['ours']:9.3f} "
            f"{cold['ratio']:9.1f}× {warm['ratio']:6.1f}× {row['over_floor']:7.1f} "
            f"{row['objective']['lowest']:10.5f} {sweeps['ours']:4g}/{sweeps['baseline']:<4g} "
            f"{memory:>7}"
        )


def target_lines(record: dict) -> Iterator[str]:
    """The targets as text."""
    for t in record["targets"]:
        case = f"{t['case']} {t['kind']}"
        yield (
            f"{case:14} {t['start']:9} {t['what']:13} {t['sign']} {t['bound']:4g}: "
            f"{t['value']:8.4g}  {'met' if t['met'] else 'NOT MET'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="default: all")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--keys", type=int, default=3, help="at most so many random keys a case")
    parser.add_argument("--quick", action="store_true", help="small cases, one key")
    parser.add_argument("--out", type=Path, help=f"default, if nothing is left out: {RECORD}")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        print(json.dumps(answer(json.load(sys.stdin))))
        return
    names = options.cases or (QUICK if options.quick else list(CASES))
    whole = (names, options.kinds) == (list(CASES), list(KINDS)) and options.keys >= 3
    out = options.out or (RECORD if whole and not options.quick else None)
    record = benchmark(
        {name: CASES[name] for name in names},
        options.kinds,
        1 if options.quick else options.keys,
        progress=functools.partial(print, flush=True),
    )
    print("", *machine_lines(record), "", *table(record), "", *target_lines(record), sep="\n")
    print(f"\n{record['seconds']:.0f} s" + (f"; wrote {write_record(out, record)}" if out else ""))


if __name__ == "__main__":
    main()
