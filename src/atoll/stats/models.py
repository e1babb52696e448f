"""Regressions with the manners of scikit-learn: options at construction, data at ``fit``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from atoll.algorithms.statistics.analysis import Analysis
from atoll.algorithms.statistics.cox import Cox
from atoll.algorithms.statistics.glm import GLM
from atoll.algorithms.statistics.glm_multinomial import Multinomial
from atoll.algorithms.statistics.glm_negative import NegativeBinomialRegression as Negative
from atoll.algorithms.statistics.mixed import MixedModel as Mixed
from atoll.algorithms.statistics.penalty import Penalty
from atoll.algorithms.statistics.survival_axis import Axis
from atoll.core.errors import Forbidden
from atoll.stats.federation import Federation
from atoll.stats.frames import frame

__all__ = [
    "CoxRegression",
    "Fitted",
    "GammaRegression",
    "LinearRegression",
    "LogisticRegression",
    "MixedModel",
    "MultinomialRegression",
    "NegativeBinomialRegression",
    "PoissonRegression",
]

_DUMMY = re.compile(r"^(.*)\[(\d+)\]$")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted model.

    Args:
        model: what was fitted, for the heading.
        result: the analysis' own result, with all its numbers.
        levels: names of categories, by column.
        ratios: what exponentials of coefficients are called; empty where they mean nothing.
    """

    model: str
    result: Any
    levels: Mapping[str, tuple[str, ...]]
    ratios: str = ""

    @property
    def table(self) -> Any:
        """One line a coefficient, as a pandas frame: estimate, standard error, test, interval."""
        return frame(self.records(), "name")

    def records(self) -> list[dict[str, Any]]:
        """The same as plain records."""
        tables = [("", getattr(self.result, "table", None))]
        if tables[0][1] is None:
            heads = self.result.levels[1:]
            tables = [(f"[{h:g}] ", t) for h, t in zip(heads, self.result.tables, strict=True)]
        return [
            {
                "name": head + self._shown(name),
                "coef": table.values[i],
                "std err": table.standard_errors[i],
                "z": table.statistics[i],
                "p": table.p_values[i],
                "low": table.lower[i],
                "high": table.upper[i],
            }
            for head, table in tables
            if table is not None
            for i, name in enumerate(table.names)
        ]

    def _shown(self, name: str) -> str:
        dummy = _DUMMY.match(name)
        if dummy and dummy[1] in self.levels:
            return f"{dummy[1]}={self.levels[dummy[1]][int(dummy[2])]}"
        return name

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know."""
        return tuple(getattr(self.result, "notes", ()))

    def facts(self) -> dict[str, Any]:
        """Numbers of the whole fit that the result has, by name."""
        wanted = ("rows", "events", "excluded", "log_likelihood", "deviance", "aic", "bic")
        more = (
            "r_squared",
            "dispersion",
            "alpha",
            "concordance",
            "group_variance",
            "residual_variance",
        )
        last = ("intraclass", "iterations", "converged")
        found = {
            n: getattr(self.result, n) for n in (*wanted, *more, *last) if hasattr(self.result, n)
        }
        return {n.replace("_", " "): v for n, v in found.items()}

    def summary(self) -> str:
        """A table for the terminal, in the manner of statsmodels."""
        lines = [self.model, "=" * 84]
        facts = [f"{name}: {_number(value)}" for name, value in self.facts().items()]
        lines += [f"{left:<39}{right}" for left, right in _pairs(facts)]
        heads = ("coef", "std err", "z", "p", "low", "high")
        lines += ["-" * 84, f"{'':<24}" + "".join(f"{head:>10}" for head in heads)]
        for record in self.records():
            numbers = "".join(f"{_number(record[head], 3):>10}" for head in heads)
            lines.append(f"{record['name'][:23]:<24}{numbers}")
        return "\n".join([*lines, "=" * 84, *(f"note: {note}" for note in self.notes)])


def _pairs(items: Sequence[str]) -> list[tuple[str, str]]:
    padded = [*items, ""] if len(items) % 2 else list(items)
    return list(zip(padded[::2], padded[1::2], strict=True))


def _number(value: Any, digits: int = 6) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{value:.{digits}g}"


@dataclass(frozen=True)
class _Regression:
    """Options that regressions share.

    Args:
        outcome: column to be explained; of two categories the second is the event.
        features: columns that explain; categories become 0/1 columns, the first level is the reference.
        intercept: ``common``, one for each ``site``, or ``none``.
        covariance: of the standard errors: ``model``, ``hc0``, ``hc1``, or clustered by ``site``.
        penalty: elastic net: strength ``alpha`` per row and the lasso's ``ratio``.
        weights, offset: columns, or empty.
        level: of confidence intervals.
    """

    outcome: str
    features: Sequence[str]
    intercept: Literal["common", "site", "none"] = "common"
    covariance: Literal["model", "hc0", "hc1", "site"] = "model"
    penalty: tuple[float, float] = (0.0, 0.0)
    weights: str = ""
    offset: str = ""
    level: float = 0.95

    family = ""
    ratios = ""

    def fit(self, federation: Federation, **run: Any) -> Fitted:
        """Fit to all sites' rows.

        Args:
            federation: who is asked.
            run: options of :meth:`~atoll.stats.federation.Federation.solve`.

        Raises:
            Forbidden: disclosure control refuses.
            AtollError: a site cannot answer, or the model makes no sense.
        """
        federation.check(self.outcome, *self.features)
        analysis = GLM(
            self.outcome,
            tuple(self.features),
            self.family,
            categories=_categories(federation, self.features),
            intercept=self.intercept,
            covariance=self.covariance,
            penalty=Penalty(*self.penalty),
            weights=self.weights,
            offset=self.offset,
            level=self.level,
        )
        return _fitted(federation, analysis, self._title, self.ratios, run)

    @property
    def _title(self) -> str:
        kind = re.sub(r"(?<!^)(?=[A-Z])", " ", type(self).__name__).lower()
        return f"{kind.capitalize()} of {self.outcome} over sites"


def _categories(federation: Federation, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    return {
        name: tuple(float(i) for i in range(len(federation.levels[name])))
        for name in names
        if name in federation.levels
    }


def _fitted(
    federation: Federation, analysis: Analysis, title: str, ratios: str, run: Mapping[str, Any]
) -> Fitted:
    result = federation.solve(analysis, **run)
    table = getattr(result, "table", None)
    size = len(table.names) if table is not None else sum(len(t.names) for t in result.tables)
    minimum = federation.rule.minimum
    if minimum > 1 and result.rows - size < minimum:
        raise Forbidden(
            f"a model of {size} coefficients for hardly more rows would tell about single ones",
            remedy=f"use fewer features: {minimum} rows more than coefficients are needed",
        )
    return Fitted(title, result, federation.levels, ratios)


@dataclass(frozen=True)
class LinearRegression(_Regression):
    """Least squares."""

    family = "gaussian"


@dataclass(frozen=True)
class LogisticRegression(_Regression):
    """Logistic regression of a 0/1 outcome."""

    family = "binomial"
    ratios = "odds ratio"


@dataclass(frozen=True)
class PoissonRegression(_Regression):
    """Poisson regression of counts, log link."""

    family = "poisson"
    ratios = "rate ratio"


@dataclass(frozen=True)
class GammaRegression(_Regression):
    """Gamma regression of positive numbers, log link."""

    family = "gamma"
    ratios = "ratio of means"


@dataclass(frozen=True)
class NegativeBinomialRegression:
    """Negative binomial regression (NB2) with its dispersion alpha estimated.

    Args:
        outcome: column of counts.
        features: columns that explain.
        intercept: ``common``, one for each ``site``, or ``none``.
        offset: column, or empty.
        level: of confidence intervals.
    """

    outcome: str
    features: Sequence[str]
    intercept: Literal["common", "site", "none"] = "common"
    offset: str = ""
    level: float = 0.95

    def fit(self, federation: Federation, **run: Any) -> Fitted:
        """As that of the other regressions."""
        federation.check(self.outcome, *self.features)
        categories = _categories(federation, self.features)
        analysis = Negative(
            self.outcome,
            tuple(self.features),
            categories,
            self.intercept,
            offset=self.offset,
            level=self.level,
        )
        title = f"Negative binomial regression of {self.outcome} over sites"
        return _fitted(federation, analysis, title, "rate ratio", run)


@dataclass(frozen=True)
class MultinomialRegression:
    """Multinomial logistic regression; the first category is the reference.

    Args:
        outcome: column of categories.
        features: columns that explain.
        level: of confidence intervals.
    """

    outcome: str
    features: Sequence[str]
    level: float = 0.95

    def fit(self, federation: Federation, **run: Any) -> Fitted:
        """As that of the other regressions."""
        federation.check(self.outcome, *self.features)
        codes = tuple(float(i) for i in range(len(federation.groups(self.outcome))))
        categories = _categories(federation, self.features)
        analysis = Multinomial(
            self.outcome, codes, tuple(self.features), categories, level=self.level
        )
        title = f"Multinomial regression of {self.outcome} over sites"
        return _fitted(federation, analysis, title, "odds ratio", run)


@dataclass(frozen=True)
class MixedModel:
    """A linear model with a normal random intercept for each site, or for each group within one.

    Args:
        outcome: column to be explained.
        features: columns that explain.
        group: column of codes of the groups within a site; empty: sites are the groups.
        reml: restricted maximum likelihood; else maximum likelihood.
        level: of confidence intervals.
    """

    outcome: str
    features: Sequence[str]
    group: str = ""
    reml: bool = True
    level: float = 0.95

    def fit(self, federation: Federation, **run: Any) -> Fitted:
        """As that of the other regressions."""
        federation.check(self.outcome, *self.features)
        categories = _categories(federation, self.features)
        analysis = Mixed(
            self.outcome, tuple(self.features), self.group, categories, self.reml, self.level
        )
        title = f"Linear mixed model of {self.outcome} over sites"
        return _fitted(federation, analysis, title, "", run)


@dataclass(frozen=True)
class CoxRegression:
    """Cox's proportional hazards model.

    Args:
        time: column of the time of event or censoring.
        event: column of 1 for an event and 0 for censoring.
        features: columns that explain.
        axis: the times at which sites count.
        ties: ``efron`` or ``breslow``.
        strata: ``none``, ``site``, or a column of categories.
        level: of confidence intervals.
    """

    time: str
    event: str
    features: Sequence[str]
    axis: Axis
    ties: Literal["efron", "breslow"] = "efron"
    strata: str = "none"
    level: float = 0.95

    def fit(self, federation: Federation, **run: Any) -> Fitted:
        """As that of the other regressions."""
        federation.check(self.time, self.event, *self.features)
        column = self.strata not in ("none", "site")
        codes = range(len(federation.groups(self.strata))) if column else range(0)
        analysis = Cox(
            self.time,
            self.event,
            tuple(self.features),
            self.axis,
            _categories(federation, self.features),
            self.ties,
            self.strata,
            tuple(float(i) for i in codes),
            level=self.level,
        )
        title = f"Cox regression of {self.time} over sites"
        return _fitted(federation, analysis, title, "hazard ratio", run)
