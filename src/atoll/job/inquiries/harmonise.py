"""Columns brought to one scale: what every site needs to do so with its own rows.

The rows themselves stay where they are. A finding tells the parameters, and its ``result`` applies them to a
table: see :mod:`atoll.stats.harmonising`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from atoll.algorithms.statistics import harmonise, harmonise_combat
from atoll.algorithms.statistics.analysis import Analysis
from atoll.job.inquiries.book import Codebook
from atoll.job.inquiries.inquiry import Estimator
from atoll.job.inquiries.models import guarded
from atoll.job.inquiries.tables import Sheet, numbers_of

__all__ = ["ComBat", "Standardisation"]


@dataclass(frozen=True)
class Standardisation(Estimator):
    """Means and standard deviations of columns over all sites.

    Args:
        columns: which; empty for all that hold numbers.
        ddof: what is taken off the count for the variance: 0 as scikit-learn, 1 as pandas.
    """

    columns: Sequence[str] = ()
    ddof: Literal[0, 1] = 0

    def named(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.columns)

    def analysis(self, book: Codebook) -> Analysis:
        """Moments of each column."""
        names = numbers_of(book, self.columns or book.numeric())
        return harmonise.Standardise(names, self.ddof, book.rule)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """One line a column."""
        return Sheet(found, found.records(), "column", found.notes)


@dataclass(frozen=True)
class ComBat(Estimator):
    """Harmonisation of columns that each site measures with its own shift and scale (ComBat).

    Args:
        columns: measurements, such as features of images.
        covariates: columns whose effects stay.
        by_site: whether sites tell their shifts and scales; those with too few persons do not.
    """

    columns: Sequence[str]
    covariates: Sequence[str] = ()
    by_site: bool = True

    def named(self) -> tuple[str, ...]:
        """All columns."""
        return tuple(dict.fromkeys((*self.columns, *self.covariates)))

    def analysis(self, book: Codebook) -> Analysis:
        """The harmonisation."""
        book.check(*self.covariates)
        model = harmonise_combat.ComBat(
            numbers_of(book, self.columns),
            self.covariates,
            book.categories(self.covariates),
            told=self.by_site,
            rule=book.rule,
        )
        return guarded(model, book)

    def finding(self, book: Codebook, found: Any) -> Sheet:
        """For each column a line of what all sites share, and one for each site."""
        return Sheet(found, list(_lines(book, found)), "column", found.notes)


def _lines(book: Codebook, found: harmonise_combat.Harmoniser) -> Iterator[dict[str, Any]]:
    effects = [f"effect of {book.shown(name)}" for name in found.design.names]
    for g, name in enumerate(found.features):
        yield {
            "column": name,
            "site": "all",
            "mean": found.intercepts[g],
            "sd": found.deviations[g],
            **dict(zip(effects, found.effects[:, g], strict=True)),
        }
        for i, shift in enumerate(found.shifts[:, g]):
            if np.isfinite(shift):
                stretch = found.stretches[i, g]
                yield {"column": name, "site": book.sites[i], "shift": shift, "stretch": stretch}
