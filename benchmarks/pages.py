"""Tables in the pages of ``docs/``: what a command measured stands between two markers that name it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def read(section: str, page: str = "performance.md") -> str:
    """What lies between a section's markers in a page."""
    return _split(section, page)[1]


def write(section: str, lines: Iterable[str], page: str = "performance.md") -> None:
    """Replace what lies between a section's markers in a page."""
    before, _, after = _split(section, page)
    body = "\n".join(lines)
    (DOCS / page).write_text(f"{before}\n\n{body}\n\n{after}", encoding="utf-8")


def _split(section: str, page: str) -> tuple[str, str, str]:
    """A page up to the end of the section's first marker, what follows, and from the second marker on."""
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    before, found, rest = (DOCS / page).read_text(encoding="utf-8").partition(begin)
    inside, ended, after = rest.partition(end)
    if not found or not ended:
        sys.exit(f"{DOCS / page} lacks the markers {begin} and {end}")
    return before + begin, inside, end + after
