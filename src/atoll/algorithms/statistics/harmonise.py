"""Federated standardisation: means and standard deviations of all rows, applied at each site.

Two rounds: means first, then squares about them, so that nothing cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atoll.algorithms.statistics.glm_design import misfit
from atoll.core.errors import DataError
from atoll.core.layout import Array

__all__ = ["Scaler", "Standardise"]

COUNT, SQUARES, DONE = range(3)


@dataclass(frozen=True)
class Scaler:
    """Means and standard deviations of columns over all sites.

    Args:
        features: names of the columns.
        counts: rows with a value, ``(d,)``.
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


@dataclass(frozen=True)
class Standardise:
    """Means and standard deviations over sites.

    Args:
        features: columns of numbers.
        ddof: what is taken off the count for the variance: 0 as scikit-learn, 1 as pandas.
    """

    features: Sequence[str]
    ddof: int = 0

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        return tuple(self.features)

    def start(self) -> Mapping[str, Array]:
        """Before the first round."""
        return {"phase": np.array(float(COUNT))}

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """First nothing, then the means."""
        phase = int(state["phase"])
        if phase == DONE:
            return None
        return {"phase": state["phase"], **({"means": state["means"]} if phase == SQUARES else {})}

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """Counts and sums; then squares."""
        rows = [data[name][~np.isnan(data[name])] for name in self.features]
        for name, values in zip(self.features, rows, strict=True):
            if np.isinf(values).any():
                raise misfit(name, "holds an infinite value", "mark it as missing")
        if int(question["phase"]) == SQUARES:
            rest = [v - mean for v, mean in zip(rows, question["means"], strict=True)]
            return {"squares": np.array([v @ v for v in rest])}
        counts = np.array([len(v) for v in rows], np.float64)
        return {"counts": counts, "sums": np.array([v.sum() for v in rows])}

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The next state."""
        if int(state["phase"]) == COUNT:
            for name, count in zip(self.features, totals["counts"], strict=True):
                if not count:
                    raise DataError(f"column {name!r} is empty at all sites", remedy="leave it out")
            means = totals["sums"] / totals["counts"]
            return {**totals, "means": means, "phase": np.array(float(SQUARES))}
        return {**state, **totals, "phase": np.array(float(DONE))}

    def result(self, state: Mapping[str, Array]) -> Scaler:
        """The scaler."""
        spread = np.sqrt(state["squares"] / np.maximum(state["counts"] - self.ddof, 1.0))
        tiny = spread <= 1e-14 * np.abs(state["means"])  # what rounding leaves of a constant
        spread = np.where(tiny, 0.0, spread)
        notes = tuple(
            f"column {name!r} is constant"
            for name, s in zip(self.features, spread, strict=True)
            if not s
        )
        return Scaler(tuple(self.features), state["counts"], state["means"], spread, notes)
