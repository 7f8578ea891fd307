"""How long it takes to try a spec: beside the inference that gave it, of the same run.

    python benchmarks/verification.py              all cases, and the record (a minute)
    python benchmarks/verification.py --out x.json

Every case has a process of its own, which multiplies matrices on one core; times are of the
processor, as others may use it, too. What is first contains whatever has to be compiled.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from git_rebasin.architectures import transformer
from git_rebasin.experiments.records import timed_record, write_record
from git_rebasin.inference.explain import check_permutation_spec
from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.zoo import mlp, resnet

RECORD = Path(__file__).parent / "records" / "verification.json"
RUNS = 2  # of each measurement; the shortest counts
IMAGES, WIDTH, TIME = (2, 32, 32, 3), 32, 64  # of the diffusion network


# ---- a small U-Net of a diffusion model


def convolved(w, x, stride: int = 1):
    """A convolution of (batch, height, width, channels), with a bias."""
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, w["w"], (stride,) * 2, "SAME", dimension_numbers=numbers)
    return y + w["b"]


def normalised(w, x, groups: int = 8):
    """GroupNorm."""
    y = x.reshape(*x.shape[:3], groups, -1)
    mean, var = y.mean((1, 2, 4), keepdims=True), y.var((1, 2, 4), keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(var + 1e-5)
    return y.reshape(x.shape) * w["gain"] + w["shift"]


def block(w, x, time_):
    """A residual block, told the time."""
    h = convolved(w["first"], jax.nn.silu(normalised(w["norm1"], x)))
    h = h + (jax.nn.silu(time_) @ w["time"])[:, None, None]
    h = convolved(w["second"], jax.nn.silu(normalised(w["norm2"], h)))
    return h + (convolved(w["skip"], x) if "skip" in w else x)


def attended(w, x):
    """Attention over all places, of one head."""
    y = normalised(w["norm"], x).reshape(len(x), -1, x.shape[-1])
    q, k, v = (y @ w[n] for n in "qkv")
    scores = jax.nn.softmax(jnp.einsum("btc,bsc->bts", q, k) / q.shape[-1] ** 0.5)
    return x + (jnp.einsum("bts,bsc->btc", scores, v) @ w["o"]).reshape(x.shape)


def unet(params, x, times):
    """What noise an image has: down, attention, and up again with all that was seen before."""
    rate = jnp.exp(-jnp.arange(TIME // 2) / 8.0)
    waves = times[:, None] * rate
    t = jax.nn.silu(jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1) @ params["time"])
    x, seen = convolved(params["in"], x), []
    for w in params["down"]:
        x = block(w["block"], x, t)
        seen.append(x)
        x = convolved(w["smaller"], x, stride=2)
    x = attended(params["attention"], block(params["middle"], x, t))
    for w in params["up"]:
        x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        x = block(w, jnp.concatenate([x, seen.pop()], -1), t)
    return convolved(params["out"], jax.nn.silu(normalised(params["norm"], x)))


def unet_params(key) -> dict:
    """Its parameters: 32, 64 and 128 channels."""
    count = itertools.count()

    def draw(*shape):
        scale = max(1, shape[-2] if len(shape) > 1 else 1) ** -0.5
        return scale * jax.random.normal(jax.random.fold_in(key, next(count)), shape)

    def conv(a, b, size=3):
        return {"w": draw(size, size, a, b) / size, "b": draw(b)}

    def norm(n):
        return {"gain": draw(n), "shift": draw(n)}

    def residual(a, b):
        w = {"norm1": norm(a), "first": conv(a, b), "time": draw(TIME, b), "norm2": norm(b)}
        return w | {"second": conv(b, b)} | ({"skip": conv(a, b, 1)} if a != b else {})

    c = [WIDTH, 2 * WIDTH, 4 * WIDTH]
    down = [{"block": residual(a, b), "smaller": conv(b, b)} for a, b in itertools.pairwise(c)]
    square = {n: draw(c[2], c[2]) for n in "qkvo"}
    return {
        "time": draw(TIME, TIME),
        "in": conv(3, c[0]),
        "down": down,
        "middle": residual(c[2], c[2]),
        "attention": square | {"norm": norm(c[2])},
        "up": [residual(c[2] + c[2], c[1]), residual(c[1] + c[1], c[0])],
        "norm": norm(c[0]),
        "out": conv(c[0], 3),
    }


# ---- all cases


def model(init: Callable, apply: Callable, shape: tuple, **options):
    """A network of the zoo, at random, and a batch of noise."""
    params = init(jax.random.key(0), **options)
    return apply, params, jax.random.normal(jax.random.key(1), shape)


def diffusion():
    """The U-Net, and a batch of noise at two times."""
    images = jax.random.normal(jax.random.key(1), IMAGES)
    return unet, unet_params(jax.random.key(0)), images, jnp.array([3.0, 500.0])


def text(layers: int):
    """A transformer that reads two short texts."""
    params = transformer.init_transformer(jax.random.key(0), layers=layers)
    return transformer.transformer_apply, params, jnp.array([[1, 2], [3, 4]])


CASES = {
    "MLP 3 × 512": partial(model, mlp.init_mlp, mlp.mlp_apply, (2, 28, 28, 1)),
    "ResNet20, 32 × 32": partial(model, resnet.init_resnet20, resnet.resnet20_apply, IMAGES),
    "diffusion U-Net, 32 × 32": diffusion,
    "transformer, 2 layers": partial(text, 2),
}


def seconds_of(function: Callable) -> float:
    """The time of one call, on the processor."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(name: str) -> dict:
    """One case, in this process."""
    fn, params, *args = jax.block_until_ready(CASES[name]())
    infer = partial(infer_permutation_spec, fn, params, *args, verify=False)
    began = time.process_time()
    spec = infer()
    cold = time.process_time() - began
    check = partial(check_permutation_spec, spec, fn, params, *args)
    first, report = seconds_of(check), check()
    inference = min(seconds_of(infer) for _ in range(RUNS))
    then = min(seconds_of(check) for _ in range(RUNS))
    return {
        "case": name,
        "groups": len(spec.groups),
        "unproven": len(report.unproven),
        "first_inference": cold,
        "inference": inference,
        "first_verification": first,
        "verification": then,
        "first_ratio": first / cold,
        "ratio": then / inference,
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
        command = [sys.executable, __file__, "--case", name]
        one_core = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=one_core)
        runs.append(run := json.loads(done.stdout.splitlines()[-1]))
        print(
            f"{name:24} {run['groups']:3} groups: inferred in {run['first_inference']:.2f} s, then "
            f"in {run['inference']:.2f} s; tried in {run['first_verification']:.2f} s, then in "
            f"{run['verification']:.2f} s: {run['first_ratio']:.1f} × and {run['ratio']:.1f} ×",
            flush=True,
        )
    record = timed_record("verification", began, runs=runs)
    print(f"{record['seconds']:.0f} s; wrote {write_record(options.out, record)}")


if __name__ == "__main__":
    main()
