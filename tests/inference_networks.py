"""Networks, each with the permutation symmetry that it has in theory. No tests here."""

import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.nn import gelu, relu, sigmoid, silu, softmax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

Groups = dict[tuple[int, ...], int]


@dataclass(frozen=True)
class Network:
    "A function, what to call it with, and its groups according to theory"

    fn: Callable[..., Any]  # fn(params, *args) → outputs
    params: Any
    args: tuple
    groups: Groups  # the shape of a group's permutation → how many groups have it

    @property
    def log10_symmetries(self) -> float:
        "A permutation of shape (a, b, n) is one of (n!)^(a b)"
        order = 1
        for (*copies, n), count in self.groups.items():
            order *= math.factorial(n) ** (math.prod(copies) * count)
        return math.log10(order)


NETWORKS: dict[str, Callable[[], Network]] = {}


def network(make: Callable[[], Network]) -> Callable[[], Network]:
    "Put a network into the table"
    NETWORKS[make.__name__] = make
    return make


def draw(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    "Parameters at random, each from its name; of numpy, which has nothing to compile"

    def one(name, shape):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        scale = shape[0] ** -0.5 if len(shape) > 1 else 1
        return np.asarray(scale * rng.normal(size=shape), np.float32)

    return {name: one(name, shape) for name, shape in shapes.items()}


def floats(*shape: int) -> jax.Array:
    "A batch of inputs"
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def tokens(batch: int, length: int, vocabulary: int) -> jax.Array:
    "A batch of texts"
    rng = np.random.default_rng(2)
    return jnp.asarray(rng.integers(0, vocabulary, (batch, length)), jnp.int32)


def along(w: jax.Array, x: jax.Array) -> jax.Array:
    "An array along the last axes of another one"
    return w.reshape((1,) * (x.ndim - w.ndim) + w.shape)


def conv(x, kernel, stride=1, groups=1):
    "A convolution of an NHWC image with an HWIO kernel"
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return lax.conv_general_dilated(
        x, kernel, strides, "SAME", dimension_numbers=layout, feature_group_count=groups
    )


def layer_norm(x, scale, bias):
    "Over the last axis"
    y = (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * along(scale, y) + along(bias, y)


def rms_norm(x, scale):
    "Over the last axis"
    y = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)
    return y * along(scale, y)


def to_heads(x, kernel):
    "(batch, time, D) by (D, heads, units)"
    return jnp.einsum("btd,dhq->bthq", x, kernel)


def from_heads(x, kernel):
    "(batch, time, heads, units) by (heads, units, D)"
    return jnp.einsum("bthq,hqd->btd", x, kernel)


def attend(q, k, v, causal=False):
    "(batch, time, heads, units) from three such arrays"
    scores = jnp.einsum("bthq,bshq->bhts", q, k) / q.shape[-1] ** 0.5
    if causal:
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(along(mask, scores), scores, -1e9)
    return jnp.einsum("bhts,bshv->bthv", softmax(scores), v)


def self_attention(p, x, causal=False):
    "Multi-head attention as flax keeps it: kernels with an axis for the heads"
    q, k, v = (to_heads(x, p[name]) for name in ("query", "key", "value"))
    return from_heads(attend(q, k, v, causal), p["out"])


# ------------------------------------------------------------------ dense and convolutional layers


@network
def mlp():
    "Two hidden layers with biases"
    p = draw(w1=(5, 7), b1=(7,), w2=(7, 6), b2=(6,), w3=(6, 3), b3=(3,))

    def fn(p, x):
        x = relu(x @ p["w1"] + p["b1"][None])
        return relu(x @ p["w2"] + p["b2"][None]) @ p["w3"] + p["b3"][None]

    return Network(fn, p, (floats(4, 5),), {(7,): 1, (6,): 1})


@network
def mlp_without_biases():
    "Two hidden layers, matrices only"
    p = draw(w1=(5, 7), w2=(7, 6), w3=(6, 3))
    fn = lambda p, x: relu(relu(x @ p["w1"]) @ p["w2"]) @ p["w3"]
    return Network(fn, p, (floats(4, 5),), {(7,): 1, (6,): 1})


@network
def tied_autoencoder():
    "The decoder's matrices are the encoder's"
    p = draw(w=(8, 5), b=(5,), v=(5, 4), c=(8,))

    def fn(p, x):
        code = jnp.tanh(x @ p["w"] + p["b"][None]) @ p["v"]
        return jnp.tanh(code @ p["v"].T) @ p["w"].T + p["c"][None]

    return Network(fn, p, (floats(3, 8),), {(5,): 1, (4,): 1})


@network
def flatten_before_dense():
    "Height × width × channels become one axis, of which the channels move"
    p = draw(kernel=(3, 3, 2, 6), w=(4 * 4 * 6, 5), out=(5, 3))

    def fn(p, x):
        x = relu(conv(x, p["kernel"]))
        return relu(x.reshape(len(x), -1) @ p["w"]) @ p["out"]

    return Network(fn, p, (floats(2, 4, 4, 2),), {(6,): 1, (5,): 1})


@network
def group_norm():
    "Twelve channels in four groups: these move, and the channels within each"
    p = draw(kernel=(3, 3, 2, 12), scale=(12,), bias=(12,), out=(12, 3))

    def fn(p, x):
        x = conv(x, p["kernel"])
        y = x.reshape(*x.shape[:3], 4, 3)
        y = y - y.mean((1, 2, 4), keepdims=True)
        y = y * lax.rsqrt((y * y).mean((1, 2, 4), keepdims=True) + 1e-5)
        y = y.reshape(x.shape) * along(p["scale"], x) + along(p["bias"], x)
        return relu(y).mean((1, 2)) @ p["out"]

    return Network(fn, p, (floats(2, 4, 4, 2),), {(4,): 1, (4, 3): 1})


@network
def grouped_convolution():
    "Four groups, each from two channels to three"
    p = draw(expand=(1, 1, 3, 8), grouped=(3, 3, 2, 12), project=(1, 1, 12, 5), out=(5, 2))

    def fn(p, x):
        x = relu(conv(x, p["expand"]))
        x = relu(conv(x, p["grouped"], groups=4))
        return relu(conv(x, p["project"])).mean((1, 2)) @ p["out"]

    return Network(fn, p, (floats(2, 4, 4, 3),), {(4,): 1, (4, 2): 1, (4, 3): 1, (5,): 1})


@network
def depthwise_convolution():
    "What comes out moves as what goes in"
    p = draw(expand=(1, 1, 3, 8), depthwise=(3, 3, 1, 8), project=(1, 1, 8, 4), out=(4, 2))

    def fn(p, x):
        x = relu(conv(x, p["expand"]))
        x = relu(conv(x, p["depthwise"], groups=8))
        return relu(conv(x, p["project"])).mean((1, 2)) @ p["out"]

    return Network(fn, p, (floats(2, 4, 4, 3),), {(8,): 1, (4,): 1})


@network
def squeeze_and_excitation():
    "The gates move as the channels that they scale"
    p = draw(kernel=(3, 3, 3, 8), squeeze=(8, 4), excite=(4, 8), out=(8, 2))

    def fn(p, x):
        x = relu(conv(x, p["kernel"]))
        gate = sigmoid(relu(x.mean((1, 2)) @ p["squeeze"]) @ p["excite"])
        return (x * gate[:, None, None]).mean((1, 2)) @ p["out"]

    return Network(fn, p, (floats(2, 4, 4, 3),), {(8,): 1, (4,): 1})


@network
def densenet():
    "Each layer reads all earlier ones, laid end to end"
    p = draw(k0=(3, 3, 3, 6), k1=(3, 3, 6, 4), k2=(3, 3, 10, 5), scale=(15,), out=(15, 2))

    def fn(p, x):
        x = conv(x, p["k0"])
        for name in ("k1", "k2"):
            x = jnp.concatenate([x, conv(relu(x), p[name])], -1)
        return relu(x * along(p["scale"], x)).mean((1, 2)) @ p["out"]

    return Network(fn, p, (floats(2, 4, 4, 3),), {(6,): 1, (4,): 1, (5,): 1})


def unet(upsample) -> Network:
    "Down, up again, and a skip beside"
    p = draw(down=(3, 3, 3, 6), middle=(3, 3, 6, 8), up=(3, 3, 14, 5), out=(1, 1, 5, 2))

    def fn(p, x):
        skip = relu(conv(x, p["down"]))
        window = (1, 2, 2, 1)
        x = lax.reduce_window(skip, -jnp.inf, lax.max, window, window, "VALID")
        x = upsample(relu(conv(x, p["middle"])))
        return conv(relu(conv(jnp.concatenate([skip, x], -1), p["up"])), p["out"])

    return Network(fn, p, (floats(2, 4, 4, 3),), {(6,): 1, (8,): 1, (5,): 1})


@network
def unet_with_resize():
    "Up-sampled by `jax.image.resize`"
    return unet(lambda x: jax.image.resize(x, (len(x), 4, 4, x.shape[-1]), "nearest"))


@network
def unet_with_repeat():
    "Up-sampled by `jnp.repeat`"
    return unet(lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))


