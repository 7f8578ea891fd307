"""The experiment on a stream of images from end to end, on the digits and a very small network."""

import json

import numpy as np

from git_rebasin.experiments.imagenet_resnet50 import (
    PRESETS,
    STATISTICS,
    format_record,
    match_pair,
    run,
)


def test_the_smoke_preset_streams_trains_matches_and_resumes(tmp_path):
    (file,) = run("smoke", tmp_path)
    text = file.read_text()
    assert run("smoke", tmp_path) == [file] and file.read_text() == text
    record, told = json.loads(text), []
    folder = file.parent / "checkpoints/smoke/digits"
    config = PRESETS["smoke"].pair
    again = match_pair(config, 0, folder=folder, callback=lambda stage, _: told.append(stage))
    assert "train A" not in told and told.count("statistics") == 6 and told.count("judge") == 3
    curves = record["curves"]
    assert again["curves"] == curves and again["training"] == record["training"]
    for metric in ("loss", "accuracy"):
        naive, matched = (curves[way]["averaged"][metric] for way in ("naive", "matched"))
        assert naive[0] == matched[0]
        np.testing.assert_allclose(naive[2], matched[2], rtol=1e-3)  # B computes what it computed
        assert len(curves["matched"]["recomputed"][metric]) == 3
    losses = [curves[way][kind]["loss"][1] for way in curves for kind in STATISTICS]
    assert len(set(losses)) == 4  # both the permutation and the statistics matter
    assert record["output_change"] < 1e-3 and record["match"]["converged"]
    assert format_record(record).count("recomputed") == 2
