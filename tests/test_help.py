"""What `help()` and editors show: written at export, of the comments that stand in the notebooks."""

import ast
import inspect
import pydoc
import re
import textwrap
from collections.abc import Callable, Iterator

import pytest

import git_rebasin
from tools.docs_renderer import describe
from tools.docstrings import with_docstrings
from tools.signatures import parse

MODULE = r'''"""A module."""

# %% ../nbs/example.ipynb #1
from dataclasses import dataclass

# %% ../nbs/example.ipynb #2
def scaled(
    x: Float[Array, "n m"],  # activations, in volts
    # what x is multiplied by,
    # one number for each column,
    by: Float[Array, "m"] = "a,  # b",  # of no unit;
    #   it is a factor, such as \alpha or """
    *rest: int,
    kind: Literal["one", "two"] = "one",  # `"one"  or  "two"`, é
    **more: Any,  # what else there is  # noqa: E501
) -> Float[Array, "n m"]:  # x · by
    r"Multiply by \alpha, each column by its own (paper §2; arXiv 1803.05407)"
    # raises ValueError if the sizes of `x` and `by` differ, or something else that takes long to
    #   say
    # raises KeyError unless there is a `kind`
    # Nothing is raised here.
    return x * by

# %% ../nbs/example.ipynb #3
@dataclass
class Thing:
    "A thing"

    # above:
    a: Float[Array, "n"]
    b: int = 1  # inside
    c: int = 2

    def method(self, one: int) -> int:  # what it is
        "A method"
        return one

    @property
    def n(self) -> int:
        "How many"
        return 1


def _private(
    x: int,  # an integer
) -> int:  # the same
    "The same"
    return x


def undocumented(
    x: int,  # an integer
) -> None:
    pass
'''

SCALED = r'''Multiply by \alpha, each column by its own

Args:
    x (Float[Array, "n m"]): activations, in volts
    by (Float[Array, "m"]): what x is multiplied by, one number for each column, of no unit; it
        is a factor, such as \alpha or """
    kind: `"one"  or  "two"`, é
    **more: what else there is

Returns:
    Float[Array, "n m"]: x · by

Raises:
    ValueError: if the sizes of `x` and `by` differ, or something else that takes long to say
    KeyError: unless there is a `kind`

References:
    Git Re-Basin (arXiv 2209.04836), §2
    arXiv 1803.05407'''

THING = """A thing

Attributes:
    a (Float[Array, "n"]): above
    b: inside"""


# ---- how docstrings are written


def docs(text: str) -> dict[str, str | None]:
    nodes = ast.walk(ast.parse(text))
    named = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name: ast.get_docstring(node) for node in named}


def test_comments_become_sections():
    documented = docs(with_docstrings(MODULE))
    assert documented["scaled"] == SCALED
    assert documented["Thing"] == THING
    assert documented["method"] == "A method\n\nReturns:\n    int: what it is"
    assert documented["n"] == "How many\n\nReturns:\n    int"


def test_what_is_private_or_has_no_docstring_stays():
    documented = docs(with_docstrings(MODULE))
    assert documented["_private"] == "The same" and documented["undocumented"] is None


def test_nothing_but_docstrings_changes():
    def rest(text: str) -> str:
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                del node.body[0]
        return ast.dump(tree)

    new = with_docstrings(MODULE)
    comments = [re.findall(r"^ *#.*|  # .*", text, re.MULTILINE) for text in (MODULE, new)]
    assert rest(new) == rest(MODULE) and comments[0] == comments[1]


def test_docstrings_are_written_once():
    new = with_docstrings(MODULE)
    assert with_docstrings(new) == new


def test_the_site_says_everything_once():
    src = parse(with_docstrings(MODULE))
    page = "\n".join(describe(src, src.find("scaled"), "scaled"))
    for text in ("Multiply by", "activations, in volts", "x · by", "long to say", "§2"):
        assert page.count(text) == 1
    assert "**Raises**" in page and "| `ValueError` | if" in page
    assert "(https://arxiv.org/abs/1803.05407)" in page


# ---- the public API


def callables() -> Iterator[tuple[str, Callable]]:
    """Every function of the public API, and every public method of its classes, by name."""
    for name in git_rebasin.__all__:
        value = getattr(git_rebasin, name)
        if inspect.isclass(value):
            for method, function in vars(value).items():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{name}.{method}", function
        else:
            yield name, inspect.unwrap(value)


def classes() -> Iterator[tuple[str, type]]:
    """Every class of the public API, and every one that its functions return, by name."""
    for function in CALLABLES.values():
        result = inspect.signature(function).return_annotation
        value = getattr(inspect.getmodule(function), str(result), None)
        if inspect.isclass(value) and value.__module__.startswith("git_rebasin."):
            yield result, value
    for name in git_rebasin.__all__:
        if inspect.isclass(value := getattr(git_rebasin, name)):
            yield name, value


CALLABLES = dict(callables())
CLASSES = dict(classes())
each_callable = pytest.mark.parametrize("name", CALLABLES)

