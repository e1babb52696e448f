"""A job as objects: made in Python, or from a job file by :mod:`atoll.job.from_file`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from inspect import getattr_static
from typing import Any

import numpy as np

from atoll.algorithms import FedAvg
from atoll.core.contracts import Algorithm, Trainer, Weighting
from atoll.core.errors import Fault, JobError, raise_faults
from atoll.core.layout import Array
from atoll.core.local import LocalWork
from atoll.core.ranges import inside, range_faults
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.data.population import LazyClients, ids_of, rows_of
from atoll.job.conflicts import federation_faults, optimizer_faults, watch_faults
from atoll.job.declared import Privacy, declared_faults
from atoll.job.definition import definition_hash
from atoll.job.islands import Islands
from atoll.job.settling import Settled, applied, settle
from atoll.job.start import Initial, Start, agreed
from atoll.job.study import Agreed, Study
from atoll.runtime.clock import Clock
from atoll.runtime.loop import Stop
from atoll.runtime.schedule import Asynchronous, Schedule, Synchronous
from atoll.runtime.starting import METHODS

__all__ = ["Job"]


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
        privacy: what an update passes on its way out.
        stop: when to stop and which model to keep.
        evaluate_every: rounds between evaluations; 0 for never.
        central, federated, compare: which evaluations take place.
        checkpoint_every: rounds between checkpoints; 0 for never.
        name: for people and folders.
        seed: root of the run's random streams.
        islands: loads the job's own data; None when clients are handed to ``simulate``.
        definition: JSON-able canonical form; made from the other fields when empty.
        executor: preferred executor: name, workers and start method.
        cluster: for the executor ``ray``: the cluster's address, and GPUs of each worker.
        aggregation: how its updates are added up and why so, once that is settled.
        study: what is asked of tables, where it is statistics.
        start: the model that it begins at; None for its seed's. See :meth:`begun`.
    """

    trainer: Trainer | Callable[[Islands], Trainer]
    algorithm: Algorithm = field(default_factory=FedAvg)
    local: LocalWork = field(default_factory=LocalWork)
    weighting: Weighting = field(default_factory=Weighting)
    schedule: Schedule = field(default_factory=Synchronous)
    clock: Clock = field(default_factory=Clock)
    privacy: Privacy = field(default_factory=Privacy)
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
    executor: tuple[str, int, str] = ("serial", 0, "auto")
    cluster: tuple[str, float] = ("", 0.0)
    aggregation: str = ""
    study: Study | None = None
    start: Start | None = None

    def __post_init__(self) -> None:
        """Refuse what is of another kind, such as a name where an object belongs, and options out of range.

        Raises:
            JobError: with every such field.
        """
        wrong = range_faults(
            self,
            "",
            evaluate_every="whole [0, inf)",
            central="bool",
            federated="bool",
            compare="bool",
            checkpoint_every="whole [0, inf)",
            name="text",
            seed="whole [0, inf)",
            aggregation="text",
        )
        raise_faults(JobError, "the job", [*_misfits(self), *_unmade(self), *wrong])

    def describe(self) -> dict[str, Any]:
        """The canonical form: what can change the result's bits."""
        if self.definition:
            return dict(self.definition)
        leave_out = {"islands", "definition", "executor", "cluster", "checkpoint_every", "trainer"}
        leave_out |= {"aggregation", "study", "start"}
        if self.privacy == Privacy():
            leave_out.add("privacy")
        plain = {
            f.name: _plain(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name not in leave_out
        }
        layout = getattr(self.trainer, "layout", None)
        plain["model"] = {
            "trainer": _named(self.trainer),
            "layout": layout.digest() if layout is not None else "",
            **_options(self.trainer),
        }
        if self.start is not None:
            plain["model"]["start"] = self.start.hash
        return plain

    def hash(self) -> str:
        """SHA-256 of the canonical form."""
        return definition_hash(self.describe())

    @property
    def starts(self) -> str:
        """Hash of the model that the job begins at; empty for its seed's."""
        named = self.definition.get("model", {}).get("start", "")
        return str(named or ("" if self.start is None else self.start.hash))

    def begun(self, initial: Initial | Start) -> Job:
        """The job as it begins at a given model: another job, with another hash.

        Args:
            initial: a file of named arrays (safetensors or ``.npz``), the folder of a run, or arrays by name.

        Raises:
            JobError: there is no such model, it is not finite, or the job trains none or names another.
        """
        start = initial if isinstance(initial, Start) else Start.given(initial)
        if self.study is not None:
            raise JobError(
                "statistics train no model that could begin anywhere", remedy="leave it out"
            )
        agreed(self.starts or start.hash, start)
        model = {**self.definition.get("model", {}), "start": start.hash}
        definition = {**self.definition, "model": model} if self.definition else {}
        return replace(self, start=start, definition=definition)

    def first(self, trainer: Trainer) -> Array:
        """The whole vector that a run begins at, personal region included, ``(layout.size,)``.

        Raises:
            JobError: the job begins at a model that is not given, or of another layout.
        """
        start = agreed(self.starts, self.start)
        return (
            trainer.initial(Seed(self.seed) / "initial")
            if start is None
            else start.vector(trainer.layout)
        )

    def settled(self, sites: int, *, masks: bool = True) -> Job:
        """The job as it runs between so many institutions: ``auto`` has become what it means there.

        Args:
            sites: how many are invited.
            masks: whether it is deployed; see :func:`atoll.job.settling.applied`.
        """
        found = settle(self.privacy, self.schedule, self.algorithm, sites)
        said, privacy = str(found), applied(self.privacy, found, masks=masks)
        if privacy.aggregation != found.kind:
            said = f"{privacy.aggregation}: as {found.kind} where it is deployed ({found.why})"
        return replace(self, privacy=privacy, aggregation=said)

    @property
    def alone(self) -> Job:
        """The job as it runs over clients that are no institutions: ``auto`` is plain there."""
        privacy, said = self.privacy, f"{self.privacy.aggregation}: the job says so"
        if privacy.aggregation == "auto":
            said = "plain: clients of a simulation, none of them a site"
            privacy = applied(privacy, Settled("plain", said))
        return replace(self, privacy=privacy, aggregation=said)

    def asking(self, agreed: Agreed | None, *, elsewhere: bool = False) -> Job:
        """The job with the algorithm that its statistics come to; any other job as it is.

        Args:
            agreed: what the sites agree on.
            elsewhere: whether the rows are, as at the coordinator of a deployment.

        Raises:
            DataError: with every analysis that does not fit the columns.
        """
        if self.study is None or agreed is None:
            return self
        schedule = self.schedule
        if isinstance(schedule, Synchronous):  # totals of a part of the sites are another statistic
            schedule = replace(schedule, quorum=len(agreed.sites))
        return replace(
            self,
            schedule=schedule,
            algorithm=self.study.algorithm(agreed, elsewhere=elsewhere),
            study=replace(self.study, agreed=agreed),
        )

    @property
    def privacy_faults(self) -> list[Fault]:
        """What contradicts itself in the section on privacy, whatever the federation is."""
        judged = self.federated and self.evaluate_every > 0
        found = declared_faults(self.privacy, self.schedule, self.weighting, judged)
        # In words, what an algorithm asks of rows beside training; the account has the training alone.
        more = getattr(self.algorithm, "beside_training", "")
        if more and self.privacy.record is not None:
            reason = f"takes {more} beside local training, outside the account of [privacy.record]"
            remedy = "use another algorithm, such as fedavg or scaffold with option 2"
            found.append(Fault("algorithm.name", reason, remedy))
        return found

    @property
    def outside(self) -> tuple[str, ...]:
        """What the job releases of its data besides updates, which no epsilon of updates counts."""
        made = self.definition.get("preprocessing", {})
        start = ("what the model that it begins at tells of the same rows",) if self.starts else ()
        if not self.definition.get("data", {}).get("target"):
            return start
        if made.get("mode") == "federated":
            return ("sums of the columns for preprocessing", *start)
        # One row more moves all the others, and so the gradient of each: the clip bounds one of them.
        asks = made.get("impute") in ("mean", "most_frequent"), made.get("scale") != "none"
        if self.privacy.record is not None and (any(asks) or made.get("scale_target")):
            return ("each site's preprocessing, which it fits to all of its rows", *start)
        return start

    def faults(
        self,
        trainer: Trainer,
        clients: Mapping[ClientId, Any] | None = None,
        held_out: Mapping[ClientId, Any] | None = None,
    ) -> list[Fault]:
        """Conflicts between the parts of this job and, where it is given, with its federation.

        Args:
            trainer: the local trainer.
            clients: training rows by client; None leaves the federation out.
            held_out: test rows by client.
        """
        told: Any = self.algorithm.faults(self.weighting, self.local)
        reasons = [told] if isinstance(told, str) and told else told or ()
        found = [Fault("algorithm", str(reason)) for reason in reasons]
        if self.algorithm.needs_correction and not trainer.corrects:
            found.append(
                Fault(
                    "model",
                    f"{type(self.algorithm).__name__} corrects the gradient of local training, "
                    "which this fit function does not do",
                    "let fit apply context.rule and say so, or use fedavg",
                )
            )
        found += optimizer_faults(trainer, self.local.optimizer)
        found += watch_faults(
            self.stop, self.evaluate_every, central=self.central, federated=self.federated
        )
        if clients is not None:
            found += federation_faults(self.schedule, self.weighting, self.clock, clients)
            found += [
                Fault("data", f"client {c!r} has no rows", "leave it out or mend its file")
                for c in (() if isinstance(clients, LazyClients) else ids_of(clients))
                if rows_of(clients, c) == 0
            ]
            watched = self.stop.metric.startswith("federated")
            if watched and not held_out:
                reason = f"{self.stop.metric} needs held-out rows at the clients"
                found.append(Fault("stop.metric", reason, "set data.test_fraction above 0"))
        return found


_PARTS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "local": ((LocalWork,), "atoll.LocalWork(epochs=2)"),
    "weighting": ((Weighting,), "atoll.Weighting('uniform')"),
    "schedule": ((Synchronous, Asynchronous), "atoll.Synchronous(atoll.Cohort('uniform', 10))"),
    "clock": ((Clock,), "atoll.Clock(delay=atoll.Delay('exponential', 1.0))"),
    "privacy": ((Privacy,), "atoll.job.privacy.Privacy(clip=1.0)"),
    "stop": ((Stop,), "atoll.Stop(rounds=20)"),
}
"""Fields of a job made in Python: what belongs there, and an example."""


