"""The core's tests with the oldest versions that `settings.ini` allows.

    python tools/oldest.py DIR [OPTION OF PYTEST ...]

Makes a virtual environment in DIR. In it every requirement of the package has its lowest version,
or the last patch of it where the setting names none; flax, equinox and h5py, whose models and files
some tests take, have the newest that work with those. The tests of the zoo, of experiments and of
the command are left out, but for the demo and all that runs without the extra `experiments`.
"""

import configparser
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bootstrap import ROOT, make_environment, run, say

TOOLS = ["pytest>=9", "pytest-xdist>=3.8", "beartype>=0.23", "flax", "equinox", "h5py"]
OTHERS = re.compile(  # tests of the zoo, the experiments, the command, the repository and its tools
    r"test_(zoo|experiments|cli|imagenet|train|real_checkpoints|benchmarks"
    r"|help|repository|stored_outputs|wheel|pictures|rerun"
    r"|checkpoints_(orbax_files|opened|written|hostile))"  # Orbax and nnx want a newer JAX
)


def lowest() -> list[str]:
    """The requirements of the package, at their lowest versions: `jax>=0.5.3` gives `jax==0.5.3`,
    and `numpy>=2.0` gives `numpy==2.0.*`.
    """
    settings = configparser.ConfigParser(delimiters=["="], interpolation=None)
    settings.read(os.path.join(ROOT, "settings.ini"), encoding="utf-8")
    pairs = (each.split(">=") for each in settings["DEFAULT"]["requirements"].split())
    return [f"{name}=={least}{'.*' if least.count('.') < 2 else ''}" for name, least in pairs]


def core_tests() -> list[str]:
    names = sorted(os.listdir(os.path.join(ROOT, "tests")))
    return [f"tests/{n}" for n in names if n.startswith("test_") and not OTHERS.match(n)]


def main(directory: str, *options: str) -> None:
    # that of JAX 0.5 gives what was compiled for another function, if optimizations are off
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    say(f"installing into {directory}: {', '.join(lowest())}")
    pip = [*make_environment(directory), "--disable-pip-version-check", "--no-input"]
    run(*pip, "install", "--quiet", "--editable", ".", *lowest(), *TOOLS)
    run(pip[0], "-m", "pytest", "-q", *options, *core_tests())


if __name__ == "__main__":
    main(*sys.argv[1:])
