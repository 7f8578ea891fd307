"""Render the processed notebooks with smalldocs, where there is no Quarto.

What Quarto does and smalldocs does not is added here: the number of `00_tree.ipynb` leaves the
address of its page, formulas are drawn by the browser, without a script from elsewhere, and a
picture is as wide as its notebook says, which has more pixels than that.
"""

import html
import re
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from unittest import mock

from math_core import LatexError, LatexToMathML
from smalldocs import notebook
from smalldocs.config import BuildError, load
from smalldocs.site import Page, Site

from tools import pictures

FORMULA = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.DOTALL)
SEEN_TO = ["output-file", "html-math-method"]  # options that smalldocs does not read, and we do


class OfflineSite(Site):
    """A site that needs no network to look right."""

    def read(self, src: PurePosixPath) -> Page:
        """A page, with the address that nbdev has put into its front matter."""
        page = super().read(src)
        if name := page.front.get("output-file"):
            page.out = page.out.with_name(name)
        return page

    def render_page(self, page: Page) -> None:
        """A page with formulas in MathML, which without would ask a server for a script."""
        super().render_page(page)
        converter = LatexToMathML()
        page.html = FORMULA.sub(lambda formula: mathml(converter, formula, page), page.html)
        page.env["math"] = False


def mathml(converter: LatexToMathML, formula: re.Match, page: Page) -> str:
    """A formula in the language of the browser."""
    kind, tex = formula[1], html.unescape(formula[2])
    try:
        drawn = converter.convert_with_local_state(tex, displaystyle=kind == "display")
    except LatexError as error:
        plain = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()
        raise BuildError(f"{page.src}: a formula cannot be read\n{plain}") from None
    return f'<span class="math {kind}">{drawn}</span>'


def with_width(show: Callable[..., str]) -> Callable[..., str]:
    """What shows an output, and says how wide its picture is."""

    def shown(output: dict, *rest) -> str:
        page = show(output, *rest)
        if wide := pictures.width(output):
            page = page.replace('class="img-fluid"', f'class="img-fluid" width="{wide}"')
        return page

    return shown


def build(folder: Path) -> Path:
    """Build the site of the project in `folder`; a warning is a reason to stop."""
    sized = mock.patch.object(notebook, "output_html", with_width(notebook.output_html))
    try:
        site = OfflineSite(load(folder), quiet=True)
        with sized:
            site.build()
    except BuildError as error:
        sys.exit(str(error))
    warnings = [w for w in site.warnings if not any(option in w for option in SEEN_TO)]
    if warnings:
        sys.exit("\n".join(warnings))
    return site.out
