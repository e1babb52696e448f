"""ComBat over sites: columns measured by different machines are brought to one scale.

W. E. Johnson, C. Li, A. Rabinovic, "Adjusting batch effects in microarray expression data using empirical
Bayes methods", Biostatistics 8, 2007; for images J.-P. Fortin et al., NeuroImage 161, 2017. Each site is a
batch. Effects of covariates, grand means and pooled variances need sums of all sites; shift and scale of
a site are then found at the site, from its own rows, and leave it only where they are asked for.

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

from atoll.algorithms.statistics.columns import complete, reading, tallied, varies
from atoll.algorithms.statistics.glm_design import Design
from atoll.algorithms.statistics.glm_newton import dependent, solve_kept
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array
from atoll.data.disclosure import Disclosure
from atoll.data.query_log import Released

__all__ = ["ComBat", "Harmoniser", "site_effects"]

FIT, REST, TELL, DONE = range(4)


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
        shifts: of each site, in units of the columns, ``(sites, g)``; NaN for a site with too few rows,
            and no line where they were not asked for.
        stretches: factors by which the sites' own scales differ from the pooled one, likewise.
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
    shifts: Array
    stretches: Array

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
        shift, stretch = site_effects(alike, self.tolerance)
        moved = (alike - shift[:, None]) / np.sqrt(stretch)[:, None]
        result = np.full((len(self.features), len(whole)), np.nan)
        result[:, whole] = moved * self.deviations[:, None] + expected
        return dict(zip(self.features, result, strict=True))


def site_effects(alike: Array, tolerance: float) -> tuple[Array, Array]:
    """Shift and squared scale of a site's standardised rows ``(g, n)``, shrunk to their mean; ``(g,)`` each.

    The priors are those of the paper: normal for shifts, inverse gamma for squared scales, with
    moments over the columns. A column without a scale of its own, constant at this site, keeps the pooled
    one.
    """
    n = alike.shape[1]
    own, wide = alike.mean(axis=1), alike.var(axis=1, ddof=1)
    plain = own, np.where(varies(wide * (n - 1), n, own), wide, 1.0)
    if len(own) < 2:
        return plain
    centre, between = own.mean(), own.var(ddof=1)
    m, s2 = wide.mean(), wide.var(ddof=1)
    if not (between > 0 and s2 > 0):
        return plain
    shape, rate = (2 * s2 + m * m) / s2, (m * s2 + m**3) / s2
    shift, stretch = plain
    for _ in range(10_000):
        new = (between * n * own + stretch * centre) / (between * n + stretch)
        squares = ((alike - new[:, None]) ** 2).sum(axis=1)
        wider = (0.5 * squares + rate) / (n / 2 + shape - 1)
        change = max(
            float(np.max(np.abs(new - shift) / np.abs(np.where(shift == 0, 1.0, shift)))),
            float(np.max(np.abs(wider - stretch) / stretch)),
        )
        shift, stretch = new, wider
        if change <= tolerance:
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
        told: whether sites with enough persons tell their shifts and scales.
        rule: disclosure control.
    """

    features: Sequence[str]
    covariates: Sequence[str] = ()
    categories: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tolerance: float = 1e-4
    told: bool = False
    rule: Disclosure = field(default_factory=Disclosure)

    def __post_init__(self) -> None:
        if not self.features or set(self.features) & set(self.covariates):
            raise JobError("features to harmonise are one or more, and none is a covariate")

    @property
    def design(self) -> Design:
        """The covariates."""
        return Design.of(self.covariates, self.categories)

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads, and that of the persons."""
        return reading(self.rule, *self.covariates, *self.features)

    def released(self, data: Mapping[str, Array]) -> Sequence[Released]:
        """The complete rows; of a site that tells its shift, these by themselves too."""
        names = (*self.covariates, *self.features)
        rows = complete(data, names)
        apart = [Released(names, rows, apart=True)] if self._tells(rows, data) else []
        return [Released(names, rows), *apart]

    def _tells(self, rows: Array, data: Mapping[str, Array]) -> bool:
        """Whether a site with these complete rows tells its own shift and scale."""
        (count,), (persons,) = tallied(np.where(rows, 0, -1), 1, data, self.rule)
        return self.told and bool(count >= 2 and persons >= self.rule.minimum)

    def start(self) -> Mapping[str, Array]:
        """Before the first round."""
        return {"phase": np.array(float(FIT))}

    def ask(self, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        """First nothing, then the effects of covariates, then all that sites share."""
        phase = int(state["phase"])
        if phase == DONE:
            return None
        more = {
            FIT: (),
            REST: ("effects",),
            TELL: ("effects", "intercepts", "deviations"),
        }[phase]
        return {"phase": state["phase"], **{name: state[name] for name in more}}

    def sums(
        self, question: Mapping[str, Array], data: Mapping[str, Array], *, site: int, sites: int
    ) -> Mapping[str, Array]:
        """Sums and products about the site's own means: its shift is in none of the products."""
        self.design.check(data, self.features)
        if int(question["phase"]) == TELL:
            return self._own(question, data, site, sites)
        z, y, whole = _matrices(self.design, self.features, data)
        n = y.shape[1]
        mean_z, mean_y = z.sum(axis=1) / max(n, 1), y.sum(axis=1) / max(n, 1)
        inner_z, inner_y = z - mean_z[:, None], y - mean_y[:, None]
        if int(question["phase"]) == REST:
            rest = inner_y - question["effects"].T @ inner_z
            flat = np.ptp(y, axis=1) == 0 if n > 1 else np.zeros(len(y))
            return {"squares": (rest * rest).sum(axis=1), "flat": flat * 1.0}
        return {
            "counts": np.array([n, len(whole) - n, float(n > 0)]),
            "sums_z": mean_z * n,
            "sums_y": mean_y * n,
            "gram": inner_z @ inner_z.T,
            "cross": inner_z @ inner_y.T,
        }

    def _own(
        self, question: Mapping[str, Array], data: Mapping[str, Array], site: int, sites: int
    ) -> dict[str, Array]:
        """A site's shift and squared scale at its place among all."""
        z, y, whole = _matrices(self.design, self.features, data)
        shape = sites, len(self.features)
        answer = {"shifts": np.zeros(shape), "stretches": np.zeros(shape), "tell": np.zeros(sites)}
        if self._tells(whole, data):
            expected = question["intercepts"][:, None] + question["effects"].T @ z
            alike = (y - expected) / question["deviations"][:, None]
            found = site_effects(alike, self.tolerance)
            answer["shifts"][site], answer["stretches"][site] = found
            answer["tell"][site] = 1.0
        return answer

    def learn(self, state: Mapping[str, Array], totals: Mapping[str, Array]) -> Mapping[str, Array]:
        """The next state."""
        phase = int(state["phase"])
        if phase == FIT:
            rows = totals["counts"][0]
            if not rows:
                remedy = "leave out columns that are empty"
                raise DataError("no site has a complete row", remedy=remedy)
            # What rounding leaves of a covariate that is constant at each site explains nothing.
            moving = varies(np.diag(totals["gram"]), rows, totals["sums_z"] / rows)
            kept = dependent(totals["gram"] * np.outer(moving, moving))[0]
            right = totals["cross"] * kept[:, None]
            effects = solve_kept(totals["gram"], right, kept)
            intercepts = (totals["sums_y"] - effects.T @ totals["sums_z"]) / rows
            more = {"kept": kept, "effects": effects, "intercepts": intercepts}
            return {**totals, **more, "phase": np.array(float(REST))}
        if phase == REST:
            deviations = np.sqrt(totals["squares"] / state["counts"][0])
            after = {**state, "deviations": deviations, "flat": totals["flat"]}
            tell = self.told and not self._constant(after).any()
            return {**after, "phase": np.array(float(TELL if tell else DONE))}
        return {**state, **totals, "phase": np.array(float(DONE))}

    def _constant(self, state: Mapping[str, Array]) -> Array:
        """Which columns do not vary within any site, ``(g,)`` bool."""
        level = np.abs(state["sums_y"]) / state["counts"][0]
        return np.asarray(state["deviations"] <= 1e-14 * level)

    def result(self, state: Mapping[str, Array]) -> Harmoniser:
        """What sites need to harmonise their rows.

        Raises:
            DataError: a column is constant within each site.
        """
        for name, constant in zip(self.features, self._constant(state), strict=True):
            if constant:
                raise DataError(
                    f"column {name!r} is constant within each site", remedy="leave it out"
                )
        rows, excluded, sites = state["counts"].tolist()
        deviations = state["deviations"]
        shifts, stretches = np.zeros((2, 0, len(self.features)))
        if self.told:
            silent = np.where(state["tell"] > 0, 0.0, np.nan)[:, None]
            shifts = state["shifts"] * deviations + silent
            stretches = np.sqrt(state["stretches"]) + silent
        return Harmoniser(
            tuple(self.features),
            self.design,
            state["intercepts"],
            state["effects"],
            deviations,
            int(rows),
            int(excluded),
            self.tolerance,
            tuple(self._notes(state, excluded, sites)),
            shifts,
            stretches,
        )

    def _notes(self, state: Mapping[str, Array], excluded: float, sites: float) -> list[str]:
        notes = [
            f"covariate {name!r} is left out: others, or the sites, determine it"
            for name, kept in zip(self.design.names, state["kept"], strict=True)
            if not kept
        ]
        notes += [
            f"column {name!r} is constant at {int(count)} of {int(sites)} sites: it has a shift there, and no "
            "scale of its own"
            for name, count in zip(self.features, state["flat"], strict=True)
            if count
        ]
        if excluded:
            notes.append(f"{int(excluded)} rows with missing values are left out")
        if sites < 2:
            notes.append("there is one site only: nothing is to be harmonised")
        if self.told and not state["tell"].all():
            silent = int((state["tell"] == 0).sum())
            notes.append(f"{silent} sites have too few complete rows to tell their shift and scale")
        return notes


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
