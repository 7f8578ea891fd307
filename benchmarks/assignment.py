"""The compiled assignment solver against scipy's: milliseconds, and how many times faster it is.

For each kind of scores and each size, the best of a few runs, both solvers in turn in one process.
"""

import time

import numpy as np

from git_rebasin.matching.assignment import assignment_backend, linear_assignment

SIZES = [64, 256, 512, 1024, 2048]


def normal(rng, n):
    return rng.normal(size=(n, n))


def integers(rng, n):
    return rng.integers(0, 100, size=(n, n)).astype(float)


def planted(rng, n):
    """Inner products of units with noisy copies of themselves in another order."""
    units = rng.normal(size=(n, n))
    return units @ (units[rng.permutation(n)] + 0.5 * rng.normal(size=(n, n))).T


def seconds(scores: np.ndarray, backend: str, runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        linear_assignment(scores, backend=backend)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    if assignment_backend() != "c":
        print("the compiled solver is not in use: nothing to compare")
        return
    linear_assignment(np.eye(2), backend="scipy")  # the import is not part of the comparison
    print(f"{'scores':10} {'dtype':8} {'n':>5} {'scipy ms':>10} {'c ms':>8} {'ratio':>7}")
    for kind in (normal, integers, planted):
        for n in SIZES:
            wide = kind(np.random.default_rng(n), n)
            for dtype in (np.float32, np.float64):
                scores = wide.astype(dtype)
                ours = seconds(scores, "c", 3)
                theirs = seconds(scores, "scipy", 3 if n < 512 else 1)
                print(
                    f"{kind.__name__:10} {dtype.__name__:8} {n:5} {theirs * 1e3:10.2f} "
                    f"{ours * 1e3:8.2f} {theirs / ours:6.1f}x"
                )


if __name__ == "__main__":
    main()
