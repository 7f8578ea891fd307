"""The rescalings of small networks of many kinds: as many as in theory, and f(sθ) = f(θ)."""

from collections import Counter

import jax
import numpy as np
import pytest

from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.symmetry.scaling import apply_scaling, find_scalings
from inference_networks import NETWORKS, D, F, H, V

# For each network, (the shape of a group's permutation, how many rescalings it has) → groups.
THEORY = {
    "mlp": {((7,), 1): 1, ((6,), 1): 1},
    "tied_autoencoder": {((5,), 0): 1, ((4,), 0): 1},  # what is multiplied is divided as well
    "flatten_before_dense": {((6,), 1): 1, ((5,), 1): 1},
    "depthwise_convolution": {((8,), 2): 1, ((4,), 1): 1},  # before and after the depthwise one
    "densenet": {((6,), 2): 1, ((4,), 2): 1, ((5,), 2): 1},  # also the scale, by what reads it
    "zero_padded_shortcut": {((4,), 1): 2, ((8,), 1): 1},
    "linen_batch_norm": {((6,), 2): 1},  # before the normalisation, and after it
    "swiglu": {((D,), 1): 1, ((F,), 1): 1},  # of what the gate multiplies, not of the gate
    "mlp_mixer": {((4,), 0): 1, ((D,), 0): 1, ((F,), 0): 1},  # no factor passes a GELU
    "lstm": {((5,), 0): 1},
    # A head: its queries by its keys, its values by what reads them; then each of its values.
    "rotary_attention": {((D,), 1): 1, ((H,), 2): 1, ((H, V), 1): 1},
}


@pytest.mark.parametrize("name", THEORY)
def test_rescalings_are_those_of_theory_and_change_nothing(name):
    net = NETWORKS[name]()
    spec = infer_permutation_spec(net.fn, net.params, *net.args, verify=False).bind(net.params)
    scalings = find_scalings(spec, net.fn, net.params, *net.args)
    shapes = spec.perm_shapes
    counts = Counter((shapes[g], len(scalings.exponents.get(g, ()))) for g in shapes)
    assert dict(counts) == THEORY[name]
    rng = np.random.default_rng(0)
    factors = {g: rng.uniform(-1, 1, s).astype(np.float32) for g, s in scalings.shapes.items()}
    rescaled = apply_scaling(scalings, factors, net.params)
    old, new = (jax.tree.leaves(jax.jit(net.fn)(p, *net.args)) for p in (net.params, rescaled))
    for x, y in zip(old, new, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-3, atol=2e-5 * float(np.abs(x).max()))
