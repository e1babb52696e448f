"""Descriptive tables. A suppressed number is NaN; a count of zero is 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atoll.algorithms.statistics.analysis import Analysis
from atoll.algorithms.statistics.columns import free_head
from atoll.algorithms.statistics.moments import Components, Covariance, Moments
from atoll.algorithms.statistics.quantiles import Quantiles
from atoll.algorithms.statistics.tables import CrossTable, HeavyHitters, Histogram
from atoll.algorithms.statistics.together import Together
from atoll.core.errors import DataError, Forbidden
from atoll.job.inquiries.book import Codebook
from atoll.job.inquiries.inquiry import Checked, Finding

__all__ = [
    "Bins",
    "Correlation",
    "Crossed",
    "Describe",
    "Frequent",
    "PrincipalComponents",
    "Sheet",
    "TableOne",
    "numbers_of",
]


_LOOSE = 1e-3
"""Of a standard deviation: quantiles that are known less well say so."""


@dataclass(frozen=True, eq=False)
class Sheet(Finding):
    """A plain table.

    Args:
        result: the analysis' own.
        lines: one record a line.
        index: the column that names lines; empty for none.
        notes: what a reader has to know.
    """

    result: Any
    lines: Sequence[Mapping[str, Any]]
    index: str = ""
    notes: tuple[str, ...] = ()

    title = ""

    def records(self) -> list[dict[str, Any]]:
        """The lines."""
        return [dict(line) for line in self.lines]

    def facts(self) -> dict[str, Any]:
        """None beside the lines."""
        return {}


def _many_ones(book: Codebook, found: Any) -> None:
    """Refuse to show how columns go with one of 0 and 1 that few rows have: it says where those rows lie.

    Raises:
        Forbidden: names the columns.
    """
    least, count = book.rule.minimum, float(found.count)
    ones = {n: round(m * count) for n, m in zip(found.columns, found.mean, strict=True)}
    few = [
        repr(name)
        for name, m in ones.items()
        if name in book.binary and (0 < m < least or 0 < count - m < least)
    ]
    if few:
        raise Forbidden(
            f"fewer than {least} rows have one of the values of {' and of '.join(few)}",
            remedy="leave the column out",
        )


def _headed(found: Any, notes: tuple[str, ...] = ()) -> Sheet:
    """A table whose lines are named by its first column."""
    lines = found.records()
    return Sheet(found, lines, next(iter(lines[0])), notes)


def numbers_of(book: Codebook, columns: Sequence[str]) -> tuple[str, ...]:
    """The columns named, if there are any and they hold numbers.

    Raises:
        DataError: none, an unknown column, or one of categories.
    """
    book.check(*columns)
    wrong = [name for name in columns if name in book.levels]
    if wrong:
        remedy = "name columns of numbers; table_one counts categories"
        raise DataError(f"column {wrong[0]!r} holds categories", remedy=remedy)
    if len(set(columns)) < len(columns):
        raise DataError(f"a column is named twice: {', '.join(columns)}", remedy="name each once")
    if not columns:
        raise DataError("no column of numbers", remedy="name columns")
    return tuple(columns)


@dataclass(frozen=True)
class Describe(Checked):
    """Count, missing, mean, standard deviation and quantiles of numbers, one line a column.

    Args:
        columns: which; empty for all that hold numbers.
        quantiles: levels in [0, 1]; 0 and 1 only where the rule allows extremes.
        tolerance: relative, of a quantile; 0 is exact.
    """

    columns: Sequence[str] = ()
    quantiles: Sequence[float] = (0.25, 0.5, 0.75)
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [q for q in self.quantiles if not 0 <= q <= 1]
        if wrong:
            raise DataError(f"the quantile {wrong[0]:g} is none", remedy="give levels in [0, 1]")
        if not 0 <= self.tolerance < 1:
            remedy = "give a share of a quantile, such as 1e-9; 0 is exact"
            raise DataError(f"a tolerance of {self.tolerance:g}", remedy=remedy)

    def named(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.columns)

    def analysis(self, book: Codebook) -> Analysis:
        """Moments, and quantiles beside them."""
        names, rule = numbers_of(book, self.columns or book.numeric()), book.rule
        parts: dict[str, Analysis] = {"moments": Moments(names, rule=rule, binary=book.binary)}
        if self.quantiles:
            parts["quantiles"] = Quantiles(names, tuple(self.quantiles), self.tolerance, rule)
        return Together(parts)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line a column."""
        moments = found["moments"].records()
        lines = [{k: v for k, v in record.items() if k != "group"} for record in moments]
        if self.quantiles:
            for line, extra in zip(lines, found["quantiles"].records(), strict=True):
                line.update(extra)
        return Sheet(found, lines, "column", tuple(self._loose(found)))

    def _loose(self, found: Any) -> Iterator[str]:
        """Where a tolerance relative to the values is no longer small beside their spread."""
        sds = found["moments"].sd[:, 0]
        bounds = found["quantiles"].bound if self.quantiles else np.zeros((len(sds), 1))
        for name, sd, bound in zip(found["moments"].columns, sds, bounds, strict=True):
            worst = float(np.nanmax(bound, initial=0.0))
            if worst > _LOOSE * sd > 0:
                yield (
                    f"quantiles of {name!r} are known within {worst:.2g} only, as its values lie close "
                    "together far from 0; tolerance=0 gives them exactly"
                )


_HIDDEN = "suppressed"


