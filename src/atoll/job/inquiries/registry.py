"""The kinds of inquiries that a job file knows."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from atoll.core.errors import AtollError, Fault, suggest
from atoll.job.inquiries import clusters, models, survival, tables, tests
from atoll.job.inquiries.book import Inquiry
from atoll.job.options import checked_options

__all__ = ["KINDS", "inquiry_of"]

KINDS: Mapping[str, Any] = {
    "table_one": tables.TableOne,
    "describe": tables.Describe,
    "histogram": tables.Bins,
    "cross_table": tables.Crossed,
    "correlation": tables.Correlation,
    "principal_components": tables.PrincipalComponents,
    "frequent": tables.Frequent,
    "t_test": tests.TTest,
    "anova": tests.Anova,
    "chi_squared": tests.ChiSquared,
    "fisher": tests.Fisher,
    "mann_whitney": tests.RankTest,
    "linear": models.Linear,
    "logistic": models.Logistic,
    "poisson": models.Poisson,
    "gamma": models.Gamma,
    "negative_binomial": models.NegativeBinomial,
    "multinomial": models.Multinomial,
    "mixed": models.Mixed,
    "kaplan_meier": survival.SurvivalCurves,
    "log_rank": survival.LogRank,
    "cox": survival.ProportionalHazards,
    "k_means": clusters.Clusters,
    "gaussian_mixture": clusters.Mixture,
}
"""Kind in the job file -> the inquiry; its fields are the options."""


def inquiry_of(
    kind: str, options: Mapping[str, Any], place: str
) -> tuple[Inquiry | None, list[Fault]]:
    """An inquiry from its table in a job file, and what is wrong with that.

    Args:
        kind: one of :data:`KINDS`.
        options: of it.
        place: of the table, such as ``statistics.analyses.0``.
    """
    made = KINDS.get(kind)
    if made is None:
        return None, [Fault(f"{place}.kind", f"no analysis {kind!r}", suggest(kind, KINDS))]
    hints = typing.get_type_hints(made)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(made)}
    needed = [f.name for f in dataclasses.fields(made) if f.default is dataclasses.MISSING]
    checked, faults = checked_options(options, fields, place, f"{kind!r}")
    faults += [
        Fault(f"{place}.{name}", "this key is required", f"add {name} = …")
        for name in needed
        if name not in options
    ]
    if faults:
        return None, faults
    try:
        found: Inquiry = made(**checked)
    except AtollError as error:
        return None, [Fault(place, error.message, error.remedy)]
    return found, []
