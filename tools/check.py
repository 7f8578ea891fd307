"""Everything that must hold: `python -m tools.check [STEP ...]`.

All steps run, also after one that failed, so that one look shows all there is to mend. What JAX
compiles in one process, the others of the same run take over; nothing is left for the next run.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
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
        "tests",
        "the tests pass",
        "pytest -q -n {workers} --dist worksteal",
    ),
]
FULL_RUN = [step for step in STEPS if step.name != "stored"]  # as `notebooks` does that as well


def passes(step: Step, title: str, workers: int) -> bool:
    print(f"\n=== {title}: {step.claim}", flush=True)
    start = time.perf_counter()
    command = [sys.executable, "-m", *step.command.format(workers=workers).split()]
    passed = subprocess.run(command, cwd=ROOT).returncode == 0
    seconds = time.perf_counter() - start
    print(f"--- {step.name} {'passed' if passed else 'FAILED'} in {seconds:.0f} s", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help=", ".join(step.name for step in STEPS)
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    steps = [step for step in STEPS if step.name in options.steps] or FULL_RUN
    with tempfile.TemporaryDirectory(prefix="compiled-") as folder:
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        failed = [
            step.name
            for number, step in enumerate(steps, 1)
            if not passes(step, f"{number}/{len(steps)} {step.name}", options.workers)
        ]
    if failed:
        print(f"\nFAILED: {', '.join(failed)}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
