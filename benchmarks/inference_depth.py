"""How inference grows with depth: one decoder at several depths, its layers one after another.

    python benchmarks/inference_depth.py              all cases, and the record (a minute)
    python benchmarks/inference_depth.py --out x.json

The decoder has RMSNorm, grouped-query attention with rotary embedding and SwiGLU, at the widths of
70 billion parameters for 80 layers. Fused, queries, keys and values are one array that is cut, and
so are the gate and the hidden layer. Arguments are abstract, nothing is verified. What counts is
the time of a layer in a deep network beside that in a shallow one, of the same run: one, where the
time is linear in depth.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from git_rebasin.experiments.records import timed_record, write_record
from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.jaxprs import trace_arrays

RECORD = Path(__file__).parent / "records" / "inference_depth.json"
RUNS = 5  # of each measurement; the shortest counts
DEPTHS = 20, 40, 80
STREAM, GROUPS, QUERIES, UNITS, HIDDEN, VOCABULARY = 8192, 8, 8, 128, 28_672, 32_000


def normalised(gain, x):
    """RMSNorm."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * gain


def rotated(x):
    """Rotary embedding of (batch, positions, heads, units), which pairs the halves of the units."""
    half = x.shape[-1] // 2
    rate = 10_000.0 ** (-jnp.arange(half) / half)
    angle = jnp.arange(x.shape[1])[:, None, None] * rate
    first, second = x[..., :half], x[..., half:]
    turned = first * jnp.cos(angle) - second * jnp.sin(angle)
    return jnp.concatenate([turned, second * jnp.cos(angle) + first * jnp.sin(angle)], axis=-1)


def heads_of(w: dict, x):
    """Queries, keys and values, each of (batch, positions, heads, units)."""
    if "qkv" in w:
        both = x @ w["qkv"]
        parts = jnp.split(both, [w["o"].shape[0], (w["o"].shape[0] + both.shape[-1]) // 2], axis=-1)
    else:
        parts = [x @ w[n] for n in "qkv"]
    return [part.reshape(*part.shape[:-1], -1, UNITS) for part in parts]


def attention(w: dict, x):
    """Every group of queries has one head of keys and values."""
    q, k, v = heads_of(w, x)
    q = rotated(q).reshape(*q.shape[:2], k.shape[2], -1, UNITS)
    scores = jnp.einsum("btghq,bsgq->bghts", q, rotated(k)) / UNITS**0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e9)
    mixed = jnp.einsum("bghts,bsgq->btghq", jax.nn.softmax(scores), v)
    return mixed.reshape(*x.shape[:-1], -1) @ w["o"]


def swiglu(w: dict, x):
    """A hidden layer that is gated."""
    fused = "gate_up" in w
    gate, up = jnp.split(x @ w["gate_up"], 2, -1) if fused else (x @ w["gate"], x @ w["up"])
    return (jax.nn.silu(gate) * up) @ w["down"]


def decoder(params: dict, tokens):
    """From tokens to logits; embeddings are not tied."""
    x = params["embed"][tokens]
    for w in params["layers"]:
        x = x + attention(w, normalised(w["norm1"], x))
        x = x + swiglu(w, normalised(w["norm2"], x))
    return normalised(params["norm"], x) @ params["head"]


def shapes(layers: int, fused: bool) -> dict:
    """The shapes of its parameters."""
    queries, keys = GROUPS * QUERIES * UNITS, GROUPS * UNITS
    layer = {"o": (queries, STREAM), "down": (HIDDEN, STREAM)}
    layer |= dict.fromkeys(("norm1", "norm2"), (STREAM,))
    if fused:
        layer |= {"qkv": (STREAM, queries + 2 * keys), "gate_up": (STREAM, 2 * HIDDEN)}
    else:
        layer |= {"q": (STREAM, queries), "k": (STREAM, keys), "v": (STREAM, keys)}
        layer |= dict.fromkeys(("gate", "up"), (STREAM, HIDDEN))
    tree = {"embed": (VOCABULARY, STREAM), "norm": (STREAM,), "head": (STREAM, VOCABULARY)}
    tree |= {"layers": [layer] * layers}
    as_leaf = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=as_leaf)


def seconds_of(function) -> float:
    """The shortest of several runs, on the processor: others may use it, too."""
    each = []
    for _ in range(RUNS):
        start = time.process_time()
        function()
        each.append(time.process_time() - start)
    return min(each)


def measure(layers: int, fused: bool) -> dict:
    """One depth."""
    params, tokens = shapes(layers, fused), jax.ShapeDtypeStruct((2, 64), jnp.int32)
    infer = partial(infer_permutation_spec, decoder, params, tokens, verify=False)
    spec = infer()
    return {
        "layers": layers,
        "fused": fused,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "groups": len(spec.groups),
        "log10_symmetries": spec.log10_symmetries,
        "seconds": seconds_of(infer),
        "trace": seconds_of(lambda: trace_arrays(decoder, params, tokens)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    began, runs = time.perf_counter(), []
    for fused in (False, True):
        for layers in DEPTHS:
            run = measure(layers, fused)
            first = next((r for r in runs if r["fused"] is fused), run)
            run["of_a_layer"] = run["seconds"] / layers / (first["seconds"] / first["layers"])
            runs.append(run)
            print(
                f"{layers:3} layers{', fused' if fused else '':7} {run['parameters'] / 1e9:5.1f} "
                f"billion parameters, {run['groups']:4} groups: {run['seconds']:.2f} s, of which "
                f"JAX traces {run['trace']:.2f} s; a layer takes {run['of_a_layer']:.2f} × as long "
                f"as at {DEPTHS[0]}",
                flush=True,
            )
    record = timed_record("inference_depth", began, runs=runs)
    print(f"{record['seconds']:.0f} s; wrote {write_record(options.out, record)}")


if __name__ == "__main__":
    main()
