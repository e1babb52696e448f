"""Gaussian mixtures over sites by expectation and maximisation, equal to those of the pooled rows.

Each round sites weigh their rows by how likely each component made them and add up weights, sums and
products (Dempster, Laird and Rubin, JRSS B 39, 1977). The first components are the clusters of k-means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from atoll.algorithms.statistics import cluster
from atoll.algorithms.statistics.cluster import KMeans
from atoll.algorithms.statistics.glm_design import moments_of
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array
from atoll.core.seeds import Seed

__all__ = ["GaussianMixture", "Mixture", "responsibilities"]

FIRST, EM, DONE = 10, 11, 12


@dataclass(frozen=True)
class Mixture:
    """A fitted Gaussian mixture.

    Args:
        features: names of the columns.
        weights: of the components, ``(k,)``, falling.
        means: ``(k, d)``.
        covariances: ``(k, d, d)``.
        log_likelihood: of all rows.
        aic: ``2 p - 2 log_likelihood``.
        bic: ``p log(rows) - 2 log_likelihood``.
        rows: complete rows.
        excluded: rows left out for missing values.
        iterations: rounds of expectation and maximisation.
        converged: whether the gain fell below the tolerance.
        notes: what a reader has to know, in words.
    """

    features: tuple[str, ...]
    weights: Array
    means: Array
    covariances: Array
    log_likelihood: float
    aic: float
    bic: float
    rows: int
    excluded: int
    iterations: int
    converged: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of normal distributions.

    Args:
        features: columns of numbers.
        components: k.
        seed: of the k-means before.
        covariance: ``full`` or ``diagonal``.
        floor: added to each variance, in units of the columns squared.
        tolerance: gain of log-likelihood per row at which to stop.
        most: rounds after which to stop.
        means: the first means, ``(k, d)``; k-means then only assigns rows to them.
    """

    features: Sequence[str]
    components: int
    seed: Seed = cluster.FIXED
    covariance: Literal["full", "diagonal"] = "full"
    floor: float = 1e-6
    tolerance: float = 1e-10
    most: int = 1000
    means: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        if self.covariance not in ("full", "diagonal"):
            raise JobError(f"covariance is {self.covariance!r}", remedy="known: full, diagonal")
        if self.components < 1 or not self.features:
            raise JobError(
                f"{self.components} components, {len(self.features)} features: each must be one or more"
            )
        if not (self.floor >= 0 and self.tolerance > 0):
            raise JobError("floor is from 0, tolerance is positive")

    @cached_property
    def start_clusters(self) -> KMeans:
        """What gives the first components."""
        return KMeans(self.features, self.components, self.seed, centres=self.means)

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        return tuple(self.features)

    def start(self) -> Mapping[str, Array]:
        """Before the first round."""
        return self.start_clusters.start()

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """K-means' question, or the components."""
        phase = int(state["phase"])
        if phase == DONE:
            return None
        if phase < FIRST:
            return self.start_clusters.ask(state)
        names = ("phase", "centre", "means", "factors", "weights")
        return {n: state[n] for n in (names if phase == EM else ("phase", "centre", "means"))}

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """What a site adds."""
        phase = int(question["phase"])
        if phase < FIRST:
            return self.start_clusters.sums(question, data, site=site, sites=sites)
        k, d = question["means"].shape
        counts, sums, products = np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d))
        value = np.zeros(())
        for raw, _ in self.start_clusters.design.blocks(data, ()):
            z = raw - question["centre"][:, None]
            if phase == FIRST:
                own = cluster.nearest(z, question["means"])[0]
                share = (own == np.arange(k)[:, None]) * 1.0
            else:
                share, likely = _shares(z, question)
                value = value + likely.sum()
            counts += share.sum(axis=1)
            for j in range(k):  # products about the component's last mean: nothing cancels
                rest = z - question["means"][j][:, None]
                sums[j] += rest @ share[j]
                half = rest * np.sqrt(share[j])
                products[j] += half @ half.T
        return {"counts_of": counts, "sums_of": sums, "products_of": products, "value": value}

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The next state."""
        phase = int(state["phase"])
        if phase < FIRST:
            state = self.start_clusters.learn(state, totals)
            given = len(self.means) and int(state["phase"]) == cluster.MOVE
            if not given and int(state["phase"]) != cluster.DONE:
                return state
            best = 0 if given else int(np.argmin(state["inertia"]))
            first = state["points"][best] * state["scale"]
            return {
                **state,
                "means": first,
                "rounds": np.array(0.0),
                "phase": np.array(float(FIRST)),
            }
        rows = moments_of(state).rows
        value, old = float(totals["value"]) / rows, float(state.get("value", np.array(-np.inf)))
        rounds = float(state["rounds"])
        if phase == EM:
            rounds += 1
            rested = value - old < self.tolerance
            if rested or rounds > self.most:
                done = {"value": np.array(value), "rested": np.array(float(rested))}
                return {**state, **done, "rounds": np.array(rounds), "phase": np.array(float(DONE))}
        return {
            **state,
            **self._maximised(state["means"], totals, rows),
            "value": np.array(value if phase == EM else -1e300),
            "rounds": np.array(rounds),
            "phase": np.array(float(EM)),
        }

    def _maximised(
        self, means: Array, totals: Mapping[str, Array], rows: float
    ) -> dict[str, Array]:
        """Weights, means and covariances from sums, and factors of the inverse covariances."""
        counts = totals["counts_of"]
        if (counts < 1e-10 * rows).any():
            raise DataError(
                "a component of the mixture has lost all its rows",
                remedy="use fewer components, or another seed",
            )
        shift = totals["sums_of"] / counts[:, None]
        covariances = totals["products_of"] / counts[:, None, None]
        covariances -= shift[:, :, None] * shift[:, None, :]
        d = means.shape[1]
        if self.covariance == "diagonal":
            covariances = covariances * np.eye(d)
        covariances = covariances + self.floor * np.eye(d)
        try:
            factors = np.linalg.inv(np.linalg.cholesky(covariances))
        except np.linalg.LinAlgError:
            raise DataError(
                "a component of the mixture has shrunk to a point or plane",
                remedy="raise the floor, use fewer components, or drop a column that others determine",
            ) from None
        return {
            "weights": counts / rows,
            "means": means + shift,
            "covariances": covariances,
            "factors": factors,
        }

    def result(self, state: Mapping[str, Array]) -> Mixture:
        """The components.

        Raises:
            DataError: a column is constant: it has no density, and the floor would stand in for one.
        """
        for name in self.start_clusters.still(state):
            raise DataError(f"column {name!r} is constant", remedy="leave it out")
        found, d, k = moments_of(state), len(self.features), self.components
        order = np.argsort(-state["weights"], kind="stable")
        each = d * (d + 1) // 2 if self.covariance == "full" else d
        p = k - 1 + k * d + k * each
        value = float(state["value"]) * found.rows
        notes = found.notes(self.columns())
        if not state["rested"]:
            notes.append(f"no convergence in {self.most} rounds")
        return Mixture(
            features=tuple(self.features),
            weights=state["weights"][order],
            means=(state["means"] + state["centre"])[order],
            covariances=state["covariances"][order],
            log_likelihood=value,
            aic=2 * p - 2 * value,
            bic=p * math.log(found.rows) - 2 * value,
            rows=int(found.rows),
            excluded=int(found.excluded),
            iterations=int(state["rounds"]),
            converged=bool(state["rested"]),
            notes=tuple(notes),
        )


def _shares(z: Array, parameters: Mapping[str, Array]) -> tuple[Array, Array]:
    """Probabilities of components ``(k, n)`` and log-likelihoods ``(n,)`` of columns ``z (d, n)``."""
    logs = []
    for mean, factor, weight in zip(
        parameters["means"], parameters["factors"], parameters["weights"], strict=True
    ):
        white = factor @ (z - mean[:, None])
        fixed = math.log(weight) + float(np.log(np.diag(factor)).sum())
        fixed -= 0.5 * len(z) * math.log(2 * math.pi)
        logs.append(fixed - 0.5 * (white * white).sum(axis=0))
    table = np.stack(logs)
    top = table.max(axis=0)
    share = np.exp(table - top)
    total = share.sum(axis=0)
    return share / total, top + np.log(total)


def responsibilities(mixture: Mixture, data: Mapping[str, Array]) -> Array:
    """At a site: how likely each component made each row, ``(n, k)``; NaN for rows with missing values."""
    z = np.stack([np.asarray(data[name], np.float64) for name in mixture.features])
    whole = ~np.isnan(z).any(axis=0)
    result = np.full((z.shape[1], len(mixture.weights)), np.nan)
    factors = np.linalg.inv(np.linalg.cholesky(mixture.covariances))
    parameters = {"means": mixture.means, "factors": factors, "weights": mixture.weights}
    result[whole] = _shares(z[:, whole], parameters)[0].T
    return result
