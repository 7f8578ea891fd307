"""The processors that make a page of a notebook: nbdev's, but for `show_doc` and test cells.

`show_doc` shows a short signature, the docstring's first sentence, tables of the parameters with
their shapes and comments and of what is raised, and the sources; of classes fields and methods. All
of it is read from the source of the exported module, and no cell is run for it. nbdev runs every
cell that has an import, and inspects the object: of a jitted function it finds no comments, of a
dataclass no fields, and it stops at some modules.
"""

import ast
import re
import textwrap
from collections.abc import Collection

from execnb.nbio import NbCell
from fastcore.basics import AttrDict
from nbdev.doclinks import NbdevLookup
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, exec_show_docs

from tools import project
from tools.signatures import (
    Definition,
    Row,
    Source,
    fields,
    is_property,
    methods,
    parameters,
    raises,
    references,
    returned,
    source,
    summary,
)

WIDTH = 80  # of a signature on one line; a page shows 84
# ---- as Markdown


def signature(name: str, rows: list[Row], result: str = "") -> str:
    """A call, with names and defaults alone, on as few lines as it takes."""
    words = ", ".join(f"{row.name}={row.default}" if row.default else row.name for row in rows)
    result = f" -> {result}" if result else ""
    line = f"{name}({words}){result}"
    if len(line) > WIDTH:
        words = textwrap.indent(textwrap.fill(words, WIDTH - 4), "    ")
        line = f"{name}(\n{words}\n){result}"
    return python(line)


def python(text: str) -> str:
    return f"```python\n{text}\n```"


def table(title: str, rows: list[Row]) -> str:
    """The rows that have a text, without empty columns."""
    rows = [row for row in rows if row.type or row.default or row.comment]
    columns = {
        title: [code(row.name, link=False) for row in rows],
        "Type": [code(row.type) for row in rows],
        "Default": [code(row.default) for row in rows],
        "Meaning": [prose(row.comment, names(rows)) for row in rows],
    }
    columns = {head: cells for head, cells in columns.items() if any(cells)}
    return markdown_table(list(columns), list(zip(*columns.values(), strict=True)))


