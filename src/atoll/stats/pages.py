"""An offline page of tables and plots: table 1, forest plots, survival curves with numbers at risk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.job.inquiries.inquiry import Finding
from atoll.job.inquiries.page import BINS, cell, histogram, shown
from atoll.report.markup import Safe, tag
from atoll.report.statistics import page, plain_table

__all__ = ["write_page"]


def write_page(path: str | Path, title: str, parts: Mapping[str, Any]) -> Path:
    """Write results as one HTML file that opens offline.

    Args:
        path: the file.
        title: of the page.
        parts: by heading: findings (fitted models, curves, what institutions told), pandas frames, or text.
    """
    sections = [(heading, _shown(part)) for heading, part in parts.items()]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(title, sections), encoding="utf-8")
    return target


def _shown(part: Any) -> Sequence[Safe]:
    if isinstance(part, Finding):
        return shown(part)
    if hasattr(part, "itertuples"):
        plots = []
        if list(part.columns) == list(BINS):
            plots = [histogram(part.to_dict("records"))]
        heads = [str(part.index.name or ""), *map(str, part.columns)]
        lines = [[cell(value) for value in row] for row in part.itertuples()]
        return [*plots, plain_table(heads, lines)]
    return [tag("p", line) for line in str(part).splitlines() if line]
