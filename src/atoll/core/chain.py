"""The chain an update passes on its way out: clip, noise, quantise, mask (decision D8).

Each link is a small object with a client half and a server half. Client halves run in order at the client,
before anything leaves it; server halves run in reverse on what the updates add up to. A link says what it
needs from those before it and what it gives to those after it, so that the whole chain can be checked,
and all its faults told, before a round begins.

What a link remembers at the server lies in the state's slots, named ``<link>.<what>``: it is in every
checkpoint. What clients must know of it travels in the broadcast under the same kind of name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from atoll.core.contracts import Task, Weighting
from atoll.core.errors import Fault
from atoll.core.layout import Array, Layout
from atoll.core.metrics import Metrics
from atoll.core.seeds import Seed
from atoll.core.values import Aggregate, Broadcast, ClientId, State, Update, freeze

__all__ = [
    "COHORT",
    "Account",
    "Chain",
    "Entropy",
    "Link",
    "Passage",
    "Passive",
    "Range",
    "Setting",
    "random_bytes",
]

Entropy = Callable[[int], bytes]
"""Gives so many random bytes."""

COHORT = "chain.cohort"
"""Name of the slot and public vector that holds n, the most clients of one sum."""


def random_bytes(count: int) -> bytes:
    """Random bytes from the operating system: what keys, masks and privacy noise are made of (D16)."""
    return os.urandom(count)


@dataclass(frozen=True)
class Range:
    """What the values of a vector that is no model are, for links that turn numbers into integers.

    An algorithm that sends such vectors may have an attribute ``ranges``: a mapping from their names.

    Args:
        bound: values lie in ``[-bound, bound]``.
        step: values are whole multiples of it (counts: 1); None for real numbers.
        bits: of the integers that are added up, 32 or 64.
    """

    bound: float
    step: float | None = None
    bits: int = 64


@dataclass(frozen=True, eq=False)
class Passage:
    """Where an update passes the client halves.

    Args:
        client: who sends it.
        version: of the model its training started from.
        repeat: earlier tasks of this client from the same version.
        broadcast: what it started from, with the links' public vectors.
        cohort: n, the most clients that may be in one sum.
        seed: stream for experiment randomness (stochastic rounding); never for privacy noise.
        entropy: the operating system's random bytes, for privacy noise.
        scale: s(tau), for links after which the server can scale nothing any more.
    """

    client: ClientId
    version: int
    repeat: int
    broadcast: Broadcast
    cohort: int
    seed: Seed
    entropy: Entropy = field(default=random_bytes, repr=False)
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Setting:
    """What a chain is checked against.

    Args:
        vectors: shapes and dtypes of what the algorithm sends, by name.
        metrics: what it sends as metrics, by name.
        model: d, length of a vector of the model.
        weighting: the rule for weights.
        cohort: n, the most clients of one sum.
        quorum: the fewest updates that a round may commit with.
        population: N.
        rate: q of a Poisson sampler; None where clients are chosen otherwise.
        forms_cohorts: whether every server step adds up several updates.
        additive: whether the algorithm's server half wants nothing but sums.
        changes: whether vectors of the model are changes of it, near 0, and no models.
    """

    vectors: Mapping[str, tuple[tuple[int, ...], str]]
    metrics: Metrics
    model: int
    weighting: Weighting
    cohort: int
    quorum: int = 1
    population: int = 0
    rate: float | None = None
    forms_cohorts: bool = True
    additive: bool = True
    changes: bool = True


class Link(Protocol):
    """One link of the chain. Stateless: what it remembers comes in and goes out as slots."""

    @property
    def name(self) -> str:
        """The link's name, before its slots and public vectors."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What a link before it must give: ``bounded norm``, ``integers`` and the like."""
        ...

    @property
    def gives(self) -> frozenset[str]:
        """What is true of an update behind it: ``bounded norm``, ``integers``, ``sums only`` and the like."""
        ...

    def faults(self, setting: Setting) -> Sequence[Fault]:
        """What in this setting contradicts the link."""
        ...

    def start(self, layout: Layout) -> Mapping[str, Array]:
        """Its slots before the first round."""
        ...

    def tell(self, slots: Mapping[str, Array]) -> Mapping[str, Array]:
        """Its public vectors for the next broadcast."""
        ...

    def client(self, update: Update, passage: Passage) -> Update:
        """The client half.

        Raises:
            UpdateRefused: this update may not leave.
        """
        ...

    def server(
        self, aggregate: Aggregate, slots: Mapping[str, Array], round: int
    ) -> tuple[Aggregate, Mapping[str, Array]]:
        """The server half, and the slots that changed.

        Args:
            aggregate: what came out of the link behind it.
            slots: all slots.
            round: rounds that ended before this one, aborted ones among them.
        """
        ...

    def events(self) -> Sequence[Any]:
        """Privacy events of one committed round; empty for links that cost nothing."""
        ...


class Account(Protocol):
    """What the rounds of a run have cost, and what may still be spent."""

    @property
    def attempts(self) -> bool:
        """Whether aborted rounds count, too."""
        ...

    def spent(self, rounds: int) -> Mapping[str, Any]:
        """The statement after so many rounds: epsilon, delta, unit, relation, ready for JSON."""
        ...

    def over(self, rounds: int) -> str:
        """Why no further round may begin after so many; empty while one may."""
        ...


