"""ComBat over sites: columns measured by different machines are brought to one scale.

W. E. Johnson, C. Li, A. Rabinovic, "Adjusting batch effects in microarray expression data using empirical
Bayes methods", Biostatistics 8, 2007; for images J.-P. Fortin et al., NeuroImage 161, 2017. Each site is a
batch. Effects of covariates, grand means and pooled variances need sums of all sites; shift and scale of
a site are then found at the site, from its own rows, and never leave it.

=====================  ==================================
symbol in the paper    name in the code
=====================  ==================================
alpha_g, beta_g        ``intercepts``, ``effects``
sigma_g                ``deviations``
gamma_ig, delta_ig^2   ``shift``, ``stretch``
=====================  ==================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from atoll.algorithms.statistics.glm_design import Design
from atoll.algorithms.statistics.glm_newton import dependent, solve_kept
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array

__all__ = ["ComBat", "Harmoniser"]

FIT, REST, DONE = range(3)


@dataclass(frozen=True)
class Harmoniser:
    """What all sites share; each brings its own rows to the common scale with it.

    Args:
        features: names of the columns to be harmonised.
        design: covariates whose effects are kept.
        intercepts: grand means at covariates zero, ``(g,)``.
        effects: of covariates, ``(k, g)``; zero for a covariate that others determine.
        deviations: pooled standard deviations, ``(g,)``.
        rows: complete rows.
        excluded: rows left out of the fit for missing values.
        tolerance: relative change at which the iteration at a site stops.
        notes: what a reader has to know, in words.
    """

    features: tuple[str, ...]
    design: Design
    intercepts: Array
    effects: Array
    deviations: Array
    rows: int
    excluded: int
    tolerance: float
    notes: tuple[str, ...]

    def apply(self, data: Mapping[str, Array]) -> dict[str, Array]:
        """At a site: harmonised columns; rows with a missing value become NaN.

        Raises:
            DataError: fewer than two complete rows: they have no scale of their own.
        """
        z, y, whole = _matrices(self.design, self.features, data)
        if y.shape[1] < 2:
            raise DataError(
                f"{y.shape[1]} complete rows have no shift and scale of their own",
                remedy="leave this site out of the harmonisation",
            )
        expected = self.intercepts[:, None] + self.effects.T @ z
        alike = (y - expected) / self.deviations[:, None]
        shift, stretch = self.site_effects(alike)
        moved = (alike - shift[:, None]) / np.sqrt(stretch)[:, None]
        result = np.full((len(self.features), len(whole)), np.nan)
        result[:, whole] = moved * self.deviations[:, None] + expected
        return dict(zip(self.features, result, strict=True))

    def site_effects(self, alike: Array) -> tuple[Array, Array]:
        """Shift and squared scale of a site's standardised rows ``(g, n)``, shrunk to their mean.

        The priors are those of the paper: normal for shifts, inverse gamma for squared scales, with
        moments over the columns.
        """
        n = alike.shape[1]
        own, wide = alike.mean(axis=1), alike.var(axis=1, ddof=1)
        if len(own) < 2:
            return own, wide
        centre, between = own.mean(), own.var(ddof=1)
        m, s2 = wide.mean(), wide.var(ddof=1)
        if not (between > 0 and s2 > 0):
            return own, wide
        shape, rate = (2 * s2 + m * m) / s2, (m * s2 + m**3) / s2
        shift, stretch = own, wide
        for _ in range(10_000):
            new = (between * n * own + stretch * centre) / (between * n + stretch)
            squares = ((alike - new[:, None]) ** 2).sum(axis=1)
            wider = (0.5 * squares + rate) / (n / 2 + shape - 1)
            change = max(
                float(np.max(np.abs(new - shift) / np.abs(np.where(shift == 0, 1.0, shift)))),
                float(np.max(np.abs(wider - stretch) / stretch)),
            )
            shift, stretch = new, wider
            if change <= self.tolerance:
                break
        return shift, stretch


@dataclass(frozen=True)
class ComBat:
    """Harmonisation with each site as a batch.

    Args:
        features: columns to be harmonised.
        covariates: columns whose effects are kept, age and sex for instance.
        categories: all levels of covariates that hold codes; the first is the reference.
        tolerance: relative change at which the iteration at a site stops.
    """

    features: Sequence[str]
    covariates: Sequence[str] = ()
    categories: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not self.features or set(self.features) & set(self.covariates):
            raise JobError("features to harmonise are one or more, and none is a covariate")

    @property
    def design(self) -> Design:
        """The covariates."""
        return Design.of(self.covariates, self.categories)

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        return (*self.covariates, *self.features)

    def start(self) -> Mapping[str, Array]:
        """Before the first round."""
        return {"phase": np.array(float(FIT))}

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """First nothing, then the effects of covariates."""
        phase = int(state["phase"])
        if phase == DONE:
            return None
        more = {"effects": state["effects"]} if phase == REST else {}
        return {"phase": state["phase"], **more}

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """Sums and products about the site's own means: its shift is in none of the products."""
        self.design.check(data, self.features)
        z, y, whole = _matrices(self.design, self.features, data)
        n = y.shape[1]
        mean_z, mean_y = z.sum(axis=1) / max(n, 1), y.sum(axis=1) / max(n, 1)
        inner_z, inner_y = z - mean_z[:, None], y - mean_y[:, None]
        if int(question["phase"]) == REST:
            rest = inner_y - question["effects"].T @ inner_z
            return {"squares": (rest * rest).sum(axis=1)}
        return {
            "counts": np.array([n, len(whole) - n, float(n > 0)]),
            "sums_z": mean_z * n,
            "sums_y": mean_y * n,
            "gram": inner_z @ inner_z.T,
            "cross": inner_z @ inner_y.T,
        }

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The next state."""
        if int(state["phase"]) == REST:
            return {**state, **totals, "phase": np.array(float(DONE))}
        rows = totals["counts"][0]
        if not rows:
            raise DataError("no site has a complete row", remedy="leave out columns that are empty")
        kept = dependent(totals["gram"])[0]
        right = totals["cross"] * kept[:, None]
        effects = solve_kept(totals["gram"], right, kept)
        return {**totals, "kept": kept, "effects": effects, "phase": np.array(float(REST))}

    def result(self, state: Mapping[str, Array]) -> Harmoniser:
        """What sites need to harmonise their rows."""
        rows, excluded, sites = state["counts"].tolist()
        deviations = np.sqrt(state["squares"] / rows)
        level = np.abs(state["sums_y"]) / rows
        for name, value, size in zip(self.features, deviations, level, strict=True):
            if value <= 1e-14 * size:
                raise DataError(
                    f"column {name!r} is constant within each site", remedy="leave it out"
                )
        intercepts = (state["sums_y"] - state["effects"].T @ state["sums_z"]) / rows
        notes = [
            f"covariate {name!r} is left out: others, or the sites, determine it"
            for name, kept in zip(self.design.names, state["kept"], strict=True)
            if not kept
        ]
        if excluded:
            notes.append(f"{int(excluded)} rows with missing values are left out")
        if sites < 2:
            notes.append("there is one site only: nothing is to be harmonised")
        return Harmoniser(
            tuple(self.features),
            self.design,
            intercepts,
            state["effects"],
            deviations,
            int(rows),
            int(excluded),
            self.tolerance,
            tuple(notes),
        )


def _matrices(
    design: Design, features: Sequence[str], data: Mapping[str, Array]
) -> tuple[Array, Array, Array]:
    """Covariates ``(k, n)`` and features ``(g, n)`` of complete rows, and which rows those are."""
    size = len(data[features[0]])
    z = np.empty((len(design.names), size))
    design.fill(z, data, slice(None))
    y = np.stack([np.asarray(data[name], np.float64) for name in features])
    whole = np.isnan(np.vstack([z, y])).sum(axis=0) == 0
    return z[:, whole], y[:, whole], whole
