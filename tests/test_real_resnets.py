"""The experiment on public ResNets from end to end, on random networks: a minute of compilation."""

import pytest

from git_rebasin.experiments.real_resnets import MENDED, PRESETS, format_record, run
from git_rebasin.experiments.records import read_record


@pytest.mark.slow
def test_the_smoke_preset_runs_and_resumes(tmp_path):
    (file,) = run("smoke", tmp_path)
    text, record = file.read_text(), read_record(file)
    assert run("smoke", tmp_path) == [file] and file.read_text() == text
    file.unlink()  # the rows are kept: only the ends are evaluated again
    stages = []
    run("smoke", tmp_path, lambda stage, metrics: stages.append(stage))
    again = read_record(file)
    ways = PRESETS["smoke"].pair.ways
    assert [row["way"] for row in record["rows"]] == ["none", *ways]
    assert len(stages) == 1 + len(ways)
    assert again["rows"] == record["rows"] and again["ends"] == record["ends"]
    for row in record["rows"]:
        assert list(row["mended"]) == list(MENDED)
        assert all(0 <= m["accuracy"] <= 1 and m["loss"] > 0 for m in row["mended"].values())
    assert len({row["mended"]["as it is"]["loss"] for row in record["rows"]}) == 3  # they differ
    assert "| weights |" in format_record(record)
