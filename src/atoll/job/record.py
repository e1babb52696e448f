"""``[privacy.record]``: local training that hides single rows, and what it costs.

Each site's trainer is wrapped in its private form (:mod:`atoll.models.private`): true Poisson sampling, a
bound on every row's gradient, noise on each step. What leaves a site is then private towards everybody,
the server included. Training, not committing, is what costs: rounds that were aborted count too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from typing import Any

from atoll.core.contracts import Trainer
from atoll.core.errors import Fault, JobConflict
from atoll.core.local import LocalWork
from atoll.job.declared import Privacy, RowPrivacy
from atoll.models import private
from atoll.models.linear import LinearTrainer
from atoll.models.linear_private import PrivateLinearTrainer
from atoll.privacy.dp.calibration import calibrate
from atoll.privacy.dp.events import Gaussian
from atoll.privacy.dp.noise import Draws
from atoll.privacy.dp.rdp import rdp_epsilon
from atoll.privacy.links.account import RunAccount
from atoll.runtime.schedule import Turns

__all__ = [
    "record_account",
    "record_event",
    "record_faults",
    "record_trainer",
]


def record_trainer(
    privacy: Privacy, trainer: Trainer, rows: Iterable[int], work: LocalWork, rounds: int
) -> Trainer:
    """The trainer in its private form; as it is where the job does not ask for it.

    Args:
        privacy: the section.
        trainer: the job's.
        rows: numbers of training rows of those whom it will train.
        work: local work of a task.
        rounds: planned ones that a client may be in.

    Raises:
        JobConflict: this kind of trainer has no private form, or no noise keeps the target.
    """
    if privacy.record is None:
        return trainer
    counts = [n for n in rows if n > 0] or [1]
    z = max(_multiplier(privacy.record, n, work, rounds) for n in set(counts))
    how = private.RecordPrivacy(privacy.record.clip, z, privacy.record.micro_batch)
    if isinstance(trainer, LinearTrainer):
        return PrivateLinearTrainer(trainer, how, Draws)
    if type(trainer).__name__ == "TorchTrainer":
        torch_private: Any = import_module("atoll.models.torch.private")  # not for everybody
        made: Trainer = torch_private.PrivateTorchTrainer(trainer, how, Draws)
        return made
    fault = Fault(
        "privacy.record",
        f"{type(trainer).__name__} takes no gradients row by row",
        "use a linear model or a torch module, or privacy.client",
    )
    raise JobConflict("no private form of this model", faults=[fault])


def record_faults(trainer: Trainer, data: Any) -> list[Fault]:
    """All that stands against training this model on rows like these privately (BatchNorm …).

    Args:
        trainer: from :func:`record_trainer`.
        data: one client's rows.
    """
    ask = getattr(trainer, "faults", None)
    return list(ask(data)) if ask is not None else []


def record_event(privacy: RowPrivacy, rows: int, work: LocalWork, rounds: int) -> Gaussian:
    """What one local training on ``rows`` rows costs.

    Args:
        privacy: the section.
        rows: training rows of the site.
        work: local work of a task.
        rounds: planned ones that a client may be in.

    Raises:
        JobConflict: no noise keeps the target.
    """
    how = private.RecordPrivacy(privacy.clip, _multiplier(privacy, rows, work, rounds))
    cost = private.releases(how, rows, work)
    return Gaussian(cost.noise_multiplier, cost.sampling, cost.count)


def record_account(
    privacy: Privacy,
    rows: Iterable[int],
    work: LocalWork,
    turns: Turns,
    outside: tuple[str, ...],
) -> RunAccount | None:
    """The account of the site whose rows it costs most; None where the job does not ask for it."""
    record, metrics = privacy.record, privacy.metrics
    counts = sorted({n for n in rows if n > 0})
    if record is None or not counts:
        return None
    events = [record_event(record, n, work, turns.visits) for n in counts]
    worst = max(events, key=lambda event: rdp_epsilon([event] * turns.visits, record.delta))
    planned = 0 if record.noise_multiplier else turns.rounds
    return RunAccount(
        worst,
        record.goal,
        "record",
        "add_or_remove",
        planned,
        (*outside, "figures of held-out rows") if record.open_metrics else outside,
        method=record.method,
        attempts=True,
        separation=turns.separation,
        figures=replace(record.beside[0], count=1) if record.beside else None,
        every=1 if metrics is None else metrics.every,
    )


@lru_cache(maxsize=1024)
def _multiplier(privacy: RowPrivacy, rows: int, work: LocalWork, rounds: int) -> float:
    if privacy.noise_multiplier:
        return privacy.noise_multiplier
    cost = private.releases(private.RecordPrivacy(privacy.clip, 1.0), rows, work)
    return calibrate(
        privacy.goal,
        cost.count * rounds,
        cost.sampling,
        others=privacy.beside,
        method=privacy.method,
    )
