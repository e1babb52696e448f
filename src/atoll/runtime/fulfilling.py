"""The node's half of one task: fetch what it names, work, send the answer until it is known to be there.

A machine without clock, socket or disk (decision D9), beside :mod:`atoll.runtime.gathering` at the server.

============  ==================================================================================
state         meaning
============  ==================================================================================
``offered``   the server asks for it; nothing has been done yet
``fetching``  what the task names (plan, broadcast, code) is being fetched
``working``   the worker process has it
``finished``  the answer lies in the spool, fsynced, and is being sent
``sent``      the server has it, or wants it no more; kept until the server shows which
``settled``   whether it counted is known; the answer is not needed any more
``dropped``   given up before there was an answer
============  ==================================================================================

An answer that exists is never made again: the same bytes are sent however often the server asks. Only
:class:`Settled` lets go of it, because "not wanted any more" is also what a server says that has
counted an answer whose receipt was lost. Which client memory stays is no matter of this machine: that
follows from ``kept`` of the run's next task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

__all__ = [
    "RULES",
    "STATES",
    "Acknowledged",
    "Effect",
    "Event",
    "Fetch",
    "FetchFailed",
    "Fetched",
    "Forget",
    "Fulfilling",
    "Gone",
    "Offered",
    "Restarted",
    "Retry",
    "Send",
    "SendFailed",
    "Settled",
    "Work",
    "WorkFailed",
    "Worked",
    "backoff",
    "step",
]

State = Literal["offered", "fetching", "working", "finished", "sent", "settled", "dropped"]
STATES: tuple[State, ...] = (
    "offered",
    "fetching",
    "working",
    "finished",
    "sent",
    "settled",
    "dropped",
)

_FIRST, _LONGEST = 0.1, 5.0
"""Seconds: the first wait before another try, and the longest, so that who was away long is back soon."""


# Events.


@dataclass(frozen=True)
class Offered:
    """The server asks for this task."""


@dataclass(frozen=True)
class Fetched:
    """Everything the task names is here, its hashes checked."""


@dataclass(frozen=True)
class FetchFailed:
    """It could not be fetched; ``jitter`` in [0, 1) spreads the tries of many nodes."""

    jitter: float = 0.5


@dataclass(frozen=True)
class Worked:
    """The answer with this hash is in the spool, fsynced."""

    digest: str


@dataclass(frozen=True)
class WorkFailed:
    """The work failed, or cannot begin; the answer that says so is in the spool, fsynced."""

    reason: str
    digest: str = ""


@dataclass(frozen=True)
class Acknowledged:
    """The server has the answer, durably."""


@dataclass(frozen=True)
class SendFailed:
    """It could not be sent, but another try may succeed; ``jitter`` as in :class:`FetchFailed`."""

    jitter: float = 0.5


@dataclass(frozen=True)
class Gone:
    """The server does not ask for this task any more, or refuses the answer for good."""


@dataclass(frozen=True)
class Settled:
    """A later task, or the run's end, shows that this one has been decided."""


@dataclass(frozen=True)
class Restarted:
    """The node was started anew; ``spooled``: whether an answer lies in the spool."""

    spooled: bool


Event = (
    Offered
    | Fetched
    | FetchFailed
    | Worked
    | WorkFailed
    | Acknowledged
    | SendFailed
    | Gone
    | Settled
    | Restarted
)


# Effects.


@dataclass(frozen=True)
class Fetch:
    """Fetch what the task names; then :class:`Fetched`, :class:`FetchFailed` or :class:`WorkFailed`."""


@dataclass(frozen=True)
class Work:
    """Hand the task to the worker; then :class:`Worked` or :class:`WorkFailed`."""


@dataclass(frozen=True)
class Send:
    """Send the spooled answer; then :class:`Acknowledged`, :class:`SendFailed` or :class:`Gone`."""


@dataclass(frozen=True)
class Retry:
    """Do ``what`` after so many seconds, unless the state has changed by then."""

    after: float
    what: Fetch | Send


@dataclass(frozen=True)
class Forget:
    """Stop what is being done for this task, and delete its answer if there is one."""


Effect = Fetch | Work | Send | Retry | Forget


@dataclass(frozen=True)
class Fulfilling:
    """One task at a node; moved on by :func:`step`.

    Args:
        task: its id.
        state: where it stands.
        digest: hash of the answer; empty before there is one.
        tries: failed tries in a row to fetch or to send.
        failure: why the work failed; empty when it did not.
    """

    task: str
    state: State = "offered"
    digest: str = ""
    tries: int = 0
    failure: str = ""


