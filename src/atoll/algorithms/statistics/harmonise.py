"""Federated standardisation: means and standard deviations of all rows, applied at each site.

They are :class:`~atoll.algorithms.statistics.moments.Moments` of each column: means first, then squares
about them, so that nothing cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from atoll.algorithms.statistics.analysis import Question
from atoll.algorithms.statistics.moments import Moments
from atoll.algorithms.statistics.together import Derived
from atoll.core.errors import DataError, Forbidden
from atoll.core.layout import Array
from atoll.data.disclosure import Disclosure

__all__ = ["Scaler", "Standardise"]


@dataclass(frozen=True)
class Scaler:
    """Means and standard deviations of columns over all sites.

    Args:
        features: names of the columns.
        counts: rows with a value, ``(d,)``; NaN where disclosure control took the number away.
        means: ``(d,)``.
        deviations: standard deviations, ``(d,)``.
        notes: what a reader has to know, in words.
    """

    features: tuple[str, ...]
    counts: Array
    means: Array
    deviations: Array
    notes: tuple[str, ...]

    def apply(self, data: Mapping[str, Array]) -> dict[str, Array]:
        """At a site: standardised columns; a constant column becomes zeros, missing stays missing."""
        scale = np.where(self.deviations > 0, self.deviations, 1.0)
        return {
            name: (data[name] - self.means[i]) / scale[i] for i, name in enumerate(self.features)
        }

    def records(self) -> list[dict[str, object]]:
        """One record a column."""
        return [
            {
                "column": name,
                "count": self.counts[i],
                "mean": self.means[i],
                "sd": self.deviations[i],
            }
            for i, name in enumerate(self.features)
        ]


@dataclass(frozen=True)
class Standardise(Derived):
    """Means and standard deviations over sites.

    Args:
        features: columns of numbers.
        ddof: what is taken off the count for the variance: 0 as scikit-learn, 1 as pandas.
        rule: disclosure control.
    """

    features: Sequence[str]
    ddof: int = 0
    rule: Disclosure = field(default_factory=Disclosure)

    @property
    def inner(self) -> Moments:
        """Moments of each column."""
        return Moments(tuple(self.features), rule=self.rule)

    def read(self, state: Question) -> Scaler:
        """The scaler.

        Raises:
            DataError: a column is empty at all sites.
            Forbidden: fewer persons than the minimum have a value.
        """
        found, counts = self.inner.result(state), state["count"][:, 0]
        for name, count, hidden in zip(self.features, counts, found.hidden[:, 0], strict=True):
            if not count:
                raise DataError(f"column {name!r} is empty at all sites", remedy="leave it out")
            if hidden:
                raise Forbidden(
                    f"fewer than {self.rule.minimum} persons have a value in column {name!r}",
                    remedy="leave it out",
                )
        means = state["mean"][:, 0]
        spread = np.sqrt(state["square"][:, 0] / np.maximum(counts - self.ddof, 1.0))
        tiny = spread <= 1e-14 * np.abs(means)  # what rounding leaves of a constant
        spread = np.where(tiny, 0.0, spread)
        notes = tuple(
            f"column {name!r} is constant"
            for name, s in zip(self.features, spread, strict=True)
            if not s
        )
        return Scaler(tuple(self.features), found.count[:, 0], means, spread, notes)
