"""Everything that must hold: `python -m tools.check [STEP ...]`.

All steps run, also after one that failed, so that one look shows all there is to fix. What JAX
compiles in one process, the others of the same run take over; nothing is left for the next run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tools.project import ROOT


@dataclass(frozen=True)
class Step:
    name: str
    claim: str  # what holds if the step passes
    command: str  # what Python runs as a module; "{workers}" stands for how many processes may run


STEPS = [
    Step(
        "lint",
        "notebooks, modules, tests and tools are in style",
        "ruff check --quiet --output-format concise .",
    ),
    Step(
        "generated",
        "modules, tests, README and badges are what the notebooks give",
        "tools.generate --check",
    ),
    Step(
        "stored",
        "stored outputs are not older than their code",
        "tools.notebooks stored",
    ),
    Step(
        "notebooks",
        "notebooks run, and give what is stored",
        "tools.notebooks check --workers {workers}",
    ),
    Step(
        "docs",
        "the site builds, and no link in it is broken",
        "tools.docs",
    ),
    Step(
        "types",
        "types hold, in the package, in the README and for who uses it",
        "tools.types_check",
    ),
    Step(
        "tests",
        "the tests pass",
        "pytest -q -n {workers} --dist worksteal",
    ),
]
FULL_RUN = [step for step in STEPS if step.name != "stored"]  # as `notebooks` does that as well


def alone(step: Step) -> bool:
    """Does the step use one process, so that another one can run beside it?"""
    return "{workers}" not in step.command


def passes(step: Step, workers: int) -> bool:
    """Run a step and report it; what it prints comes in one piece where others run beside."""
    start = time.perf_counter()
    command = [sys.executable, "-m", *step.command.format(workers=workers).split()]
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if alone(step) else {}
    if not kept:
        print(f"\n=== {step.name}: {step.claim}", flush=True)
    done = subprocess.run(command, cwd=ROOT, text=True, **kept)
    seconds = time.perf_counter() - start
    head = f"\n=== {step.name}: {step.claim}\n{done.stdout}" if kept else ""
    result = "FAILED" if done.returncode else "passed"
    print(f"{head}--- {step.name} {result} in {seconds:.0f} s", flush=True)
    return done.returncode == 0


def failures(steps: list[Step], workers: int) -> list[str]:
    """Run the steps, those of one process beside each other, then the others; name what failed."""
    steps = sorted(steps, key=alone, reverse=True)
    results: list[bool] = []
    with ThreadPoolExecutor(workers) as pool:
        results += pool.map(lambda step: passes(step, workers), filter(alone, steps))
    results += [passes(step, workers) for step in steps if not alone(step)]
    return [step.name for step, passed in zip(steps, results, strict=True) if not passed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help=", ".join(step.name for step in STEPS)
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    for name in set(options.steps) - {step.name for step in STEPS}:
        parser.error(f"there is no step {name!r}: choose of {', '.join(s.name for s in STEPS)}")
    steps = [step for step in STEPS if step.name in options.steps] or FULL_RUN
    with tempfile.TemporaryDirectory(prefix="compiled-") as folder:
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        failed = failures(steps, options.workers)
    if failed:
        print(f"\nFAILED: {', '.join(failed)}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
