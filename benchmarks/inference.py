"""How long it takes to infer a spec: beside the trace that JAX itself makes of the function.

    python benchmarks/inference.py              all cases, and the record (a minute)
    python benchmarks/inference.py --out x.json

Every case has a process of its own. Arguments are abstract (shapes without values), so no network
is computed and nothing is verified.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from git_rebasin.architectures import cifar_resnet, transformer
from git_rebasin.experiments.records import timed_record, write_record
from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.jaxprs import trace_arrays
from git_rebasin.zoo import mlp, resnet, vgg

RECORD = Path(__file__).parent / "records" / "inference.json"
RUNS = 3  # of each measurement; the median counts


def decoder(params: dict, tokens):
    """A decoder with learned positions, LayerNorm, causal attention and tied embeddings."""
    positions = tokens.shape[1]
    x = params["embed"][tokens] + params["positions"][None, :positions]
    mask = jnp.tril(jnp.ones((positions, positions), bool))
    for w in params["layers"]:
        y = normalised(w["gain1"], w["bias1"], x)
        q, k, v = (jnp.einsum("btd,dhq->bthq", y, w[n]) + w[f"b{n}"] for n in "qkv")
        scores = jnp.where(mask, jnp.einsum("bthq,bshq->bhts", q, k) / q.shape[-1] ** 0.5, -1e9)
        x = x + jnp.einsum("bhts,bshq,hqd->btd", jax.nn.softmax(scores), v, w["o"])
        y = normalised(w["gain2"], w["bias2"], x)
        x = x + jax.nn.gelu(y @ w["up"] + w["bup"]) @ w["down"] + w["bdown"]
    return x @ params["embed"].T


def normalised(gain, bias, x):
    """LayerNorm."""
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * gain + bias


def decoder_shapes(layers: int, stream=1024, heads=16, hidden=4096, vocabulary=50_000) -> dict:
    """The shapes of its parameters."""
    units = stream // heads
    layer = dict.fromkeys("qkv", (stream, heads, units)) | {f"b{n}": (heads, units) for n in "qkv"}
    layer |= {"o": (heads, units, stream), "up": (stream, hidden), "down": (hidden, stream)}
    layer |= dict.fromkeys(("gain1", "bias1", "gain2", "bias2", "bdown"), (stream,))
    layer |= {"bup": (hidden,)}
    tree = {"embed": (vocabulary, stream), "positions": (256, stream), "layers": [layer] * layers}
    return jax.tree.map(abstract, tree, is_leaf=lambda x: isinstance(x, tuple))


def abstract(shape, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def model(init: Callable, apply: Callable, images: tuple, **options):
    """A network of the zoo: its function, and the shapes of its parameters and of a batch."""
    return apply, jax.eval_shape(partial(init, **options), jax.random.key(0)), abstract(images)


def text(init: Callable, apply: Callable, **options):
    """The same for a network that reads tokens."""
    shapes = jax.eval_shape(partial(init, **options), jax.random.key(0))
    return apply, shapes, abstract((2, 2), jnp.int32)


cifar, imagenet = (2, 32, 32, 3), (2, 224, 224, 3)
CASES = {
    "MLP 3 × 512": partial(model, mlp.init_mlp, mlp.mlp_apply, (2, 28, 28, 1)),
    "VGG16": partial(model, vgg.init_vgg16, vgg.vgg16_apply, cifar),
    "ResNet20": partial(model, resnet.init_resnet20, resnet.resnet20_apply, cifar),
    "ResNet50": partial(model, resnet.init_resnet50, resnet.resnet50_apply, imagenet),
    "CIFAR ResNet-56": partial(
        model, cifar_resnet.init_cifar_resnet, cifar_resnet.cifar_resnet_apply, cifar, depth=56
    ),
    "transformer, 2 layers": partial(
        text, transformer.init_transformer, transformer.transformer_apply, layers=2
    ),
    "decoder, 12 layers": lambda: (decoder, decoder_shapes(12), abstract((2, 128), jnp.int32)),
    "decoder, 48 layers": lambda: (decoder, decoder_shapes(48), abstract((2, 128), jnp.int32)),
}


def equations(jaxpr) -> int:
    """How many equations there are, those of inner jaxprs included."""
    inner = (getattr(j, "jaxpr", j) for e in jaxpr.eqns for j in jex.jaxprs_in_params(e.params))
    return len(jaxpr.eqns) + sum(map(equations, inner))


def timed(function: Callable):
    """The seconds of the first call, the median of all, and what the last one gave."""
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return seconds[0], statistics.median(seconds), result


def measure(name: str) -> dict:
    """One case, in this process."""
    fn, params, batch = CASES[name]()
    first, seconds, spec = timed(lambda: infer_permutation_spec(fn, params, batch, verify=False))
    _, trace, (closed, _) = timed(lambda: trace_arrays(fn, params, batch))
    return {
        "case": name,
        "arrays": len(spec.shapes),
        "equations": equations(closed.jaxpr),
        "groups": len(spec.groups),
        "log10_symmetries": spec.log10_symmetries,
        "first": first,  # the first call of the process
        "seconds": seconds,  # tracing included
        "trace": trace,  # what JAX takes to trace the function
        "ratio": seconds / trace,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case)))
        return
    began, runs = time.perf_counter(), []
    for name in CASES:
        done = subprocess.run(
            [sys.executable, __file__, "--case", name],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        runs.append(run := json.loads(done.stdout.splitlines()[-1]))
        print(
            f"{name:22} {run['equations']:6} equations, {run['groups']:4} groups: first "
            f"{run['first']:.3f} s, then {run['seconds']:.3f} s, {run['ratio']:.1f} × the trace",
            flush=True,
        )
    record = timed_record("inference", began, runs=runs)
    print(f"{record['seconds']:.0f} s; wrote {write_record(options.out, record)}")


if __name__ == "__main__":
    main()
