"""Regressions.

None is shown in which a category of a feature, or an outcome of few kinds, is that of fewer rows than the
minimum: the coefficient of a category that one person has is what that person's outcome is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from atoll.algorithms.statistics import glm_negative, mixed
from atoll.algorithms.statistics.analysis import Analysis, Question
from atoll.algorithms.statistics.cells import small_parts
from atoll.algorithms.statistics.glm import GLM
from atoll.algorithms.statistics.glm_multinomial import Multinomial
from atoll.algorithms.statistics.penalty import Penalty
from atoll.algorithms.statistics.together import Derived
from atoll.core.errors import Forbidden
from atoll.job.inquiries.book import Codebook
from atoll.job.inquiries.inquiry import Estimator, Finding, facts_of
from atoll.job.inquiries.tables import numbers_of

__all__ = [
    "Fitted",
    "GammaRegression",
    "LinearRegression",
    "LogisticRegression",
    "MixedModel",
    "MultinomialRegression",
    "NegativeBinomialRegression",
    "PoissonRegression",
    "Regression",
    "fitted",
    "guarded",
]

_FACTS = (
    "rows",
    "events",
    "excluded",
    "log_likelihood",
    "deviance",
    "aic",
    "bic",
    "r_squared",
    "dispersion",
    "alpha",
    "concordance",
    "group_variance",
    "residual_variance",
    "intraclass",
    "iterations",
    "converged",
)
"""What results say of the whole fit, in the order in which it is shown."""


@dataclass(frozen=True, eq=False)
class Fitted(Finding):
    """A fitted model; its table has one line a coefficient: estimate, standard error, test, interval.

    Args:
        title: what was fitted, for the heading.
        result: the analysis' own result, with all its numbers.
        book: the columns and their categories.
        ratios: what exponentials of coefficients are called; empty where they mean nothing.
        notes: what a reader has to know.
        outcomes: names of the categories that a table each compares with the first one, of several tables.
    """

    title: str
    result: Any
    book: Codebook
    ratios: str = ""
    notes: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()

    index = "name"

    def records(self) -> list[dict[str, Any]]:
        """One line a coefficient."""
        tables = [("", getattr(self.result, "table", None))]
        if tables[0][1] is None:
            found = zip(self.outcomes, self.result.tables, strict=True)
            tables = [(f"[{name}] ", table) for name, table in found]
        return [
            {
                "name": head + self.book.shown(name),
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

    def facts(self) -> dict[str, Any]:
        """Numbers of the whole fit that the result has, by name."""
        return facts_of(self.result, _FACTS)


@dataclass(frozen=True)
class _Guarded(Derived):
    """A regression that is read only where no coefficient tells of few rows."""

    model: Analysis
    minimum: int
    binary: frozenset[str]

    @property
    def inner(self) -> Analysis:
        """The regression."""
        return self.model

    def read(self, state: Question) -> Any:
        """Its result.

        Raises:
            Forbidden: names the columns by which few rows could be told, or weights that leave rows out.
        """
        if isinstance(self.model, GLM) and (weights := self.model.weights):
            whole, counted = float(state["counts"][0]), float(state["outcomes"][5])
            if counted < whole:  # how many there are of a category is known of all rows alone
                raise Forbidden(
                    f"rows in which {weights!r} is 0 are left out, and no rule looks at the others",
                    remedy="select the rows of the analysis instead (where), and give them weights above 0",
                )
        if small := small_parts(self.model, state, self.minimum, self.binary):
            raise Forbidden(
                f"a category of {' and of '.join(map(repr, small))} has fewer than {self.minimum} rows: "
                "coefficients would tell of those",
                remedy="join categories, or leave the column out",
            )
        return self.model.result(state)


def guarded(model: Analysis, book: Codebook) -> Analysis:
    """The regression ``model`` under the rule of ``book``."""
    return _Guarded(model, book.rule.minimum, book.binary) if book.rule.minimum > 1 else model


def fitted(
    book: Codebook, result: Any, title: str, ratios: str = "", notes: Sequence[str] = ()
) -> Fitted:
    """A model's result as it may be shown.

    Args:
        book: the columns and their categories.
        result: the analysis' own.
        title: what was fitted.
        ratios: see :class:`Fitted`.
        notes: what has to be said beside the result's own.

    Raises:
        Forbidden: hardly more rows than coefficients.
    """
    table = getattr(result, "table", None)
    size = len(table.names) if table is not None else sum(len(t.names) for t in result.tables)
    minimum = book.rule.minimum
    if minimum > 1 and result.rows - size < minimum:
        raise Forbidden(
            f"a model of {size} coefficients for hardly more rows would tell about single ones",
            remedy=f"use fewer features: {minimum} rows more than coefficients are needed",
        )
    return Fitted(title, result, book, ratios, (*notes, *book.told(result.notes)))


def _columns(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True)
class Regression(Estimator):
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
    title = ""

    def named(self) -> tuple[str, ...]:
        """All columns."""
        return _columns(self.outcome, *self.features, self.weights, self.offset)

    def analysis(self, book: Codebook) -> Analysis:
        """A generalised linear model."""
        book.check(*self.named())
        book.event(self.outcome)
        model = GLM(
            self.outcome,
            self.features,
            self.family,
            categories=book.categories(self.features),
            intercept=self.intercept,
            covariance=self.covariance,
            penalty=Penalty(*self.penalty),
            weights=self.weights,
            offset=self.offset,
            level=self.level,
        )
        return guarded(model, book)

    def finding(self, book: Codebook, found: Any) -> Fitted:
        """The coefficients."""
        title = f"{self.title} of {self.outcome} over sites"
        return fitted(book, found, title, self.ratios, book.event(self.outcome))


@dataclass(frozen=True)
class LinearRegression(Regression):
    """Least squares."""

    family = "gaussian"
    title = "Linear regression"


@dataclass(frozen=True)
class LogisticRegression(Regression):
    """Logistic regression of a 0/1 outcome."""

    family = "binomial"
    ratios = "odds ratio"
    title = "Logistic regression"


@dataclass(frozen=True)
class PoissonRegression(Regression):
    """Poisson regression of counts, log link."""

    family = "poisson"
    ratios = "rate ratio"
    title = "Poisson regression"


@dataclass(frozen=True)
class GammaRegression(Regression):
    """Gamma regression of positive numbers, log link."""

    family = "gamma"
    ratios = "ratio of means"
    title = "Gamma regression"


@dataclass(frozen=True)
class NegativeBinomialRegression(Estimator):
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

    def named(self) -> tuple[str, ...]:
        """All columns."""
        return _columns(self.outcome, *self.features, self.offset)

    def analysis(self, book: Codebook) -> Analysis:
        """The regression."""
        book.check(*self.named())
        numbers_of(book, [self.outcome])
        model = glm_negative.NegativeBinomialRegression(
            self.outcome,
            self.features,
            book.categories(self.features),
            self.intercept,
            offset=self.offset,
            level=self.level,
        )
        return guarded(model, book)

    def finding(self, book: Codebook, found: Any) -> Fitted:
        """The coefficients."""
        title = f"Negative binomial regression of {self.outcome} over sites"
        return fitted(book, found, title, "rate ratio")


@dataclass(frozen=True)
class MultinomialRegression(Estimator):
    """Multinomial logistic regression; the first category is the reference.

    Args:
        outcome: column of categories.
        features: columns that explain.
        level: of confidence intervals.
    """

    outcome: str
    features: Sequence[str]
    level: float = 0.95

    def named(self) -> tuple[str, ...]:
        """All columns."""
        return _columns(self.outcome, *self.features)

    def analysis(self, book: Codebook) -> Analysis:
        """The regression."""
        book.check(*self.named())
        codes = book.codes(self.outcome)
        known = book.categories(self.features)
        model = Multinomial(self.outcome, codes, self.features, known, level=self.level)
        return guarded(model, book)

    def finding(self, book: Codebook, found: Any) -> Fitted:
        """The coefficients."""
        title = f"Multinomial regression of {self.outcome} over sites"
        first, *others = book.groups(self.outcome)
        note = f"each category is compared with {self.outcome} = {first}"
        return replace(fitted(book, found, title, "odds ratio", [note]), outcomes=tuple(others))


@dataclass(frozen=True)
class MixedModel(Estimator):
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

    def named(self) -> tuple[str, ...]:
        """All columns."""
        return _columns(self.outcome, *self.features, self.group)

    def analysis(self, book: Codebook) -> Analysis:
        """The model."""
        book.check(*self.named())
        numbers_of(book, [self.outcome])
        known = book.categories(self.features)
        model = mixed.MixedModel(
            self.outcome, self.features, self.group, known, self.reml, self.level
        )
        return guarded(model, book)

    def finding(self, book: Codebook, found: Any) -> Fitted:
        """The coefficients."""
        return fitted(book, found, f"Linear mixed model of {self.outcome} over sites")
