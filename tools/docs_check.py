"""Look through a built site for broken links, missing pages and things fetched from elsewhere."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from tools import project

FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
NOT_FETCHED = {"canonical", "next", "prev"}  # relations of a <link>
ELSEWHERE = re.compile(r"[a-z]+:|//")


@dataclass
class Document(HTMLParser):
    """What a page links to, what it fetches, and where one can link to in it."""

    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    undescribed: int = 0  # pictures without words for those who do not see them

    def __post_init__(self):
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        address = values.get(FETCHED.get(tag, ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif address and values.get("rel") not in NOT_FETCHED:
            self.fetched.append(address)
        if tag == "img" and not values.get("alt"):
            self.undescribed += 1


def parse(path: Path) -> Document:
    document = Document()
    document.feed(path.read_text(encoding="utf-8"))
    return document


def problems(site: Path) -> list[str]:
    """Everything that is wrong with the site."""
    site = site.resolve()
    pages = {path: parse(path) for path in sorted(site.rglob("*.html"))}
    listed = list(missing_pages(site))
    for path, page in pages.items():
        wrong = [f"broken link {link}" for link in page.links if is_broken(link, path, pages)]
        wrong += [f"cannot fetch {link}" for link in page.fetched if not is_there(link, path)]
        if page.undescribed:
            wrong.append(f"{page.undescribed} pictures without `#| fig-alt` or `#| fig-cap`")
        listed += [f"{path.relative_to(site)}: {problem}" for problem in wrong]
    for path in site.rglob("*.css"):
        listed += [f"{path.relative_to(site)}: fetches {url}" for url in remote(path)]
    return listed


def missing_pages(site: Path) -> Iterator[str]:
    """Notebooks that have no page, or none that the sidebar leads to."""
    index = (site / "index.html").read_text(encoding="utf-8")
    sidebar = re.search(r'<nav id="quarto-sidebar".*?</nav>', index, re.DOTALL)
    for path in project.notebooks():
        relative = path.relative_to(project.ROOT / "nbs")
        page = relative.with_name(re.sub(r"^\d+[a-z]*_", "", relative.stem.lower()) + ".html")
        if not (site / page).exists():
            yield f"nbs/{relative.as_posix()} has no page"
        elif sidebar and f'{page.as_posix()}"' not in sidebar[0]:
            yield f"nbs/{relative.as_posix()} is not in the sidebar: add it to _quarto.yml"


def is_broken(link: str, page: Path, pages: dict[Path, Document]) -> bool:
    """Does a link lead to no page, or to no place in it? Those to other sites are believed."""
    if ELSEWHERE.match(link):
        return False
    name, _, anchor = unquote(link).partition("#")
    target = (page.parent / name.partition("?")[0]).resolve() if name else page
    target = target / "index.html" if target.is_dir() else target
    return not target.exists() or bool(
        anchor and target in pages and anchor not in pages[target].anchors
    )


def is_there(link: str, page: Path) -> bool:
    """Is what a page fetches a file of the site?"""
    inside = not ELSEWHERE.match(link) and (page.parent / unquote(link).partition("?")[0]).exists()
    return inside or link.startswith("data:")


def remote(stylesheet: Path) -> list[str]:
    """Addresses of other servers in a style sheet."""
    text = stylesheet.read_text(encoding="utf-8")
    return re.findall(r"(?:@import\s+|url\()[\"']?((?:https?:)?//[^\"')]*)", text)
