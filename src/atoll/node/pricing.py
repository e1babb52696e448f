"""What a round of a job costs at a site, as privacy events: read from the job alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.job.schema import JobSpec

__all__ = ["Cost", "price"]


@dataclass(frozen=True)
class Cost:
    """What one round hides, and how.

    Args:
        unit: whose presence is hidden: ``record``, ``person`` or ``site``.
        events: what is released, in the plain form of :mod:`atoll.privacy.dp.events`.
        at_server: whether the noise is added by the server, which then has seen the sum without it.
        certain: whether the events are those of this site, and not worse ones for want of its rows.
    """

    unit: str
    events: tuple[Mapping[str, Any], ...]
    at_server: bool = False
    certain: bool = True


def price(spec: JobSpec, rows: int | None) -> Sequence[Cost]:
    """What a round costs; empty for a job without differential privacy.

    Args:
        spec: the job.
        rows: training rows of this site; None where they are not known yet.

    Raises:
        JobError: the job's privacy section cannot be read.
    """
    return ()
