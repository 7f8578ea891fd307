"""Strict mode: tests run on the CPU, warnings are errors, ranks of arrays do not mix unnoticed."""

import os

import pytest

# Before anything imports JAX. The processes that tests start inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ["MPLBACKEND"] = "agg"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes, and runs with --slow only")
    config.addinivalue_line("markers", "tpu: needs a TPU")
    # The last line that fits a warning counts.
    for rule in ["error", *ALLOWED_WARNINGS]:
        config.addinivalue_line("filterwarnings", rule)


# Warnings that only a third party can mend, each with the reason why it is let pass.
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
