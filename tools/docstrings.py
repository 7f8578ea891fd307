"""Write out the docstrings of the exported modules, for `help()` and for editors.

In a notebook a docstring is one sentence, and comments describe parameters, fields and the returned
value. Here the two become one docstring in Google's format. An annotation is repeated only where it
has a shape: `help()` shows the others in the signature, but of a shape editors show just `Array`.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from tools import project
from tools.signatures import (
    SECTIONS,
    Definition,
    Row,
    Source,
    docstring,
    fields,
    is_property,
    parameters,
    parse,
    raises,
    returned,
)

WIDTH = 100  # of a line of a module
SHAPE = re.compile(r"""\b(?!Literal\b)\w+\[[^\[\]]*,\s*"[^"]*"\s*\]""")  # Float[Array, "n m"]
SOURCE = r"(?:\bpaper\b|\barXiv\b|\b[A-Z]\w+,? (?:19|20)\d\d\b)"
CITED = re.compile(rf"\s*\(([^()]*{SOURCE}[^()]*)\)")
PAPER = re.compile(r"^(?:(?:the )?paper(?:'s)?\b|arXiv 2209\.04836),? ?")
THE_PAPER = "Git Re-Basin (arXiv 2209.04836)"


# ---- what a docstring says


def document(src: Source, node: Definition) -> str | None:
    """The whole docstring of a function or a class; None if it is to stay as it is."""
    doc = ast.get_docstring(node)
    if doc is None or any(f"\n{name}:\n" in doc for name in SECTIONS):
        return None
    cited = [each for text in CITED.findall(doc) for each in citations(text)]
    parts = {
        "Args": list(map(described, parameters(src, node))) if is_function(node) else [],
        "Attributes": list(map(described, fields(src, node))) if not is_function(node) else [],
        "Returns": [result(src, node)] if is_function(node) else [],
        "Raises": [f"{row.name}: {row.comment}" for row in raises(src, node)],
        "References": cited,
    }
    sections = [(name, [line for line in lines if line]) for name, lines in parts.items()]
    width = WIDTH - node.body[0].col_offset
    texts = [section(name, lines, width) for name, lines in sections if lines]
    return "\n\n".join([CITED.sub("", doc), *texts]) if texts else None


def is_function(node: Definition) -> bool:
    return isinstance(node, ast.FunctionDef)


def described(row: Row) -> str:
    """A line about a parameter or a field, if there is a text that the signature lacks."""
    shape = SHAPE.search(row.type)
    if not (row.comment or shape):
        return ""
    return f"{row.name} ({row.type}): {row.comment}" if shape else f"{row.name}: {row.comment}"


def result(src: Source, node: ast.FunctionDef) -> str:
    """A line about what is returned; a property has no signature to show its type."""
    row = returned(src, node)
    if row.type == "None" or not (row.comment or SHAPE.search(row.type) or is_property(node)):
        return ""
    return f"{row.type}: {row.comment}" if row.comment and row.type else row.type or row.comment


def citations(text: str) -> Iterator[str]:
    """The sources, one by one; `paper §2` names the paper that the package is about."""
    separate = re.match(SOURCE, text)  # otherwise a name comes first, which the rest is about
    for each in re.split(r";\s*", text) if separate else [text]:
        yield PAPER.sub(f"{THE_PAPER}, ", each.strip()).removesuffix(", ")


def section(name: str, lines: list[str], width: int) -> str:
    return "\n".join([f"{name}:", *(wrapped(line, width) for line in lines)])


def wrapped(line: str, width: int) -> str:
    """A line in a section, on as few lines as it takes; what is in backticks stays together."""
    whole = re.sub(r"`[^`]*`", lambda match: match[0].replace(" ", "\0"), line)
    filled = textwrap.fill(
        whole,
        width,
        initial_indent=" " * 4,
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace("\0", " ")


# ---- where it is written


def public(body: list[ast.stmt]) -> Iterator[Definition]:
    """The public functions and classes among some statements, and the methods of these."""
    for node in body:
        if isinstance(node, Definition) and (
            not node.name.startswith("_") or node.name in ("__call__", "__getitem__")
        ):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


def literal(doc: str, indent: str) -> str:
    """A docstring as it stands in a module, its first line not indented."""
    escaped = doc.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return '"""' + textwrap.indent(f"{escaped}\n", indent).lstrip() + indent + '"""'


def with_docstrings(text: str) -> str:
    """The source of a module, its docstrings written out."""
    src = parse(text)
    lines = text.encode().splitlines(keepends=True)  # as the columns of a syntax tree count bytes
    for node in sorted(public(src.tree.body), key=lambda node: node.lineno, reverse=True):
        old, doc = docstring(node), document(src, node)
        if doc is None:
            continue
        first, last = old.lineno - 1, old.end_lineno - 1
        before, after = lines[first][: old.col_offset], lines[last][old.end_col_offset :]
        if not before.strip():
            new = literal(doc, before.decode()).encode()
            lines[first : last + 1] = [before + new + after]
    return b"".join(lines).decode()


def write(root: Path) -> None:
    """Write out the docstrings of all exported modules of the project at `root`."""
    with project.project(root) as settings:
        for path in sorted(settings.lib_path.rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if path.name != "_modidx.py" and project.GENERATED in text[:1000]:
                path.write_text(with_docstrings(text), encoding="utf-8")