def _misfits(job: Job) -> Iterator[Fault]:
    for name, (kinds, example) in _PARTS.items():
        if not isinstance(given := getattr(job, name), kinds):
            yield Fault(name, f"{given!r:.60} does not belong there", f"such as {example}")
    made, method = job.algorithm, "atoll.algorithms.FedAvg()"
    if isinstance(made, type) or not callable(getattr(made, "server", None)):
        yield Fault(
            "algorithm", f"{made!r:.60} is no algorithm", f"give an object, such as {method}"
        )
    if isinstance(job.trainer, type) or not (
        callable(job.trainer) or hasattr(job.trainer, "evaluate")
    ):
        remedy = "give an object, such as LinearTrainer('logistic', features=10)"
        yield Fault("trainer", f"{job.trainer!r:.60} is no trainer", remedy)
    else:
        yield from _half_trainers(job.trainer)
        if isinstance(job.local, LocalWork):
            yield from optimizer_faults(job.trainer, job.local.optimizer)


def _unmade(job: Job) -> Iterator[Fault]:
    """Fields that readers of job files fill in, given by hand as something else."""
    given: Any = job
    for name, fits, example in (
        ("executor", _is_executor(given.executor), "('processes', 0, 'auto')"),
        ("cluster", _is_cluster(given.cluster), "('auto', 0.0), an address and GPUs of a worker"),
        ("definition", isinstance(given.definition, Mapping), "{}, or leave it out"),
        ("islands", given.islands is None or callable(given.islands), "a function of the seed"),
        ("study", isinstance(given.study, Study | None), "None: statistics come from job files"),
        ("start", isinstance(given.start, Start | None), "job.begun('runs/first'), afterwards"),
    ):
        if not fits:
            wrong = f"{getattr(given, name)!r:.60} does not belong there"
            yield Fault(name, wrong, f"such as {example}")