def backoff(tries: int, jitter: float) -> float:
    """Seconds before the next try after ``tries`` failed ones: doubling, half of it spread.

    >>> [backoff(n, 0.999999) > 0.99 * w for n, w in ((1, 0.1), (2, 0.2), (6, 3.2), (99, 5.0))]
    [True, True, True, True]
    >>> backoff(1, 0.0), backoff(99, 0.0)
    (0.05, 2.5)
    """
    longest = min(_LONGEST, _FIRST * 2.0 ** min(tries - 1, 20))
    return longest * (0.5 + 0.5 * jitter)


def step(task: Fulfilling, event: Event) -> tuple[Fulfilling, tuple[Effect, ...]]:
    """The task after ``event``, and what is to be done."""
    return RULES[task.state, type(event)](task, event)


Moved = tuple[Fulfilling, tuple[Effect, ...]]
Rule = Callable[[Fulfilling, Any], Moved]


def _stay(task: Fulfilling, event: Event) -> Moved:
    return task, ()


def _begin(task: Fulfilling, event: Offered) -> Moved:
    return Fulfilling(task.task, "fetching"), (Fetch(),)


def _work(task: Fulfilling, event: Fetched) -> Moved:
    return replace(task, state="working", tries=0), (Work(),)


def _fetch_later(task: Fulfilling, event: FetchFailed) -> Moved:
    tries = task.tries + 1
    return replace(task, tries=tries), (Retry(backoff(tries, event.jitter), Fetch()),)


def _finish(task: Fulfilling, event: Worked) -> Moved:
    return replace(task, state="finished", digest=event.digest, tries=0), (Send(),)


def _report(task: Fulfilling, event: WorkFailed) -> Moved:
    failed = replace(task, state="finished", digest=event.digest, tries=0, failure=event.reason)
    return failed, (Send(),)


def _send_later(task: Fulfilling, event: SendFailed) -> Moved:
    tries = task.tries + 1
    return replace(task, tries=tries), (Retry(backoff(tries, event.jitter), Send()),)


def _sent(task: Fulfilling, event: Acknowledged | Gone) -> Moved:
    return replace(task, state="sent", tries=0), ()


def _send_again(task: Fulfilling, event: Offered) -> Moved:
    return replace(task, state="finished", tries=0), (Send(),)


def _drop(task: Fulfilling, event: Gone | Settled) -> Moved:
    return replace(task, state="dropped", tries=0), (Forget(),)


def _settle(task: Fulfilling, event: Settled) -> Moved:
    return replace(task, state="settled", tries=0), (Forget(),)


def _forget(task: Fulfilling, event: Worked | WorkFailed) -> Moved:
    """An answer that came after it was given up must not stay in the spool."""
    return task, (Forget(),)


def _restart(task: Fulfilling, event: Restarted) -> Moved:
    if event.spooled:
        return replace(task, state="finished", tries=0), (Send(),)
    # What had begun is lost with the process; the server offers the task again if it still wants it.
    return Fulfilling(task.task), ()


def _restart_ended(task: Fulfilling, event: Restarted) -> Moved:
    return task, (Forget(),) if event.spooled else ()


_ROWS: Mapping[type, tuple[Rule, Rule, Rule, Rule, Rule, Rule, Rule]] = {
    # event: offered, fetching, working, finished, sent, settled, dropped
    Offered: (_begin, _stay, _stay, _stay, _send_again, _begin, _begin),
    Fetched: (_stay, _work, _stay, _stay, _stay, _stay, _stay),
    FetchFailed: (_stay, _fetch_later, _stay, _stay, _stay, _stay, _stay),
    Worked: (_forget, _forget, _finish, _stay, _stay, _forget, _forget),
    WorkFailed: (_forget, _report, _report, _stay, _stay, _forget, _forget),
    Acknowledged: (_stay, _stay, _stay, _sent, _stay, _stay, _stay),
    SendFailed: (_stay, _stay, _stay, _send_later, _stay, _stay, _stay),
    Gone: (_drop, _drop, _drop, _sent, _stay, _stay, _stay),
    Settled: (_drop, _drop, _drop, _settle, _settle, _stay, _stay),
    Restarted: (_restart, _restart, _restart, _restart, _restart, _restart_ended, _restart_ended),
}

RULES: Mapping[tuple[State, type], Rule] = {
    (state, kind): rule
    for kind, row in _ROWS.items()
    for state, rule in zip(STATES, row, strict=True)
}
"""What happens to a task in a state at a kind of event."""
