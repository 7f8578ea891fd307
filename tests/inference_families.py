"""More networks with their symmetry in theory: state spaces, training code, what is not read."""

import jax
import jax.numpy as jnp
import numpy as np
from inference_networks import (
    Network,
    along,
    conv,
    draw,
    floats,
    from_heads,
    layer_norm,
    network,
    rms_norm,
    self_attention,
    to_heads,
    tokens,
)
from jax import lax
from jax.nn import gelu, relu, silu, softplus

# ------------------------------------------------------------------------------------ state spaces


def diagonal_recurrence(rate, x):
    "h ← rate h + x along the first axis, by a prefix sum"
    both = lambda l, r: (l[0] * r[0], l[1] * r[0] + r[1])
    return lax.associative_scan(both, (jnp.broadcast_to(rate[None], x.shape), x))[1]


def complex_of(p, name):
    return p[f"{name}_re"] + 1j * p[f"{name}_im"]


def complex_pair(**shapes):
    return {f"{k}_{part}": shape for k, shape in shapes.items() for part in ("re", "im")}


@network
def linear_recurrent_units():
    "LRU: two layers of complex states, each with its own, around a stream"
    layer = {"nu": (5,), "theta": (5,), "skip": (6,), **complex_pair(b=(6, 5), c=(5, 6))}
    mixer = {"gain": (6,), "bias": (6,), "up": (6, 6), "gate": (6, 6)}
    shapes = {f"{k}{i}": s for i in (1, 2) for k, s in (layer | mixer).items()}
    p = draw(embed=(4, 6), head=(6, 3), **shapes)

    def block(p, x):
        y = layer_norm(x, p["gain"], p["bias"])
        rate = jnp.exp(-jnp.exp(p["nu"]) + 1j * jnp.exp(p["theta"]))
        gamma = jnp.sqrt(1 - jnp.abs(rate) ** 2)
        h = diagonal_recurrence(rate, (y @ complex_of(p, "b")) * gamma[None])
        y = gelu((h @ complex_of(p, "c")).real + y * p["skip"][None])
        return x + (y @ p["up"]) * jax.nn.sigmoid(y @ p["gate"])

    def fn(p, x):
        x = x @ p["embed"]
        for i in ("1", "2"):
            x = block({k[:-1]: w for k, w in p.items() if k.endswith(i)}, x)
        return x.mean(0) @ p["head"]

    return Network(fn, p, (floats(7, 4),), {(5,): 2, (6,): 1})


@network
def simplified_state_spaces():
    "S5: a complex diagonal system with a step for each state, followed step by step"
    p = draw(
        embed=(4, 6),
        log_step=(5,),
        skip=(6,),
        head=(6, 3),
        **complex_pair(b=(5, 6), c=(6, 5), a=(5,)),
    )

    def fn(p, x):
        x = x @ p["embed"]
        a = -jnp.exp(p["a_re"]) + 1j * p["a_im"]
        rate = jnp.exp(a * jnp.exp(p["log_step"]))
        inputs = (x @ complex_of(p, "b").T) * ((rate - 1) / a)[None]
        step = lambda h, u: (rate * h + u,) * 2
        h = lax.scan(step, jnp.zeros_like(inputs[0]), inputs)[1]
        return (x + gelu(2 * (h @ complex_of(p, "c").T).real + x * p["skip"][None])) @ p["head"]

    return Network(fn, p, (floats(7, 4),), {(5,): 1, (6,): 1})


@network
def diagonal_state_space_kernels():
    "S4D: each channel is convolved with a kernel of its own states, by Fourier transforms"
    shapes = complex_pair(c=(6, 4))
    p = draw(embed=(3, 6), a_re=(6, 4), a_im=(6, 4), log_dt=(6,), skip=(6,), head=(6, 2), **shapes)

    def fn(p, x):
        u, length = (x @ p["embed"]).T, len(x)  # (channels, time)
        a = -jnp.exp(p["a_re"]) + 1j * p["a_im"]
        dt_a = a * jnp.exp(p["log_dt"])[:, None]
        powers = jnp.exp(dt_a[:, :, None] * jnp.arange(length)[None, None])
        weights = complex_of(p, "c") * (jnp.exp(dt_a) - 1) / a
        kernel = 2 * jnp.einsum("hn,hnt->ht", weights, powers).real
        spectra = jnp.fft.rfft(kernel, n=2 * length) * jnp.fft.rfft(u, n=2 * length)
        y = jnp.fft.irfft(spectra, n=2 * length)[:, :length] + u * p["skip"][:, None]
        return gelu(y.T) @ p["head"]

    return Network(fn, p, (floats(7, 3),), {(6,): 1, (6, 4): 1})