def markdown_table(head: list[str], rows: list[tuple[str, ...]]) -> str:
    lines = [head, [":--"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def code(text: str, link: bool = True) -> str:
    """Code in a table: in backticks, which nbdev makes links of, if the table survives that."""
    if not text:
        return ""
    return (
        f"`{text}`" if link and not re.search(r"[|`]", text) else f"<code>{entities(text)}</code>"
    )


def prose(text: str, own: Collection[str] = ()) -> str:
    """A comment in a table, where `|` has a meaning; names of one's own are no links."""
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [part.replace("|", "&#124;") for part in parts[::2]]
    parts[1::2] = [code(part, link=part not in own) for part in parts[1::2]]
    return "".join(parts)


def names(rows: list[Row]) -> set[str]:
    """The names of parameters or fields."""
    return {row.name.lstrip("*") for row in rows}


def entities(text: str) -> str:
    """Text in which no Markdown parser sees anything, nor makes one sign of the dots in `...`."""
    escaped = (c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in text)
    return "".join(escaped).replace("&#46;&#46;&#46;", "&#46;<wbr>&#46;<wbr>&#46;")


def describe(src: Source, node: Definition, name: str) -> list[str]:
    """Signature, docstring and tables of a function or a class."""
    doc = ast.get_docstring(node) or ""
    function = isinstance(node, ast.FunctionDef)
    rows = list(parameters(src, node) if function else fields(src, node))
    after = [raised(raises(src, node), names(rows)), sources(references(doc))]
    if function:
        result = returned(src, node)
        head, what = signature(name, rows, result.type), returns(result, names(rows))
        return [head, summary(doc), table("Parameter", rows), what, *after]
    bases = ", ".join(src.code(base) for base in node.bases)
    plain = python(f"class {name}({bases})" if bases else f"class {name}")
    listed = [method(src, item, f"{name}.{item.name}") for item in methods(node)]
    head = signature(f"class {name}", rows) if rows else plain
    listing = markdown_table(["Method", "Meaning"], listed)
    return [head, summary(doc), table("Field", rows), *after, listing]


def method(src: Source, node: ast.FunctionDef, name: str) -> tuple[str, str]:
    """The cells about a method: how it is called, what it does, and what it raises."""
    anchor = f'<span id="{name.lower()}"></span>'  # where nbdev's links to the method lead
    given = ", ".join(row.name for row in parameters(src, node))
    call = node.name if is_property(node) else f"{node.name}({given})"
    raised = dict.fromkeys(row.name for row in raises(src, node))
    ends = f"; raises {', '.join(f'`{name}`' for name in raised)}" if raised else ""
    return anchor + code(call, link=False), prose(summary(ast.get_docstring(node) or "") + ends)


def returns(row: Row, own: Collection[str]) -> str:
    """A line about what is returned, if there is more than its type."""
    kind = f" {code(row.type)}" if row.type else ""
    return f"**Returns**{kind}: {prose(row.comment, own)}" if row.comment else ""


def raised(rows: list[Row], own: Collection[str]) -> str:
    """A table of what is raised and when, each exception named once."""
    above = ["", *(row.name for row in rows)]
    cells = [
        (code(row.name) if row.name != last else "", prose(row.comment, own))
        for row, last in zip(rows, above, strict=False)
    ]
    shown = markdown_table(["Exception", "When"], cells)
    return f"**Raises**\n\n{shown}" if rows else ""


def sources(cited: list[str]) -> str:
    """Where something comes from, with links to arXiv."""
    link = r"[arXiv \1](https://arxiv.org/abs/\1)"
    linked = (re.sub(r"arXiv (\d{4}\.\d{4,5})", link, text) for text in cited)
    return f"**Source** {'; '.join(linked)}" if cited else ""


# ---- what nbdev calls


def show_doc(name: str, module: str, title: str, level: int) -> str:
    """The documentation of a symbol, as Markdown: of `module`, or else of any in the package."""
    lookup = NbdevLookup()
    entry = lookup[f"{module}.{name}"] or lookup[name]
    _, path, address = entry if isinstance(entry, tuple) else (None, None, None)
    node = source(project.ROOT / path).find(name) if path else None
    if node is None:
        raise ValueError(f"show_doc({name}): no module has this name; does `make export` help?")
    link = f"[source]({address}#L{node.lineno}){{.source-link}}"
    description = describe(source(project.ROOT / path), node, name)
    parts = ["::: {.symbol}", link, f"{'#' * level} {title}", *description, ":::"]
    return lookup.linkify("\n\n".join(part for part in parts if part))


class ShowDocs(Processor):
    """Give cells that call `show_doc` their output."""

    def begin(self) -> None:
        with project.project() as settings:
            self.module = f"{settings.lib_path.name}.{project.module_name(self.nb)}"

    def cell(self, cell: NbCell) -> None:
        for call in calls(cell):
            name = ast.unparse(call.args[0])
            options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
            title, level = options.get("name", name), options.get("title_level", 3)
            text = show_doc(name, self.module, title, level)
            data = {"text/markdown": text.splitlines(keepends=True)}
            cell.outputs = [AttrDict(output_type="display_data", metadata={}, data=data)]


def calls(cell: NbCell) -> list[ast.Call]:
    """The calls of `show_doc` that the cell consists of."""
    values = [node.value for node in cell.parsed_() or [] if isinstance(node, ast.Expr)]
    called = [value for value in values if isinstance(value, ast.Call)]
    return [call for call in called if ast.unparse(call.func) == "show_doc"]


class FoldTests(Processor):
    """Show tests as a line to click at: they are there to be found, and in nobody's way."""

    def cell(self, cell: NbCell) -> None:
        if cell.cell_type == "code" and project.has(cell, "test"):
            setup = cell.directives_["test"] == ["setup"]
            summary = "Set-up of the tests" if setup else "Test"
            cell.source = f'#| code-fold: true\n#| code-summary: "{summary}"\n{cell.source}'


class PageProcessors(FilterDefaults):
    """nbdev's processors in their order, but for the one that runs cells to see what to show."""

    def base_procs(self) -> list:
        theirs = super().base_procs()
        return [ShowDocs if proc is exec_show_docs else proc for proc in theirs] + [FoldTests]
