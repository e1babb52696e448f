"""What the data of a site have been asked for: the arithmetic of its privacy ledger, without a disk.

Every answer that costs privacy has a :class:`Charge`: which dataset, whose presence is hidden (the unit),
and what was released, as the plain form of :mod:`atoll.privacy.dp.events`. It passes these states:

============  =======================================================================================
``reserved``  the round may begin; it counts from now on
``released``  the answer with this hash may leave the site; from now on it counts for good
``settled``   released, and the server needs it no more
``returned``  given back: no byte of an answer had left
============  =======================================================================================

:class:`Accounts` adds up all charges of a dataset, over all jobs and researchers, by composing their
events. Hiding a coarser unit hides the finer ones: what was released for one ``site`` counts for one
``record`` too, not the other way round. It counts for more there: a record more or less leaves the site in the
sum, with another update, which may be twice as far from the one it had as from none
(:func:`~atoll.privacy.dp.accounting.of_part`).
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from atoll.core.errors import AtollError, DataError, PolicyError
from atoll.runtime.schedule import Turns

__all__ = [
    "QUERY",
    "UNITS",
    "Accounts",
    "Balance",
    "Charge",
    "Entry",
    "Epsilon",
    "Limit",
    "State",
    "composed_epsilon",
]

QUERY = "query"
"""Kind of an event that is no noise: exact statistics, listed and counted, and outside every epsilon."""

UNITS = ("record", "person", "site")
"""Whose presence may be hidden, the finer ones first."""

State = Literal["reserved", "released", "settled", "returned"]
Plain = Mapping[str, Any]
"""A privacy event as :func:`atoll.privacy.dp.events.to_plain` gives it."""

Epsilon = Callable[[Sequence[Plain], float, str], float]
"""Epsilon of all events together, at a delta, for a neighbouring relation."""


@lru_cache(maxsize=4096)
def _composed(texts: tuple[str, ...], delta: float, neighbouring: str) -> float:
    from atoll.privacy.dp.accounting import epsilon
    from atoll.privacy.dp.events import from_plain

    events = [from_plain(json.loads(text)) for text in texts]
    relation: Any = neighbouring
    return epsilon(events, delta, relation) if events else 0.0


@lru_cache(maxsize=4096)
def _of_part(text: str) -> str:
    from atoll.privacy.dp.accounting import of_part
    from atoll.privacy.dp.events import from_plain, to_plain

    return _text(to_plain(of_part(from_plain(json.loads(text)))))


def composed_epsilon(events: Sequence[Plain], delta: float, neighbouring: str) -> float:
    """Epsilon by :mod:`atoll.privacy.dp.accounting`; asked again for the same events it is at once there.

    Raises:
        JobError: an unknown event, or events that cannot be accounted for together.
        MissingExtra: dp-accounting is not installed.
    """
    return _composed(tuple(sorted(map(_text, events))), delta, neighbouring)


@dataclass(frozen=True)
class Limit:
    """What a dataset may be asked for in all.

    Args:
        dataset: its name.
        epsilon: most that all answers together may cost.
        delta: at which epsilon is meant.
        unit: whose presence is hidden.
        neighbouring: which datasets must look alike.
    """

    dataset: str
    epsilon: float
    delta: float
    unit: str = "record"
    neighbouring: str = "add_or_remove"

    def __str__(self) -> str:
        """For people.

        >>> print(Limit("heart", 3.0, 1e-5))
        epsilon 3 at delta 1e-05 for one record
        """
        return f"epsilon {self.epsilon:g} at delta {self.delta:g} for one {self.unit}"


@dataclass(frozen=True)
class Charge:
    """What one answer to one task releases.

    Args:
        task: id of the task; one charge each in its federation, for ever.
        dataset: name of the dataset at this site.
        unit: whose presence the events hide.
        events: what is released, in plain form.
        job: hash of the job.
        run: id of the run.
        round: number of the round.
        researcher: who submitted the job, as the server says.
        federation: whose task it is. Another one, before or after it, calls its first run the same.
    """

    task: str
    dataset: str
    unit: str
    events: tuple[Plain, ...]
    job: str
    run: str = ""
    round: int = 0
    researcher: str = ""
    federation: str = ""

    def __str__(self) -> str:
        """For people."""
        by = f", by {self.researcher}" if self.researcher else ""
        return f"round {self.round} of job {self.job[:12]} (run {self.run}{by})"


@dataclass(frozen=True)
class Entry:
    """A charge as it stands.

    Args:
        charge: what for.
        state: see the module.
        answer: SHA-256 of the answer that may leave; empty before.
        at: seconds since 1970.
        limits: under which it was reserved, for people.
    """

    charge: Charge
    state: State
    answer: str = ""
    at: float = 0.0
    limits: tuple[str, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        plain = {**asdict(self.charge), "events": [dict(e) for e in self.charge.events]}
        own = {"state": self.state, "answer": self.answer, "at": self.at}
        return {**plain, **own, "limits": list(self.limits)}

    @classmethod
    def from_plain(cls, plain: Plain) -> Entry:
        """Read what :meth:`to_plain` gave.

        Raises:
            DataError: it is no entry.
        """
        try:
            given = dict(plain)
            state, answer, at = given.pop("state"), given.pop("answer"), given.pop("at")
            limits = tuple(given.pop("limits"))
            charge = Charge(**{**given, "events": tuple(given["events"])})
            if state not in get_args(State) or charge.unit not in UNITS:
                raise ValueError(f"state {state!r}, unit {charge.unit!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no entry of a ledger: {error}") from error
        return cls(charge, state, answer, at, limits)


@dataclass(frozen=True)
class Balance:
    """Where a dataset stands.

    Args:
        dataset: its name.
        limit: what it may cost; None where nothing limits it.
        spent: epsilon of all that was reserved or released, at the limit's delta; infinite where some
            of it promises nothing for the limit's unit, NaN where there is no limit.
        rounds: charges that count.
        open: those of them of which nothing has been released yet.
        runs: how many runs they come from.
        researchers: who submitted those runs.
        queries: how many of the runs were statistics, outside epsilon.
    """

    dataset: str
    limit: Limit | None
    spent: float
    rounds: int
    open: int
    runs: int
    researchers: tuple[str, ...]
    queries: int = 0

    @property
    def left(self) -> float:
        """Epsilon that is not spent; NaN without a limit."""
        return math.nan if self.limit is None else max(0.0, self.limit.epsilon - self.spent)


class Accounts:
    """All charges of a site, by federation and task.

    Args:
        epsilon: adds events up; it may take a while, answers are kept.
    """

    def __init__(self, epsilon: Epsilon = composed_epsilon) -> None:
        self._epsilon = epsilon
        self._answers: dict[tuple[tuple[str, ...], float, str], float] = {}
        self._entries: dict[tuple[str, str], Entry] = {}
        self._open: dict[tuple[str, str], dict[str, None]] = {}
        self._single: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
        self._whole: defaultdict[tuple[str, str], dict[str, Charge]] = defaultdict(dict)
        self._rounds: defaultdict[tuple[str, ...], dict[str, int]] = defaultdict(dict)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every charge as it stands, in the order in which they were first made."""
        return tuple(self._entries.values())

    def entry(self, task: str, federation: str = "") -> Entry | None:
        """The charge of a task; None where it has none."""
        return self._entries.get((federation, task))

    def open(self, run: str, federation: str = "") -> tuple[Entry, ...]:
        """Charges of a run that are reserved, and of which nothing has been released."""
        waiting = self._open.get((federation, run), ())
        return tuple(self._entries[federation, task] for task in waiting)

    def take(self, entry: Entry) -> None:
        """Note how a charge stands now. What was released once is never given back."""
        task, whose = entry.charge.task, entry.charge.federation
        old = self._entries.get((whose, task))
        if old is not None and old.state in ("released", "settled") and entry.state == "returned":
            raise DataError(f"{task} was released and cannot be given back")
        if old is not None and old.state != "returned":
            self._count(old.charge, -1)
        if entry.state != "returned":
            self._count(entry.charge, 1)
        self._entries[whose, task] = entry
        waiting = self._open.setdefault((whose, entry.charge.run), {})
        waiting.pop(task, None)
        if entry.state == "reserved":
            waiting[task] = None
        elif not waiting:
            del self._open[whose, entry.charge.run]

    def _count(self, charge: Charge, sign: int) -> None:
        rounds = self._rounds[_series(charge)]
        if sign > 0:
            rounds[charge.task] = charge.round
        else:
            rounds.pop(charge.task, None)
        for event in filter(_noisy, charge.events):
            one, times = _text({**event, "count": 1}), int(event.get("count", 1))
            if not _is_whole(event):
                self._single[charge.dataset][charge.unit, one] += sign * times
            elif sign > 0:
                self._whole[charge.dataset, _of_run(charge, event)][charge.task] = charge
            else:
                self._whole[charge.dataset, _of_run(charge, event)].pop(charge.task, None)

    # What is left -------------------------------------------------------------------------------

    def spent(self, limit: Limit, more: Charge | None = None) -> float:
        """Epsilon of everything that counts for ``limit``, with ``more`` where it is given.

        Raises:
            AtollError: the events cannot be added up.
        """
        counts = Counter({k: n for k, n in self._single[limit.dataset].items() if n > 0})
        runs = {k for (name, k), tasks in self._whole.items() if name == limit.dataset and tasks}
        for event in filter(_noisy, more.events if more else ()):
            if more and _is_whole(event):
                runs.add(_of_run(more, event))
            elif more:
                counts[more.unit, _text({**event, "count": 1})] += int(event.get("count", 1))
        for run in runs:
            unit, one, times = json.loads(run)[1:]
            counts[unit, one] += times
        if any(not _covers(unit, limit.unit) for unit, _ in counts):
            return math.inf
        merged: Counter[str] = Counter()
        for (unit, one), times in counts.items():
            # Where units are exchanged, twice the contribution is what everything is accounted for with.
            part = unit != limit.unit and limit.neighbouring == "add_or_remove"
            merged[_of_part(one) if part else one] += times
        return self._add_up(merged, limit)

    def _add_up(self, counts: Mapping[str, int], limit: Limit) -> float:
        events = [{**json.loads(one), "count": times} for one, times in sorted(counts.items())]
        if not events:
            return 0.0
        key = tuple(map(_text, events)), limit.delta, limit.neighbouring
        if key not in self._answers:
            if len(self._answers) > 1000:
                self._answers.clear()
            self._answers[key] = self._epsilon(events, limit.delta, limit.neighbouring)
        return self._answers[key]

    def check(self, charge: Charge, limits: Iterable[Limit], turns: Turns | None = None) -> None:
        """Refuse a charge that would overdraw one of the ``limits`` of its dataset.

        Args:
            charge: of a round.
            limits: those of its dataset count.
            turns: how often the job may ask; None for as often as the limits and events let it.

        Raises:
            PolicyError: with what is left; or the charge hides nothing of what the limit is about, or
                the job asks more often than it says or its events allow.
            AtollError: the events cannot be added up.
        """
        told = [
            Turns(event["rounds"], event["participations"], event["separation"])
            for event in charge.events
            if _is_whole(event)
        ]
        for each in [*told, *([] if turns is None else [turns])]:
            self._check_turns(charge, each)
        for limit in limits:
            if limit.dataset != charge.dataset:
                continue
            if not _covers(charge.unit, limit.unit):
                raise PolicyError(
                    f"dataset {limit.dataset!r} has a limit for one {limit.unit}, and {charge} "
                    f"promises something for one {charge.unit} only",
                    remedy=f"submit a job with differential privacy for one {limit.unit}",
                )
            after = self.spent(limit, charge)
            if not after <= limit.epsilon:
                raise _overdrawn(charge, limit, self.spent(limit), after)

    def _check_turns(self, charge: Charge, turns: Turns) -> None:
        """What a job promises of its rounds is kept to here: the server that counts them may lie."""
        held = self._rounds.get(_series(charge), {})
        others = {number for task, number in held.items() if task != charge.task}
        gap = min((abs(charge.round - number) for number in others), default=math.inf)
        rounds = {*others, charge.round}
        if (
            len(rounds) > turns.visits
            or gap < turns.separation
            or max(rounds) - min(rounds) >= turns.rounds
        ):
            raise PolicyError(
                f"{charge}: the job may ask a site for {turns.visits} of {turns.rounds} rounds, "
                f"{turns.separation} apart; this would be round {len(rounds)} of them",
                remedy="let the job plan as many rounds as it asks for",
            )

    def balances(self, limits: Iterable[Limit]) -> list[Balance]:
        """Where every dataset stands that has a limit or a charge."""
        limits = list(limits)
        names = {limit.dataset for limit in limits} | {e.charge.dataset for e in self.entries}
        found = []
        for name in sorted(names):
            own = [limit for limit in limits if limit.dataset == name]
            found += [self._balance(name, limit) for limit in own]
            if not own:
                found.append(self._balance(name, None))
        return found

    def _balance(self, name: str, limit: Limit | None) -> Balance:
        held = [e for e in self.entries if e.charge.dataset == name and e.state != "returned"]
        return Balance(
            name,
            limit,
            math.nan if limit is None else self.spent(limit),
            len(held),
            sum(e.state == "reserved" for e in held),
            len({_run(e.charge) for e in held}),
            tuple(sorted({e.charge.researcher for e in held} - {""})),
            len({_run(e.charge) for e in held if not all(map(_noisy, e.charge.events))}),
        )


