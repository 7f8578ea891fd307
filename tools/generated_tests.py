"""Tests from the notebooks: `tests/test_<module>.py` from the cells marked `#| test`.

    #| test              a test with the name of the heading that the cell stands under
    #| test some_name    the test `test_some_name`
    #| test setup        code outside of any test: fixtures, data, functions
    #| slow              (any of the `tst_flags`) also marks the test `@pytest.mark.slow`

A cell that defines functions or classes `test_...` itself is taken as it stands. What the cells use
and the notebook exports, or imports elsewhere, is imported; anything else must come from a cell
marked `#| test setup`.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from execnb.nbio import NbCell
from fastcore.basics import AttrDict

from tools import project

DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def write(root: Path) -> None:
    """Write the tests of every notebook that has some."""
    (root / "tests").mkdir(exist_ok=True)
    with project.project(root) as settings:
        flags, package = settings.tst_flags.split(), settings.lib_path.name
    for path in project.notebooks(root):
        nb = project.read(path, directives=False)
        if any(project.has(cell, "test") for cell in nb.cells):
            module = project.module_name(nb)
            text = render(
                nb,
                path.resolve().relative_to(root.resolve()),
                module and f"{package}.{module}",
                flags,
            )
            stem = (module or re.sub(r"^\d+_", "", path.stem)).replace(".", "_")
            (root / "tests" / f"test_{stem}.py").write_text(text, encoding="utf-8")


def render(nb: AttrDict, path: Path, module: str | None, flags: list[str]) -> str:
    """The test file of one notebook."""
    blocks = [f"# %% {cell.id}\n{code}" for cell, code in tests(nb, flags)]
    head = [
        f"# {project.GENERATED} File to edit: ../{path.as_posix()}.",
        "",
        *imports(nb, module, flags),
    ]
    return "\n\n\n".join(["\n".join(head).strip(), *blocks]) + "\n"


# ---- cells to tests


def tests(nb: AttrDict, flags: list[str]) -> Iterator[tuple[NbCell, str]]:
    """Each cell with the code that stands for it in the test file."""
    heading, seen = "", Counter()
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            heading = next(iter(re.findall(r"^#+ +(.+)", cell.source, re.MULTILINE)[::-1]), heading)
        elif project.has(cell, "test"):
            code = strip_options(cell.source)
            title = "_".join(cell.directives_["test"]) or heading
            marks = [f"@pytest.mark.{flag}" for flag in flags if project.has(cell, flag)]
            yield (
                cell,
                code
                if title == "setup" or defines_tests(code)
                else function(code, unique(title, seen), marks),
            )


def function(code: str, name: str, marks: list[str]) -> str:
    return "\n".join([*marks, f"def test_{name}():", indented(code)])


def indented(code: str) -> str:
    """The code as the body of a function, with the text of its strings as it was."""
    inside: set[int] = set()  # lines that begin within a string
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            text = ast.get_source_segment(code, node) or ""
            if '"""' in text or "'''" in text:
                inside |= set(range(node.lineno + 1, node.end_lineno + 1))
    lines = enumerate(code.splitlines(), 1)
    return "\n".join(line if n in inside or not line else f"    {line}" for n, line in lines)


def unique(title: str, seen: Counter) -> str:
    """The title as a name, numbered from the second time on."""
    name = re.sub(r"\W+", "_", title.lower()).strip("_") or "notebook"
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}_{seen[name]}"


def strip_options(source: str) -> str:
    """The source without lines `#| key: value`."""
    return re.sub(r"^#\|.*\n", "", source, flags=re.MULTILINE).strip()


def defines_tests(code: str) -> bool:
    return any(
        isinstance(node, DEFINITIONS) and node.name.lower().startswith("test")
        for node in ast.parse(code).body
    )


# ---- what they import


def imports(nb: AttrDict, module: str | None, flags: list[str]) -> list[str]:
    """Imports of what the test cells use: from the notebook's module, and as it does itself."""
    cells = [cell for cell in nb.cells if project.has(cell, "test")]
    used = set().union(*(used_names(cell) for cell in cells)) - set().union(
        *(shared_names(cell) for cell in cells)
    )
    if any(project.has(cell, flag) for cell in cells for flag in flags):
        used.add("pytest")
    ours = sorted(used & exported_names(nb)) if module else []
    known = {"pytest": "import pytest"} | imported_names(nb)
    others = sorted({known[name] for name in used & known.keys() - set(ours)})
    return others + ([import_from(module, ours)] if ours else [])


def import_from(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    return (
        line
        if len(line) <= 100
        else "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"])
    )


def used_names(cell: NbCell) -> set[str]:
    """Names that the cell uses and does not bind itself."""
    nodes = list(ast.walk(ast.parse(cell.source)))
    bound = {name for node in nodes for name, _ in bindings(node)}
    bound |= {
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.name for node in nodes if isinstance(node, DEFINITIONS)}
    return {node.id for node in nodes if isinstance(node, ast.Name)} - bound


def shared_names(cell: NbCell) -> set[str]:
    """Names that a cell outside of any test imports for all of them."""
    outside = cell.directives_["test"] == ["setup"] or defines_tests(cell.source)
    return (
        {name for node in ast.parse(cell.source).body for name, _ in bindings(node)}
        if outside
        else set()
    )


def exported_names(nb: AttrDict) -> set[str]:
    """Functions, classes and variables of the cells that are exported."""
    cells = [
        cell for cell in nb.cells if {"export", "exporti", "exports"} & cell.directives_.keys()
    ]
    statements = [node for cell in cells for node in ast.parse(cell.source).body]
    names = {node.name for node in statements if isinstance(node, DEFINITIONS)}
    for node in statements:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {
                name.id
                for name in ast.walk(node)
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
    return names


def imported_names(nb: AttrDict) -> dict[str, str]:
    """The names that the notebook's cells import at their top level, and how."""
    cells = [cell for cell in nb.cells if project.is_code(cell) and not project.has(cell, "test")]
    return {
        name: line
        for cell in cells
        for node in cell.parsed_() or []
        for name, line in bindings(node)
    }


def bindings(node: ast.AST) -> Iterator[tuple[str, str]]:
    """The names that an import statement binds, each with a statement that binds it alone."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.asname or alias.name.split(".")[0], f"import {ast.unparse(alias)}"
    elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
        for alias in node.names:
            yield alias.asname or alias.name, f"from {node.module} import {ast.unparse(alias)}"
