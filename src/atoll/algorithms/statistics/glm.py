"""Generalised linear models over sites, equal to those of the pooled rows.

Newton's method on sums: each round all sites are told a point and answer with the log-likelihood, its
gradient and its second derivatives over their rows. Totals over sites are those of the pooled rows, so
estimates, standard errors, deviance and tests are too (McCullagh and Nelder, Generalized Linear Models,
1989). Robust covariances are sandwiches (White 1980; MacKinnon and White 1985; for clusters Liang and
Zeger 1986); separation is found by its direction (Albert and Anderson, Biometrika 71, 1984).

=================  =========================================================
round              what sites add up
=================  =========================================================
moments            counts, column sums, sum of outcomes
climb              kernel, score, curvature at a point; repeated
null               the same for a model of an intercept and the offset
last               log-likelihoods, expected information, squares of scores
=================  =========================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from atoll.algorithms.statistics import glm_newton, penalty
from atoll.algorithms.statistics.columns import complete
from atoll.algorithms.statistics.families import Family, family_of
from atoll.algorithms.statistics.glm_design import Design, gram, moments_of
from atoll.algorithms.statistics.glm_newton import CLIMBING, REACHED, Height
from atoll.algorithms.statistics.glm_result import GLMResult, finished
from atoll.algorithms.statistics.glm_rows import Block, Intercept, Rows
from atoll.algorithms.statistics.glm_start import level_of, outcome_sums, ready
from atoll.algorithms.statistics.penalty import Penalty
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array
from atoll.data.query_log import Released

__all__ = ["GLM", "Covariance"]

Covariance = Literal["model", "hc0", "hc1", "site"]

MOMENTS, CLIMB, NULL, LAST, DONE = range(5)
TOUCH = 1e-5
"""Change of a linear predictor that counts; a row on the edge still moves by exp(-PATIENCE)."""
SEPARATED = 3.0
"""Value of ``status`` when the likelihood has no maximum."""
NO_PENALTY = Penalty()
PATIENCE = 16
"""Rounds after which a climb that still goes on is asked whether it leads to infinity."""


@dataclass(frozen=True)
class GLM:
    """One generalised linear model.

    Args:
        outcome: column to be explained.
        features: columns that explain it.
        family: ``gaussian``, ``binomial``, ``poisson``, ``negative_binomial`` or ``gamma``.
        link: for gamma ``log`` (default) or ``inverse``.
        categories: all levels of columns that hold codes; the first is the reference.
        intercept: ``common``, ``site`` (a fixed one for each site) or ``none``.
        weights: column of prior weights: the variance is phi V / weight.
        frequencies: column that says how many equal rows a row stands for.
        offset: column added to the linear predictor.
        alpha: dispersion of the negative binomial.
        penalty: ridge, lasso or elastic net; intercepts are free of it.
        covariance: ``model``; ``hc0``, ``hc1``: robust; ``site``: clustered by site.
        level: coverage of intervals.

    Raises:
        JobError: options that do not go together.
    """

    outcome: str
    features: Sequence[str]
    family: str = "gaussian"
    link: str = ""
    categories: Mapping[str, Sequence[float]] = field(default_factory=dict)
    intercept: Intercept = "common"
    weights: str = ""
    frequencies: str = ""
    offset: str = ""
    alpha: float = 1.0
    penalty: Penalty = NO_PENALTY
    covariance: Covariance = "model"
    level: float = 0.95

    def __post_init__(self) -> None:
        law = self.law
        if law.name == "gamma" and law.canonical and self.intercept == "none":
            raise JobError("the inverse link needs an intercept", remedy="use link = 'log'")
        if self.outcome in self.features:
            raise JobError(f"outcome {self.outcome!r} is among the features")
        if not self.alpha > 0:
            raise JobError(f"alpha is {self.alpha:g}; it must be positive")
        if self.penalty.alpha and self.covariance != "model":
            raise JobError("penalised coefficients have no standard errors, robust or not")

    @cached_property
    def law(self) -> Family:
        """The family with its link."""
        return family_of(self.family, self.link, self.alpha)

    @cached_property
    def rows(self) -> Rows:
        """The columns and their parts."""
        return Rows(
            Design.of(self.features, self.categories),
            self.outcome,
            self.intercept,
            self.weights,
            self.frequencies,
            self.offset,
        )

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        return self.rows.columns

    def released(self, data: Mapping[str, Array]) -> Sequence[Released]:
        """The complete rows but those of weight 0: a weight can select rows as a condition does."""
        names = tuple(self.columns())
        rows = complete(data, names)
        for name in filter(None, (self.weights, self.frequencies)):
            rows &= data[name] > 0
        return [Released(names, rows, apart=self.intercept == "site")]

    def start(self) -> Mapping[str, Array]:
        """Before the first round."""
        return {"phase": np.array(float(MOMENTS))}

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """The point to be looked at, or what the phase needs beside it."""
        phase = int(state["phase"])
        if phase == DONE:
            return None
        question = {"phase": state["phase"]}
        if phase == MOMENTS:
            return question
        question |= {n: state[n] for n in ("centre", "scale", "flat") if n in state}
        if phase == CLIMB:
            question["point"] = state["trial"]
            asks = self._may_separate and float(state["iterations"]) >= PATIENCE
            question["direction"] = state["step"] if asks else np.zeros(0)
        elif phase == NULL:
            question["point"] = state["null_trial"]
        else:
            question |= {name: state[name] for name in ("point", "dispersion", "null_point")}
        return question

    @property
    def _may_separate(self) -> bool:
        return self.law.range[0] > -np.inf and self.law.name != "gamma" and not self.penalty.alpha

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """What a site adds."""
        phase = int(question["phase"])
        if "flat" in question and phase == CLIMB and question["flat"][:2, site].any():
            data = {name: values[:0] for name, values in data.items()}
        if phase == MOMENTS:
            return self.rows.moments(data) | outcome_sums(self.rows, self.law, data, site, sites)
        if phase == CLIMB:
            return self._climb(question, data, site, sites)
        if phase == NULL:
            return self._null(question, data)
        return self._last(question, data, site, sites)

    def _climb(
        self, question: Mapping[str, Array], data: Mapping[str, Array], site: int, sites: int
    ) -> dict[str, Array]:
        own = self.rows.own(question["point"], site)
        way = question["direction"]
        way = self.rows.own(way, site) if len(way) else way
        gradient, hessian = np.zeros(len(own)), np.zeros((len(own), len(own)))
        numbers, escape = np.zeros(3), np.zeros(2)
        for block in self.rows.blocks(data, question["centre"], question["scale"]):
            part = self.law.pieces(own @ block.matrix + block.offset, block.outcome)
            weight = block.weight * block.times
            if part.valid is not None:
                numbers[2] += np.count_nonzero(~part.valid)
                weight = weight * part.valid
            gradient += block.matrix @ (weight * part.score)
            hessian += gram(block.matrix, weight * part.curvature)
            rest = block.outcome - part.mean
            numbers[0] += weight @ part.kernel
            numbers[1] += weight @ (rest * rest / np.maximum(self.law.variance(part.mean), 1e-300))
            if len(way):
                escape += self._escape(way @ block.matrix, block)
        return {
            "numbers": numbers,
            "escape": escape,
            "gradient": self.rows.spread(gradient, site, sites),
            **self.rows.scatter("hessian", hessian, site, sites),
        }

    def _escape(self, moved: Array, block: Block) -> Array:
        """Rows that a step along a direction makes less likely, and rows that it makes more likely."""
        low, high = self.law.range
        down = (block.outcome > low) & (moved < -TOUCH)
        up = (block.outcome < high) & (moved > TOUCH)
        return np.array([np.count_nonzero(down | up), np.count_nonzero(np.abs(moved) > 0.1)])

    def _null(self, question: Mapping[str, Array], data: Mapping[str, Array]) -> dict[str, Array]:
        numbers = np.zeros(4)
        for block in self.rows.blocks(data, question["centre"], question["scale"]):
            part = self.law.pieces(question["point"][0] + block.offset, block.outcome)
            weight = block.weight * block.times
            invalid = 0 if part.valid is None else np.count_nonzero(~part.valid)
            parts = (weight @ part.kernel, weight @ part.score, weight @ part.curvature, invalid)
            numbers += np.array(parts)
        return {"numbers": numbers}

    def _last(
        self, question: Mapping[str, Array], data: Mapping[str, Array], site: int, sites: int
    ) -> dict[str, Array]:
        own, phi = self.rows.own(question["point"], site), float(question["dispersion"])
        p = len(own)
        numbers, gradient = np.zeros(3), np.zeros(p)
        expected, meat = np.zeros((p, p)), np.zeros((p, p))
        live = "flat" not in question or not question["flat"][:2, site].any()
        for block in self.rows.blocks(data, question["centre"], question["scale"]):
            eta = own @ block.matrix + block.offset
            alone = np.full_like(eta, float(question["null_point"][0])) + block.offset
            y, w, times = block.outcome, block.weight, block.times
            numbers[1] += times @ self.law.likelihood(y, alone, w, phi)
            numbers[2] += (w * times) @ self.law.pieces(alone, y).kernel
            if not live:
                continue
            numbers[0] += times @ self.law.likelihood(y, eta, w, phi)
            if not self.law.canonical:
                expected += gram(block.matrix, w * times * self.law.information(eta))
            if self.covariance != "model":
                score = w * self.law.pieces(eta, y).score
                meat += gram(block.matrix, times * score * score)
                gradient += block.matrix @ (times * score)
        answer = {"numbers": numbers}
        if not self.law.canonical:
            answer |= self.rows.scatter("expected", expected, site, sites)
        if self.covariance == "site":
            meat = np.outer(gradient, gradient)
        if self.covariance != "model":
            answer |= self.rows.scatter("meat", meat, site, sites)
        return answer

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The next state."""
        phase = int(state["phase"])
        if phase == MOMENTS:
            return {**ready(self.rows, self.law, totals), "phase": np.array(float(CLIMB))}
        if phase == CLIMB:
            return self._learn_climb(state, totals)
        if phase == NULL:
            value, score, curvature, outside = totals["numbers"].tolist()
            height = Height(
                value,
                np.array([score]),
                np.array([[curvature]]),
                outside,
                float(state["dispersion"]),
                abs(float(state["saturated"])),
            )
            below = {k.removeprefix("null_"): v for k, v in state.items() if k.startswith("null_")}
            above = glm_newton.advance(
                below, height, lambda _, g, h, kept: glm_newton.solve_kept(h, g, kept)
            )
            state = {**state, **{f"null_{k}": v for k, v in above.items()}}
            return {
                **state,
                "phase": np.array(float(NULL if above["status"] == CLIMBING else LAST)),
            }
        return {
            **state,
            **{f"last_{k}": v for k, v in totals.items()},
            "phase": np.array(float(DONE)),
        }

    def _learn_climb(
        self, state: Mapping[str, Array], totals: Mapping[str, Array]
    ) -> dict[str, Array]:
        violated, helped = totals["escape"].tolist()
        if helped and not violated:
            return {**state, "status": np.array(SEPARATED), "phase": np.array(float(DONE))}
        value, pearson, outside = totals["numbers"].tolist()
        hessian = self.rows.gather("hessian", totals)
        rows, k = moments_of(state).rows, len(state["centre"])
        scale = np.concatenate([np.ones(len(hessian) - k), state["scale"]])
        free = np.concatenate([np.ones(len(hessian) - k), np.zeros(k)])
        total = float(state["outcomes"][0]) if self.frequencies or self.weights else rows
        l1, l2 = self.penalty.weights(total, scale, free)
        if float(state["iterations"]) == 0 and not l2.any():
            state = {**state, "kept": state["kept"] * glm_newton.dependent(hessian)[0]}
        if float(state["iterations"]) == 0:
            state = {**state, "first": hessian}
        height = Height(
            value - penalty.value(state["trial"], l1, l2),
            totals["gradient"],
            hessian,
            outside,
            max(pearson / max(rows, 1.0), 1e-30) if self.law.dispersed else 1.0,
            abs(float(state["saturated"])),
        )
        after = glm_newton.advance(
            state,
            height,
            lambda at, g, h, kept: penalty.stride(at, g, h, kept, l1, l2),
        )
        if "hessian" not in after:
            raise DataError(
                f"no row or not every row allows the first point of the {self.law.name} model",
                remedy="look at the outcome and the offset: their sizes do not go together",
            )
        if float(after["halvings"]) == 0:
            after |= {"pearson": np.array(pearson), "kernel": np.array(value)}
        if after["status"] == CLIMBING:
            return after
        return self._climbed(after)

    def _climbed(self, state: dict[str, Array]) -> dict[str, Array]:
        """At the top: the dispersion, and what the null model begins with."""
        freedom = float(state["outcomes"][1]) - float(state["kept"].sum())
        phi = 1.0
        if self.law.dispersed:
            phi = float(state["pearson"]) / freedom if freedom > 0 else np.nan
        if not phi > 0:  # as many coefficients as rows, or a perfect fit: told by the result
            phi = 1.0
        null = glm_newton.begin(np.array([level_of(self.law, state["outcomes"])]))
        phase = NULL if self.offset and state["status"] == REACHED else LAST
        return {
            **state,
            **{f"null_{k}": v for k, v in null.items()},
            "dispersion": np.array(phi),
            "freedom": np.array(freedom),
            "phase": np.array(float(phase)),
        }

    def result(self, state: Mapping[str, Array]) -> GLMResult:
        """Estimates and what is told with them."""
        return finished(self, state)