class Passive:
    """A link's parts where it has nothing to do; links inherit them and say only what they do."""

    def faults(self, setting: Setting) -> Sequence[Fault]:
        """Nothing contradicts it."""
        return ()

    def start(self, layout: Layout) -> Mapping[str, Array]:
        """Nothing is remembered."""
        return {}

    def tell(self, slots: Mapping[str, Array]) -> Mapping[str, Array]:
        """Nothing is told."""
        return {}

    def client(self, update: Update, passage: Passage) -> Update:
        """The update as it is."""
        return update

    def server(
        self, aggregate: Aggregate, slots: Mapping[str, Array], round: int
    ) -> tuple[Aggregate, Mapping[str, Array]]:
        """The sum as it is."""
        return aggregate, {}

    def events(self) -> Sequence[Any]:
        """Nothing is released with differential privacy."""
        return ()


@dataclass(frozen=True, eq=False)
class Chain:
    """The links in order; without any it changes nothing.

    Args:
        links: first to last as an update passes them.
        cohort: n, the most clients that may be in one sum.
        account: of the privacy events; None where there are none.
        entropy: where links get privacy noise from.
    """

    links: tuple[Link, ...] = ()
    cohort: int = 0
    account: Account | None = None
    entropy: Entropy = field(default=random_bytes, repr=False)

    def __bool__(self) -> bool:
        """Whether there is any link, or an account to keep."""
        return bool(self.links) or self.account is not None

    def find(self, name: str) -> Any:
        """The link called ``name``; None when there is none."""
        return next((link for link in self.links if link.name == name), None)

    def gives(self, what: str) -> bool:
        """Whether some link gives ``what``."""
        return any(what in link.gives for link in self.links)

    def factor(self, scale: float) -> float:
        """What an update that comes out of the chain still counts: s(tau), or 1 if that is inside."""
        return 1.0 if self.gives("staleness inside") else scale

    def faults(self, setting: Setting) -> list[Fault]:
        """Everything that is wrong with the chain in this setting, at once."""
        found, given = list[Fault](), set[str]()
        for link in self.links:
            found += [
                Fault(f"privacy: {link.name}", f"needs {need}, which no link before it gives")
                for need in sorted(link.needs - given)
            ]
            found += link.faults(setting)
            given |= link.gives
        return found

    def start(self, layout: Layout) -> dict[str, Array]:
        """The slots of all links before the first round."""
        if not self.links:
            return {}
        slots = {COHORT: np.array([self.cohort], np.float64)}
        for link in self.links:
            slots |= link.start(layout)
        return slots

    def begun(self, state: State, layout: Layout) -> State:
        """``state`` before the first round, with the slots of all links."""
        if not self.links:
            return state
        fresh = {name: freeze(np.asarray(slot)) for name, slot in self.start(layout).items()}
        return replace(state, slots={**state.slots, **fresh})

    def told(self, broadcast: Broadcast, slots: Mapping[str, Array]) -> Broadcast:
        """``broadcast`` with the public vectors of all links."""
        if not self.links:
            return broadcast
        public = {COHORT: slots[COHORT]}
        for link in self.links:
            public |= link.tell(slots)
        return Broadcast(broadcast.version, {**broadcast.vectors, **public})

    def client(self, update: Update, task: Task, broadcast: Broadcast, seed: Seed) -> Update:
        """The client halves, in order.

        Args:
            update: what the algorithm's client half gave.
            task: who did what.
            broadcast: what it started from.
            seed: the task's stream.

        Raises:
            UpdateRefused: a link does not let it pass.
        """
        if not self.links:
            return update
        passage = Passage(
            task.client,
            task.version,
            task.repeat,
            broadcast,
            int(broadcast.vectors[COHORT][0]),
            seed / "chain",
            self.entropy,
            task.scale,
        )
        for link in self.links:
            update = link.client(update, passage)
        return update

    def bounded(self, update: Update, broadcast: Broadcast) -> Update:
        """What the links that cut an update short leave of it; the very same where that is all.

        Links that do so have a method of this name.
        """
        for link in self.links:
            if (cut := getattr(link, "bounded", None)) is not None:
                update = cut(update, broadcast)
        return update

    def server(self, aggregate: Aggregate, state: State, round: int) -> tuple[Aggregate, State]:
        """The server halves, in reverse; the aggregate for the algorithm, and the state to start from.

        Args:
            aggregate: of a round that commits.
            state: that it started from.
            round: rounds that ended before it, aborted ones among them.
        """
        if not self.links:
            return aggregate, state
        slots = dict(state.slots)
        for link in reversed(self.links):
            aggregate, changed = link.server(aggregate, slots, round)
            slots |= {name: freeze(np.asarray(slot)) for name, slot in changed.items()}
        return aggregate, replace(state, slots=slots)

    def short(self, present: int, invited: int) -> str:
        """Why a round in which ``present`` of ``invited`` updates came cannot commit; empty if it can.

        Links that need a certain number have a method of this name.
        """
        asked = (getattr(link, "short", None) for link in self.links)
        return next((why for ask in asked if ask and (why := str(ask(present, invited)))), "")

    def events(self) -> list[Any]:
        """The privacy events of one committed round."""
        return [event for link in self.links for event in link.events()]
