"""Modules of torchvision, timm and Hugging Face: what may be permuted, against theory, and the way
from PyTorch and back.

    make test-torch                                         makes the environment
    .venv/3.11-torch/bin/python benchmarks/torch_modules.py            all, and the record (minutes)
    .venv/3.11-torch/bin/python benchmarks/torch_modules.py --case BERT --case GPT-2

Configurations are small and weights are drawn, as nothing is downloaded. For each network two
modules with different seeds are made functions. A random element of the inferred symmetry is
applied to one, the result is loaded into a module, and weight matching has to find it; then the two
modules are matched and merged, and the merged module has to compute in PyTorch what its function
computes in JAX. Seconds are those of the processor, as a busy machine changes them least; every
library has a process of its own. Without PyTorch nothing is done.
"""

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

import git_rebasin as gr
from git_rebasin.experiments.records import timed_record, write_record
from git_rebasin.torch import from_torch, to_torch

RECORD = Path(__file__).parent / "records" / "torch_modules.json"
LIBRARIES = ("torch", "torchvision", "timm", "transformers")
VOCABULARY, CLASSES = 50, 10
Sizes = list[tuple[int, ...]]  # for each group the shape of its permutation


@dataclass(frozen=True)
class Case:
    """A network, what it is called with, and its groups in theory."""

    library: str
    make: Callable[[], Any]
    theory: Sizes
    image: int | None = 32  # height and width of its inputs; None: it reads text
    options: dict = field(default_factory=dict)  # of the module, at every call

    def module(self, seed: int):
        """A module in evaluation mode, whose numbers are all drawn, those of statistics too."""
        import torch

        allow_cpu_build()
        torch.manual_seed(seed)
        module = self.make().eval()
        moving = [module.named_parameters(), module.named_buffers()]
        with torch.no_grad():
            for name, x in (pair for pairs in moving for pair in pairs):
                if name.endswith("running_var"):
                    x.uniform_(0.5, 2.0)
                elif name.endswith("running_mean"):
                    x.normal_()
                elif isinstance(x, torch.nn.Parameter):
                    x.normal_(float(x.ndim < 2), 0.3 if x.ndim < 2 else x[0].numel() ** -0.5)
        return module

    def inputs(self):
        """A batch of two."""
        import torch

        torch.manual_seed(0)
        if self.image:
            return torch.randn(2, 3, self.image, self.image)
        return torch.randint(VOCABULARY, (2, 8))


# ---- theory


def log10_symmetries(sizes: Sizes) -> float:
    """A permutation of shape (a, b, n) is one of (n!)^(a b)."""
    return sum(math.prod(copies) * math.lgamma(n + 1) for *copies, n in sizes) / math.log(10)


