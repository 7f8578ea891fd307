"""How often weight matching finds a planted permutation, from each of its starts.

    python benchmarks/planted_recovery.py                 all networks, and the record (minutes)
    python benchmarks/planted_recovery.py --quick         small networks, two seeds, no record
    python benchmarks/planted_recovery.py --networks mlp vgg16 --seeds 5 --out some.json

B is A with the units of every group shuffled, plus noise in units of each array's standard
deviation; all weights of A are independent normal numbers, in float32. A seed counts as recovered
if the permutation of every group is the planted one, in every place. Each network has a process of
its own, and the result is saved beside the record, so that a run that was stopped goes on where
it was.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from weight_matching import CASES, DEFAULT, bound, isolated, models, shuffle

from git_rebasin import weight_matching
from git_rebasin.experiments.records import provenance, read_record, timed_record, write_record
from git_rebasin.symmetry.permutation import compose_permutations
from git_rebasin.symmetry.spec import PermutationSpec

RECORD = Path(__file__).parent / "records" / "planted_recovery.json"
STARTS = ["identity", "greedy", "auto"]  # the last tries both and keeps the better
NOISES = (0.0, 0.5, 1.0)  # of each array's standard deviation
INPUTS, OUTPUTS = 10, 10  # of the residual MLPs


# ---- the networks


@dataclass(frozen=True)
class Network:
    """What is planted into, how noisy, and how often from each start."""

    family: str  # the heading of its table
    spec: Callable[[], PermutationSpec]
    shapes: Callable[[], dict[str, tuple[int, ...]]]
    seeds: dict[str, int]  # from each start; fewer from the identity where a call takes seconds,
    #   but as many of the default as are claimed
    noises: tuple[float, ...] = NOISES


def residual_rows(depth: int) -> dict[str, tuple]:
    """The table of a residual MLP: each block adds its hidden units' outputs to the stream."""
    rows: dict[str, tuple] = {"in/kernel": (None, "stream"), "out/kernel": ("stream", None)}
    for k in range(depth):
        rows[f"block{k}/up"] = ("stream", f"hidden{k}")
        rows[f"block{k}/down"] = (f"hidden{k}", "stream")
    return rows


