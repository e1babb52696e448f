"""Negative binomial regression whose dispersion is estimated as well, by maximum likelihood.

Counts with mean mu and variance ``mu + alpha mu^2`` (NB2; Lawless, Canadian J. Statistics 15, 1987). A
Poisson model gives the first point; then Newton's method moves coefficients and ``log alpha`` together,
so the standard errors know that alpha is an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from atoll.algorithms.statistics import glm_newton
from atoll.algorithms.statistics.families_special import digamma, gammaln, trigamma
from atoll.algorithms.statistics.glm import CLIMB, DONE, GLM, MOMENTS
from atoll.algorithms.statistics.glm_design import gram, moments_of
from atoll.algorithms.statistics.glm_inference import Estimates, estimates
from atoll.algorithms.statistics.glm_newton import CLIMBING, REACHED, Height, solve_kept
from atoll.algorithms.statistics.glm_result import dropped_columns, flat_notes, infinite, runaways
from atoll.algorithms.statistics.glm_rows import Intercept
from atoll.core.layout import Array

__all__ = ["NegativeBinomialRegression", "NegativeBinomialResult"]

JOINT = 10
LEAST = math.log(1e-7)
"""Below this ``log alpha`` counts are as good as Poisson, and the formulas lose their digits."""


@dataclass(frozen=True)
class NegativeBinomialResult:
    """A negative binomial model; the last line of ``table`` is alpha.

    Args:
        table: coefficients and alpha.
        site_intercepts: with a fixed intercept for each site, these.
        alpha: dispersion of the counts.
        rows: complete rows.
        excluded: rows left out for missing values.
        sites: sites with a complete row.
        log_likelihood: with all constants.
        aic: ``2 p - 2 log_likelihood``; alpha is one of the p.
        bic: ``p log(rows) - 2 log_likelihood``.
        iterations: points accepted after the Poisson model.
        converged: whether this is the maximum.
        dropped: names of columns that are combinations of others.
        separated: names of columns whose coefficients are infinite.
        notes: what a reader has to know, in words.
    """

    table: Estimates
    site_intercepts: Array | None
    alpha: float
    rows: float
    excluded: int
    sites: int
    log_likelihood: float
    aic: float
    bic: float
    iterations: int
    converged: bool
    dropped: tuple[str, ...]
    separated: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NegativeBinomialRegression:
    """Counts with a dispersion to be estimated; options as those of :class:`GLM`."""

    outcome: str
    features: Sequence[str]
    categories: Mapping[str, Sequence[float]] = field(default_factory=dict)
    intercept: Intercept = "common"
    frequencies: str = ""
    offset: str = ""
    level: float = 0.95

    @cached_property
    def poisson(self) -> GLM:
        """The model to begin with."""
        return GLM(
            self.outcome,
            self.features,
            family="poisson",
            categories=self.categories,
            intercept=self.intercept,
            frequencies=self.frequencies,
            offset=self.offset,
            level=self.level,
        )

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        return self.poisson.columns()

    def start(self) -> Mapping[str, Array]:
        """Before the first round."""
        return self.poisson.start()

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """The Poisson model's question, or a point with ``log alpha`` at its end."""
        if int(state["phase"]) != JOINT:
            return self.poisson.ask(state)
        names = ("phase", "centre", "scale", "flat")
        return {"point": state["trial"], **{n: state[n] for n in names if n in state}}

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """What a site adds: log-likelihood, gradient and second derivatives."""
        if int(question["phase"]) != JOINT:
            return self.poisson.sums(question, data, site=site, sites=sites)
        if "flat" in question and question["flat"][:2, site].any():
            data = {name: values[:0] for name, values in data.items()}
        rows, alpha = self.poisson.rows, math.exp(question["point"][-1])
        own = rows.own(question["point"][:-1], site)
        gradient, hessian = np.zeros(len(own)), np.zeros((len(own), len(own)))
        numbers, cross = np.zeros(4), np.zeros(len(own))
        for block in rows.blocks(data, question["centre"], question["scale"]):
            part = _row(own @ block.matrix + block.offset, block.outcome, alpha)
            times = block.times
            numbers += np.array([times @ part[i] for i in (0, 3, 5)] + [part[6]])
            gradient += block.matrix @ (times * part[1])
            hessian += gram(block.matrix, times * part[2])
            cross += block.matrix @ (times * part[4])
        return {
            "numbers": numbers,
            "gradient": rows.spread(gradient, site, sites),
            "mixed": rows.spread(cross, site, sites),
            **rows.scatter("hessian", hessian, site, sites),
        }

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The next state."""
        if int(state["phase"]) != JOINT:
            state = self.poisson.learn(state, totals)
            # With the Poisson maximum in hand the rest of that analysis is not needed.
            if int(state["phase"]) in (MOMENTS, CLIMB, DONE):
                return state
            return self._begin(state)
        value, slope, curve, outside = totals["numbers"].tolist()
        hessian = self.poisson.rows.gather("hessian", totals)
        mixed = totals["mixed"][:, None]
        whole = np.block([[hessian, mixed], [mixed.T, np.array([[curve]])]])
        gradient = np.append(totals["gradient"], slope)
        state = {**state, "beyond": np.array(float(state["trial"][-1] < LEAST))}
        if state["beyond"]:
            return {**state, "phase": np.array(float(DONE)), "status": np.array(glm_newton.STUCK)}
        height = Height(value, gradient, whole, outside, size=abs(value))
        after = glm_newton.advance(state, height, _stride)
        done = after["status"] != CLIMBING
        return {**after, "phase": np.array(float(DONE if done else JOINT))}

    def _begin(self, state: Mapping[str, Array]) -> Mapping[str, Array]:
        """From the Poisson maximum, with an alpha that explains its chi-squared."""
        rows, mean = float(state["outcomes"][1]), float(state["outcomes"][2] / state["outcomes"][0])
        alpha = min(max((float(state["pearson"]) / rows - 1) / mean, 0.05), 5.0)
        climb = glm_newton.begin(np.append(state["point"], math.log(alpha)))
        kept = np.append(state["kept"], 1.0)
        return {**state, **climb, "kept": kept, "phase": np.array(float(JOINT))}

    def result(self, state: Mapping[str, Array]) -> NegativeBinomialResult:
        """Estimates and what is told with them."""
        rows, found = self.poisson.rows, moments_of(state)
        heads = len(state["point"]) - len(state["centre"]) - (0 if "beyond" not in state else 1)
        heads_names = tuple(f"intercept[{i}]" for i in range(heads))
        names = (
            *(("intercept",) if rows.intercept == "common" else heads_names),
            *rows.design.names,
        )
        p = len(names)
        notes = found.notes(rows.columns) + flat_notes(state)
        dropped = dropped_columns(state, names, heads)
        notes += list(dropped.values())
        values, spread = np.full(p + 1, np.nan), np.full((p + 1, p + 1), np.nan)
        separated: tuple[str, ...] = ()
        if "beyond" not in state:
            separated = runaways(state, names, heads)
            values[:-1] = infinite(values[:-1], state["step"], names, separated)
            notes.append(f"separation: {', '.join(separated)}; the likelihood has no maximum")
        elif state["beyond"]:
            notes.append("counts vary no more than Poisson's: alpha goes to 0; use a Poisson model")
        else:
            values, spread = self._estimates(state, heads)
            if state["status"] != REACHED:
                notes.append("no convergence; these are the numbers of the last point")
        count = float(state["kept"].sum()) if "beyond" in state else np.nan
        loglik = float(state["value"]) if "beyond" in state and not state["beyond"] else np.nan
        shown = slice(heads if rows.intercept == "site" else 0, None)
        n = float(state["outcomes"][1])
        return NegativeBinomialResult(
            table=estimates(
                (*names, "alpha")[shown], values[shown], spread[shown, shown], self.level
            ),
            site_intercepts=values[:heads] if rows.intercept == "site" else None,
            alpha=float(values[-1]),
            rows=n,
            excluded=int(found.excluded),
            sites=int(found.sites),
            log_likelihood=loglik,
            aic=2 * count - 2 * loglik,
            bic=count * math.log(n) - 2 * loglik,
            iterations=int(state["iterations"]),
            converged=bool(state["status"] == REACHED),
            dropped=tuple(dropped),
            separated=separated,
            notes=tuple(notes),
        )

    def _estimates(self, state: Mapping[str, Array], heads: int) -> tuple[Array, Array]:
        """Coefficients and alpha on their own scales, and their covariance."""
        kept, point = state["kept"], state["point"]
        alpha = math.exp(point[-1])
        size = len(point)
        back = np.zeros((size, size))
        back[:-1, :-1] = self.poisson.rows.back(size - 1, state["centre"], state["scale"])
        values = back @ (point * kept)
        values[-1], back[-1, -1] = alpha, alpha  # d alpha = alpha d log(alpha)
        spread = back @ solve_kept(state["hessian"], np.diag(kept), kept) @ back.T
        gone = kept == 0
        values[gone] = np.nan
        if "flat" in state:
            values[:heads] = np.where(state["flat"][0] > 0, -np.inf, values[:heads])
        spread[gone] = spread[:, gone] = np.nan
        return values, 0.5 * (spread + spread.T)


def _stride(point: Array, gradient: Array, hessian: Array, kept: Array) -> Array:
    """Newton's step; where the likelihood is not concave, coefficients and alpha move apart."""
    index = np.flatnonzero(kept)
    part = hessian[np.ix_(index, index)]
    scale = np.sqrt(np.abs(np.diag(part)))
    concave = bool((np.diag(part) > 0).all()) and bool(
        np.linalg.eigvalsh(part / np.outer(scale, scale))[0] > 1e-12
    )
    if not concave:
        hessian = hessian.copy()
        hessian[-1, :-1] = hessian[:-1, -1] = 0.0
        hessian[-1, -1] = max(abs(hessian[-1, -1]), abs(gradient[-1]), 1e-6)
    step = solve_kept(hessian, gradient * kept, kept)
    return step / max(1.0, abs(float(step[-1])) / 2)  # log alpha moves at most 2 at a time


