"""Asynchronous runs with real clients: who is at work, and what makes a server step.

:class:`~atoll.runtime.schedule.Asynchronous` says in virtual time when tasks arrive; here they arrive when
they do. A step begins with as many clients at work as the job wants (``concurrency``), and ends when K
of them (``buffer``) have been answered for. Whoever has not arrived by then works on, and will count
in a later step with the staleness s(tau) of the versions in between.

The differences to virtual time:

* Clients are sent out when a step begins, never within one. Who has answered would start from the very
  model it has just answered for; with K = 1 (FedAsync) that is the same, and with K = all clients the
  run is FedAvg.
* Answers that come after the K-th are kept and count first in the next step.
* A client that is silent when a step ends loses its task; a place is then free for another.

Where updates are added up under masks (``crew`` of :class:`Live`), an answer says only that a site is ready,
and the update comes in the round of the buffer. A step then ends when K sites are ready that can be in one
(:mod:`atoll.runtime.crew`); who is ready and not among them stays so for the next.

Everything random follows from the last committed :class:`~atoll.runtime.pace.Pace`: a server that
was stopped in the middle of a step sends out the same tasks under the same ids.

This wraps one :class:`~atoll.runtime.gathering.Gathering` and takes its events.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from atoll.core.contracts import Outcome, Task
from atoll.core.errors import JobError
from atoll.core.values import ClientId
from atoll.runtime.crew import Crew
from atoll.runtime.gathering import (
    Ask,
    Complete,
    Delivered,
    Effect,
    Event,
    Folded,
    FoldIt,
    Gathering,
    Seen,
    Slot,
)
from atoll.runtime.gathering import step as gather
from atoll.runtime.loop import Next
from atoll.runtime.pace import Pace
from atoll.runtime.schedule import Asynchronous, Plan

__all__ = ["Flight", "Live", "step"]


@dataclass(frozen=True)
class Flight:
    """One task at work.

    Args:
        id: of the task.
        number: running number of the dispatch; with the client it makes the id.
        task: what the client does; its ``scale`` is s(tau) in the present step.
        since: the pace's clock when it was sent out.
        tau: versions between its start and the present step.
    """

    id: str
    number: int
    task: Task
    since: float
    tau: int


@dataclass(frozen=True)
class Live:
    """One step of an asynchronous run; made by :meth:`start`, moved on by :func:`step`.

    Args:
        flights: tasks at work in this step, oldest first.
        call: what is known of them.
        buffer: K, answers that make the step.
        begun: the pace in which the step began, its clients sent out.
        early: ids of answers that came too late for this step and wait for the next.
        missing: client -> (status, reason) of tasks that ended before the step began.
        crew: how a buffer under masks is made up; None where answers are updates.
        ready: ids of answers that say that a site is ready, as they came.
        number: of the step: rounds ended before it.
    """

    flights: tuple[Flight, ...]
    call: Gathering
    buffer: int
    begun: Pace
    early: frozenset[str] = frozenset()
    missing: Mapping[ClientId, tuple[str, str]] = field(default_factory=dict)
    crew: Crew | None = None
    ready: tuple[str, ...] = ()
    number: int = 0

    @classmethod
    def start(
        cls,
        asked: Next,
        prefix: str,
        now: float,
        deadline: float | None,
        silence: float,
        crew: Crew | None = None,
    ) -> Live:
        """Begin a step: go on with the tasks at work, and send out clients for free places.

        Args:
            asked: the loop's question; its schedule must be :class:`Asynchronous`.
            prefix: of task ids; an id is ``{prefix}{number}.{client}``.
            now: the present moment.
            deadline: the moment at which the step ends with what there is; None for none.
            silence: seconds without a word after which a client is not waited for.
            crew: see the class.

        Raises:
            JobError: another kind of schedule.
        """
        rule = asked.schedule
        if not isinstance(rule, Asynchronous):
            raise JobError(f"{type(rule).__name__} is not an asynchronous schedule")
        pace, missing = _kept(asked.pace, asked.version, rule, crew)
        pace = _sent_out(pace, asked, rule)
        flights = []
        for since, number, client, version, repeat, _ in pace.events:
            tau = asked.version - version
            task = Task(client, version, asked.staleness(tau), repeat=repeat)
            flights.append(Flight(f"{prefix}{number}.{client}", number, task, since, tau))
        asks = [Ask(flight.id, flight.task.client) for flight in flights]
        call = Gathering.start(asks, now, deadline, silence)
        return cls(
            tuple(flights),
            call,
            rule.buffer,
            pace,
            missing=missing,
            crew=crew,
            number=asked.number,
        )

    @property
    def complete(self) -> bool:
        """Whether the step has what it needs, or nothing more can be waited for."""
        if self.call.complete or (self.crew is not None and self.aboard):
            return True
        phases = [slot.phase for slot in self.call.slots if slot.ask.id not in self.early]
        if "delivered" in phases:
            return False
        if self.crew is None and phases.count("answered") >= self.buffer:
            return True
        return "open" not in phases

    @property
    def aboard(self) -> tuple[str, ...]:
        """Ids of those who are in the buffer; empty while there are not enough."""
        crew = self.crew
        if crew is None or len(self.ready) < min(crew.size, crew.least or crew.size):
            return ()
        versions = {flight.id: flight.task.version for flight in self.flights}
        over = self.call.complete or not any(
            slot.phase in ("open", "delivered") for slot in self.call.slots
        )
        return crew.chosen([(name, versions[name]) for name in self.ready], over)

    @property
    def _full(self) -> bool:
        """Whether there are as many answers as the step takes."""
        return self.buffer <= sum(
            slot.phase in ("delivered", "answered") and slot.ask.id not in self.early
            for slot in self.call.slots
        )

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Each task with its phase, oldest first."""
        return self.call.slots

    @property
    def now(self) -> float:
        """Latest moment known."""
        return self.call.now

    @property
    def deadline(self) -> float | None:
        """The moment at which the step ends with what there is."""
        return self.call.deadline

    @property
    def next_tick(self) -> float | None:
        """The moment at which a tick changes something; None when none would."""
        return None if self.complete else self.call.next_tick

    def accepts(self, task: str, now: float) -> bool:
        """See :meth:`Gathering.accepts`; a step that is complete accepts answers for the next."""
        call = _timeless(self.call) if self.complete else self.call
        return call.accepts(task, now)

    def open_tasks(self, client: ClientId) -> tuple[str, ...]:
        """Ids of what ``client`` is asked for, also after the step is complete."""
        return self.call.open_tasks(client)

    def outcomes(self) -> tuple[Outcome, ...]:
        """What became of the tasks of the plan, in its order; no other answers have been used."""
        return tuple(outcome for _, outcome in self._answered())

    def planned(self) -> tuple[Plan, Pace]:
        """The answer to :class:`~atoll.runtime.loop.Next`, once the step is complete."""
        slots = {slot.ask.id: slot for slot in self.call.slots}
        missing = dict(self.missing)
        for flight in self.flights:
            outcome = slots[flight.id].outcome
            closed = slots[flight.id].phase == "closed" or self.crew is not None
            if outcome is not None and closed and outcome.status != "contributed":
                missing[outcome.client] = (outcome.status, outcome.reason)
        used = [flight for flight, _ in self._answered()]
        clock = self.begun.clock + (self.call.now - self.call.started)
        plan = Plan(
            tasks=tuple(flight.task for flight in used),
            invited=tuple(dict.fromkeys([*self.missing, *(f.task.client for f in self.flights)])),
            missing=missing,
            clock=clock,
            abort="" if used else self._nobody(),
            staleness={flight.task.client: flight.tau for flight in used},
        )
        ended = ("answered", "closed")
        waiting = set(self.ready) - set(self.aboard)
        flying = {
            flight.number
            for flight in self.flights
            if slots[flight.id].phase not in ended or flight.id in waiting
        }
        events = tuple(event for event in self.begun.events if event[1] in flying)
        return plan, replace(self.begun, clock=clock, events=events)

    def _answered(self) -> list[tuple[Flight, Outcome]]:
        aboard = None if self.crew is None else set(self.aboard)
        return [
            (flight, slot.outcome)
            for flight, slot in zip(self.flights, self.call.slots, strict=True)
            if slot.phase == "answered" and slot.outcome is not None
            if aboard is None or flight.id in aboard
        ]

    def _nobody(self) -> str:
        if self.crew is None or not self.ready:
            return "no client answered"
        return f"{len(self.ready)} sites are ready, and no {self.buffer} of them can be in one sum"


