"""The source of an exported module, and its comments on parameters, results and errors.

A comment describes the parameter, the field or the returned value on whose line it ends. What does
not fit there stands on lines of its own: above it, or below it and indented (`#   and so on`). A
line `# raises ValueError if ...` directly below the docstring names what is raised, and when.
"""

import ast
import functools
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Definition = ast.FunctionDef | ast.ClassDef
RAISES = re.compile(r"raises ([\w.]+),? ((?:if|unless|where|when) .+)")
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "References")
ENTRY = re.compile(rf"\n\n(?=(?:{'|'.join(SECTIONS)}):\n)")


@dataclass(frozen=True)
class Row:
    """A parameter, a field, a returned value or an exception."""

    name: str
    type: str = ""
    default: str = ""
    comment: str = ""


@dataclass(frozen=True)
class Source:
    """A module as text, with the comment that each line ends with or consists of."""

    text: str
    tree: ast.Module
    comments: dict[int, str]  # number of the line → the comment, its sign included
    alone: frozenset[int]  # lines that are nothing but a comment

    def find(self, name: str) -> Definition | None:
        """The function or class with a dotted name."""
        node: ast.AST | None = self.tree
        for part in name.split("."):
            inside = getattr(node, "body", [])
            node = next((n for n in inside if isinstance(n, Definition) and n.name == part), None)
        return node

    def code(self, node: ast.AST | None) -> str:
        """The source of a node, on one line."""
        return " ".join((ast.get_source_segment(self.text, node) or "").split()) if node else ""

    def below(self, line: int) -> Iterator[int]:
        """The lines of comments directly below a line."""
        while (line := line + 1) in self.alone:
            yield line

    def continues(self, line: int) -> bool:
        """Whether a line is a comment that goes on with the one above it."""
        return line in self.alone and self.comments[line].startswith("#   ")

    def comment(self, first: int, last: int, *, above: bool = True) -> str:
        """The comments on the code of some lines: above them, in them, and indented below them."""
        start = first
        while above and start - 1 in self.alone and not self.continues(start - 1):
            start -= 1
        inside = (line for line in range(start, last + 1) if line in self.comments)
        below = itertools.takewhile(self.continues, self.below(last))
        meanings = (meaning(self.comments[line]) for line in (*inside, *below))
        return " ".join(text for text in meanings if text and not RAISES.match(text))


def parse(text: str) -> Source:
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    alone = frozenset(t.start[0] for t in comments if not t.line[: t.start[1]].strip())
    return Source(text, ast.parse(text), {t.start[0]: t.string for t in comments}, alone)


@functools.cache
def source(path: Path) -> Source:
    return parse(path.read_text(encoding="utf-8"))


def meaning(comment: str) -> str:
    """A comment without its sign, and without directives for a linter."""
    return re.sub(r"#\s*(noqa|type:|pyright:).*", "", comment).lstrip("# ").strip()


# ---- functions


def parameters(src: Source, node: ast.FunctionDef) -> Iterator[Row]:
    """The parameters of a function, but for `self`; a bare `*` or `/` is a row without a type."""
    args, row = node.args, functools.partial(_parameter, src, node)
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    for index, (arg, default) in enumerate(zip(positional, defaults, strict=True), 1):
        if not (index == 1 and arg.arg in ("self", "cls")):
            yield row(arg, default)
        if index == len(args.posonlyargs):
            yield Row("/")
    if args.vararg:
        yield row(args.vararg, stars="*")
    elif args.kwonlyargs:
        yield Row("*")
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        yield row(arg, default)
    if args.kwarg:
        yield row(args.kwarg, stars="**")


def _parameter(
    src: Source,
    node: ast.FunctionDef,
    arg: ast.arg,
    default: ast.expr | None = None,
    stars: str = "",
) -> Row:
    last, comment = (default or arg).end_lineno, ""
    if last != header_end(src, node):  # there a comment is about what is returned
        comment = src.comment(arg.lineno, last, above=arg.lineno > node.lineno)
    return Row(stars + arg.arg, src.code(arg.annotation), src.code(default), comment)


def header_end(src: Source, node: Definition) -> int:
    """The line with the colon behind which the body begins; 0 if the body begins there as well."""
    line = node.body[0].lineno - 1
    lines = src.text.splitlines()
    while line in src.alone or (line > node.lineno and not lines[line - 1].strip()):
        line -= 1
    return line if line >= node.lineno else 0


def returned(src: Source, node: ast.FunctionDef) -> Row:
    """What a function returns: its type, and the comment at the end of the signature."""
    end = header_end(src, node)
    comment = src.comment(end, end, above=False) if end else ""
    return Row("", src.code(node.returns), comment=comment)


def is_property(node: Definition) -> bool:
    return any("property" in ast.unparse(each) for each in node.decorator_list)


# ---- classes


def fields(src: Source, node: ast.ClassDef) -> Iterator[Row]:
    """The fields of a dataclass, a named tuple or a flax module."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and not item.target.id.startswith("_"):
            comment = src.comment(item.lineno, item.end_lineno).removesuffix(":")
            yield Row(item.target.id, src.code(item.annotation), _default(src, item.value), comment)


def _default(src: Source, value: ast.expr | None) -> str:
    """The default of a field, also where `field(...)` has it."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "field":
        given = {keyword.arg: src.code(keyword.value) for keyword in value.keywords}
        factory = given.get("default_factory")
        return given.get("default", "") if factory is None else f"{factory}()"
    return src.code(value)


def methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Public methods and properties that have a docstring."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"):
            if ast.get_docstring(item):
                yield item


# ---- docstrings


def docstring(node: Definition) -> ast.Constant | None:
    """The docstring of a function or a class, as a node."""
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return first.value if isinstance(first.value.value, str) else None
    return None


def summary(doc: str) -> str:
    """A docstring without the sections that are made of comments."""
    return ENTRY.split(doc)[0]


def references(doc: str) -> list[str]:
    """The sources that a docstring names in a section of its own."""
    references = [part for part in ENTRY.split(doc) if part.startswith("References:\n")]
    return [line.strip() for part in references for line in part.splitlines()[1:]]


def raises(src: Source, node: Definition) -> list[Row]:
    """What is raised and when, by the comments directly below the docstring."""
    doc, rows = docstring(node), []
    for line in src.below(doc.end_lineno if doc else header_end(src, node)):
        text = meaning(src.comments[line])
        if match := RAISES.match(text):
            rows.append(Row(match[1], comment=match[2]))
        elif rows and src.continues(line):
            rows[-1] = Row(rows[-1].name, comment=f"{rows[-1].comment} {text}")
        else:
            break
    return rows
