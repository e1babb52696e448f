"""Risk sets as tables: what a Cox model needs of rows, at the times of events.

Row j is at risk at the events g with ``first_j <= g < end_j``, and ``r_j = exp(eta_j)`` is its risk. S0
and S1 are sums of risks, and of risks times columns, over rows at risk at g; E0 and E1 are those over the
d rows whose event it is. With ``f_l = l / d`` for the l-th of these (Efron, JASA 72, 1977), or 0 (Breslow,
Biometrics 30, 1974), let ``a_gl = S0 - f_l E0`` and ``U_gl = (S1 - f_l E1) / a_gl``. The log-likelihood is
``sum_g Z_g beta - sum_l log a_gl``, its gradient ``sum_g Z_g - sum_l U_gl``, and minus its second
derivative ``sum_j q_j z_j z_j' - sum_gl U_gl U_gl'`` with one weight q_j for each row. So sites add up
tables of columns, but never tables of their products: those come as one matrix, once the weights are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from atoll.core.layout import Array

__all__ = ["Grid", "Members", "Ties", "bend", "likelihood", "members", "product_weights", "tables"]

Ties = Literal["efron", "breslow"]


@dataclass(frozen=True)
class Grid:
    """The times of events, stratum after stratum.

    Args:
        codes: ``stratum * M + position on the axis``, rising, ``(G,)``.
        size: M.
        strata: how many there are.
    """

    codes: Array
    size: int
    strata: int

    @property
    def segments(self) -> list[slice]:
        """Where each stratum lies."""
        ends = np.searchsorted(self.codes, np.arange(self.strata + 1) * self.size)
        return [slice(int(a), int(b)) for a, b in pairwise(ends)]


@dataclass(frozen=True)
class Members:
    """Rows of a site on a grid; all ``(n,)``.

    Args:
        first: first event at which a row is at risk.
        end: one past the last.
        own: events of rows as positions on the grid; -1 for censored rows.
    """

    first: Array
    end: Array
    own: Array


def members(grid: Grid, stratum: Array, enter: Array, leave: Array, event: Array) -> Members:
    """Place rows on the grid."""
    base = stratum * grid.size
    first = np.searchsorted(grid.codes, base + enter, side="right")
    end = np.searchsorted(grid.codes, base + np.minimum(leave, grid.size - 1), side="right")
    return Members(first, np.maximum(first, end), np.where(event, end - 1, -1))


def _from_end(grid: Grid, table: Array) -> Array:
    """Sums over this and all later events of the same stratum."""
    result = np.empty_like(table)
    for part in grid.segments:
        result[part] = np.cumsum(table[part][::-1], axis=0)[::-1]
    return result


def _late(grid: Grid, found: Members) -> tuple[Array, Array]:
    """Rows that are at risk at some event; those of them that are not at their stratum's first one."""
    starts = np.zeros(len(grid.codes) + 1, np.int64)
    for part in grid.segments:
        starts[part] = part.start
    live = found.end > found.first
    return live, live & (found.first > starts[np.maximum(found.end - 1, 0)])


def at_risk(grid: Grid, found: Members, values: Array) -> Array:
    """Sums of ``values``, ``(n, m)``, over the rows at risk at each event, ``(G, m)``."""
    size = len(grid.codes)
    live, late = _late(grid, found)
    table = np.zeros((size, values.shape[1]))
    for j in range(values.shape[1]):
        table[:, j] = np.bincount(found.end[live] - 1, values[live, j], size)
        table[:, j] -= np.bincount(found.first[late] - 1, values[late, j], size)
    return _from_end(grid, table)


def cells_at_risk(grid: Grid, found: Members, where: Array, many: int) -> Array:
    """How many rows of each of ``many`` bins are at risk at each event, ``(G, many)``."""
    size = len(grid.codes)
    live, late = _late(grid, found)
    table = np.bincount((found.end[live] - 1) * many + where[live], minlength=size * many)
    table -= np.bincount((found.first[late] - 1) * many + where[late], minlength=size * many)
    return _from_end(grid, table.reshape(size, many).astype(np.float64))


def tables(grid: Grid, found: Members, z: Array, eta: Array) -> dict[str, Array]:
    """A site's part of S0, S1, E0, E1, the columns of its events, and their number, at each event.

    Args:
        grid: the events.
        found: the rows on it.
        z: columns, ``(k, n)``.
        eta: linear predictor, ``(n,)``.
    """
    risk, size = np.exp(eta), len(grid.codes)
    values = np.column_stack([risk, (z * risk).T])
    tied, own = found.own >= 0, found.own[found.own >= 0]

    def at_events(columns: Array) -> Array:
        parts = [np.bincount(own, column[tied], size) for column in columns.T]
        return np.stack(parts, axis=1)

    return {
        "risk": at_risk(grid, found, values),
        "tied": at_events(values),
        "sums": at_events(z.T) if len(z) else np.zeros((size, 0)),
        "events": np.bincount(own, minlength=size).astype(np.float64),
    }


def _shares(events: Array, ties: Ties) -> tuple[Array, Array]:
    """For each single event its position on the grid and f."""
    count = events.astype(np.int64)
    where = np.repeat(np.arange(len(count)), count)
    rank = np.arange(len(where)) - np.repeat(np.cumsum(count) - count, count)
    f = rank / np.maximum(events[where], 1.0) if ties == "efron" else np.zeros(len(where))
    return where, f


def likelihood(
    total: Mapping[str, Array], beta: Array, ties: Ties
) -> tuple[float, Array, Array, Array]:
    """Of summed tables: log-likelihood, gradient ``(k,)``, ``sum U U'``, and residuals.

    Returns:
        The residuals are Schoenfeld's, summed over the events of each time, ``(G, k)``.
    """
    where, f = _shares(total["events"], ties)
    left = total["risk"][where] - f[:, None] * total["tied"][where]
    mean = left[:, 1:] / left[:, :1]
    value = float((total["sums"] @ beta).sum() - np.log(left[:, 0]).sum())
    residual = total["sums"].copy()
    np.subtract.at(residual, where, mean)
    return value, residual.sum(axis=0), mean.T @ mean, residual


def product_weights(total: Mapping[str, Array], ties: Ties) -> tuple[Array, Array]:
    """For each event: what a row at risk, and what a tied row gives back, in the weights q; ``(G,)``."""
    where, f = _shares(total["events"], ties)
    each = 1.0 / (total["risk"][where, 0] - f * total["tied"][where, 0])
    size = len(total["events"])
    return np.bincount(where, each, size), np.bincount(where, f * each, size)


def bend(found: Members, z: Array, eta: Array, at: Array, back: Array) -> Array:
    """A site's ``sum q_j z_j z_j'``, ``(k, k)``."""
    before = np.concatenate([[0.0], np.cumsum(at)])
    q = before[found.end] - before[found.first]
    tied = found.own >= 0
    q[tied] -= back[found.own[tied]]
    half = z * np.sqrt(np.maximum(q, 0.0) * np.exp(eta))
    result: Array = half @ half.T
    return result
