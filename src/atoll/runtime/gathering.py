"""The server's half of one call: what was asked of whom, and what became of it.

A machine without clock, socket or disk (decision D9): an event and the present state give the next
state and what is to be done. Each ask passes through few phases:

=============  ===============================================================================
phase          meaning
=============  ===============================================================================
``open``       asked for, and its client is heard from
``silent``     asked for, but no longer waited for: its client has said nothing for too long
``delivered``  an answer is accepted and durable; it waits to be folded
``answered``   folded, refused, or reported as failed: this is its outcome
``closed``     ended without an answer
=============  ===============================================================================

The call is complete when nothing is open or waits to be folded. :data:`RULES` says for every phase and
every kind of event what happens; what it does not change stays as it is. Three properties hold in any
order and number of events: one answer a task is accepted, and it stays (another one is an alarm); an
accepted answer is folded and counts, even when the deadline passes meanwhile; and at the deadline
nobody is waited for any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from atoll.core.contracts import Outcome
from atoll.core.errors import StateError
from atoll.core.values import ClientId

__all__ = [
    "PHASES",
    "RULES",
    "Alarm",
    "Ask",
    "Away",
    "Cancel",
    "Closed",
    "Complete",
    "Delivered",
    "Effect",
    "Event",
    "Failed",
    "FoldIt",
    "Folded",
    "Gathering",
    "Left",
    "Refused",
    "Seen",
    "Slot",
    "Tick",
    "step",
]

Phase = Literal["open", "silent", "delivered", "answered", "closed"]
PHASES: tuple[Phase, ...] = ("open", "silent", "delivered", "answered", "closed")


@dataclass(frozen=True)
class Ask:
    """One thing asked of one client: the task's id and who is to do it."""

    id: str
    client: ClientId


# Events. ``now`` is in seconds on any clock that does not run backwards.


@dataclass(frozen=True)
class Seen:
    """``client`` has been heard from: it asked for tasks, or sent a part of something."""

    client: ClientId
    now: float


@dataclass(frozen=True)
class Delivered:
    """An answer to ``task`` with this hash is durable; see :meth:`Gathering.accepts` first."""

    task: str
    digest: str
    now: float


@dataclass(frozen=True)
class Folded:
    """The accepted answer to ``task`` is in the sum, with so many examples and seconds of work."""

    task: str
    examples: int
    seconds: float


@dataclass(frozen=True)
class Refused:
    """The answer to ``task`` may not enter the sum."""

    task: str
    reason: str


@dataclass(frozen=True)
class Failed:
    """The work of ``task`` failed at its client."""

    task: str
    reason: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Left:
    """``client`` has left, or was sent away; nothing more comes from it."""

    client: ClientId
    reason: str


@dataclass(frozen=True)
class Tick:
    """Time has passed; due at :attr:`Gathering.next_tick`."""

    now: float


@dataclass(frozen=True)
class Away:
    """The server itself was stopped until now: nobody could be heard, so silence counts anew."""

    now: float


@dataclass(frozen=True)
class Cancel:
    """Nothing of this call is wanted any more."""

    reason: str


Event = Seen | Delivered | Folded | Refused | Failed | Left | Tick | Away | Cancel


# Effects.


@dataclass(frozen=True)
class FoldIt:
    """Fold the answer to ``task``, then say :class:`Folded`, :class:`Refused` or :class:`Failed`."""

    task: str


@dataclass(frozen=True)
class Alarm:
    """``client`` gave two different answers to ``task``; the first stays. Told once a task."""

    task: str
    client: ClientId
    reason: str


@dataclass(frozen=True)
class Closed:
    """Nothing is wanted for ``task`` any more, though no answer to it was accepted."""

    task: str


@dataclass(frozen=True)
class Complete:
    """The call has ended: :meth:`Gathering.outcomes` are final. Told once."""


Effect = FoldIt | Alarm | Closed | Complete


@dataclass(frozen=True)
class Slot:
    """One ask and what is known of it.

    Args:
        ask: what was asked of whom.
        seen: when its client was last heard from, or the call began.
        phase: see the module.
        heard: whether its client was heard from at all.
        digest: hash of the accepted answer; empty before there is one.
        alarmed: whether an equivocation was told.
        outcome: what became of it, once it has ended.
    """

    ask: Ask
    seen: float
    phase: Phase = "open"
    heard: bool = False
    digest: str = ""
    alarmed: bool = False
    outcome: Outcome | None = None

    def ended(
        self, phase: Phase, status: str, reason: str, *, examples: int = 0, seconds: float = 0.0
    ) -> Slot:
        """The slot with its outcome."""
        outcome = Outcome(self.ask.client, status, examples, reason, seconds)
        return replace(self, phase=phase, outcome=outcome)


