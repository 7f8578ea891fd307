"""Every solver of the assignment problem that is there, over kinds, sizes and dtypes, against scipy
and against all permutations.

All of them answer in float64 precision, whatever the dtype of the scores, so two of them agree in
value up to a few roundings of float64 per place; the permutations agree where one is best.
"""

import ctypes
import importlib.machinery
import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from git_rebasin import native
from git_rebasin.matching import assignment
from git_rebasin.symmetry import gather
from git_rebasin.matching.assignment import (
    RepeatedAssignment,
    assignment_backend,
    linear_assignment,
    linear_assignments,
)

ROOT = Path(__file__).resolve().parent.parent
BUILT = assignment._assignment is not None
needs_c = pytest.mark.skipif(not BUILT, reason="the compiled solver was not built")
each_backend = pytest.mark.parametrize("backend", [pytest.param("c", marks=needs_c), "scipy"])

SIZES = [0, 1, 2, 3, 17, 63, 64, 65, 200]


def normal(rng, n):
    return rng.normal(size=(n, n))


def few_values(rng, n):
    return rng.integers(0, 4, size=(n, n)).astype(float)


def many_integers(rng, n):
    return rng.integers(-1000, 1000, size=(n, n)).astype(float)


def all_equal(rng, n):
    return np.full((n, n), -2.5)


def zero(rng, n):
    return np.zeros((n, n))


def negative(rng, n):
    return -rng.exponential(size=(n, n))


def huge(rng, n):
    return rng.normal(size=(n, n)) * 1e30


def largest(rng, n):
    return rng.uniform(-3.4e38, 3.4e38, size=(n, n))


def tiny(rng, n):
    return rng.normal(size=(n, n)) * 1e-30


def denormal(rng, n):
    return rng.integers(-99, 99, size=(n, n)) * 2.0**-149


def mixed(rng, n):
    return rng.normal(size=(n, n)) * 10.0 ** rng.integers(-15, 15, size=(n, n))


def mixed_rows_and_columns(rng, n):
    rows, columns = 10.0 ** rng.uniform(-8, 8, size=(2, n))
    return rng.normal(size=(n, n)) * rows[:, None] + columns


def shifted(rng, n):
    return 1e6 + rng.normal(size=(n, n))


def forbidden(rng, n):
    return np.where(rng.uniform(size=(n, n)) < 0.5, -1e30, rng.normal(size=(n, n)))


def products(rng, n):  # the longest searches
    return -np.multiply.outer(np.arange(1.0, n + 1), np.arange(1.0, n + 1))


def planted(rng, n):
    a = rng.normal(size=(n, n))
    return a @ (a[rng.permutation(n)] + 0.3 * rng.normal(size=(n, n))).T


KINDS = [
    normal,
    few_values,
    many_integers,
    all_equal,
    zero,
    negative,
    huge,
    largest,
    tiny,
    denormal,
    mixed,
    mixed_rows_and_columns,
    shifted,
    forbidden,
    products,
    planted,
]
UNIQUE = {normal, negative, huge, tiny, planted}  # one best permutation, and by a clear margin

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def value(scores, permutation) -> float:
    """In units of the largest score, as the sum of the largest would not be a number."""
    wide = np.asarray(scores).astype(np.float64)
    return float((wide / largest_of(wide))[np.arange(len(permutation)), permutation].sum())


def largest_of(scores) -> float:
    return float(np.abs(scores).max(initial=0.0)) or 1.0


def oracle(scores):
    wide = np.asarray(scores).astype(np.float64)
    return linear_sum_assignment(wide / largest_of(wide), maximize=True)[1]


def assert_best(scores, got, expected) -> None:
    n = len(scores)
    assert got.dtype == np.int32 and got.shape == (n,)
    assert sorted(got) == list(range(n))
    roundings = 8 * n * np.finfo(np.float64).eps
    assert abs(value(scores, got) - value(scores, expected)) <= roundings


# ---- answers


@each_backend
@each_kind
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_answers_are_best(backend, kind, dtype):
    for n in SIZES:
        scores = kind(np.random.default_rng([n, KINDS.index(kind)]), n).astype(dtype)
        before = scores.copy()
        got, expected = linear_assignment(scores, backend=backend), oracle(scores)
        assert_best(scores, got, expected)
        if kind in UNIQUE:
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(scores, before)
        np.testing.assert_array_equal(got, linear_assignment(scores, backend=backend))


