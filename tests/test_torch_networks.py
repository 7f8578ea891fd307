"""Networks of torchvision, timm and Hugging Face: their symmetry in theory, and the whole way from
PyTorch and back. Run by `make test-torch`."""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import git_rebasin as gr
from git_rebasin.torch import from_torch, to_torch

for name in ("torch", "torchvision", "timm", "transformers"):
    if name == "torchvision":
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
        networks = importlib.import_module("torch_modules")
        sys.path.pop(0)
        networks.allow_cpu_build()
    pytest.importorskip(name)

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", networks.CASES)
def test_the_whole_way(name):
    case = networks.CASES[name]
    one, other, x = case.module(1), case.module(2), case.inputs()
    fn, a, _ = from_torch(one, x, **case.options)
    _, b, _ = from_torch(other, x, **case.options)
    spec = gr.infer_permutation_spec(fn, a, x.numpy(), verify=False)
    found = sorted(spec.perm_shapes.values())
    assert found == sorted(case.theory)

    planted = gr.random_permutation(KEY, spec)
    moved = gr.apply_permutation(spec, planted, a)
    wanted = networks.outputs(one, x, case.options)
    given = networks.outputs(to_torch(one, moved), x, case.options)
    assert networks.difference(given, wanted) < 1e-5
    match = gr.weight_matching(KEY, spec, moved, a)
    back = gr.apply_permutation(spec, match.perm, a)
    assert all(np.array_equal(back[leaf], moved[leaf]) for leaf in a)

    match = gr.weight_matching(KEY, spec, a, b)
    merged = gr.lerp(a, gr.apply_permutation(spec, match.perm, b), 0.5)
    given = jax.tree.leaves(jax.jit(fn)(merged, x.numpy()))
    wanted = networks.outputs(to_torch(one, merged), x, case.options)
    assert networks.difference(given, wanted) < 1e-5


def test_networks_differ_by_what_is_planted():
    """A permutation that is no symmetry changes the outputs, so the comparison can fail."""
    case = networks.CASES["ViT"]
    one, x = case.module(1), case.inputs()
    _, a, _ = from_torch(one, x)
    name = next(n for n in a if n.endswith("mlp.0.weight"))
    moved = a | {name: a[name][::-1]}
    wanted = networks.outputs(one, x, case.options)
    assert networks.difference(networks.outputs(to_torch(one, moved), x, {}), wanted) > 1e-3