@network
def zero_padded_shortcut():
    "A ResNet's option A: of eight channels, four are those before, four are new and alike"
    p = draw(k=(3, 3, 3, 4), a=(3, 3, 4, 8), b=(3, 3, 8, 8), c=(3, 3, 8, 8), out=(8, 2))

    def fn(p, x):
        x = relu(conv(x, p["k"]))
        shortcut = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
        x = relu(shortcut + conv(relu(conv(x, p["a"], stride=2)), p["b"]))
        return relu(x + conv(x, p["c"])).mean((1, 2)) @ p["out"]

    return Network(fn, p, (floats(2, 4, 4, 3),), {(4,): 2, (8,): 1})


# ------------------------------------------------------------------------------------ transformers

D, H, Q, V, F, T, VOCABULARY = 6, 3, 4, 2, 7, 5, 11
STREAM = {"embed": (VOCABULARY, D), "head": (D, VOCABULARY)}
FLAX_ATTENTION = {"query": (D, H, Q), "key": (D, H, Q), "value": (D, H, V), "out": (H, V, D)}
FEED_FORWARD = {"w1": (D, F), "w2": (F, D)}
ATTENTION_GROUPS: Groups = {(H,): 1, (H, Q): 1, (H, V): 1}


@network
def transformer_encoder():
    "As in flax: kernels with an axis for the heads, biases, LayerNorm, learned positions"
    biases = {"bq": (H, Q), "bk": (H, Q), "bv": (H, V), "bo": (D,), "b1": (F,), "b2": (D,)}
    norms = {f"{part}{i}": (D,) for i in (1, 2, 3) for part in ("scale", "bias")}
    p = draw(position=(T, D), **STREAM, **FLAX_ATTENTION, **FEED_FORWARD, **biases, **norms)

    def norm(p, i, x):
        return layer_norm(x, p[f"scale{i}"], p[f"bias{i}"])

    def attention(p, x):
        names = (("query", "bq"), ("key", "bk"), ("value", "bv"))
        q, k, v = (to_heads(x, p[w]) + p[b][None, None] for w, b in names)
        return from_heads(attend(q, k, v), p["out"]) + along(p["bo"], x)

    def fn(p, ids):
        x = p["embed"][ids] + p["position"][None]
        x = x + attention(p, norm(p, 1, x))
        hidden = gelu(norm(p, 2, x) @ p["w1"] + along(p["b1"], x))
        return norm(p, 3, x + hidden @ p["w2"] + along(p["b2"], x)) @ p["head"]

    groups = {(D,): 1, (F,): 1, **ATTENTION_GROUPS}
    return Network(fn, p, (tokens(2, T, VOCABULARY),), groups)


@network
def transformer_decoder():
    "A causal mask, RMSNorm, and the embedding once more as the last layer"
    p = draw(embed=(VOCABULARY, D), n1=(D,), n2=(D,), n3=(D,), **FLAX_ATTENTION, **FEED_FORWARD)

    def fn(p, ids):
        x = p["embed"][ids]
        x = x + self_attention(p, rms_norm(x, p["n1"]), causal=True)
        x = x + relu(rms_norm(x, p["n2"]) @ p["w1"]) @ p["w2"]
        return rms_norm(x, p["n3"]) @ p["embed"].T

    groups = {(D,): 1, (F,): 1, **ATTENTION_GROUPS}
    return Network(fn, p, (tokens(2, T, VOCABULARY),), groups)


@network
def torch_attention():
    "As in PyTorch: matrices (out, in), whose out is heads × units on one flat axis"
    p = draw(q=(H * Q, D), bq=(H * Q,), k=(H * Q, D), v=(H * V, D), o=(D, H * V), **STREAM)

    def split(y):
        return y.reshape(*y.shape[:2], H, -1)

    def fn(p, ids):
        x = p["embed"][ids]
        q = split(x @ p["q"].T + along(p["bq"], x))
        y = attend(q, split(x @ p["k"].T), split(x @ p["v"].T), causal=True)
        return (x + y.reshape(*x.shape[:2], H * V) @ p["o"].T) @ p["head"]

    return Network(fn, p, (tokens(2, T, VOCABULARY),), {(D,): 1, **ATTENTION_GROUPS})


@network
def torch_attention_fused():
    "`nn.MultiheadAttention`: one matrix for queries, keys and values, split before the heads"
    p = draw(qkv=(3 * H * Q, D), bias=(3 * H * Q,), o=(D, H * Q), **STREAM)

    def fn(p, ids):
        x = p["embed"][ids]
        y = jnp.split(x @ p["qkv"].T + along(p["bias"], x), 3, -1)
        q, k, v = (z.reshape(2, T, H, Q).transpose(0, 2, 1, 3) for z in y)
        y = softmax(q @ k.swapaxes(-1, -2)) @ v
        return (x + y.transpose(0, 2, 1, 3).reshape(2, T, H * Q) @ p["o"].T) @ p["head"]

    return Network(fn, p, (tokens(2, T, VOCABULARY),), {(D,): 1, (H,): 1, (H, Q): 2})


@network
def fused_qkv_with_biases_of_their_own():
    "As in BEiT and Swin V2: the bias is that of queries, zeros, and that of values, end to end"
    p = draw(qkv=(D, 3 * H * Q), q_bias=(H * Q,), v_bias=(H * Q,), o=(H * Q, D), **STREAM)

    def fn(p, ids):
        x = p["embed"][ids]
        bias = jnp.concatenate([p["q_bias"], jnp.zeros(H * Q), p["v_bias"]])
        q, k, v = (x @ p["qkv"] + along(bias, x)).reshape(2, T, 3, H, Q).transpose(2, 0, 3, 1, 4)
        y = softmax(q @ k.swapaxes(-1, -2)) @ v
        return (x + y.transpose(0, 2, 1, 3).reshape(2, T, H * Q) @ p["o"]) @ p["head"]

    return Network(fn, p, (tokens(2, T, VOCABULARY),), {(D,): 1, (H,): 1, (H, Q): 2})


@network
def fused_qkv_with_three_biases_and_rotary_positions():
    "As in EVA: what turns by angles of its own is fixed, and the units of values are free"
    biases = dict.fromkeys(("q_bias", "k_bias", "v_bias"), (H * 4,))
    p = draw(qkv=(D, 3 * H * 4), o=(H * 4, D), **biases, **STREAM)

    def rotary(x):
        angles = jnp.arange(T)[:, None] / jnp.array([[1.0, 9.0]])
        a, b = x[..., ::2], x[..., 1::2]
        cos, sin = jnp.cos(angles)[None, None], jnp.sin(angles)[None, None]
        return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)

    def fn(p, ids):
        x = p["embed"][ids]
        bias = jnp.concatenate([p["q_bias"], p["k_bias"], p["v_bias"]])
        q, k, v = (x @ p["qkv"] + along(bias, x)).reshape(2, T, 3, H, 4).transpose(2, 0, 3, 1, 4)
        y = softmax(rotary(q) @ rotary(k).swapaxes(-1, -2)) @ v
        return (x + y.transpose(0, 2, 1, 3).reshape(2, T, H * 4) @ p["o"]) @ p["head"]

    return Network(fn, p, (tokens(2, T, VOCABULARY),), {(D,): 1, (H,): 1, (H, 4): 1})


