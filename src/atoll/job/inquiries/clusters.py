"""Clusters and mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from atoll.algorithms.statistics import cluster, mixture
from atoll.algorithms.statistics.analysis import Analysis
from atoll.algorithms.statistics.columns import free_head
from atoll.core.errors import Forbidden
from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.job.inquiries.book import Codebook
from atoll.job.inquiries.inquiry import Estimator, Finding, facts_of
from atoll.job.inquiries.tables import numbers_of

__all__ = ["Found", "GaussianMixture", "KMeans"]

_FACTS = (
    "rows",
    "excluded",
    "inertia",
    "log_likelihood",
    "aic",
    "bic",
    "iterations",
    "converged",
)


@dataclass(frozen=True, eq=False)
class Found(Finding):
    """Centres of clusters or of a mixture's components; the table has one line a centre.

    Args:
        result: the analysis' own result.
        centres: ``(k, columns)``.
        sizes: rows of each cluster, or weights of each component, ``(k,)``.
        size: which of them, for the head of the table: ``rows`` or ``share``.
        notes: what a reader has to know.
    """

    result: Any
    centres: Array
    sizes: Array
    size: str
    notes: tuple[str, ...]

    title = ""

    def records(self) -> list[dict[str, Any]]:
        """One line a centre."""
        names = self.result.features
        head = free_head(self.size, names)
        return [
            {head: size, **dict(zip(names, centre, strict=True))}
            for size, centre in zip(self.sizes, self.centres, strict=True)
        ]

    def facts(self) -> dict[str, Any]:
        """Numbers of the whole fit, such as those by which to choose how many centres there are."""
        return facts_of(self.result, _FACTS)


def _checked(book: Codebook, rows: Array, what: str) -> None:
    least = book.rule.minimum
    if least > 1 and (rows < least).any():
        raise Forbidden(
            f"a {what} has fewer than {least} rows", remedy="ask for fewer, or other columns"
        )


@dataclass(frozen=True)
class KMeans(Estimator):
    """k-means (Lloyd's algorithm).

    Args:
        columns: columns of numbers.
        clusters: k.
        starts: how many are tried.
        standardise: divide columns by their standard deviations first.
        seed: of the starts.
    """

    columns: Sequence[str]
    clusters: int
    starts: int = 10
    standardise: bool = True
    seed: int = 0

    def named(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.columns)

    def analysis(self, book: Codebook) -> Analysis:
        """The clusters."""
        return cluster.KMeans(
            numbers_of(book, self.columns),
            self.clusters,
            Seed(self.seed),
            self.starts,
            standardise=self.standardise,
        )

    def finding(self, book: Codebook, found: Any) -> Found:
        """The centres."""
        _checked(book, found.sizes, "cluster")
        return Found(found, found.centres, found.sizes, "rows", found.notes)


@dataclass(frozen=True)
class GaussianMixture(Estimator):
    """A mixture of normal distributions, by expectation and maximisation.

    Args:
        columns: columns of numbers.
        components: k.
        covariance: ``full`` or ``diagonal``.
        seed: of the k-means before.
    """

    columns: Sequence[str]
    components: int
    covariance: Literal["full", "diagonal"] = "full"
    seed: int = 0

    def named(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self.columns)

    def analysis(self, book: Codebook) -> Analysis:
        """The mixture."""
        return mixture.GaussianMixture(
            numbers_of(book, self.columns), self.components, Seed(self.seed), self.covariance
        )

    def finding(self, book: Codebook, found: Any) -> Found:
        """The components' means and weights."""
        _checked(book, found.weights * found.rows, "component")
        return Found(found, found.means, found.weights, "share", found.notes)
