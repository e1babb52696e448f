"""Masked rounds of an asynchronous run at a site: what the server says of a buffer, held against the job.

The sites of a buffer started from different versions of the model, so each knows a part of it only: its own
version, and those that it was shown before. What all of it means together, :mod:`atoll.job.buffered` says; that
all sites were shown the same follows from the hash in the terms.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from atoll.core.errors import AuthError
from atoll.core.values import ClientId
from atoll.job.buffered import Starts, starts_faults
from atoll.job.registry import algorithm_named
from atoll.job.tables import schedule_of
from atoll.node.plans import Plan
from atoll.runtime.schedule import Asynchronous
from atoll.wire.messages import TaskBody

__all__ = ["Buffers", "Shown"]

_REMEMBERED = 1000
"""Versions whose models a site remembers."""


@dataclass(frozen=True)
class Shown:
    """What the server shows of a round to one site.

    Args:
        site: its name.
        raw: what it says the buffer started from; None where it says nothing.
        body: its task.
        model: digest of the model that came with it.
        cohort: names in the terms.
    """

    site: ClientId
    raw: Any
    body: TaskBody
    model: str
    cohort: Collection[ClientId]


class Buffers:
    """The buffers of one run at this site."""

    def __init__(self) -> None:
        self._models: dict[int, str] = {}
        self._rules: tuple[Plan, Asynchronous, Any] | None = None

    def approved(self, plan: Plan, shown: Shown, apart: int) -> str:
        """The mark of the buffer, to stand in the place of a model's; empty in a synchronous run.

        Args:
            plan: of the run.
            shown: by the server.
            apart: fewest sites of a buffer that start from one version.

        Raises:
            AuthError: the buffer is not one of this job, or hides too little; everything that is wrong. Or an
                update of a synchronous run is to count more than once, or less.
            WireError: what the server says of it cannot be read.
        """
        if plan.spec.rounds.mode != "async":
            if shown.raw is not None:
                raise AuthError("a round with updates of different age in a synchronous run")
            if shown.body.scale != 1.0:  # behind the clip, which the noise of a job is made for
                raise AuthError(
                    f"the update is to count {shown.body.scale:g} times in a synchronous round"
                )
            return ""
        schedule, algorithm = self._of(plan)
        starts = Starts.from_plain(shown.raw)
        if shown.site not in starts.sites:
            raise AuthError(f"{shown.site} is not in the buffer that the server shows")
        found = starts_faults(starts, shown.cohort, schedule, algorithm.staleness, apart)
        if found:
            raise AuthError("the buffer is refused: " + "; ".join(map(str, found)), faults=found)
        body, tau = shown.body, starts.tau(shown.site)
        version = starts.sites[shown.site]
        if version != body.version or starts.models[body.version] != shown.model:
            raise AuthError(
                f"the buffer has this site start from version {version} of another model"
            )
        if body.scale != (factor := algorithm.staleness(tau)):
            raise AuthError(
                f"the update is to count {body.scale:g} times; by the job it is {factor:g}, "
                f"{tau} versions old"
            )
        self._remember(starts.models)
        return starts.mark

    def _of(self, plan: Plan) -> tuple[Asynchronous, Any]:
        if self._rules is None or self._rules[0] is not plan:
            schedule = schedule_of(plan.spec)
            if not isinstance(schedule, Asynchronous):
                raise AuthError("an asynchronous round of a synchronous job")
            self._rules = plan, schedule, algorithm_named(plan.spec.algorithm)
        return self._rules[1:]

    def _remember(self, models: Mapping[int, str]) -> None:
        """A version is one model, for everybody and always."""
        for version, digest in models.items():
            if self._models.setdefault(version, digest) != digest:
                raise AuthError(f"version {version} was another model before")
        for version in sorted(self._models)[:-_REMEMBERED]:
            del self._models[version]