@network
def slices_of_a_slice():
    "Rows 0 and 1 are read again within each column: there, heads and rows number units together"
    p = draw(w=(3, 4, 3, 5), scale=(5,), o=(4, 15, 2), u=(4, 2, 5, 2), v=(4, 2, 5, 2))

    def fn(p, x):
        y = jnp.tanh(jnp.einsum("bi,ihrc->bhrc", x, p["w"])) * along(p["scale"], x[:, None, None])
        first, flat = y[:, :, :2], y.reshape(*y.shape[:2], -1)
        again = jnp.pad(first, ((0, 0), (0, 0), (0, 0), (1, 2)))[..., 1:6]
        read = jnp.tensordot(first, p["u"], 3) + jnp.tensordot(again, p["v"], 3)
        return jnp.tensordot(flat, p["o"], 2) + read

    return Network(fn, p, (floats(2, 3),), {(5,): 1, (5, 8): 1, (5, 4): 1})


@network
def fused_qkv_on_one_axis():
    "As in timm: 3 × heads × units on one axis, transposed, then unpacked"
    p = draw(qkv=(D, 3 * H * Q), bias=(3 * H * Q,), o=(H * Q, D), **STREAM)

    def fn(p, ids):
        x = p["embed"][ids]
        y = (x @ p["qkv"] + along(p["bias"], x)).reshape(2, T, 3, H, Q)
        q, k, v = y.transpose(2, 0, 3, 1, 4)
        y = softmax(q @ k.swapaxes(-1, -2)) @ v
        return (x + y.transpose(0, 2, 1, 3).reshape(2, T, H * Q) @ p["o"]) @ p["head"]

    return Network(fn, p, (tokens(2, T, VOCABULARY),), {(D,): 1, (H,): 1, (H, Q): 2})


@network
def fused_qkv_on_an_axis_of_its_own():
    "A kernel of shape (D, 3, heads, units)"
    p = draw(qkv=(D, 3, H, Q), bias=(3, H, Q), out=(H, Q, D), **STREAM)

    def fn(p, ids):
        x = p["embed"][ids]
        y = jnp.einsum("btd,dchq->btchq", x, p["qkv"]) + p["bias"][None, None]
        y = attend(y[:, :, 0], y[:, :, 1], y[:, :, 2])
        return (x + from_heads(y, p["out"])) @ p["head"]

    return Network(fn, p, (tokens(2, T, VOCABULARY),), {(D,): 1, (H,): 1, (H, Q): 2})


@network
def tied_embeddings():
    "The last layer is the embedding, scaled; its bias belongs to the words"
    p = draw(embed=(VOCABULARY, D), bias=(VOCABULARY,), **FEED_FORWARD)

    def fn(p, ids):
        x = p["embed"][ids] * D**0.5
        x = x + relu(x @ p["w1"]) @ p["w2"]
        return x @ p["embed"].T + along(p["bias"], x)

    return Network(fn, p, (tokens(2, T, VOCABULARY),), {(D,): 1, (F,): 1})


@network
def swiglu():
    "A gate and what it multiplies move together"
    p = draw(embed=(4, D), gate=(D, F), up=(D, F), down=(F, D), out=(D, 3))

    def fn(p, x):
        x = x @ p["embed"]
        return (x + (silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]) @ p["out"]

    return Network(fn, p, (floats(3, 4),), {(D,): 1, (F,): 1})


@network
def swiglu_fused():
    "Both in one matrix, laid end to end"
    p = draw(embed=(4, D), gate_up=(D, 2 * F), bias=(2 * F,), down=(F, D), out=(D, 3))

    def fn(p, x):
        x = x @ p["embed"]
        gate, up = jnp.split(x @ p["gate_up"] + p["bias"][None], 2, -1)
        return (x + (silu(gate) * up) @ p["down"]) @ p["out"]

    return Network(fn, p, (floats(3, 4),), {(D,): 1, (F,): 1})


K, G = 2, 3  # heads of the keys, and for each of them so many of the queries


@network
def grouped_queries():
    "A key head moves with the query heads that it serves; these move among themselves"
    p = draw(q=(D, K, G, Q), k=(D, K, Q), v=(D, K, V), out=(K, G, V, D), **STREAM)

    def fn(p, ids):
        x = p["embed"][ids]
        q = jnp.einsum("btd,dkgq->btkgq", x, p["q"])
        scores = softmax(jnp.einsum("btkgq,bskq->bkgts", q, to_heads(x, p["k"])))
        y = jnp.einsum("bkgts,bskv->btkgv", scores, to_heads(x, p["v"]))
        return (x + jnp.einsum("btkgv,kgvd->btd", y, p["out"])) @ p["head"]

    groups = {(D,): 1, (K,): 1, (K, G): 1, (K, Q): 1, (K, V): 1}
    return Network(fn, p, (tokens(2, T, VOCABULARY),), groups)


