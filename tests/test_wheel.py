"""What a wheel holds: the package with its data and types, and nothing that only a clone needs.

It works with its compiled parts, and without them.
"""

import os
import re
import shutil
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
    run(sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", built,
        "build_py", "--build-lib", built / "lib")  # fmt: skip
    return built


@pytest.fixture(scope="module")
def library(built) -> Path:
    """The folder of what `setup.py` puts into a wheel, but for the compiled parts."""
    return built / "lib"


@pytest.fixture(scope="module")
def shipped(library) -> set[str]:
    files = (path for path in library.rglob("*") if path.is_file())
    return {path.relative_to(library).as_posix() for path in files}


def run(*command, **options) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-2000:]


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


@pytest.mark.parametrize("parts", ["compiled", "plain"])
def test_a_wheel_is_used_with_and_without_its_compiled_parts(library, parts, tmp_path):
    """The parts are those of this environment, as their build is the same command."""
    shutil.copytree(library, tmp_path, dirs_exist_ok=True)
    built = [*(ROOT / PACKAGE).rglob("_*.so"), *(ROOT / PACKAGE).rglob("_*.pyd")]
    if parts == "compiled":
        if not built:
            pytest.skip("no compiled parts here")
        for part in built:
            shutil.copy(part, tmp_path / part.relative_to(ROOT))
    environment = {k: v for k, v in os.environ.items() if k != "GIT_REBASIN_ASSIGNMENT"}
    run(sys.executable, ROOT / "tests" / "use_installed.py", parts,
        env=environment | {"PYTHONPATH": str(tmp_path)})  # fmt: skip


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
