"""What is left in a sum of masked inputs, opened from shares.

The pairwise masks of two sites in the sum cancel. What stays are the own masks of those in the sum, and
the pairwise masks between them and those who dealt and then dropped out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll.core.errors import AuthError, WireError
from atoll.privacy.secagg.keys import Pair
from atoll.privacy.secagg.masks import MaskPlan
from atoll.privacy.secagg.messages import Commitment, Release
from atoll.privacy.secagg.session import commit_seed, pair_key, stream_key
from atoll.privacy.secagg.shamir import combine, weights_at_zero
from atoll.privacy.secagg.terms import Terms

__all__ = ["Opened", "remaining_masks"]


@dataclass(frozen=True)
class Opened:
    """What there is to open in one attempt.

    Args:
        terms: of the round.
        commitments: by index.
        circles: who holds the shares of each site.
        dealers: who dealt (U2).
        survivors: whose input is in the sum (U3).
    """

    terms: Terms
    commitments: Mapping[int, Commitment]
    circles: Mapping[int, tuple[int, ...]]
    dealers: frozenset[int]
    survivors: frozenset[int]

    @property
    def least(self) -> int:
        """Shares that open one secret."""
        return self.terms.opening(len(self.commitments))

    def needed(self) -> tuple[int, ...]:
        """Whose secret is to be opened: everybody who left a mask in the sum."""
        return tuple(
            i
            for i in sorted(self.dealers)
            if i in self.survivors or self.survivors & set(self.circles[i])
        )

    def missing(self, releases: Mapping[int, Release]) -> tuple[int, ...]:
        """Of whom too few shares have come."""
        return tuple(
            i for i in self.needed() if len(releases.keys() & set(self.circles[i])) < self.least
        )


def remaining_masks(opened: Opened, releases: Mapping[int, Release]) -> MaskPlan:
    """The masks in the sum, as the sites put them in.

    Args:
        opened: what there is to open.
        releases: checked ones, by sender; enough of them, see :meth:`Opened.missing`.

    Raises:
        AuthError: a dealer's shares do not open what it had committed itself to; it is named.
    """
    shares = {
        (share.dealer, sender): share.value
        for sender, release in releases.items()
        for share in release.shares
    }
    weights: dict[tuple[int, ...], dict[int, int]] = {}
    added, subtracted = list[bytes](), list[bytes]()
    for i in opened.needed():
        points = tuple(sorted(releases.keys() & set(opened.circles[i])))[: opened.least]
        if points not in weights:
            weights[points] = weights_at_zero(points)
        secret = _secret(opened, i, {x: shares[i, x] for x in points}, weights[points])
        if i in opened.survivors:
            added.append(stream_key(secret, opened.terms.context, i))
            continue
        pair = Pair(secret)
        for j in sorted((opened.survivors & set(opened.circles[i])) - {i}):
            key = pair_key(pair, opened.commitments[j].mask, opened.terms.context, i, j)
            (added if i > j else subtracted).append(key)  # as j did: it adds what is above it
    return MaskPlan(tuple(added), tuple(subtracted))


def _secret(
    opened: Opened, i: int, shares: Mapping[int, bytes], weights: Mapping[int, int]
) -> bytes:
    """The seed or key of site ``i``, checked against what it had committed itself to."""
    name, said = opened.terms.cohort[i - 1].name, opened.commitments[i]
    try:
        secret = combine(shares, weights)
    except WireError as error:
        raise AuthError(f"the shares that {name} dealt open nothing", site=name) from error
    if i in opened.survivors:
        good = commit_seed(secret, opened.terms.context, i) == said.seed_hash
    else:
        good = Pair(secret).public == said.mask
    if not good:
        raise AuthError(f"the shares that {name} dealt open another secret", site=name)
    return secret
