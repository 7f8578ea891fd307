"""Links in Markdown: `[text](target)` and `![text](target)`."""

import re
from collections.abc import Callable

LINK = re.compile(r"(\]\()([^)\s]+)")
ELSEWHERE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//|#|/")


def rewrite(markdown: str, change: Callable[[str], str]) -> str:
    """Change the target of every relative link outside of code."""
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [
        LINK.sub(lambda link: link[1] + _changed(link[2], change), part) for part in parts[::2]
    ]
    return "".join(parts)


def _changed(target: str, change: Callable[[str], str]) -> str:
    return target if ELSEWHERE.match(target) else change(target)
