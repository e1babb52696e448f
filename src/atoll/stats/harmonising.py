"""Columns made comparable where they lie."""

from __future__ import annotations

from collections.abc import Sequence

from atoll.algorithms.statistics import harmonise, harmonise_combat
from atoll.stats.federation import Federation

__all__ = ["combat", "standardise"]


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
