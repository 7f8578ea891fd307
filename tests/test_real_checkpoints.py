"""Inference on public checkpoints, if there are some: set GIT_REBASIN_MODELS to a folder that has
`cifar10-resnet20`, `cifar10-resnet56` (PyTorch's CIFAR ResNets with zero-padded shortcuts) and
`modadd59-transformer-1L`, `-2L` (modular addition), each with `.safetensors` files."""

import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from git_rebasin.infer import infer_permutation_spec
from git_rebasin.io import load_params
from git_rebasin.tree import flatten
from git_rebasin.zoo.cifar_resnet import cifar_resnet_apply
from git_rebasin.zoo.transformer import transformer_apply

FOLDER = os.environ.get("GIT_REBASIN_MODELS")

pytestmark = pytest.mark.skipif(not FOLDER, reason="GIT_REBASIN_MODELS is not set")


def checkpoints(name: str) -> list[dict]:
    "The arrays of every checkpoint of a kind, scalars left out"
    files = sorted((Path(FOLDER) / name).glob("*.safetensors"))
    assert files, f"no .safetensors files in {Path(FOLDER) / name}"
    flat = [flatten(load_params(file)) for file in files]
    return [{path: w for path, w in params.items() if w.shape} for params in flat]


def log10_order(groups: Counter) -> float:
    "From (shape of the permutation) → how often"
    each = (k * math.prod(s[:-1]) * math.lgamma(s[-1] + 1) for s, k in groups.items())
    return sum(each) / math.log(10)


@pytest.mark.parametrize("depth", [20, 56])
def test_cifar_resnets_with_zero_padded_shortcuts(depth):
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    blocks = (depth - 2) // 6
    groups = Counter({(16,): blocks + 2, (32,): blocks + 1, (64,): blocks})  # 16 and 32: paddings
    for params in checkpoints(f"cifar10-resnet{depth}"):
        spec = infer_permutation_spec(cifar_resnet_apply, params, images)
        assert Counter(spec.perm_shapes.values()) == groups
        assert spec.log10_symmetries == pytest.approx(log10_order(groups), rel=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
def test_transformers_that_add_modulo_a_prime(layers):
    tokens = np.random.default_rng(0).integers(0, 59, (16, 2))
    each = {(4,): 1, (4, 32): 2, (512,): 1}  # heads, units of QK and of VO in each, hidden units
    groups = Counter({shape: layers * k for shape, k in each.items()}) + Counter({(128,): 1})
    for params in checkpoints(f"modadd59-transformer-{layers}L"):
        spec = infer_permutation_spec(transformer_apply, params, tokens)
        assert Counter(spec.perm_shapes.values()) == groups
        assert spec.log10_symmetries == pytest.approx(log10_order(groups), rel=1e-12)
