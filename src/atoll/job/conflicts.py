"""What a job asks for that cannot be: of a federation of these clients, or of evaluations that are off.

These look at objects, so they serve a job that was made in Python as well as one from a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from atoll.core.contracts import Weighting
from atoll.core.errors import Fault, suggest
from atoll.core.local import Optimizer
from atoll.core.values import ClientId
from atoll.runtime.clock import Clock
from atoll.runtime.loop import Stop
from atoll.runtime.schedule import Schedule, Synchronous

if TYPE_CHECKING:
    from atoll.job.schema import StopSpec

__all__ = ["federation_faults", "optimizer_faults", "watch_faults"]


def federation_faults(
    schedule: Schedule, weighting: Weighting, clock: Clock, clients: Collection[ClientId]
) -> list[Fault]:
    """What a job asks for that a federation of these clients cannot give."""
    found = [
        Fault("rounds", reason, "change [rounds]") for reason in _impossible(schedule, clients)
    ]
    if not clients:
        found.append(Fault("data", "the federation has no clients", "check data.source"))
    if weighting.kind == "given":
        found += _unmatched("algorithm.weights", weighting.given, clients)
        remedy = "give lambda_i for every client"
        found += [
            Fault("algorithm.weights", f"no weight for client {c!r}", remedy)
            for c in clients
            if c not in weighting.given
        ]
        if not sum(weighting.given.values()) > 0:
            found.append(Fault("algorithm.weights", "all weights are 0", "give one above 0"))
    if isinstance(schedule, Synchronous):
        found += _unmatched("rounds.cohort_weights", schedule.cohort.weights, clients)
    if clock.delay.kind == "trace":
        found += [
            Fault("clock.delay.trace", f"no row for client {c!r}", "add one to the trace file")
            for c in clients
            if c not in clock.delay.trace
        ]
    return found


def optimizer_faults(trainer: Any, optimizer: Optimizer) -> Iterator[Fault]:
    """An optimiser that the trainer does not know, or what that one would leave unread.

    Args:
        trainer: or what makes one. It says which it knows by ``optimizers``, names; a fit function of the
            user's own does not, and gets what it is given.
        optimizer: the local one.
    """
    known, name = getattr(trainer, "optimizers", None), optimizer.name
    if known is None:
        return
    if name not in known:
        yield Fault(
            "local.optimizer", f"unknown local optimiser {name!r:.60}", suggest(name, known)
        )
    elif optimizer.momentum and name not in ("sgd", "rmsprop"):
        yield Fault("local.momentum", f"has no meaning for {name!r}", "leave it out")
    elif optimizer.nesterov and not (name == "sgd" and optimizer.momentum):
        remedy = "give a momentum, such as 0.9, or leave it out"
        yield Fault("local.nesterov", "is a form of SGD's momentum, and there is none", remedy)


def _impossible(schedule: Schedule, clients: Collection[ClientId]) -> list[str]:
    return schedule.faults(len(clients)) if clients else []


def _unmatched(
    place: str, named: Collection[ClientId], clients: Collection[ClientId]
) -> Iterator[Fault]:
    for client in named:
        if client not in clients:
            some = itertools.islice(clients, 1000)
            yield Fault(place, f"{client!r} is not a client", suggest(client, some))


def watch_faults(
    stop: StopSpec | Stop, every: int, *, central: bool, federated: bool
) -> Iterator[Fault]:
    """What a job watches and never computes.

    Args:
        stop: what is watched.
        every: rounds between evaluations; 0 for never.
        central: whether the central test set is evaluated.
        federated: whether clients evaluate.
    """
    on = {"central": central, "federated": federated}
    kind, _, name = stop.metric.partition(".")
    if (stop.patience or stop.target is not None) and not stop.metric:
        yield Fault(
            "stop.metric",
            "patience and target need a metric to watch",
            "set stop.metric, such as 'federated.loss'",
        )
    if stop.metric and not (kind in on and name):
        remedy = "write central.NAME or federated.NAME, such as federated.loss"
        yield Fault("stop.metric", f"{stop.metric!r} names no evaluation", remedy)
    elif stop.metric and not on[kind]:
        yield Fault(
            "stop.metric",
            f"{stop.metric!r} is watched, but evaluation.{kind} is off",
            f"set evaluation.{kind} = true",
        )
    if stop.metric and not every:
        yield Fault(
            "evaluation.every",
            f"is 0, so {stop.metric!r} is never computed",
            "set it to 1 or more",
        )
