"""Inference on models of other libraries: groups, how many symmetries, what is fixed and why.

    python benchmarks/other_libraries.py                      every library that is installed
    python benchmarks/other_libraries.py --only keras flax    these ones
    python benchmarks/other_libraries.py --case "GPT-2"       cases whose names hold this, printed

Every library has a process of its own. Configurations are small; weights are those that the library
draws. Each spec is inferred without being verified, which is timed, and tried afterwards. Libraries
that are not installed are left out, and named; the record is written if there are none.
"""

import argparse
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from git_rebasin import check_permutation_spec
from git_rebasin.experiments.records import read_record, timed_record, write_record
from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.tree import flatten

RECORD = Path(__file__).parent / "records" / "other_libraries.json"
SETTINGS = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
KEY = jax.random.key(0)
Made = tuple[Callable, Any, tuple]  # fn(params, *args), params, args


class Case(NamedTuple):
    """A model of a library."""

    library: str  # the name of its distribution
    name: str
    make: Callable[[], Made]
    theory: dict[int, int] | None  # n → how often all n! orders of n things are free, if known


CASES: list[Case] = []


def case(library: str, name: str, *given: Any, theory: dict[int, int] | None = None) -> Callable:
    """Put a function that makes a model into the table."""

    def register(make: Callable[..., Made]) -> Callable[..., Made]:
        CASES.append(Case(library, name, lambda: make(*given), theory))
        return make

    return register


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def tokens(*shape: int, most: int = 40) -> np.ndarray:
    return np.random.default_rng(1).integers(3, most, shape).astype(np.int32)


# ---- Flax, linen and nnx


def linen(module: Any, *args: Any, **options: Any) -> Made:
    """A module of linen with all of its collections as parameters."""
    variables = module.init(KEY, *args, **options)
    return (lambda v, *xs: module.apply(v, *xs, **options)), variables, args


def nnx_model(module: Any, *args: Any) -> Made:
    """A module of nnx; its random states are no parameters."""
    from flax import nnx

    graph, params, rest = nnx.split(module, (nnx.Param, nnx.BatchStat), ...)
    return (lambda p, *xs: nnx.merge(graph, p, rest)(*xs)), nnx.to_pure_dict(params), args


@case("flax", "linen: MultiHeadDotProductAttention with LayerNorm", theory={4: 9, 20: 1})
def linen_attention() -> Made:
    from flax import linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.MultiHeadDotProductAttention(4, qkv_features=16)(nn.LayerNorm()(x))
            x = x + y
            return nn.Dense(3)(x + nn.Dense(12)(nn.gelu(nn.Dense(20)(nn.LayerNorm()(x)))))

    return linen(Block(), normal(2, 5, 12))


@case("flax", "linen: bidirectional LSTM", "LSTMCell", theory={6: 1, 7: 1})
@case("flax", "linen: bidirectional GRU", "GRUCell", theory={6: 1, 7: 1})
def linen_recurrent(cell: str) -> Made:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            make = getattr(nn, cell)
            y = nn.Bidirectional(nn.RNN(make(6)), nn.RNN(make(7)))(x)
            return nn.Dense(3)(y)

    return linen(Net(), normal(2, 5, 4))


@case("flax", "linen: convolutions, GroupNorm, WeightNorm", theory={4: 5, 10: 1})
def linen_group_norm() -> Made:
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.GroupNorm(4)(nn.Conv(16, (3, 3))(x)))
            x = nn.relu(nn.WeightNorm(nn.Conv(10, (3, 3), strides=2))(x))
            return nn.Dense(3)(nn.avg_pool(x, (4, 4)).reshape(len(x), -1))

    return linen(Net(), normal(2, 8, 8, 3))


@case(
    "flax",
    "nnx: MultiHeadAttention with rotations and scanned layers",
    theory={3: 2, 6: 12, 20: 2, 12: 1},
)
def nnx_attention() -> Made:
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(3, 12, 18, rngs=rngs, decode=False)
            self.norm, self.norm2 = nnx.RMSNorm(12, rngs=rngs), nnx.LayerNorm(12, rngs=rngs)
            self.up, self.down = nnx.Linear(12, 20, rngs=rngs), nnx.Linear(20, 12, rngs=rngs)

        def __call__(self, x):
            x = x + self.attention(self.norm(x))
            return x + self.down(nnx.silu(self.up(self.norm2(x))))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(40, 12, rngs=rngs)
            self.blocks = nnx.List([Block(rngs) for _ in range(2)])

        def __call__(self, t):
            x = self.embed(t)
            for block in self.blocks:
                x = block(x)
            return self.embed.attend(x)

    return nnx_model(Net(nnx.Rngs(0)), tokens(2, 5))


