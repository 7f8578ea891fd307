"""Time of `import git_rebasin` on top of `import jax`: medians over fresh processes, as a ratio.

Exits with 1 where it is more than 0.3 s, which is the promise.
"""

import statistics
import subprocess
import sys

PROMISE = 0.3  # seconds more than `import jax`
TIMED = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def seconds(modules: str, runs: int = 7) -> float:
    """The median time of an import, after one run that fills the caches of the file system."""
    command = [sys.executable, "-c", TIMED.format(modules)]
    times = [
        float(subprocess.run(command, capture_output=True, check=True).stdout)
        for _ in range(runs + 1)
    ]
    return statistics.median(times[1:])


def main() -> int:
    jax, both = seconds("jax"), seconds("jax, git_rebasin")
    print(f"import jax               {jax:.3f} s")
    print(f"import jax, git_rebasin  {both:.3f} s   ({both / jax:.2f} ×, {both - jax:+.3f} s)")
    return 0 if both - jax <= PROMISE else 1


if __name__ == "__main__":
    sys.exit(main())
