"""What a generalised linear model reports: coefficients, fit, and notes on what was odd."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from atoll.algorithms.statistics.glm_design import moments_of
from atoll.algorithms.statistics.glm_inference import Estimates, estimates
from atoll.algorithms.statistics.glm_newton import REACHED, STUCK, dependent, solve_kept
from atoll.core.errors import DataError
from atoll.core.layout import Array

if TYPE_CHECKING:
    from atoll.algorithms.statistics.glm import GLM

__all__ = ["GLMResult", "finished"]


@dataclass(frozen=True)
class GLMResult:
    """A fitted generalised linear model.

    Args:
        family: its distribution.
        link: what of the mean is linear.
        table: coefficients of intercept and features, with errors, tests, intervals.
        site_intercepts: with a fixed intercept for each site, these, in the order of the sites.
        rows: complete rows (total of frequencies, where given).
        excluded: rows left out for missing values.
        sites: sites with a complete row.
        df_model: estimated coefficients without the intercept.
        df_residual: rows less estimated coefficients.
        dispersion: phi: Pearson's chi-squared over ``df_residual``; 1 for binomial and counts.
        deviance: of the model.
        null_deviance: of the model of an intercept (and the offset) alone.
        log_likelihood: with all constants; for gaussian at the most likely variance.
        null_log_likelihood: of the model of an intercept alone, at the same dispersion.
        aic: ``2 p - 2 log_likelihood``.
        bic: ``p log(rows) - 2 log_likelihood``.
        r_squared: gaussian: explained variance; else McFadden's.
        covariance: how the standard errors came about.
        iterations: points that were accepted.
        converged: whether this is the maximum.
        dropped: names of columns that are combinations of others.
        separated: names of columns whose coefficients are infinite.
        notes: what a reader has to know, in words.
    """

    family: str
    link: str
    table: Estimates
    site_intercepts: Array | None
    rows: float
    excluded: int
    sites: int
    df_model: float
    df_residual: float
    dispersion: float
    deviance: float
    null_deviance: float
    log_likelihood: float
    null_log_likelihood: float
    aic: float
    bic: float
    r_squared: float
    covariance: str
    iterations: int
    converged: bool
    dropped: tuple[str, ...]
    separated: tuple[str, ...]
    notes: tuple[str, ...]


LINKS = {
    "gaussian": "identity",
    "binomial": "logit",
    "poisson": "log",
    "negative_binomial": "log",
    "gamma": "log",
}


def finished(model: GLM, state: Mapping[str, Array]) -> GLMResult:
    """Read the state of a finished fit.

    Raises:
        DataError: the outcome of a gaussian model never varies.
    """
    rows, law, found = model.rows, model.law, moments_of(state)
    k, point, kept = len(state["centre"]), state["point"], state["kept"]
    heads = len(point) - k
    names = (*(f"intercept[{i}]" for i in range(heads)), *rows.design.names)
    if rows.intercept == "common":
        names = ("intercept", *rows.design.names)
    notes = found.notes(rows.columns)
    notes += flat_notes(state)
    dropped = dropped_columns(state, names, heads)
    notes += list(dropped.values())
    separated: tuple[str, ...] = ()
    if "dispersion" not in state:
        separated = runaways(state, names, heads)
        notes.append(
            f"separation: {', '.join(separated)} tell{'s' * (len(separated) == 1)} the outcome of some rows "
            "with certainty, so the likelihood has no maximum; leave columns out or use a penalty"
        )
    fit = _fit_numbers(law.name, state)
    alone = law.name == "gaussian" and rows.intercept != "none" and not model.offset
    if alone and _nothing(state, fit["null_deviance"]):
        raise DataError(f"outcome {rows.outcome!r} is the same in all rows of all sites")
    inverse, fault = covariance(model, state, fit["phi"])
    notes += [fault] if fault else []
    back = rows.back(len(point), state["centre"], state["scale"])
    values = np.where(kept > 0, back @ (point * kept), np.nan)
    if separated:
        values = infinite(values, state["step"], names, separated)
    if "flat" in state:
        values[:heads] = np.select(
            [state["flat"][0] > 0, state["flat"][1] > 0], [-np.inf, np.inf], values[:heads]
        )
    spread = back @ inverse @ back.T
    gone = kept == 0
    spread[gone] = spread[:, gone] = np.nan
    shown = slice(heads if rows.intercept == "site" else 0, None)
    freedom = float(state["outcomes"][1]) - float(kept.sum())
    table = estimates(
        names[shown],
        values[shown],
        spread[shown, shown],
        model.level,
        freedom if law.name == "gaussian" and model.covariance == "model" and freedom > 0 else None,
    )
    if state["status"] == STUCK:
        notes.append(
            f"no convergence in {int(state['iterations'])} rounds; these are the numbers of the last point"
        )
    return GLMResult(
        family=law.name,
        link=model.link or LINKS[law.name],
        table=table,
        site_intercepts=values[:heads] if rows.intercept == "site" else None,
        rows=float(state["outcomes"][1]),
        excluded=int(found.excluded),
        sites=int(found.sites),
        df_model=float(kept.sum()) - float(rows.intercept != "none" and 1),
        df_residual=freedom,
        dispersion=0.0 if perfect(model, state) else fit["phi"],
        deviance=fit["deviance"],
        null_deviance=fit["null_deviance"],
        log_likelihood=fit["loglik"],
        null_log_likelihood=fit["null_loglik"],
        aic=2 * fit["p"] - 2 * fit["loglik"],
        bic=math.log(max(float(state["outcomes"][1]), 1)) * fit["p"] - 2 * fit["loglik"],
        r_squared=fit["r_squared"],
        covariance=model.covariance,
        iterations=int(state["iterations"]),
        converged=bool(state["status"] == REACHED),
        dropped=tuple(dropped),
        separated=separated,
        notes=tuple(notes),
    )


def flat_notes(state: Mapping[str, Array]) -> list[str]:
    """Sites whose own intercept is infinite."""
    if "flat" not in state:
        return []
    count = int(state["flat"][:2].sum())
    text = f"{count} sites have one outcome only: their intercepts are infinite, their rows tell no more"
    return [text] if count else []


def dropped_columns(
    state: Mapping[str, Array], names: tuple[str, ...], heads: int
) -> dict[str, str]:
    """Notes on columns left out because others determine them."""
    notes: dict[str, str] = {}
    if "first" not in state:
        return notes
    for j, parts in dependent(state["first"])[1].items():
        if j < heads or state["kept"][j]:
            continue
        others = [names[i] for i in parts if i >= heads]
        why = f"a combination of {', '.join(others)}" if others else "constant"
        if heads > 1 and not others:
            why = "constant within each site"
        notes[names[j]] = f"column {names[j]!r} is left out: it is {why}"
    return notes


def runaways(state: Mapping[str, Array], names: tuple[str, ...], heads: int) -> tuple[str, ...]:
    """Names of the columns along which the likelihood rises for ever."""
    spread = np.sqrt(np.diag(state["first"]))
    moved = np.abs(state["step"]) * spread
    far = moved > 1e-3 * moved[heads:].max(initial=0.0)
    found = tuple(names[j] for j in range(heads, len(names)) if far[j])
    return found or tuple(names[j] for j in range(heads) if moved[j] > 0)


def infinite(
    values: Array, step: Array, names: tuple[str, ...], separated: tuple[str, ...]
) -> Array:
    """Coefficients without a maximum: infinite where the likelihood rises, unknown elsewhere."""
    result = np.full(len(values), np.nan)
    for j, name in enumerate(names):
        if name in separated:
            result[j] = math.copysign(math.inf, step[j])
    return result


def _fit_numbers(family: str, state: Mapping[str, Array]) -> dict[str, float]:
    """Deviances, log-likelihoods and what follows from them; NaN where there is no maximum."""
    count = float(state["kept"].sum()) + (
        float(state["flat"][:2].sum()) if "flat" in state else 0.0
    )
    if "dispersion" not in state:
        keys = ("phi", "deviance", "null_deviance", "loglik", "null_loglik", "r_squared")
        return {**dict.fromkeys(keys, math.nan), "p": count}
    rows, phi = float(state["outcomes"][1]), float(state["dispersion"])
    loglik, null_loglik, null_kernel = state["last_numbers"].tolist()
    saturated, pearson = float(state["saturated"]), float(state["pearson"])
    deviance = pearson if family == "gaussian" else 2 * (saturated - float(state["kernel"]))
    null_deviance = 2 * (saturated - null_kernel)
    if family == "gaussian":
        loglik = _concentrated(loglik, deviance, rows, phi)
        null_loglik = _concentrated(null_loglik, null_deviance, rows, phi)
        r_squared = 1 - deviance / null_deviance if null_deviance > 0 else math.nan
    else:
        r_squared = 1 - loglik / null_loglik if null_loglik else math.nan
    return {
        "phi": phi,
        "deviance": max(deviance, 0.0),
        "null_deviance": max(null_deviance, 0.0),
        "loglik": loglik,
        "null_loglik": null_loglik,
        "r_squared": r_squared,
        "p": count,
    }


def _concentrated(loglik: float, squares: float, rows: float, phi: float) -> float:
    """A normal log-likelihood moved from variance ``phi`` to the most likely one."""
    best = squares / rows
    if best <= 0:
        return math.inf
    return loglik + 0.5 * (squares / phi + rows * math.log(phi / best) - rows)


def perfect(model: GLM, state: Mapping[str, Array]) -> bool:
    """Whether every outcome is its own prediction but for rounding: there is no variance to estimate."""
    return "pearson" in state and model.law.dispersed and _nothing(state, float(state["pearson"]))


def _nothing(state: Mapping[str, Array], squares: float) -> bool:
    """Whether squares of what is left over of outcomes are those of rounding."""
    weight, _, total, *_ = state["outcomes"].tolist()
    return bool(squares <= 1e-26 * weight * (total / weight) ** 2)


def covariance(model: GLM, state: Mapping[str, Array], phi: float) -> tuple[Array, str]:
    """The covariance of a point, and what is wrong with it in words."""
    rows, kept = model.rows, state["kept"]
    p = len(kept)
    nothing = np.full((p, p), np.nan)
    if "dispersion" not in state:
        return nothing, ""
    if model.penalty.alpha:
        return nothing, "penalised coefficients are biased on purpose: no standard errors"
    if not float(state["freedom"]) > 0 and (model.law.dispersed or model.covariance != "model"):
        return nothing, "there are as many coefficients as rows: no standard errors"
    if perfect(model, state):
        return nothing, "every outcome is its own prediction: no standard errors"
    last = {key.removeprefix("last_"): v for key, v in state.items() if key.startswith("last_")}
    # Model-based errors are of the expected information, sandwiches of the observed one.
    observed = model.law.canonical or model.covariance != "model"
    bread = state["hessian"] if observed else rows.gather("expected", last)
    inverse = solve_kept(bread, np.diag(kept), kept)
    inverse = 0.5 * (inverse + inverse.T)
    if model.covariance == "model":
        return phi * inverse, ""
    result = inverse @ rows.gather("meat", last) @ inverse
    n, sites = float(state["outcomes"][1]), moments_of(state).sites
    q = n - float(state["freedom"])
    if model.covariance == "hc1":
        result = result * n / (n - q)
    if model.covariance == "site":
        if sites < 2:
            return nothing, "errors clustered by site need two sites or more"
        result = result * sites / (sites - 1) * (n - 1) / (n - q)
        if sites <= q:
            return result, f"{int(sites)} sites are few for errors clustered by site"
    return result, ""