def residual_shapes(width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Its shapes; the stream and the hidden layers are equally wide."""
    shapes = {"in/kernel": (INPUTS, width), "out/kernel": (width, OUTPUTS)}
    blocks = [f"block{k}/{part}" for k in range(depth) for part in ("up", "down")]
    return shapes | dict.fromkeys(blocks, (width, width))


def residual(width: int, depth: int) -> Network:
    """A residual MLP without biases, planted without noise."""
    return Network(
        "residual MLP",
        lambda: PermutationSpec.from_axes_to_perm(residual_rows(depth)),
        lambda: residual_shapes(width, depth),
        dict.fromkeys(STARTS, 100),
        (0.0,),
    )


def from_zoo(name: str, identity: int = 20) -> Network:
    """A network of the zoo."""
    case = CASES[name]
    seeds = dict.fromkeys(STARTS, 20) | {"identity": identity}
    return Network("zoo", case.spec, case.shapes, seeds)


NETWORKS = {
    **{
        f"{width} × {depth}": residual(width, depth)
        for width in (30, 50)
        for depth in (4, 8, 12, 16)
    },
    "mlp": from_zoo("mlp"),
    "resnet20x4": from_zoo("resnet20x4"),
    "resnet50": from_zoo("resnet50", identity=2),
    "vgg16": from_zoo("vgg16", identity=3),
    "resnet20x8": from_zoo("resnet20x8", identity=3),
    "resnet20x16": from_zoo("resnet20x16", identity=2),
}  # the longest last
QUICK = ["mlp", "30 × 4", "30 × 16"]


# ---- one network


def noises_of(b: dict, noises: Sequence[float], seed: int) -> Iterator[tuple[float, dict]]:
    """Each noise, and the model with so much of it: one draw, times each array's deviation."""
    rng, draw = np.random.default_rng([seed, 1911]), {}
    for path, w in b.items() if any(noises) else ():
        scale = np.std(np.asarray(w))
        draw[path] = scale * rng.standard_normal(w.shape, dtype=np.float32)
    for noise in noises:
        yield noise, {p: np.asarray(w) + noise * draw[p] for p, w in b.items()} if noise else b


def recovered(spec: PermutationSpec, planted: dict, perm: dict) -> bool:
    """Whether a match undoes what was planted, in every group."""
    left = compose_permutations(spec, perm, planted)
    return all(np.array_equal(p, np.arange(len(p))) for p in left.values())


def recover(job: dict) -> dict:
    """All seeds of one network: {"shapes", "spec", "noises", "seeds"}, seeds for each start."""
    spec, rows = bound(job), []
    counts = {(noise, start): [0, 0.0] for noise in job["noises"] for start in STARTS}
    for seed in range(max(job["seeds"].values())):
        planted = shuffle(spec, "P", seed)
        a, b = models(spec, seed, planted)
        for noise, other in noises_of(b, job["noises"], seed):
            for start in (s for s in STARTS if seed < job["seeds"][s]):
                began = time.perf_counter()
                match = weight_matching(jax.random.key(seed), spec, a, other, init=start)
                count = counts[noise, start]
                count[1] += time.perf_counter() - began
                count[0] += recovered(spec, planted, dict(match.perm))
    for (noise, start), (count, seconds) in counts.items():
        row = {"noise": noise, "start": start, "seeds": job["seeds"][start]}
        rows.append(row | {"recovered": count, "seconds": seconds / job["seeds"][start]})
    return {"rows": rows}


# ---- all of them


def job_of(network: Network, most_seeds: int) -> dict:
    """What the process of a network is asked."""
    return {
        "shapes": network.shapes(),
        "spec": network.spec().to_json(),
        "noises": network.noises,
        "seeds": {start: min(n, most_seeds) for start, n in network.seeds.items()},
    }


def resume(partial: Path, made: dict) -> dict[str, dict]:
    """What an earlier run of the same revision and machine had finished, by the job's own text."""
    if not partial.exists() or made["revision"] is None or made["revision"].endswith("+"):
        return {}
    earlier = read_record(partial)
    return earlier["done"] if earlier["provenance"] == made else {}


def benchmark(
    networks: dict[str, Network],
    most_seeds: int = 100,
    partial: Path | None = None,  # where to keep what is done so far
    ask: Callable[[dict], dict] = lambda job: isolated(job, __file__),
    progress: Callable[[str], None] = lambda line: None,
) -> dict:
    """Recover in all networks: the record."""
    began, made, rows, asked = time.perf_counter(), provenance(), [], []
    done = resume(partial, made) if partial else {}
    for name, network in networks.items():
        job = job_of(network, most_seeds)
        which = json.dumps(job, sort_keys=True)
        asked.append(which)
        if which not in done:
            start = time.perf_counter()
            done[which] = ask(job) | {"took": time.perf_counter() - start}
            if partial:
                write_record(partial, {"provenance": made, "done": done})
        measured = [{"network": name, "family": network.family} | r for r in done[which]["rows"]]
        rows += measured
        progress(f"[{time.perf_counter() - began:4.0f} s]")
        for line in table(measured):
            progress(line)
    took = sum(done[which]["took"] for which in asked)  # of all runs that it took
    record = timed_record("planted recovery", began, default_start=DEFAULT, rows=rows)
    return record | {"provenance": made, "seconds": took}


def table(rows: list[dict]) -> Iterator[str]:
    """The rows as text."""
    for r in rows:
        yield (
            f"{r['network']:12} noise {r['noise']:3.1f}  {r['start']:9} {r['recovered']:3d} of "
            f"{r['seeds']:3d} recovered, {r['seconds']:.3g} s each"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), help="default: all")
    parser.add_argument("--seeds", type=int, default=100, help="at most so many for each network")
    parser.add_argument("--quick", action="store_true", help="small networks, two seeds")
    parser.add_argument("--out", type=Path, help=f"default, if nothing is left out: {RECORD}")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        print(json.dumps(recover(json.load(sys.stdin))))
        return
    names = options.networks or (QUICK if options.quick else list(NETWORKS))
    whole = names == list(NETWORKS) and options.seeds >= 100
    out = options.out or (RECORD if whole and not options.quick else None)
    partial = out and out.with_suffix(".partial.json")
    record = benchmark(
        {name: NETWORKS[name] for name in names},
        2 if options.quick else options.seeds,
        partial,
        progress=functools.partial(print, flush=True),
    )
    if out:
        print(f"wrote {write_record(out, record)}")
        partial.unlink(missing_ok=True)
    print(f"{record['seconds']:.0f} s")


if __name__ == "__main__":
    main()
