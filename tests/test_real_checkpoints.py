"""Inference on the public checkpoints, if they are there: set GIT_REBASIN_MODELS to a folder that
has them (see the notebook zoo/06_public)."""

import math
import os
from collections import Counter

import numpy as np
import pytest

from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.zoo.public import PublicModel, load_public, public_pair

pytestmark = pytest.mark.skipif(
    not os.environ.get("GIT_REBASIN_MODELS"), reason="GIT_REBASIN_MODELS is not set"
)


def checkpoints(kind: str) -> list[PublicModel]:
    "Both checkpoints of a kind"
    return [load_public(name) for name in public_pair(kind)]


def log10_order(groups: Counter) -> float:
    "From (shape of the permutation) → how often"
    each = (k * math.prod(s[:-1]) * math.lgamma(s[-1] + 1) for s, k in groups.items())
    return sum(each) / math.log(10)


@pytest.mark.parametrize("depth", [20, 56])
def test_cifar_resnets_with_zero_padded_shortcuts(depth):
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    blocks = (depth - 2) // 6
    groups = Counter({(16,): blocks + 2, (32,): blocks + 1, (64,): blocks})  # 16 and 32: paddings
    for model in checkpoints(f"cifar10-resnet{depth}"):
        spec = infer_permutation_spec(model.apply, model.params, images)
        assert Counter(spec.perm_shapes.values()) == groups
        assert spec.log10_symmetries == pytest.approx(log10_order(groups), rel=1e-12)


@pytest.mark.parametrize("layers", [1, 2])
def test_transformers_that_add_modulo_a_prime(layers):
    tokens = np.random.default_rng(0).integers(0, 59, (16, 2))
    each = {(4,): 1, (4, 32): 2, (512,): 1}  # heads, units of QK and of VO in each, hidden units
    groups = Counter({shape: layers * k for shape, k in each.items()}) + Counter({(128,): 1})
    for model in checkpoints(f"modadd59-transformer-{layers}L"):
        spec = infer_permutation_spec(model.apply, model.params, tokens)
        assert Counter(spec.perm_shapes.values()) == groups
        assert spec.log10_symmetries == pytest.approx(log10_order(groups), rel=1e-12)