@case("flax", "nnx: convolutions with BatchNorm and a LSTM", theory={8: 1, 6: 1})
def nnx_mixed() -> Made:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs, use_running_average=True)
            self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(8, 6, rngs=rngs), rngs=rngs)
            self.out = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x)))
            start = (jnp.zeros((len(x), 6)), jnp.zeros((len(x), 6)))
            return self.out(self.lstm(x.mean(1), initial_carry=start)[:, -1])

    return nnx_model(Net(nnx.Rngs(0)), normal(2, 6, 6, 3))


# ---- Haiku


def haiku(forward: Callable, *args: Any, train: bool = False) -> Made:
    """A function of Haiku modules, with its state among the parameters."""
    import haiku as hk

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    how = {"train": True} if train else {}
    params, state = net.init(KEY, *args, **how)
    how = dict.fromkeys(how, False)
    apply = lambda v, *xs: net.apply(v["params"], v["state"], *xs, **how)[0]
    return apply, {"params": params, "state": state}, args


@case("dm-haiku", "nets.ResNet18")
def haiku_resnet() -> Made:
    import haiku as hk

    options = {"channels_per_group": (8, 12, 16, 20), "initial_conv_config": {"output_channels": 8}}
    make = lambda: hk.nets.ResNet(
        (1, 1, 1, 1), 5, bottleneck=False, use_projection=(False, True, True, True), **options
    )
    return haiku(lambda x, train: make()(x, train), normal(2, 32, 32, 3), train=True)


@case("dm-haiku", "nets.MobileNetV1")
def haiku_mobilenet() -> Made:
    import haiku as hk

    make = lambda: hk.nets.MobileNetV1((1, 2, 2), (8, 12, 16), 5)
    return haiku(lambda x, train: make()(x, train), normal(2, 32, 32, 3), train=True)


@case("dm-haiku", "MultiHeadAttention with LayerNorm and nets.MLP", theory={3: 1, 5: 6, 20: 1})
def haiku_attention() -> Made:
    import haiku as hk

    def forward(x):
        normed = hk.LayerNorm(-1, True, True)(x)
        attention = hk.MultiHeadAttention(
            3, 5, model_size=12, w_init=hk.initializers.VarianceScaling()
        )
        x = x + attention(normed, normed, normed)
        return hk.Linear(3)(x + hk.nets.MLP([20, 12])(hk.LayerNorm(-1, True, True)(x)))

    return haiku(forward, normal(2, 6, 12))


@case("dm-haiku", "nets.VectorQuantizer", theory={10: 1, 6: 1, 9: 1, 8: 1})
def haiku_quantizer() -> Made:
    import haiku as hk

    def forward(x):
        z = hk.nets.MLP([10, 6])(x)
        codes = hk.nets.VectorQuantizer(6, 9, 0.25)(z, is_training=False)["quantize"]
        return hk.nets.MLP([8, 3])(codes)

    return haiku(forward, normal(4, 5))


@case("dm-haiku", "deep LSTM", theory={7: 1, 6: 1})
def haiku_lstm() -> Made:
    import haiku as hk

    def forward(x):
        core = hk.DeepRNN([hk.LSTM(7), jax.nn.relu, hk.GRU(6), hk.Linear(3)])
        return hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0]

    return haiku(forward, normal(5, 2, 4))


# ---- Equinox


def equinox(model: Any, *args: Any, call: Callable | None = None) -> Made:
    """A module of Equinox: its arrays of numbers are the parameters."""
    import equinox as eqx

    params, rest = eqx.partition(model, eqx.is_inexact_array)
    use = call or (lambda m, *xs: m(*xs))
    return (lambda p, *xs: use(eqx.combine(p, rest), *xs)), params, args


