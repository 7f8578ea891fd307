"""The experiment on rescaled ResNets from end to end, on random networks: a minute of compilation."""

import pytest

from git_rebasin.experiments.records import read_record
from git_rebasin.experiments.rescaled_resnets import LINES, format_record, run


@pytest.mark.slow
def test_the_smoke_preset_runs_and_resumes(tmp_path):
    (file,) = run("smoke", tmp_path)
    text, record = file.read_text(), read_record(file)
    assert run("smoke", tmp_path) == [file] and file.read_text() == text
    file.unlink()  # the rows are kept
    (file,) = run("smoke", tmp_path)
    assert read_record(file)["rows"] == record["rows"]
    assert [row["b"] for row in record["rows"]] == list(LINES)
    for row in record["rows"]:
        assert row["output_change"] < 1e-3 and 0 < row["share"]["median"] < 1
        assert len(row["line"]["accuracy"]) == len(record["lambdas"]) == 3
    assert len({row["line"]["loss"][1] for row in record["rows"]}) == len(LINES)
    assert "| permuted, rescaled for the line |" in format_record(record)
