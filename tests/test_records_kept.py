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


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_record_names_a_revision_without_changes(path):
    revision = json.loads(path.read_text(encoding="utf-8"))["provenance"]["revision"]
    assert revision is not None, "it was made outside of a clone: make it anew in one"
    assert re.fullmatch("[0-9a-f]{40}", revision), "it was made from changed source: make it anew"


def test_there_are_records():
    assert len(KEPT) > 100