@case("equinox", "nn.MLP with Conv2d and GroupNorm", theory={3: 1, 4: 3, 9: 2})
def equinox_convolution() -> Made:
    import equinox as eqx

    keys = jax.random.split(KEY, 4)
    layers = [
        eqx.nn.Conv2d(3, 12, 3, key=keys[0]),
        eqx.nn.GroupNorm(3, 12),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.AdaptiveAvgPool2d(1),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.MLP(12, 3, 9, 2, key=keys[1]),
    ]
    return equinox(eqx.nn.Sequential(layers), normal(3, 8, 8))


@case("equinox", "nn.MultiheadAttention with rotary embedding", theory={3: 1, 4: 3, 9: 1})
def equinox_attention() -> Made:
    import equinox as eqx

    rope = eqx.nn.RotaryPositionalEmbedding(4)

    class Net(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        norm: eqx.nn.LayerNorm
        mlp: eqx.nn.MLP

        def __call__(self, x):
            turned = lambda q, k, v: (jax.vmap(rope, 1, 1)(q), jax.vmap(rope, 1, 1)(k), v)
            x = x + self.attention(x, x, x, process_heads=turned)
            return jax.vmap(self.mlp)(jax.vmap(self.norm)(x))

    keys = jax.random.split(KEY, 2)
    net = Net(
        eqx.nn.MultiheadAttention(3, 12, key=keys[0]),
        eqx.nn.LayerNorm(12),
        eqx.nn.MLP(12, 3, 9, 1, key=keys[1]),
    )
    return equinox(net, normal(5, 12))


@case("equinox", "nn.GRUCell in a scan", theory={6: 1})
def equinox_gru() -> Made:
    import equinox as eqx

    class Net(eqx.Module):
        cell: eqx.nn.GRUCell
        out: eqx.nn.Linear

        def __call__(self, xs):
            h = jnp.zeros(self.cell.hidden_size)
            return self.out(jax.lax.scan(lambda h, x: (self.cell(x, h), None), h, xs)[0])

    keys = jax.random.split(KEY, 2)
    return equinox(
        Net(eqx.nn.GRUCell(4, 6, key=keys[0]), eqx.nn.Linear(6, 3, key=keys[1])), normal(5, 4)
    )


# ---- Equimo


def equimo(name: str, size: int, **options: Any) -> Made:
    from equimo import models

    model = getattr(models, name)(key=KEY, num_classes=3, **options)
    call = lambda m, x: m(x, key=KEY, inference=True)
    return equinox(model, normal(3, size, size), call=call)


@case("equimo", "VisionTransformer")
def equimo_vit() -> Made:
    return equimo(
        "VisionTransformer",
        16,
        img_size=16,
        in_channels=3,
        dim=12,
        patch_size=4,
        num_heads=3,
        depths=[2],
    )


@case("equimo", "ConvNeXt")
def equimo_convnext() -> Made:
    return equimo("ConvNeXt", 32, in_channels=3, depths=[1, 1], dims=[8, 12])


@case("equimo", "Mlla (linear attention)")
def equimo_mlla() -> Made:
    return equimo(
        "Mlla",
        16,
        img_size=16,
        in_channels=3,
        dim=12,
        patch_size=4,
        depths=[1, 1],
        num_heads=[3, 3],
    )


@case("equimo", "Vssd (state spaces)")
def equimo_vssd() -> Made:
    return equimo(
        "Vssd", 32, img_size=32, in_channels=3, dim=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2]
    )


# ---- rnn-jax and memax: recurrences and state spaces


@case("rnn-jax", "state spaces: S5", "s5", "SimplifiedStateSpaceLayer")
@case("rnn-jax", "state spaces: LRU", "lru", "LinearRecurrentUnit")
def state_space(module: str, name: str) -> Made:
    import importlib

    layer = getattr(importlib.import_module(f"rnn_jax.ssm.{module}"), name)
    mixers = importlib.import_module("rnn_jax.ssm.mixers")
    models = importlib.import_module("rnn_jax.ssm.models")
    keys = jax.random.split(KEY, 5)
    layers = [layer(8, 8, 8, key=k) for k in keys[:2]]
    mixed = [mixers.GLUMixer(8, 8, key=k) for k in keys[2:4]]
    net = models.DeepStateSpaceModelEncoder(4, layers, mixed, out_dim=3, key=keys[4])
    return equinox(net, normal(6, 4))


