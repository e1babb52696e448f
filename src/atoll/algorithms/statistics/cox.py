"""Cox regression over sites, equal to that of the pooled rows.

With pooled risk sets sites add up, at each time of an event, sums over the rows at risk there (see
:mod:`~atoll.algorithms.statistics.cox_risk`); a step of Newton's method takes two rounds. Stratified by
site (Cox, JRSS B 34, 1972), a site compares its own rows only, no table leaves it, and a step takes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from atoll.algorithms.statistics import cox_last, glm_newton
from atoll.algorithms.statistics.cox_result import CoxResult, finished
from atoll.algorithms.statistics.cox_risk import (
    Grid,
    Members,
    Ties,
    bend,
    likelihood,
    members,
    product_weights,
    tables,
)
from atoll.algorithms.statistics.glm_design import Design, moments, moments_of
from atoll.algorithms.statistics.glm_newton import CLIMBING, Height
from atoll.algorithms.statistics.survival import positions
from atoll.algorithms.statistics.survival_axis import Axis, spans
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array

__all__ = ["Cox"]

MOMENTS, LOOK, BEND, LAST, DONE = range(5)
MOST_ETA = 300.0


@dataclass(frozen=True)
class Cox:
    """One proportional hazards model.

    Args:
        time: column of the time of event or censoring.
        event: column of 1 for an event and 0 for censoring.
        features: columns that explain.
        axis: the times at which sites count.
        categories: all levels of explaining columns that hold codes; the first is the reference.
        ties: ``efron`` or ``breslow``.
        strata: ``none`` (pooled risk sets); ``site``; or a column of codes.
        strata_levels: all codes of that column.
        entry: column of late entries, or empty.
        level: coverage of intervals.
    """

    time: str
    event: str
    features: Sequence[str]
    axis: Axis
    categories: Mapping[str, Sequence[float]] = field(default_factory=dict)
    ties: Ties = "efron"
    strata: str = "none"
    strata_levels: Sequence[float] = ()
    entry: str = ""
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.ties not in ("efron", "breslow"):
            raise JobError(f"ties are {self.ties!r}", remedy="known: efron, breslow")
        if (self.strata not in ("none", "site")) != bool(len(self.strata_levels)):
            raise JobError("a column of strata needs its levels")
        if not len(self.features):
            raise JobError("a Cox model needs a feature", remedy="for curves use Kaplan-Meier")
        if self.time == self.event or {self.time, self.event} & set(self.features):
            raise JobError(
                f"time {self.time!r}, event {self.event!r} and features must be different columns"
            )

    @cached_property
    def design(self) -> Design:
        """What explains."""
        return Design.of(self.features, self.categories)

    @property
    def others(self) -> tuple[str, ...]:
        """Columns beside the design."""
        more = (self.entry, self.strata if len(self.strata_levels) else "")
        return (self.time, self.event, *(n for n in more if n))

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        return tuple(dict.fromkeys((*self.design.features, *self.others)))

    def start(self) -> Mapping[str, Array]:
        """Before the first round."""
        return {"phase": np.array(float(MOMENTS))}

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """A point, and what the phase needs beside it."""
        phase = int(state["phase"])
        if phase == DONE:
            return None
        names = {
            MOMENTS: (),
            LOOK: ("trial", "centre", "scale", "grid"),
            BEND: ("trial", "centre", "scale", "grid", "at", "back"),
            LAST: ("point", "centre", "scale", "grid", "spread"),
        }[phase]
        return {"phase": state["phase"], **{name: state[name] for name in names}}

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """What a site adds."""
        phase = int(question["phase"])
        if phase == MOMENTS:
            return self._events(data)
        grid, found, z = self._members(question, data)
        beta = question["point" if phase == LAST else "trial"]
        eta = beta @ z
        outside = eta > MOST_ETA
        eta = np.where(outside, 0.0, eta)
        if phase == BEND:
            return {"products": bend(found, z, eta, question["at"], question["back"])}
        if phase == LAST:
            return cox_last.sums(self, question, grid, found, z, eta)
        numbers = np.array([np.count_nonzero(outside), eta @ eta])
        total = tables(grid, found, z, eta)
        if self.strata != "site":
            return {"numbers": numbers, **total}
        value, gradient, squares, _ = likelihood(total, beta, self.ties)
        at, back = product_weights(total, self.ties)
        hessian = bend(found, z, eta, at, back) - squares
        return {
            "numbers": numbers,
            "value": np.array(value),
            "gradient": gradient,
            "hessian": hessian,
        }

    def _events(self, data: Mapping[str, Array]) -> dict[str, Array]:
        """Moments of the design, and the histogram of events."""
        answer = moments(self.design, data, self.others)
        found = spans(
            self.axis, data, self.time, self.event, self.entry, (*self.features, *self.others[2:])
        )
        stratum = self._stratum(data, found.whole)
        happened = int(found.event.sum())
        answer["numbers"] = np.array([happened, found.moved, float(happened > 0)])
        if self.strata != "site":
            size = len(self.axis.points)
            codes = (stratum * size + found.leave)[found.event]
            length = size * max(1, len(self.strata_levels))
            answer["histogram"] = np.bincount(codes, minlength=length).astype(np.float64)
        return answer

    def _stratum(self, data: Mapping[str, Array], whole: Array) -> Array:
        if not len(self.strata_levels):
            return np.zeros(int(whole.sum()), np.int64)
        return positions(data[self.strata][whole], self.strata_levels, self.strata)

    def _members(
        self, question: Mapping[str, Array], data: Mapping[str, Array]
    ) -> tuple[Grid, Members, Array]:
        """The grid, this site's rows on it, and their standardised columns."""
        found = spans(
            self.axis, data, self.time, self.event, self.entry, (*self.features, *self.others[2:])
        )
        z = np.empty((len(self.design.names), len(found.whole)))
        self.design.fill(z, data, slice(None))
        z = (z[:, found.whole] - question["centre"][:, None]) / question["scale"][:, None]
        stratum = self._stratum(data, found.whole)
        codes = question["grid"].astype(np.int64)
        if self.strata == "site":
            codes = np.unique(found.leave[found.event])
        grid = Grid(codes, len(self.axis.points), max(1, len(self.strata_levels)))
        return grid, members(grid, stratum, found.enter, found.leave, found.event), z

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The next state."""
        phase = int(state["phase"])
        if phase == MOMENTS:
            return self._ready(totals)
        if phase == LOOK and self.strata == "site":
            return self._stepped(
                state,
                float(totals["value"]),
                totals["gradient"],
                totals["hessian"],
                totals["numbers"],
            )
        if phase == LOOK:
            value, gradient, squares, _ = likelihood(totals, state["trial"], self.ties)
            old = float(state["value"])
            worse = not np.isnan(old) and not value >= old - 1e-12 * abs(old)
            if totals["numbers"][0] or worse:  # no need to know how it bends there
                return self._stepped(state, -np.inf, gradient, squares, totals["numbers"])
            at, back = product_weights(totals, self.ties)
            kept = {
                "look_value": np.array(value),
                "look_gradient": gradient,
                "look_squares": squares,
            }
            kept |= {f"look_{n}": totals[n] for n in ("numbers", "risk", "tied", "sums", "events")}
            return {**state, **kept, "at": at, "back": back, "phase": np.array(float(BEND))}
        if phase == BEND:
            return self._stepped(
                state,
                float(state["look_value"]),
                state["look_gradient"],
                totals["products"] - state["look_squares"],
                state["look_numbers"],
            )
        return {
            **state,
            **{f"last_{k}": v for k, v in totals.items()},
            "phase": np.array(float(DONE)),
        }

    def _ready(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        """The state before the climb, which begins where no column matters."""
        found = moments_of(totals)
        if not totals["numbers"][0]:
            raise DataError(
                "there is no event at any site: all rows are censored or incomplete",
                remedy="look at the event column, and for columns that are empty",
            )
        grid = np.flatnonzero(totals["histogram"]) if "histogram" in totals else np.zeros(0)
        rest = {k: v for k, v in totals.items() if k not in ("histogram", "numbers")}
        return {
            **rest,
            "happened": totals["numbers"],
            **glm_newton.begin(np.zeros(len(found.sums))),
            "centre": found.centre,
            "scale": found.scale,
            "grid": grid.astype(np.float64),
            "phase": np.array(float(LOOK)),
        }

    def _stepped(
        self,
        state: Mapping[str, Array],
        value: float,
        gradient: Array,
        hessian: Array,
        numbers: Array,
    ) -> dict[str, Array]:
        """One step of the climb; the first point is that of no effect."""
        if np.isnan(state["value"]):
            spread = np.sqrt(np.maximum(np.diag(hessian), 0.0) / state["happened"][0])
            mask = glm_newton.dependent(hessian)[0]
            score = gradient @ glm_newton.solve_kept(hessian, gradient * mask, mask)
            state = {
                **state,
                "kept": mask,
                "first": hessian,
                "null": np.array(value),
                "score": np.array(score),
                "spreads": spread,
            }
        after = glm_newton.advance(
            state,
            Height(value, gradient, hessian, float(numbers[0]), size=abs(value)),
            lambda _, g, h, kept: glm_newton.solve_kept(h, g * kept, kept),
        )
        if float(after["halvings"]) == 0:
            rows = max(moments_of(state).rows, 1.0)
            after["spread"] = np.sqrt(numbers[1] / rows)
        # A monotone likelihood: nothing more to gain, and yet the step does not shrink.
        far = np.abs(after["step"]) * after["spreads"] > 0.1
        if float(after["iterations"]) > 15 and float(after["gain"]) < 1e-5 and far.any():
            return {**after, "runaway": far * 1.0, "phase": np.array(float(DONE))}
        phase = LOOK if after["status"] == CLIMBING else LAST
        return {**after, "phase": np.array(float(phase))}

    def result(self, state: Mapping[str, Array]) -> CoxResult:
        """Estimates and what is told with them."""
        return finished(self, state)
