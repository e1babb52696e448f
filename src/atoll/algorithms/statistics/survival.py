"""Kaplan-Meier and Nelson-Aalen curves over sites, equal to those of the pooled rows.

Sites add up three histograms over a declared axis of times: events, exits, late entries. They are all
that the estimators need (Kaplan and Meier, JASA 53, 1958; Greenwood 1926; Aalen, Ann. Statist. 6, 1978).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from atoll.algorithms.statistics.distributions import normal_quantile
from atoll.algorithms.statistics.glm_design import misfit
from atoll.algorithms.statistics.survival_axis import Axis, spans
from atoll.core.errors import JobError
from atoll.core.layout import Array

__all__ = ["Counted", "Curve", "Curves", "KaplanMeier", "at_risk", "histograms"]


@dataclass(frozen=True)
class Curve:
    """Survival of one group; all arrays ``(m,)``, one entry for each time with an exit.

    Args:
        group: its code; NaN where there is one group only.
        times: in the unit of the time column.
        at_risk: rows under observation just before.
        events: at this time.
        censored: at this time, after the events.
        survival: probability to be free of the event after this time.
        standard_errors: Greenwood's.
        lower: lower end of the pointwise interval.
        upper: upper end.
        cumulative_hazard: Nelson-Aalen.
        hazard_errors: its standard errors, Aalen's.
        median: first time with survival at one half or below; infinite if there is none.
    """

    group: float
    times: Array
    at_risk: Array
    events: Array
    censored: Array
    survival: Array
    standard_errors: Array
    lower: Array
    upper: Array
    cumulative_hazard: Array
    hazard_errors: Array
    median: float

    def at(self, time: float) -> float:
        """Probability to be free of the event after ``time``; NaN beyond the last exit."""
        if not len(self.times) or time > self.times[-1]:
            return float("nan")
        index = int(np.searchsorted(self.times, time, side="right"))
        return 1.0 if index == 0 else float(self.survival[index - 1])


@dataclass(frozen=True)
class Curves:
    """Curves of all groups.

    Args:
        curves: one for each group, in declared order.
        rows: complete rows.
        excluded: rows left out for missing values.
        notes: what a reader has to know, in words.
    """

    curves: tuple[Curve, ...]
    rows: int
    excluded: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class KaplanMeier:
    """Kaplan-Meier and Nelson-Aalen curves.

    Args:
        time: column of the time of event or censoring.
        event: column of 1 for an event and 0 for censoring.
        axis: the times at which sites count.
        group: column of codes whose groups get a curve each, or empty.
        levels: all codes of ``group``.
        entry: column of late entries, or empty.
        band: ``log-log`` or ``plain``.
        level: coverage of the pointwise intervals.
    """

    time: str
    event: str
    axis: Axis
    group: str = ""
    levels: Sequence[float] = ()
    entry: str = ""
    band: Literal["log-log", "plain"] = "log-log"
    level: float = 0.95

    def __post_init__(self) -> None:
        if bool(self.group) != bool(len(self.levels)):
            raise JobError("a group needs its levels, and levels need a group")
        if self.time == self.event:
            raise JobError(f"{self.time!r} cannot be time and event", remedy="name two columns")

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        return [n for n in (self.time, self.event, self.entry, self.group) if n]

    def start(self) -> Mapping[str, Array]:
        """Before the only round."""
        return {}

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """One question."""
        return None if state else {"histograms": np.ones(1)}

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """The site's histograms."""
        return histograms(self, data)

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The totals are the state."""
        return totals

    def result(self, state: Mapping[str, Array]) -> Curves:
        """The curves."""
        rows, excluded, moved = (int(v) for v in state["numbers"])
        levels = self.levels if self.group else (float("nan"),)
        notes = [f"{moved} times are not on the axis and were rounded"] if moved else []
        if excluded:
            notes.append(f"{excluded} rows with missing values are left out")
        curves = []
        for i, level in enumerate(levels):
            name = f"group {level:g}" if self.group else "the data"
            if not state["exits"][i].any():
                notes.append(f"{name}: no rows at any site")
            elif not state["deaths"][i].any():
                notes.append(f"{name}: all censored, so survival is 1 as far as it was observed")
            curves.append(
                self._curve(level, *(state[n][i] for n in ("deaths", "exits", "entries")))
            )
        return Curves(tuple(curves), rows, excluded, tuple(notes))

    def _curve(self, group: float, deaths: Array, exits: Array, entries: Array) -> Curve:
        risk, some = at_risk(exits, entries), exits > 0
        n, d, c = risk[some], deaths[some], (exits - deaths)[some]
        times = self.axis.points[some]
        left = np.maximum(n - d, 0.0)
        survival = np.cumprod(left / n)
        greenwood = np.cumsum(np.divide(d, n * left, out=np.zeros(len(n)), where=left > 0))
        alive = survival > 0
        error = np.where(alive, survival * np.sqrt(greenwood), np.nan)
        z = normal_quantile(0.5 + self.level / 2)
        if self.band == "plain":
            lower, upper = np.maximum(survival - z * error, 0), np.minimum(survival + z * error, 1)
        else:
            inside = alive & (survival < 1)
            log = np.log(np.where(inside, survival, 0.5))
            reach = z * np.sqrt(greenwood) / -log
            lower = np.where(inside, np.exp(log * np.exp(reach)), survival)
            upper = np.where(inside, np.exp(log * np.exp(-reach)), survival)
        lower, upper = (np.where(alive, end, np.nan) for end in (lower, upper))
        below = np.flatnonzero(survival <= 0.5)
        return Curve(
            group,
            times,
            n,
            d,
            c,
            survival,
            error,
            lower,
            upper,
            np.cumsum(d / n),
            np.sqrt(np.cumsum(d / (n * n))),
            float(times[below[0]]) if len(below) else float("inf"),
        )


class Counted(Protocol):
    """What :func:`histograms` needs of an analysis; see :class:`KaplanMeier`."""

    @property
    def time(self) -> str:
        """Column of times."""
        ...

    @property
    def event(self) -> str:
        """Column of events."""
        ...

    @property
    def entry(self) -> str:
        """Column of entries, or empty."""
        ...

    @property
    def axis(self) -> Axis:
        """The declared times."""
        ...

    @property
    def group(self) -> str:
        """Column of groups, or empty."""
        ...

    @property
    def levels(self) -> Sequence[float]:
        """Codes of the groups."""
        ...


def histograms(model: Counted, data: Mapping[str, Array]) -> dict[str, Array]:
    """A site's ``deaths``, ``exits``, ``entries`` as ``(groups, M)``, and ``numbers``.

    Raises:
        DataError: see :func:`~atoll.algorithms.statistics.survival_axis.spans`; or an unknown group.
    """
    others = [model.group] if model.group else []
    found = spans(model.axis, data, model.time, model.event, model.entry, others)
    groups, size = max(1, len(model.levels)), len(model.axis.points)
    where = positions(data[model.group][found.whole], model.levels, model.group) if others else 0

    def table(codes: Array, rows: Array) -> Array:
        # One more slot: exits beyond the end of an axis of given times are at risk at all of them.
        flat = np.bincount((where * (size + 1) + codes)[rows], minlength=groups * (size + 1))
        return flat.reshape(groups, size + 1).astype(np.float64)

    late = found.enter >= 0
    exits = table(found.leave, np.ones(len(found.leave), bool))
    deaths = table(found.leave, found.event)
    entries = table(np.maximum(found.enter, 0), late)
    exits[:, size - 1] += exits[:, size]
    rows = int(found.whole.sum())
    return {
        "deaths": deaths[:, :size],
        "exits": exits[:, :size],
        "entries": entries[:, :size],
        "numbers": np.array([rows, len(found.whole) - rows, found.moved], np.float64),
    }


def positions(values: Array, levels: Sequence[float], name: str) -> Array:
    """Positions of codes among declared levels.

    Raises:
        DataError: a code that is not declared.
    """
    ordered = np.argsort(levels)
    known = np.asarray(levels, np.float64)[ordered]
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    odd = known[at] != values
    if odd.any():
        raise misfit(
            name,
            f"holds {values[odd][0]:g}, which is not among its levels",
            "declare all levels that occur anywhere",
        )
    result: Array = ordered[at]
    return result


def at_risk(exits: Array, entries: Array) -> Array:
    """Rows under observation just before each time, over the last axis."""
    still = np.cumsum(exits[..., ::-1], axis=-1)[..., ::-1]
    later = np.cumsum(entries[..., ::-1], axis=-1)[..., ::-1]
    result: Array = still - later
    return result