@case("memax", "Mamba (S6)", "S6")
@case("memax", "linear recurrent unit", "LRU")
@case("memax", "fast autoregressive transformer", "FART")
@case("memax", "DeltaNet", "DeltaNet")
@case("memax", "gated DeltaNet", "GDN")
@case("memax", "fast and forgetful memory", "FFM")
@case("memax", "attention", "Attention")
@case("memax", "minimal gated unit", "MGU")
def memory(name: str) -> Made:
    from memax.equinox.train_utils import get_residual_memory_model

    model = get_residual_memory_model(name, 4, 16, 3, num_layers=2, key=KEY)
    start = np.zeros(6, bool)
    call = lambda m, x: m(m.initialize_carry(), (x, start))[1]
    return equinox(model, normal(6, 4), call=call)


# ---- Keras


def keras_model(model: Any, *args: Any) -> Made:
    """A model of Keras: trainable variables and the others, without states of random numbers."""
    names = [v.path for v in model.variables]
    order = [k for k, v in enumerate(model.variables) if "seed" not in v.path]
    seeds = {k: v.value for k, v in enumerate(model.variables) if "seed" in v.path}
    where = {id(v): k for k, v in enumerate(model.variables)}
    groups = (model.trainable_variables, model.non_trainable_variables)
    split = [[where[id(v)] for v in variables] for variables in groups]
    params = {f"{k}:{names[k]}".replace("/", "."): model.variables[k].value for k in order}
    keys = dict(zip(order, params, strict=True))

    def fn(p, *xs):
        value = lambda k: p[keys[k]] if k in keys else seeds[k]
        both = [[value(k) for k in part] for part in split]
        return model.stateless_call(*both, *xs, training=False)[0]

    return fn, params, args


def residual_blocks(name: str) -> Callable:
    """Two stages of two narrow blocks each."""
    from keras.src.applications import resnet

    def stack(x):
        x = getattr(resnet, f"stack_residual_blocks_{name}")(x, 4, 2, stride1=1, name="conv2")
        return getattr(resnet, f"stack_residual_blocks_{name}")(x, 6, 2, name="conv3")

    return stack


@case("keras", "applications: MobileNet", "mobilenet", "MobileNet", {"alpha": 0.25})
@case("keras", "applications: MobileNetV2", "mobilenet_v2", "MobileNetV2", {"alpha": 0.35})
@case(
    "keras", "applications: MobileNetV3Small", "mobilenet_v3", "MobileNetV3Small", {"alpha": 0.75}
)
@case("keras", "applications: DenseNet", "densenet", "DenseNet", {"blocks": [2, 2, 2, 2]})
@case(
    "keras",
    "applications: EfficientNet",
    "efficientnet",
    "EfficientNet",
    {"width_coefficient": 0.25, "depth_coefficient": 0.3, "default_size": 32},
)
@case(
    "keras",
    "applications: ConvNeXt",
    "convnext",
    "ConvNeXt",
    {"depths": [1, 1, 1, 1], "projection_dims": [8, 12, 16, 20], "include_preprocessing": False},
)
@case(
    "keras", "applications: ResNet", "resnet", "ResNet", {"preact": False, "use_bias": True}, "v1"
)
@case(
    "keras", "applications: ResNetV2", "resnet", "ResNet", {"preact": True, "use_bias": True}, "v2"
)
def keras_application(module: str, name: str, options: dict, blocks: str | None = None) -> Made:
    import importlib

    make = getattr(importlib.import_module(f"keras.src.applications.{module}"), name)
    more = {"stack_fn": residual_blocks(blocks)} if blocks else {}
    model = make(input_shape=(32, 32, 3), weights=None, classes=5, **options, **more)
    return keras_model(model, normal(1, 32, 32, 3))


@case(
    "keras",
    "layers: MultiHeadAttention, LSTM, GRU, SeparableConv1D",
    theory={12: 1, 3: 1, 4: 6, 7: 1, 6: 1},
)
def keras_layers() -> Made:
    import keras

    layers, inputs = keras.layers, keras.Input((8, 6))
    x = layers.SeparableConv1D(12, 3, padding="same", activation="relu")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(3, 4)(x, x)])
    x = layers.LSTM(7, return_sequences=True)(layers.LayerNormalization()(x))
    return keras_model(keras.Model(inputs, layers.Dense(3)(layers.GRU(6)(x))), normal(2, 8, 6))