@dataclass(frozen=True)
class Gathering:
    """One call in progress; made by :meth:`start`, moved on by :func:`step`.

    Args:
        slots: one per ask, in their order.
        started: moment of the call.
        now: latest moment known.
        deadline: moment at which nobody is waited for any more; None for none.
        silence: seconds without a word after which a client is not waited for.
        enough: contributions after which nobody else is waited for; None for all.
    """

    slots: tuple[Slot, ...]
    started: float
    now: float
    deadline: float | None
    silence: float
    enough: int | None

    @classmethod
    def start(
        cls,
        asks: Sequence[Ask],
        now: float,
        deadline: float | None,
        silence: float,
        enough: int | None = None,
    ) -> Gathering:
        """A call in which everything is open; one that asks nothing is complete at once.

        Args:
            asks: what is asked of whom.
            now: the present moment.
            deadline: the moment (on the same clock) at which the call ends; None for none.
            silence: seconds.
            enough: see the class.

        Raises:
            StateError: two asks share an id.
        """
        names = [ask.id for ask in asks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise StateError(f"two tasks of one call are called {twice[0]!r}")
        return cls(tuple(Slot(ask, now) for ask in asks), now, now, deadline, silence, enough)

    @property
    def complete(self) -> bool:
        """Whether the call has ended."""
        return all(slot.phase in ("answered", "closed") for slot in self.slots)

    @property
    def next_tick(self) -> float | None:
        """The moment at which a :class:`Tick` changes something; None when none would."""
        due = [slot.seen + self.silence for slot in self.slots if slot.phase == "open"]
        asked = due or any(slot.phase == "silent" for slot in self.slots)
        if self.deadline is not None and asked:
            due.append(self.deadline)
        return min(due, default=None)

    def accepts(self, task: str, now: float) -> bool:
        """Whether a first answer to ``task`` would count now.

        To be asked before an answer is made durable and acknowledged; :class:`Delivered` with the
        same ``now`` is then accepted.
        """
        over = self.deadline is not None and now >= self.deadline
        return not over and any(
            slot.ask.id == task and slot.phase in ("open", "silent") for slot in self.slots
        )

    def open_tasks(self, client: ClientId) -> tuple[str, ...]:
        """Ids of what ``client`` is still asked for."""
        return tuple(
            slot.ask.id
            for slot in self.slots
            if slot.ask.client == client and slot.phase in ("open", "silent")
        )

    def outcomes(self) -> tuple[Outcome, ...]:
        """What became of the asks that have ended, in the order of the asks."""
        return tuple(slot.outcome for slot in self.slots if slot.outcome is not None)

    def give_up(self) -> tuple[Gathering, tuple[Effect, ...]]:
        """The call without those who are silent: they are closed, the others go on."""
        slots, effects = [], list[Effect]()
        for slot in self.slots:
            if slot.phase == "silent":
                slot = slot.ended("closed", *self._unheard(slot, late=False))
                effects.append(Closed(slot.ask.id))
            slots.append(slot)
        return replace(self, slots=tuple(slots)), tuple(effects)

    def _unheard(self, slot: Slot, *, late: bool) -> tuple[str, str]:
        """Status and reason of a slot that ends without an answer."""
        limit = self.silence
        if late and self.deadline is not None:
            limit = self.deadline - self.started
            if slot.phase == "open" and slot.heard:
                return "late", f"not done {limit:g} s after the start"
        status = "dropped" if slot.heard else "unavailable"
        return status, f"nothing heard for {min(limit, self.silence):g} s"


def step(gathering: Gathering, event: Event) -> tuple[Gathering, tuple[Effect, ...]]:
    """The call after ``event``, and what is to be done.

    An event about a task or client that the call does not know changes nothing.
    """
    was_complete = gathering.complete
    if (now := getattr(event, "now", gathering.now)) > gathering.now:
        gathering = replace(gathering, now=now)
    effects: list[Effect] = []
    for part in _parts(gathering, event):
        gathering, more = _moved(gathering, part)
        effects += more
    gathering, more = _settled(gathering)
    effects += more
    if gathering.complete and not was_complete:
        effects.append(Complete())
    return gathering, tuple(effects)


def _parts(gathering: Gathering, event: Event) -> tuple[Event, ...]:
    """What an event implies: who speaks is not silent, and time passes for all before it counts."""
    if isinstance(event, Seen):
        return event, Tick(event.now)
    if isinstance(event, Delivered):
        who = [Seen(s.ask.client, event.now) for s in gathering.slots if s.ask.id == event.task]
        return *who, Tick(event.now), event
    return (event,)


def _moved(gathering: Gathering, part: Event) -> tuple[Gathering, tuple[Effect, ...]]:
    """The call after an event that names a task, or a client, or concerns all."""
    kind, task, client = type(part), getattr(part, "task", None), getattr(part, "client", None)
    slots, effects, changed = list(gathering.slots), list[Effect](), False
    for place, slot in enumerate(slots):
        if task not in (None, slot.ask.id) or client not in (None, slot.ask.client):
            continue
        slots[place], more = RULES[slot.phase, kind](slot, part, gathering)
        effects += more
        changed |= slots[place] is not slot
    moved = replace(gathering, slots=tuple(slots)) if changed else gathering
    return moved, tuple(effects)


def _settled(gathering: Gathering) -> tuple[Gathering, tuple[Effect, ...]]:
    """Close what is still open once nobody has to be waited for."""
    phases = [slot.phase for slot in gathering.slots]
    if "delivered" in phases:
        return gathering, ()
    enough = gathering.enough is not None and (
        sum(o.status == "contributed" for o in gathering.outcomes()) >= gathering.enough
    )
    if "open" in phases and not enough:
        return gathering, ()
    if not enough:
        return gathering.give_up()
    slots, effects = [], list[Effect]()
    for slot in gathering.slots:
        if slot.phase in ("open", "silent"):
            slot = slot.ended("closed", "surplus", "enough others were done before it")
            effects.append(Closed(slot.ask.id))
        slots.append(slot)
    return replace(gathering, slots=tuple(slots)), tuple(effects)


Moved = tuple[Slot, tuple[Effect, ...]]
Rule = Callable[[Slot, Any, Gathering], Moved]


def _stay(slot: Slot, event: Event, call: Gathering) -> Moved:
    return slot, ()


def _hear(slot: Slot, event: Seen, call: Gathering) -> Moved:
    return replace(slot, phase="open", heard=True, seen=call.now), ()


def _again(slot: Slot, event: Away, call: Gathering) -> Moved:
    return replace(slot, phase="open", seen=call.now), ()


def _pass(slot: Slot, event: Tick, call: Gathering) -> Moved:
    """Time: the deadline closes, silence only ends the waiting."""
    if call.deadline is not None and call.now >= call.deadline:
        return slot.ended("closed", *call._unheard(slot, late=True)), (Closed(slot.ask.id),)
    if call.now >= slot.seen + call.silence:
        return replace(slot, phase="silent"), ()
    return slot, ()


def _accept(slot: Slot, event: Delivered, call: Gathering) -> Moved:
    return replace(slot, phase="delivered", digest=event.digest), (FoldIt(slot.ask.id),)


def _compare(slot: Slot, event: Delivered, call: Gathering) -> Moved:
    """A second answer: the same bytes are nothing new, others are an equivocation."""
    if slot.alarmed or not slot.digest or event.digest == slot.digest:
        return slot, ()
    reason = f"answered with {slot.digest[:12]} first, then with {event.digest[:12]}"
    return replace(slot, alarmed=True), (Alarm(slot.ask.id, slot.ask.client, reason),)


def _count(slot: Slot, event: Folded, call: Gathering) -> Moved:
    ended = slot.ended(
        "answered", "contributed", "", examples=event.examples, seconds=event.seconds
    )
    return ended, ()


def _refuse(slot: Slot, event: Refused, call: Gathering) -> Moved:
    effects = () if slot.digest else (Closed(slot.ask.id),)
    return slot.ended("answered", "refused", event.reason), effects


def _fail(slot: Slot, event: Failed, call: Gathering) -> Moved:
    effects = () if slot.digest else (Closed(slot.ask.id),)
    return slot.ended("answered", "failed", event.reason, seconds=event.seconds), effects


def _drop(slot: Slot, event: Left | Cancel, call: Gathering) -> Moved:
    return slot.ended("closed", "dropped", event.reason), (Closed(slot.ask.id),)


_ROWS: Mapping[type, tuple[Rule, Rule, Rule, Rule, Rule]] = {
    # event    open     silent   delivered answered  closed
    Seen: (_hear, _hear, _stay, _stay, _stay),
    Delivered: (_accept, _accept, _compare, _compare, _stay),
    Folded: (_stay, _stay, _count, _stay, _stay),
    Refused: (_refuse, _refuse, _refuse, _stay, _stay),
    Failed: (_fail, _fail, _fail, _stay, _stay),
    Left: (_drop, _drop, _stay, _stay, _stay),
    Tick: (_pass, _pass, _stay, _stay, _stay),
    Away: (_again, _again, _stay, _stay, _stay),
    Cancel: (_drop, _drop, _drop, _stay, _stay),
}

RULES: Mapping[tuple[Phase, type], Rule] = {
    (phase, kind): rule
    for kind, row in _ROWS.items()
    for phase, rule in zip(PHASES, row, strict=True)
}
"""What happens to an ask in a phase at a kind of event."""
