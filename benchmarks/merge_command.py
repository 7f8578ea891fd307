"""`git-rebasin merge` of two large checkpoints: time over that of its products, and memory.

    python benchmarks/merge_command.py                       1.1 billion parameters, and the record
    python benchmarks/merge_command.py --layers 2 --hidden 512 --no-record

A decoder with grouped heads, rotary positions and gated layers, with the names and the shapes of a
public one of 1.1 billion parameters, is drawn at random in float16 and written to a folder of
several safetensors files; model B is the same with the units of all groups shuffled. The command
merges them by a spec, in a process of its own, that also counts the products that scores are made
of. Printed are its wall time over the time of these products at the machine's own rate (numpy's
product of two 2048 × 2048 matrices, before and after), the most that it has resident (Linux:
`VmHWM`), and whether it undid the whole shuffle.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import late_models
import numpy as np
from weight_matching import resident

from git_rebasin.checkpoints.late import LateArray
from git_rebasin.checkpoints.opened import Checkpoint, open_checkpoint
from git_rebasin.checkpoints.written import write_checkpoint
from git_rebasin.cli.parser import main as command
from git_rebasin.experiments.records import timed_record, write_record
from git_rebasin.matching import scores, search
from git_rebasin.merging.files import load_permutations, permuted
from git_rebasin.native import keep_freed_memory
from git_rebasin.symmetry.permutation import compose_permutations, random_permutation
from git_rebasin.symmetry.spec import BoundSpec, PermutationSpec

RECORD = Path(__file__).parent / "records" / "merge_command.json"
PUBLIC = {"head": 64, "share": 8, "wider": 2.75, "words": 32_000}  # as in a public model


def decoder(layers: int, hidden: int) -> BoundSpec:
    """The spec of the decoder, bound to its shapes."""
    spec, shapes = late_models.decoder(layers, hidden, **PUBLIC)
    return spec.bind_shapes(shapes)


def drawn(path: str, shape: tuple[int, ...]) -> LateArray:
    """An array of random numbers in float16, drawn when it is read."""

    def read() -> np.ndarray:
        rng = np.random.default_rng([0, zlib.crc32(path.encode())])
        return (rng.standard_normal(shape, np.float32) / math.sqrt(shape[-1])).astype(np.float16)

    return LateArray(shape, np.dtype(np.float16), read, ("drawn", path, shape))


def write_pair(folder: Path, spec: BoundSpec) -> dict[str, np.ndarray]:
    """Both models as folders of files, and the spec; the planted permutation of B."""
    a = {path: drawn(path, shape) for path, shape in spec.shapes.items()}
    moves = random_permutation(jax.random.key(0), spec)
    plant = {group: np.asarray(p) for group, p in moves.items()}
    for name, model in (("a", a), ("b", permuted(spec, plant, a))):
        like = Checkpoint(folder, "safetensors", model)
        write_checkpoint(folder / name, model, like, shard_bytes=1e9)
    (folder / "spec.json").write_text(PermutationSpec(spec.axes_to_perm).to_json())
    return plant


def rate(size: int = 2048, times: int = 20) -> float:
    """Floating-point operations a second of numpy's product of two matrices; the best of some."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), np.float32) for _ in "ab")
    best = math.inf
    for _ in range(times):
        start = time.perf_counter()
        _ = a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


@contextmanager
def counted(seconds: defaultdict[str, float]) -> Iterator[None]:
    """Count the products of scores, and the time of these and of assignments, while it is open."""
    add, solve = scores.GroupScores._add, search.solve_tree

    def counted_add(self, matrix, terms, perm):
        start = time.perf_counter()
        out = add(self, matrix, terms, perm)
        seconds["scores"] += time.perf_counter() - start
        for t in terms:  # each is built anew, as a search that is kept forgets its matrices
            rows = math.prod(t.block.shape[k] for k in t.contraction.rows)
            seconds["operations"] += 2 * t.elements * rows
        return out

    def counted_solve(*args):
        start = time.perf_counter()
        out = solve(*args)
        seconds["assignments"] += time.perf_counter() - start
        seconds["visits"] += 1
        return out

    scores.GroupScores._add, search.solve_tree = counted_add, counted_solve
    try:
        yield
    finally:
        scores.GroupScores._add, search.solve_tree = add, solve


