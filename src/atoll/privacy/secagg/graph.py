"""Who shares a mask and secrets with whom.

A cohort of up to a hundred sites: everybody with everybody. A larger one: each with ``degree`` others,
who stand next to it on a circle (a Harary graph). The order on the circle comes from a hash of the
signed first messages, so it is fixed by what the sites themselves drew, after the server has named
the cohort.
"""

from __future__ import annotations

from collections.abc import Sequence

from atoll.privacy.secagg.canonical import digest

__all__ = ["neighbours"]


def neighbours(members: Sequence[int], seed: bytes, degree: int) -> dict[int, tuple[int, ...]]:
    """The neighbours of each member, in order of their indices.

    Args:
        members: indices of the sites.
        seed: what the order on the circle is drawn from.
        degree: an even number of neighbours each; 0, or as many as there are others, for all.

    >>> neighbours([1, 2, 3], b"", 0)
    {1: (2, 3), 2: (1, 3), 3: (1, 2)}
    >>> {len(others) for others in neighbours(range(1, 10), b"", 4).values()}
    {4}
    """
    if not 0 < degree < len(members) - 1:
        return {i: tuple(sorted(j for j in members if j != i)) for i in members}
    circle = sorted(members, key=lambda member: (digest("circle", seed, member), member))
    near = [*range(-degree // 2, 0), *range(1, degree // 2 + 1)]
    return {
        member: tuple(sorted(circle[(place + step) % len(circle)] for step in near))
        for place, member in enumerate(circle)
    }
