"""Clusters and mixtures of all sites' rows; columns made comparable where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from atoll.algorithms.statistics import cluster, harmonise, harmonise_combat, mixture
from atoll.core.seeds import Seed
from atoll.job.inquiries import clusters
from atoll.job.inquiries.clusters import Found
from atoll.stats.federation import Federation

__all__ = ["Found", "GaussianMixture", "KMeans", "combat", "standardise"]


@dataclass(frozen=True)
class KMeans:
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
    seed: Seed = field(default_factory=lambda: Seed(0))

    def fit(self, federation: Federation, **run: Any) -> Found:
        """Ask all sites.

        Raises:
            Forbidden: a cluster is small, or disclosure control refuses otherwise.
        """
        columns = tuple(self.columns)
        asked = cluster.KMeans(
            columns, self.clusters, self.seed, self.starts, standardise=self.standardise
        )
        found = federation.solve(asked, **run)
        return clusters.Clusters(columns, self.clusters).finding(federation.book, found)


@dataclass(frozen=True)
class GaussianMixture:
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
    seed: Seed = field(default_factory=lambda: Seed(0))

    def fit(self, federation: Federation, **run: Any) -> Found:
        """As :meth:`KMeans.fit`."""
        columns = tuple(self.columns)
        asked = mixture.GaussianMixture(columns, self.components, self.seed, self.covariance)
        found = federation.solve(asked, **run)
        return clusters.Mixture(columns, self.components).finding(federation.book, found)


def standardise(federation: Federation, columns: Sequence[str]) -> Federation:
    """The same federation with columns of mean 0 and standard deviation 1 over all sites."""
    return federation.changed(federation.solve(harmonise.Standardise(tuple(columns))).apply)


def combat(
    federation: Federation, columns: Sequence[str], covariates: Sequence[str] = ()
) -> Federation:
    """The same federation with the sites' own shifts and scales taken out of columns (ComBat).

    Args:
        federation: who is asked.
        columns: measurements, such as features of images.
        covariates: columns whose effects stay.
    """
    categories = federation.book.categories(covariates)
    asked = harmonise_combat.ComBat(tuple(columns), tuple(covariates), categories)
    return federation.changed(federation.solve(asked).apply)
