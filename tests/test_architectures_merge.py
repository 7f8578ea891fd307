"""`git-rebasin merge` of files of public architectures, with nothing said: B is A in another order of
its units, so the merged model is A."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open

from git_rebasin.architectures import reference
from git_rebasin.architectures.known import recognise
from git_rebasin.checkpoints.opened import open_checkpoint
from git_rebasin.checkpoints.safetensors_files import write_safetensors
from git_rebasin.checkpoints.torch_writing import write_torch
from git_rebasin.cli.parser import captured
from git_rebasin.inference.infer import infer_permutation_spec
from git_rebasin.merging.files import permuted
from git_rebasin.symmetry.permutation import random_permutation

THIN = ("torchvision-resnet18", "torchvision-regnet_y_400mf", "torchvision-shufflenet_v2_x0_5")
SMALL = ("hf-resnet", "hf-vit", "hf-clip-text", "hf-bert", "hf-distilbert", "hf-gpt2", "hf-opt")
SMALL += ("hf-gpt-neox", "hf-llama", "hf-gemma2", "hf-mixtral", "hf-t5-encoder", "diffusers-vae")


def model_of(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """The weights of a case, of few units, in half precision, and its configuration."""
    case = reference.read_case(name)
    if name in THIN:
        case = case | {"shapes": reference.thinned(case["shapes"])}
    weights = reference.weights_of(case)
    return {n: x.astype(np.float16) for n, x in weights.items()}, case["config"]


def shuffled(arrays: dict[str, np.ndarray], settings: dict) -> dict[str, np.ndarray]:
    """The same network with its units in another order."""
    own = recognise(arrays)
    assert own is not None
    config = own.config_of(arrays, settings)
    fn = partial(own.apply, config=config)
    spec = infer_permutation_spec(fn, arrays, *own.example(config), verify=False)
    perm = {g: np.asarray(p) for g, p in random_permutation(jax.random.key(0), spec).items()}
    return {n: np.asarray(x) for n, x in permuted(spec, perm, arrays).items()}


def merge(folder: Path, a: Path, b: Path, out: str, *more: str) -> str:
    """What the command prints."""
    code, text, errors = captured(["merge", str(a), str(b), "-o", str(folder / out), *more])
    assert code == 0, errors
    return text


@pytest.mark.parametrize("name", [*THIN, *SMALL])
def test_a_folder_of_a_hub_is_merged(name, tmp_path):
    arrays, settings = model_of(name)
    for letter, model in (("a", arrays), ("b", shuffled(arrays, settings))):
        place = tmp_path / letter
        place.mkdir()
        write_safetensors(place / "model.safetensors", model, {"format": "pt"})
        (place / "config.json").write_text(json.dumps(settings))
    text = merge(tmp_path, tmp_path / "a", tmp_path / "b", "out")
    own = recognise(arrays)
    assert own is not None and f"network: {own.name}, recognised by its names" in text
    found = open_checkpoint(tmp_path / "out")
    merged = {f"{found.prefix}{n}": x for n, x in found.arrays.items()}
    assert merged.keys() == arrays.keys()
    for n, x in arrays.items():
        np.testing.assert_array_equal(np.asarray(merged[n]), x, strict=True)
    assert json.loads((tmp_path / "out/config.json").read_text()) == settings


def whole_file() -> dict[str, np.ndarray]:
    """A small file of Stable Diffusion: three networks, a schedule, the running mean of the U-Net."""
    parts = {
        "model.diffusion_model.": "ldm-unet-sd1",
        "first_stage_model.": "diffusers-vae",
        "cond_stage_model.transformer.": "hf-clip-text",
    }
    arrays = {"betas": np.linspace(0, 1, 8, dtype=np.float32)}
    for prefix, name in parts.items():
        arrays |= {prefix + n: w for n, w in model_of(name)[0].items()}
    words = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    arrays[words] = np.arange(16)[None]
    own = [n for n in arrays if n.startswith("model.")]
    mean = {n: "model_ema." + n.removeprefix("model.").replace(".", "") for n in own}
    return arrays | {mean[n]: (0.9 * arrays[n]).astype(np.float32) for n in own}


def test_a_whole_file_of_stable_diffusion_is_merged(tmp_path):
    arrays = whole_file()
    metadata = {"format": "pt", "modelspec.title": "small"}
    other = shuffled(arrays, {"num_heads": 4})
    files = [
        write_safetensors(tmp_path / f"{letter}.safetensors", model, metadata)
        for letter, model in (("a", arrays), ("b", other))
    ]
    text = merge(tmp_path, *files, "m.safetensors", "--heads", "4")
    assert "network: stable-diffusion, recognised by its names" in text
    a, merged = (safe_open(tmp_path / f"{name}.safetensors", "np") for name in "am")
    with a, merged:
        assert list(merged.keys()) == list(a.keys()) and len(arrays) == len(list(a.keys()))
        assert merged.metadata() == metadata
        for n in a.keys():
            np.testing.assert_array_equal(merged.get_tensor(n), a.get_tensor(n), strict=True)
    write_torch(tmp_path / "a.ckpt", {"state_dict": arrays})
    text = merge(tmp_path, tmp_path / "a.ckpt", files[1], "m.ckpt", "--heads", "4")
    found = open_checkpoint(tmp_path / "m.ckpt")
    assert found.within == ("state_dict",)
    assert [*found.arrays] == [*arrays]
    moving = "model_ema.diffusion_modeltime_embed0bias"  # a mean moves with its model
    assert not np.array_equal(other[moving], arrays[moving])
    np.testing.assert_array_equal(np.asarray(found.arrays[moving]), arrays[moving])
