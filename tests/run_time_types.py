"""The types and shapes that the core's functions state, checked as the tests run them."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

import jaxtyping
import pytest
from beartype import BeartypeConf, beartype

CHECKED = ["architectures", "checkpoints", "inference", "interpolation", "jaxprs", "matching"]
CHECKED += ["merging", "progress", "statistics", "symmetry", "tree"]

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float too, says PEP 484
with_shapes = jaxtyping.jaxtyped


def install() -> None:
    """Check the core from now on: this before anything imports it.

    A test gives wrong values on purpose within `pytest.raises`, and looks for the error that users
    see, who run the package without checks. So nothing is checked there.
    """
    jaxtyping.install_import_hook([f"git_rebasin.{m}" for m in CHECKED], f"{__name__}.checker")
    jaxtyping.jaxtyped = checked
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


def checked(*, typechecker: Callable) -> Callable:
    """What the import hook decorates with: jaxtyping where shapes are stated, beartype elsewhere.

    A call through jaxtyping takes ten times as long, and inference calls small functions often. A
    function within another is made anew at every call, and its check would be too: it has none.
    """

    def decorate(fn: Any) -> Any:
        if "<locals>" in getattr(fn, "__qualname__", ""):
            return fn
        if not inspect.isfunction(fn) or _needs_jaxtyping(fn):
            return with_shapes(fn, typechecker=typechecker)
        return _checked_by_type(fn) if fn.__annotations__ else fn

    return decorate


def _needs_jaxtyping(fn: Callable) -> bool:
    """Whether annotations hold shapes, which are texts, trees, or names not defined yet."""
    try:
        get_type_hints(fn)
    except Exception:
        return True
    return any("'" in str(own) or "PyTree" in str(own) for own in fn.__annotations__.values())


def _checked_by_type(fn: Callable) -> Callable:
    own = checker(fn)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (fn if jaxtyping.config.jaxtyping_disable else own)(*args, **kwargs)

    return call
