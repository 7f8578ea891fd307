"""The tests of `git_rebasin.torch`, with PyTorch and three libraries of modules.

    python tools/torch_tests.py DIR [OPTION OF PYTEST ...]

Makes a virtual environment in DIR, with versions that are known to work together. It holds a few
gigabytes, of which a PyTorch that is built for CPUs alone (where pip finds one) saves the most.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from bootstrap import make_environment, run, say

# torchvision belongs to one version of PyTorch.
VERSIONS = ["torch==2.13.0", "torchvision==0.28.0", "timm==1.0.31", "transformers==5.24.0"]
TOOLS = ["pytest>=9", "pytest-xdist>=3.8", "beartype>=0.23"]
TESTS = ["tests/test_torch.py", "tests/test_torch_networks.py", "tests/test_torch_files.py"]


def main(directory: str, *options: str) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    say(f"installing into {directory}: {', '.join(VERSIONS)}")
    pip = [*make_environment(directory), "--disable-pip-version-check", "--no-input"]
    run(*pip, "install", "--quiet", "--editable", ".[torch]", *VERSIONS, *TOOLS)
    run(pip[0], "-m", "pytest", "-q", *options, *TESTS)


if __name__ == "__main__":
    main(*sys.argv[1:])