@network
def state_space_duality():
    "Mamba2: heads with a scalar decay, one fused projection whose first pieces are empty"
    heads, units, states = 3, 4, 5
    inner = heads * units
    mixed = inner + 2 * states
    p = draw(
        embed=(4, 6),
        into=(6, inner + mixed + heads),
        kernel=(3, 1, mixed),
        conv_bias=(mixed,),
        a=(heads,),
        skip=(heads,),
        dt_bias=(heads,),
        norm=(inner,),
        out=(inner, 6),
        head=(6, 2),
    )

    def fn(p, x):
        x = x @ p["embed"]
        y = x @ p["into"]
        cuts = np.cumsum([0, 0, inner, mixed]).tolist()
        nothing, none, z, xbc, dt = jnp.split(y, cuts, -1)
        xbc = jnp.pad(xbc, ((2, 0), (0, 0)))[None]
        layout = ("NTC", "TIO", "NTC")
        xbc = lax.conv_general_dilated(
            xbc, p["kernel"], (1,), "VALID", dimension_numbers=layout, feature_group_count=mixed
        )[0]
        v, b, c = jnp.split(silu(xbc + p["conv_bias"][None]), [inner, inner + states], -1)
        v = v.reshape(len(v), heads, units)
        dt = softplus(dt + p["dt_bias"][None])
        decay = jnp.exp(-dt * jnp.exp(p["a"])[None])

        def step(h, now):
            v, b, c, dt, decay = now
            h = decay[:, None, None] * h + jnp.einsum("hp,n,h->hpn", v, b, dt)
            return h, jnp.einsum("hpn,n->hp", h, c)

        start = jnp.zeros((heads, units, states), v.dtype)
        y = lax.scan(step, start, (v, b, c, dt, decay))[1] + p["skip"][None, :, None] * v
        y = rms_norm(y.reshape(len(y), inner) * silu(z), p["norm"])
        unused = jnp.concatenate([y, nothing * jnp.exp(none)], -1)
        return (x + unused @ p["out"]) @ p["head"]

    return Network(fn, p, (floats(7, 4),), {(heads,): 1, (heads, units): 1, (states,): 1, (6,): 1})


# ----------------------------------------------------------------------------------- training code


@network
def batch_norm_in_training():
    "BatchNorm by the moments of the batch itself, as jnp.var gives them"
    p = draw(k1=(3, 3, 3, 6), g1=(6,), b1=(6,), k2=(3, 3, 6, 5), g2=(5,), b2=(5,), head=(5, 2))

    def norm(x, gain, bias):
        mean, var = x.mean((0, 1, 2), keepdims=True), jnp.var(x, (0, 1, 2), keepdims=True)
        return (x - mean) * lax.rsqrt(var + 1e-5) * along(gain, x) + along(bias, x)

    def fn(p, x):
        x = relu(norm(conv(x, p["k1"]), p["g1"], p["b1"]))
        x = relu(norm(conv(x, p["k2"]), p["g2"], p["b2"]))
        return x.mean((1, 2)) @ p["head"]

    return Network(fn, p, (floats(2, 4, 4, 3),), {(6,): 1, (5,): 1})


@network
def group_norm_by_hand():
    "Three groups of four features, normalised by jnp.std"
    p = draw(k1=(3, 3, 3, 12), gain=(12,), bias=(12,), head=(12, 2))

    def fn(p, x):
        x = conv(x, p["k1"])
        y = x.reshape(*x.shape[:3], 3, 4)
        y = (y - y.mean((1, 2, 4), keepdims=True)) / (jnp.std(y, (1, 2, 4), keepdims=True) + 1e-5)
        y = y.reshape(x.shape) * along(p["gain"], x) + along(p["bias"], x)
        return relu(y).mean((1, 2)) @ p["head"]

    return Network(fn, p, (floats(2, 4, 4, 3),), {(3,): 1, (3, 4): 1})


@network
def quantiles_of_a_batch():
    "Units scaled by quantiles of theirs over the batch"
    p = draw(w1=(4, 6), w2=(6, 5), w3=(5, 2))

    def fn(p, x):
        h = x @ p["w1"]
        low, middle, high = jnp.quantile(h, jnp.array([0.25, 0.5, 0.75]), axis=0)
        h = (h - middle[None]) / (high - low + 1e-2)[None]
        return jnp.tanh(jnp.clip(h, -3, 3) @ p["w2"]) @ p["w3"]

    return Network(fn, p, (floats(9, 4),), {(6,): 1, (5,): 1})


@network
def gradient_step():
    "What the weights give after a step of gradient descent"
    p = draw(w1=(4, 6), w2=(6, 2))

    def fn(p, x, y):
        net = lambda p: jnp.tanh(x @ p["w1"]) @ p["w2"]
        slope = jax.grad(lambda p: jnp.mean((net(p) - y) ** 2))(p)
        return net(jax.tree.map(lambda w, g: w - 0.1 * g, p, slope))

    return Network(fn, p, (floats(5, 4), floats(5, 2)), {(6,): 1})