SOURCES = {
    "PermutationSpec": "Git Re-Basin (arXiv 2209.04836), §2",
    "activation_matching": "Git Re-Basin (arXiv 2209.04836), §3.1, eq. 1",
    "apply_permutation": "Git Re-Basin (arXiv 2209.04836), §2",
    "frank_wolfe_matching": "arXiv 2405.17897",
    "infer_permutation_spec": "Git Re-Basin (arXiv 2209.04836), §2",
    "interpolate": "Git Re-Basin (arXiv 2209.04836), §2",
    "loss_barrier": "Git Re-Basin (arXiv 2209.04836), §2",
    "merge_many": "Git Re-Basin (arXiv 2209.04836), appendix, Algorithm 3",
    "plot_interpolation": "Git Re-Basin (arXiv 2209.04836), Figure 2",
    "rebasin": "Git Re-Basin (arXiv 2209.04836), §2",
    "repair": "REPAIR, arXiv 2211.08403, §4",
    "reset_batch_stats": "arXiv 2211.08403, §2",
    "sinkhorn_matching": "arXiv 2212.12042",
    "straight_through_matching": "Git Re-Basin (arXiv 2209.04836), §3.3, Algorithm 2",
    "weight_matching": "Git Re-Basin (arXiv 2209.04836), §3.2, Algorithm 1",
}


def sections(doc: str) -> dict[str, list[str]]:
    """The entries of each section of a docstring, each on one line."""
    parts = re.findall(r"^(\w+):\n((?: {4}.*\n?)+)", inspect.cleandoc(doc), re.MULTILINE)
    return {
        name: [" ".join(entry.split()) for entry in re.split(r"\n(?= {4}\S)", text.rstrip())]
        for name, text in parts
    }


def raised(function: Callable) -> set[str]:
    """The exceptions that a function raises itself, or by private helpers of its module."""
    module = inspect.getmodule(function)
    tree = ast.parse(inspect.getsource(module))
    helpers = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    todo, seen = [ast.parse(textwrap.dedent(inspect.getsource(function)))], set()
    errors: set[str] = set()
    while todo:
        for node in ast.walk(todo.pop()):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                errors.add(ast.unparse(node.exc.func))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                if name.startswith("_") and name in helpers and name not in seen:
                    seen.add(name)
                    todo.append(helpers[name])
    made = {name: ast.unparse(helpers[name].returns) for name in errors & helpers.keys()}
    return {made.get(name, name) for name in errors}


@each_callable
def test_every_parameter_is_described(name):
    described = sections(CALLABLES[name].__doc__).get("Args", [])
    entries = dict(re.match(r"\**(\w+)(?: \(.*?\))?: (.*)", entry).groups() for entry in described)
    wanted = [p for p in inspect.signature(CALLABLES[name]).parameters if p not in ("self", "cls")]
    assert [p for p in wanted if len(entries.get(p, "")) < 5] == []


@each_callable
def test_shapes_are_shown(name):
    """Of a type with a shape, editors show `Array`."""
    doc = CALLABLES[name].__doc__
    for type_ in inspect.get_annotations(CALLABLES[name]).values():
        for shape in re.findall(r"""\w+\[[\w.]+, "[^"]*"\]""", str(type_)):
            assert shape in " ".join(doc.split())


@each_callable
def test_what_is_returned_is_described(name):
    result = inspect.signature(CALLABLES[name]).return_annotation
    if result not in ("None", None):
        assert len(sections(CALLABLES[name].__doc__)["Returns"]) == 1


@each_callable
def test_what_is_raised_is_listed(name):
    listed = {entry.split(":")[0] for entry in sections(CALLABLES[name].__doc__).get("Raises", [])}
    assert raised(CALLABLES[name]) <= listed


@pytest.mark.parametrize("name", CLASSES)
def test_fields_of_classes_are_described(name):
    described = sections(CLASSES[name].__doc__).get("Attributes", [])
    names = {re.match(r"\w+", entry)[0] for entry in described}
    assert vars(CLASSES[name]).get("__annotations__", {}).keys() <= names


@pytest.mark.parametrize("name", SOURCES)
def test_the_source_is_named(name):
    doc = getattr(git_rebasin, name).__doc__
    assert any(SOURCES[name] in entry for entry in sections(doc)["References"])


def test_sources_stand_in_their_section_alone():
    docs = {name: getattr(git_rebasin, name).__doc__ for name in git_rebasin.__all__}
    cited = {name for name, doc in docs.items() if re.search("arXiv|[Tt]he paper", doc)}
    assert cited <= SOURCES.keys()
    assert not [
        name for name, doc in docs.items() if re.search(r"arXiv|\(paper", doc.split("\n")[0])
    ]


@pytest.mark.parametrize("name", git_rebasin.__all__)
def test_help_shows_all_of_it(name):
    shown = pydoc.plain(pydoc.render_doc(getattr(git_rebasin, name)))
    doc = inspect.getdoc(getattr(git_rebasin, name))
    lines = {line.strip(" |") for line in shown.splitlines()}
    assert {line.strip() for line in doc.splitlines()} <= lines
