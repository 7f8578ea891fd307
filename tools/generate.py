"""Make all that is made from the notebooks, or check that it is up to date.

    python -m tools.generate            write what is not up to date
    python -m tools.generate --check    name it, and write nothing

Made from the notebooks are: the badges and install cells in some of them, the modules of the
package with their docstrings, the tests in `test_<module>.py`, README.md with its pictures. The
notebooks themselves are cleaned. All of it is made anew in a copy of the project; what differs from
the original, is missing there, or comes from no notebook, is not up to date.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nbdev.doclinks import nbdev_export

from tools import badges, docstrings, generated_tests, project, readme
from tools.clean import clean_file

COPIED = ["settings.ini", "pyproject.toml", "nbs/**/*.ipynb", "git_rebasin/**/*.py"]
MADE = [*COPIED, "tests/test_*.py", "README.md", f"{readme.PICTURES}*.png"]


def files(root: Path, patterns: list[str]) -> Iterator[Path]:
    """Files below `root`, as relative paths, without those of editors and interpreters."""
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            relative = path.relative_to(root)
            if not any(part.startswith(".") or part == "__pycache__" for part in relative.parts):
                yield relative


def is_generated(path: Path) -> bool:
    """Is this file made from a notebook, and of no use without it?"""
    if path.suffix == ".py":
        return project.GENERATED in path.read_text(encoding="utf-8")[:1000]
    return path.name.startswith(readme.PICTURES.name)


def copy_sources(root: Path, copy: Path) -> None:
    """Copy the notebooks and everything that is written by hand beside them."""
    for path in files(root, COPIED):
        if not is_generated(root / path):
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, copy / path)


def generate(root: Path) -> None:
    """Make everything, in the project at `root`."""
    for path in project.notebooks(root):
        badges.write(path, root)
        clean_file(path)
    with project.project(root):
        os.environ.pop("IN_TEST", None)  # nbdev exports nothing in tests
        nbdev_export()
    docstrings.write(root)
    generated_tests.write(root)
    readme.write(root)


def stale(root: Path, copy: Path) -> Iterator[tuple[Path, str]]:
    """Every file that is not as it should be, and why."""
    for path in files(copy, MADE):
        if not (root / path).exists():
            yield path, "is missing"
        elif (root / path).read_bytes() != (copy / path).read_bytes():
            yield (
                path,
                "is not what the notebooks give"
                if is_generated(copy / path)
                else "is not up to date",
            )
    for path in files(root, MADE):
        if not (copy / path).exists() and is_generated(root / path):
            yield path, "comes from no notebook"


def update(root: Path, copy: Path, path: Path) -> None:
    if (copy / path).exists():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(copy / path, root / path)
    else:
        (root / path).unlink()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 if something is not up to date",
    )
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_sources(project.ROOT, copy)
        generate(copy)
        differing = list(stale(project.ROOT, copy))
        for path, reason in differing:
            print(
                f"{path} {reason}" if check else f"updated {path}",
                file=sys.stderr if check else sys.stdout,
            )
            if not check:
                update(project.ROOT, copy, path)
    if check and differing:
        print(
            "\n`make export` makes it anew; what was edited by hand goes into the notebook.",
            file=sys.stderr,
        )
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