# -------------------------------------------------------------------- masks, integers, what is read


def masked_attention(p, x, mask):
    "Attention where a mask allows it"
    q, k, v = (to_heads(x, p[name]) for name in ("query", "key", "value"))
    scores = jnp.einsum("bthq,bshq->bhts", q, k) / q.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9))
    return from_heads(jnp.einsum("bhts,bshv->bthv", weights, v), p["out"])


def three_heads():
    "Parameters and groups of three heads between two layers"
    p = draw(
        query=(6, 3, 4), key=(6, 3, 4), value=(6, 3, 5), out=(3, 5, 6), embed=(4, 6), head=(6, 2)
    )
    return p, {(3,): 1, (3, 4): 1, (3, 5): 1, (6,): 2}


@network
def mask_as_an_argument():
    "A mask for each example, of all heads"
    p, groups = three_heads()
    mask = np.tril(np.ones((2, 7, 7), bool), 2)
    mask[1, :, 3] = False
    fn = lambda p, x, m: masked_attention(p, x @ p["embed"], m[:, None]) @ p["head"]
    return Network(fn, p, (floats(2, 7, 4), mask), groups)


@network
def mask_from_outside():
    "A mask that the function closes over, broadcast to all heads"
    p, groups = three_heads()
    mask = np.random.default_rng(0).random((2, 1, 7, 7)) < 0.7
    fn = lambda p, x: masked_attention(p, x @ p["embed"], mask) @ p["head"]
    return Network(fn, p, (floats(2, 7, 4),), groups)


@network
def quantised_layers():
    "Matrices of int8, with a scale for each unit that comes out"
    p = draw(s1=(6,), b1=(6,), s2=(5,), head=(5, 2))
    rng = np.random.default_rng(3)
    p |= {
        "w1": rng.integers(-9, 9, (4, 6)).astype(np.int8),
        "w2": rng.integers(-9, 9, (6, 5)).astype(np.int8),
    }

    def fn(p, x):
        h = relu(x @ p["w1"].astype(x.dtype) * p["s1"][None] + p["b1"][None])
        return jnp.tanh(h @ (p["w2"].astype(x.dtype) * p["s2"][None])) @ p["head"]

    return Network(fn, p, (floats(3, 4),), {(6,): 1, (5,): 1})


@network
def positions_read_in_part():
    "A table of sixteen positions, of which a text of five reads five"
    p = draw(embed=(11, 6), positions=(16, 6), gain=(6,), bias=(6,), up=(6, 8), down=(8, 6))

    def fn(p, t):
        x = p["embed"][t] + p["positions"][: t.shape[1]][None]
        x = x + gelu(layer_norm(x, p["gain"], p["bias"]) @ p["up"]) @ p["down"]
        return x @ p["embed"].T

    return Network(fn, p, (tokens(2, 5, 11),), {(6,): 1, (8,): 1})


@network
def head_that_is_not_returned():
    "A second head, a metric, and a loop over them, of which nothing is returned"
    p = draw(w1=(4, 6), w2=(6, 5), head=(5, 3), other=(5, 5), table=(5, 5))

    @jax.jit
    def heads(p, x):
        h = relu(x @ p["w1"])
        h = relu(h @ p["w2"])
        aside = lax.scan(lambda c, w: (jnp.tanh(c @ p["other"]) + w[None], None), h, p["table"])[0]
        return h @ p["head"], jnp.sort(h, -1), aside

    return Network(lambda p, x: heads(p, x)[0], p, (floats(3, 4),), {(6,): 1, (5,): 1})


@network
def attention_over_a_part_of_a_stack():
    "Two of three layers of a stack; the third is not read"
    p = draw(
        query=(3, 6, 2, 3),
        key=(3, 6, 2, 3),
        value=(3, 6, 2, 4),
        out=(3, 2, 4, 6),
        embed=(4, 6),
        head=(6, 2),
    )

    def fn(p, x):
        x = x @ p["embed"]
        for k in range(2):
            x = x + self_attention({n: p[n][k] for n in ("query", "key", "value", "out")}, x)
        return x @ p["head"]

    return Network(fn, p, (floats(2, 5, 4),), {(2,): 2, (2, 3): 2, (2, 4): 2, (6,): 1})


@network
def reversed_units_before_a_layer_of_a_stack():
    "Units in reverse order, read by the first layer of a stack: their places count"
    p = draw(w=(4, 6), a=(2, 6, 5), b=(5, 2))
    fn = lambda p, x: jnp.tanh(jnp.flip(relu(x @ p["w"]), 1) @ p["a"][0]) @ p["b"]
    return Network(fn, p, (floats(3, 4),), {(5,): 1})
