"""Findings as an offline page: tables, histograms, forest plots, survival curves with numbers at risk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from atoll.algorithms.statistics.comparisons import TestResult
from atoll.data.telling import SUPPRESSED
from atoll.job.inquiries.inquiry import Finding
from atoll.job.inquiries.models import Fitted
from atoll.job.inquiries.survival import FittedCurves
from atoll.report.markup import Safe, join, tag
from atoll.report.statistics import bars, forest, plain_table, survival_plot

__all__ = ["BINS", "cell", "histogram", "shown", "table_of"]

_NOTHING = "-"
_MOST_LINES, _MOST_HEADS = 1000, 100
"""Lines and columns of a table on a page: correlations of 3,000 columns are nine million cells."""
_FAR = 200.0
"""Logarithms of ratios that are drawn; what is larger stands in the table."""

BINS = ("from", "to", "count", "suppressed")
"""The heads of a histogram's table."""


def shown(found: Finding) -> list[Safe]:
    """What the page says of a finding."""
    if isinstance(found, Fitted):
        return _model(found)
    if isinstance(found, FittedCurves):
        return _curves(found)
    # What is fitted or tested is told whole or not at all: what is no number there is not defined.
    whole = bool(found.title or found.facts()) or isinstance(found.result, TestResult)
    nothing = _NOTHING if whole else SUPPRESSED
    records, facts = found.records(), _facts(found)
    plots = [histogram(records)] if records and list(records[0]) == list(BINS) else []
    parts = [tag("p", f"{facts}.")] if facts else []
    return [*parts, *plots, table_of(records, nothing), *_notes(found)]


def table_of(records: Sequence[Mapping[str, Any]], nothing: str = SUPPRESSED) -> Safe:
    """Records as a table, of very many the first; for ``nothing`` see :func:`cell`."""
    heads = list(dict.fromkeys(head for record in records for head in record))
    first, lines = heads[:_MOST_HEADS], records[:_MOST_LINES]
    table = plain_table(
        first, [[cell(record.get(head, ""), nothing) for head in first] for record in lines]
    )
    return join(table, *_left_out(len(records), len(heads)))


def _left_out(lines: int, heads: int) -> list[Safe]:
    """What a page says of a table that is too large for it; nothing of others."""
    told = [
        f"the first {most:,} of {held:,} {what}"
        for held, most, what in ((lines, _MOST_LINES, "lines"), (heads, _MOST_HEADS, "columns"))
        if held > most
    ]
    words = f"Shown are {' and '.join(told)}; a run's folder has all of them, as CSV in tables/."
    return [tag("p", words)] if told else []


def histogram(records: Sequence[Mapping[str, Any]]) -> Safe:
    """The plot of a histogram's lines."""
    counts = [
        (f"{r['from']:g} to {r['to']:g}", None if r["suppressed"] else float(r["count"]))
        for r in records
    ]
    return bars("Histogram", counts, "bins, from left to right")


def cell(value: Any, nothing: str = SUPPRESSED) -> str:
    """A cell for people.

    Args:
        value: NaN, or None where a file was read, is no number.
        nothing: what stands in its place; of tests and models nothing is suppressed, some is not defined.
    """
    if value is None:
        return nothing
    if isinstance(value, float):
        return nothing if math.isnan(value) else f"{value:.5g}"
    return str(value)


def _facts(found: Finding) -> str:
    return ", ".join(f"{name} {cell(value, _NOTHING)}" for name, value in found.facts().items())


def _notes(found: Finding) -> list[Safe]:
    return [tag("p", f"Note: {note}.") for note in found.notes]


def _model(fit: Fitted) -> list[Safe]:
    records = fit.records()
    parts = [tag("p", f"{fit.title}: {_facts(fit)}."), table_of(records, _NOTHING)]
    rows = [
        (r["name"], r["coef"], r["low"], r["high"]) for r in records if r["name"] != "intercept"
    ]
    whole = [row for row in rows if all(math.isfinite(x) for x in row[1:])]
    if fit.ratios:
        whole = [
            row for row in whole if max(map(abs, row[1:])) < _FAR
        ]  # of small units it is beyond
        whole = [(name, *map(math.exp, numbers)) for name, *numbers in whole]
    drawn = whole[:_MOST_HEADS]
    if drawn:
        parts.append(forest(fit.ratios or "coefficient", drawn, ratio=bool(fit.ratios)))
    if len(drawn) < len(whole):
        parts.append(tag("p", f"Drawn are the first {len(drawn)} of {len(whole):,} coefficients."))
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
