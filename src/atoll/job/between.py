"""What a job becomes between so many sites: how updates are added up, and what is told beside them.

Both follow from the job and the number of sites alone, so that everybody comes to the same answer.
"""

from __future__ import annotations

from atoll.job.discretion import Discretion
from atoll.job.registry import algorithm_named
from atoll.job.schema import JobSpec
from atoll.job.settling import Settled, settle
from atoll.job.tables import privacy_of, schedule_of

__all__ = ["discretion_of", "settled_of"]


def settled_of(spec: JobSpec, sites: int) -> Settled:
    """Whether updates of the job are masked between so many sites, and why.

    Raises:
        JobError: its algorithm is not known here.
    """
    said = spec.privacy.aggregation
    if said != "auto":
        return Settled(said, "the job says so")
    return settle(privacy_of(spec), schedule_of(spec), algorithm_named(spec.algorithm), sites)


def discretion_of(
    spec: JobSpec, sites: int, minimum: int = 1, person: str = "", *, strict: bool = False
) -> Discretion:
    """The rule on small counts in a run of the job: a site's own, or the job's where that is stricter.

    Args:
        spec: the job.
        sites: how many take part.
        minimum: of the site's rule; 1 in a simulation, which has none.
        person: likewise; the job's where the site names no column.
        strict: likewise.

    Raises:
        JobError: its algorithm is not known here.
    """
    asked = spec.privacy.counts
    return Discretion(
        max(minimum, 1 if asked is None else asked.minimum),
        person or ("" if asked is None else asked.person),
        strict,
        settled_of(spec, sites).hidden,
        spec.privacy.record is not None,
    )
