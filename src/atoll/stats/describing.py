"""Descriptive tables. A suppressed number is NaN; a count of zero is 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from atoll.algorithms.statistics.analysis import Analysis
from atoll.algorithms.statistics.moments import Components, Covariance, Moments
from atoll.algorithms.statistics.quantiles import Quantiles
from atoll.algorithms.statistics.tables import CrossTable, HeavyHitters, Histogram
from atoll.algorithms.statistics.together import Together
from atoll.core.errors import DataError
from atoll.stats.federation import Federation
from atoll.stats.frames import frame

__all__ = [
    "correlation",
    "cross_table",
    "describe",
    "frequent",
    "histogram",
    "principal_components",
    "table_one",
]


def _named(federation: Federation, columns: Sequence[str] | None) -> tuple[str, ...]:
    names = federation.numeric() if columns is None else tuple(columns)
    federation.check(*names)
    wrong = [name for name in names if name in federation.levels]
    if wrong:
        raise DataError(f"column {wrong[0]!r} holds categories", remedy="use table_one")
    if not names:
        raise DataError("no column of numbers", remedy="name columns")
    return names


def describe(
    federation: Federation,
    columns: Sequence[str] | None = None,
    *,
    quantiles: Sequence[float] = (0.25, 0.5, 0.75),
    tolerance: float = 1e-9,
) -> Any:
    """Count, missing, mean, standard deviation and quantiles of numbers, one line a column.

    Args:
        federation: who is asked.
        columns: which; None for all that hold numbers.
        quantiles: levels in [0, 1]; 0 and 1 only where the rule allows extremes.
        tolerance: relative, of a quantile; 0 is exact.
    """
    names, rule = _named(federation, columns), federation.rule
    parts: dict[str, Analysis] = {"moments": Moments(names, rule=rule)}
    if len(quantiles):
        parts["quantiles"] = Quantiles(names, tuple(quantiles), tolerance, rule)
    found = federation.solve(Together(parts))
    moments = found["moments"].records()
    lines = [{k: v for k, v in record.items() if k != "group"} for record in moments]
    if len(quantiles):
        for line, extra in zip(lines, found["quantiles"].records(), strict=True):
            line.update(extra)
    return frame(lines, "column")


def table_one(federation: Federation, by: str = "", columns: Sequence[str] | None = None) -> Any:
    """The first table of a paper: every variable by group, in text.

    Numbers as mean (sd), categories as count (percent of the group). What is suppressed says so.

    Args:
        federation: who is asked.
        by: column of groups; empty for none.
        columns: which; None for all but ``by``.
    """
    names = tuple(n for n in (columns or federation.columns) if n != by)
    federation.check(*names)
    rule, groups = federation.rule, federation.groups(by) if by else ("all",)
    numeric = tuple(n for n in names if n not in federation.levels)
    parts: dict[str, Analysis] = {}
    if numeric:
        parts["numbers"] = Moments(numeric, by, groups, rule)
    for name in names:
        if name in federation.levels and by:
            levels = federation.levels[name]
            parts[f"category {name}"] = CrossTable(name, by, levels, groups, rule)
        elif name in federation.levels:
            edges = tuple(np.arange(1, len(federation.levels[name])) - 0.5)
            parts[f"category {name}"] = Histogram(name, edges or (0.5,), rule)
    found = federation.solve(Together(parts))
    lines: list[dict[str, object]] = []
    for name in names:
        if name in numeric:
            lines.append(_number_line(name, found["numbers"], numeric.index(name), groups))
        else:
            levels = federation.levels[name]
            lines += _category_lines(name, levels, found[f"category {name}"].counts, groups)
    return frame(lines, "variable")


_HIDDEN = "suppressed"


def _number_line(name: str, found: Any, i: int, groups: Sequence[str]) -> dict[str, object]:
    line: dict[str, object] = {"variable": f"{name}, mean (sd)"}
    for g, group in enumerate(groups):
        shown = f"{found.mean[i, g]:.4g} ({found.sd[i, g]:.3g})"
        line[group] = _HIDDEN if found.hidden[i, g] else shown
    return line


def _category_lines(
    name: str, levels: Sequence[str], counts: Any, groups: Sequence[str]
) -> list[dict[str, object]]:
    values, hidden = counts.values, counts.hidden
    if values.ndim == 1:
        values, hidden = values[:, None], hidden[:, None]
    lines: list[dict[str, object]] = [{"variable": f"{name}, n (%)", **dict.fromkeys(groups, "")}]
    for i, level in enumerate(levels):
        line: dict[str, object] = {"variable": f"  {level}"}
        for g, group in enumerate(groups):
            total = values[-1, g]
            share = f" ({100 * values[i, g] / total:.1f})" if total > 0 else ""
            line[group] = _HIDDEN if hidden[i, g] else f"{values[i, g]:.0f}{share}"
        lines.append(line)
    return lines


def histogram(federation: Federation, column: str, edges: Sequence[float]) -> Any:
    """Counts between cut points, one line a bin; a bin holds its lower edge."""
    _named(federation, [column])
    asked = Histogram(column, tuple(float(e) for e in edges), federation.rule)
    return frame(federation.solve(asked).records())


def cross_table(federation: Federation, row: str, column: str) -> Any:
    """Counts by two categories with margins."""
    rows, columns = federation.groups(row), federation.groups(column)
    asked = CrossTable(row, column, rows, columns, federation.rule)
    return frame(federation.solve(asked).records(), row)


def correlation(federation: Federation, columns: Sequence[str] | None = None) -> Any:
    """Correlations over the rows complete in all columns."""
    names = _named(federation, columns)
    return frame(federation.solve(Covariance(names, federation.rule)).records(), "column")


def principal_components(
    federation: Federation, columns: Sequence[str] | None = None, *, standardise: bool = True
) -> Any:
    """Variances and loadings of principal components, one line a component."""
    asked = Components(_named(federation, columns), standardise, federation.rule)
    return frame(federation.solve(asked).records(), "component")


def frequent(federation: Federation, column: str, least: int = 11, *, bits: int = 32) -> Any:
    """The whole numbers that at least so many persons have, the most frequent first."""
    _named(federation, [column])
    asked = HeavyHitters(column, least, bits, federation.rule)
    return frame(federation.solve(asked).records())
