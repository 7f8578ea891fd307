"""The record of models of other libraries: what its page says of them."""

import importlib
import sys
from pathlib import Path

import pytest

from git_rebasin.experiments.records import read_record

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
RECORD = read_record(FOLDER / "records" / "other_libraries.json")
RUNS = {(r["library"], r["case"]): r for r in RECORD["runs"]}


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("other_libraries")
    sys.path.remove(str(FOLDER))


def test_every_case_is_recorded_once(script):
    assert list(RUNS) == [
        (c.library, c.name) for n in RECORD["libraries"] for c in script.CASES if c.library == n
    ]
    assert len(RUNS) == len(RECORD["runs"]) == len(script.CASES) >= 40


def test_all_specs_passed_the_check():
    assert [key for key, r in RUNS.items() if not r["passed"]] == []


def test_no_model_has_more_symmetries_than_theory(script):
    theory = {(c.library, c.name): script.log10_of(c.theory) for c in script.CASES}
    for key, r in RUNS.items():
        assert r["theory"] == pytest.approx(theory[key])
        if r["theory"] is not None:
            assert r["log10_symmetries"] < r["theory"] + 1e-6, key


def test_what_is_short_of_theory_says_why():
    short = [r for r in RUNS.values() if r["theory"] and r["log10_symmetries"] < r["theory"] - 0.05]
    for r in short:
        assert any(f["reason"] and f["reason"] != "unknown" for f in r["fixed"]), r["case"]


def test_a_case_is_measured(script):
    (one,) = (c for c in script.CASES if c.name == "nn.GRUCell in a scan")
    r = script.measure(one)
    assert r["passed"] and r["log10_symmetries"] == pytest.approx(r["theory"])
    assert {f["reason"].partition(" (")[0] for f in r["fixed"]} >= {"output 0, axis 0"}