def _overdrawn(charge: Charge, limit: Limit, before: float, after: float) -> AtollError:
    left = math.floor(max(0.0, limit.epsilon - before) * 100) / 100
    part = "" if charge.unit == limit.unit else f" (it hides one {charge.unit}, at less than that)"
    return PolicyError(
        f"dataset {limit.dataset!r} has epsilon {left:.2f} left of {limit}: {charge} would bring "
        f"what is spent from {_up(before)} to {_up(after)}{part}",
        remedy="use more noise or fewer rounds, or ask the steward of the data for more",
    )


def _up(epsilon: float) -> str:
    return f"{math.ceil(epsilon * 100) / 100:.2f}" if math.isfinite(epsilon) else "infinity"


def _covers(unit: str, asked: str) -> bool:
    """Whether hiding one ``unit`` hides one ``asked``."""
    return UNITS.index(unit) >= UNITS.index(asked)


def _noisy(event: Plain) -> bool:
    return event.get("kind") != QUERY


def _is_whole(event: Plain) -> bool:
    """Whether the event stands for all rounds of a run together: correlated noise."""
    return event.get("kind") == "matrix_gaussian"


def _of_run(charge: Charge, event: Plain) -> str:
    """Under which name an event that stands for a whole run is counted once."""
    one, times = _text({**event, "count": 1}), int(event.get("count", 1))
    return json.dumps([[*_run(charge), charge.job], charge.unit, one, times])


def _run(charge: Charge) -> tuple[str, str]:
    """What tells a run from those of all federations."""
    return charge.federation, charge.run


def _series(charge: Charge) -> tuple[str, ...]:
    """What rounds are counted together for: those of one run that have the same task but for its number."""
    kind, _, rest = charge.task.partition(f".{charge.round}.")
    return (charge.dataset, *_run(charge), charge.job, kind if rest else "")


def _text(event: Plain) -> str:
    return json.dumps(dict(event), sort_keys=True, separators=(",", ":"), allow_nan=False)