def attention(heads: int, units: int, kv: int | None = None, rotary: bool = False) -> Sizes:
    """Heads; their units for queries and keys, unless each has a frequency; those for values."""
    shared = [(kv, heads // kv)] if kv and kv < heads else []  # queries of one key
    places = kv or heads
    return [(places,), *shared, *([] if rotary else [(places, units)]), (places, units)]


def transformer(stream: int, hidden: int, heads: int, layers: int = 2, **options) -> Sizes:
    """A residual stream, and in each layer an attention and an MLP."""
    layer = [*attention(heads, stream // heads, **options), (hidden,)]
    return [(stream,), *layer * layers]


def hierarchy(widths: list[int], heads: list[int], hidden: int = 4, layers: int = 2) -> Sizes:
    """A transformer for each width."""
    stages = zip(widths, heads, strict=True)
    return [size for w, h in stages for size in transformer(w, hidden * w, h, layers)]


def units(*sizes: int) -> Sizes:
    """Groups of units that are within nothing."""
    return [(n,) for n in sizes]


def densenet(first: int, growth: int, layers: list[int]) -> Sizes:
    """What each layer adds, the inner units of each layer, and what each transition gives."""
    sizes, width = [first], first
    for k, count in enumerate(layers):
        sizes += [4 * growth, growth] * count
        width += count * growth
        if k + 1 < len(layers):
            width //= 2
            sizes.append(width)
    return units(*sizes)


def mobilenet_v2(width: float) -> Sizes:
    """Streams between strides, and the inner units of each block that has its own."""

    def rounded(channels: float) -> int:
        near = max(8, int(channels + 4) // 8 * 8)
        return near + 8 * (near < 0.9 * channels)

    table = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]
    stream = rounded(32 * width)
    sizes = [stream]
    for number, (expansion, channels, repeats) in enumerate(table):
        for block in range(repeats):
            if expansion != 1:
                sizes.append(stream * expansion)
            strided = block == 0 and number not in (0, 4, 6)
            if strided or stream != rounded(channels * width):
                sizes.append(stream := rounded(channels * width))
    return units(*sizes, 1280)


# ---- the networks


def allow_cpu_build() -> None:
    """Beside a PyTorch without CUDA, torchvision of the index lacks its compiled operators, and
    needs two of their names to be imported. None of the networks here uses them.
    """
    import torch

    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            schema = "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)


def torchvision(name: str, *args, **options):
    from torchvision import models

    return getattr(models, name)(*args, num_classes=CLASSES, **options)


def vgg16_bn():
    """An eighth of its width."""
    from torch import nn
    from torchvision.models import vgg

    plan = [n if n == "M" else n // 8 for n in vgg.cfgs["D"]]
    module = vgg.VGG(vgg.make_layers(plan, batch_norm=True), CLASSES, init_weights=False)
    module.classifier[0] = nn.Linear(64 * 7 * 7, 96)
    module.classifier[3] = nn.Linear(96, 80)
    module.classifier[6] = nn.Linear(80, CLASSES)
    return module


def convnext():
    from torchvision.models import convnext

    blocks = [convnext.CNBlockConfig(16, 32, 2), convnext.CNBlockConfig(32, None, 1)]
    return convnext.ConvNeXt(blocks, num_classes=CLASSES)


def swin(second: bool = False):
    from torchvision.models import swin_transformer as swin

    parts = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    return swin.SwinTransformer(
        [2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, **(parts if second else {})
    )


def timm(name: str, **options):
    from timm import create_model

    return create_model(name, pretrained=False, num_classes=CLASSES, **options)


def huggingface(config: str, model: str, **options):
    import transformers

    transformers.logging.set_verbosity_error()
    return getattr(transformers, model)(getattr(transformers, config)(**options))


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
TEXT = SMALL | {"vocab_size": VOCABULARY, "max_position_embeddings": 32}
DECODER = TEXT | {"num_key_value_heads": 2, "pad_token_id": 0}
GPT_2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": VOCABULARY}
GPT_2 |= {"bos_token_id": 1, "eos_token_id": 2}
T5 = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
T5 |= {"num_layers": 2}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
LAYER = transformer(32, 48, 4)

CASES = {
    "ResNet-18": Case(
        "torchvision",
        partial(torchvision, "resnet18"),
        units(*(n for n in (64, 128, 256, 512) for _ in range(3))),
    ),
    "VGG16-BN": Case(
        "torchvision",
        vgg16_bn,
        units(*(n // 8 for n in (64, 64, 128, 128, 256, 256, 256, *[512] * 6)), 96, 80),
        image=64,
    ),
    "ConvNeXt": Case("torchvision", convnext, units(16, 32, 64, 64, 128)),
    "ViT": Case(
        "torchvision",
        partial(torchvision, "VisionTransformer", 32, 8, 2, 4, 32, 64),
        transformer(32, 64, 4),
    ),
    "Swin": Case("torchvision", swin, hierarchy([16, 32], [2, 4])),
    "Swin V2": Case(
        "torchvision", partial(swin, True), [*hierarchy([16, 32], [2, 4]), *units(*[512] * 4)]
    ),
    "DenseNet": Case(
        "torchvision", partial(torchvision, "DenseNet", 8, (2, 3), 16), densenet(16, 8, [2, 3])
    ),
    "MobileNetV2": Case(
        "torchvision", partial(torchvision, "mobilenet_v2", width_mult=0.25), mobilenet_v2(0.25)
    ),
    "ViT (timm)": Case(
        "timm", partial(timm, "vit_tiny_patch16_224", **VIT), transformer(32, 128, 4)
    ),
    "Swin (timm)": Case(
        "timm",
        partial(
            timm,
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            embed_dim=16,
            depths=(2, 2),
            num_heads=(2, 4),
        ),
        hierarchy([16, 32], [2, 4]),
    ),
    "ConvNeXt V2": Case(
        "timm",
        partial(timm, "convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
        units(8, 16, 24, 32, 32, 64, 96, 128),
    ),
    "ResNet-26-D": Case(
        "timm",
        partial(timm, "resnet26d"),
        units(32, 32, 64, *(n for w in (64, 128, 256, 512) for n in (4 * w, *[w] * 4))),
    ),
    "EVA-02": Case(
        "timm",
        partial(timm, "eva02_tiny_patch14_224", **VIT | {"img_size": 28, "patch_size": 7}),
        transformer(32, 85, 4, rotary=True),
        image=28,
    ),
    "MLP-Mixer": Case(
        "timm", partial(timm, "mixer_s32_224", img_size=64), units(512, *[256, 2048] * 8), image=64
    ),
    "BERT": Case(
        "transformers",
        partial(huggingface, "BertConfig", "BertForSequenceClassification", **TEXT),
        [*LAYER, (32,)],  # the last: the pooler
        image=None,
    ),
    "GPT-2": Case(
        "transformers",
        partial(
            huggingface,
            *("GPT2Config", "GPT2LMHeadModel"),
            **GPT_2,
        ),
        transformer(32, 128, 4),
        image=None,
        options={"use_cache": False},
    ),
    "Llama": Case(
        "transformers",
        partial(huggingface, "LlamaConfig", "LlamaForCausalLM", **DECODER),
        transformer(32, 48, 4, kv=2, rotary=True),
        image=None,
        options={"use_cache": False},
    ),
    "Qwen2": Case(
        "transformers",
        partial(huggingface, "Qwen2Config", "Qwen2ForCausalLM", **DECODER),
        transformer(32, 48, 4, kv=2, rotary=True),
        image=None,
        options={"use_cache": False},
    ),
    "T5, encoder": Case(  # whose output is its stream, and whose heads are those of one table
        "transformers",
        partial(
            huggingface,
            *("T5Config", "T5EncoderModel"),
            **T5,
        ),
        [(4,), *[(4, 8), (4, 8), (48,)] * 2],
        image=None,
    ),
    "ViT (Hugging Face)": Case(
        "transformers",
        partial(
            huggingface,
            *("ViTConfig", "ViTForImageClassification"),
            image_size=32,
            patch_size=8,
            **SMALL,
        ),
        LAYER,
    ),
    "Mamba": Case(
        "transformers",
        partial(
            huggingface,
            *("MambaConfig", "MambaForCausalLM"),
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            state_size=4,
        ),
        units(16, *[32, 4] * 2),
        image=None,
        options={"use_cache": False},
    ),
}


# ---- the whole way


def outputs(module, x, options: dict) -> list[np.ndarray]:
    """What a module computes in PyTorch."""
    import torch
    from torch.utils import _pytree

    with torch.no_grad():
        leaves = _pytree.tree_leaves(module(x, **options))
    return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def difference(given: list, wanted: list) -> float:
    """The largest one, in units of the largest output."""
    pairs = list(zip(given, wanted, strict=True))
    return max(float(np.abs(np.asarray(g) - w).max() / np.abs(w).max()) for g, w in pairs)


def reasons(spec) -> list[str]:
    """Why entries are fixed, the most frequent first; inputs and outputs go without saying."""
    counts: Counter[str] = Counter()
    for path, row in spec.reasons.items():
        for size, reason in zip(spec.shapes[path], row, strict=True):
            for each in (reason or "").split("; "):
                what = each.partition(" (")[0]
                if what and not what.startswith(("one entry", "output", "input", "it is cut into")):
                    counts[what] += size
    return [what for what, _ in counts.most_common(3)]


def timed(function: Callable, *args, **options):
    """What a function gives, and its seconds of the processor."""
    start = time.process_time()
    result = function(*args, **options)
    return result, time.process_time() - start


def measure(name: str) -> dict:
    """One case, in this process."""
    case = CASES[name]
    one, other = case.module(1), case.module(2)
    x = case.inputs()
    (fn, a, constants), export = timed(from_torch, one, x, **case.options)
    b = from_torch(other, x, **case.options)[1]
    spec, infer = timed(gr.infer_permutation_spec, fn, a, x.numpy(), verify=False)
    key, compiled = jax.random.key(0), jax.jit(fn)
    planted = gr.random_permutation(key, spec)
    moved = gr.apply_permutation(spec, planted, a)
    found, match = timed(gr.weight_matching, key, spec, moved, a)
    back = gr.apply_permutation(spec, found.perm, a)
    perm = gr.weight_matching(key, spec, a, b).perm
    merged = gr.lerp(a, gr.apply_permutation(spec, perm, b), 0.5)
    wanted = outputs(one, x, case.options)
    return {
        "case": name,
        "library": case.library,
        "parameters": sum(leaf.size for leaf in a.values()),
        "constants": sum(leaf.size for leaf in constants.values()),
        "groups": len(spec.groups),
        "theory_groups": len(case.theory),
        "log10_symmetries": spec.log10_symmetries,
        "theory_log10": log10_symmetries(case.theory),
        "sizes": sorted(map(list, spec.perm_shapes.values())),
        "complete": sorted(spec.perm_shapes.values()) == sorted(case.theory),
        "fixed": reasons(spec),
        "error": difference(jax.tree.leaves(compiled(a, x.numpy())), wanted),
        "moved_error": difference(outputs(to_torch(one, moved), x, case.options), wanted),
        "recovered": all(np.array_equal(back[leaf], moved[leaf]) for leaf in a),
        "merged_error": difference(
            jax.tree.leaves(compiled(merged, x.numpy())),
            outputs(to_torch(one, merged), x, case.options),
        ),
        "seconds": {"export": export, "infer": infer, "match": match},
    }


def isolated(names: list[str]) -> Iterator[dict]:
    """Cases, in a process of their own."""
    only = [word for name in names for word in ("--only", name)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, *only]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(f"{', '.join(names)}: failed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--only", choices=list(CASES), action="append", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        print(f"{', '.join(missing)} not installed: `make test-torch` makes an environment for it")
        return
    for name in options.only or []:
        print(json.dumps(measure(name)), flush=True)
    if options.only:
        return
    began, runs = time.perf_counter(), []
    names = options.case or list(CASES)
    of = {library: [n for n in names if CASES[n].library == library] for library in LIBRARIES}
    for run in (run for cases in of.values() if cases for run in isolated(cases)):
        runs.append(run)
        print(
            f"{run['case']:20} {run['groups']:3} of {run['theory_groups']:3} groups, 10^"
            f"{run['log10_symmetries']:.2f} of {run['theory_log10']:.2f}; errors "
            f"{run['error']:.1e}, {run['moved_error']:.1e}, {run['merged_error']:.1e}; "
            f"{'' if run['recovered'] else 'not '}recovered; {run['seconds']}; {run['fixed']}",
            flush=True,
        )
    if options.case and options.out == RECORD:
        return
    libraries = {name: version(name) for name in LIBRARIES}
    record = timed_record("torch_modules", began, libraries=libraries, runs=runs)
    print(f"{record['seconds']:.0f} s; wrote {write_record(options.out, record)}")


if __name__ == "__main__":
    main()