@each_backend
@each_kind
def test_no_permutation_is_better(backend, kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for n in range(7):
        scores = kind(rng, n).astype(np.float32)
        best = max(itertools.permutations(range(n)), key=lambda p: value(scores, list(p)))
        assert_best(scores, linear_assignment(scores, backend=backend), list(best))


@each_backend
@pytest.mark.parametrize("exponent", [-320, -300, 300, 307])
def test_the_ends_of_float64(backend, exponent):
    scores = np.random.default_rng(0).uniform(-1.5, 1.5, size=(30, 30)) * 10.0**exponent
    assert_best(scores, linear_assignment(scores, backend=backend), oracle(scores))


@each_backend
@pytest.mark.parametrize(
    "dtype",
    [np.float16, ml_dtypes.bfloat16, np.int8, np.uint16, np.int32, np.int64, np.bool_, ">f4"],
    ids=str,
)
def test_other_dtypes(backend, dtype):
    scores = (np.random.default_rng(0).normal(size=(40, 40)) * 50 + 100).clip(0, 127).astype(dtype)
    assert_best(scores, linear_assignment(scores, backend=backend), oracle(scores))


@each_backend
def test_other_layouts_in_memory(backend):
    wide = np.random.default_rng(0).normal(size=(60, 60)).astype(np.float32)
    buffer = bytearray(1 + 20 * 20 * 4)
    unaligned = np.frombuffer(buffer, np.float32, offset=1).reshape(20, 20)
    unaligned[:] = wide[:20, :20]
    read_only = wide.copy()
    read_only.flags.writeable = False
    for scores in (wide[::3, 1::3], np.asfortranarray(wide), wide[::-1], unaligned, read_only):
        before = scores.copy()
        assert_best(scores, linear_assignment(scores, backend=backend), oracle(scores))
        np.testing.assert_array_equal(scores, before)
    scores = wide.tolist()
    assert_best(scores, linear_assignment(scores, backend=backend), oracle(scores))


@needs_c
def test_ties_go_the_same_way_whatever_the_scale():
    """Powers of two round nothing, so the paths through all code for extreme scores agree."""
    scores = few_values(np.random.default_rng(0), 90)
    expected = linear_assignment(scores, backend="c")
    for dtype, exponent in [(float, 600), (float, -1070), (np.float32, 120), (np.float32, -149)]:
        scaled = np.ldexp(scores, exponent).astype(dtype)
        np.testing.assert_array_equal(linear_assignment(scaled, backend="c"), expected)
    narrow = linear_assignment(scores.astype(np.float32), backend="c")
    np.testing.assert_array_equal(narrow, expected)


# ---- many at once


@each_backend
@pytest.mark.parametrize("shape", [(5,), (2, 3), (), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("n", [0, 1, 7, 65])
def test_many_are_as_one_by_one(backend, shape, n):
    scores = np.random.default_rng(n).normal(size=(*shape, n, n))
    got = linear_assignments(scores, backend=backend)
    assert got.shape == (*shape, n) and got.dtype == np.int32
    for index in np.ndindex(shape):
        np.testing.assert_array_equal(got[index], linear_assignment(scores[index], backend=backend))


@each_backend
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_many_may_differ_in_scale(backend, dtype):
    scales = [1e-300, 1.0, 1e300, 1e308, 0.0, 5e-324, 1.0]
    if dtype == np.float32:
        scales = [1e-30, 1.0, 1e30, 1e38, 0.0, 1e-45, 1.0]
    unit = np.random.default_rng(0).uniform(-1, 1, size=(len(scales), 20, 20))
    many = (unit * np.array(scales)[:, None, None]).astype(dtype)
    got = linear_assignments(many, backend=backend)
    for scores, permutation in zip(many, got, strict=True):
        assert_best(scores, permutation, oracle(scores))


@each_backend
def test_threads(backend):
    problems = [
        normal(np.random.default_rng(k), n).astype(dtype)
        for k, n in enumerate([5, 64, 120, 150])
        for dtype in (np.float32, np.float64)
    ]
    expected = [linear_assignment(scores, backend=backend) for scores in problems]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda s: linear_assignment(s, backend=backend), problems * 5))
    for a, b in zip(got, expected * 5, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- the same problem again


def drifting(rng, kind, n, dtype):
    """A problem whose scores change: a little, not at all, in level, in size, and altogether."""
    scores = kind(rng, n)
    yield scores.astype(dtype)
    for share in (1e-6, 1e-3, 0.1, 0.0):
        with np.errstate(over="ignore"):
            scores = scores * (1 + share * rng.uniform(-1, 0, size=scores.shape))
        yield scores.astype(dtype)
    yield scores.astype(dtype) / 2
    yield (scores[rng.permutation(n)] / 4).astype(dtype)
    yield (scores / 1024 - 0.5 * np.abs(scores).max(initial=0.0)).astype(dtype)
    yield kind(rng, n).astype(dtype)


@each_backend
@each_kind
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_answers_to_a_changing_problem_are_best(backend, kind, dtype):
    for n in SIZES:
        problem = RepeatedAssignment(backend)
        for scores in drifting(np.random.default_rng([n, KINDS.index(kind)]), kind, n, dtype):
            before = scores.copy()
            got, expected = problem.solve(scores), oracle(scores)
            assert_best(scores, got, expected)
            np.testing.assert_array_equal(scores, before)


@each_backend
def test_a_changing_problem_may_change_its_size_and_be_refused_once(backend):
    problem, rng = RepeatedAssignment(backend), np.random.default_rng(0)
    for n, scale in [(5, 1.0), (70, 1.0), (70, 1e30), (70, 1e-30), (70, 0.0), (70, 1.0), (3, 1.0)]:
        scores = scale * rng.normal(size=(n, n))
        assert_best(scores, problem.solve(scores), oracle(scores))
        bad = scores.copy()
        bad[1, 2] = np.nan
        with pytest.raises(ValueError, match=r"scores\[1, 2\] is nan"):
            problem.solve(bad)
        assert_best(scores, problem.solve(scores), oracle(scores))
    with pytest.raises(ValueError, match="as many units as places"):
        problem.solve(np.zeros((2, 3, 3)))


@each_backend
def test_an_answer_is_the_callers(backend):
    problem, scores = RepeatedAssignment(backend), normal(np.random.default_rng(0), 30)
    got = problem.solve(scores)
    kept = got.copy()
    got[:] = 0
    np.testing.assert_array_equal(problem.solve(scores), kept)


@each_backend
@each_kind
def test_the_same_scores_again_have_the_same_answer(backend, kind):
    problem, scores = RepeatedAssignment(backend), kind(np.random.default_rng(0), 80)
    got = problem.solve(scores)
    for _ in range(3):
        np.testing.assert_array_equal(problem.solve(scores), got)


@needs_c
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_whatever_the_extension_is_to_start_from(dtype):
    n = 70
    scores = planted(np.random.default_rng(0), n).astype(dtype)
    expected, every = oracle(scores), np.arange(n, dtype=np.int32)
    starts = [every, every * 0, every - 1, every + 1, every[::-1] * 1000, expected.astype("i4")]
    prices = [0.0, -3.0, np.nan, np.inf, -np.inf, 1e300, 5e-324, float(scores.max())]
    for unit, price in itertools.product(starts, prices):
        out, given = unit.copy()[None], np.full((1, n), price)
        assert assignment._assignment.solve(scores[None], out, given, True) == 1
        np.testing.assert_array_equal(out[0], expected)
        slack = given - scores  # the proof, of another: every place has its least slack
        assert np.all(slack[every, out[0]] <= slack.min(1) + 1e-9 * np.abs(scores).max())


# ---- errors


@each_backend
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_not_finite_is_named(backend, bad, dtype):
    scores = np.zeros((3, 70, 70), dtype)
    scores[1, 69, 2] = bad
    with pytest.raises(ValueError, match=rf"scores\[1, 69, 2\] is {bad}: every score"):
        linear_assignments(scores, backend=backend)
    with pytest.raises(ValueError, match=rf"scores\[69, 2\] is {bad}: every score"):
        linear_assignment(scores[1], backend=backend)
    with pytest.raises(ValueError, match=rf"scores\[0, 0\] is {bad}: every score"):
        linear_assignment(np.full((1, 1), bad, dtype), backend=backend)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 1), (2, 2, 3)], ids=str)
