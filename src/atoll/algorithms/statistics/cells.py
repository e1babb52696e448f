"""Which counts of few persons a site's answer shows to whoever sees it by itself, and a model to everybody.

A sum over all rows of a study stands on as many persons as take part. A count of a part of them (a cell, a bin,
the deaths of one day) may stand on one. Where single sites' answers are seen, such counts are looked at before
they leave; where they are masked, nobody sees them. What a regression finds is seen by everybody: the
coefficient of a category that one person has is what that person's outcome is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from atoll.algorithms.statistics.analysis import Analysis, Question
from atoll.algorithms.statistics.boosting import GradientBoosting
from atoll.algorithms.statistics.cluster import KMeans
from atoll.algorithms.statistics.cox import Cox
from atoll.algorithms.statistics.glm import GLM
from atoll.algorithms.statistics.glm_design import Design
from atoll.algorithms.statistics.glm_multinomial import Multinomial
from atoll.algorithms.statistics.glm_negative import NegativeBinomialRegression
from atoll.algorithms.statistics.harmonise_combat import ComBat
from atoll.algorithms.statistics.mixed import MixedModel
from atoll.algorithms.statistics.mixture import GaussianMixture
from atoll.algorithms.statistics.moments import Moments
from atoll.algorithms.statistics.quantiles import Quantiles
from atoll.algorithms.statistics.ranks import MannWhitney
from atoll.algorithms.statistics.survival import KaplanMeier
from atoll.algorithms.statistics.survival_logrank import LogRank
from atoll.algorithms.statistics.tables import CrossTable, HeavyHitters, Histogram
from atoll.algorithms.statistics.together import Derived, Together, part_of
from atoll.core.layout import Array

__all__ = ["small_counts", "small_parts"]

_COUNTED: Mapping[type, tuple[str, ...]] = {
    CrossTable: ("persons",),
    Histogram: ("persons",),
    HeavyHitters: ("persons",),
    Moments: ("persons", "absent", "ones", "zeros"),
}
"""Analyses whose counts are told by name."""

_BY_ONES: Mapping[type, str] = {
    Quantiles: "counts between cut points that come ever closer",
    MannWhitney: "counts of ranks",
    KaplanMeier: "counts of the deaths of each day",
    LogRank: "counts of the deaths of each day",
    Cox: "sums over those at risk on each day",
    KMeans: "sizes of clusters on the way",
    GaussianMixture: "sizes of clusters on the way",
    GradientBoosting: "sums over the cells of each node",
}
"""Analyses that tell single persons apart by their nature."""


def small_counts(analysis: Analysis, sums: Question, minimum: int) -> Sequence[str]:
    """What an answer holds that stands on 1 to ``minimum - 1`` persons, in words; empty for nothing.

    Args:
        analysis: what is asked.
        sums: a site's answer to one question of it.
        minimum: least number of persons.
    """
    if minimum <= 1:
        return []
    if isinstance(analysis, Together):
        parts = analysis.parts.items()
        return [
            f"{name}: {why}"
            for name, part in parts
            for why in small_counts(part, part_of(sums, name), minimum)
        ]
    if isinstance(analysis, Derived):
        return small_counts(analysis.inner, sums, minimum)
    if not sums:
        return []
    if type(analysis) in _BY_ONES:
        return [_BY_ONES[type(analysis)]]
    if isinstance(analysis, MixedModel) and analysis.group:
        return ["sums of single groups"]
    named = _COUNTED.get(type(analysis), ())
    counts = [np.asarray(sums[name]) for name in named if name in sums]
    counts += [count for _, count in _of_design(analysis, sums)]
    small = sum(_few(count, minimum) for count in counts)
    if not small:
        return []
    return [f"{small} count{'s' if small > 1 else ''} of fewer than {minimum} persons"]


def small_parts(
    analysis: Analysis, state: Question, minimum: int, binary: Collection[str] = ()
) -> Sequence[str]:
    """Columns of a regression by which its coefficients tell of 1 to ``minimum - 1`` rows of all sites.

    Args:
        analysis: the regression; of any other there are none.
        state: its last one.
        minimum: least number of rows.
        binary: columns of numbers that hold nothing but 0 and 1.
    """
    parts = _of_design(analysis, state, binary)
    return [name for name, count in parts if name and _few(count, minimum)]


def _few(counts: Array, minimum: int) -> int:
    """How many of these are above 0 and below the minimum."""
    return int(((counts > 0) & (counts < minimum)).sum())


def _of_design(
    analysis: Analysis, sums: Question, binary: Collection[str] = ()
) -> list[tuple[str, Array]]:
    """Parts of the rows that the first answer of a regression counts, each with the column that makes them.

    Sums of 0/1 columns are counts: of the rows of each category, and of those with an event. So is the
    number of rows that lack a value, which no column makes.
    """
    design, totals = _design(analysis), sums.get("sums", sums.get("sums_z"))
    if design is None or totals is None or "counts" not in sums:
        return []
    whole, excluded = np.asarray(sums["counts"])[:2]
    found, at = [("", np.array([excluded]))], 0
    for feature in design.features:
        width = len(design.categories.get(feature, (0.0, 0.0))) - 1
        if feature in design.categories or feature in binary:
            held = np.asarray(totals)[at : at + width]
            found.append((feature, np.append(held, whole - held.sum())))
        at += width
    if isinstance(analysis, GLM) and analysis.law.name == "binomial":
        found.append((analysis.outcome, np.asarray(sums["outcomes"])[3:5]))
    if isinstance(analysis, Multinomial):
        found.append((analysis.outcome, np.asarray(sums["classes"])))
    return found


def _design(analysis: Analysis) -> Design | None:
    if isinstance(analysis, NegativeBinomialRegression):
        analysis = analysis.poisson
    if isinstance(analysis, GLM | Multinomial):
        return analysis.rows.design
    return analysis.design if isinstance(analysis, MixedModel | ComBat | Cox) else None
