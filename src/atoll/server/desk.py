"""One call at the server: what is asked of which site, until every answer is in or given up.

:mod:`atoll.runtime.gathering` decides; here is what it needs beside it: the tasks themselves, the
answers that wait to be folded, and who was heard of.

A site that is silent is not waited for while the others can do without it. If they cannot, the cause
is as likely at this server's own line, and giving all of them up would end a run for a cut of two
minutes: then the call waits for its deadline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from atoll.core.contracts import Outcome
from atoll.core.values import ClientId
from atoll.runtime.gathering import (
    Alarm,
    Ask,
    Away,
    Delivered,
    Event,
    Failed,
    Folded,
    FoldIt,
    Gathering,
    Refused,
    Seen,
    step,
)
from atoll.server.answers import Expected
from atoll.wire.messages import TaskBody

__all__ = ["Call", "Desk", "Take"]

Take = Callable[[TaskBody, memoryview], Folded | Refused | Failed]
"""Reads one answer, takes it in, and says what became of it."""


@dataclass(frozen=True, eq=False)
class Call:
    """What a run wants of its sites next.

    Args:
        tasks: one per site.
        expected: what an answer may hold.
        take: called once for each answer, in any order.
        seconds: longest duration.
        silence: seconds without a word after which a site is not waited for.
        needed: so many answers must stay possible for anybody to be given up for silence.
        enough: so many are enough; None for all.
    """

    tasks: Sequence[TaskBody]
    expected: Expected
    take: Take
    seconds: float
    silence: float
    needed: int = 1
    enough: int | None = None


class Desk:
    """A call in progress. Not for several threads at once: its owner holds a lock.

    Args:
        call: what is wanted.
        now: the present moment.
        heard: when each site was last heard of.

    Attributes:
        tasks: all tasks by id.
        due: ids of answers to be folded, in order of arrival.
        lost: ids whose acknowledged answer is not on disk any more; it is asked for again.
    """

    def __init__(self, call: Call, now: float, heard: Mapping[ClientId, float]) -> None:
        self.call = call
        self.tasks = {task.id: task for task in call.tasks}
        self.due: deque[str] = deque()
        self.lost: set[str] = set()
        self._digests: dict[str, str] = {}
        self._heard = dict(heard)
        asks = [Ask(task.id, task.client) for task in call.tasks]
        self.gathering = Gathering.start(
            asks, now, now + call.seconds, call.silence, enough=call.enough
        )

    @property
    def complete(self) -> bool:
        """Whether nothing more is waited for."""
        return self.gathering.complete

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What became of the tasks, in their order."""
        return self.gathering.outcomes()

    @property
    def next_tick(self) -> float | None:
        """When time alone changes something."""
        return self.gathering.next_tick

    def open(self, site: ClientId) -> list[TaskBody]:
        """What ``site`` is still asked for, with the seconds that are left for it."""
        deadline = self.gathering.deadline
        left = None if deadline is None else max(0.0, deadline - self.gathering.now)
        tasks = (self.tasks[name] for name in self.gathering.open_tasks(site))
        return [task.model_copy(update={"deadline": left}) for task in tasks]

    def accepts(self, task: str, now: float) -> bool:
        """Whether an answer to ``task`` would count now."""
        return self.gathering.accepts(task, now)

    def digest(self, task: str) -> str:
        """Of the answer to ``task``; empty while there is none."""
        return self._digests.get(task, "")

    def tell(self, event: Event) -> tuple[Alarm, ...]:
        """Move on; returns what has to be told to people."""
        now = getattr(event, "now", None)
        if isinstance(event, Seen):
            self._heard[event.client] = event.now
        elif isinstance(event, Delivered) and event.task in self.tasks:
            self._heard[self.tasks[event.task].client] = event.now
            self.lost.discard(event.task)
            self._digests.setdefault(event.task, event.digest)
        if now is not None and self._short(now):
            self.gathering, _ = step(self.gathering, Away(now))
        self.gathering, effects = step(self.gathering, event)
        self.due.extend(effect.task for effect in effects if isinstance(effect, FoldIt))
        return tuple(effect for effect in effects if isinstance(effect, Alarm))

    def _short(self, now: float) -> bool:
        """Whether giving up the silent ones now would leave fewer than are needed."""
        call, deadline = self.gathering, self.gathering.deadline
        due = call.next_tick
        if due is None or now < due or (deadline is not None and now >= deadline):
            return False
        possible = sum(
            slot.phase in ("answered", "delivered") or self._present(slot.ask.client, now)
            for slot in call.slots
            if slot.phase != "closed"
        )
        return possible < min(self.call.needed, len(call.slots))

    def _present(self, site: ClientId, now: float) -> bool:
        return now - self._heard.get(site, -float("inf")) < self.call.silence
