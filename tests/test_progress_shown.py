"""Where progress is shown, in processes of their own, and by which functions."""

import functools
import importlib
import inspect
import os
import pkgutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import git_rebasin
from git_rebasin.progress import with_progress

# What makes others' callbacks, or is a part of a function with a bar.
PARTS = {"within", "iterate", "merge_batches", "prepare", "walk"}
LONG = {
    "activation_matching",
    "check_permutation_spec",
    "frank_wolfe_matching",
    "infer_permutation_spec",
    "interpolate",
    "merge_many",
    "rebasin",
    "repair",
    "reset_batch_stats",
    "sinkhorn_matching",
    "straight_through_matching",
    "weight_matching",
}


def with_either() -> Iterator[tuple[str, Callable]]:
    """All public functions and methods that have `progress` or `callback`, by their names."""
    for module in pkgutil.walk_packages(git_rebasin.__path__, "git_rebasin."):
        if module.name.split(".")[-1].startswith("_"):
            continue
        found = importlib.import_module(module.name)
        for name in getattr(found, "__all__", ()):
            value = getattr(found, name)
            methods = vars(value).items() if inspect.isclass(value) else ()
            public = [(f"{name}.{n}", f) for n, f in methods if not n.startswith("_")]
            for full, fn in [(name, value), *public]:
                if inspect.isfunction(fn):
                    if {"progress", "callback"} & inspect.signature(fn).parameters.keys():
                        yield full, fn


FUNCTIONS = dict(with_either())


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - PARTS))
def test_what_has_a_callback_has_a_bar_and_the_other_way_round(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    for each, default in {"progress": False, "callback": None}.items():
        assert parameters[each].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[each].default is default
    wrapper = with_progress(lambda *, progress=False, callback=None: None)
    assert FUNCTIONS[name].__code__ is wrapper.__code__


def test_what_takes_long_shows_its_progress():
    public = {name for name in git_rebasin.__all__ if name in FUNCTIONS}
    assert public == LONG
    assert FUNCTIONS.keys() >= {"learn_scaling", "value_moments", "train", "Experiment.run"} | PARTS


# ---- on a terminal, in a pipe, in a notebook

SCRIPT = """
import jax
import numpy as np
import git_rebasin as gr

rng = np.random.default_rng(0)
spec = gr.PermutationSpec({"w": (None, "h"), "v": ("h", None)})
a, b = ({"w": rng.normal(size=(4, 8)), "v": rng.normal(size=(8, 2))} for _ in range(2))
match = gr.weight_matching(jax.random.key(0), spec, a, b, progress=True)
loss = lambda params, x: ((x @ params["w"] @ params["v"]) ** 2).mean()
gr.interpolate(loss, a, b, [np.ones((3, 4), "float32")], lambdas=3, progress=True)
try:
    gr.interpolate(loss, a, b, [np.ones((3, 4), "float32"), np.ones((3, 5))], progress=True)
except TypeError:
    print("stopped")
"""


def lines(drawn: str) -> list[str]:
    """What stood on a line, one after the other; only the last one stays."""
    return [line.strip() for line in drawn.replace("\n", "\r").split("\r")]


def test_bars_are_drawn_on_a_terminal_and_taken_away():
    pty = pytest.importorskip("pty")
    fcntl, termios = (importlib.import_module(name) for name in ("fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        drawn = b"".join(iter(functools.partial(read, ours), b"")).decode()
        assert process.stdout is not None and process.stdout.read() == b"stopped\n"
    os.close(ours)
    assert process.returncode == 0, drawn
    shown = lines(drawn)
    assert "weight matching: 0it [00:00, ?it/s]" in shown
    assert any(line.startswith("weight matching from ") and "objective=" in line for line in shown)
    assert any(line.startswith("interpolation:  33%") and "1/3" in line for line in shown)
    assert any(line.startswith("interpolation:   2%") and "1/50" in line for line in shown)
    assert shown[-1] == "" and "Error" not in drawn


def read(terminal: int) -> bytes:
    """What a process has written; nothing once it is gone, which Linux calls an error."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_nothing_is_written_to_a_pipe():
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")


def test_bars_are_drawn_in_a_notebook():
    pytest.importorskip("ipykernel")
    manager = importlib.import_module("jupyter_client.manager")
    kernel, client = manager.start_new_kernel()
    written = {"stdout": "", "stderr": ""}
    try:
        reply = client.execute_interactive(
            SCRIPT, timeout=120, output_hook=functools.partial(keep, written)
        )
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply
    shown = lines(written["stderr"])
    assert written["stdout"] == "stopped\n" and shown[-1] == ""
    assert "Warning" not in written["stderr"]
    assert any(line.startswith("weight matching from ") and "objective=" in line for line in shown)
    assert any(line.startswith("interpolation:   2%") and "1/50" in line for line in shown)


def keep(written: dict[str, str], message: dict) -> None:
    """Keep what a kernel writes, by stream."""
    if message["msg_type"] == "stream":
        written[message["content"]["name"]] += message["content"]["text"]
