"""Findings as an offline page: tables, histograms, forest plots, survival curves with numbers at risk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from atoll.job.inquiries.inquiry import Finding
from atoll.job.inquiries.models import Fitted
from atoll.job.inquiries.survival import FittedCurves
from atoll.report.markup import Safe, tag
from atoll.report.statistics import bars, forest, plain_table, survival_plot

__all__ = ["BINS", "cell", "histogram", "shown", "table_of"]

BINS = ("from", "to", "count", "suppressed")
"""The heads of a histogram's table."""


def shown(found: Finding) -> list[Safe]:
    """What the page says of a finding."""
    if isinstance(found, Fitted):
        return _model(found)
    if isinstance(found, FittedCurves):
        return _curves(found)
    records, facts = found.records(), _facts(found)
    plots = [histogram(records)] if records and list(records[0]) == list(BINS) else []
    parts = [tag("p", f"{facts}.")] if facts else []
    return [*parts, *plots, table_of(records), *_notes(found)]


def table_of(records: Sequence[Mapping[str, Any]]) -> Safe:
    """Records as a table."""
    heads = list(dict.fromkeys(head for record in records for head in record))
    return plain_table(
        heads, [[cell(record.get(head, "")) for head in heads] for record in records]
    )


def histogram(records: Sequence[Mapping[str, Any]]) -> Safe:
    """The plot of a histogram's lines."""
    counts = [
        (f"{r['from']:g} to {r['to']:g}", None if r["suppressed"] else float(r["count"]))
        for r in records
    ]
    return bars("Histogram", counts, "bins, from left to right")


def cell(value: Any) -> str:
    """A cell for people; NaN, or None where a file was read, is suppressed."""
    if value is None:
        return "suppressed"
    if isinstance(value, float):
        return "suppressed" if math.isnan(value) else f"{value:.5g}"
    return str(value)


def _facts(found: Finding) -> str:
    return ", ".join(f"{name} {cell(value)}" for name, value in found.facts().items())


def _notes(found: Finding) -> list[Safe]:
    return [tag("p", f"Note: {note}.") for note in found.notes]


def _model(fit: Fitted) -> list[Safe]:
    records = fit.records()
    parts = [tag("p", f"{fit.title}: {_facts(fit)}."), table_of(records)]
    rows = [
        (r["name"], r["coef"], r["low"], r["high"]) for r in records if r["name"] != "intercept"
    ]
    whole = [row for row in rows if all(math.isfinite(x) for x in row[1:])]
    if fit.ratios:
        whole = [(name, *map(math.exp, numbers)) for name, *numbers in whole]
    if whole:
        parts.append(forest(fit.ratios or "coefficient", whole, ratio=bool(fit.ratios)))
    return [*parts, *_notes(fit)]


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
    return [survival_plot(lines), *_notes(found)]
