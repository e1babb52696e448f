"""Virtual time: how long clients take, when they can be reached, and when they leave.

Every draw has a name (client and running number), so the clock is reproducible to the bit and does
not depend on what is computed or where (decision D6).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from atoll.core.errors import DataError, Fault
from atoll.core.ranges import check, inside
from atoll.core.seeds import Seed
from atoll.core.values import ClientId

__all__ = ["Availability", "Clock", "Delay", "read_intervals", "read_seconds"]

DelayKind = Literal["constant", "exponential", "half_normal", "log_normal", "trace"]


_ROWS = (tuple, list, np.ndarray)


def _seconds(row: Any) -> bool:
    if not isinstance(row, _ROWS) or not len(row):
        return False
    return all(inside(one, "[0, inf]") for one in row)


def _spans(row: Any) -> bool:
    return isinstance(row, _ROWS) and all(
        _seconds(span) and len(span) == 2 and span[0] <= span[1] for span in row
    )


def _not_rows(place: str, trace: Any, good: Callable[[Any], bool], such: str) -> list[Fault]:
    if not isinstance(trace, Mapping):
        return [Fault(place, f"{trace!r:.60} is no mapping", f"give one by client, such as {such}")]
    return [
        Fault(f"{place}.{client}", f"{row!r:.60} are no seconds >= 0", f"give such as {such}")
        for client, row in trace.items()
        if not good(row)
    ]


@dataclass(frozen=True)
class Delay:
    """Virtual seconds from a task's start to its arrival.

    Args:
        kind: ``constant`` (always ``scale``), ``exponential`` (mean ``scale``), ``half_normal``
            (``scale * |N(0, 1)|``), ``log_normal`` (median ``scale``, spread ``sigma``), ``trace``.
        scale: virtual seconds >= 0.
        sigma: standard deviation of the logarithm, for ``log_normal``.
        per: ``task`` draws anew each time; ``client`` draws once, a machine's lasting speed.
        per_example: multiply by the client's number of examples.
        trace: for ``trace``, the durations of each client's tasks (of rounds, in a synchronous run), used in
            turn and again.
    """

    kind: DelayKind = "constant"
    scale: float = 0.0
    sigma: float = 1.0
    per: Literal["task", "client"] = "task"
    per_example: bool = False
    trace: Mapping[ClientId, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse words that are not known, and options and durations out of range."""
        check(
            self,
            "clock.delay",
            also=_not_rows("clock.delay.trace", self.trace, _seconds, "(1.5, 0.7)"),
            kind=get_args(DelayKind),
            scale="[0, inf)",
            sigma="[0, inf)",
            per=("task", "client"),
            per_example="bool",
        )

    def draw(self, seed: Seed, client: ClientId, number: int, examples: int) -> float:
        """Duration of the ``number``-th task of ``client``, which holds ``examples`` rows."""
        times = examples if self.per_example else 1
        if self.kind == "trace":
            if client not in self.trace:
                raise DataError("no duration in the trace file", site=client)
            row = self.trace[client]
            return row[number % len(row)] * times
        if self.kind == "constant":
            return self.scale * times
        stream = seed / "delay" / client
        rng = (stream / number if self.per == "task" else stream).generator()
        if self.kind == "exponential":
            return float(rng.exponential(self.scale)) * times
        if self.kind == "half_normal":
            return abs(float(rng.normal())) * self.scale * times
        return math.exp(float(rng.normal()) * self.sigma) * self.scale * times


