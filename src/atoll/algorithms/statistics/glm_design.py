"""The design matrix of a regression: columns and declared categories become rows of numbers.

A matrix is kept sideways, ``(k, rows)``, a few thousand rows at a time: each column is copied once, its
products stay in the processor's cache, and ``A @ A.T`` costs half a product. Rows with a missing value
in any used column are left out, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atoll.core.errors import DataError, Fault, JobError
from atoll.core.layout import Array

__all__ = ["Design", "Moments", "gram", "misfit", "moments", "moments_of"]

BLOCK = 4096
"""Rows at a time: 20 columns of them are 640 KiB."""


def misfit(column: str, problem: str, remedy: str = "") -> DataError:
    """The error for a site's column that cannot be analysed.

    The problem may quote a value: it stands in a fault, whose text stays in the site's own log, while the
    name of the column travels.
    """
    return DataError(
        f"column {column!r} does not fit the analysis", faults=[Fault(column, problem, remedy)]
    )


@dataclass(frozen=True)
class Design:
    """Which columns explain, and how.

    Args:
        features: names of columns, in order.
        categories: for columns that hold codes, all their levels; the first is the reference.
    """

    features: tuple[str, ...]
    categories: Mapping[str, tuple[float, ...]]

    @staticmethod
    def of(features: Sequence[str], categories: Mapping[str, Sequence[float]] | None) -> Design:
        """A design from what a user writes.

        Raises:
            JobError: a feature twice, levels twice, or levels of a column that is no feature.
        """
        levels = {name: tuple(map(float, of)) for name, of in (categories or {}).items()}
        for name in levels:
            if name not in features:
                raise JobError(f"levels are declared for {name!r}, which is no feature")
            if len(levels[name]) < 2 or len(set(levels[name])) < len(levels[name]):
                raise JobError(f"category {name!r} needs two or more different levels")
        if len(set(features)) < len(features):
            raise JobError(f"a feature is named twice: {', '.join(features)}")
        return Design(tuple(features), levels)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the matrix's ``k`` columns; a dummy is ``name[level]``."""
        return tuple(
            name
            for feature in self.features
            for name in (
                [f"{feature}[{level:g}]" for level in self.categories[feature][1:]]
                if feature in self.categories
                else [feature]
            )
        )

    def fill(self, matrix: Array, data: Mapping[str, Array], rows: slice) -> None:
        """Write some rows of a site into ``matrix``, ``(k, rows)``; missing values are NaN."""
        at = 0
        for feature in self.features:
            values = data[feature][rows]
            levels = self.categories.get(feature)
            if levels is None:
                matrix[at] = values
                at += 1
                continue
            known = np.isin(values, levels) | np.isnan(values)
            if not known.all():
                odd = float(values[~known][0])
                raise misfit(
                    feature,
                    f"holds {odd:g}, which is not among its levels",
                    "declare all levels that occur anywhere",
                )
            gone = np.isnan(values)
            for level in levels[1:]:
                matrix[at] = np.where(gone, np.nan, values == level)
                at += 1

    def blocks(
        self, data: Mapping[str, Array], others: Sequence[str], lead: int = 0
    ) -> Iterator[tuple[Array, Array]]:
        """Complete rows, some thousand at a time.

        Args:
            data: a site's columns.
            others: columns wanted beside the design: outcome, weights, offset.
            lead: rows of ones to be put before the design: 1 for an intercept.

        Yields:
            The design ``(lead + k, rows)`` and the others ``(len(others), rows)``; both may be overwritten.
        """
        names = [*self.features, *others]
        size = len(data[names[0]]) if names else 0
        k = lead + len(self.names)
        for start in range(0, size, BLOCK):
            rows = slice(start, min(start + BLOCK, size))
            matrix = np.empty((k + len(others), rows.stop - start))
            matrix[:lead] = 1.0
            self.fill(matrix[lead:], data, rows)
            for i, name in enumerate(others, k):
                matrix[i] = data[name][rows]
            complete = ~np.isnan(matrix.sum(axis=0))  # infinities are refused in the first round
            if not complete.all():
                matrix = np.ascontiguousarray(matrix[:, complete])
            yield matrix[:k], matrix[k:]

    def check(self, data: Mapping[str, Array], others: Sequence[str]) -> None:
        """Refuse what is not a number at all.

        Raises:
            DataError: a column holds an infinity; names it.
        """
        for name in (*self.features, *others):
            if np.isinf(data[name]).any():
                raise misfit(name, "holds an infinite value", "mark it as missing")


@dataclass(frozen=True)
class Moments:
    """What the first round tells of the columns, at one site or in total.

    Args:
        rows: complete rows.
        excluded: rows with a missing value.
        sites: sites with a complete row.
        asked: sites that answered.
        sums: sum of each of the ``k`` design columns.
        sizes: sum of their absolute values.
        empty: for each used column of the data, sites where it holds nothing at all.
    """

    rows: float
    excluded: float
    sites: float
    asked: float
    sums: Array
    sizes: Array
    empty: Array

    @property
    def centre(self) -> Array:
        """Mean of each design column."""
        return self.sums / max(self.rows, 1.0)

    @property
    def scale(self) -> Array:
        """Mean size of each design column; 1 for a column of zeros."""
        size = self.sizes / max(self.rows, 1.0)
        return np.where(size > 0, size, 1.0)

    def notes(self, columns: Sequence[str]) -> list[str]:
        """What a reader has to know of missing data."""
        notes = [
            f"column {name!r} is empty at {int(count)} of {int(self.asked)} sites; their rows are left out"
            for name, count in zip(columns, self.empty, strict=True)
            if count
        ]
        if self.excluded:
            notes.append(f"{int(self.excluded)} rows with missing values are left out")
        return notes


def moments(design: Design, data: Mapping[str, Array], others: Sequence[str]) -> dict[str, Array]:
    """A site's :class:`Moments` as arrays that add up: ``counts``, ``sums``, ``sizes``, ``empty``."""
    design.check(data, others)
    used = (*design.features, *others)
    k = len(design.names)
    rows, sums, sizes = 0, np.zeros(k), np.zeros(k)
    for matrix, _ in design.blocks(data, others):
        rows += matrix.shape[1]
        sums += matrix.sum(axis=1)
        sizes += np.abs(matrix).sum(axis=1)
    size = len(data[used[0]]) if used else 0
    empty = [float(size > 0 and np.isnan(data[name]).all()) for name in used]
    return {
        "counts": np.array([rows, size - rows, float(rows > 0), 1.0]),
        "sums": sums,
        "sizes": sizes,
        "empty": np.array(empty),
    }


def moments_of(state: Mapping[str, Array]) -> Moments:
    """Read what :func:`moments` wrote."""
    rows, excluded, sites, asked = state["counts"].tolist()
    return Moments(rows, excluded, sites, asked, state["sums"], state["sizes"], state["empty"])


def gram(matrix: Array, weight: Array) -> Array:
    """``matrix diag(weight) matrix'`` for weights from 0, ``(k, k)`` and symmetric."""
    half = matrix * np.sqrt(weight)
    result: Array = half @ half.T
    return result