def test_what_is_not_square_is_refused(shape):
    for solve in (linear_assignment, linear_assignments):
        with pytest.raises(ValueError, match="as many units as places"):
            solve(np.zeros(shape))


def test_complex_scores_are_refused():
    with pytest.raises(TypeError, match="complex128"):
        linear_assignment(np.eye(3) * 1j)


def test_unknown_backends_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="'fortran'"):
        linear_assignment(np.eye(3), backend="fortran")
    monkeypatch.setenv("GIT_REBASIN_ASSIGNMENT", "cobol")
    with pytest.raises(ValueError, match="'cobol'"):
        linear_assignment(np.eye(3))


@needs_c
def test_the_extension_checks_what_it_is_given():
    solve, scores, out = assignment._assignment.solve, np.zeros((2, 3, 3)), np.zeros((2, 3), "i4")
    assert solve(scores, out) == 2
    for bad, error in [
        ((scores[0], out), ValueError),
        ((scores[:, :2], out), ValueError),
        ((scores[:1], out), ValueError),
        ((scores[:, ::-1], out), ValueError),
        ((scores, out[0]), ValueError),
        ((scores, out[:, :2].copy()), ValueError),
        ((scores.astype("f2"), out), TypeError),
        ((scores.astype("i8"), out), TypeError),
        ((scores, out.astype("f4")), TypeError),
        ((scores, out.astype("i8")), TypeError),
        ((scores, bytes(24)), (TypeError, ValueError, BufferError)),
        ((scores,), TypeError),
        ((None, out), TypeError),
        ((scores, out, np.zeros((2, 3), "f4"), True), TypeError),
        ((scores, out, np.zeros((2, 2)), True), ValueError),
        ((scores, out, np.zeros(6), True), ValueError),
    ]:
        with pytest.raises(error):
            solve(*bad)