def _is_executor(given: Any) -> bool:
    """Name, workers and start method; whether there is one of that name is asked where it is started."""
    if not isinstance(given, tuple | list) or len(given) != 3:
        return False
    name, workers, method = given
    return isinstance(name, str) and inside(workers, "whole [0, inf)") and method in METHODS


def _is_cluster(given: Any) -> bool:
    two = isinstance(given, tuple | list) and len(given) == 2
    return two and isinstance(given[0], str) and inside(given[1], "[0, inf)")


def _half_trainers(given: Any) -> Iterator[Fault]:
    """A module of torch, and an object that has some of a trainer's methods; either may be callable."""
    if hasattr(given, "state_dict") and hasattr(given, "forward"):
        told = f"a {type(given).__name__} is a module, and no trainer"
        yield Fault("trainer", told, "give atoll.models.torch.TorchTrainer(module, classes=2)")
        return
    wanted = ("layout", "corrects", "initial", "fit", "gradient", "evaluate")
    # As it is written down first: a layout that cannot be made says why when it is asked for.
    lacking = [
        name
        for name in wanted
        if getattr_static(given, name, None) is None and getattr(given, name, None) is None
    ]
    if lacking and (len(lacking) < len(wanted) or not callable(given)):
        told = f"a {type(given).__name__} is no trainer: it lacks {', '.join(lacking)}"
        yield Fault("trainer", told, "see atoll.core.contracts.Trainer for what each of them does")


def _options(trainer: Any) -> dict[str, Any]:
    """What a trainer was made with, where nothing that happens later can change it."""
    said, record = getattr(trainer, "options", None), getattr(trainer, "__dataclass_params__", None)
    if record is not None and record.frozen:
        said = {f.name: getattr(trainer, f.name) for f in dataclasses.fields(trainer) if f.init}
    return {"options": _plain(said)} if isinstance(said, Mapping) else {}


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
    if isinstance(value, np.generic):
        return _plain(value.item())
    return _named(value)


def _named(value: Any) -> str:
    """A function or class by its name, which stays when a script becomes a module; else what it is one of."""
    kind = type(value)
    return getattr(value, "__qualname__", "") or f"{kind.__module__}.{kind.__qualname__}"
