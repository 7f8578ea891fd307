"""The records that are kept in the repository: each names a revision that anybody can get."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KEPT = sorted(
    path
    for folder in ("nbs/experiments/records", "benchmarks/records")
    for path in (ROOT / folder).rglob("*.json")
    if "checkpoints" not in path.relative_to(ROOT).parts
)

OLD = {"how-to-choose", "modadd-transformers"}  # made from changed source; to be made anew


def expected(path: Path):
    """A record, as a parameter; one of `OLD` fails, until it is made anew."""
    name, marks = f"{path.parent.name}/{path.stem}", []
    if path.parent.name in OLD:
        marks = [pytest.mark.xfail(strict=True, reason="made from changed source")]
    return pytest.param(path, id=name, marks=marks)


@pytest.mark.parametrize("path", [expected(path) for path in KEPT])
def test_a_record_names_a_revision_without_changes(path):
    revision = json.loads(path.read_text(encoding="utf-8"))["provenance"]["revision"]
    assert revision is not None, "it was made outside of a clone: make it anew in one"
    assert re.fullmatch("[0-9a-f]{40}", revision), "it was made from changed source: make it anew"


def test_there_are_records():
    assert len(KEPT) > 100
