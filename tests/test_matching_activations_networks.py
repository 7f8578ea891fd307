"""Activation matching undoes the shuffle of networks with streams, families, scans and gates."""

import jax
import numpy as np
import pytest
from inference_networks import NETWORKS

from git_rebasin.matching.activations import activation_matching
from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.symmetry.permutation import apply_permutation, random_permutation
from git_rebasin.symmetry.spec import PermutationSpecError
from git_rebasin.inference.taps import find_taps

KEY = jax.random.key(0)
MATCHED = """
    tied_autoencoder group_norm depthwise_convolution squeeze_and_excitation zero_padded_shortcut
    rotary_attention swiglu_fused llama dense_experts scan_over_layers lstm_with_stacked_gates
"""


def shuffled(name):
    """A network, its spec, and model B: the model with all its units shuffled."""
    net = NETWORKS[name]()
    spec = infer_permutation_spec(net.fn, net.params, *net.args, verify=False)
    plant = random_permutation(jax.random.key(1), spec)
    return net, spec, apply_permutation(spec, plant, net.params)


@pytest.mark.parametrize("name", MATCHED.split())
def test_all_that_is_read_is_lined_up(name):
    net, spec, b = shuffled(name)
    fn = lambda params, batch: net.fn(params, *batch)
    match = activation_matching(KEY, spec, net.params, b, fn=fn, batches=[net.args])
    names = {value for values in match.values.values() for value in values}
    # Units that never fire can be in any order, which no value shows.
    assert match.objective[0] == pytest.approx(sum(map(len, match.values.values())), rel=1e-5)
    taps = find_taps(net.fn, net.params, *net.args)
    back = apply_permutation(spec, match.perm, b)
    read = jax.jit(lambda params: taps(params, *net.args, names=names))
    ours, theirs = read(net.params), read(back)
    for value in names:
        np.testing.assert_allclose(ours[value], theirs[value], rtol=1e-3, atol=1e-4, err_msg=value)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mlp_mixer", "has a second group that moves"),
        ("scan_without_residuals", "a scan that is unrolled"),
        ("conditional", "inside of a while or a cond"),
    ],
)
def test_groups_that_no_value_scores_are_named(name, why):
    net, spec, b = shuffled(name)
    fn = lambda params, batch: net.fn(params, *batch)
    with pytest.raises(PermutationSpecError, match=f"nothing scores group .*{why}"):
        activation_matching(KEY, spec, net.params, b, fn=fn, batches=[net.args])
