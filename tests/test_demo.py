"""The command as a stranger runs it: in a process of its own, with an empty home and no network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from git_rebasin import apply_permutation, lerp, load_params
from git_rebasin.symmetry.builders import mlp_permutation_spec


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    (home := folder / "home").mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "GIT_REBASIN"))}
    return subprocess.run(
        [sys.executable, "-m", "git_rebasin", "demo", "--out", "out", *arguments],
        cwd=folder,
        env=environment | {"HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )


def test_the_same_seed_gives_the_same_table_and_files_that_agree_with_it(tmp_path):
    first, second = (demo(tmp_path / name, "--seed", "3") for name in "ab")
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stdout == second.stdout and "matched midpoint" in first.stdout
    out = tmp_path / "a" / "out"
    record = json.loads((out / "record.json").read_text())
    assert record["match"]["converged"] and record["model_seeds"] == [6, 7]
    assert record["barrier"]["matched"]["test"] < 0.2 * record["barrier"]["naive"]["test"]
    for name in ("barrier.png", "match.png"):
        assert min(matplotlib.image.imread(out / name).shape[:2]) > 200
    models = [
        load_params(out / "checkpoints" / "digits" / f"model-{s}.safetensors")["params"]
        for s in (6, 7)
    ]
    perm = load_params(out / "permutation.safetensors")
    aligned = apply_permutation(mlp_permutation_spec(3), perm, models[1])
    want, got = lerp(models[0], aligned, 0.5), load_params(out / "merged.safetensors")
    for layer in want:
        for part in want[layer]:
            np.testing.assert_array_equal(got[layer][part], want[layer][part])


def test_a_missing_data_set_is_an_error_with_a_remedy_and_no_traceback(tmp_path):
    pytest.importorskip("datasets")  # without it, that is the error
    result = demo(tmp_path, "--data", "fashion_mnist")
    assert result.returncode == 1 and result.stdout == ""
    assert "git-rebasin: error: the train split of fashion_mnist was not found" in result.stderr
    assert "GIT_REBASIN_DATA" in result.stderr and "Traceback" not in result.stderr
