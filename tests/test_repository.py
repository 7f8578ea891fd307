"""What must hold for the repository as a whole: its layers, its public API, its size, its one place
for addresses."""

import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import git_rebasin

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "git_rebasin"

# The subpackages, the first first. A module imports from its own subpackage and from those above
# it in this table, never from one further down. A name with a dot at its end is a folder.
LAYERS = [
    ["tree", "jaxprs", "progress", "interpolation", "tables", "arguments", "host", "native"],
    ["checkpoints."],
    ["symmetry."],
    ["inference."],
    ["statistics."],
    ["matching."],
    ["architectures."],
    ["plot"],
    ["merging."],
    ["zoo."],
    ["torch."],
    ["experiments."],
    ["cli."],
]
# A helper of one layer, or a function of the public API, is no reason to load what costs seconds.
LAZY = ["flax", "optax", "datasets", "matplotlib", "pandas", "pyarrow", "orbax", "scipy.optimize"]

UNLISTED = ["zoo", "experiments"]  # whose modules the table of the layout does not list

MAX_NAMES = 30  # of the public API
MAX_LINES = 300  # exported from one notebook
MAX_FUNCTION = 40  # lines of one function, where 25 are the rule


def modules() -> dict[str, Path]:
    """Every module but `git_rebasin` itself and the packages' own, by its name in the package."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    names = {
        ".".join(path.relative_to(ROOT / PACKAGE).with_suffix("").parts): path for path in paths
    }
    return {name: path for name, path in names.items() if not name.split(".")[-1].startswith("_")}


def settings() -> dict[str, str]:
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def notebooks() -> list[Path]:
    return sorted(
        path
        for path in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.as_posix()
    )


MODULES, NOTEBOOKS = modules(), notebooks()
each_module = pytest.mark.parametrize("name", MODULES)
each_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "nbs").as_posix()
)


# ---- layers


def layer(name: str) -> int:
    for index, members in enumerate(LAYERS):
        if any(
            name == member or (member.endswith(".") and name.startswith(member))
            for member in members
        ):
            return index
    pytest.fail(f"which layer is {name} in? Give it a place in LAYERS, in {Path(__file__).name}")


def imports(name: str) -> set[str]:
    """The modules of the package that a module imports anywhere in it, also inside of functions."""
    imported = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = [PACKAGE, *name.split(".")][: -node.level] if node.level else []
            source = ".".join([*parents, *filter(None, [node.module])])
            imported |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    ours = {
        module.removeprefix(f"{PACKAGE}.")
        for module in imported
        if module.startswith(f"{PACKAGE}.")
    }
    return ours & MODULES.keys()


@each_module
def test_no_module_imports_from_a_later_layer(name):
    later = sorted(other for other in imports(name) if layer(other) > layer(name))
    assert not later, f"{name} is in an earlier layer than {', '.join(later)}, which it imports"


# ---- the public API


def test_front_door_is_small_and_complete():
    names = git_rebasin.__all__
    assert len(names) <= MAX_NAMES, "the public API is full: leave the new name in its module"
    assert names == sorted(set(names))
    assert not [name for name in names if not hasattr(git_rebasin, name)]


def test_front_door_shows_itself_and_no_modules():
    shown = {name for name in dir(git_rebasin) if not name.startswith("__")}
    assert shown == set(git_rebasin.__all__)


def test_no_module_bears_the_name_of_a_function():
    """Otherwise `import git_rebasin.name as m` gives the function."""
    assert not {name.split(".")[0] for name in MODULES} & set(git_rebasin.__all__)


def test_no_modules_import_one_another():
    waiting = {name: imports(name) - {name} for name in MODULES}
    while ready := [name for name, needed in waiting.items() if not needed & waiting.keys()]:
        for name in ready:
            del waiting[name]
    assert not waiting, f"in a circle, or of one: {', '.join(waiting)}"


def test_version_is_that_of_the_settings():
    assert git_rebasin.__version__ == settings()["version"]


def test_import_loads_nothing_that_can_wait():
    before = "import sys, jax; old = {*sys.modules}"
    loaded = printed(f"{before}; from git_rebasin import *; print(*{{*sys.modules}} - old)")
    assert "git_rebasin.matching.weights" in loaded
    assert not sorted(set(LAZY) & set(loaded)), "import it where it is used, inside of the function"


@pytest.mark.parametrize(
    "code, waits", [("parser", {"numpy", "jax"}), ("parser.make_parser()", {"scipy", "jax"})]
)
def test_the_command_starts_without_what_takes_long(code, waits):
    """Before numpy is imported, it has settings to make."""
    loaded = printed(f"import sys; from git_rebasin.cli import parser; {code}; print(*sys.modules)")
    assert "git_rebasin.cli.parser" in loaded and not waits & set(loaded)


def test_the_front_door_opens_when_something_is_asked_for():
    asked = "'jax' in sys.modules, git_rebasin.tree.__name__, git_rebasin.lerp.__name__"
    told = printed(f"import sys, git_rebasin; print({asked}, hasattr(git_rebasin, 'none'))")
    assert told == ["False", "git_rebasin.tree", "lerp", "False"]
    assert vars(git_rebasin)["_MODULES"].keys() == set(git_rebasin.__all__)


def printed(code: str) -> list[str]:
    """The words that a new process prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