def _row(
    eta: Array, y: Array, alpha: float
) -> tuple[Array, Array, Array, Array, Array, Array, int]:
    """Log-likelihood of rows and derivatives by eta and by a = log(alpha), the second ones negative.

    Returns:
        l, dl/deta, -d2l/deta2, dl/da, -d2l/deta da, -d2l/da2, and how many rows are impossible.
    """
    valid = eta < 50.0
    mean = np.exp(np.where(valid, eta, 0.0))
    size, wide = 1.0 / alpha, 1.0 + alpha * mean
    log_wide, rest = np.log(wide), (y - mean) / wide
    zero = np.array(size)
    value = gammaln(y + size) - gammaln(zero) - gammaln(y + 1)
    value += y * (eta + math.log(alpha)) - (y + size) * log_wide
    inner = log_wide - digamma(y + size) + digamma(zero)
    first = size * size * inner + rest / alpha
    second = -2 * size**3 * inner + size**2 * (
        mean / wide + size**2 * (trigamma(y + size) - trigamma(zero))
    )
    second -= rest * (1 + 2 * alpha * mean) / (alpha * alpha * wide)
    return (
        value,
        rest,
        mean * (1 + alpha * y) / (wide * wide),
        alpha * first,
        alpha * rest * mean / wide,
        -(alpha * alpha * second + alpha * first),
        int(np.count_nonzero(~valid)),
    )
