"""Colab badges and install cells, in the notebooks that people open on their own.

Owner and branch come from settings.ini; that is why no one writes these two cells by hand.
"""

import posixpath
from pathlib import Path

from execnb.nbio import NbCell, mk_cell, read_nb, write_nb
from fastcore.basics import AttrDict

from tools import project

FOLDERS = {"tutorials", "experiments"}
BADGE, INSTALL = "colab-badge", "colab-install"  # the ids of the cells


def has_badge(path: Path) -> bool:
    """Is it the front page, a tutorial or an experiment? `path` starts in the notebooks' folder."""
    return path.name == "index.ipynb" or path.parts[0] in FOLDERS


def badge(path: Path, settings: AttrDict) -> NbCell:
    """The badge, with a picture of our own, so that no page needs the network."""
    picture = posixpath.relpath("images/colab.svg", path.parent.as_posix())
    repository = f"{settings.user}/{settings.repo}/blob/{settings.branch}"
    place = f"github/{repository}/{settings.nbs_path.name}/{path.as_posix()}"
    text = f"[![Open in Colab]({picture})](https://colab.research.google.com/{place})"
    return mk_cell(text, "markdown", id=BADGE)


def install(path: Path, settings: AttrDict) -> NbCell:
    """A cell for Colab only, where the folder /content is; the front page needs no extra."""
    extra = f'"{settings.lib_name}[experiments]"' if path.parts[0] in FOLDERS else settings.lib_name
    text = f"#| hide\n#| eval: false\n! [ -e /content ] && pip install -Uqq {extra}"
    return mk_cell(text, "code", id=INSTALL)


def write(path: Path, root: Path) -> None:
    """Put the two cells under the title of the notebook, in place of those that are there."""
    with project.project(root) as settings:
        relative = path.resolve().relative_to(settings.nbs_path.resolve())
        ours = [make(relative, settings) for make in (badge, install) if has_badge(relative)]
    nb = read_nb(path)
    others = [cell for cell in nb.cells if cell.id not in (BADGE, INSTALL)]
    nb.cells = others[:1] + ours + others[1:]
    write_nb(nb, path)