@dataclass(frozen=True)
class TableOne(Checked):
    """The first table of a paper: every variable by group, in text.

    Numbers as mean (sd), categories and 0/1 columns as count (percent of the group). What is suppressed
    says so.

    Args:
        by: column of groups; empty for none.
        columns: which; empty for all but ``by``.
    """

    by: str = ""
    columns: Sequence[str] = ()

    def named(self) -> tuple[str, ...]:
        """The columns and that of the groups, unless all are wanted."""
        return (*self.columns, *([self.by] if self.by else [])) if self.columns else ()

    def _names(self, book: Codebook) -> tuple[str, ...]:
        names = tuple(n for n in (self.columns or book.columns) if n != self.by)
        if not names:
            raise DataError("no column beside that of the groups", remedy="name columns")
        book.check(*names)
        return names

    def _numbers(self, book: Codebook, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(n for n in names if n not in book.levels and n not in book.binary)

    def _groups(self, book: Codebook) -> tuple[str, ...]:
        return book.groups(self.by) if self.by else ("all",)

    def analysis(self, book: Codebook) -> Analysis:
        """Moments of the numbers by group, and a table for each category."""
        names, groups, rule = self._names(book), self._groups(book), book.rule
        numeric = self._numbers(book, names)
        parts: dict[str, Analysis] = {}
        if numeric:
            parts["numbers"] = Moments(numeric, self.by, groups, rule)
        for name in (n for n in names if n not in numeric):
            levels = book.groups(name)
            if self.by:
                parts[f"category {name}"] = CrossTable(name, self.by, levels, groups, rule)
            else:
                edges = tuple(np.arange(1, len(levels)) - 0.5)
                parts[f"category {name}"] = Histogram(name, edges or (0.5,), rule)
        return Together(parts)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line a number, and one a category."""
        names, groups = self._names(book), self._groups(book)
        numeric = self._numbers(book, names)
        lines: list[dict[str, object]] = []
        for name in names:
            if name in numeric:
                lines.append(_number_line(name, found["numbers"], numeric.index(name), groups))
            else:
                counts = found[f"category {name}"].counts
                lines += _category_lines(name, book.groups(name), counts, groups)
        return Sheet(found, lines, _variable(groups))


def _variable(groups: Sequence[str]) -> str:
    return free_head("variable", groups)


def _number_line(name: str, found: Any, i: int, groups: Sequence[str]) -> dict[str, object]:
    line: dict[str, object] = {_variable(groups): f"{name}, mean (sd)"}
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
    head = _variable(groups)
    lines: list[dict[str, object]] = [{head: f"{name}, n (%)", **dict.fromkeys(groups, "")}]
    for i, level in enumerate(levels):
        line: dict[str, object] = {head: f"  {level}"}
        for g, group in enumerate(groups):
            total = values[-1, g]
            share = f" ({100 * values[i, g] / total:.1f})" if total > 0 else ""
            line[group] = _HIDDEN if hidden[i, g] else f"{values[i, g]:.0f}{share}"
        lines.append(line)
    return lines


@dataclass(frozen=True)
class Bins(Checked):
    """Counts between cut points, one line a bin; a bin holds its lower edge.

    Args:
        column: of numbers.
        edges: increasing cut points.
    """

    column: str
    edges: Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        Histogram(self.column, tuple(self.edges))

    def named(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def analysis(self, book: Codebook) -> Analysis:
        """A histogram."""
        numbers_of(book, [self.column])
        return Histogram(self.column, tuple(self.edges), book.rule)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line a bin."""
        return Sheet(found, found.records())


@dataclass(frozen=True)
class Crossed(Checked):
    """Counts by two categories with margins.

    Args:
        row, column: columns of categories.
    """

    row: str
    column: str

    def named(self) -> tuple[str, ...]:
        """Both columns."""
        return (self.row, self.column)

    def analysis(self, book: Codebook) -> Analysis:
        """A cross table."""
        rows, columns = book.groups(self.row), book.groups(self.column)
        return CrossTable(self.row, self.column, rows, columns, book.rule)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line a category of ``row``."""
        return _headed(found)


@dataclass(frozen=True)
class Correlation(Checked):
    """Correlations over the rows complete in all columns.

    Args:
        columns: which; empty for all that hold numbers.
    """

    columns: Sequence[str] = ()

    def named(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.columns)

    def analysis(self, book: Codebook) -> Analysis:
        """Covariances."""
        return Covariance(numbers_of(book, self.columns or book.numeric()), book.rule)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line a column."""
        _many_ones(book, found)
        still = [n for n, v in zip(found.columns, np.diag(found.covariance), strict=True) if not v]
        notes = tuple(f"column {name!r} is constant: it has no correlation" for name in still)
        return _headed(found, notes)


@dataclass(frozen=True)
class PrincipalComponents(Checked):
    """Variances and loadings of principal components, one line a component.

    Args:
        columns: which; empty for all that hold numbers.
        standardise: divide columns by their standard deviations first.
    """

    columns: Sequence[str] = ()
    standardise: bool = True

    def named(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.columns)

    def analysis(self, book: Codebook) -> Analysis:
        """Components of the covariance or correlation matrix."""
        return Components(
            numbers_of(book, self.columns or book.numeric()), self.standardise, book.rule
        )

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line a component."""
        _many_ones(book, found)
        return _headed(found)


@dataclass(frozen=True)
class Frequent(Checked):
    """The whole numbers that at least so many persons have, the most frequent first.

    Args:
        column: of whole numbers, such as codes of diagnoses.
        least: persons behind each.
        bits: of the largest number, up to 48.
    """

    column: str
    least: int = 11
    bits: int = 32

    def named(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def analysis(self, book: Codebook) -> Analysis:
        """Heavy hitters."""
        numbers_of(book, [self.column])
        return HeavyHitters(self.column, self.least, self.bits, book.rule)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line a number."""
        return Sheet(found, found.records())
