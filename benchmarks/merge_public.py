"""`git-rebasin merge` of two checkpoints with the shapes of a large public network: time, memory.

    python benchmarks/merge_public.py sd1.5-unet                 and the record of it
    python benchmarks/merge_public.py sdxl-unet llama-3.2-1b --noise 0.3 --memory 2GB
    python benchmarks/merge_public.py sd1.5-unet --noise inf     B has nothing of A
    python benchmarks/merge_public.py --infer                    inference alone, of all

Model A has the names and shapes of the network (`nbs/architectures/reference/large`), drawn at
random in float16; model B is the same with noise on all weights, as large as `--noise` says in
parts of their spread, and with the units of all groups shuffled. The command gets the two and
nothing else: it recognises the network, infers the symmetry, matches by weights as they are read,
and writes the mean. Printed are its wall time, the most that it has resident (Linux: `VmHWM`),
and how many groups came back as they were.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path

import jax
import numpy as np
from weight_matching import resident

from git_rebasin.architectures.known import recognise
from git_rebasin.architectures.reference import CASES, read_shapes
from git_rebasin.checkpoints.late import LateArray
from git_rebasin.checkpoints.opened import Checkpoint
from git_rebasin.checkpoints.written import write_checkpoint
from git_rebasin.experiments.records import timed_record, write_record
from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.merging.files import load_permutations, permuted
from git_rebasin.symmetry.permutation import compose_permutations, random_permutation
from git_rebasin.symmetry.spec import BoundSpec

RECORDS = Path(__file__).parent / "records"
PREFIXES = {"sd1.5-unet": "model.diffusion_model.", "sdxl-unet": "model.diffusion_model."}
INFERRED = RECORDS / "infer_public.json"


def spec_of(name: str) -> tuple[BoundSpec, dict, float]:
    """The spec of a network, its configuration, and the seconds until it is known and inferred."""
    shapes, settings = read_shapes(name)
    arrays = {n: jax.ShapeDtypeStruct(s, np.float16) for n, s in shapes.items()}
    began = time.perf_counter()
    own = recognise(arrays)
    if own is None:
        raise ValueError(f"{name} is not recognised")
    config = own.config_of(arrays, settings)
    fn = partial(own.apply, config=config)
    spec = infer_permutation_spec(fn, arrays, *own.example(config), verify=False)
    return spec, settings, time.perf_counter() - began


def drawn(name: str, shape: tuple[int, ...], noise: float) -> LateArray:
    """An array of random numbers in float16, drawn when it is read; with noise, or noise alone."""

    def read() -> np.ndarray:
        seed = zlib.crc32(name.encode())
        x = np.random.default_rng([0, seed]).standard_normal(shape, np.float32)
        if math.isinf(noise):
            x = np.random.default_rng([1, seed]).standard_normal(shape, np.float32)
        elif noise:
            x += noise * np.random.default_rng([1, seed]).standard_normal(shape, np.float32)
        scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
        return (scale * x + (len(shape) == 1 and name.endswith("weight"))).astype(np.float16)

    return LateArray(shape, np.dtype(np.float16), read, ("drawn", name, shape, noise))


def write_pair(folder: Path, name: str, spec: BoundSpec, settings: dict, noise: float) -> dict:
    """Both models as folders of files; the planted permutation of B."""
    moves = random_permutation(jax.random.key(0), spec)
    plant = {group: np.asarray(p) for group, p in moves.items()}
    models = [{n: drawn(n, s, part) for n, s in spec.shapes.items()} for part in (0.0, noise)]
    for letter, model in zip("ab", (models[0], permuted(spec, plant, models[1])), strict=True):
        like = Checkpoint(folder, "safetensors", model, prefix=PREFIXES.get(name, ""))
        write_checkpoint(folder / letter, model, like)
        (folder / letter / "config.json").write_text(json.dumps(settings))
    return plant


def run(argv: list[str]) -> tuple[int, float, int]:
    """Exit code, seconds and the most resident bytes of a command."""
    began = time.perf_counter()
    child, peak = subprocess.Popen([sys.executable, "-m", "git_rebasin", *argv]), 0
    while child.poll() is None:  # its ru_maxrss would count what this process had when it began
        time.sleep(0.1)
        peak = max(peak, resident("VmHWM", child.pid) or 0)
    return child.returncode, time.perf_counter() - began, peak


def recovered(file: Path, spec: BoundSpec, plant: dict[str, np.ndarray]) -> int:
    """How many groups are back in their places."""
    _, (perm,) = load_permutations(file)
    both = compose_permutations(spec, perm, plant)
    found = map(np.asarray, both.values())
    return sum(np.array_equal(p, np.broadcast_to(np.arange(p.shape[-1]), p.shape)) for p in found)


def measure(name: str, noise: float, memory: str) -> dict:
    """Draw, write, merge and check one pair."""
    spec, settings, seconds = spec_of(name)
    size = sum(math.prod(shape) for shape in spec.shapes.values())
    row = {"network": name, "parameters": size, "groups": len(spec.groups)}
    row |= {"noise": None if math.isinf(noise) else noise}
    row |= {"inference_seconds": seconds, "memory": memory}
    with tempfile.TemporaryDirectory() as d:
        place = Path(d)
        plant = write_pair(place, name, spec, settings, noise)
        print(f"{name}: {size:,} parameters, {len(spec.groups)} groups, written", flush=True)
        argv = ["merge", str(place / "a"), str(place / "b"), "-o", str(place / "out")]
        code, row["seconds"], row["peak_bytes"] = run([*argv, "--memory", memory])
        if code:
            raise RuntimeError(f"the command ended with exit code {code}")
        row["recovered"] = recovered(place / "out/permutation.safetensors", spec, plant)
    return row


def main() -> None:
    """Measure, print, and keep the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = sorted(path.stem for path in (CASES / "large").glob("*.json"))
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=", ".join(known))
    parser.add_argument("--noise", type=float, default=0.3, help="in parts of the weights' spread")
    parser.add_argument("--memory", default="2GB", help="as the command takes it")
    parser.add_argument("--infer", action="store_true", help="infer the symmetry of all, no more")
    parser.add_argument("--no-record", action="store_true", help="print, and keep nothing")
    options = parser.parse_args()
    began = time.perf_counter()
    if options.infer or not options.names:
        rows = []
        for name in known:
            spec, _, seconds = spec_of(name)
            size = sum(math.prod(shape) for shape in spec.shapes.values())
            rows.append({"network": name, "parameters": size, "groups": len(spec.groups)})
            rows[-1] |= {"seconds": seconds, "log10_symmetries": spec.log10_symmetries}
            print(f"{name}: {len(spec.groups)} groups in {seconds:.2f} s", flush=True)
        if not options.no_record:
            print(write_record(INFERRED, timed_record("infer_public", began, result=rows)))
    for name in options.names:
        began = time.perf_counter()
        row = measure(name, options.noise, options.memory)
        print(
            f"{name}: merged in {row['seconds']:.0f} s, at most {row['peak_bytes'] / 1e9:.2f} GB "
            f"resident, {row['recovered']} of {row['groups']} groups recovered"
        )
        if not options.no_record:
            apart = "_unrelated" if math.isinf(options.noise) else ""
            path = RECORDS / f"merge_public_{name}{apart}.json"
            print(write_record(path, timed_record("merge_public", began, result=row)))


if __name__ == "__main__":
    main()
