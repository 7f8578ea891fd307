"""What works after a plain install, without the extra `experiments`: all but experiments and data sets
of the hub."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What the extras bring, and what comes with it.
BLOCKED = ["flax", "orbax", "tensorstore", "datasets", "huggingface_hub", "pyarrow", "pandas"]
BLOCKED += ["torch", "h5py"]
# As if they were not installed. Pillow is: matplotlib needs it.
BLOCK = f"""
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Missing())
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code where those packages are missing, with no network and no data sets."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"}
    environment |= {"PYTHONPATH": str(ROOT), "HTTPS_PROXY": "http://127.0.0.1:9"}
    environment.pop("GIT_REBASIN_DATA", None)
    command = [sys.executable, "-W", "error", "-c", BLOCK + code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


API = """
import jax
import jax.numpy as jnp
import git_rebasin as gr
from git_rebasin.zoo.data import digits
from git_rebasin.zoo.mlp import init_mlp, mlp_apply
from git_rebasin.zoo.train import TrainConfig, classifier_loss, train

data, loss = digits("train")[:400], classifier_loss(mlp_apply)
key, config = jax.random.key(0), TrainConfig(2, 50)
a, b = (
    train(key, loss, init_mlp(jax.random.key(s), (8, 8, 1), features=(16,)), data, config).params
    for s in (0, 1)
)
forward = lambda params, batch: mlp_apply(params, batch["images"])
batches = [{"images": data.images[:100], "labels": data.labels[:100]}]
spec = gr.infer_permutation_spec(forward, a, batches[0])
matches = [
    gr.weight_matching(key, spec, a, b),
    gr.activation_matching(key, spec, a, b, fn=forward, batches=batches),
    gr.frank_wolfe_matching(key, spec, a, b, max_steps=3),
]
b_moved = gr.apply_permutation(spec, matches[0].perm, b)
mean_loss = lambda params, batch: loss(params, batch)[0]
curve = gr.interpolate(mean_loss, a, b_moved, batches, lambdas=3)
gr.loss_barrier(curve)
merged = gr.merge_many(key, spec, [a, b])
gr.repair(forward, gr.lerp(a, b_moved, 0.5), [a, b_moved], batches)
gr.load_params(gr.save_params("merged.safetensors", merged.params))
for figure in (
    gr.plot_interpolation({"matched": curve}),
    gr.plot_match(matches[0]),
    gr.plot_spec(spec),
):
    figure.savefig("figure.png")
print("done")
"""


def test_the_public_api_works(tmp_path):
    done = run(API, tmp_path)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


def test_the_demo_works(tmp_path):
    code = "from git_rebasin.cli import demo, parser\ndemo.WIDTHS = (16, 16)\n"
    done = run(f"{code}sys.exit(parser.main(['demo', '--out', 'results']))", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Weight matching converged" in done.stdout
    assert {"record.json", "merged.safetensors", "match.png"} <= set(
        os.listdir(tmp_path / "results")
    )


@pytest.mark.parametrize(
    "command", [["demo", "--data", "mnist"], ["experiment", "imagenet-resnet50"]], ids=" ".join
)
def test_what_needs_the_extra_says_so(command, tmp_path):
    code = f"from git_rebasin.cli.parser import main\nsys.exit(main({command}))"
    done = run(code, tmp_path)
    remedy = r'git-rebasin: error: \w+ is not installed: pip install "git-rebasin\[experiments\]"'
    assert done.returncode == 1 and re.fullmatch(remedy, done.stderr.strip().splitlines()[-1])


def test_networks_made_with_flax_say_so(tmp_path):
    for module in ("vgg", "resnet"):
        done = run(f"import git_rebasin.zoo.{module}", tmp_path)
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ModuleNotFoundError: flax is not installed: pip install"), last


def test_modules_of_pytorch_say_so(tmp_path):
    for call in ("from_torch(object(), 0.0)", "to_torch(object(), {})"):
        done = run(f"import git_rebasin.torch as it\nit.{call}", tmp_path)
        last = done.stderr.strip().splitlines()[-1]
        assert last.endswith('torch is not installed: pip install "git-rebasin[torch]"'), last
