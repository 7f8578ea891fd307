"""Inferred specs against theory and hand-written ones, and tried on the functions themselves."""

from collections import Counter
from functools import cache, partial

import inference_families  # noqa: F401  (more networks)
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from inference_networks import (
    NETWORKS,
    Network,
    along,
    conv,
    draw,
    floats,
    layer_norm,
    rms_norm,
    self_attention,
)

from git_rebasin.symmetry.builders import (
    mlp_permutation_spec,
    resnet20_permutation_spec,
    resnet50_permutation_spec,
    vgg16_permutation_spec,
)
from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.jaxprs import double_precision
from git_rebasin.symmetry.permutation import apply_permutation, invert_permutation, random_permutation
from git_rebasin.symmetry.spec import PermutationSpec
from git_rebasin.tree import flatten
from git_rebasin.matching.weights import weight_matching
from git_rebasin.zoo.mlp import init_mlp, mlp_apply
from git_rebasin.zoo.resnet import init_resnet20, init_resnet50, resnet20_apply, resnet50_apply
from git_rebasin.zoo.vgg import init_vgg16, vgg16_apply

INCOMPLETE = {
    "concatenated_relu_beside_an_output": "an axis holds the parts of a group twice",
    "padding_twice_on_one_axis": "padding that an axis holds twice is not divided into two groups",
}
if jax.__version_info__ < (0, 10):
    INCOMPLETE["every_other_unit"] = "a slice in steps is a lookup there, which fixes the axis"


def all_networks(failing: dict[str, str]) -> list:
    "The names of all networks, those that are known to fail with the reason"
    return [name for name in NETWORKS if name not in failing] + [
        pytest.param(name, marks=pytest.mark.xfail(strict=True, reason=reason))
        for name, reason in failing.items()
    ]


@cache
def inferred(name: str) -> tuple[Network, PermutationSpec]:
    "A network, and its spec, which has passed the package's own check"
    net = NETWORKS[name]()
    return net, infer_permutation_spec(net.fn, net.params, *net.args)


def group_shapes(spec: PermutationSpec) -> Counter:
    "The shape of a group's permutation → how many groups have it"
    return Counter(spec.perm_shapes.values())


def in_double(tree):
    "Floats in numpy's float64, whose sums need no compilation"
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if is_float(x) else x, tree)


def with_noise(params, seed: int):
    "The parameters with noise, so that no zeros hide anything; variances stay positive"
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda w: (
            abs(w + 0.3 * rng.normal(size=w.shape))
            if np.all(w > 0)
            else w + 0.3 * rng.normal(size=w.shape)
        ),
        in_double(params),
    )


# ------------------------------------------------------------------------------------------ theory


@pytest.mark.parametrize("name", all_networks(INCOMPLETE))
def test_the_groups_are_those_of_theory(name):
    net, spec = inferred(name)
    assert group_shapes(spec) == net.groups
    assert spec.log10_symmetries == pytest.approx(net.log10_symmetries, rel=1e-12)


def test_units_beside_constants_and_once_more_without():
    def fn(p, x):
        h = jnp.tanh(jnp.tensordot(x, p["w"], 1))
        both = jnp.concatenate([h, jnp.ones_like(h)], 2)
        return jnp.tensordot(both, p["a"], 3), jnp.tensordot(both[:, :, :3], p["b"], 3)

    params = draw(w=(3, 2, 3, 5), a=(2, 6, 5, 2), b=(2, 3, 5, 2))
    spec = infer_permutation_spec(fn, params, floats(4, 3))
    assert group_shapes(spec) == {(30,): 2}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_does_not_change(name):
    net, spec = inferred(name)
    assert spec.groups
    with double_precision():
        fn, args, moved = jax.jit(net.fn), in_double(net.args), set()
        for seed in range(3):
            params = with_noise(net.params, seed)
            other = apply_permutation(spec, random_permutation(jax.random.key(seed), spec), params)
            before, after = flatten(params), flatten(other)
            moved |= {path for path in before if not np.array_equal(before[path], after[path])}
            outputs = (jax.tree.leaves(fn(theta, *args)) for theta in (params, other))
            for want, got in zip(*outputs, strict=True):
                assert want.dtype == np.float64 and np.ptp(want) > 0
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.max(np.abs(want)))
    assert moved == {path for rows in spec.perm_to_axes.values() for path, _ in rows}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_spec_survives_json(name):
    _, spec = inferred(name)
    again = PermutationSpec.from_json(spec.to_json())
    assert again == spec and again.perm_shapes == spec.perm_shapes
    assert again.reasons == spec.reasons and again.families == spec.families


# ----------------------------------------------------------------------------------------- reasons


