"""Columns made comparable where they lie: every site's own rows, changed with what all sites share."""

from __future__ import annotations

from collections.abc import Sequence

from atoll.job.inquiries.harmonise import ComBat, Standardisation
from atoll.stats.federation import Federation

__all__ = ["combat", "standardise"]


def standardise(federation: Federation, columns: Sequence[str]) -> Federation:
    """The same federation with columns of mean 0 and standard deviation 1 over all sites.

    Args:
        federation: who is asked.
        columns: of numbers.
    """
    return federation.changed(Standardisation(columns).fit(federation).result.apply)


def combat(
    federation: Federation, columns: Sequence[str], covariates: Sequence[str] = ()
) -> Federation:
    """The same federation with the sites' own shifts and scales taken out of columns (ComBat).

    Args:
        federation: who is asked.
        columns: measurements, such as features of images.
        covariates: columns whose effects stay.
    """
    asked = ComBat(columns, covariates, by_site=False)
    return federation.changed(asked.fit(federation).result.apply)
