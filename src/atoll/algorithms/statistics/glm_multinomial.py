"""Multinomial logistic regression over sites, equal to that of the pooled rows.

One set of coefficients for each level of the outcome but the first; the climb and its sums are those of
:mod:`~atoll.algorithms.statistics.glm` (McCullagh and Nelder 1989, chapter 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from atoll.algorithms.statistics import glm_newton, penalty
from atoll.algorithms.statistics.glm import NO_PENALTY, PATIENCE, SEPARATED, TOUCH
from atoll.algorithms.statistics.glm_design import Design, gram, misfit, moments_of
from atoll.algorithms.statistics.glm_inference import Estimates, estimates
from atoll.algorithms.statistics.glm_newton import CLIMBING, REACHED, Height, solve_kept
from atoll.algorithms.statistics.glm_rows import Block, Rows
from atoll.algorithms.statistics.penalty import Penalty
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array

__all__ = ["Multinomial", "MultinomialResult"]

MOMENTS, CLIMB, DONE = range(3)


@dataclass(frozen=True)
class MultinomialResult:
    """A fitted multinomial model.

    Args:
        levels: of the outcome; the first is the reference.
        tables: for each other level its coefficients, in order.
        covariance: of all coefficients, level by level.
        rows: complete rows.
        excluded: rows left out for missing values.
        sites: sites with a complete row.
        log_likelihood: of the model.
        null_log_likelihood: of the shares alone.
        aic: ``2 p - 2 log_likelihood``.
        bic: ``p log(rows) - 2 log_likelihood``.
        r_squared: McFadden's.
        iterations: points that were accepted.
        converged: whether this is the maximum.
        dropped: names of columns that are combinations of others.
        separated: whether the likelihood has no maximum.
        notes: what a reader has to know, in words.
    """

    levels: tuple[float, ...]
    tables: tuple[Estimates, ...]
    covariance: Array
    rows: float
    excluded: int
    sites: int
    log_likelihood: float
    null_log_likelihood: float
    aic: float
    bic: float
    r_squared: float
    iterations: int
    converged: bool
    dropped: tuple[str, ...]
    separated: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Multinomial:
    """Multinomial logistic regression.

    Args:
        outcome: column of codes.
        levels: all codes; the first is the reference.
        features: columns that explain it.
        categories: all levels of explaining columns that hold codes.
        intercept: whether there is one.
        frequencies: column that says how many equal rows a row stands for.
        penalty: ridge, lasso or elastic net; intercepts are free of it.
        level: coverage of intervals.
    """

    outcome: str
    levels: Sequence[float]
    features: Sequence[str]
    categories: Mapping[str, Sequence[float]] = field(default_factory=dict)
    intercept: bool = True
    frequencies: str = ""
    penalty: Penalty = NO_PENALTY
    level: float = 0.95

    def __post_init__(self) -> None:
        if len(set(self.levels)) < max(2, len(self.levels)):
            raise JobError(f"outcome {self.outcome!r} needs two or more different levels")
        if self.outcome in self.features:
            raise JobError(f"outcome {self.outcome!r} is among the features")

    @cached_property
    def rows(self) -> Rows:
        """The columns and their parts."""
        return Rows(
            Design.of(self.features, self.categories),
            self.outcome,
            "common" if self.intercept else "none",
            frequencies=self.frequencies,
        )

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        return self.rows.columns

    def start(self) -> Mapping[str, Array]:
        """Before the first round."""
        return {"phase": np.array(float(MOMENTS))}

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """The point to be looked at."""
        phase = int(state["phase"])
        if phase == DONE:
            return None
        if phase == MOMENTS:
            return {"phase": state["phase"]}
        patient = float(state["iterations"]) >= PATIENCE and not self.penalty.alpha
        return {
            "phase": state["phase"],
            "point": state["trial"],
            "direction": state["step"] if patient else np.zeros(0),
            "centre": state["centre"],
            "scale": state["scale"],
        }

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """What a site adds."""
        if int(question["phase"]) == MOMENTS:
            k = len(self.rows.design.names)
            counts = np.zeros(len(self.levels))
            answer = self.rows.moments(data)
            for block in self.rows.blocks(data, np.zeros(k), np.ones(k)):
                counts += self._members(block) @ block.times
            return answer | {"classes": counts}
        others = len(self.levels) - 1
        point = question["point"].reshape(others, -1)
        way = question["direction"].reshape(others, -1)
        p = point.shape[1]
        gradient, hessian = np.zeros((others, p)), np.zeros((others, p, others, p))
        value, escape = np.zeros(()), np.zeros(2)
        for block in self.rows.blocks(data, question["centre"], question["scale"]):
            member = self._members(block)
            eta = np.vstack([np.zeros(block.matrix.shape[1]), point @ block.matrix])
            top = eta.max(axis=0)
            share = np.exp(eta - top)
            total = share.sum(axis=0)
            share /= total
            value = value + block.times @ ((member * eta).sum(axis=0) - top - np.log(total))
            gradient += ((member - share)[1:] * block.times) @ block.matrix.T
            for a in range(others):
                for b in range(a + 1):
                    weight = block.times * share[a + 1]
                    weight = weight * (1 - share[a + 1] if a == b else share[b + 1])
                    part = gram(block.matrix, weight) * (1 if a == b else -1)
                    hessian[a, :, b] += part
                    if a != b:
                        hessian[b, :, a] += part
            if way.size:
                moved = np.vstack([np.zeros(block.matrix.shape[1]), way @ block.matrix])
                lead = (member * moved).sum(axis=0) - moved
                escape += [
                    np.count_nonzero((lead < -TOUCH).any(axis=0)),
                    np.count_nonzero(lead > 0.1),
                ]
        return {
            "value": value,
            "escape": escape,
            "gradient": gradient.ravel(),
            "hessian": hessian.reshape(others * p, others * p),
        }

    def _members(self, block: Block) -> Array:
        """Which level each row has, ``(levels, rows)`` of zeros and ones."""
        member = np.stack([block.outcome == level for level in self.levels]).astype(np.float64)
        if not member.any(axis=0).all():
            odd = float(block.outcome[~member.any(axis=0)][0])
            raise misfit(
                self.outcome,
                f"holds {odd:g}, which is not among its levels",
                "declare all levels that occur anywhere",
            )
        return member

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The next state."""
        if int(state["phase"]) == MOMENTS:
            return self._ready(totals)
        violated, helped = totals["escape"].tolist()
        if helped and not violated:
            return {**state, "status": np.array(SEPARATED), "phase": np.array(float(DONE))}
        hessian, others = totals["hessian"], len(self.levels) - 1
        p = len(hessian) // others
        head = np.ones(p - len(state["scale"]))
        scale = np.tile(np.concatenate([head, state["scale"]]), others)
        free = np.tile(np.concatenate([head, np.zeros(len(state["scale"]))]), others)
        l1, l2 = self.penalty.weights(float(state["classes"].sum()), scale, free)
        if float(state["iterations"]) == 0 and not l2.any():
            kept = glm_newton.dependent(hessian[:p, :p])[0]
            state = {**state, "kept": np.tile(kept, others)}
        height = Height(
            float(totals["value"]) - penalty.value(state["trial"], l1, l2),
            totals["gradient"],
            hessian,
            size=float(state["classes"].sum()),
        )
        after = glm_newton.advance(
            state, height, lambda at, g, h, kept: penalty.stride(at, g, h, kept, l1, l2)
        )
        if float(after["halvings"]) == 0:
            after["loglik"] = totals["value"]
        done = after["status"] != CLIMBING
        return {**after, "phase": np.array(float(DONE if done else CLIMB))}

    def _ready(self, totals: Mapping[str, Array]) -> dict[str, Array]:
        found = moments_of(totals)
        if not found.rows:
            raise DataError("no site has a complete row", remedy="leave out columns that are empty")
        for level, count in zip(self.levels, totals["classes"], strict=True):
            if not count:
                raise DataError(
                    f"outcome {self.outcome!r} is never {level:g} at any site",
                    remedy="leave this level out",
                )
        others, k = len(self.levels) - 1, len(self.rows.design.names)
        point = np.zeros((others, k + self.intercept))
        if self.intercept:
            point[:, 0] = np.log(totals["classes"][1:] / totals["classes"][0])
        return {
            **totals,
            **glm_newton.begin(point.ravel()),
            "centre": self.rows.centre(found),
            "scale": found.scale,
            "phase": np.array(float(CLIMB)),
        }

    def result(self, state: Mapping[str, Array]) -> MultinomialResult:
        """Estimates and what is told with them."""
        found, others = moments_of(state), len(self.levels) - 1
        names = (*(("intercept",) * self.intercept), *self.rows.design.names)
        p, kept = len(names), state["kept"]
        notes = found.notes(self.rows.columns)
        dropped = tuple(n for n, keep in zip(names, kept[:p], strict=True) if not keep)
        notes += [f"column {n!r} is left out: others determine it" for n in dropped]
        back = np.kron(np.eye(others), self.rows.back(p, state["centre"], state["scale"]))
        separated = bool(state["status"] == SEPARATED)
        values = np.where(kept > 0, back @ (state["point"] * kept), np.nan)
        spread = np.full((others * p, others * p), np.nan)
        if separated:
            values[:] = np.nan
            notes.append("separation: columns tell some outcomes with certainty; use a penalty")
        elif self.penalty.alpha:
            notes.append("penalised coefficients are biased on purpose: no standard errors")
        else:
            spread = back @ solve_kept(state["hessian"], np.diag(kept), kept) @ back.T
            spread[kept == 0] = spread[:, kept == 0] = np.nan
        if state["status"] == glm_newton.STUCK:
            notes.append("no convergence; these are the numbers of the last point")
        loglik = math.nan if separated else float(state["loglik"])
        classes = state["classes"]
        null = float(classes @ np.log(classes / classes.sum()))
        parts = [slice(i * p, (i + 1) * p) for i in range(others)]
        return MultinomialResult(
            levels=tuple(self.levels),
            tables=tuple(estimates(names, values[i], spread[i, i], self.level) for i in parts),
            covariance=spread,
            rows=float(classes.sum()),
            excluded=int(found.excluded),
            sites=int(found.sites),
            log_likelihood=loglik,
            null_log_likelihood=null,
            aic=2 * float(kept.sum()) - 2 * loglik,
            bic=math.log(float(classes.sum())) * float(kept.sum()) - 2 * loglik,
            r_squared=1 - loglik / null,
            iterations=int(state["iterations"]),
            converged=bool(state["status"] == REACHED),
            dropped=dropped,
            separated=separated,
            notes=tuple(notes),
        )