def unexplained(spec: PermutationSpec) -> set[tuple[str, int]]:
    "Axes that carry no group, with no reason why"
    moving = {place for places in spec.perm_to_axes.values() for place in places}
    fixed = {(p, k) for p, shape in spec.shapes.items() for k in range(len(shape))} - moving
    return {(path, k) for path, k in fixed if not spec.reasons[path][k]}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_fixed_axis_has_a_reason(name):
    _, spec = inferred(name)
    assert unexplained(spec) == set()


def test_an_axis_cut_into_single_entries_has_a_reason():
    mean_and_variance = lambda p, x: (x @ p["w"])[:, 0] / jnp.exp((x @ p["w"])[:, 1])
    spec = infer_permutation_spec(mean_and_variance, draw(w=(3, 2)), floats(4, 3))
    assert not spec.groups
    assert unexplained(spec) == set()


# --------------------------------------------------------------------------- specs written by hand


def renamed(spec: PermutationSpec) -> dict[str, tuple]:
    "The rows of a spec whose groups are numbered as the paths, in order, mention them"
    numbers: dict[str | None, int | None] = {None: None}
    rows = {}
    for path in sorted(spec.axes_to_perm):
        names = spec.axes_to_perm[path]
        assert all(name is None or isinstance(name, str) for name in names)
        rows[path] = tuple(numbers.setdefault(name, len(numbers)) for name in names)
    return rows


@pytest.mark.parametrize(
    ("init", "apply", "by_hand", "side", "channels"),
    [
        (partial(init_mlp, features=(7, 6, 5)), mlp_apply, lambda: mlp_permutation_spec(3), 28, 1),
        (partial(init_vgg16, width_multiplier=1 / 16), vgg16_apply, vgg16_permutation_spec, 32, 3),
        (
            partial(init_resnet20, width_multiplier=1 / 4),
            resnet20_apply,
            resnet20_permutation_spec,
            32,
            3,
        ),
        (init_resnet50, resnet50_apply, resnet50_permutation_spec, 64, 3),
    ],
    ids=["mlp", "vgg16", "resnet20", "resnet50"],
)
def test_equal_to_the_spec_written_by_hand(init, apply, by_hand, side, channels):
    params = jax.eval_shape(init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    spec = infer_permutation_spec(apply, params, images, verify=False)
    expected = by_hand().bind(params)
    assert renamed(spec) == renamed(expected)
    assert spec.log10_symmetries == pytest.approx(expected.log10_symmetries, rel=1e-12)


# ------------------------------------------------------------------------ one network, four dialects

CHANNELS, HIDDEN, IMAGES = 4, 6, (2, 5, 5, 3)


def in_linen():
    "Parameters in a nested dict"
    relu, flat = linen.relu, lambda x: x.reshape(len(x), -1)
    layers = [linen.Conv(CHANNELS, (3, 3)), relu, flat, linen.Dense(HIDDEN)]
    model = linen.Sequential([*layers, linen.LayerNorm(), relu, linen.Dense(2)])
    x = floats(*IMAGES)
    return model.apply, jax.jit(model.init)(jax.random.key(0), x), x


def in_nnx():
    "Parameters in a state, beside the graph"
    rngs, relu, flat = nnx.Rngs(0), nnx.relu, lambda x: x.reshape(len(x), -1)
    kernel = nnx.Conv(3, CHANNELS, (3, 3), rngs=rngs)
    dense = nnx.Linear(25 * CHANNELS, HIDDEN, rngs=rngs)
    norm, last = nnx.LayerNorm(HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, 2, rngs=rngs)
    graph, state = nnx.split(nnx.Sequential(kernel, relu, flat, dense, norm, relu, last))
    return lambda state, x: nnx.merge(graph, state)(x), state, floats(*IMAGES)


def in_equinox():
    "Parameters in the model itself; channels first, matrices the other way round"
    eqx = pytest.importorskip("equinox")
    keys, relu = jax.random.split(jax.random.key(0), 3), eqx.nn.Lambda(jax.nn.relu)
    kernel = eqx.nn.Conv2d(3, CHANNELS, 3, padding=1, key=keys[0])
    dense = eqx.nn.Linear(25 * CHANNELS, HIDDEN, key=keys[1])
    norm, last = eqx.nn.LayerNorm(HIDDEN), eqx.nn.Linear(HIDDEN, 2, key=keys[2])
    flat = eqx.nn.Lambda(jnp.ravel)
    model = eqx.nn.Sequential([kernel, relu, flat, dense, norm, relu, last])
    return lambda model, x: jax.vmap(model)(x), model, floats(*IMAGES).transpose(0, 3, 1, 2)


def in_plain_jax():
    "Parameters in a flat dict"
    p = draw(kernel=(3, 3, 3, CHANNELS), bias=(CHANNELS,), w1=(25 * CHANNELS, HIDDEN), b1=(HIDDEN,))
    p |= draw(scale=(HIDDEN,), shift=(HIDDEN,), w2=(HIDDEN, 2), b2=(2,))

    def fn(p, x):
        x = jax.nn.relu(conv(x, p["kernel"]) + along(p["bias"], x))
        x = x.reshape(len(x), -1) @ p["w1"] + p["b1"][None]
        return jax.nn.relu(layer_norm(x, p["scale"], p["shift"])) @ p["w2"] + p["b2"][None]

    return fn, p, floats(*IMAGES)


@pytest.mark.parametrize("dialect", [in_linen, in_nnx, in_equinox, in_plain_jax])
def test_one_network_has_the_same_groups_in_every_framework(dialect):
    with jax.numpy_rank_promotion("allow"):
        fn, params, x = dialect()
        spec = infer_permutation_spec(fn, params, x)
    carried = {size: len(spec.perm_to_axes[group]) for group, size in spec.groups.items()}
    # The channels: kernel, bias, next matrix. The hidden units: two matrices, bias, LayerNorm.
    assert carried == {CHANNELS: 3, HIDDEN: 5}
    assert group_shapes(spec) == {(CHANNELS,): 1, (HIDDEN,): 1}


# --------------------------------------------------------------------------------- low precision


def cast(tree, dtype):
    "Floats in another type"
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(dtype) if is_float(x) else x, tree)


