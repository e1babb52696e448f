"""Linear mixed models with a random intercept over sites, equal to those of the pooled rows.

Groups are sites, or lie within sites (schools, wards, patients): no group spans two sites. Each round the
sites are told one or a few ratios of the two variances and add up what the profile likelihood at these
needs; Newton's method on its logarithm finds the maximum, by ML or REML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from atoll.algorithms.statistics.columns import varies
from atoll.algorithms.statistics.distributions import chi2_tail
from atoll.algorithms.statistics.glm_design import Design, moments, moments_of
from atoll.algorithms.statistics.glm_inference import Estimates, estimates
from atoll.algorithms.statistics.glm_newton import dependent
from atoll.algorithms.statistics.mixed_profile import Profile, group_sums, profile
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array

__all__ = ["MixedModel", "MixedResult"]

MOMENTS, SCAN, CLIMB, DONE = range(4)
RATIOS = (0.0, *(10.0**e for e in range(-6, 7)))
MOST_ROUNDS = 60


@dataclass(frozen=True)
class MixedResult:
    """A fitted random-intercept model.

    Args:
        table: fixed effects.
        group_variance: tau^2, of the intercepts.
        residual_variance: sigma^2.
        intraclass: tau^2 over the sum of both.
        reml: whether likelihood and variances are restricted ones.
        log_likelihood: at the maximum, with all constants.
        no_groups: probability of this likelihood or a larger one if tau^2 were 0 (half a chi-squared).
        rows: complete rows.
        groups: how many there are.
        excluded: rows left out for missing values.
        sites: sites with a complete row.
        iterations: rounds of the climb.
        converged: whether this is the maximum.
        dropped: names of columns that are combinations of others.
        notes: what a reader has to know, in words.
    """

    table: Estimates
    group_variance: float
    residual_variance: float
    intraclass: float
    reml: bool
    log_likelihood: float
    no_groups: float
    rows: int
    groups: int
    excluded: int
    sites: int
    iterations: int
    converged: bool
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class MixedModel:
    """A linear model with a normal random intercept for each group.

    Args:
        outcome: column to be explained.
        features: columns that explain it.
        group: column of codes of the groups within a site; empty: the sites are the groups.
        categories: all levels of explaining columns that hold codes; the first is the reference.
        reml: restricted maximum likelihood; else maximum likelihood.
        level: coverage of intervals.
        information: of the standard errors: ``expected`` as in lme4, nlme and SAS; ``observed`` as in
            statsmodels, where estimates of variances and fixed effects lean on each other.
    """

    outcome: str
    features: Sequence[str]
    group: str = ""
    categories: Mapping[str, Sequence[float]] = field(default_factory=dict)
    reml: bool = True
    level: float = 0.95
    information: Literal["expected", "observed"] = "expected"

    def __post_init__(self) -> None:
        if self.outcome in self.features or (self.group and self.group in self.features):
            raise JobError("outcome and group cannot be features as well")

    @cached_property
    def design(self) -> Design:
        """What explains."""
        return Design.of(self.features, self.categories)

    @property
    def others(self) -> tuple[str, ...]:
        """Columns beside the design."""
        return (self.outcome, *([self.group] if self.group else []))

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        return (*self.design.features, *self.others)

    def start(self) -> Mapping[str, Array]:
        """Before the first round."""
        return {"phase": np.array(float(MOMENTS))}

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """The ratios to be looked at, and the coefficients that residuals are taken of."""
        phase = int(state["phase"])
        if phase == DONE:
            return None
        if phase == MOMENTS:
            return {"phase": state["phase"]}
        return {n: state[n] for n in ("phase", "ratios", "beta", "centre", "scale")}

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """What a site adds."""
        if int(question["phase"]) == MOMENTS:
            return self._moments(data)
        wide, group = self._rows(data, question["centre"], question["scale"])
        wide[-1] -= question["beta"] @ wide[:-1]
        parts = [group_sums(wide, group, float(ratio)) for ratio in question["ratios"]]
        return {"sums": np.stack([m for m, _ in parts]), "logs": np.stack([m for _, m in parts])}

    def _moments(self, data: Mapping[str, Array]) -> dict[str, Array]:
        answer = moments(self.design, data, self.others)
        k = len(self.design.names)
        wide, group = self._rows(data, np.zeros(k), np.ones(k))
        size = np.bincount(group) if len(group) else np.zeros(0)
        answer["groups"] = np.array([len(size), np.count_nonzero(size > 1)], np.float64)
        answer["outcome"] = np.array(wide[-1].sum())
        return answer

    def _rows(self, data: Mapping[str, Array], centre: Array, scale: Array) -> tuple[Array, Array]:
        """Intercept, standardised columns and outcome as ``(p + 1, n)``; the group of each row."""
        blocks, groups = [np.zeros((len(centre) + 2, 0))], [np.zeros(0)]
        for matrix, others in self.design.blocks(data, self.others):
            z = (matrix - centre[:, None]) / scale[:, None]
            blocks.append(np.vstack([np.ones(z.shape[1]), z, others[0]]))
            groups.append(others[1] if self.group else np.zeros(z.shape[1]))
        codes = np.concatenate(groups)
        return np.concatenate(blocks, axis=1), np.unique(codes, return_inverse=True)[1].ravel()

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The next state."""
        phase = int(state["phase"])
        if phase == MOMENTS:
            return self._ready(totals)
        if phase == SCAN:
            return self._scanned(state, totals)
        return self._climbed(state, self._profile(state, totals, 0))

    def _ready(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        found, (groups, large) = moments_of(totals), totals["groups"].tolist()
        if not found.rows:
            raise DataError("no site has a complete row", remedy="leave out columns that are empty")
        if groups < 2 or not large:
            what = "one group only" if groups < 2 else "no group with two rows"
            raise DataError(f"there is {what}: variances between and within cannot be told apart")
        beta = np.zeros(len(found.sums) + 1)
        beta[0] = totals["outcome"] / found.rows
        return {
            **totals,
            "centre": found.centre,
            "scale": found.scale,
            "beta": beta,
            "ratios": np.array(RATIOS),
            "rounds": np.array(0.0),
            "gain": np.array(np.inf),
            "phase": np.array(float(SCAN)),
        }

    def _profile(self, state: Mapping[str, Array], totals: Mapping[str, Array], i: int) -> Profile:
        rows = moments_of(state).rows
        return profile(totals["sums"][i], totals["logs"][i], rows, state["kept"], self.reml)

    def _scanned(
        self, state: Mapping[str, Array], totals: Mapping[str, Array]
    ) -> Mapping[str, Array]:
        """The best of a few ratios, and the neighbours between which the maximum lies."""
        gram = totals["sums"][0][0][:-1, :-1]
        kept = dependent(gram)[0]
        state = {**state, "kept": kept, "first": gram}
        if not varies(totals["sums"][0][0][-1, -1], moments_of(state).rows, state["beta"][0]):
            raise DataError(f"outcome {self.outcome!r} is the same in all rows of all sites")
        if moments_of(state).rows <= kept.sum():
            raise DataError("there are as many coefficients as rows")
        found = [self._profile(state, totals, i) for i in range(len(RATIOS))]
        best = int(np.argmax([p.value for p in found]))
        state["flat"] = np.array(found[0].value)
        if best == 0 and found[0].slope <= 0:  # the maximum lies at the edge: no group variance
            return self._ended(state, found[0], 0.0, True)
        low, high = RATIOS[max(best - 1, 1)] / 10, RATIOS[min(best + 1, len(RATIOS) - 1)]
        start = RATIOS[max(best, 1)]
        return {
            **state,
            "bracket": np.log([low, high]),
            "ratios": np.array([start]),
            "beta": state["beta"] + found[max(best, 1)].step,
            "phase": np.array(float(CLIMB)),
        }

    def _climbed(self, state: Mapping[str, Array], found: Profile) -> Mapping[str, Array]:
        """One step of Newton's method on the logarithm of the ratio, held in the bracket."""
        ratio = float(state["ratios"][0])
        at, (low, high) = math.log(ratio), state["bracket"].tolist()
        slope = ratio * found.slope
        curve = ratio * ratio * found.curve + slope
        low, high = (at, high) if slope > 0 else (low, at)
        rounds = float(state["rounds"]) + 1
        new = at - slope / curve if curve < 0 else math.nan
        gain = slope * slope / -curve if curve < 0 else math.inf
        # Rounding may keep the promised gain from falling further: then it no longer shrinks.
        floor = gain <= 1e-14 and gain >= 0.1 * float(state["gain"])
        if gain <= 1e-20 or floor or high - low < 1e-13 or rounds >= MOST_ROUNDS:
            return self._ended(
                {**state, "rounds": np.array(rounds)}, found, ratio, rounds < MOST_ROUNDS
            )
        if not low < new < high:
            new = 0.5 * (low + high)
        return {
            **state,
            "bracket": np.array([low, high]),
            "ratios": np.array([math.exp(new)]),
            "beta": state["beta"] + found.step,
            "rounds": np.array(rounds),
            "gain": np.array(gain),
        }

    def _ended(
        self, state: Mapping[str, Array], found: Profile, ratio: float, good: bool
    ) -> Mapping[str, Array]:
        return {
            **state,
            "beta": state["beta"] + found.step,
            "inverse": found.inverse,
            "variance": np.array(found.variance),
            "value": np.array(found.value),
            "mixed": found.mixed,
            "curve": np.array(found.curve),
            "ratio": np.array(ratio),
            "good": np.array(float(good)),
            "phase": np.array(float(DONE)),
        }

    def result(self, state: Mapping[str, Array]) -> MixedResult:
        """Estimates and what is told with them."""
        found, kept = moments_of(state), state["kept"]
        names = ("intercept", *self.design.names)
        back = np.diag(np.concatenate([[1.0], 1.0 / state["scale"]]))
        back[0, 1:] = -found.centre / state["scale"]
        variance, ratio = float(state["variance"]), float(state["ratio"])
        values = np.where(kept > 0, back @ (state["beta"] * kept), np.nan)
        inner = variance * state["inverse"]
        if self.information == "observed" and ratio:
            lean = state["inverse"] @ state["mixed"]
            inner = inner + np.outer(lean, lean) / -state["curve"]
        spread = back @ inner @ back.T
        spread[kept == 0] = spread[:, kept == 0] = np.nan
        notes = found.notes(self.columns())
        dropped = dependent(state["first"])[1]
        for j, parts in dropped.items():
            others = [names[i] for i in parts if i]
            why = f"a combination of {', '.join(others)}" if others else "constant"
            notes.append(f"column {names[j]!r} is left out: it is {why}")
        if not ratio:
            notes.append("groups differ no more than chance would have it: their variance is 0")
        if not state["good"]:
            notes.append("no convergence; these are the numbers of the last point")
        loglik = self._constant(state) + float(state["value"])
        gain = 2 * max(float(state["value"] - state["flat"]), 0.0)
        return MixedResult(
            table=estimates(names, values, 0.5 * (spread + spread.T), self.level),
            group_variance=ratio * variance,
            residual_variance=variance,
            intraclass=ratio / (1 + ratio),
            reml=self.reml,
            log_likelihood=loglik,
            no_groups=0.5 * chi2_tail(gain, 1) if gain else 1.0,
            rows=int(found.rows),
            groups=int(state["groups"][0]),
            excluded=int(found.excluded),
            sites=int(found.sites),
            iterations=int(state["rounds"]),
            converged=bool(state["good"]),
            dropped=tuple(names[j] for j in dropped),
            notes=tuple(notes),
        )

    def _constant(self, state: Mapping[str, Array]) -> float:
        """What the scale of columns adds to a restricted likelihood."""
        if not self.reml:
            return 0.0
        return float(-np.log(state["scale"])[state["kept"][1:] > 0].sum())
