"""What a Cox model reports: hazard ratios, tests, baseline hazard, concordance, proportionality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from atoll.algorithms.statistics.cox_last import concordance
from atoll.algorithms.statistics.cox_risk import likelihood
from atoll.algorithms.statistics.distributions import chi2_tail
from atoll.algorithms.statistics.glm_design import moments_of
from atoll.algorithms.statistics.glm_inference import Estimates, estimates
from atoll.algorithms.statistics.glm_newton import REACHED, dependent, solve_kept
from atoll.core.layout import Array

if TYPE_CHECKING:
    from atoll.algorithms.statistics.cox import Cox

__all__ = ["Baseline", "CoxResult", "Proportionality", "Test", "finished"]


@dataclass(frozen=True)
class Test:
    """A chi-squared test: statistic, degrees of freedom, p-value."""

    statistic: float
    df: int
    p_value: float


@dataclass(frozen=True)
class Proportionality:
    """Do hazard ratios change over time? Grambsch and Therneau's test (Biometrika 81, 1994).

    Args:
        clock: how time is measured: ``identity``, ``log`` or ``km`` (one less survival).
        statistics: chi-squared with one degree of freedom for each coefficient, ``(k,)``.
        p_values: ``(k,)``.
        together: of all coefficients.
    """

    clock: str
    statistics: Array
    p_values: Array
    together: Test


@dataclass(frozen=True)
class Baseline:
    """Breslow's estimate of the hazard of a row with mean columns, of one stratum.

    Args:
        stratum: its code; NaN where there is one stratum.
        times: of events, ``(g,)``.
        hazard: at each, ``(g,)``.
        cumulative: their sum, ``(g,)``.
    """

    stratum: float
    times: Array
    hazard: Array
    cumulative: Array


@dataclass(frozen=True)
class CoxResult:
    """A fitted proportional hazards model.

    Args:
        table: coefficients; a hazard ratio is the exponential of one.
        ties: how tied events were treated.
        strata: ``none``, ``site``, or the column of strata.
        rows: complete rows.
        events: among them.
        excluded: rows left out for missing values.
        log_likelihood: partial, at the maximum.
        null_log_likelihood: partial, without effects.
        likelihood_ratio: test of all coefficients.
        score: the same.
        wald: the same.
        aic: ``2 p - 2 log_likelihood``.
        concordance: share of comparable pairs in the right order; undecided ones count half.
        concordance_error: the true share, undecided pairs resolved, lies within this of it.
        proportionality: tests by clock; none where there is no maximum.
        baseline: by stratum; empty where strata are sites, whose hazards stay there.
        mean: of each column, to which the baseline belongs, ``(k,)``.
        iterations: points that were accepted.
        converged: whether this is the maximum.
        dropped: names of columns that are combinations of others.
        separated: names of columns whose coefficients are infinite.
        notes: what a reader has to know, in words.
    """

    table: Estimates
    ties: str
    strata: str
    rows: int
    events: int
    excluded: int
    log_likelihood: float
    null_log_likelihood: float
    likelihood_ratio: Test
    score: Test
    wald: Test
    aic: float
    concordance: float
    concordance_error: float
    proportionality: tuple[Proportionality, ...]
    baseline: tuple[Baseline, ...]
    mean: Array
    iterations: int
    converged: bool
    dropped: tuple[str, ...]
    separated: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def hazard_ratios(self) -> Array:
        """Exponentials of the coefficients, ``(k,)``."""
        result: Array = np.exp(self.table.values)
        return result


def _test(statistic: float, df: int) -> Test:
    return Test(
        statistic, df, chi2_tail(statistic, df) if df and np.isfinite(statistic) else np.nan
    )


def finished(model: Cox, state: Mapping[str, Array]) -> CoxResult:
    """Read the state of a finished fit."""
    found, names, kept = moments_of(state), model.design.names, state["kept"]
    happened, moved, _ = (int(v) for v in state["happened"])
    notes = found.notes(model.columns())
    if moved:
        notes.append(f"{moved} times are not on the axis and were rounded")
    made = dependent(state["first"])[1]
    dropped = tuple(names[j] for j in made)
    for j, parts in made.items():
        others = ", ".join(names[i] for i in parts)
        why = f"a combination of {others}" if parts else "constant wherever it is compared"
        notes.append(f"column {names[j]!r} is left out: it is {why}")
    live = "last_pairs" in state or "last_pairs_events" in state
    separated: tuple[str, ...] = ()
    back = np.diag(1.0 / state["scale"])
    values = np.where(kept > 0, back @ (state["point"] * kept), np.nan)
    inverse = np.full((len(kept), len(kept)), np.nan)
    if live:
        inverse = solve_kept(state["hessian"], np.diag(kept), kept)
        inverse = 0.5 * (inverse + inverse.T)
    else:
        gone = state["runaway"] > 0
        separated = tuple(n for n, g in zip(names, gone, strict=True) if g)
        values = np.where(gone, np.copysign(np.inf, state["step"]), np.nan)
        notes.append(
            f"monotone likelihood: {', '.join(separated)} order the events with certainty, so there "
            "is no maximum; leave columns out"
        )
    if live and state["status"] != REACHED:
        notes.append("no convergence; these are the numbers of the last point")
    spread = back @ inverse @ back
    spread[kept == 0] = spread[:, kept == 0] = np.nan
    value, df = float(state["value"]) if live else np.nan, int(kept.sum())
    wald = float(state["point"] @ state["hessian"] @ state["point"]) if live else np.nan
    c, error = _concordance(state) if live else (np.nan, np.nan)
    return CoxResult(
        table=estimates(names, values, spread, model.level),
        ties=model.ties,
        strata=model.strata,
        rows=int(found.rows),
        events=happened,
        excluded=int(found.excluded),
        log_likelihood=value,
        null_log_likelihood=float(state["null"]),
        likelihood_ratio=_test(2 * (value - float(state["null"])), df),
        score=_test(float(state["score"]), df),
        wald=_test(wald, df),
        aic=2 * df - 2 * value,
        concordance=c,
        concordance_error=error,
        proportionality=_proportional(model, state, inverse) if live else (),
        baseline=_baseline(model, state) if live and model.strata != "site" else (),
        mean=state["centre"],
        iterations=int(state["iterations"]),
        converged=bool(live and state["status"] == REACHED),
        dropped=dropped,
        separated=separated,
        notes=tuple(notes),
    )


def _concordance(state: Mapping[str, Array]) -> tuple[float, float]:
    if "last_pairs" in state:
        right, undecided, all_pairs = state["last_pairs"].tolist()
    else:
        pairs = concordance(state["last_pairs_events"], state["last_pairs_risk"])
        right, undecided, all_pairs = pairs.tolist()
    if not all_pairs:
        return np.nan, np.nan
    return (right + undecided / 2) / all_pairs, undecided / 2 / all_pairs


def _proportional(
    model: Cox, state: Mapping[str, Array], inverse: Array
) -> tuple[Proportionality, ...]:
    """The tests, from sums over events of clock times residual."""
    events = float(state["happened"][0])
    found: list[Proportionality] = []

    def test(clock: str, slope: Array, spread: float) -> None:
        if not spread > 0:
            return
        scaled, variance = inverse @ slope, np.diag(inverse)
        good = variance > 0
        one = np.full(len(slope), np.nan)
        one[good] = events * scaled[good] ** 2 / (variance[good] * spread)
        p = np.array([chi2_tail(s, 1) if np.isfinite(s) else np.nan for s in one])
        all_of_them = events * float(slope @ inverse @ slope) / spread
        found.append(Proportionality(clock, one, p, _test(all_of_them, int(state["kept"].sum()))))

    if model.strata == "site":
        plain, *clocks = state["last_residuals"]
        for clock, slope, (first, second) in zip(
            ("identity", "log"), clocks, state["last_clocks"], strict=True
        ):
            test(clock, slope - first / events * plain, float(second - first * first / events))
        return tuple(found)
    total = {n: state[f"look_{n}"] for n in ("risk", "tied", "sums", "events")}
    residual, d = likelihood(total, state["point"], model.ties)[3], total["events"]
    size = len(model.axis.points)
    times = model.axis.points[state["grid"].astype(np.int64) % size]
    clocks_by_name = {"identity": times, "log": np.log(np.maximum(times, 1e-12))}
    if not len(model.strata_levels):
        at_risk = state["last_pairs_risk"].sum(axis=1)
        clocks_by_name["km"] = 1 - np.cumprod(1 - d / at_risk)
    for clock, g in clocks_by_name.items():
        mean = g @ d / events
        test(clock, (g - mean) @ residual, float((g - mean) ** 2 @ d))
    return tuple(found)


def _baseline(model: Cox, state: Mapping[str, Array]) -> tuple[Baseline, ...]:
    size, codes = len(model.axis.points), state["grid"].astype(np.int64)
    hazard = state["look_events"] / state["look_risk"][:, 0]
    result = []
    for i, level in enumerate(model.strata_levels if len(model.strata_levels) else (np.nan,)):
        part = codes // size == i
        times = model.axis.points[codes[part] % size]
        result.append(Baseline(float(level), times, hazard[part], np.cumsum(hazard[part])))
    return tuple(result)
