"""The types and shapes that the core's functions state, checked as the tests run them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
import pytest
from beartype import BeartypeConf, beartype

CHECKED = ["architectures", "checkpoints", "inference", "interpolation", "jaxprs", "matching"]
CHECKED += ["progress", "statistics", "symmetry", "tree"]

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float too, says PEP 484


def install() -> None:
    """Check the core from now on: this before anything imports it.

    A test gives wrong values on purpose within `pytest.raises`, and looks for the error that users
    see, who run the package without checks. So nothing is checked there.
    """
    jaxtyping.install_import_hook([f"git_rebasin.{m}" for m in CHECKED], f"{__name__}.checker")
    plain = pytest.raises

    @contextmanager
    def raises(*args: Any, **kwargs: Any) -> Iterator[pytest.ExceptionInfo]:
        before = jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            with plain(*args, **kwargs) as info:
                yield info
        finally:
            jaxtyping.config.update("jaxtyping_disable", before)

    pytest.raises = raises
