"""A run that is killed goes on to the same bits (each run in a process of its own)."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from git_rebasin.checkpoints.io import load_metadata, load_params

RUN = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from git_rebasin.zoo.train import TrainConfig, classifier_loss, train

def apply(params, images):
    x = jax.nn.relu(images.reshape(len(images), -1) @ params["w"] + params["b"][None])
    return x @ params["v"]

random = np.random.default_rng(0)
shapes = {"w": (64, 128), "b": (128,), "v": (128, 10)}
params = {name: jnp.array(random.normal(size=s) / 8, jnp.float32) for name, s in shapes.items()}
images = random.integers(0, 256, (1000, 8, 8, 1), np.uint8)
data = {"images": images, "labels": images[:, :2].sum((1, 2, 3)) % 10}
config = TrainConfig(epochs=150, batch_size=50)
options = {"checkpoint": sys.argv[1], "eval_fn": lambda p: {"norm": jnp.linalg.norm(p["w"])}}
result = train(jax.random.key(1), classifier_loss(apply), params, data, config, **options)
print(result.resumed_from)
"""


def start(path):
    command = [sys.executable, "-c", RUN, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(path):
    "Run to the end; how many epochs a checkpoint had done already"
    process = start(path)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return int(out)


def kill_when(path, ready):
    "Start a run and kill it once its checkpoint is as wanted"
    process = start(path)
    deadline = time.monotonic() + 240
    try:
        while not ready(path):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "the run made no progress"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def outcome(path):
    "Arrays as bytes, and the history without wall times"
    arrays = {name: np.asarray(x).tobytes() for name, x in load_params(path, flat=True).items()}
    history = json.loads(load_metadata(path)["history"])
    return arrays, [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def epochs_done(path):
    return len(json.loads(load_metadata(path)["history"])) if path.exists() else 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    assert finish(whole) == 0
    kill_when(killed, lambda path: epochs_done(path) >= 3)
    first = epochs_done(killed)
    assert 3 <= first < 150
    kill_when(killed, lambda path: epochs_done(path) > first)
    second = epochs_done(killed)
    assert first < second < 150
    assert finish(killed) == second
    assert outcome(killed) == outcome(whole)
