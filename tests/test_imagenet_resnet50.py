"""The experiment on a stream of images from end to end, on the digits and a very small network."""

import json

import jax
import numpy as np
from test_zoo_stream import write_imagenet

from git_rebasin.cli.parser import main
from git_rebasin.experiments.imagenet_resnet50 import (
    EXPERIMENT,
    PRESETS,
    STATISTICS,
    match_pair,
)
from git_rebasin.experiments.plan import batch_shapes
from git_rebasin.experiments.runner import Context
from git_rebasin.zoo.stream import open_stream, training_batches


def test_the_smoke_preset_streams_trains_matches_and_resumes(tmp_path):
    (file,) = EXPERIMENT.run("smoke", tmp_path)
    text = file.read_text()
    assert EXPERIMENT.run("smoke", tmp_path) == [file] and file.read_text() == text
    record, stages = json.loads(text), []
    context = Context(file.parent / "checkpoints/smoke/digits", lambda p: stages.append(p.stage))
    again = match_pair(PRESETS["smoke"]["digits"].config, 0, context)
    assert "train A" not in stages
    assert stages.count("statistics") == 6 and stages.count("evaluate") == 3
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
    assert EXPERIMENT.format(record).count("recomputed") == 2


def test_imagenet_comes_in_the_shapes_that_were_planned(tmp_path):
    write_imagenet(tmp_path, 6)
    config = PRESETS["paper"]["imagenet"].config
    stream = open_stream("imagenet", size=config.pixels, path=tmp_path)
    batch = next(training_batches(stream, jax.random.key(0), 0, 4, buffer=config.buffer))
    for name, planned in batch_shapes(config.network).items():
        assert batch[name].shape[1:] == planned.shape[1:] and batch[name].dtype == planned.dtype


def test_imagenet_is_missed_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    write_imagenet(tmp_path / "data", 6)
    for file in (tmp_path / "data").rglob("validation*"):
        file.unlink()
    monkeypatch.setenv("GIT_REBASIN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("git_rebasin.zoo.data.from_hub", _refuse)
    arguments = ["experiment", "imagenet-resnet50", "--preset", "paper", "--out", str(tmp_path)]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "has no validation*.parquet" in error and "log in with `hf auth login`" in error
    assert not (tmp_path / "imagenet-resnet50").exists()


def _refuse(*args, **options):
    raise OSError("no network here")


def test_the_command_knows_that_cpu_is_another_experiments(capsys):
    assert main(["experiment", "imagenet-resnet50", "--preset", "cpu", "--dry-run"]) == 0
    assert "the networks are given" in capsys.readouterr().out
