"""README.md from `nbs/index.ipynb`: its text, code, text outputs and pictures."""

import base64
import html
import posixpath
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from textwrap import indent

from execnb.nbio import NbCell
from fastcore.basics import AttrDict

from tools import links, pictures, project

PICTURES = PurePosixPath("nbs/images/readme-")  # a number and .png follow


def write(root: Path) -> None:
    """Write the README of the project at `root`, and its pictures."""
    with project.project(root) as settings:
        source = settings.nbs_path / settings.readme_nb
    if source.exists():
        text, files = render(project.read(source, directives=False))
        (root / "README.md").write_text(text, encoding="utf-8")
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)


def render(nb: AttrDict) -> tuple[str, dict[str, bytes]]:
    """The Markdown, and the pictures that it shows, by path."""
    files: dict[str, bytes] = {}
    parts = [f"<!-- {project.GENERATED} File to edit: nbs/index.ipynb. -->"]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            parts.append(links.rewrite(cell.source.strip(), from_root))
        elif project.is_code(cell) and not project.is_hidden(cell):
            parts += code(cell)
            parts += outputs(cell, files)
    return "\n\n".join(part for part in parts if part) + "\n", files


def from_root(target: str) -> str:
    """A link in the notebook, as it reads from the top of the repository."""
    return posixpath.normpath(posixpath.join("nbs", target))


def code(cell: NbCell) -> list[str]:
    lines = [line for line in cell.source.splitlines() if not line.startswith("#|")]
    source = "\n".join(lines).strip()
    return (
        []
        if project.option(cell, "echo") == "false" or not source
        else [f"```python\n{source}\n```"]
    )


def outputs(cell: NbCell, files: dict[str, bytes]) -> Iterator[str]:
    """What the cell shows; its pictures are added to `files`."""
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            name = f"{PICTURES}{len(files) + 1}.png"
            files[name] = base64.b64decode("".join(data["image/png"]))
            yield picture(name, caption(cell), pictures.width(output))
        elif "text/markdown" in data:
            yield links.rewrite("".join(data["text/markdown"]), from_root)
        elif text := "".join(output.get("text") or data.get("text/plain") or ""):
            yield indent(text.rstrip(), "    ")


def picture(name: str, words: str, width: int | None) -> str:
    """A picture, as wide as it is meant to be shown, for which Markdown has no words."""
    if width is None:
        return f"![{words}]({name})"
    return f'<img src="{name}" width="{width}" alt="{html.escape(words)}">'


def caption(cell: NbCell) -> str:
    """The words for a picture: its `#| fig-alt`, or else its `#| fig-cap`."""
    lines = dict(
        line[2:].strip().split(": ", 1)
        for line in cell.source.splitlines()
        if line.startswith("#| fig-")
    )
    return (lines.get("fig-alt") or lines.get("fig-cap") or "").strip("\"' ")