def step(live: Live, event: Event) -> tuple[Live, tuple[Effect, ...]]:
    """The step after ``event``, and what is to be done; see :mod:`atoll.runtime.gathering`."""
    if live.complete and not isinstance(event, Seen | Delivered):
        return live, ()  # the plan may have been made: what flies on is the next step's matter
    was_complete = live.complete
    full = was_complete or (live.crew is None and live._full)
    before = live.call
    call, found = gather(_timeless(before) if was_complete else before, event)
    call = replace(call, deadline=before.deadline, silence=before.silence)
    effects = list[Effect]()
    for effect in found:
        if isinstance(effect, FoldIt) and full:
            live = replace(live, early=live.early | {effect.task})
        elif not isinstance(effect, Complete):
            effects.append(effect)
    live = replace(live, call=call)
    if live.crew is not None and isinstance(event, Folded) and event.task not in live.ready:
        live = replace(live, ready=(*live.ready, event.task))
    if live.complete and not was_complete:
        call, more = live.call.give_up()
        live = replace(live, call=call)
        effects += [*more, Complete()]
    return live, tuple(effects)


def _timeless(call: Gathering) -> Gathering:
    """A call in which time closes nothing: what flies on is judged by the next step's clock."""
    return replace(call, deadline=None, silence=math.inf)


