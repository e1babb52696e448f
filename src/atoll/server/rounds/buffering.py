"""Buffers under masks at the server: who is in one, and what is told of it.

Sites say that they are ready (``fit``), a buffer of them is chosen (:mod:`atoll.runtime.crew`), and their
updates come in a masked round of their own. *Who is in it is written down before any of them is told*: a server
that was stopped goes on with the same sites, for a round that others have joined cannot be opened any more.

Sites that were asked for shares give the same update to no other buffer, though no sum came of it. So until the
model moves on, the very same buffer is tried again first, if all of it was in the sum: over fewer, the new sum
would be too near to the old one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array
from atoll.core.values import Broadcast, ClientId
from atoll.job.buffered import APART, Starts
from atoll.job.settling import FEWEST
from atoll.privacy.secagg.terms import model_digest, usual_threshold
from atoll.runtime.crew import Crew
from atoll.runtime.live import Live
from atoll.runtime.loop import Train
from atoll.server.office import Office
from atoll.server.rounds.counter import site_of
from atoll.server.rounds.masking import ATTEMPTS, MASKING, MaskedRound
from atoll.server.store.rules import fence
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["Buffering", "is_ready", "opening"]

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
        self._again: frozenset[ClientId] = frozenset()
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

    def ended(self, number: int, opened: int, *, committed: bool) -> None:
        """What came of step ``number``: see :func:`opening`, and whether it counted."""
        tasks = self._noted().get(number, ())
        if committed:
            self._again = frozenset()
        elif opened and opened == len(tasks):
            self._again = frozenset(map(site_of, tasks))

    def again(self, live: Live) -> Live:
        """The step with the buffer of an earlier one that was not opened, if all of its sites can be in it."""
        newest = max((flight.task.version for flight in live.flights), default=0)
        fresh = {f.task.client: f.id for f in live.flights if f.task.version == newest}
        crew = live.crew
        if crew is None or crew.noted or not self._again or not self._again <= fresh.keys():
            return live
        noted = tuple(fresh[site] for site in sorted(self._again))
        return replace(live, crew=replace(crew, noted=noted))

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
            self._notes, pledged, opened = {}, dict[tuple[int, int], int](), dict[int, int]()
            for event in self._office.store.events(self._run):
                found = json.loads(event.text) if event.kind in (_NOTE, MASKING) else {}
                if event.kind == _NOTE:
                    self._notes[found["round"]] = tuple(found["tasks"])
                elif found.get("about") == "train" and found["step"] == "pledge":
                    pledged[found["round"], found["attempt"]] = len(found["members"])
                elif found.get("about") == "train" and found["step"] == "release":
                    opened[found["round"]] = pledged[found["round"], found["attempt"]]
            for row in self._office.store.rounds(self._run):
                number, committed = row.number - 1, bool(row.record["committed"])
                self.ended(number, opened.get(number, 0), committed=committed)
        return self._notes


def opening(masked: object) -> int:
    """Of how many sites the sum is for which shares were asked in this round; 0 where none were."""
    if not isinstance(masked, MaskedRound):
        return 0
    for attempt in range(ATTEMPTS):
        told = masked.noted(attempt, "pledge")
        if told is not None and masked.noted(attempt, "release") is not None:
            return len(told["members"])
    return 0


def is_ready(task: TaskBody, body: ResultBody, arrays: Mapping[str, Array]) -> None:
    """Take in that a site is ready.

    Raises:
        UpdateRefused: it says more than that.
    """
    if arrays or body.examples or body.weight or body.metrics or body.answer:
        raise UpdateRefused("a site that is ready says something of its update in the clear")