@case(
    "keras",
    "layers: GroupQueryAttention, EinsumDense, UnitNormalization",
    theory={2: 3, 3: 4, 4: 1, 5: 4, 9: 1},
)
def keras_grouped() -> Made:
    import keras

    layers, inputs = keras.layers, keras.Input((5, 12))
    x = layers.Add()([inputs, layers.GroupQueryAttention(3, 4, 2)(inputs, inputs)])
    x = layers.EinsumDense("abc,cde->abde", (None, 4, 5), bias_axes="de", activation="gelu")(x)
    x = layers.EinsumDense("abde,def->abf", (None, 9))(layers.UnitNormalization()(x))
    return keras_model(
        keras.Model(inputs, layers.Dense(3)(layers.LeakyReLU()(x))), normal(2, 5, 12)
    )


# ---- KerasHub


TEXT = {"vocabulary_size": 40, "num_layers": 2, "intermediate_dim": 20}
SMALL = {"num_heads": 2, "hidden_dim": 12, "max_sequence_length": 8}
GROUPED = {"num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 16}


@case("keras-hub", "BERT", "BertBackbone", TEXT | SMALL, theory={2: 2, 6: 8, 20: 2})
@case("keras-hub", "RoBERTa", "RobertaBackbone", TEXT | SMALL, theory={2: 2, 6: 8, 20: 2})
@case("keras-hub", "GPT-2", "GPT2Backbone", TEXT | SMALL, theory={2: 2, 6: 8, 20: 2})
@case("keras-hub", "OPT", "OPTBackbone", TEXT | SMALL, theory={2: 2, 6: 8, 20: 2})
@case(
    "keras-hub",
    "FNet",
    "FNetBackbone",
    TEXT | {"hidden_dim": 12, "max_sequence_length": 8},
    theory={20: 2, 12: 1},
)
@case(
    "keras-hub",
    "Bloom",
    "BloomBackbone",
    TEXT | {"num_heads": 2, "hidden_dim": 12},
    theory={6: 8, 20: 2},
)
@case("keras-hub", "Llama", "LlamaBackbone", TEXT | GROUPED, theory={2: 6, 4: 4, 20: 2})
@case(
    "keras-hub",
    "Mistral",
    "MistralBackbone",
    TEXT | GROUPED | {"sliding_window": 4},
    theory={2: 6, 4: 4, 20: 2},
)
@case(
    "keras-hub",
    "Gemma",
    "GemmaBackbone",
    TEXT | GROUPED | {"head_dim": 4},
    theory={2: 6, 4: 4, 10: 2},
)
@case(
    "keras-hub",
    "Mixtral (mixture of experts)",
    "MixtralBackbone",
    TEXT | GROUPED | {"num_experts": 4, "top_k": 2},
    theory={2: 6, 4: 6, 20: 8},
)
@case(
    "keras-hub",
    "T5",
    "T5Backbone",
    TEXT | {"num_heads": 2, "hidden_dim": 12},
    theory={2: 4, 6: 24, 20: 4},
)
@case(
    "keras-hub",
    "DeBERTa",
    "DebertaV3Backbone",
    TEXT | SMALL | {"bucket_size": 4},
    theory={2: 2, 6: 8, 20: 2},
)
def keras_text(name: str, options: dict) -> Made:
    import keras_hub

    model = getattr(keras_hub.models, name)(**options)
    ids = tokens(2, 6)
    ones = np.ones_like(ids)
    kinds = {"token_ids": ids, "padding_mask": ones, "segment_ids": ones * 0}
    kinds |= {
        f"{part}_{kind}": kinds[kind] for part in ("encoder", "decoder") for kind in list(kinds)
    }
    names = [tensor.name for tensor in model.inputs]
    values = {name: kinds[name] for name in names}
    fn, params, _ = keras_model(model)
    return (lambda p, v: fn(p, v)), params, (values,)


# ---- Transformers


BERT = {
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
GPT = {"vocab_size": 40, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 16}
BART = {
    "vocab_size": 40,
    "d_model": 12,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 16,
    "pad_token_id": 1,
}
IMAGES = {"image_size": 16, "patch_size": 4}


def transformers_model(name: str, options: dict, *args: Any, **more: Any) -> Made:
    """A model that the library still writes in Flax."""
    import transformers

    transformers.logging.set_verbosity_error()
    kind = re.sub("^Flax|(LMHeadModel|Model|For[A-Z].*)$", "", name)
    config = getattr(transformers, f"{kind}Config")(**options)
    model = getattr(transformers, name)(config, seed=0, **more)
    params = model.params if "params" in model.params else {"params": model.params}
    still = {"deterministic": True} if "OPT" in name else {"train": False}

    def fn(p, *xs):
        given = p if "batch_stats" in p else p["params"]
        return model(*xs, params=given, **still).to_tuple()[0]

    return fn, params, args


@case("transformers", "BERT", "FlaxBertModel", BERT, theory={2: 2, 6: 8, 20: 2})
@case(
    "transformers",
    "ALBERT",
    "FlaxAlbertModel",
    BERT | {"embedding_size": 8},
    theory={2: 1, 6: 4, 20: 1, 8: 1},
)
@case(
    "transformers",
    "DistilBERT",
    "FlaxDistilBertModel",
    {
        "vocab_size": 40,
        "dim": 12,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 20,
        "max_position_embeddings": 16,
    },
    theory={2: 2, 6: 8, 20: 2},
)
@case("transformers", "RoFormer", "FlaxRoFormerModel", BERT, theory={2: 2, 6: 4, 20: 2})
@case(
    "transformers",
    "ELECTRA",
    "FlaxElectraModel",
    BERT | {"embedding_size": 8},
    theory={2: 2, 6: 8, 20: 2, 8: 1},
)
@case("transformers", "GPT-2", "FlaxGPT2LMHeadModel", GPT, theory={2: 2, 6: 8, 48: 2, 12: 1})
@case(
    "transformers",
    "GPT-J",
    "FlaxGPTJForCausalLM",
    GPT | {"rotary_dim": 4},
    theory={2: 6, 6: 4, 48: 2, 12: 1},
)
@case(
    "transformers",
    "GPT-Neo",
    "FlaxGPTNeoForCausalLM",
    {
        "vocab_size": 40,
        "hidden_size": 12,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "max_position_embeddings": 16,
    },
    theory={2: 2, 6: 8, 48: 2, 12: 1},
)
@case(
    "transformers",
    "OPT",
    "FlaxOPTForCausalLM",
    {
        "vocab_size": 40,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 20,
        "max_position_embeddings": 16,
        "word_embed_proj_dim": 12,
    },
    theory={2: 2, 6: 8, 20: 2, 12: 1},
)
@case(
    "transformers",
    "Bloom",
    "FlaxBloomForCausalLM",
    {"vocab_size": 40, "hidden_size": 12, "n_layer": 2, "n_head": 2},
    theory={6: 8, 48: 2, 12: 1},
)
@case(
    "transformers",
    "Llama",
    "FlaxLlamaForCausalLM",
    BERT | {"num_key_value_heads": 2},
    theory={2: 2, 6: 4, 20: 2, 12: 1},
)
@case(
    "transformers",
    "Mistral",
    "FlaxMistralForCausalLM",
    BERT
    | {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4},
    theory={2: 6, 4: 4, 20: 2, 16: 1},
)
@case(
    "transformers",
    "Gemma",
    "FlaxGemmaForCausalLM",
    BERT | {"num_key_value_heads": 1, "head_dim": 6},
    theory={2: 2, 6: 2, 20: 2, 12: 1},
)
def transformers_text(name: str, options: dict) -> Made:
    return transformers_model(name, options, tokens(2, 6))


@case(
    "transformers",
    "BART",
    "FlaxBartForConditionalGeneration",
    BART,
    theory={2: 3, 6: 12, 20: 2, 12: 1},
)
def transformers_pairs(name: str, options: dict) -> Made:
    ids = tokens(2, 6)
    fn, params, _ = transformers_model(name, options)
    model_call = lambda p, a, b: fn(p, a, None, b)
    return model_call, params, (ids, ids[:, :4])


@case(
    "transformers",
    "ViT",
    "FlaxViTForImageClassification",
    BERT | IMAGES,
    theory={2: 2, 6: 8, 20: 2, 12: 1},
)
@case(
    "transformers",
    "DINOv2",
    "FlaxDinov2ForImageClassification",
    BERT | IMAGES,
    theory={2: 2, 6: 8, 48: 2, 12: 1},
)
@case(
    "transformers",
    "BEiT",
    "FlaxBeitForImageClassification",
    BERT | IMAGES,
    theory={2: 2, 6: 8, 20: 2, 12: 1},
)
@case(
    "transformers",
    "ResNet",
    "FlaxResNetForImageClassification",
    {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"},
)
@case(
    "transformers",
    "RegNet",
    "FlaxRegNetForImageClassification",
    {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "groups_width": 4},
)
def transformers_images(name: str, options: dict) -> Made:
    size = 16 if "image_size" in options else 32
    shape = {"input_shape": (1, size, size, 3)}
    return transformers_model(name, options, normal(2, 3, size, size), **shape)


# ---- jraph, distrax, flowjax, e3nn, Griffin, flaxmodels


@case("jraph", "graph network", "GraphNetwork", theory={9: 5, 7: 3, 6: 2})
@case("jraph", "graph attention", "GAT", theory={7: 1})
@case("jraph", "graph convolutions", "GraphConvolution", theory={7: 1, 6: 1})
def graphs(name: str) -> Made:
    import haiku as hk
    import jraph

    senders, receivers = np.array([0, 1, 2, 3, 4, 0]), np.array([1, 2, 3, 4, 0, 2])
    sizes = {"n_node": np.array([5]), "n_edge": np.array([6])}
    join = lambda *xs: jnp.concatenate([x for x in xs if x is not None], -1)

    def network(width):
        mlp = lambda *xs: hk.nets.MLP([9, width])(join(*xs))
        edges, nodes = lambda e, s, r, g: mlp(e, s, r, g), lambda n, s, r, g: mlp(n, s, r, g)
        return jraph.GraphNetwork(edges, nodes, lambda n, e, g: mlp(n, e, g))

    def forward(nodes, edges):
        graph = jraph.GraphsTuple(
            nodes, edges, receivers, senders, np.ones((1, 2), np.float32), **sizes
        )
        if name == "GraphConvolution":
            for width in (7, 6):
                net = jraph.GraphConvolution(
                    lambda n, width=width: jax.nn.relu(hk.Linear(width)(n))
                )
                graph = net(graph)
        elif name == "GAT":
            query = lambda n: hk.Linear(7)(n)
            logits = lambda s, r, e: hk.Linear(1)(jax.nn.leaky_relu(join(s, r)))
            graph = jraph.GAT(query, logits, lambda n: jax.nn.elu(n))(graph)
        else:
            for width in (7, 6):
                graph = network(width)(graph)
        return hk.Linear(3)(graph.nodes)

    return haiku(forward, normal(5, 4), normal(6, 3))


@case("distrax", "masked couplings of affine bijectors", theory={9: 2})
def couplings() -> Made:
    import distrax
    import haiku as hk

    def forward(x):
        layers = []
        for k in range(2):
            mask = np.arange(4) % 2 == k
            conditioner = hk.Sequential(
                [hk.nets.MLP([9, 8]), lambda y: y.reshape(*y.shape[:-1], 4, 2)]
            )
            bijector = lambda p: distrax.ScalarAffine(p[..., 0], jnp.exp(0.1 * p[..., 1]))
            layers.append(distrax.MaskedCoupling(mask, conditioner, bijector))
        base = distrax.MultivariateNormalDiag(jnp.zeros(4), jnp.ones(4))
        return distrax.Transformed(base, distrax.Chain(layers)).log_prob(x)

    return haiku(forward, normal(3, 4))


@case("flowjax", "masked autoregressive flow", theory={3: 4, 2: 2})
def autoregressive_flow() -> Made:
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow

    flow = masked_autoregressive_flow(
        KEY, base_dist=Normal(jnp.zeros(4)), flow_layers=2, nn_width=8, nn_depth=1
    )
    return equinox(flow, normal(3, 4), call=lambda m, x: m.log_prob(x))


@case("recurrentgemma", "Griffin (recurrent blocks and local attention)")
def griffin() -> Made:
    from recurrentgemma import common
    from recurrentgemma.jax import griffin as module

    blocks = (common.TemporalBlockType.RECURRENT, common.TemporalBlockType.ATTENTION)
    config = common.GriffinConfig(
        40, 16, 18, 2, blocks, True, 4, 30.0, scan_type=common.ScanType.LINEAR_NATIVE
    )
    net, ids = module.Griffin(config), jnp.asarray(tokens(2, 6))
    places = jnp.tile(jnp.arange(6), (2, 1))
    params = net.init(KEY, ids, places)
    return (lambda p, t, s: net.apply(p, t, s)[0]), params, (ids, places)


@case("flaxmodels", "ResNet18", "resnet")
@case("flaxmodels", "VGG16", "vgg")
def flaxmodels_model(name: str) -> Made:
    import flaxmodels

    if name == "vgg":
        net = flaxmodels.VGG16(
            output="logits", pretrained=None, normalize=False, num_classes=5, include_head=False
        )
    else:
        net = flaxmodels.ResNet18(output="logits", pretrained=None, normalize=False, num_classes=5)
    return linen(net, normal(1, 32, 32, 3), train=False)


# ---- what is measured


def reasons_of(spec: Any) -> list[dict]:
    """Why axes are fixed: each reason with how many axes have it, and one of them."""
    found: dict[str, list[str]] = {}
    for axis in spec.report("fixed").axes:
        if axis.size > 1:
            for reason in re.split("; ", axis.reason or "unknown"):
                found.setdefault(reason, []).append(f"{axis.path}, axis {axis.axis}")
    return [{"reason": r, "axes": len(where), "first": where[0]} for r, where in found.items()]


def log10_of(theory: dict[int, int] | None) -> float | None:
    """Of all symmetries that there are in theory."""
    if theory is None:
        return None
    return sum(often * math.log10(math.factorial(n)) for n, often in theory.items())


def measure(one: Case) -> dict:
    """One case: the spec, how long it takes, and whether the check passes."""
    fn, params, args = one.make()
    start = time.perf_counter()
    spec = infer_permutation_spec(fn, params, *args, verify=False)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    try:
        check_permutation_spec(spec, fn, params, *args)
        said = None
    except ValueError as error:
        said = str(error).partition("\n")[0]
    return {
        "library": one.library,
        "case": one.name,
        "arrays": len(spec.shapes),
        "parameters": int(sum(np.size(w) for w in flatten(params).values())),
        "groups": len(spec.groups),
        "families": len(spec.families),
        "log10_symmetries": spec.log10_symmetries,
        "theory": log10_of(one.theory),
        "seconds": seconds,
        "check_seconds": time.perf_counter() - start,
        "passed": said is None,
        "said": said,
        "fixed": reasons_of(spec),
    }


def measured(library: str, wanted: str) -> list[dict]:
    """All cases of a library, in this process; those that fail are printed."""
    runs = []
    for one in CASES:
        if one.library != library or wanted.lower() not in one.name.lower():
            continue
        try:
            runs.append(measure(one))
        except Exception:
            print(f"{one.library}: {one.name}\n{traceback.format_exc(limit=-4)}", file=sys.stderr)
            continue
        r = runs[-1]
        size, said = f"10^{r['log10_symmetries']:.1f}", "passed" if r["passed"] else r["said"]
        line = (
            f"{r['library']:15}{r['case']:60}{r['groups']:4} {size:9}{r['seconds']:6.2f} s  {said}"
        )
        print(line, file=sys.stderr)
    return runs


def isolated(library: str, wanted: str) -> list[dict]:
    """`measured` in a process of its own."""
    command = [sys.executable, __file__, "--within", library, "--case", wanted]
    out = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | SETTINGS
    ).stdout
    return json.loads(out.splitlines()[-1])


def installed(library: str) -> bool:
    """Whether a distribution is there."""
    try:
        importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        print(f"{library} is not installed", file=sys.stderr)
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--case", default="")
    parser.add_argument("--update", action="store_true", help="only these ones, of the record")
    parser.add_argument("--within", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    if args.within:
        warnings.simplefilter("ignore")
        runs = measured(args.within, args.case)
        print(json.dumps(runs))
        return
    start, names = time.perf_counter(), list(dict.fromkeys(c.library for c in CASES))
    wanted = [n for n in names if (not args.only or n in args.only) and installed(n)]
    runs, libraries = [r for n in wanted for r in isolated(n, args.case)], {}
    if args.update:
        kept = read_record(args.out)
        libraries = kept["libraries"]
        runs = [
            r for n in names for r in (runs if n in wanted else kept["runs"]) if r["library"] == n
        ]
    elif args.case or len(wanted) < len(names):
        print(json.dumps(runs, indent=1))
        return
    libraries |= {n: importlib.metadata.version(n) for n in wanted}
    record = timed_record("other_libraries", start, libraries=libraries, runs=runs)
    write_record(args.out, record)


if __name__ == "__main__":
    main()