def _kept(
    pace: Pace, version: int, rule: Asynchronous, crew: Crew | None
) -> tuple[Pace, dict[ClientId, tuple[str, str]]]:
    """The pace without tasks whose update would be too old for this step, or can be in no buffer."""
    most, missing, events = rule.max_staleness, dict[ClientId, tuple[str, str]](), []
    fresh = [event for event in pace.events if most is None or version - event[3] <= most]
    lonely = set() if crew is None else crew.lonely([event[3] for event in fresh]) - {version}
    for event in pace.events:
        tau = version - event[3]
        if most is not None and tau > most:
            missing[event[2]] = ("late", f"{tau} versions old, at most {most}")
        elif event[3] in lonely:
            missing[event[2]] = ("late", f"too few started from version {event[3]} with it")
        else:
            events.append(event)
    return replace(pace, events=tuple(events)), missing


def _sent_out(pace: Pace, asked: Next, rule: Asynchronous) -> Pace:
    """The pace with clients sent out for all free places, drawn uniformly from those not at work."""
    people, version = asked.people, asked.version
    busy = {event[2] for event in pace.events}
    free = [client for client in people.clients if client not in busy]
    places = (rule.concurrency or len(people.clients)) - len(busy)
    if len(free) > places:
        rng = (people.seed / "dispatch" / pace.order).generator()
        drawn = rng.choice(len(free), max(0, places), replace=False)
        free = [free[index] for index in sorted(drawn.tolist())]
    events, started, starts = list(pace.events), dict(pace.started), dict(pace.starts)
    for number, client in enumerate(free, start=pace.order):
        last, repeats = started.get(client, (-1, 0))
        repeat = repeats if last == version else 0
        started[client] = (version, repeat + 1)
        starts[client] = starts.get(client, 0) + 1
        events.append((pace.clock, number, client, version, repeat, 1.0))
    return replace(
        pace,
        attempts=pace.attempts + 1,
        repeat=0,
        events=tuple(events),
        order=pace.order + len(free),
        starts=starts,
        started=started,
        idle=0,
    )
