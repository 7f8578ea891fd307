"""Weight matching of models that are read lazily: memory beside what both models take in float32.

    python benchmarks/late_models.py                          6 and 12 layers, float32 and bfloat16
    python benchmarks/late_models.py --layers 24 --width 2048

A decoder with grouped heads and gated layers, laid out as public checkpoints, is drawn at random
and written to a safetensors file; model B is the same with all units shuffled. Each measurement has
a process of its own: `load_params` reads both files whole ("whole"), or their entries are leaves
that are read when a product needs them ("late"). Printed is the most that the call has resident on
top of what was there before it (Linux: VmHWM less VmRSS), over the bytes of both models in float32;
for "whole", the models themselves are among what was there before. Both have to undo the shuffle.
"""

import argparse
import gc
import hashlib
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import jax
import ml_dtypes
import numpy as np
from weight_matching import forget_peak, release_freed, resident

from git_rebasin import (
    PermutationSpec,
    load_params,
    random_permutation,
    save_params,
    weight_matching,
)
from git_rebasin.symmetry.entries import Fixed, Group, Product
from git_rebasin.symmetry.permutation import apply_permutation

HEADS, SHARE, VOCABULARY = 16, 4, 1024  # heads; how many of them have keys and values in common


def decoder(
    layers: int,
    width: int,
    *,
    head: int | None = None,  # entries of a head; None: so that there are `HEADS`
    share: int = SHARE,  # heads that have keys and values in common
    wider: float = 1.0,  # hidden units of a gated layer for each of the stream
    words: int = VOCABULARY,
) -> tuple[PermutationSpec, dict[str, tuple[int, ...]]]:
    """The spec of the decoder and its shapes; rotations fix the order within queries and keys."""
    inner, keys, each = int(wider * width), width // share, Fixed(head or width // HEADS)
    ends = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    rows: dict[str, tuple] = dict(zip(ends, ((None, "R"), ("R",), (None, "R")), strict=True))
    shapes = dict(zip(ends, ((words, width), (width,), (words, width)), strict=True))
    for k in range(layers):
        host, name = Group(f"K{k}"), f"model.layers.{k}."
        query, value = Group(f"Q{k}", within=f"K{k}"), Group(f"V{k}", within=f"K{k}")
        rows |= {
            f"{name}self_attn.q_proj.weight": (Product(host, query, each), "R"),
            f"{name}self_attn.k_proj.weight": (Product(host, each), "R"),
            f"{name}self_attn.v_proj.weight": (Product(host, value), "R"),
            f"{name}self_attn.o_proj.weight": ("R", Product(host, query, value)),
            f"{name}mlp.gate_proj.weight": (f"F{k}", "R"),
            f"{name}mlp.up_proj.weight": (f"F{k}", "R"),
            f"{name}mlp.down_proj.weight": ("R", f"F{k}"),
            f"{name}input_layernorm.weight": ("R",),
            f"{name}post_attention_layernorm.weight": ("R",),
        }
        attention = {"q": (width, width), "k": (keys, width), "v": (keys, width)}
        shapes |= {f"{name}self_attn.{n}_proj.weight": s for n, s in attention.items()}
        shapes |= {f"{name}self_attn.o_proj.weight": (width, width)}
        shapes |= {f"{name}mlp.{n}_proj.weight": (inner, width) for n in ("gate", "up")}
        shapes |= {f"{name}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{name}{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
    return PermutationSpec(rows), shapes


class Entry:
    """An array of a safetensors file: shape and dtype now, values when they are asked for."""

    dtypes: ClassVar[dict] = {"F32": np.float32, "BF16": ml_dtypes.bfloat16}
    nbytes_read = 0

    def __init__(self, path: str, first: int, entry: dict):
        self.path, self.offset = path, first + entry["data_offsets"][0]
        self.shape, self.dtype = tuple(entry["shape"]), np.dtype(self.dtypes[entry["dtype"]])

    def __array__(self, dtype=None, copy=None):
        size = math.prod(self.shape)
        values = np.fromfile(self.path, self.dtype, size, offset=self.offset)
        Entry.nbytes_read += values.nbytes
        return values.reshape(self.shape)


def read_late(path: str) -> dict[str, Entry]:
    """The entries of a safetensors file by their names; only its header is read."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {k: Entry(path, 8 + length, e) for k, e in header.items() if k != "__metadata__"}


def write(folder: Path, layers: int, width: int, dtype: str) -> list[str]:
    """Both models as files."""
    spec, shapes = decoder(layers, width)
    rng = np.random.default_rng(0)
    a = {p: rng.standard_normal(s, np.float32) / math.sqrt(s[-1]) for p, s in shapes.items()}
    spec = spec.bind(a)
    drawn = random_permutation(jax.random.key(0), spec)
    plant = {group: np.asarray(p) for group, p in drawn.items()}
    paths = [str(folder / f"{name}.safetensors") for name in "ab"]
    for path, model in zip(paths, (a, apply_permutation(spec, plant, a)), strict=True):
        kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
        save_params(path, {p: w.astype(kind) for p, w in model.items()})
    return paths


def warm_up() -> None:
    """Let the libraries take the buffers that they keep, by a large product and a tiny match."""
    large = np.ones((1024, 1024), np.float32)
    _ = large @ large
    tiny = {"w": np.ones((2, 3)), "v": np.ones((3, 2))}
    spec = PermutationSpec({"w": (None, "P"), "v": ("P", None)})
    weight_matching(jax.random.key(0), spec, tiny, tiny)


def measure(way: str, layers: int, width: int, paths: list[str], budget: float | None) -> dict:
    """One call, in this process: memory, how often the files were read, and what it decided."""
    spec, shapes = decoder(layers, width)
    spec = spec.bind({p: jax.ShapeDtypeStruct(s, np.float32) for p, s in shapes.items()})
    read = read_late if way == "late" else (lambda path: load_params(path, flat=True))
    a, b = (read(path) for path in paths)
    both = 2 * 4 * sum(math.prod(s) for s in shapes.values())
    warm_up()
    gc.collect()
    release_freed()
    forget_peak()
    before = resident("VmRSS")
    match = weight_matching(jax.random.key(0), spec, a, b, budget=budget)
    peak = resident("VmHWM")
    if before is None or peak is None:
        raise SystemExit("late_models: how much memory a process takes is known on Linux only")
    digest = hashlib.sha256(b"".join(match.perm[g].tobytes() for g in spec.groups)).hexdigest()
    files = sum(Path(path).stat().st_size for path in paths)
    return {
        "both_mb": both / 1e6,
        "extra": (peak - before) / both,
        "read": Entry.nbytes_read / files,
        "sweeps": match.sweeps,
        "converged": match.converged,
        "permutation": digest[:12],
    }


def isolated(*args) -> dict:
    """`measure`, in a process of its own."""
    code = f"import json, late_models as m; print(json.dumps(m.measure(*{args!r})))"
    run = [sys.executable, "-c", code]
    folder = Path(__file__).resolve().parent
    done = subprocess.run(run, cwd=folder, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--budget", type=float, help="bytes to be kept; default: as shipped")
    options = parser.parse_args()
    print("layers  dtype     models     both      extra  files read  sweeps  permutation")
    for layers in options.layers:
        for dtype in ("float32", "bfloat16"):
            with tempfile.TemporaryDirectory() as folder:
                paths = write(Path(folder), layers, options.width, dtype)
                for way in ("whole", "late"):
                    row = isolated(way, layers, options.width, paths, options.budget)
                    print(
                        f"{layers:6}  {dtype:8}  {way:6} {row['both_mb']:7.0f} MB  "
                        f"{row['extra']:7.3f} × {row['read']:9.1f} ×  {row['sweeps']:6}  "
                        f"{row['permutation']}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
