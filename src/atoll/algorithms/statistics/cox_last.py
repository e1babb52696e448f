"""The last round of a Cox model: concordance in bins, and residuals of sites for Schoenfeld's test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from atoll.algorithms.statistics.cox_risk import Grid, Members, cells_at_risk, likelihood, tables
from atoll.core.layout import Array

if TYPE_CHECKING:
    from atoll.algorithms.statistics.cox import Cox

__all__ = ["concordance", "sums"]

MOST_CELLS = 30_000
"""Cells of the table of times and risk bins."""


def bins(events: int) -> int:
    """How many bins of risk a table with this many times has."""
    return int(np.clip(MOST_CELLS // max(events, 1), 32, 1024))


def sums(
    model: Cox, question: Mapping[str, Array], grid: Grid, found: Members, z: Array, eta: Array
) -> dict[str, Array]:
    """A site's counts of events and of rows at risk, by time and bin of risk.

    Bins are equally likely if the linear predictor is normal with the spread that is told; stratified
    by site, pairs are counted at once, and with them sums of Schoenfeld's residuals over time.
    """
    many = bins(len(grid.codes))
    spread = max(float(question["spread"]), 1e-300)
    share = 1.0 / (1.0 + np.exp(np.clip(-1.702 * eta / spread, -500, 500)))
    where = np.minimum((share * many).astype(np.int64), many - 1)
    tied = found.own >= 0
    flat = np.bincount(found.own[tied] * many + where[tied], minlength=len(grid.codes) * many)
    events = flat.reshape(len(grid.codes), many).astype(np.float64)
    risk = cells_at_risk(grid, found, where, many)
    if model.strata != "site":
        return {"pairs_events": events, "pairs_risk": risk}
    beta = question["point"]
    total = tables(grid, found, z, eta)
    residual = likelihood(total, beta, model.ties)[3]
    times = model.axis.points[grid.codes]
    log = np.log(np.maximum(times, 1e-12))
    d = total["events"]
    return {
        "pairs": concordance(events, risk),
        "residuals": np.stack([residual.sum(axis=0), times @ residual, log @ residual]),
        "clocks": np.array([[times @ d, times**2 @ d], [log @ d, log**2 @ d]]),
    }


def concordance(events: Array, risk: Array) -> Array:
    """Concordant, undecided and comparable pairs, of tables by time and bin of risk.

    A pair is comparable where one has its event while the other is at risk and goes on without event
    at this time. It is concordant where the one with the event has the higher risk.
    """
    others = risk - events
    lower = np.cumsum(others, axis=1) - others
    return np.array(
        [
            float((events * lower).sum()),
            float((events * others).sum()),
            float((events.sum(axis=1) * others.sum(axis=1)).sum()),
        ]
    )
