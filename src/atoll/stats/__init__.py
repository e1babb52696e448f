"""Statistics over sites, for statisticians: pandas in and out, results equal to those of pooled rows.

>>> import pandas as pd
>>> from atoll.stats import Federation, describe
>>> frame = pd.DataFrame({"clinic": ["a"] * 30 + ["b"] * 30, "age": range(60)})
>>> federation = Federation.of(frame, site="clinic")
>>> describe(federation, ["age"])["mean"].tolist()
[29.5]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll.algorithms.statistics.survival_axis import Axis
    from atoll.data.disclosure import Disclosure
    from atoll.job.inquiries.clusters import GaussianMixture, KMeans
    from atoll.job.inquiries.harmonise import ComBat, Standardisation
    from atoll.job.inquiries.models import (
        Fitted,
        GammaRegression,
        LinearRegression,
        LogisticRegression,
        MixedModel,
        MultinomialRegression,
        NegativeBinomialRegression,
        PoissonRegression,
    )
    from atoll.job.inquiries.survival import CoxRegression, KaplanMeier
    from atoll.job.inquiries.trees import GradientBoosting
    from atoll.stats.describing import (
        correlation,
        cross_table,
        describe,
        frequent,
        histogram,
        principal_components,
        table_one,
    )
    from atoll.stats.federation import Federation
    from atoll.stats.harmonising import combat, standardise
    from atoll.stats.pages import write_page
    from atoll.stats.remote import connect, read_results
    from atoll.stats.testing import anova, chi_squared, fisher, log_rank, mann_whitney, t_test

_HOMES = {
    "Axis": "atoll.algorithms.statistics.survival_axis",
    "ComBat": "atoll.job.inquiries.harmonise",
    "CoxRegression": "atoll.job.inquiries.survival",
    "Disclosure": "atoll.data.disclosure",
    "Federation": "atoll.stats.federation",
    "Fitted": "atoll.job.inquiries.models",
    "GammaRegression": "atoll.job.inquiries.models",
    "GaussianMixture": "atoll.job.inquiries.clusters",
    "GradientBoosting": "atoll.job.inquiries.trees",
    "KMeans": "atoll.job.inquiries.clusters",
    "KaplanMeier": "atoll.job.inquiries.survival",
    "LinearRegression": "atoll.job.inquiries.models",
    "LogisticRegression": "atoll.job.inquiries.models",
    "MixedModel": "atoll.job.inquiries.models",
    "MultinomialRegression": "atoll.job.inquiries.models",
    "NegativeBinomialRegression": "atoll.job.inquiries.models",
    "PoissonRegression": "atoll.job.inquiries.models",
    "Standardisation": "atoll.job.inquiries.harmonise",
    "anova": "atoll.stats.testing",
    "chi_squared": "atoll.stats.testing",
    "combat": "atoll.stats.harmonising",
    "connect": "atoll.stats.remote",
    "correlation": "atoll.stats.describing",
    "cross_table": "atoll.stats.describing",
    "describe": "atoll.stats.describing",
    "fisher": "atoll.stats.testing",
    "frequent": "atoll.stats.describing",
    "histogram": "atoll.stats.describing",
    "log_rank": "atoll.stats.testing",
    "mann_whitney": "atoll.stats.testing",
    "principal_components": "atoll.stats.describing",
    "read_results": "atoll.stats.remote",
    "standardise": "atoll.stats.harmonising",
    "t_test": "atoll.stats.testing",
    "table_one": "atoll.stats.describing",
    "write_page": "atoll.stats.pages",
}

__all__ = [
    "Axis",
    "ComBat",
    "CoxRegression",
    "Disclosure",
    "Federation",
    "Fitted",
    "GammaRegression",
    "GaussianMixture",
    "GradientBoosting",
    "KMeans",
    "KaplanMeier",
    "LinearRegression",
    "LogisticRegression",
    "MixedModel",
    "MultinomialRegression",
    "NegativeBinomialRegression",
    "PoissonRegression",
    "Standardisation",
    "anova",
    "chi_squared",
    "combat",
    "connect",
    "correlation",
    "cross_table",
    "describe",
    "fisher",
    "frequent",
    "histogram",
    "log_rank",
    "mann_whitney",
    "principal_components",
    "read_results",
    "standardise",
    "t_test",
    "table_one",
    "write_page",
]


def __getattr__(name: str) -> Any:
    """Import a name from its home when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'atoll.stats' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