@needs_c
def test_the_extension_reads_nothing_that_it_writes_to():
    solve, memory = assignment._assignment.solve, np.zeros(100)
    scores, out, prices = memory[:32].reshape(2, 4, 4), np.zeros((2, 4), "i4"), np.zeros((2, 4))
    assert solve(scores, memory[32:36].view("i4").reshape(2, 4), memory[36:44].reshape(2, 4)) == 2
    for given in [
        (scores, memory[31:35].view("i4").reshape(2, 4), prices),
        (scores, out, memory[24:32].reshape(2, 4)),
        (scores, memory[40:44].view("i4").reshape(2, 4), memory[36:44].reshape(2, 4)),
    ]:
        with pytest.raises(ValueError, match="share memory"):
            solve(*given, True)


@needs_c
def test_the_extension_takes_native_arrays_only_and_aligned_ones():
    solve, scores, out = assignment._assignment.solve, np.zeros((1, 3, 3)), np.zeros((1, 3), "i4")
    assert solve((ctypes.c_float * 3 * 3 * 1)(), out) == 1  # of format "<f"
    unaligned = np.frombuffer(bytes(1 + scores.nbytes), float, 9, 1).reshape(1, 3, 3)
    for given, error in [
        ((scores.astype(">f8"), out), TypeError),
        ((scores, out.astype(">i4")), TypeError),
        ((scores, out, np.zeros((1, 3), ">f8")), TypeError),
        ((unaligned, out), ValueError),
    ]:
        with pytest.raises(error):
            solve(*given)


@needs_c
def test_the_extension_asks_for_no_memory_where_there_is_nothing():
    solve, n = assignment._assignment.solve, 2**27
    scores = np.lib.stride_tricks.as_strided(np.zeros(0), (0, n, n))
    out = np.lib.stride_tricks.as_strided(np.zeros(0, "i4"), (0, n))
    assert solve(scores, out) == 0
    many = np.lib.stride_tricks.as_strided(np.zeros(0), (2**50, 0, 0))
    assert solve(many, np.lib.stride_tricks.as_strided(np.zeros(0, "i4"), (2**50, 0))) == 2**50


# ---- which solver


def test_the_environment_chooses(monkeypatch):
    monkeypatch.delenv("GIT_REBASIN_ASSIGNMENT", raising=False)
    assert assignment_backend() == ("c" if BUILT else "scipy")
    monkeypatch.setenv("GIT_REBASIN_ASSIGNMENT", "scipy")
    assert assignment_backend() == "scipy"


def test_without_the_extension(monkeypatch):
    monkeypatch.delenv("GIT_REBASIN_ASSIGNMENT", raising=False)
    monkeypatch.setattr(assignment, "_assignment", None)
    assert assignment_backend() == "scipy"
    np.testing.assert_array_equal(linear_assignment(np.eye(3)), [0, 1, 2])
    with pytest.raises(ImportError, match="install a C compiler"):
        linear_assignment(np.eye(3), backend="c")


@needs_c
def test_the_compiled_solver_needs_no_scipy():
    code = (
        "import sys, numpy; from git_rebasin.matching.assignment import linear_assignment; "
        "linear_assignment(numpy.eye(3), backend='c'); print('scipy.optimize' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_extension_is_built_where_it_can_be():
    """An optional extension that no longer compiles would otherwise go unnoticed."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if os.environ.get("GIT_REBASIN_ASSIGNMENT") == "scipy":
        pytest.skip("the environment asks for scipy")
    if not shutil.which(compiler) or not headers.exists():
        pytest.skip("no C compiler, or no headers of Python")
    built = BUILT and gather._gather is not None and native._halves is not None
    assert built, f"{compiler} is here: run `pip install --verbose --editable .` and see its errors"


@needs_c
def test_the_extensions_are_not_older_than_their_sources():
    for part in (assignment._assignment, gather._gather, native._halves):
        built = Path(part.__file__)
        assert built.name.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES))
        if ROOT / "git_rebasin" not in built.parents:
            pytest.skip("the package is not installed in place")
        name = part.__name__.rpartition(".")[2]
        for source in (built.with_name(f"{name}.c"), ROOT / "git_rebasin" / "_native.h"):
            assert built.stat().st_mtime >= source.stat().st_mtime, "run `make setup`"
