"""Check the types: of the package, of the README's code, and of what users write against it.

    python -m tools.types_check

The checker is pyright, as `pyproject.toml` configures it. A README whose code an editor marks red
teaches nobody, so its blocks are checked as one script.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.project import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CHECKED = ["git_rebasin", "tests/user_script.py"]


def readme_code() -> str:
    """The README's blocks of Python, on the lines where they stand there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [""] * len(text.splitlines())
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines) + "\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        (script := Path(folder) / "README.py").write_text(readme_code(), encoding="utf-8")
        command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
        return subprocess.run([*command, *CHECKED, str(script)], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
