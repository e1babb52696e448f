"""Whether a job's updates are masked, where the job leaves it open: from the job and how many sites it is for.

``privacy.aggregation = "auto"``, the default, means masks wherever they hide something and nothing in the job
is against them, and plain sums elsewhere. Everybody comes to the same answer by themselves (the server, each
node, a simulation), because nothing but the job and the number of invited sites goes into it: neither data
nor timing, and no word of the server but the list of sites.

Masked sums are made of integers. What ``auto`` masks travels with 64 bits a value, so wide and so fine that
no update of any use is clipped and no rounding is seen beside that of training. A job that wants half the
bytes says ``masked``, and with it which range it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from atoll.job.buffered import against
from atoll.job.declared import Privacy
from atoll.privacy.secagg.terms import usual_threshold
from atoll.runtime.schedule import Asynchronous, Schedule, Synchronous

__all__ = ["FEWEST", "Settled", "applied", "settle"]

FEWEST = 5
"""With fewer sites in a sum, each of them can tell too much of the others from it."""

_RANGE = 2.0**18
"""Of a coordinate in what ``auto`` masks, where the job names none."""
_CAP = 2**18
"""Largest number of examples that counts there as weight, likewise."""

Kind = Literal["plain", "quantised", "masked", "encrypted"]


@dataclass(frozen=True)
class Settled:
    """How a run's updates are added up, and why so.

    Args:
        kind: as in ``privacy.aggregation``, and never ``auto``.
        why: for people.

    >>> str(Settled("plain", "4 sites, masks hide little below 5"))
    'plain: 4 sites, masks hide little below 5'
    """

    kind: Kind
    why: str

    def __str__(self) -> str:
        """Both."""
        return f"{self.kind}: {self.why}"

    @property
    def masked(self) -> bool:
        """Whether sites send under masks only."""
        return self.kind == "masked"

    @property
    def hidden(self) -> bool:
        """Whether the server sees sums only, be it by masks or by ciphertexts."""
        return self.kind in ("masked", "encrypted")


def settle(privacy: Privacy, schedule: Schedule, algorithm: Any, sites: int) -> Settled:
    """How updates of this job are added up between so many institutions.

    Args:
        privacy: of the job. What it says itself is never overruled.
        schedule: of the rounds.
        algorithm: what is computed.
        sites: how many are invited to the run.
    """
    if privacy.aggregation != "auto":
        return Settled(privacy.aggregation, "the job says so")
    if against := next(_against(privacy, schedule, algorithm, sites), ""):
        return Settled("plain", against)
    return Settled("masked", f"{sites} sites, and nothing in the job is against it")


def _against(privacy: Privacy, schedule: Schedule, algorithm: Any, sites: int) -> Iterator[str]:
    """What speaks against masks."""
    if sites < FEWEST:
        some = f"{sites} site{'s' if sites != 1 else ''}"
        yield f"{some}, masks hide little below {FEWEST}"
    if not getattr(algorithm, "additive", True):
        yield f"{type(algorithm).__name__} needs single updates"
    if privacy.max_norm:
        yield "privacy.max_norm looks at single updates"
    if isinstance(schedule, Asynchronous):
        if schedule.buffer < FEWEST:
            yield f"buffers of {schedule.buffer} updates, masks hide little below {FEWEST}"
        yield from against(schedule, algorithm.staleness)
    if isinstance(schedule, Synchronous):
        yield from _of_cohorts(privacy, schedule, sites)


def _of_cohorts(privacy: Privacy, schedule: Synchronous, sites: int) -> Iterator[str]:
    cohort, size = schedule.cohort, sites
    if cohort.kind == "poisson":
        yield f"a cohort drawn by 'poisson' may be of fewer than {FEWEST} sites"
    if cohort.kind in ("uniform", "weighted"):
        size = cohort.size
        if size < FEWEST:
            yield f"cohorts of {size} sites, masks hide little below {FEWEST}"
    quorum = schedule.least(size)
    least = privacy.threshold or usual_threshold(size)
    if 1 < quorum < least:
        yield f"rounds.quorum is {quorum}, and a masked sum takes {least} of {size} sites"


def applied(privacy: Privacy, found: Settled, *, masks: bool = True) -> Privacy:
    """The section with what was settled in the place of ``auto``; any other stays as it is.

    Args:
        privacy: of the job.
        found: see :func:`settle`.
        masks: whether there is a server from which to hide anything. A simulation has none: it adds up the
            integers that sites would send, without masks, and so comes to the same bits.
    """
    if privacy.aggregation != "auto":
        return privacy
    if not found.masked:
        return replace(privacy, aggregation="plain", threshold=0, degree=0)
    unsaid = privacy.bound == Privacy().bound and not privacy.clip
    wide = replace(
        privacy,
        aggregation="masked",
        bits=64,
        bound=_RANGE if unsaid else privacy.bound,
        cap=privacy.cap or _CAP,
    )
    return wide if masks else replace(wide, aggregation="quantised", threshold=0, degree=0)
