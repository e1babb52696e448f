"""The kinds of inquiries that a job file knows, and inquiries as a job file has them.

The fields of an inquiry are its options. A field that is a record of options itself, such as the
:class:`~atoll.algorithms.statistics.survival_axis.Axis` of survival analyses, lends a job file its own fields.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from atoll.core.errors import AtollError, Fault, JobError, suggest
from atoll.job.inquiries.inquiry import Inquiry
from atoll.job.options import checked_options

__all__ = ["KINDS", "as_options", "inquiry_of"]

_HOMES: Mapping[str, str] = {
    "table_one": "tables.TableOne",
    "describe": "tables.Describe",
    "histogram": "tables.Bins",
    "cross_table": "tables.Crossed",
    "correlation": "tables.Correlation",
    "principal_components": "tables.PrincipalComponents",
    "frequent": "tables.Frequent",
    "t_test": "tests.TTest",
    "anova": "tests.Anova",
    "chi_squared": "tests.ChiSquared",
    "fisher": "tests.Fisher",
    "mann_whitney": "tests.RankTest",
    "linear": "models.LinearRegression",
    "logistic": "models.LogisticRegression",
    "poisson": "models.PoissonRegression",
    "gamma": "models.GammaRegression",
    "negative_binomial": "models.NegativeBinomialRegression",
    "multinomial": "models.MultinomialRegression",
    "mixed": "models.MixedModel",
    "kaplan_meier": "survival.KaplanMeier",
    "log_rank": "survival.LogRank",
    "cox": "survival.CoxRegression",
    "gradient_boosting": "trees.GradientBoosting",
    "k_means": "clusters.KMeans",
    "gaussian_mixture": "clusters.GaussianMixture",
    "standardise": "harmonise.Standardisation",
    "combat": "harmonise.ComBat",
}
"""Kind in the job file -> the module of this package that holds the inquiry, and its class."""


class _Kinds(Mapping[str, Any]):
    """The classes by kind. A job asks for a few of them: each is imported when it is first asked for."""

    def __getitem__(self, kind: str) -> Any:
        module, _, name = _HOMES[kind].partition(".")
        return getattr(import_module(f"{__package__}.{module}"), name)

    def __iter__(self) -> Iterator[str]:
        return iter(_HOMES)

    def __len__(self) -> int:
        return len(_HOMES)


KINDS: Mapping[str, Any] = _Kinds()
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
    hints, parts = typing.get_type_hints(made), _parts(made)
    needed = [f.name for f in dataclasses.fields(made) if f.default is dataclasses.MISSING]
    types = {name: hint for name, hint in hints.items() if name in _names(made)}
    for field, part in parts.items():
        types |= {n: h for n, h in typing.get_type_hints(part).items() if n in _names(part)}
        del types[field]
        needed.remove(field)
    checked, faults = checked_options(options, types, place, f"{kind!r}")
    faults += [
        Fault(f"{place}.{name}", "this key is required", f"add {name} = …")
        for name in needed
        if name not in options
    ]
    if faults:
        return None, faults
    try:
        for field, part in parts.items():
            checked[field] = part(**{n: checked.pop(n) for n in _names(part) if n in checked})
        found: Inquiry = made(**checked)
    except AtollError as error:
        return None, [Fault(place, error.message, error.remedy)]
    return found, []


def as_options(inquiry: Inquiry) -> dict[str, Any]:
    """An inquiry as its table in a job file: its kind, and the options that differ from their defaults.

    Raises:
        JobError: no kind of a job file is such an inquiry.
    """
    kind = next((name for name, made in KINDS.items() if isinstance(inquiry, made)), None)
    if kind is None:
        raise JobError(
            f"a job file has no kind for {type(inquiry).__name__}",
            remedy="ask a federation of tables on this machine",
        )
    return {"kind": kind, **_changed(inquiry)}


def _changed(record: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in dataclasses.fields(record):
        value = getattr(record, option.name)
        if dataclasses.is_dataclass(value):
            found |= _changed(value)
        elif value != option.default:
            found[option.name] = list(value) if isinstance(value, tuple) else value
    return found


def _names(made: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(made))


def _parts(made: type) -> dict[str, type]:
    """The fields that are records of options themselves."""
    hints = typing.get_type_hints(made)
    return {name: hints[name] for name in _names(made) if dataclasses.is_dataclass(hints[name])}
