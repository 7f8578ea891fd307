"""What a wheel holds: the package with its data and types, and nothing that only a clone needs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "git_rebasin"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """What `setup.py` makes of the package: what a wheel holds, and what it requires."""
    built = tmp_path_factory.mktemp("built")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(built)]
    command += ["build_py", "--build-lib", str(built / "lib")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return built


@pytest.fixture(scope="module")
def shipped(built) -> set[str]:
    """What `setup.py` puts into a wheel, but for the compiled parts."""
    files = (path for path in (built / "lib").rglob("*") if path.is_file())
    return {path.relative_to(built / "lib").as_posix() for path in files}


def test_a_wheel_holds_every_module_but_the_index_of_nbdev(shipped):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*.py")}
    assert modules - shipped == {f"{PACKAGE}/_modidx.py"}


def test_a_wheel_holds_the_digits_and_says_that_types_hold(shipped):
    data = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / PACKAGE / "zoo" / "data_files").rglob("*")
        if path.is_file()
    }
    others = {path for path in shipped if not path.endswith(".py")}
    assert data and others == data | {f"{PACKAGE}/py.typed"}


def test_a_plain_install_brings_what_the_demo_needs_and_no_more(built):
    (file,) = built.glob("*.egg-info/requires.txt")
    plain, *extras = file.read_text(encoding="utf-8").split("[")
    required = {name: names(lines) for name, lines in (e.split("]", 1) for e in extras)}
    core = {"jax", "numpy", "scipy", "safetensors", "jaxtyping"}
    assert names(plain) == core | {"matplotlib", "optax", "tqdm"}
    assert required["experiments"] == {"flax", "datasets", "pillow"} < required["dev"]


def names(lines: str) -> set[str]:
    """The packages that some lines require."""
    return {re.split(r"[^\w-]", line)[0] for line in lines.split()}
