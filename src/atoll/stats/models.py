"""Regressions with the manners of scikit-learn: options at construction, data at ``fit``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from atoll.algorithms.statistics.survival_axis import Axis
from atoll.job.inquiries import models, survival
from atoll.job.inquiries.book import Inquiry
from atoll.job.inquiries.models import Fitted
from atoll.stats.federation import Answers

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


def _fit(federation: Answers, asked: Inquiry, run: Any) -> Fitted:
    found: Any = federation.ask(asked, **run)
    fitted: Fitted = found
    return fitted


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

    kind: ClassVar[type[models.Regression]] = models.Linear

    def fit(self, federation: Answers, **run: Any) -> Fitted:
        """Fit to all sites' rows.

        Args:
            federation: who is asked.
            run: options of :meth:`~atoll.stats.federation.Federation.solve`.

        Raises:
            Forbidden: disclosure control refuses.
            AtollError: a site cannot answer, or the model makes no sense.
        """
        asked = self.kind(
            self.outcome,
            tuple(self.features),
            self.intercept,
            self.covariance,
            self.penalty,
            self.weights,
            self.offset,
            self.level,
        )
        return _fit(federation, asked, run)


@dataclass(frozen=True)
class LinearRegression(_Regression):
    """Least squares."""

    kind = models.Linear


@dataclass(frozen=True)
class LogisticRegression(_Regression):
    """Logistic regression of a 0/1 outcome."""

    kind = models.Logistic


@dataclass(frozen=True)
class PoissonRegression(_Regression):
    """Poisson regression of counts, log link."""

    kind = models.Poisson


@dataclass(frozen=True)
class GammaRegression(_Regression):
    """Gamma regression of positive numbers, log link."""

    kind = models.Gamma


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

    def fit(self, federation: Answers, **run: Any) -> Fitted:
        """As that of the other regressions."""
        asked = models.NegativeBinomial(
            self.outcome, tuple(self.features), self.intercept, self.offset, self.level
        )
        return _fit(federation, asked, run)


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

    def fit(self, federation: Answers, **run: Any) -> Fitted:
        """As that of the other regressions."""
        asked = models.Multinomial(self.outcome, tuple(self.features), self.level)
        return _fit(federation, asked, run)


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

    def fit(self, federation: Answers, **run: Any) -> Fitted:
        """As that of the other regressions."""
        asked = models.Mixed(self.outcome, tuple(self.features), self.group, self.reml, self.level)
        return _fit(federation, asked, run)


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

    def fit(self, federation: Answers, **run: Any) -> Fitted:
        """As that of the other regressions."""
        asked = survival.ProportionalHazards(
            self.time,
            self.event,
            tuple(self.features),
            self.axis.horizon,
            self.ties,
            self.strata,
            self.level,
            self.axis.resolution,
            tuple(self.axis.times),
        )
        return _fit(federation, asked, run)
