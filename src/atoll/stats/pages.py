"""An offline page of tables and plots: table 1, forest plots, survival curves with numbers at risk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.report.markup import Safe, tag
from atoll.report.statistics import bars, forest, page, plain_table, survival_plot
from atoll.stats.models import Fitted
from atoll.stats.survival import FittedCurves

__all__ = ["write_page"]


def write_page(path: str | Path, title: str, parts: Mapping[str, Any]) -> Path:
    """Write results as one HTML file that opens offline.

    Args:
        path: the file.
        title: of the page.
        parts: by heading: fitted models, fitted curves, pandas frames, or text.
    """
    sections = [(heading, _shown(part)) for heading, part in parts.items()]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(title, sections), encoding="utf-8")
    return target


def _shown(part: Any) -> Sequence[Safe]:
    if isinstance(part, Fitted):
        return _model(part)
    if isinstance(part, FittedCurves):
        return _curves(part)
    if hasattr(part, "itertuples"):
        plots = _bins(part) if list(part.columns) == ["from", "to", "count", "suppressed"] else []
        heads = [str(part.index.name or ""), *map(str, part.columns)]
        return [
            *plots,
            plain_table(heads, [[_text(cell) for cell in row] for row in part.itertuples()]),
        ]
    return [tag("p", line) for line in str(part).splitlines() if line]


def _bins(part: Any) -> list[Safe]:
    """The plot of what :func:`~atoll.stats.describing.histogram` gave."""
    rows = part.to_dict("records")
    counts = [
        (f"{r['from']:g} to {r['to']:g}", None if r["suppressed"] else float(r["count"]))
        for r in rows
    ]
    return [bars("Histogram", counts, "bins, from left to right")]


def _model(fit: Fitted) -> list[Safe]:
    heads = ("name", "coef", "std err", "z", "p", "low", "high")
    records = fit.records()
    facts = ", ".join(f"{name} {_text(value)}" for name, value in fit.facts().items())
    parts = [
        tag("p", f"{fit.model}: {facts}."),
        plain_table(heads, [[_text(r[head]) for head in heads] for r in records]),
    ]
    rows = [
        (r["name"], r["coef"], r["low"], r["high"]) for r in records if r["name"] != "intercept"
    ]
    whole = [row for row in rows if all(math.isfinite(x) for x in row[1:])]
    if fit.ratios:
        whole = [(name, *map(math.exp, numbers)) for name, *numbers in whole]
    if whole:
        parts.append(forest(fit.ratios or "coefficient", whole, ratio=bool(fit.ratios)))
    return [*parts, *(tag("p", f"Note: {note}.") for note in fit.notes)]


def _curves(found: FittedCurves) -> list[Safe]:
    lines = [
        (
            group,
            [float(t) for t in c.times],
            [float(s) for s in c.survival],
            [(float(a), float(b)) for a, b in zip(c.lower, c.upper, strict=True)],
            [float(n) for n in c.at_risk],
        )
        for group, c in zip(found.groups, found.curves, strict=True)
    ]
    return [survival_plot(lines), *(tag("p", f"Note: {note}.") for note in found.notes)]


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return "suppressed" if math.isnan(cell) else f"{cell:.5g}"
    return str(cell)