# ---- notebooks and what they export


@each_module
def test_modules_are_small(name):
    lines = MODULES[name].read_text(encoding="utf-8").splitlines()
    described = documentation(ast.parse("\n".join(lines)))
    exported = [
        line
        for number, line in enumerate(lines, 1)
        if line.strip()
        and number not in described
        and not re.match("# %%|\\s+#(   | raises )", line)
    ]
    assert len(exported) <= MAX_LINES, "split the notebook rather than let it grow"


def documentation(tree: ast.Module) -> set[int]:
    """The lines of docstrings but for the first of each, as most are made of comments at export."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    docs = [node.body[0] for node in nodes if ast.get_docstring(node) is not None]
    return {line for doc in docs for line in range(doc.lineno + 1, doc.end_lineno + 1)}


@each_module
def test_functions_are_short(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    long = {f.name: size for f in functions if (size := code_lines(f)) > MAX_FUNCTION}
    assert not long


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of the body, without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@each_module
def test_annotations_stay_text(name):
    """Otherwise signatures show what shapes evaluate to, and not what was written."""
    assert "from __future__ import annotations" in MODULES[name].read_text(encoding="utf-8")


@each_notebook
def test_first_cell_is_title_and_summary(path):
    """nbdev makes the head of the page of it, and drops whatever else it holds."""
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.fullmatch(r"# \S.*\n\n> \S.*\n?", "".join(first["source"]))


def test_every_notebook_is_in_the_sidebar():
    listed = re.findall(r"(\S+\.ipynb)$", (ROOT / "_quarto.yml").read_text(encoding="utf-8"), re.M)
    pages = [path.relative_to(ROOT / "nbs").as_posix() for path in NOTEBOOKS]
    assert sorted(listed) == sorted(pages), "give it a line in _quarto.yml"


@pytest.mark.parametrize("name", [m for m in MODULES if m.split(".")[0] not in UNLISTED])
def test_every_module_is_in_the_table_of_the_layout(name):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    package, _, module = name.rpartition(".")
    rows = re.findall(rf"^\| {f'`{package}/`' if package else 'root'} \|.*$", text, re.M)
    assert any(f"`{module}`" in row for row in rows), "name it in the table of CONTRIBUTING.md"


# ---- one place for names and addresses


def test_addresses_stand_in_the_settings_alone():
    """A fork changes one line; what is generated from it follows."""
    values = settings()
    user = re.escape(values["user"])
    ours = re.compile(
        rf"(?:github|githubusercontent)\.com/{user}\b|/github/{user}\b|{user}\.github\.io"
    )
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git repository")
    named = [name for name in listed.stdout.splitlines() if names_us(ROOT / name, ours)]
    assert not named


def names_us(path: Path, ours: re.Pattern) -> bool:
    """Does a file hold an address of this repository that was written by hand, unlike a badge?"""
    if not path.is_file() or path.name in ("README.md", "_modidx.py"):
        return False
    text = path.read_bytes().decode("utf-8", "ignore")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "".join("".join(cell["source"]) for cell in cells if cell["id"] != "colab-badge")
    return bool(ours.search(text))
