"""The straight-through estimator: the time of its projections beside its gradient steps.

    python benchmarks/straight_through.py              the record (a minute)
    python benchmarks/straight_through.py --quick      small networks, few steps, no record
    python benchmarks/straight_through.py --out x.json

Two MLPs are trained apart on the handwritten digits, enlarged to 28 × 28 pixels, and matched by
descent with Adam. Three things are timed in the same process: the gradient step alone, of a descent
that keeps its first permutation; the projection, which is all that a step has beside it, of another
descent that runs in turn with it; and the first match, of A with B. Beside them stands the
published way, written eagerly: Algorithm 1 in plain JAX from the last permutation, on the very
models that ours projected. Medians count, after steps that warm up. The first matches are the first
of their kind in the process: what JAX compiles for them counts, on both sides; the warm ones have
the same arguments.
"""

import argparse
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from weight_matching import blas, median, published

from git_rebasin.experiments.records import timed_record, write_record
from git_rebasin.matching import straight_through as module
from git_rebasin.matching.weights import key_entropy, weight_matching
from git_rebasin.symmetry.builders import mlp_permutation_spec
from git_rebasin.tree import flatten
from git_rebasin.zoo.data import batches, load
from git_rebasin.zoo.mlp import init_mlp, mlp_apply
from git_rebasin.zoo.train import TrainConfig, classifier_loss, train

RECORD = Path(__file__).parent / "records" / "straight_through.json"
LOSS = classifier_loss(mlp_apply)
WARM = 5  # steps that are left out
CONFIG = {
    "features": [512, 512, 512],
    "epochs": 20,  # of training
    "batch_size": 1000,
    "steps": 60,
    "published": 20,  # steps whose projection is made in the published way too
    "rate": 1e-3,  # of Adam, which moves θ̃
}
QUICK = CONFIG | {"features": [64, 64], "epochs": 2, "batch_size": 200, "steps": 10}
TARGETS = {"projection": ("≤", 0.4), "first cold": ("≥", 10.0)}


def digits() -> dict[str, np.ndarray]:
    """The handwritten digits, each pixel as 3 × 3, with a margin: 28 × 28."""
    data = load("digits", "train").arrays
    images = data["images"].repeat(3, axis=1).repeat(3, axis=2)
    return data | {"images": np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))}


def trained(config: dict, data: dict, seed: int):
    """A trained network."""
    start = init_mlp(jax.random.key(seed), features=config["features"])
    how = TrainConfig(epochs=config["epochs"], batch_size=100)
    return train(jax.random.key(seed + 100), LOSS, start, data, how).params


def endless(config: dict, data: dict) -> Iterator[dict]:
    """Batches, one epoch after the other."""
    for epoch in itertools.count():
        yield from batches(jax.random.key(2), data, config["batch_size"], epoch=epoch)


