"""What the package logs: decisions, a line each, and nothing unless it is asked for."""

import logging
import subprocess
import sys

import jax
import numpy as np
import pytest

import git_rebasin as gr


@pytest.fixture
def told(caplog):
    """What was logged, by the module that said it."""
    caplog.set_level(logging.INFO, "git_rebasin")

    def lines(module: str) -> list[str]:
        own = [r for r in caplog.records if r.name == f"git_rebasin.{module}"]
        return [record.getMessage() for record in own]

    return lines


def network(params, x):
    return jax.nn.relu(x @ params["in"]) @ params["out"]


def models(*seeds):
    rngs = map(np.random.default_rng, seeds)
    return [
        {"in": r.normal(size=(3, 8)).astype("f4"), "out": r.normal(size=(8, 2)).astype("f4")}
        for r in rngs
    ]


def test_inference_says_what_it_found_and_what_is_fixed(told):
    (a,) = models(0)
    gr.infer_permutation_spec(network, a, np.ones((4, 3), "f4"))
    (line,) = told("inference.infer")
    assert line == (
        "inferred 1 groups in 2 arrays; fixed: 1 × input array 0, axis 1; 1 × output 0, axis 1"
    )
    assert told("symmetry.check") == ["spec check: 1 groups, 2 trials, nothing changed"]


def test_a_matcher_says_in_a_line_how_it_ended(told):
    (a, b), key = models(0, 1), jax.random.key(0)
    spec = gr.PermutationSpec({"in": (None, "h"), "out": ("h", None)})
    match = gr.weight_matching(key, spec, a, b)
    (line,) = told("matching.weights")
    assert line == (
        f"weight matching: converged after {match.sweeps} sweeps, objective from "
        + ", ".join(f"{start.name} {start.objective:.6g}" for start in match.starts)
        + "; 0 leaves ignored"
    )
    gr.activation_matching(key, spec, a, b, fn=network, batches=[np.ones((4, 3), "f4")] * 2)
    assert told("matching.activations") == ["activation matching: 1 groups by 1 values"]
    assert told("statistics.moments") == ["activation matching: 2 batches, 1 values"]
    gr.frank_wolfe_matching(key, spec, a, b, polish=False)
    (line,) = told("matching.descent")
    assert line.startswith("Frank–Wolfe matching: ")
    gr.merge_many(key, spec, [a, b])
    (line,) = told("matching.merge")
    assert line.startswith("merging 2 models: converged after ")


def test_the_solver_is_named_once_in_a_process():
    code = """
import logging, sys
import numpy as np
from git_rebasin.matching.assignment import linear_assignment

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s: %(message)s")
for _ in range(2):
    linear_assignment(np.eye(3), backend="scipy")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    solver = "scipy, which is slower"
    assert done.stdout == f"git_rebasin.matching.assignment: assignments are solved by {solver}\n"


@pytest.mark.parametrize("flags", [[], ["-v"], ["--verbose"]], ids=str)
def test_the_command_shows_it_when_asked(flags):
    code = f"""
import logging, sys
from git_rebasin.cli import demo, parser

demo.run = lambda args: logging.getLogger("git_rebasin.somewhere").info("decided")
sys.exit(parser.main(["demo", *{flags}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ("git_rebasin.somewhere: decided\n" * bool(flags))