def merge(folder: str, memory: str) -> dict:
    """The command, in this process: what it took."""
    seconds = defaultdict[str, float](float)
    place = Path(folder)
    argv = ["merge", str(place / "a"), str(place / "b"), "-o", str(place / "out")]
    start = time.perf_counter()
    keep_freed_memory()  # as the command does in a process of its own, which this one is
    with counted(seconds):
        code = command([*argv, "--spec", str(place / "spec.json"), "--memory", memory])
    taken = time.perf_counter() - start
    peak = resident("VmHWM")  # unlike ru_maxrss, without what the parent had
    return {"code": code, "seconds": taken, "peak_bytes": peak, **seconds}


def isolated(*args) -> dict:
    """`merge`, in a process of its own."""
    code = f"import json, merge_command as m; print(json.dumps(m.merge(*{args!r})))"
    run = [sys.executable, "-c", code]
    here = Path(__file__).resolve().parent
    env = os.environ | {"OPENBLAS_THREAD_TIMEOUT": "4"}  # as the command's own process has it
    done = subprocess.run(run, cwd=here, env=env, check=True, stdout=subprocess.PIPE, text=True)
    print("\n".join(done.stdout.splitlines()[:-1]))
    return json.loads(done.stdout.splitlines()[-1])


def is_undone(folder: Path, spec: BoundSpec, plant: dict[str, np.ndarray]) -> bool:
    """Whether all units are back in their places, and the mean of both models is A, bit for bit."""
    _, (perm,) = load_permutations(folder / "out" / "permutation.safetensors")
    both = compose_permutations(spec, perm, plant)
    found = map(np.asarray, both.values())
    back = all(np.array_equal(p, np.broadcast_to(np.arange(p.shape[-1]), p.shape)) for p in found)
    a, out = (open_checkpoint(folder / name).arrays for name in ("a", "out"))
    return back and all(np.array_equal(np.asarray(a[n]), np.asarray(out[n])) for n in a)


def measure(layers: int, hidden: int, memory: str) -> dict:
    """Draw, write, merge and check one pair."""
    spec = decoder(layers, hidden)
    count = sum(math.prod(shape) for shape in spec.shapes.values())
    with tempfile.TemporaryDirectory() as d:
        plant = write_pair(Path(d), spec)
        print(f"{count:,} parameters, {len(spec.groups)} groups, written", flush=True)
        speeds = [rate()]
        row = isolated(d, memory)
        speeds.append(rate())
        undone = is_undone(Path(d), spec, plant)
    floor = row["operations"] / max(speeds)
    more = {"floor_seconds": floor, "ratio": row["seconds"] / floor, "rate": max(speeds)}
    return {"parameters": count, "groups": len(spec.groups), "undone": undone, **row, **more}


def main() -> None:
    """Measure, print, and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--memory", default="2GB", help="as the command takes it")
    parser.add_argument("--no-record", action="store_true", help="print, and keep nothing")
    options = parser.parse_args()
    began = time.perf_counter()
    row = measure(options.layers, options.hidden, options.memory)
    print(
        f"merged in {row['seconds']:.0f} s, {row['ratio']:.2f} × the {row['floor_seconds']:.0f} s "
        f"of its products at {row['rate'] / 1e9:.0f} GFLOP/s (scores {row['scores']:.0f} s, "
        f"assignments {row['assignments']:.0f} s, {row['visits']:.0f} visits); at most "
        f"{row['peak_bytes'] / 1e9:.2f} GB resident; shuffle undone: {row['undone']}"
    )
    if not options.no_record:
        print(write_record(RECORD, timed_record("merge_command", began, result=row)))


if __name__ == "__main__":
    main()
