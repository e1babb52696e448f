"""Buffers under masks at the server: who is in one, and what is told of it.

Sites say that they are ready (``fit``), a buffer of them is chosen (:mod:`atoll.runtime.crew`), and their
updates come in a masked round of their own. *Who is in it is written down before any of them is told*: a server
that was stopped goes on with the same sites, for a round that others have joined cannot be opened any more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array
from atoll.core.values import Broadcast
from atoll.job.buffered import APART, Starts
from atoll.job.settling import FEWEST
from atoll.privacy.secagg.terms import model_digest, usual_threshold
from atoll.runtime.crew import Crew
from atoll.runtime.live import Live
from atoll.runtime.loop import Train
from atoll.server.office import Office
from atoll.server.store.rules import fence
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["Buffering", "is_ready"]

_NOTE = "buffer"


class Buffering:
    """The buffers of one run.

    Args:
        office: of the server.
        run: its id.
        size: K of the job.
    """

    def __init__(self, office: Office, run: str, size: int) -> None:
        self._office, self._run, self._size = office, run, size
        self._notes: dict[int, tuple[str, ...]] | None = None
        self._digests: dict[int, str] = {}

    def crew(self, number: int) -> Crew:
        """How the buffer of step ``number`` is made up."""
        least = min(self._size, max(FEWEST, usual_threshold(self._size)))
        return Crew(self._size, APART, least, self._noted().get(number, ()))

    def note(self, number: int, live: Live) -> None:
        """Write down who is in the buffer, if there is one."""
        aboard, office = live.aboard, self._office
        if aboard and self._noted().get(number) != aboard:
            fence(office.epoch, office.store.lease().epoch)
            text = json.dumps({"round": number, "tasks": list(aboard)})
            office.event(_NOTE, text, self._run)
            self._noted()[number] = aboard

    def starts(self, call: Train) -> Starts:
        """What the updates of a step started from."""
        versions = {task.version for task in call.tasks}
        for version in self._digests.keys() - call.broadcasts.keys():
            del self._digests[version]
        models = {version: self._digest(call.broadcasts[version]) for version in sorted(versions)}
        sites = {task.client: task.version for task in call.tasks}
        return Starts(max(call.broadcasts), models, sites)

    def _digest(self, broadcast: Broadcast) -> str:
        if broadcast.version not in self._digests:
            self._digests[broadcast.version] = model_digest(broadcast.vectors)
        return self._digests[broadcast.version]

    def _noted(self) -> dict[int, tuple[str, ...]]:
        """By step; the last one counts, for one that could not be formed anew was replaced."""
        if self._notes is None:
            self._notes = {}
            for event in self._office.store.events(self._run):
                if event.kind == _NOTE:
                    found = json.loads(event.text)
                    self._notes[found["round"]] = tuple(found["tasks"])
        return self._notes


def is_ready(task: TaskBody, body: ResultBody, arrays: Mapping[str, Array]) -> None:
    """Take in that a site is ready.

    Raises:
        UpdateRefused: it says more than that.
    """
    if arrays or body.examples or body.weight or body.metrics or body.answer:
        raise UpdateRefused("a site that is ready says something of its update in the clear")
