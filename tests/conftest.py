"""Strict mode: tests run on the CPU, warnings are errors, ranks of arrays do not mix unnoticed."""

import ctypes
import gc
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports JAX. The processes that tests start inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "agg"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # in workers it is, from the process above them
    CACHE = tempfile.TemporaryDirectory(prefix="compiled-")  # which goes when this process ends
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import run_time_types

run_time_types.install()
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes, and runs with --slow only")
    config.addinivalue_line("markers", "tpu: needs a TPU")
    # The last line that fits a warning counts.
    for rule in ["error", *ALLOWED_WARNINGS]:
        config.addinivalue_line("filterwarnings", rule)


# Warnings that only a third party can fix, each with the reason why it is let pass.
ALLOWED_WARNINGS: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow: run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
    if jax.default_backend() != "tpu":
        for item in items:
            if "tpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a TPU"))


# ---- memory and time

MAX_MEMORY = 2.0  # GB: what a process of tests may hold at most
OPTIMIZED = {"test_zoo_resnet.py", "test_zoo_train.py", "test_zoo_vgg.py"}  # train for long


@pytest.fixture(autouse=True, scope="module")
def compiled_functions(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the tests of a file compile is freed at its end, and optimized only where it runs long:
    that is half of the time of compiling, and most functions run once or twice.
    """
    before = peak_memory()
    jax.config.update("jax_disable_most_optimizations", request.path.name not in OPTIMIZED)
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":  # where what is freed stays with the process if nobody asks for it
        ctypes.CDLL(None).malloc_trim(0)
    if before <= MAX_MEMORY < (peak := peak_memory()):
        pytest.fail(f"a test process held {peak:.1f} GB, and may hold {MAX_MEMORY:.1f}")


def peak_memory() -> float:
    """The most that this process has held, in GB, or 0 where the system does not report it.

    `getrusage` would count what the process that started this one held.
    """
    status = Path("/proc/self/status")
    text = status.read_text(encoding="utf-8") if status.exists() else ""
    match = re.search(r"^VmHWM:\s*(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 / 1e9 if match else 0.0