LOW_PRECISION = ["mlp", "group_norm", "transformer_decoder", "lstm"]


@pytest.mark.parametrize("name", LOW_PRECISION)
def test_bfloat16_gives_the_same_spec(name):
    net, spec = inferred(name)
    params, args = cast((net.params, net.args), jnp.bfloat16)
    outputs = jax.eval_shape(net.fn, params, *args)
    assert {x.dtype for x in jax.tree.leaves(outputs)} == {jnp.dtype(jnp.bfloat16)}
    assert infer_permutation_spec(net.fn, params, *args) == spec


@pytest.mark.parametrize("name", LOW_PRECISION)
def test_mixed_precision_gives_the_same_spec(name):
    net, spec = inferred(name)

    def fn(params, *args):
        return cast(net.fn(*cast((params, *args), jnp.bfloat16)), jnp.float32)

    assert infer_permutation_spec(fn, net.params, *net.args) == spec


# --------------------------------------------------------------------------------- size, matching


def test_a_deep_decoder_from_shapes_alone():
    layers, width, heads, units, hidden, words, length = 48, 1600, 25, 64, 6400, 50257, 1024
    layer = dict.fromkeys(("query", "key", "value"), (width, heads, units))
    layer |= {"out": (heads, units, width), "up": (width, hidden), "down": (hidden, width)}
    layer |= {"n1": (width,), "n2": (width,)}
    shapes = {"embed": (words, width), "position": (length, width), "last": (width,)}
    full = {**shapes, **{f"layer_{i}": layer for i in range(layers)}}
    is_shape = lambda x: isinstance(x, tuple)
    struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    params = jax.tree.map(struct, full, is_leaf=is_shape)

    def decoder(p, ids):
        x = p["embed"][ids] + p["position"][None]
        for i in range(layers):
            w = p[f"layer_{i}"]
            x = x + self_attention(w, rms_norm(x, w["n1"]), causal=True)
            x = x + jax.nn.gelu(rms_norm(x, w["n2"]) @ w["up"]) @ w["down"]
        return rms_norm(x, p["last"]) @ p["embed"].T

    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    spec = infer_permutation_spec(decoder, params, ids, verify=False)
    assert group_shapes(spec) == {
        (width,): 1,
        (heads,): layers,
        (heads, units): 2 * layers,
        (hidden,): layers,
    }
    assert len(spec.groups) == 1 + 4 * layers


@pytest.mark.parametrize("name", ["transformer_encoder", "scan_over_layers"])
def test_weight_matching_recovers_a_planted_permutation(name):
    net, spec = inferred(name)
    assert spec.families
    planted = random_permutation(jax.random.key(1), spec)
    other = apply_permutation(spec, planted, net.params)
    match = weight_matching(jax.random.key(0), spec, net.params, other, init="greedy")
    assert match.converged
    undone = invert_permutation(spec, planted)
    for group, perm in match.perm.items():
        np.testing.assert_array_equal(perm, undone[group], err_msg=group)
    back = flatten(apply_permutation(spec, match.perm, other))
    for path, w in flatten(net.params).items():
        np.testing.assert_array_equal(back[path], w, err_msg=path)
