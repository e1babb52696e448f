"""One call at the server: what is asked of which site, until every answer is in or given up.

:mod:`atoll.runtime.gathering` decides; here is what it needs beside it: the tasks themselves, the
answers that wait to be folded, and who was heard of.

A site that is silent is not waited for while the others can do without it. If they cannot, the cause
is as likely at this server's own line, and giving all of them up would end a run for a cut of two
minutes: then the call waits for its deadline.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from atoll.core.contracts import Outcome
from atoll.core.errors import DataError, Fault
from atoll.core.layout import Array
from atoll.core.values import ClientId
from atoll.runtime.gathering import (
    Ask,
    Away,
    Delivered,
    Effect,
    Event,
    FoldIt,
    Gathering,
    Seen,
    step,
)
from atoll.runtime.live import Live
from atoll.runtime.live import step as live_step
from atoll.server.rounds.answers import Expected
from atoll.wire.messages import ResultBody, TaskBody

__all__ = ["Call", "Desk", "Take", "all_took_part"]

Take = Callable[[TaskBody, ResultBody, Mapping[str, Array]], None]
"""Takes in the answer to a task that was done; raises ``UpdateRefused`` or ``WireError`` where it cannot."""


@dataclass(frozen=True, eq=False)
class Call:
    """What a run wants of its sites next.

    Args:
        tasks: one per site.
        expected: what an answer may hold.
        take: called once for each answer of a task that was done, in any order.
        seconds: longest duration.
        silence: seconds without a word after which a site is not waited for.
        needed: so many answers must stay possible for anybody to be given up for silence.
        live: a step of an asynchronous run: its tasks stay open when the call is complete.
        special: what the answers to some tasks may hold, by id, in place of ``expected``.
        enough: so many answers end the call; None: all are waited for.
        together: whether answers may be written with what comes of the call: nothing is told to anybody
            before that.
    """

    tasks: Sequence[TaskBody]
    expected: Expected
    take: Take
    seconds: float
    silence: float
    needed: int = 1
    live: Live | None = None
    special: Mapping[str, Expected] = field(default_factory=dict)
    enough: int | None = None
    together: bool = False


def all_took_part(what: str, outcomes: Sequence[Outcome]) -> None:
    """Refuse to begin a run from which a site is missing.

    Args:
        what: sites were asked for.
        outcomes: what became of it, of all sites of the run.

    Raises:
        DataError: names each that is missing, and why.
    """
    lost = [o for o in outcomes if o.status != "contributed"]
    if lost:
        raise DataError(
            f"{what}: {len(lost)} of {len(outcomes)} sites cannot take part",
            site=lost[0].client,
            faults=[Fault(o.client, _said(o)) for o in lost],
            remedy="mend it there, or submit the job for the other sites",
        )


def _said(outcome: Outcome) -> str:
    """Why, without the site's name where that stands before it anyway."""
    return (outcome.reason or outcome.status).removeprefix(f"at {outcome.client}: ")


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
        self._machine: Gathering | Live = call.live or Gathering.start(
            asks, now, now + call.seconds, call.silence, call.enough
        )

    @property
    def complete(self) -> bool:
        """Whether nothing more is waited for."""
        return self._machine.complete

    @property
    def live(self) -> Live | None:
        """The step of an asynchronous run, as it stands."""
        return self._machine if isinstance(self._machine, Live) else None

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What became of the tasks, in their order."""
        return self._machine.outcomes()

    @property
    def next_tick(self) -> float | None:
        """When time alone changes something."""
        return self._machine.next_tick

    def names(self, site: ClientId) -> tuple[str, ...]:
        """Ids of what ``site`` is still asked for."""
        return self._machine.open_tasks(site)

    def open(self, site: ClientId, now: float) -> list[TaskBody]:
        """What ``site`` is still asked for, with the seconds that are left for it."""
        deadline = self._gathering.deadline
        left = None if deadline is None else max(0.0, deadline - now)
        return [self.tasks[n].model_copy(update={"deadline": left}) for n in self.names(site)]

    def expected(self, task: str) -> Expected:
        """What an answer to ``task`` may hold."""
        return self.call.special.get(task, self.call.expected)

    def accepts(self, task: str, now: float) -> bool:
        """Whether an answer to ``task`` would count now."""
        return self._machine.accepts(task, now)

    @property
    def digests(self) -> Mapping[str, str]:
        """Of all answers there are, by task."""
        return self._digests

    def digest(self, task: str) -> str:
        """Of the answer to ``task``; empty while there is none."""
        return self._digests.get(task, "")

    def tell(self, event: Event) -> None:
        """Move on."""
        now = getattr(event, "now", None)
        if isinstance(event, Seen):
            self._heard[event.client] = event.now
        elif isinstance(event, Delivered) and event.task in self.tasks:
            self._heard[self.tasks[event.task].client] = event.now
            self.lost.discard(event.task)
            self._digests.setdefault(event.task, event.digest)
        if now is not None and self._short(now):
            self._move(Away(now))
        effects = self._move(event)
        self.due.extend(effect.task for effect in effects if isinstance(effect, FoldIt))

    @property
    def _gathering(self) -> Gathering:
        return self._machine.call if isinstance(self._machine, Live) else self._machine

    def _move(self, event: Event) -> tuple[Effect, ...]:
        if isinstance(self._machine, Live):
            self._machine, effects = live_step(self._machine, event)
        else:
            self._machine, effects = step(self._machine, event)
        return effects

    def _short(self, now: float) -> bool:
        """Whether giving up the silent ones now would leave fewer than are needed."""
        call, due = self._gathering, self.next_tick
        if due is None or now < due or (call.deadline is not None and now >= call.deadline):
            return False
        possible = sum(
            slot.phase in ("answered", "delivered") or self._present(slot.ask.client, now)
            for slot in call.slots
            if slot.phase != "closed"
        )
        return possible < min(self.call.needed, len(call.slots))

    def _present(self, site: ClientId, now: float) -> bool:
        return now - self._heard.get(site, -math.inf) < self.call.silence