def seconds(function, *args, **options) -> tuple[float, object]:
    """How long a call takes, and what it gives."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args, **options))
    return time.perf_counter() - start, result


def first_matches(key, spec, bound, a: dict, b: dict) -> dict[str, dict[str, float]]:
    """The match of A with B, ours and the published one: the first call and a median of five."""
    ways = {
        "ours": lambda: dict(weight_matching(key, spec, a, b, init="identity").perm),
        "published": lambda: published(key, bound, a, b)[0],
    }
    times = {}
    for name, way in ways.items():
        cold = seconds(way)[0]
        times[name] = {"cold": cold, "warm": median(seconds(way)[0] for _ in range(5))}
    return times


def permuted_units(perm: dict, other: dict) -> int:
    """How many units have another place."""
    return sum(int(np.sum(perm[g] != other[g])) for g in perm)


def steps(key, config: dict, stream: list, spec, params_a, params_b) -> dict[str, list[float]]:
    """Every gradient step by itself, every step and projection in turn, and the published way."""
    bound, a, b = spec.bind(params_a), flatten(params_a), flatten(params_b)
    loss = module.merged_loss(LOSS, params_a)
    perm = dict(weight_matching(key, spec, a, b, init="identity").perm)
    search = module.Projection(bound, a, b, perm)
    descent = module._Descent(bound, a, b, loss, 0.5, optax.adam(config["rate"]))
    alone = paired = descent.start
    names = ("alone", "step", "projection", "published", "moved")
    times: dict[str, list[float]] = {name: [] for name in names}
    projected = []  # from which permutation, and what
    for number, batch in enumerate(stream):
        spent, (alone, _) = seconds(descent.step, alone, perm, batch)
        times["alone"].append(spent)
        before, entropy = search.perm, [*key_entropy(key), number]
        spent, (paired, _) = seconds(descent.step, paired, before, batch)
        times["step"].append(spent)
        times["projection"].append(seconds(search.project, paired.params, entropy)[0])
        times["moved"].append(permuted_units(search.perm, before))
        projected.append((before, paired.params))
    for number, (before, theta) in enumerate(projected[: config["published"]]):
        start = {g: jax.numpy.asarray(p) for g, p in before.items()}
        order = jax.random.fold_in(key, number)
        times["published"].append(seconds(published, order, bound, theta, b, start=start)[0])
    return times


def whole_steps(key, config: dict, stream: list, spec, params_a, params_b) -> list[float]:
    """The seconds of each step of a call of `straight_through_matching`."""
    ends = [time.perf_counter()]
    module.straight_through_matching(
        key,
        spec,
        params_a,
        params_b,
        loss_fn=LOSS,
        batches=stream,
        optimizer=optax.adam(config["rate"]),
        init="identity",
        callback=lambda progress: ends.append(time.perf_counter()),
    )
    return [after - before for before, after in itertools.pairwise(ends)]


# ---- what came out


def benchmark(config: dict) -> dict:
    """Train, match and time: the record."""
    began, key, data = time.perf_counter(), jax.random.key(0), digits()
    spec = mlp_permutation_spec(len(config["features"]))
    params_a, params_b = (trained(config, data, seed) for seed in (0, 1))
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    pair = spec, params_a, params_b
    first = first_matches(key, spec, spec.bind(params_a), flatten(params_a), flatten(params_b))
    stream = list(itertools.islice(endless(config, data), config["steps"]))
    runs = steps(key, config, stream, *pair)
    runs["whole"] = whole_steps(key, config, stream, *pair)
    medians = {name: median(values[WARM:]) for name, values in runs.items()}
    ratios = {
        "projection": medians["projection"] / medians["alone"],
        "published projection": medians["published"] / medians["alone"],
        **{f"first {way}": first["published"][way] / first["ours"][way] for way in first["ours"]},
    }
    return timed_record(
        "straight-through estimator",
        began,
        blas=blas(),
        load=load_before,
        config=config,
        medians=medians,
        first=first,
        ratios=ratios,
        targets=[target(name, ratios[name]) for name in TARGETS],
        runs=runs,
    )


def target(name: str, value: float) -> dict:
    """A figure beside what it should be."""
    sign, bound = TARGETS[name]
    met = value <= bound if sign == "≤" else value >= bound
    return {"what": name, "sign": sign, "bound": bound, "value": value, "met": met}


def lines(record: dict) -> Iterator[str]:
    """The record as text."""
    for name, value in record["medians"].items():
        yield f"{name:12} " + (f"{value:.0f} units" if name == "moved" else f"{1e3 * value:.1f} ms")
    for name, way in record["first"].items():
        yield f"first match, {name:9} cold {way['cold']:.3f} s, warm {way['warm']:.3f} s"
    for t in record["targets"]:
        met = "met" if t["met"] else "NOT MET"
        yield f"{t['what']:12} {t['sign']} {t['bound']:g}: {t['value']:.3f}  {met}"
    yield f"load before: {record['load']}; {record['seconds']:.0f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small networks, and no record")
    parser.add_argument("--out", type=Path, help=f"where to write the record ({RECORD})")
    options = parser.parse_args(arguments)
    record = benchmark(QUICK if options.quick else CONFIG)
    print(*lines(record), sep="\n")
    out = options.out or (None if options.quick else RECORD)
    if out:
        print(f"wrote {write_record(out, record)}")


if __name__ == "__main__":
    main()
