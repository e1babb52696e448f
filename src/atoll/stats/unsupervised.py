"""Clusters and mixtures of all sites' rows; columns made comparable where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from atoll.algorithms.statistics import cluster, harmonise, harmonise_combat, mixture
from atoll.core.errors import Forbidden
from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.stats.federation import Federation
from atoll.stats.frames import frame

__all__ = ["Found", "GaussianMixture", "KMeans", "combat", "standardise"]


@dataclass(frozen=True, eq=False)
class Found:
    """Centres of clusters or of a mixture's components.

    Args:
        result: the analysis' own result.
        centres: ``(k, columns)``.
        sizes: rows of each cluster, or weights of each component, ``(k,)``.
    """

    result: Any
    centres: Array
    sizes: Array

    @property
    def table(self) -> Any:
        """One line a centre, as a pandas frame."""
        names = self.result.features
        return frame(
            [
                {"share or rows": size, **dict(zip(names, centre, strict=True))}
                for size, centre in zip(self.sizes, self.centres, strict=True)
            ]
        )


def _checked(federation: Federation, rows: Array, what: str) -> None:
    least = federation.rule.minimum
    if least > 1 and (rows < least).any():
        raise Forbidden(
            f"a {what} has fewer than {least} persons", remedy="ask for fewer, or other columns"
        )


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
        asked = cluster.KMeans(
            tuple(self.columns),
            self.clusters,
            self.seed,
            self.starts,
            standardise=self.standardise,
        )
        found = federation.solve(asked, **run)
        _checked(federation, found.sizes, "cluster")
        return Found(found, found.centres, found.sizes)


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
        asked = mixture.GaussianMixture(
            tuple(self.columns), self.components, self.seed, self.covariance
        )
        found = federation.solve(asked, **run)
        _checked(federation, found.weights * found.rows, "component")
        return Found(found, found.means, found.weights)


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
    levels = federation.levels
    categories = {n: tuple(map(float, range(len(levels[n])))) for n in covariates if n in levels}
    asked = harmonise_combat.ComBat(tuple(columns), tuple(covariates), categories)
    return federation.changed(federation.solve(asked).apply)
