"""Clean notebooks: no metadata, execution counts or memory addresses that change from one editor to
the next."""

from collections import Counter
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from fastcore.basics import AttrDict
from nbdev.clean import clean_nb

from tools import project


def clean(nb: AttrDict) -> None:
    """Clean a notebook in memory, as `nbdev_clean` does with this project's settings."""
    with project.project() as settings:
        clean_nb(
            nb,
            allowed_metadata_keys=settings.allowed_metadata_keys.split(),
            clean_ids=settings.clean_ids,
        )
    repeated = [key for key, count in Counter(cell.id for cell in nb.cells).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{nb.get('path_', 'notebook')}: two cells have the id {', '.join(repeated)}"
        )


def clean_file(path: Path) -> None:
    nb = read_nb(path)
    clean(nb)
    write_nb(nb, path)
