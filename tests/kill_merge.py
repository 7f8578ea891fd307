"""Merges that are killed at random moments and called again: they end with the same bytes.

    python tests/kill_merge.py 30                30 merges, each killed once or more
    python tests/kill_merge.py 30 --seed 7       at other moments
    python tests/kill_merge.py 30 --models 4     merges of four
    python tests/kill_merge.py 30 --match        matches of two in their place

Two models or more of a chain of layers, those after the first with their units in another order and
some noise, are merged by weights in a process of its own. It is killed at a random moment of the
time that a whole merge takes (SIGKILL, which nothing can catch), then called again, and killed
again with probability one half, until it ends. The merged model and the permutation must be what a
merge that was left alone writes, byte for byte, and nothing else may lie in the folder.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from git_rebasin.checkpoints.safetensors_files import write_safetensors
from git_rebasin.symmetry.spec import PermutationSpec

OUT = ["-o", "m.safetensors", "--spec", "spec.json"]


def write_models(folder: Path, count: int, layers: int, width: int) -> list[str]:
    """Models of a chain of layers, and its spec; the models' names."""
    rng = np.random.default_rng(0)
    names = {f"w{k}": (f"P{k - 1}" if k else None, f"P{k}") for k in range(layers)}
    (folder / "spec.json").write_text(PermutationSpec(names).to_json())
    files, a = [], {n: rng.normal(size=(width, width)).astype(np.float32) for n in names}
    for i in range(count):
        orders = [np.arange(width), *(rng.permutation(width) for _ in range(layers))]
        own = {n: x[orders[k]][:, orders[k + 1]] for k, (n, x) in enumerate(a.items())}
        own = {n: x + 2 * rng.normal(size=x.shape).astype(np.float32) for n, x in own.items()}
        files.append(f"{chr(ord('a') + i)}.safetensors")
        write_safetensors(folder / files[-1], own if i else a)
    return files


def merge(folder: Path, argv: list[str], limit: float | None = None) -> tuple[int, bool]:
    """A merge, killed after so many seconds: its exit code, and whether it went on from a state."""
    process = subprocess.Popen(
        [sys.executable, "-m", "git_rebasin", *argv, *OUT, "--quiet", "--verbose"],
        cwd=folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, told = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        _, told = process.communicate()
    return process.returncode, "going on after" in told


def try_once(
    source: Path, argv: list[str], seconds: float, rng: random.Random
) -> tuple[int, int, dict[str, bytes]]:
    """A merge, killed until chance lets it end: how often, how often it went on, what it leaves."""
    with tempfile.TemporaryDirectory() as d:
        folder = Path(d, "merge")
        shutil.copytree(source, folder)
        kills = resumed = 0
        while kills == 0 or rng.random() < 0.5:
            code, went_on = merge(folder, argv, rng.uniform(0, seconds))
            resumed += went_on
            if code != -signal.SIGKILL:
                break
            kills += 1
        code, went_on = merge(folder, argv)
        if code != 0:
            raise SystemExit(f"the merge ended with {code}, after {kills} kills")
        return (
            kills,
            resumed + went_on,
            {path.name: path.read_bytes() for path in sorted(folder.iterdir())},
        )


def main(argv: list[str] | None = None) -> None:
    """Kill merges, and compare what they end with."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("count", type=int, help="merges that are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--models", type=int, default=2, help="of each merge")
    parser.add_argument("--match", action="store_true", help="match two models, and merge none")
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as d:
        source, whole = Path(d, "source"), Path(d, "whole")
        source.mkdir()
        files = write_models(source, args.models, args.layers, args.width)
        argv = ["match" if args.match else "merge", *files]
        shutil.copytree(source, whole)
        start = time.monotonic()
        if (code := merge(whole, argv)[0]) != 0:
            raise SystemExit(f"the merge that was left alone ended with {code}")
        seconds = time.monotonic() - start
        want = {path.name: path.read_bytes() for path in sorted(whole.iterdir())}
        if "m.safetensors" not in want:
            raise SystemExit(f"the merge that was left alone wrote {sorted(want)}")
        total = resumed = 0
        for k in range(args.count):
            kills, went_on, found = try_once(source, argv, seconds, rng)
            total, resumed = total + kills, resumed + went_on
            if not kills:
                print(f"merge {k} ended before it was killed", file=sys.stderr)
            if found.keys() != want.keys():
                raise SystemExit(f"merge {k}: there are {sorted(found)}, for {sorted(want)}")
            if wrong := [name for name in want if want[name] != found[name]]:
                raise SystemExit(f"merge {k}: other bytes in {', '.join(wrong)}")
    what = "matches" if args.match else f"merges of {args.models} models"
    each = f"{args.count} {what}, of {seconds:.1f} s each, killed {total} times at random moments"
    went_on = f"{resumed} calls went on from the state of a search"
    print(f"{each}; {went_on}; all ended with the same bytes, and left nothing else")


if __name__ == "__main__":
    main()
