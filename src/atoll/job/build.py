"""From a checked job file to objects, reporting every conflict at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.algorithms import FedAvg
from atoll.core.contracts import Algorithm, Trainer, Weighting
from atoll.core.errors import AtollError, Fault, JobConflict, JobError, raise_faults
from atoll.core.local import LocalWork, Optimizer
from atoll.core.local import Schedule as RateSchedule
from atoll.job.datasets import Islands, load_islands
from atoll.job.registry import algorithm_named, check_model, trainer_for
from atoll.job.schema import JobSpec, definition_hash
from atoll.runtime.clock import Availability, Clock, Delay, read_intervals, read_seconds
from atoll.runtime.cohort import Cohort
from atoll.runtime.loop import Stop
from atoll.runtime.schedule import Asynchronous, Schedule, Synchronous

__all__ = ["Job", "job_from_spec"]


@dataclass(frozen=True, eq=False)
class Job:
    """A piece of work, ready to run anywhere.

    Args:
        trainer: how one client fits; or a function of the loaded :class:`Islands` that makes one.
        algorithm: what is computed.
        local: local work of a task.
        weighting: the rule for w_i.
        schedule: when the server has enough.
        clock: clients in virtual time.
        stop: when to stop and which model to keep.
        evaluate_every: rounds between evaluations; 0 for never.
        central, federated, compare: which evaluations take place.
        checkpoint_every: rounds between checkpoints; 0 for never.
        name: for people and folders.
        seed: root of the run's random streams.
        islands: loads the job's own data; None when clients are handed to ``simulate``.
        definition: JSON-able canonical form; made from the other fields when empty.
        executor: preferred executor: name, workers and start method.
    """

    trainer: Trainer | Callable[[Islands], Trainer]
    algorithm: Algorithm = field(default_factory=FedAvg)
    local: LocalWork = field(default_factory=LocalWork)
    weighting: Weighting = field(default_factory=Weighting)
    schedule: Schedule = field(default_factory=Synchronous)
    clock: Clock = field(default_factory=Clock)
    stop: Stop = field(default_factory=Stop)
    evaluate_every: int = 1
    central: bool = True
    federated: bool = True
    compare: bool = False
    checkpoint_every: int = 1
    name: str = "job"
    seed: int = 0
    islands: Callable[[int], Islands] | None = None
    definition: Mapping[str, Any] = field(default_factory=dict)
    executor: tuple[str, int, str] = ("serial", 0, "forkserver")

    def describe(self) -> dict[str, Any]:
        """The canonical form: what can change the result's bits."""
        if self.definition:
            return dict(self.definition)
        leave_out = {"islands", "definition", "executor", "checkpoint_every", "trainer"}
        plain = {
            f.name: _plain(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name not in leave_out
        }
        layout = getattr(self.trainer, "layout", None)
        kind = type(self.trainer)
        plain["model"] = {
            "trainer": f"{kind.__module__}.{kind.__qualname__}",
            "layout": layout.digest() if layout is not None else "",
        }
        return plain

    def hash(self) -> str:
        """SHA-256 of the canonical form."""
        return definition_hash(self.describe())

    def faults(self, trainer: Trainer) -> list[Fault]:
        """Conflicts between the parts of this job."""
        found = [
            Fault("algorithm", reason)
            for reason in self.algorithm.faults(self.weighting, self.local)
        ]
        if self.algorithm.needs_correction and not trainer.corrects:
            found.append(
                Fault(
                    "model",
                    f"{type(self.algorithm).__name__} corrects the gradient of local training, "
                    "which this fit function does not do",
                    "let fit apply context.rule and say so, or use fedavg",
                )
            )
        return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return f"{type(value).__module__}.{type(value).__qualname__}"


def job_from_spec(spec: JobSpec, folder: Path) -> Job:
    """Build the objects of a validated job file; its data are read when it runs.

    Args:
        spec: the validated file.
        folder: relative paths are relative to it.

    Raises:
        JobError: with every conflict found.
    """
    faults: list[Fault] = []

    def attempt(place: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except AtollError as error:
            faults.extend(error.faults or [Fault(place, error.message, error.remedy)])
            return None

    local = _local(spec)
    algorithm = attempt("algorithm", lambda: algorithm_named(spec.algorithm))
    clock = attempt("clock", lambda: _clock(spec, folder))
    schedule = _schedule(spec)
    weights = spec.algorithm.weights
    weighting = Weighting(weights) if isinstance(weights, str) else Weighting("given", weights)
    if algorithm is not None:
        faults += [Fault("algorithm", f) for f in algorithm.faults(weighting, local)]
    faults += check_model(spec, folder)
    faults += _conflicts(spec)
    raise_faults(
        JobConflict if _only_conflicts(faults) else JobError, "this job cannot run", faults
    )
    return Job(
        trainer=lambda islands: trainer_for(spec, islands, folder),
        algorithm=algorithm,
        local=local,
        weighting=weighting,
        schedule=schedule,
        clock=clock,
        stop=Stop(
            rounds=spec.rounds.count,
            metric=spec.stop.metric,
            patience=spec.stop.patience,
            min_delta=spec.stop.min_delta,
            target=spec.stop.target,
            seconds=spec.stop.virtual_seconds or math.inf,
            max_aborts=spec.rounds.max_aborts,
        ),
        evaluate_every=spec.evaluation.every,
        central=spec.evaluation.central,
        federated=spec.evaluation.federated,
        compare=spec.evaluation.compare,
        checkpoint_every=spec.checkpoint.every,
        name=spec.name,
        seed=spec.seed,
        islands=lambda seed: load_islands(spec, folder, seed),
        definition=spec.definition(),
        executor=(spec.executor.name, spec.executor.workers, spec.executor.method),
    )


def _only_conflicts(faults: list[Fault]) -> bool:
    return all(f.place.startswith(("rounds", "stop", "evaluation")) for f in faults)


def _conflicts(spec: JobSpec) -> list[Fault]:
    """Choices that are valid alone and exclude each other."""
    found: list[Fault] = []
    rounds, watched = spec.rounds, spec.stop.metric
    if rounds.mode == "async":
        found += [
            Fault(f"rounds.{key}", "has no meaning in an asynchronous run", "remove it")
            for key in ("deadline", "over_selection", "size")
            if getattr(rounds, key)
        ]
        if rounds.cohort != "all":
            found.append(
                Fault("rounds.cohort", "has no meaning in an asynchronous run", "remove it")
            )
    elif rounds.buffer != 1 or rounds.concurrency or rounds.max_staleness is not None:
        found.append(
            Fault("rounds.mode", "buffer, concurrency and max_staleness need mode = 'async'")
        )
    if rounds.cohort in ("uniform", "weighted") and not rounds.size:
        found.append(
            Fault("rounds.size", f"a {rounds.cohort} cohort needs a size", "set rounds.size")
        )
    if rounds.cohort == "weighted" and not rounds.cohort_weights:
        found.append(Fault("rounds.cohort_weights", "a weighted cohort needs weights by client"))
    if (spec.stop.patience or spec.stop.target is not None) and not watched:
        found.append(Fault("stop.metric", "patience and target need a metric to watch"))
    found += [
        Fault("stop.metric", f"{watched} is watched, but evaluation.{kind} is off")
        for kind in ("central", "federated")
        if watched.startswith(kind) and not getattr(spec.evaluation, kind)
    ]
    if watched and not spec.evaluation.every:
        found.append(Fault("evaluation.every", "is 0, so the watched metric is never computed"))
    return found


def _local(spec: JobSpec) -> LocalWork:
    given = spec.local
    return LocalWork(
        epochs=given.epochs,
        steps=given.steps,
        batch_size=given.batch_size,
        optimizer=Optimizer(
            name=given.optimizer,
            lr=given.lr,
            momentum=given.momentum,
            nesterov=given.nesterov,
            weight_decay=given.weight_decay,
            betas=given.betas,
            eps=given.eps,
        ),
        schedule=RateSchedule(**given.schedule.model_dump()),
        clip_norm=given.clip_norm,
        drop_last=given.drop_last,
    )


def _clock(spec: JobSpec, folder: Path) -> Clock:
    given, delay = spec.clock, spec.clock.delay
    if delay.kind == "trace" and not delay.trace:
        raise JobError("", faults=[Fault("clock.delay.trace", "a trace needs a file")])
    spans = given.availability_trace
    return Clock(
        delay=Delay(
            kind=delay.kind,
            scale=delay.scale,
            sigma=delay.sigma,
            per=delay.per,
            per_example=delay.per_example,
            trace=read_seconds(folder / delay.trace) if delay.kind == "trace" else {},
        ),
        availability=Availability(
            given.availability, read_intervals(folder / spans) if spans else None
        ),
        dropout=given.dropout,
        partial=given.partial,
        partial_low=given.partial_low,
    )


def _schedule(spec: JobSpec) -> Schedule:
    given = spec.rounds
    if given.mode == "async":
        return Asynchronous(given.buffer, given.concurrency, given.max_staleness)
    cohort = Cohort(given.cohort, given.size, given.rate, given.cohort_weights)
    return Synchronous(cohort, given.over_selection, given.deadline or math.inf, given.quorum)
