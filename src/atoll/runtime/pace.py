"""Where a schedule stands, and the federation as it sees it: what it plans the next server step from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.runtime.clock import Clock

__all__ = ["Event", "Pace", "Population"]

Event = tuple[float, int, ClientId, int, int, float]
"""A task under way: (arrival, order, client, version, repeat, share done; -1: it leaves)."""


@dataclass(frozen=True)
class Pace:
    """Where a schedule stands: all it remembers, as plain data.

    Args:
        clock: virtual now.
        attempts: plans made so far.
        repeat: attempts since the model last changed.
        events: tasks under way in an asynchronous run.
        order: running number of dispatches.
        starts: dispatches per client.
        started: for each client its last version and how many tasks it began from it.
        idle: clients that arrived and wait to be dispatched again.
        resting: who was invited to the last rounds, the oldest first, where clients rest.
    """

    clock: float = 0.0
    attempts: int = 0
    repeat: int = 0
    events: tuple[Event, ...] = ()
    order: int = 0
    starts: Mapping[ClientId, int] = field(default_factory=dict)
    started: Mapping[ClientId, tuple[int, int]] = field(default_factory=dict)
    idle: int = 0
    resting: tuple[tuple[ClientId, ...], ...] = ()

    def versions(self) -> set[int]:
        """Model versions that tasks under way started from."""
        return {event[3] for event in self.events}

    def to_plain(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "clock": self.clock,
            "attempts": self.attempts,
            "repeat": self.repeat,
            "events": [list(e) for e in self.events],
            "order": self.order,
            "starts": dict(self.starts),
            "started": {c: list(v) for c, v in self.started.items()},
            "idle": self.idle,
            "resting": [list(cohort) for cohort in self.resting],
        }

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any]) -> Pace:
        """Read what :meth:`to_plain` gave."""
        return cls(
            **{
                **raw,
                "events": tuple(tuple(e) for e in raw["events"]),
                "started": {c: (v[0], v[1]) for c, v in raw["started"].items()},
                "resting": tuple(tuple(cohort) for cohort in raw.get("resting", ())),
            }
        )


@dataclass(frozen=True, eq=False)
class Population:
    """The federation as a schedule sees it.

    Args:
        clients: all clients in a fixed order; asked by position, so they need not be a list.
        examples: number of rows of a client.
        seed: root of the run's streams.
        clock: the model of clients in time.
    """

    clients: Sequence[ClientId]
    examples: Callable[[ClientId], int]
    seed: Seed
    clock: Clock = field(default_factory=Clock)

    def delay(self, client: ClientId, number: int) -> float:
        """Duration of a client's ``number``-th task; its rows are counted only where they matter."""
        rows = self.examples(client) if self.clock.delay.per_example else 1
        return self.clock.delay.draw(self.times, client, number, rows)

    @cached_property
    def everybody(self) -> tuple[ClientId, ...]:
        """All clients: ids may be computed anew whenever they are asked for."""
        return tuple(self.clients)

    @cached_property
    def times(self) -> Seed:
        """Root of the streams that say when clients come and go."""
        return self.seed / "clock"