@dataclass(frozen=True)
class Availability:
    """When a client can be reached.

    Args:
        probability: chance of being reachable when invited, drawn for each invitation.
        intervals: from a trace file: for each client the (start, end) spans of virtual time in which
            it is reachable; a client without an entry never is. None: no trace.
    """

    probability: float = 1.0
    intervals: Mapping[ClientId, tuple[tuple[float, float], ...]] | None = None

    def __post_init__(self) -> None:
        """Refuse a probability outside [0, 1], and spans that are none."""
        place, spans = "clock.availability_trace", {} if self.intervals is None else self.intervals
        check(
            self,
            "clock",
            names={"probability": "availability"},
            also=_not_rows(place, spans, _spans, "((0.0, 8.5), (24.0, 32.5))"),
            probability="[0, 1]",
        )

    def reachable(self, seed: Seed, client: ClientId, number: int, now: float) -> bool:
        """Whether ``client`` answers its ``number``-th invitation at time ``now``."""
        if self.intervals is not None:
            spans = self.intervals.get(client, ())
            if not any(start <= now < end for start, end in spans):
                return False
        if self.probability >= 1.0:
            return True
        draw = (seed / "availability" / client / number).generator().random()
        return bool(draw < self.probability)

    def awake(self, now: float) -> float:
        """When somebody can be reached: ``now`` while somebody can, and where nobody ever will.

        >>> Availability(intervals={"a": ((0.0, 5.0), (9.0, 12.0))}).awake(5.0)
        9.0
        """
        spans = (span for own in (self.intervals or {}).values() for span in own)
        if any(start <= now < end for start, end in spans):
            return now
        wake = self.next_change(now)
        return wake if math.isfinite(wake) else now

    def next_change(self, now: float) -> float:
        """Earliest start of a span after ``now``; infinity when none comes."""
        starts = (s for spans in (self.intervals or {}).values() for s, _ in spans if s > now)
        return min(starts, default=math.inf)


@dataclass(frozen=True)
class Clock:
    """The whole model of clients in time.

    Args:
        delay: how long a task takes.
        availability: who can be reached.
        dropout: chance that a client leaves in the middle of a task, in [0, 1): somebody has to arrive.
        partial: share of tasks that do only a part of the local work, in [0, 1].
        partial_low: least part done by those; the part is uniform in [partial_low, 1].
    """

    delay: Delay = field(default_factory=Delay)
    availability: Availability = field(default_factory=Availability)
    dropout: float = 0.0
    partial: float = 0.0
    partial_low: float = 0.1

    def __post_init__(self) -> None:
        """Refuse shares out of range."""
        check(
            self,
            "clock",
            delay=Delay,
            availability=Availability,
            dropout="[0, 1)",
            partial="[0, 1]",
            partial_low="(0, 1]",
        )

    @cached_property
    def still(self) -> bool:
        """Whether everybody is always there, works alike and does all: then nobody need be asked."""
        delay, there = self.delay, self.availability
        alike = delay.kind == "constant" and not delay.per_example
        always = there.intervals is None and there.probability >= 1.0
        return alike and always and not (self.dropout or self.partial)

    def leaves_after(self, seed: Seed, client: ClientId, number: int) -> float | None:
        """Share of its task after which the client leaves; None when it stays."""
        if self.dropout == 0.0:
            return None
        rng = (seed / "dropout" / client / number).generator()
        return float(rng.random()) if rng.random() < self.dropout else None

    def fraction(self, seed: Seed, client: ClientId, number: int) -> float:
        """Share of the local work done in this task, in (0, 1]."""
        if self.partial == 0.0:
            return 1.0
        rng = (seed / "partial" / client / number).generator()
        if rng.random() >= self.partial:
            return 1.0
        return float(rng.uniform(self.partial_low, 1.0))


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [c for c in columns if c not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"trace {path} has no column {', '.join(missing)}",
                    remedy=f"its header must be {','.join(columns)}",
                )
            return list(enumerate(reader, start=2))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"trace {path} cannot be read: {getattr(error, 'strerror', None) or error}",
            remedy="check the file",
        ) from error


def _number(text: str, path: Path, line: int) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not value >= 0:
        raise DataError(f"trace {path}, line {line}: {text!r} is not a number >= 0")
    return value


def read_seconds(path: Path) -> dict[ClientId, tuple[float, ...]]:
    """Durations from a CSV with the columns ``client,seconds``, one row per task, in order."""
    found: dict[ClientId, tuple[float, ...]] = {}
    for line, row in _rows(path, ("client", "seconds")):
        seconds = _number(row["seconds"], path, line)
        found[row["client"]] = (*found.get(row["client"], ()), seconds)
    return found


def read_intervals(path: Path) -> dict[ClientId, tuple[tuple[float, float], ...]]:
    """Spans of reachability from a CSV with the columns ``client,start,end``."""
    found: dict[ClientId, tuple[tuple[float, float], ...]] = {}
    for line, row in _rows(path, ("client", "start", "end")):
        span = (_number(row["start"], path, line), _number(row["end"], path, line))
        found[row["client"]] = (*found.get(row["client"], ()), span)
    return found
