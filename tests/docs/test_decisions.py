"""The list of decisions names every record, with its own title."""

from __future__ import annotations

import re
from pathlib import Path

DECISIONS = Path(__file__).parents[2] / "docs/adr"


def test_every_record_stands_in_the_list_under_its_title() -> None:
    listed = dict(
        re.findall(
            r"^\| \[\d{4}\]\(([^)]+)\) \| (.+?) \|", (DECISIONS / "index.md").read_text(), re.M
        )
    )
    titles = {
        path.name: path.read_text().splitlines()[0].split(". ", 1)[1]
        for path in DECISIONS.glob("0*.md")
    }
    assert len(titles) > 20
    assert listed == titles
