"""When the server has enough: the pacing of synchronous and asynchronous runs (decision D6).

A schedule says which tasks make up the next server step and when, in virtual time, it happens. It
never looks at what is computed, so the loop can compute a step's tasks together, on any executor,
in any order. Its whole memory is a :class:`~atoll.runtime.pace.Pace`, plain data that a checkpoint can hold.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Protocol

from atoll.core.contracts import Task
from atoll.core.errors import Fault, JobError
from atoll.core.ranges import check, inside
from atoll.core.seeds import Seed
from atoll.core.values import ClientId, renewed
from atoll.runtime.cohort import Cohort, part_of
from atoll.runtime.pace import Event, Pace, Population

__all__ = [
    "Asynchronous",
    "Plan",
    "Schedule",
    "Synchronous",
    "Turns",
    "turns_of",
]


@dataclass(frozen=True)
class Plan:
    """One server step: what enters it, who is missing and why, and its moment.

    Args:
        tasks: tasks whose updates enter.
        invited: everybody who was asked.
        missing: client -> (status, reason) for the invited without a task.
        clock: virtual time of the step.
        quorum: least number of updates for a commit.
        abort: reason why there is nothing to commit; empty when there is.
        staleness: tau of each task's client.
    """

    tasks: tuple[Task, ...]
    invited: tuple[ClientId, ...]
    missing: Mapping[ClientId, tuple[str, str]]
    clock: float
    quorum: int = 1
    abort: str = ""
    staleness: Mapping[ClientId, int] = field(default_factory=dict)


class Schedule(Protocol):
    """Decides the next server step."""

    def faults(self, population: int) -> list[str]:
        """What is impossible in a federation of this size."""
        ...

    def plan(
        self, pace: Pace, version: int, people: Population, staleness: Callable[[int], float]
    ) -> tuple[Plan, Pace]:
        """The next server step from model ``version``, and where the schedule stands after it."""
        ...


@dataclass(frozen=True)
class Synchronous:
    """Rounds with a barrier: over-selection, deadline and quorum.

    Args:
        cohort: who is invited.
        over_selection: share of further clients invited; the first ``cohort.size`` to arrive count.
        deadline: virtual seconds after which a round ends; infinity for none.
        quorum: least number of updates: a whole number, or a share of the invited if below 1.
    """

    cohort: Cohort = field(default_factory=Cohort)
    over_selection: float = 0.0
    deadline: float = math.inf
    quorum: float = 1

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        part = inside(self.quorum, "(1, inf)") and self.quorum % 1
        wrong = f"{self.quorum} is neither a whole number nor a share below 1"
        check(
            self,
            "rounds",
            also=[Fault("rounds.quorum", wrong, f"such as {int(self.quorum)}")] if part else (),
            cohort=Cohort,
            over_selection="[0, inf)",
            deadline="(0, inf]",
            quorum="[0, inf)",
        )

    def least(self, invited: int) -> int:
        """The quorum where so many are invited."""
        return part_of(invited, self.quorum) if self.quorum < 1 else int(self.quorum)

    def faults(self, population: int) -> list[str]:
        """Impossible cohort or quorum."""
        found = self.cohort.faults(population)
        found = found or self.cohort.crowd(population, self.over_selection)
        if self.over_selection and self.cohort.kind not in ("uniform", "weighted"):
            found.append(f"over_selection needs a cohort of fixed size, not {self.cohort.kind!r}")
        if self.quorum > self.cohort.target(population):
            found.append(
                f"quorum {self.quorum:g} of a cohort of {self.cohort.target(population)} clients"
            )
        return found

    def plan(
        self, pace: Pace, version: int, people: Population, staleness: Callable[[int], float]
    ) -> tuple[Plan, Pace]:
        """Invite, wait, and close the round."""
        number, extra = pace.attempts, self.over_selection
        if self.cohort.kind == "all":  # nothing is drawn
            invited = people.everybody
        else:
            stream = people.seed.at("round", number)
            resting = [client for cohort in pace.resting for client in cohort]
            invited = self.cohort.draw(people.clients, stream, extra=extra, resting=resting)
        tasks, missing, length = self._waited(invited, pace, version, people, staleness(0))
        quorum, abort = max(1, self.least(len(invited))), ""
        if len(tasks) < quorum:
            abort = f"{len(tasks)} of {len(invited)} invited clients arrived; quorum {quorum}"
        ended = pace.clock + length if length else people.clock.availability.awake(pace.clock)
        plan = Plan(() if abort else tasks, invited, missing, ended, quorum, abort)
        return plan, renewed(
            pace,
            clock=plan.clock,
            attempts=number + 1,
            repeat=pace.repeat + 1,
            resting=self.cohort.after(pace.resting, invited),
        )

    def _waited(
        self,
        invited: Sequence[ClientId],
        pace: Pace,
        version: int,
        people: Population,
        scale: float,
    ) -> tuple[tuple[Task, ...], dict[ClientId, tuple[str, str]], float]:
        """The tasks that enter, who is missing and why, and how long the round lasted."""
        clock, took, again = people.clock, people.clock.delay.scale, pace.repeat
        if invited and clock.still and took <= self.deadline and not self.over_selection:
            return tuple([Task(c, version, scale, 1.0, again) for c in invited]), {}, took
        arrivals, missing, gone = _journeys(invited, pace, version, people, scale)
        arrivals.sort()  # by time, then by place; no two have the same
        kept, length = self._close(arrivals, missing, len(invited), gone)
        kept.sort(key=itemgetter(1))
        return tuple([task for _, _, task in kept]), missing, length

    def _close(
        self,
        arrivals: list[tuple[float, int, Task]],
        missing: dict[ClientId, tuple[str, str]],
        invited: int,
        gone: float,
    ) -> tuple[list[tuple[float, int, Task]], float]:
        """Who counts, and how long the round lasted; names the late and the surplus."""
        on_time = [a for a in arrivals if a[0] <= self.deadline]
        for at, _, task in arrivals[len(on_time) :]:
            missing[task.client] = ("late", f"{at:.3g} after the start, deadline {self.deadline:g}")
        want = self.cohort.size if self.over_selection else invited
        kept = on_time[:want]
        for at, _, task in on_time[want:]:
            why = f"arrived {at:.3g} after the start, enough before it"
            missing[task.client] = ("surplus", why)
        if len(kept) == want and kept:
            return kept, kept[-1][0]
        if math.isfinite(self.deadline):
            return kept, self.deadline
        return kept, max(gone, kept[-1][0] if kept else 0.0)


def _journeys(
    invited: Sequence[ClientId], pace: Pace, version: int, people: Population, scale: float
) -> tuple[list[tuple[float, int, Task]], dict[ClientId, tuple[str, str]], float]:
    """When each answer comes, who sends none and why, and when the last of those left."""
    clock, seed, number, again = people.clock, people.times, pace.attempts, pace.repeat
    arrivals: list[tuple[float, int, Task]] = []
    missing: dict[ClientId, tuple[str, str]] = {}
    gone = 0.0
    for index, client in enumerate(invited):
        if not clock.availability.reachable(seed, client, number, pace.clock):
            missing[client] = ("unavailable", "not reachable when invited")
            continue
        delay = people.delay(client, number)
        fraction = clock.fraction(seed, client, number)
        left = clock.leaves_after(seed, client, number)
        if left is not None:
            missing[client] = ("dropped", f"left {left * delay:.3g} after the start")
            gone = max(gone, left * delay)
            continue
        task = Task(client, version, scale, fraction, again)
        arrivals.append((delay * fraction, index, task))
    return arrivals, missing, gone


@dataclass(frozen=True)
class Asynchronous:
    """No barrier: a server step after every ``buffer`` arrivals (FedBuff; 1 is FedAsync).

    A client that arrives is dispatched again (or another idle one, drawn uniformly) as soon as the
    step it completed is done, or at the end of the same instant of virtual time.

    Args:
        buffer: K, updates per server step.
        concurrency: clients training at any time; 0 means all.
        max_staleness: older updates are thrown away; None for no limit.
        patience: virtual seconds to wait before asking again when nobody is reachable.
    """

    buffer: int = 1
    concurrency: int = 0
    max_staleness: int | None = None
    patience: float = 1.0

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        check(
            self,
            "rounds",
            optional=("max_staleness",),
            buffer="whole [1, inf)",
            concurrency="whole [0, inf)",
            max_staleness="whole [0, inf)",
            patience="(0, inf)",
        )

    def faults(self, population: int) -> list[str]:
        """Impossible buffer or concurrency."""
        found = []
        if self.concurrency > population:
            found.append(f"concurrency {self.concurrency} in a federation of {population} clients")
        if self.buffer > (self.concurrency or population):
            found.append(
                f"buffer {self.buffer} exceeds the {self.concurrency or population} clients at work: "
                "one client would count twice in a step"
            )
        return found

    def plan(
        self, pace: Pace, version: int, people: Population, staleness: Callable[[int], float]
    ) -> tuple[Plan, Pace]:
        """Let virtual time run until the buffer is full."""
        run = _Flight(self, pace, people, version)
        if pace.order == 0:
            run.idle = self.concurrency or len(people.clients)
        run.dispatch()
        tasks: list[Task] = []
        waiting: list[Event] = []
        stale: dict[ClientId, int] = {}
        while len(tasks) < self.buffer:
            event = run.pop()
            if event is None:
                break
            _, _, client, since, repeat, fraction = event
            tau = version - since
            if fraction < 0:
                run.missing[client] = ("dropped", "left in the middle of its task")
            elif self.max_staleness is not None and tau > self.max_staleness:
                run.missing[client] = ("late", f"{tau} versions old, at most {self.max_staleness}")
            elif client in stale:
                # One client counts once in a step: its second arrival waits for the next one.
                run.held.add(client)
                waiting.append(event)
                continue
            else:
                run.missing.pop(client, None)
                stale[client] = tau
                tasks.append(Task(client, since, staleness(tau), fraction, repeat))
            run.idle += 1
            if len(tasks) < self.buffer and not run.simultaneous():
                run.dispatch()
        run.put_back(waiting)
        abort = "" if tasks else "no client can be reached any more"
        plan = Plan(tuple(tasks), tuple(run.asked), run.missing, run.now, 1, abort, stale)
        return plan, run.pace()


class _Flight:
    """Working copy of a pace while virtual time runs; lives within one call of ``plan``."""

    def __init__(self, rule: Asynchronous, pace: Pace, people: Population, version: int) -> None:
        self.rule, self.people, self.version = rule, people, version
        self.now, self.order, self.idle = pace.clock, pace.order, pace.idle
        self.attempts = pace.attempts
        self.events = list(pace.events)
        heapq.heapify(self.events)
        self.starts, self.started = dict(pace.starts), dict(pace.started)
        self.asked: dict[ClientId, None] = dict.fromkeys(e[2] for e in sorted(self.events))
        self.missing: dict[ClientId, tuple[str, str]] = {}
        self.held: set[ClientId] = set()

    def simultaneous(self) -> bool:
        """Whether the next arrival is in this very instant."""
        return bool(self.events) and self.events[0][0] == self.now

    def put_back(self, waiting: Sequence[Event]) -> None:
        """Second arrivals of a client in one step arrive again, now, for the next step."""
        for _, order, client, since, repeat, fraction in waiting:
            heapq.heappush(self.events, (self.now, order, client, since, repeat, fraction))

    def pop(self) -> Event | None:
        """Advance to the next arrival; None when nobody will ever arrive."""
        tries = 0
        while not self.events:
            wake = self.people.clock.availability.next_change(self.now)
            wait = self.rule.patience if self.people.clock.availability.intervals is None else 0.0
            if math.isinf(wake) and (wait == 0.0 or tries > 1000):
                return None
            self.now = wake if math.isfinite(wake) else self.now + wait
            tries += 1
            self.dispatch()
        event = heapq.heappop(self.events)
        self.now = event[0]
        return event

    def dispatch(self) -> None:
        """Start as many clients as are idle, drawn uniformly from those not at work."""
        if not self.idle:
            return
        busy = self.held.union(e[2] for e in self.events)
        clients = self.people.clients
        order: Iterable[int] = range(len(clients))
        if len(clients) - len(busy) > self.idle:
            order = _shuffled(len(clients), self.people.seed / "dispatch" / self.order)
        for index in order:
            if not self.idle:
                return
            if clients[index] not in busy:
                self._start(clients[index])

    def _start(self, client: ClientId) -> None:
        clock, seed = self.people.clock, self.people.times
        number = self.starts.get(client, 0)
        self.starts[client] = number + 1
        self.asked[client] = None
        if not clock.availability.reachable(seed, client, number, self.now):
            self.missing[client] = ("unavailable", "not reachable when invited")
            return
        last, repeats = self.started.get(client, (-1, 0))
        repeat = repeats if last == self.version else 0
        self.started[client] = (self.version, repeat + 1)
        delay = self.people.delay(client, number)
        fraction = clock.fraction(seed, client, number)
        left = clock.leaves_after(seed, client, number)
        at = self.now + delay * (fraction if left is None else left)
        event = (at, self.order, client, self.version, repeat, fraction if left is None else -1.0)
        heapq.heappush(self.events, event)
        self.order += 1
        self.idle -= 1

    def pace(self) -> Pace:
        """The record to remember."""
        return Pace(
            clock=self.now,
            attempts=self.attempts + 1,
            events=tuple(sorted(self.events)),
            order=self.order,
            starts=self.starts,
            started=self.started,
            idle=self.idle,
        )


def _shuffled(n: int, seed: Seed) -> Iterator[int]:
    """0 to n - 1 in random order, at the cost of those taken: Fisher and Yates' shuffle, unrolled.

    ``moved`` holds what the textbook's array would hold at the places that are not as they were.
    """
    rng, moved = seed.generator(), dict[int, int]()
    for i in range(n):
        j = int(rng.integers(i, n))
        yield moved.get(j, j)
        moved[j] = moved.pop(i, i)


@dataclass(frozen=True)
class Turns:
    """How often a job may ask one client.

    Args:
        rounds: T, all that are planned, aborted ones among them.
        visits: most of them that one client is invited to.
        separation: rounds from one invitation to the next, at least.
    """

    rounds: int
    visits: int
    separation: int


def turns_of(schedule: Schedule, rounds: int) -> Turns:
    """How often a schedule asks one client in so many rounds.

    >>> turns_of(Synchronous(Cohort("uniform", 2, separation=4)), 10)
    Turns(rounds=10, visits=3, separation=4)
    """
    apart = schedule.cohort.separation if isinstance(schedule, Synchronous) else 1
    return Turns(rounds, -(-rounds // apart), apart)


def check_schedule(schedule: Schedule, population: int) -> None:
    """Raise all faults of ``schedule`` in a federation of ``population`` clients.

    Raises:
        JobError: with every fault.
    """
    found = schedule.faults(population)
    if found:
        raise JobError("; ".join(found), remedy="change [rounds] in the job")
