"""Build the site into `_docs/`, with Quarto, or with smalldocs where there is no Quarto."""

import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from execnb.nbio import read_nb, write_nb
from fastcore.basics import AttrDict
from nbdev.quarto import refresh_quarto_yml

from tools import docs_check, docs_renderer, links, project

ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PROCESSED = Path("_proc")
REMOTE_IMPORT = re.compile(
    r"""@import\s*(url\(["']?https?:[^)]*\)|"https?:[^"]*"|'https?:[^']*')[^;]*;"""
)


# ---- what both renderers start from


def process_notebooks(settings: AttrDict) -> None:
    """Write the notebooks to `_proc/`, with documentation in place of what they export."""
    refresh_quarto_yml()
    shutil.rmtree(PROCESSED, ignore_errors=True)
    shutil.copytree(settings.nbs_path, PROCESSED, ignore=shutil.ignore_patterns(".*", "*.ipynb"))
    for path in project.notebooks():
        nb = read_nb(path)
        docs_renderer.PageProcessors()(nb)
        mend_links(nb, path.parent.relative_to(settings.nbs_path).as_posix(), settings)
        write_nb(nb, PROCESSED / path.relative_to(settings.nbs_path))


def mend_links(nb: AttrDict, folder: str, settings: AttrDict) -> None:
    """Links out of the notebooks' folder lead to the site's own pages, or into the repository."""

    def change(target: str) -> str:
        return site_link(target, f"nbs/{folder}", folder, settings)

    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = links.rewrite(cell.source, change)


def add_root_pages(settings: AttrDict) -> None:
    """Pages that people look for at the top of a repository are pages of the site as well."""
    for name, page in ROOT_PAGES.items():
        if Path(name).exists():
            text = Path(name).read_text(encoding="utf-8")
            text = links.rewrite(text, lambda target: site_link(target, "", "", settings))
            (PROCESSED / page).write_text(text, encoding="utf-8")


def site_link(target: str, folder: str, page_folder: str, settings: AttrDict) -> str:
    """A link as written in the repository's `folder`, for a page in `page_folder` of the site."""
    path, mark, anchor = target.partition("#")
    place = posixpath.normpath(posixpath.join(folder, path))
    if place.startswith("nbs/"):
        page = place.removeprefix("nbs/")
    elif place in ROOT_PAGES:
        page = ROOT_PAGES[place]
    else:
        return f"{settings.git_url}/blob/{settings.branch}/{place}{mark}{anchor}"
    return posixpath.relpath(page, page_folder or ".") + mark + anchor


def add_repository_link(settings: AttrDict) -> None:
    """The link in the navigation bar, whose address is not for `_quarto.yml` to know."""
    path = PROCESSED / "nbdev.yml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    link = {"icon": "github", "text": "GitHub", "href": settings.git_url}
    config["website"]["navbar"] = {"right": [link]}
    path.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")


# ---- rendering


def render(settings: AttrDict) -> tuple[Path, str]:
    """The folder of the site, and what it was made with."""
    if shutil.which("quarto"):
        environment = os.environ | {"QUARTO_PYTHON": sys.executable}
        subprocess.run(["quarto", "render"], cwd=PROCESSED, env=environment, check=True)
        return PROCESSED / settings.doc_path.name, "Quarto"
    from tools import docs_smalldocs  # which needs packages that Quarto does not

    return docs_smalldocs.build(PROCESSED), "smalldocs"


def drop_remote_fonts(site: Path) -> None:
    """Themes ask a server for their font; pages look fine with the one that they name next."""
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        path.write_text(REMOTE_IMPORT.sub("", text), encoding="utf-8")


def link_to_neighbours(site: Path, address: str) -> None:
    """nbdev links names to the published site; a copy of it leads to its own pages."""
    for path in site.rglob("*.html"):
        up = "../" * (len(path.relative_to(site).parts) - 1) or "./"
        text = path.read_text(encoding="utf-8")
        text = re.sub(rf'(<a [^>]*href="){re.escape(address)}', rf"\g<1>{up}", text)
        path.write_text(text, encoding="utf-8")


def main() -> int:
    with project.project() as settings:
        process_notebooks(settings)
        add_root_pages(settings)
        add_repository_link(settings)
        built, renderer = render(settings)
        drop_remote_fonts(built)
        link_to_neighbours(built, f"{settings.doc_host}{settings.doc_baseurl}/")
        shutil.rmtree(settings.doc_path, ignore_errors=True)
        shutil.move(built, settings.doc_path)
        broken = docs_check.problems(settings.doc_path)
    for problem in broken:
        print(problem, file=sys.stderr)
    pages = len(list(settings.doc_path.rglob("*.html")))
    print(f"{pages} pages in {settings.doc_path.name}/, made with {renderer}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
