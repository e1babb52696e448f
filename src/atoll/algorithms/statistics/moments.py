"""Counts, means, variances, covariances and principal components, each in two rounds.

The first round gives means; the second sums squares around them, so nothing cancels where the mean is
large. The formulas are those of the pooled rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from atoll.algorithms.statistics.analysis import Columns, Question
from atoll.algorithms.statistics.columns import (
    complete,
    free_head,
    groups_of,
    large_enough,
    numbers,
    reading,
    tallied,
    varies,
)
from atoll.core.errors import DataError, Forbidden
from atoll.core.layout import Array
from atoll.data.disclosure import Disclosure
from atoll.data.query_log import Released
from atoll.data.suppression import small, suppress

__all__ = [
    "Components",
    "ComponentsResult",
    "Covariance",
    "CovarianceResult",
    "Moments",
    "MomentsResult",
]


@dataclass(frozen=True, eq=False)
class MomentsResult:
    """Moments by column and group; a suppressed number is NaN and ``hidden`` says so.

    Args:
        columns: names, in order.
        groups: names of the groups; ``("",)`` where there are none.
        count: values that are not missing, ``(columns, groups)``.
        missing: missing values, ``(columns, groups)``.
        mean, variance: ``(columns, groups)``; the variance has divisor n - 1, and is NaN of one value.
        hidden: where disclosure control took the numbers away, ``(columns, groups)``.
    """

    columns: tuple[str, ...]
    groups: tuple[str, ...]
    count: Array
    missing: Array
    mean: Array
    variance: Array
    hidden: Array

    @property
    def sd(self) -> Array:
        """Standard deviations, ``(columns, groups)``."""
        return np.sqrt(self.variance)

    def records(self) -> list[dict[str, object]]:
        """One record a column and group, for a table."""
        sd = self.sd
        return [
            {
                "column": name,
                "group": group,
                "count": self.count[i, g],
                "missing": self.missing[i, g],
                "mean": self.mean[i, g],
                "sd": sd[i, g],
            }
            for i, name in enumerate(self.columns)
            for g, group in enumerate(self.groups)
        ]


_FIRST = ("count", "persons", "missing", "absent", "ones", "zeros", "sum")
"""What the first round sums: rows and persons with a value, without one; persons with a 1 and with a 0 in a 0/1
column; and the values."""


@dataclass(frozen=True)
class Moments:
    """Count, missing, mean and variance of columns, over all rows or by group.

    Args:
        names: the columns.
        by: column of group codes; empty for no groups. Rows without a group are left out.
        groups: names of the groups, by code.
        rule: disclosure control of what is released.
        binary: those of the columns that hold nothing but 0 and 1: their means tell counts.
    """

    names: tuple[str, ...]
    by: str = ""
    groups: tuple[str, ...] = ("",)
    rule: Disclosure = field(default_factory=Disclosure)
    binary: frozenset[str] = frozenset()

    def columns(self) -> Sequence[str]:
        """The columns, and those of the groups and persons."""
        return reading(self.rule, *self.names, *([self.by] if self.by else []))

    def start(self) -> Question:
        """Before the first round."""
        return {"round": np.zeros(1)}

    def ask(self, state: Question) -> Question | None:
        """Nothing first, then the means."""
        step = int(state["round"][0])
        return None if step == 2 else {} if step == 0 else {"mean": state["mean"]}

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """Counts and sums, then squares around the means."""
        width = len(self.groups)
        code = groups_of(data, self.by, width)
        kinds = ("square",) if "mean" in question else _FIRST
        parts: dict[str, list[Array]] = {kind: [] for kind in kinds}
        for i, name in enumerate(self.names):
            values = numbers(data, name)
            there = ~np.isnan(values) & (code >= 0)
            known, group = values[there], code[there]
            if "mean" in question:
                apart = known - question["mean"][i][group]
                squares = np.bincount(group, apart * apart, width)
                large_enough(name, squares, len(known), question["mean"][i])
                parts["square"].append(squares)
                continue
            absent = np.where(np.isnan(values), code, -1)
            rows = tallied(np.where(there, code, -1), width, data, self.rule)
            gaps = tallied(absent, width, data, self.rule)
            cells = [np.zeros(width), np.zeros(width)]
            if name in self.binary:
                cells = [
                    tallied(np.where(values == v, code, -1), width, data, self.rule)[1]
                    for v in (1.0, 0.0)
                ]
            found = (*rows, *gaps, *cells, np.bincount(group, known, width))
            for kind, value in zip(_FIRST, found, strict=True):
                parts[kind].append(value)
        shape = (len(self.names), width)
        return {n: np.array(rows, np.float64).reshape(shape) for n, rows in parts.items()}

    def learn(self, state: Question, totals: Question) -> Question:
        """Means after the first round, squares after the second."""
        if "square" in totals:
            return {**state, "round": np.full(1, 2.0), "square": totals["square"]}
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.nan_to_num(totals["sum"] / totals["count"])
        kept = {name: totals[name] for name in _FIRST if name != "sum"}
        return {"round": np.ones(1), "mean": mean, **kept}

    def result(self, state: Question) -> MomentsResult:
        """Means and variances; hidden where too few values stand behind."""
        count, missing, square = state["count"], state["missing"], state["square"]
        with np.errstate(invalid="ignore", divide="ignore"):
            square = np.where(varies(square, count, state["mean"]), square, 0.0)
            variance = np.where(count > 1, square / (count - 1), np.nan)
        mean = np.where(count > 0, state["mean"], np.nan)
        hidden, no_count, no_missing = self._hidden(state["persons"], state["absent"])
        hidden |= self.few(state)
        return MomentsResult(
            self.names,
            self.groups,
            np.where(no_count, np.nan, count),
            np.where(no_missing, np.nan, missing),
            np.where(hidden, np.nan, mean),
            np.where(hidden, np.nan, variance),
            hidden,
        )

    def few(self, state: Question) -> Array:
        """Where moments of a 0/1 column would give away how few persons have one of its values.

        They are cells of a table whose columns are the groups. ``(columns, groups)`` bool.
        """
        found = np.zeros(state["ones"].shape, bool)
        for i, name in enumerate(self.names):
            if name in self.binary:
                cells = np.stack([state["ones"][i], state["zeros"][i]])
                try:
                    found[i] = suppress(cells, self.rule.minimum, margins=False).hidden.any(0)
                except Forbidden:  # hardly anybody at all
                    found[i] = True
        return found

    def _hidden(self, count: Array, missing: Array) -> tuple[Array, Array, Array]:
        """Which moments, counts and numbers of missing values are not shown, from numbers of persons."""
        minimum = self.rule.minimum
        moments = np.zeros(count.shape, bool)
        counts, gaps = moments.copy(), moments.copy()
        for i in range(len(count)):
            try:
                moments[i] = suppress(count[i], minimum, margins=False).hidden
                both = suppress(np.stack([count[i], missing[i]]), minimum, margins=False)
            except Forbidden:  # hardly anybody at all
                moments[i] = counts[i] = gaps[i] = True
                continue
            counts[i], gaps[i] = both.hidden
        return moments | small(count, minimum), counts, gaps

    def released(self, data: Columns) -> Sequence[Released]:
        """The rows of each column with a value; by group each group's, and of a 0/1 column each value's."""
        code, found = groups_of(data, self.by, len(self.groups)), list[Released]()
        for name in self.names:
            rows = ~np.isnan(data[name]) & (code >= 0)
            found.append(Released((name,), rows))
            groups = [rows & (code == g) for g in range(len(self.groups))]
            cells, table = groups if self.by else [], f"by {self.by}"
            if name in self.binary:  # groups are margins of its cells, and of one table with them
                table = f"{name} by {self.by}"
                cells = [*cells, *(g & (data[name] == v) for g in groups for v in (1.0, 0.0))]
            found += [Released((name,), cell, table) for cell in cells]
        return found


@dataclass(frozen=True, eq=False)
class CovarianceResult:
    """Covariances of the rows complete in all columns.

    Args:
        columns: names, in order.
        count: complete rows.
        mean: ``(k,)``.
        covariance: ``(k, k)``, divisor n - 1.
    """

    columns: tuple[str, ...]
    count: float
    mean: Array
    covariance: Array

    @property
    def correlation(self) -> Array:
        """``(k, k)``; NaN in the line of a constant column."""
        sd = np.sqrt(np.diag(self.covariance))
        with np.errstate(invalid="ignore", divide="ignore"):
            found = self.covariance / np.outer(sd, sd)
        found[np.diag_indices(len(sd))] = np.where(sd > 0, 1.0, np.nan)
        return np.asarray(found)

    def records(self) -> list[dict[str, object]]:
        """The correlation matrix, one record a line."""
        r, head = self.correlation, free_head("column", self.columns)
        return [
            {head: a, **{b: r[i, j] for j, b in enumerate(self.columns)}}
            for i, a in enumerate(self.columns)
        ]


@dataclass(frozen=True)
class Covariance:
    """Covariance and correlation of columns over complete rows.

    Args:
        names: the columns.
        rule: disclosure control: so many complete rows beyond the number of columns are needed.
    """

    names: tuple[str, ...]
    rule: Disclosure = field(default_factory=Disclosure)

    def columns(self) -> Sequence[str]:
        """The columns, and that of the persons."""
        return reading(self.rule, *self.names)

    def start(self) -> Question:
        """Before the first round."""
        return {"round": np.zeros(1)}

    def ask(self, state: Question) -> Question | None:
        """Nothing first, then the means."""
        step = int(state["round"][0])
        return None if step == 2 else {} if step == 0 else {"mean": state["mean"]}

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """Sums, then products around the means."""
        rows = complete(data, self.names)
        x = np.stack([numbers(data, name)[rows] for name in self.names], axis=1)
        if "mean" not in question:
            count, persons = tallied(np.where(rows, 0, -1), 1, data, self.rule)
            return {"count": count, "persons": persons, "sum": x.sum(axis=0)}
        apart = x - question["mean"]
        products = apart.T @ apart
        for name, square, mean in zip(self.names, np.diag(products), question["mean"], strict=True):
            large_enough(name, square, len(x), mean)
        return {"products": products}

    def learn(self, state: Question, totals: Question) -> Question:
        """Means after the first round, products after the second."""
        if "products" in totals:
            return {**state, "round": np.full(1, 2.0), "products": totals["products"]}
        mean = totals["sum"] / max(1.0, float(totals["count"][0]))
        kept = {name: totals[name] for name in ("count", "persons")}
        return {"round": np.ones(1), "mean": mean, **kept}

    def result(self, state: Question) -> CovarianceResult:
        """The covariances.

        Raises:
            Forbidden: too few complete rows.
        """
        count, width = float(state["count"][0]), len(self.names)
        needed = width + self.rule.minimum if self.rule.minimum > 1 else 2
        if count < 2 or float(state["persons"][0]) < needed:
            raise Forbidden(
                f"too few complete rows for {width} columns under a minimum of {self.rule.minimum}",
                remedy="use fewer columns",
            )
        moving = varies(np.diag(state["products"]), count, state["mean"])
        products = state["products"] * np.outer(moving, moving)
        symmetric = 0.5 * (products + products.T) / (count - 1)
        return CovarianceResult(self.names, count, state["mean"], symmetric)

    def released(self, data: Columns) -> Sequence[Released]:
        """The complete rows."""
        return [Released(self.names, complete(data, self.names))]


@dataclass(frozen=True, eq=False)
class ComponentsResult:
    """Principal components, the one with the largest variance first.

    Args:
        columns: names, in order.
        count: complete rows.
        mean: of the columns, ``(k,)``.
        scale: standard deviations they were divided by, or ones, ``(k,)``.
        variance: of each component, ``(k,)``.
        loadings: ``(k, k)``, a component a row; the largest entry of each is positive.
    """

    columns: tuple[str, ...]
    count: float
    mean: Array
    scale: Array
    variance: Array
    loadings: Array

    @property
    def share(self) -> Array:
        """Share of the whole variance, ``(k,)``."""
        return np.asarray(self.variance / self.variance.sum())

    def records(self) -> list[dict[str, object]]:
        """One record a component."""
        heads = [free_head(head, self.columns) for head in ("component", "variance", "share")]
        return [
            {
                **dict(zip(heads, (i + 1, self.variance[i], self.share[i]), strict=True)),
                **{name: self.loadings[i, j] for j, name in enumerate(self.columns)},
            }
            for i in range(len(self.columns))
        ]


@dataclass(frozen=True)
class Components:
    """Principal component analysis (PCA) of columns over complete rows.

    Args:
        names: the columns.
        standardise: divide each column by its standard deviation first.
        rule: disclosure control, see :class:`Covariance`.
    """

    names: tuple[str, ...]
    standardise: bool = True
    rule: Disclosure = field(default_factory=Disclosure)

    @property
    def _inner(self) -> Covariance:
        return Covariance(self.names, self.rule)

    def columns(self) -> Sequence[str]:
        """As :class:`Covariance`."""
        return self._inner.columns()

    def start(self) -> Question:
        """Before the first round."""
        return self._inner.start()

    def ask(self, state: Question) -> Question | None:
        """As :class:`Covariance`."""
        return self._inner.ask(state)

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """As :class:`Covariance`."""
        return self._inner.sums(question, data, site=site, sites=sites)

    def learn(self, state: Question, totals: Question) -> Question:
        """As :class:`Covariance`."""
        return self._inner.learn(state, totals)

    def result(self, state: Question) -> ComponentsResult:
        """Eigenvectors of the covariance or correlation matrix.

        Raises:
            DataError: a constant column cannot be standardised.
            Forbidden: too few rows.
        """
        found = self._inner.result(state)
        scale = np.sqrt(np.diag(found.covariance)) if self.standardise else np.ones(len(self.names))
        if not (scale > 0).all():
            name = self.names[int(np.argmin(scale))]
            raise DataError(f"column {name!r} is constant", remedy="leave it out")
        values, vectors = np.linalg.eigh(found.covariance / np.outer(scale, scale))
        loadings = vectors[:, ::-1].T
        largest = np.abs(loadings).argmax(axis=1)
        loadings = loadings * np.sign(loadings[np.arange(len(loadings)), largest])[:, None]
        return ComponentsResult(
            self.names, found.count, found.mean, scale, np.maximum(values[::-1], 0.0), loadings
        )

    def released(self, data: Columns) -> Sequence[Released]:
        """The complete rows."""
        return self._inner.released(data)