def rotated(x):
    "Rotary embeddings: every unit has its own frequency and its partner"
    angle = jnp.arange(x.shape[1])[:, None] * 10.0 ** -jnp.arange(x.shape[-1] // 2)[None]
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


@network
def rotary_attention():
    "The units of queries and keys are fixed, their heads are not"
    p = draw(**STREAM, **FLAX_ATTENTION)

    def fn(p, ids):
        x = p["embed"][ids]
        q, k = rotated(to_heads(x, p["query"])), rotated(to_heads(x, p["key"]))
        y = attend(q, k, to_heads(x, p["value"]), causal=True)
        return (x + from_heads(y, p["out"])) @ p["head"]

    return Network(fn, p, (tokens(2, T, VOCABULARY),), {(D,): 1, (H,): 1, (H, V): 1})


@network
def llama():
    "Flat matrices, grouped queries with repeated keys, rotary embeddings, RMSNorm, SwiGLU"
    attention = {"q": (D, K * G * Q), "k": (D, K * Q), "v": (D, K * V), "o": (K * G * V, D)}
    hidden = {"gate": (D, F), "up": (D, F), "down": (F, D)}
    p = draw(n1=(D,), n2=(D,), **attention, **hidden, **STREAM)

    def split(y, heads):
        return y.reshape(*y.shape[:2], heads, -1)

    def fn(p, ids):
        x = p["embed"][ids]
        y = rms_norm(x, p["n1"])
        q, k = rotated(split(y @ p["q"], K * G)), rotated(split(y @ p["k"], K))
        k, v = jnp.repeat(k, G, 2), jnp.repeat(split(y @ p["v"], K), G, 2)
        x = x + attend(q, k, v, causal=True).reshape(2, T, K * G * V) @ p["o"]
        y = rms_norm(x, p["n2"])
        return (x + (silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]) @ p["head"]

    groups = {(D,): 1, (K,): 1, (K, G): 1, (K, V): 1, (F,): 1}
    return Network(fn, p, (tokens(2, T, VOCABULARY),), groups)


@network
def normalised_queries_and_keys():
    "One scale for all heads ties the units of queries and keys across them"
    p = draw(nq=(Q,), nk=(Q,), **STREAM, **FLAX_ATTENTION)

    def fn(p, ids):
        x = p["embed"][ids]
        q = rms_norm(to_heads(x, p["query"]), p["nq"])
        k = rms_norm(to_heads(x, p["key"]), p["nk"])
        return (x + from_heads(attend(q, k, to_heads(x, p["value"])), p["out"])) @ p["head"]

    return Network(fn, p, (tokens(2, T, VOCABULARY),), {(D,): 1, (H,): 1, (Q,): 1, (H, V): 1})


@network
def cross_attention():
    "The units of queries and keys are tied across two streams"
    e = 8  # width of the encoder's stream
    p = draw(source=(3, e), target=(4, D), readout=(D, 2))
    p |= draw(query=(D, H, Q), key=(e, H, Q), value=(e, H, V), out=(H, V, D))

    def fn(p, source, target):
        memory, x = jnp.tanh(source @ p["source"]), target @ p["target"]
        k, v = to_heads(memory, p["key"]), to_heads(memory, p["value"])
        x = x + from_heads(attend(to_heads(x, p["query"]), k, v), p["out"])
        return x @ p["readout"]

    groups = {(D,): 1, (e,): 1, **ATTENTION_GROUPS}
    return Network(fn, p, (floats(2, 5, 3), floats(2, 3, 4)), groups)


@network
def vision_transformer():
    "Patches by a strided convolution, a class token before them, learned positions"
    p = draw(patch=(2, 2, 3, D), token=(1, 1, D), position=(1, 5, D), scale=(D,), bias=(D,))
    p |= draw(readout=(D, 4), **FLAX_ATTENTION, **FEED_FORWARD)

    def fn(p, x):
        x = conv(x, p["patch"], stride=2).reshape(len(x), 4, D)
        token = jnp.broadcast_to(p["token"], (len(x), 1, D))
        x = jnp.concatenate([token, x], 1) + p["position"]
        x = x + self_attention(p, layer_norm(x, p["scale"], p["bias"]))
        x = x + gelu(x @ p["w1"]) @ p["w2"]
        return x[:, 0] @ p["readout"]

    groups = {(D,): 1, (F,): 1, **ATTENTION_GROUPS}
    return Network(fn, p, (floats(2, 4, 4, 3),), groups)


@network
def mlp_mixer():
    "One hidden layer mixes places, one mixes channels"
    s = 4  # hidden units of the layer that mixes places
    p = draw(embed=(3, D), t1=(T, s), t2=(s, T), c1=(D, F), c2=(F, D), out=(D, 2))

    def fn(p, x):
        x = x @ p["embed"]
        x = x + (gelu(x.swapaxes(1, 2) @ p["t1"]) @ p["t2"]).swapaxes(1, 2)
        x = x + gelu(x @ p["c1"]) @ p["c2"]
        return x.mean(1) @ p["out"]

    return Network(fn, p, (floats(2, T, 3),), {(D,): 1, (s,): 1, (F,): 1})


@network
def dense_experts():
    "Experts move with their gates, and their hidden units within each of them"
    e = 3  # experts
    p = draw(embed=(2, D), router=(D, e), w1=(e, D, F), w2=(e, F, D), out=(D, 2))

    def fn(p, x):
        x = x @ p["embed"]
        hidden = relu(jnp.einsum("bd,edf->bef", x, p["w1"]))
        mixed = jnp.einsum("be,bef,efd->bd", softmax(x @ p["router"]), hidden, p["w2"])
        return (x + mixed) @ p["out"]

    return Network(fn, p, (floats(3, 2),), {(D,): 1, (e,): 1, (e, F): 1})


# --------------------------------------------------------------------------- modules of flax linen


def linen(module: nn.Module, x: jax.Array, groups: Groups) -> Network:
    "A module of linen, which mixes the ranks of arrays"

    def fn(params, x):
        with jax.numpy_rank_promotion("allow"):
            return module.apply(params, x)

    with jax.numpy_rank_promotion("allow"):
        params = jax.jit(module.init)(jax.random.key(0), x)
    return Network(fn, params, (x,), groups)


@network
def linen_attention():
    "`MultiHeadDotProductAttention` in a residual stream, with a LayerNorm before it"

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(D)(x)
            attention = nn.MultiHeadDotProductAttention(num_heads=H, qkv_features=H * Q)
            return nn.Dense(2)(x + attention(nn.LayerNorm()(x)))

    return linen(Layer(), floats(2, T, 3), {(D,): 1, (H,): 1, (H, Q): 2})


@network
def linen_recurrent():
    "A GRU, then an LSTM, each in an `RNN`"

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            zeros = lambda n: jnp.zeros((len(x), n), x.dtype)
            x = nn.RNN(nn.GRUCell(5))(x, initial_carry=zeros(5))
            x = nn.RNN(nn.OptimizedLSTMCell(4))(x, initial_carry=(zeros(4), zeros(4)))
            return nn.Dense(2)(x)

    return linen(Layers(), floats(2, 3, 3), {(5,): 1, (4,): 1})


@network
def linen_group_norm():
    "Six channels in two groups, after a convolution"
    layers = [nn.Conv(6, (3, 3)), nn.GroupNorm(num_groups=2), relu, nn.Conv(2, (1, 1))]
    return linen(nn.Sequential(layers), floats(2, 4, 4, 3), {(2,): 1, (2, 3): 1})


@network
def linen_batch_norm():
    "Its running averages move with the channels"
    layers = [nn.Conv(6, (3, 3)), nn.BatchNorm(use_running_average=True), relu, nn.Conv(2, (1, 1))]
    return linen(nn.Sequential(layers), floats(2, 4, 4, 3), {(6,): 1})


# ------------------------------------------------------------------------ loops and other control


@network
def scan_over_layers():
    "A residual stream through stacked layers: heads and units move in each layer on their own"
    layers = 3
    stacked = {"scale": (D,), "bias": (D,), "b1": (F,), **FLAX_ATTENTION, **FEED_FORWARD}
    p = draw(embed=(3, D), readout=(D, 2))
    p |= draw(**{name: (layers, *shape) for name, shape in stacked.items()})

    def layer(x, w):
        x = x + self_attention(w, layer_norm(x, w["scale"], w["bias"]))
        return x + gelu(x @ w["w1"] + along(w["b1"], x)) @ w["w2"], None

    def fn(p, x):
        x, _ = lax.scan(layer, x @ p["embed"], {name: p[name] for name in stacked})
        return x @ p["readout"]

    groups = {(D,): 1, (layers, F): 1, **{(layers, *s): n for s, n in ATTENTION_GROUPS.items()}}
    return Network(fn, p, (floats(2, T, 3),), groups)


@network
def scan_without_residuals():
    "Stacked layers whose inputs and outputs are different units every time"
    layers, n = 3, 4
    p = draw(embed=(2, n), stack=(layers, n, n), bias=(layers, n), out=(n, 2))

    def fn(p, x):
        layer = lambda h, w: (jnp.tanh(h @ w[0] + w[1][None]), None)
        return lax.scan(layer, x @ p["embed"], (p["stack"], p["bias"]))[0] @ p["out"]

    return Network(fn, p, (floats(3, 2),), {(n,): layers + 1})


@network
def gru():
    "One group, on both axes of the recurrent matrices"
    n, inputs = 5, 3
    p = draw(out=(n, 2))
    for gate in "rzn":
        p |= draw(**{f"w{gate}": (inputs, n), f"u{gate}": (n, n), f"b{gate}": (n,)})

    def fn(p, xs):
        def step(h, x):
            r, z = (sigmoid(x @ p["w" + g] + h @ p["u" + g] + p["b" + g][None]) for g in "rz")
            new = jnp.tanh(x @ p["wn"] + r * (h @ p["un"]) + p["bn"][None])
            h = (1 - z) * new + z * h
            return h, h

        return lax.scan(step, jnp.zeros((xs.shape[1], n), xs.dtype), xs)[1] @ p["out"]

    return Network(fn, p, (floats(4, 2, inputs),), {(n,): 1})


def lstm_step(gates, c):
    "What the four gates make of a cell"
    i, f, g, o = gates
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return sigmoid(o) * jnp.tanh(c), c


@network
def lstm():
    "All gates on one axis: the group four times, and once more on the other axis"
    n, inputs = 5, 3
    p = draw(w=(inputs, 4 * n), u=(n, 4 * n), b=(4 * n,), out=(n, 2))

    def fn(p, xs):
        def step(state, x):
            h, c = state
            gates = jnp.split(x @ p["w"] + h @ p["u"] + p["b"][None], 4, -1)
            return lstm_step(gates, c), None

        zero = jnp.zeros((xs.shape[1], n), xs.dtype)
        return lax.scan(step, (zero, zero), xs)[0][0] @ p["out"]

    return Network(fn, p, (floats(4, 2, inputs),), {(n,): 1})


@network
def lstm_with_stacked_gates():
    "The gates on an axis of their own"
    n, inputs = 5, 3
    p = draw(w=(4, inputs, n), u=(4, n, n), b=(4, n), out=(n, 2))

    def fn(p, xs):
        def step(state, x):
            h, c = state
            gates = jnp.einsum("bd,gdh->gbh", x, p["w"]) + jnp.einsum("bd,gdh->gbh", h, p["u"])
            return lstm_step(gates + p["b"][:, None], c), None

        zero = jnp.zeros((xs.shape[1], n), xs.dtype)
        return lax.scan(step, (zero, zero), xs)[0][0] @ p["out"]

    return Network(fn, p, (floats(4, 2, inputs),), {(n,): 1})


@network
def while_loop():
    "A layer applied again and again"
    p = draw(embed=(2, 4), w=(4, 4), out=(4, 2))

    def fn(p, x):
        iteration = lambda s: (s[0] + 1, jnp.tanh(s[1] @ p["w"]) + s[1])
        return lax.while_loop(lambda s: s[0] < 3, iteration, (0, x @ p["embed"]))[1] @ p["out"]

    return Network(fn, p, (floats(3, 2),), {(4,): 1})


@network
def conditional():
    "Each branch has hidden units of its own"
    p = draw(embed=(2, 4), a1=(4, 5), a2=(5, 4), b1=(4, 6), b2=(6, 4), out=(4, 2))

    def fn(p, x, choices):
        x = x @ p["embed"]
        one = lambda h: h + relu(h @ p["a1"]) @ p["a2"]
        other = lambda h: h + jnp.sin(h @ p["b1"]) @ p["b2"]
        return [lax.cond(choice, one, other, x) @ p["out"] for choice in choices]

    args = (floats(3, 2), jnp.array([True, False]))
    return Network(fn, p, args, {(4,): 1, (5,): 1, (6,): 1})


# ----------------------------------------------------------------------- indices that are labels

EXPERTS = {(6,): 1, (4,): 1, (4, 8): 1}  # a stream, experts, and hidden units within each expert
MIXTURE = {"embed": (3, 6), "router": (6, 4), "w1": (4, 6, 8), "b1": (4, 8), "w2": (4, 8, 6)}


def mixture(layer, args=None):
    "A residual mixture of experts: layer(p, x, weights, places) with the two best of four"
    p = draw(**MIXTURE, out=(6, 2))

    def fn(p, x):
        x = x @ p["embed"]
        best, places = lax.top_k(softmax(x @ p["router"]), 2)
        best = best / best.sum(-1, keepdims=True)
        return (x + layer(p, x, best, places)) @ p["out"]

    return Network(fn, p, args or (floats(9, 3),), dict(EXPERTS))


def chosen_experts(p, x, best, w1, b1, w2):
    "Matrices that were looked up for each token"
    hidden = relu(jnp.einsum("nd,nkdf->nkf", x, w1) + b1)
    return jnp.einsum("nk,nkf,nkfd->nd", best, hidden, w2)


def all_experts(p, x, weights):
    "Every expert for every token, most with weight 0"
    hidden = relu(jnp.einsum("nd,edf->nef", x, p["w1"]) + p["b1"][None])
    return jnp.einsum("ne,nef,efd->nd", weights, hidden, p["w2"])


@network
def experts_by_gather():
    "Each token looks up its experts"
    look_up = lambda p, i: (p["w1"][i], jnp.take(p["b1"], i, axis=0), p["w2"][i])
    return mixture(lambda p, x, best, i: chosen_experts(p, x, best, *look_up(p, i)))


@network
def experts_by_gather_in_turn():
    "The first expert, then the second"

    def layer(p, x, best, places):
        y = jnp.zeros_like(x)
        for k in range(2):
            i = places[:, k]
            hidden = relu(jnp.einsum("nd,ndf->nf", x, p["w1"][i]) + p["b1"][i])
            y += best[:, k, None] * jnp.einsum("nf,nfd->nd", hidden, p["w2"][places[:, k]])
        return y

    return mixture(layer)


@network
def experts_by_vmap():
    "One token and one expert at a time"

    def layer(p, x, best, places):
        one = lambda x, i: relu(x @ p["w1"][i] + p["b1"][i]) @ p["w2"][i]
        each = jax.vmap(lambda x, i: jax.vmap(lambda i: one(x, i))(i))(x, places)
        return jnp.einsum("nk,nkd->nd", best, each)

    return mixture(layer)


@network
def experts_by_scan():
    "A loop over tokens"

    def layer(p, x, best, places):
        def token(total, one):
            x, best, i = one
            hidden = relu(jnp.einsum("d,kdf->kf", x, p["w1"][i]) + p["b1"][i])
            y = jnp.einsum("k,kf,kfd->d", best, hidden, p["w2"][i])
            return total + y, y

        return lax.scan(token, jnp.zeros_like(x[0]), (x, best, places))[1]

    return mixture(layer)


@network
def experts_one_hot():
    "Weights of all experts, from one-hot arrays"
    weigh = lambda best, i: (jax.nn.one_hot(i, 4) * best[..., None]).sum(1)
    return mixture(lambda p, x, best, i: all_experts(p, x, weigh(best, i)))


@network
def experts_compared():
    "Weights of all experts, where their numbers are those that were chosen"

    def weigh(best, i):
        return jnp.where(i[:, :, None] == jnp.arange(4)[None, None], best[..., None], 0).sum(1)

    return mixture(lambda p, x, best, i: all_experts(p, x, weigh(best, i)))


@network
def experts_scattered():
    "Weights of all experts, written to the places of the best"

    def weigh(best, i):
        return jnp.zeros((len(i), 4), best.dtype).at[jnp.arange(len(i))[:, None], i].set(best)

    return mixture(lambda p, x, best, i: all_experts(p, x, weigh(best, i)))


@network
def experts_of_all_outputs():
    "All experts compute, and the outputs of the best are taken"

    def layer(p, x, best, places):
        hidden = relu(jnp.einsum("nd,edf->nef", x, p["w1"]) + p["b1"][None])
        y = jnp.einsum("nef,efd->ned", hidden, p["w2"])
        return (best[..., None] * jnp.take_along_axis(y, places[..., None], axis=1)).sum(1)

    return mixture(layer)


def in_order_of_experts(p, x, best, places, back):
    "Tokens sorted by expert, through `ragged_dot`; back(y, order) puts them into their order"
    flat = places.reshape(-1)
    order, counts = jnp.argsort(flat), jnp.bincount(flat, length=4)
    hidden = lax.ragged_dot(jnp.repeat(x, 2, 0)[order], p["w1"], counts) + p["b1"][flat[order]]
    y = back(lax.ragged_dot(relu(hidden), p["w2"], counts), order)
    return jnp.einsum("nk,nkd->nd", best, y.reshape(*places.shape, -1))


@network
def experts_ragged():
    "Sorted by expert, and back by the inverse order"
    back = lambda y, order: y[jnp.argsort(order)]
    return mixture(lambda p, *args: in_order_of_experts(p, *args, back))


@network
def experts_ragged_and_scattered():
    "Sorted by expert, and written back to where they came from"
    back = lambda y, order: jnp.zeros_like(y).at[order].set(y)
    return mixture(lambda p, *args: in_order_of_experts(p, *args, back))


@network
def experts_with_capacity():
    "Each expert takes its first three tokens, as in a Switch transformer"
    p = draw(**MIXTURE, out=(6, 2))

    def fn(p, x):
        x = x @ p["embed"]
        gates = softmax(x @ p["router"])
        mask = jax.nn.one_hot(jnp.argmax(gates, -1), 4)
        place = jnp.cumsum(mask, 0) * mask
        mask = mask * (place <= 3)
        slots = jax.nn.one_hot(((place - 1) * mask).sum(-1).astype(int), 3)
        dispatch = jnp.einsum("ne,nc->nec", mask, slots)
        inputs = jnp.einsum("nec,nd->ecd", dispatch, x)
        hidden = relu(jnp.einsum("ecd,edf->ecf", inputs, p["w1"]) + p["b1"][:, None])
        weights = dispatch * (gates * mask).sum(-1)[:, None, None]
        y = jnp.einsum("nec,ecd->nd", weights, jnp.einsum("ecf,efd->ecd", hidden, p["w2"]))
        return (x + y) @ p["out"]

    return Network(fn, p, (floats(9, 3),), dict(EXPERTS))


@network
def experts_some_of_which_are_full():
    "Tokens that find no place at their expert are sent to one that is not there"
    p = draw(**MIXTURE, out=(6, 2))

    def fn(p, x):
        x = x @ p["embed"]
        gates = softmax(x @ p["router"])
        i = jnp.argmax(gates, -1)
        mask = jax.nn.one_hot(i, 4, dtype=int)
        slot = ((jnp.cumsum(mask, 0) - 1) * mask).sum(-1)
        i = jnp.where(slot < 3, i, 4)
        inputs = jnp.zeros((4, 3, 6), x.dtype).at[i, slot].set(x, mode="drop")
        hidden = relu(jnp.einsum("ecd,edf->ecf", inputs, p["w1"]) + p["b1"][:, None])
        y = jnp.einsum("ecf,efd->ecd", hidden, p["w2"])
        y = y.at[i, slot].get(mode="fill", fill_value=0) * gates.max(-1)[:, None]
        return (x + y) @ p["out"]

    return Network(fn, p, (floats(9, 3),), dict(EXPERTS))


@network
def experts_within_experts():
    "A router of groups, and in each group a router of its own"
    p = draw(r=(3, 4), s=(4, 3, 5), w=(4, 5, 3, 6), v=(4, 5, 6, 2))

    def fn(p, x):
        i = jnp.argmax(x @ p["r"], -1)
        j = jnp.argmax(jnp.einsum("nd,nde->ne", x, p["s"][i]), -1)
        hidden = relu(jnp.einsum("nd,ndf->nf", x, p["w"][i, j]))
        return jnp.einsum("nf,nfo->no", hidden, p["v"][i, j])

    return Network(fn, p, (floats(9, 3),), {(4,): 1, (4, 5): 1, (4, 5, 6): 1})


def nearest(x, codes):
    "The place of the code that is nearest"
    return jnp.argmin(((x[:, None] - codes[None]) ** 2).sum(-1), -1)


@network
def codebook():
    "Vector quantisation, with the gradient passed straight through"
    p = draw(encode=(3, 6), codes=(5, 6), decode=(6, 2))

    def fn(p, x):
        z = jnp.tanh(x @ p["encode"])
        q = p["codes"][nearest(z, p["codes"])]
        return (z + lax.stop_gradient(q - z)) @ p["decode"]

    return Network(fn, p, (floats(9, 3),), {(6,): 1, (5,): 1})


@network
def codebook_one_hot():
    "Vector quantisation by a product, distances multiplied out"
    p = draw(encode=(3, 6), codes=(5, 6), decode=(6, 2))

    def fn(p, x):
        z, codes = jnp.tanh(x @ p["encode"]), p["codes"]
        distance = (z**2).sum(-1, keepdims=True) - 2 * z @ codes.T + (codes**2).sum(-1)[None]
        return jax.nn.one_hot(jnp.argmin(distance, -1), 5) @ codes @ p["decode"]

    return Network(fn, p, (floats(9, 3),), {(6,): 1, (5,): 1})


@network
def codebooks_of_heads():
    "A codebook for each head: codes and units are within heads"
    p = draw(encode=(3, 3, 2), codes=(3, 5, 2), decode=(3, 2, 2))

    def fn(p, x):
        z = jnp.tanh(jnp.einsum("ni,ihd->nhd", x, p["encode"]))
        i = jax.vmap(nearest, (1, 0), 1)(z, p["codes"])
        return jnp.einsum("nhd,hdo->no", p["codes"][jnp.arange(3)[None], i], p["decode"])

    return Network(fn, p, (floats(9, 3),), {(3,): 1, (3, 5): 1, (3, 2): 1})


@network
def sorted_units():
    "Units in the order of their values, whatever they are called"
    p = draw(w=(3, 6), v=(6, 6), out=(6, 2))

    def fn(p, x):
        x = x @ p["w"]
        order = jnp.argsort(x, -1)
        ranked = jnp.take_along_axis(jnp.tanh(x) @ (p["v"] * (1 - jnp.eye(6))), order, -1)
        return jnp.cumsum(ranked, -1) @ p["out"]

    return Network(fn, p, (floats(9, 3),), {(6,): 1})


@network
def winners():
    "The two largest units, written to their places"
    p = draw(w=(3, 6), out=(6, 2))

    def fn(p, x):
        x = x @ p["w"]
        best, i = lax.top_k(x, 2)
        return jnp.zeros_like(x).at[jnp.arange(len(x))[:, None], i].add(best) @ p["out"]

    return Network(fn, p, (floats(9, 3),), {(6,): 1})


@network
def diagonals():
    "The diagonal of a matrix over units, its trace, and what is off its diagonal"
    p = draw(w=(3, 6), a=(6, 6), s=(6,), out=(6, 2))

    def fn(p, x):
        off = p["a"] - jnp.diag(jnp.diag(p["a"])) + jnp.diag(p["s"])
        masked = softmax(jnp.where(jnp.eye(6, dtype=bool), -jnp.inf, p["a"]))
        x = jnp.tanh(x @ p["w"] * jnp.trace(p["a"]))
        return (x @ off + jnp.tanh(x) @ masked + jnp.diagonal(p["a"])[None]) @ p["out"]

    return Network(fn, p, (floats(9, 3),), {(6,): 1})


@network
def places_after_a_relu():
    "Ties are decided by place: the router is fixed, the units of its experts are not"
    p = draw(embed=(3, 6), router=(6, 4), w1=(4, 6, 8), w2=(4, 8, 2))

    def fn(p, x):
        x = x @ p["embed"]
        i = jnp.argmax(relu(x @ p["router"]), -1)
        hidden = relu(jnp.einsum("nd,ndf->nf", x, p["w1"][i]))
        return jnp.einsum("nf,nfo->no", hidden, p["w2"][i])

    return Network(fn, p, (floats(9, 3),), {(6,): 1, (4, 8): 1})


@network
def places_as_numbers():
    "The expert after the best one: what comes after what is a matter of order"
    p = draw(embed=(3, 6), router=(6, 4), w1=(4, 6, 8), w2=(8, 2))

    def fn(p, x):
        x = x @ p["embed"]
        i = (jnp.argmax(x @ p["router"], -1) + 1) % 4
        hidden = relu(jnp.einsum("nd,ndf->nf", x, p["w1"][i]))
        return hidden @ p["w2"]

    return Network(fn, p, (floats(9, 3),), {(6,): 1, (8,): 1})


# ------------------------------------------------- axes that are joint, and less than meets the eye


@network
def joint_axes():
    "Two axes number the units of one group"
    p = draw(w=(3, 2, 4), out=(8, 2))
    fn = lambda p, x: relu(jnp.einsum("bi,ihq->bhq", x, p["w"])).reshape(len(x), -1) @ p["out"]
    return Network(fn, p, (floats(3, 3),), {(8,): 1})


@network
def unit_that_is_an_output():
    "It is fixed, and the units on both sides of it are one group"
    p = draw(w=(3, 4), out=(4, 2))

    def fn(p, x):
        h = jnp.tanh(x @ p["w"])
        return h[:, 1], h @ p["out"]

    return Network(fn, p, (floats(5, 3),), {(3,): 1})


@network
def concatenated_relu_beside_an_output():
    "As before, with all units twice on one axis"
    p = draw(w=(3, 4), out=(8, 2))

    def fn(p, x):
        h = x @ p["w"]
        return h[:, 1], jnp.concatenate([relu(h), relu(-h)], -1) @ p["out"]

    return Network(fn, p, (floats(5, 3),), {(3,): 1})


@network
def padding_twice_on_one_axis():
    "Three entries that are always one, and three that are always zero, with inputs between them"
    p = draw(bias=(12,), out=(12, 2))

    def fn(p, x):
        x = jnp.pad(x, ((0, 0), (2, 1)))
        return (jnp.concatenate([jnp.cos(x), x], -1) + p["bias"][None]) @ p["out"]

    return Network(fn, p, (floats(5, 3),), {(3,): 2})


@network
def units_paired_but_not_heads():
    "Two arrays share their units; their heads, which meet each other, have nothing to share"
    p = draw(a=(5, 3, 4), b=(5, 3, 4), out=(3, 3, 2))

    def fn(p, x):
        a, b = (jnp.tanh(jnp.einsum("bi,ihq->bhq", x, p[name])) for name in "ab")
        return jnp.einsum("bhg,hgo->bo", jnp.einsum("bhq,bgq->bhg", a, b), p["out"])

    return Network(fn, p, (floats(3, 5),), {(4,): 1, (3,): 2})


@network
def vector_over_the_units_of_all_heads():
    "It ties the units across the heads, so that these move within each unit"
    p = draw(w=(5, 3, 4), scale=(4,), out=(3, 4, 2))

    def fn(p, x):
        x = jnp.tanh(jnp.einsum("bi,ihq->bhq", x, p["w"])) * p["scale"][None, None]
        return jnp.einsum("bhq,hqo->bo", x, p["out"])

    return Network(fn, p, (floats(3, 5),), {(4,): 1, (4, 3): 1})


@network
def cumulative_sum():
    "Its entries know those before them; the layer after it is free"
    p = draw(a=(5, 3), b=(3, 4), out=(4, 2))
    fn = lambda p, x: relu(jnp.cumsum(x @ p["a"], -1) @ p["b"]) @ p["out"]
    return Network(fn, p, (floats(3, 5),), {(4,): 1})


@network
def units_picked_by_the_data():
    "A gather at places that are an argument"
    p = draw(a=(5, 4), b=(3, 6), out=(6, 2))

    def fn(p, x, places):
        x = jnp.take_along_axis(jnp.tanh(x @ p["a"]), places, axis=1)
        return relu(x @ p["b"]) @ p["out"]

    places = jnp.array([[3, 0, 1], [2, 2, 1], [1, 3, 0]])
    return Network(fn, p, (floats(3, 5), places), {(6,): 1})


@network
def constants_beside_units():
    "Inputs that are always one are alike, and so are those that are always two"
    p = draw(a=(5, 4), b=(9, 6), out=(6, 2))

    def fn(p, x):
        x = jnp.tanh(x @ p["a"])
        ones, twos = jnp.ones((len(x), 2), x.dtype), jnp.full((len(x), 3), 2, x.dtype)
        return relu(jnp.concatenate([x, ones, twos], -1) @ p["b"]) @ p["out"]

    return Network(fn, p, (floats(3, 5),), {(4,): 1, (2,): 1, (3,): 1, (6,): 1})


@network
def constants_of_two_values():
    "Inputs that are one array of ones and twos: entries of one value are alike"
    p = draw(b=(5, 6), c=(5, 6), out=(6, 2))

    def fn(p, x):
        ones, twos = jnp.ones((len(x), 2), x.dtype), jnp.full((len(x), 3), 2, x.dtype)
        constant = jnp.concatenate([ones, twos], -1)
        return relu(x @ p["c"] + constant @ p["b"]) @ p["out"]

    return Network(fn, p, (floats(3, 5),), {(2,): 1, (3,): 1, (6,): 1})


@network
def unused_array():
    "What the function does not read has no symmetry to speak of"
    p = draw(a=(5, 7), b=(7, 2), unused=(6, 6))
    return Network(lambda p, x: relu(x @ p["a"]) @ p["b"], p, (floats(3, 5),), {(7,): 1})


# -------------------------------------------------------------------------------- entries by turns


def by_readers(channels: Iterable[tuple[str, int]], readers: dict) -> Groups:
    "Channels of one layer are one group if the same arrays read them; one alone is none"
    kinds = Counter((layer, tuple(readers[layer, k])) for layer, k in channels)
    return Counter((n,) for n in kinds.values() if n > 1)


def shuffled(x, groups: int, axis: int = -1):
    "A channel shuffle: the channels of the groups take turns"
    axis %= x.ndim
    y = x.reshape(*x.shape[:axis], groups, -1, *x.shape[axis + 1 :])
    return y.swapaxes(axis, axis + 1).reshape(x.shape)


def shufflenet_v2(channels: int, units: int, torch: bool = False) -> Network:
    "A stage: one half of the channels passes, a branch reads the other, and they are shuffled"
    half, axis = channels // 2, 1 if torch else -1
    kernel = (lambda a, b, i, o: (o, i, a, b)) if torch else (lambda *shape: shape)
    layer = {"a": (1, 1, half, half), "dw": (3, 3, 1, half), "b": (1, 1, half, half)}
    shapes = {f"{k}{name}": kernel(*s) for k in range(units) for name, s in layer.items()}
    p = draw(stem=kernel(3, 3, 3, channels), head=(channels, 5), **shapes)
    layout = ("NCHW", "OIHW", "NCHW") if torch else ("NHWC", "HWIO", "NHWC")

    def apply(x, w, groups=1):
        sizes = {"dimension_numbers": layout, "feature_group_count": groups}
        return relu(lax.conv_general_dilated(x, w, (1, 1), "SAME", **sizes))

    def fn(p, x):
        x = apply(x, p["stem"])
        for k in range(units):
            left, y = jnp.split(x, 2, axis)
            y = apply(apply(y, p[f"{k}a"]), p[f"{k}dw"], half)
            x = shuffled(jnp.concatenate([left, apply(y, p[f"{k}b"])], axis), 2, axis)
        return x.mean((2, 3) if torch else (1, 2)) @ p["head"]

    stream, readers = [("stem", k) for k in range(channels)], defaultdict(list)
    every = [*stream]
    for k in range(units):
        for channel in stream[half:]:
            readers[channel].append(k)
        new = [(str(k), j) for j in range(half)]
        every += new
        stream = [x for pair in zip(stream[:half], new, strict=True) for x in pair]
    for channel in stream:
        readers[channel].append(units)
    groups = by_readers(every, readers) + Counter({(half,): units})
    return Network(fn, p, (floats(2, 3, 4, 4) if torch else floats(2, 4, 4, 3),), groups)


@network
def shufflenet_v2_stage():
    "Channels of a unit are those that the same later units read"
    return shufflenet_v2(16, 3)


@network
def shufflenet_v2_stage_in_torch():
    "Channels come first"
    return shufflenet_v2(16, 3, torch=True)


@network
def shufflenet_v2_of_odd_halves():
    "Cut at places where the left and the right are not cut alike"
    return shufflenet_v2(20, 3)


def shufflenet_v1(width: int, hidden: int, groups: int, units: int = 2) -> Network:
    "Convolutions of groups, between which channels are shuffled, with residuals"
    layer = {
        "a": (1, 1, width // groups, hidden),
        "dw": (3, 3, 1, hidden),
        "b": (1, 1, hidden // groups, width),
    }
    shapes = {f"{k}{name}": s for k in range(units) for name, s in layer.items()}
    p = draw(stem=(3, 3, 3, width), head=(width, 5), **shapes)

    def fn(p, x):
        x = relu(conv(x, p["stem"]))
        for k in range(units):
            y = shuffled(relu(conv(x, p[f"{k}a"], groups=groups)), groups)
            y = conv(conv(y, p[f"{k}dw"], groups=hidden), p[f"{k}b"], groups=groups)
            x = relu(x + y)
        return x.mean((1, 2)) @ p["head"]

    order = np.arange(hidden).reshape(groups, -1).T.ravel()  # the channel at each place
    each = hidden // groups
    cells = Counter((k // each, place // each) for place, k in enumerate(order.tolist()))
    sizes = Counter((n,) for n in cells.values() for _ in range(units) if n > 1)
    found = sizes + Counter({(width // groups,): groups})
    return Network(fn, p, (floats(2, 4, 4, 3),), found)


@network
def shufflenet_v1_unit():
    "A channel is known by the group that it comes from and the one that it goes to"
    return shufflenet_v1(24, 8, 2)


@network
def shufflenet_v1_of_three_groups():
    "Six channels of each group go to three groups, and not in equal numbers"
    return shufflenet_v1(12, 15, 3)


@network
def shufflenet_v1_of_four_groups():
    "Ten channels of each group"
    return shufflenet_v1(16, 40, 4, 1)


@network
def branches_by_turns():
    "Two layers, stacked along a new last axis that is merged, and cut in the middle"
    p = draw(a=(3, 8), b=(3, 8), low=(8, 5), high=(8, 5), out=(5, 2))

    def fn(p, x):
        y = jnp.stack([jnp.tanh(x @ p["a"]), jnp.tanh(x @ p["b"])], -1).reshape(len(x), 16)
        return relu(y[:, :8] @ p["low"] + jnp.tanh(y[:, 8:]) @ p["high"]) @ p["out"]

    return Network(fn, p, (floats(4, 3),), {(4,): 4, (5,): 1})


@network
def every_other_unit():
    "Even and odd units, as a strided slice takes them"
    p = draw(w=(3, 9), even=(5, 6), odd=(4, 6), out=(6, 2))

    def fn(p, x):
        y = jnp.tanh(x @ p["w"])
        return relu(y[:, ::2] @ p["even"] + jnp.tanh(y[:, 1::2]) @ p["odd"]) @ p["out"]

    return Network(fn, p, (floats(4, 3),), {(5,): 1, (4,): 1, (6,): 1})


@network
def shuffled_and_back():
    "The opposite of a shuffle puts every unit where it was"
    p = draw(w=(3, 12), out=(12, 2))

    def fn(p, x):
        y = jnp.tanh(shuffled(jnp.tanh(x @ p["w"]), 3))
        return shuffled(y, 4) @ p["out"]

    return Network(fn, p, (floats(4, 3),), {(12,): 1})


@network
def rotary_pairs_beside_each_other():
    "Rotary embedding of neighbours: every pair turns by an angle of its own"
    p = draw(q=(D, H, Q), k=(D, H, Q), v=(D, H, V), out=(H, V, D), **STREAM)
    angles = np.arange(T)[:, None] / 10.0 ** np.arange(Q // 2)

    def turn(x):
        cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (np.cos, np.sin))
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)

    def fn(p, ids):
        x = p["embed"][ids]
        q, k = turn(to_heads(x, p["q"])), turn(to_heads(x, p["k"]))
        return (x + from_heads(attend(q, k, to_heads(x, p["v"])), p["out"])) @ p["head"]

    return Network(fn, p, (tokens(2, T, VOCABULARY),), {(D,): 1, (H,): 1, (H, V): 1})


def pixel_shuffle(torch: bool) -> Network:
    "From channels to places: those that go to one pixel move alike"
    p = draw(k=(3, 3, 3, 12), after=(3, 3, 3, 4), out=(4, 2))

    def fn(p, x):
        y = relu(conv(x, p["k"]))
        n, h, w, _ = y.shape
        if torch:
            y = y.reshape(n, h, w, 3, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        else:
            y = y.reshape(n, h, w, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
        y = y.reshape(n, 2 * h, 2 * w, 3)
        return relu(conv(y, p["after"])).mean((1, 2)) @ p["out"]

    return Network(fn, p, (floats(2, 4, 4, 3),), {(3,): 1, (4,): 1})


@network
def pixel_shuffle_of_places_first():
    "The places are the slower factor of the channels"
    return pixel_shuffle(torch=False)


@network
def pixel_shuffle_of_places_last():
    "As in PyTorch: they are the faster one"
    return pixel_shuffle(torch=True)


@network
def space_to_depth():
    "From places to channels"
    p = draw(k=(3, 3, 3, 3), after=(1, 1, 12, 4), out=(4, 2))

    def fn(p, x):
        y = relu(conv(x, p["k"]))
        y = y.reshape(len(y), 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(y), 2, 2, 12)
        return relu(conv(y, p["after"])).mean((1, 2)) @ p["out"]

    return Network(fn, p, (floats(2, 4, 4, 3),), {(3,): 1, (4,): 1})


@network
def joint_axes_within_a_host():
    "Each expert has hidden units that two axes number together"
    p = draw(gate=(3, 4), w=(4, 3, 2, 5), v=(4, 2, 5, 2))

    def fn(p, x):
        hidden = jnp.tanh(jnp.einsum("bi,eiqh->beqh", x, p["w"]))
        return jnp.einsum("beqh,eqho,be->bo", hidden, p["v"], softmax(x @ p["gate"]))

    return Network(fn, p, (floats(4, 3),), {(4,): 1, (4, 10): 1})


# ----------------------------------------------- many devices, equations, gradients, reductions


def over_devices(fn, ins, outs):
    "`shard_map` over a mesh of one device, wherever it is in this version of JAX"
    try:
        mapped = jax.shard_map
    except AttributeError:
        from jax.experimental.shard_map import shard_map as mapped
    mesh = Mesh(np.array(jax.devices()[:1]), ("devices",))
    return mapped(fn, mesh=mesh, in_specs=ins, out_specs=outs)


@network
def data_parallel():
    "The batch is divided among devices, and the loss averaged over them"
    p = draw(w=(5, 7), b=(7,), v=(7, 3))

    def fn(p, x):
        y = relu(x @ p["w"] + p["b"][None]) @ p["v"]
        return y, lax.pmean(jnp.mean(y**2, 0), "devices")

    divided = over_devices(fn, (P(), P("devices")), (P("devices"), P()))
    return Network(divided, p, (floats(4, 5),), {(7,): 1})


@network
def tensor_parallel():
    "Columns of the first matrix and rows of the second are divided among devices"
    p = draw(w=(5, 7), b=(7,), v=(7, 3))

    def fn(p, x):
        return lax.psum(relu(x @ p["w"] + p["b"][None]) @ p["v"], "devices")

    rows = {"w": P(None, "devices"), "b": P("devices"), "v": P("devices")}
    return Network(over_devices(fn, (rows, P()), P()), p, (floats(4, 5),), {(7,): 1})


@network
def linear_equations():
    "A layer that solves them: its unknowns and its equations have groups of their own"
    p = draw(w=(5, 6), a=(6, 6), v=(6, 3))
    fn = lambda p, x: jnp.linalg.solve(p["a"], relu(x @ p["w"]).T).T @ p["v"]
    return Network(fn, p, (floats(4, 5),), {(6,): 2})


@network
def conjugate_gradients():
    "A solver for symmetric matrices, which goes in steps: unknowns and equations are one"
    p = draw(w=(5, 6), a=(6, 6), v=(6, 3))

    def fn(p, x):
        matrix = lambda h: p["a"] @ (p["a"].T @ h) + h
        solved, _ = jax.scipy.sparse.linalg.cg(matrix, relu(x @ p["w"]).T, maxiter=4)
        return solved.T @ p["v"]

    return Network(fn, p, (floats(4, 5),), {(6,): 2})


@network
def equilibrium():
    "A layer whose output is the fixed point of another one"
    p = draw(u=(5, 6), w=(6, 6), b=(6,), v=(6, 3))

    def fn(p, x):
        layer = lambda z: 0.5 * jnp.tanh(z @ p["w"] / 4 + x @ p["u"] + p["b"][None])

        def solve(f, z):
            return lax.fori_loop(0, 60, lambda _, z: z - f(z), z)

        def tangent(g, y):
            return lax.fori_loop(0, 60, lambda _, z: z - (g(z) - y), y)

        start = jnp.zeros((len(x), 6), x.dtype)
        return lax.custom_root(lambda z: z - layer(z), start, solve, tangent) @ p["v"]

    return Network(fn, p, (floats(4, 5),), {(6,): 1})


@network
def log_sum_of_experts():
    "A reduction by a function: the logarithm of a sum of exponentials"
    p = draw(w=(5, 7), b=(7,), v=(5, 3))

    def fn(p, x):
        h = x @ p["w"] + p["b"][None]
        return (
            lax.reduce(h, jnp.asarray(-jnp.inf, h.dtype), jnp.logaddexp, (1,))[:, None] + x @ p["v"]
        )

    return Network(fn, p, (floats(4, 5),), {(7,): 1})


@network
def gradients_of_a_convolutional_network():
    "The loss in training, and the size of each gradient: BatchNorm, pooling, a grouped kernel"
    p = draw(a=(3, 3, 2, 6), scale=(6,), bias=(6,), b=(3, 3, 1, 6), c=(1, 1, 6, 5), out=(5, 3))

    def loss(p, x, y):
        h = conv(x, p["a"])
        mean, var = h.mean((0, 1, 2), keepdims=True), h.var((0, 1, 2), keepdims=True)
        h = (h - mean) * lax.rsqrt(var + 1e-5) * along(p["scale"], h) + along(p["bias"], h)
        h = nn.max_pool(relu(h), (2, 2), (2, 2))
        h = conv(jnp.tanh(conv(h, p["b"], groups=6)), p["c"])
        return -jnp.mean(nn.log_softmax(jnp.sin(h).mean((1, 2)) @ p["out"]) * y)

    def fn(p, x, y):
        value, gradients = jax.value_and_grad(loss)(p, x, y)
        return jnp.stack([value, *(jnp.sum(g * g) for g in jax.tree.leaves(gradients))])

    return Network(fn, p, (floats(3, 4, 4, 2), floats(3, 3)), {(6,): 1, (5,): 1})


@network
def input_gradient_of_grouped_convolutions():
    "What a penalty on gradients computes: two groups of features, and the features in them"
    p = draw(a=(1, 1, 2, 6), b=(3, 3, 3, 8), out=(8, 3))

    def fn(p, x):
        def score(p, x):
            h = jnp.tanh(conv(jnp.tanh(conv(x, p["a"])), p["b"], groups=2))
            return jnp.sum((h.mean((1, 2)) @ p["out"]) ** 3)

        return jax.grad(score, 1)(p, x), jnp.sum(jax.grad(score)(p, x)["b"] ** 2, (2, 3))

    groups = {(2,): 1, (2, 3): 1, (2, 4): 1, (3,): 1}  # the scores are summed
    return Network(fn, p, (floats(3, 4, 4, 2),), groups)
