"""``atoll.simulate``: a job, its clients, an executor, and what comes out."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from inspect import getattr_static
from pathlib import Path
from typing import Any

from atoll.core.contracts import Executor, Trainer
from atoll.core.errors import (
    AtollError,
    Fault,
    JobConflict,
    JobError,
    StorageError,
    raise_faults,
    suggest,
)
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.data.population import ids_of, rows_of
from atoll.job.build import Job
from atoll.job.digits import with_digits
from atoll.job.islands import Islands, islands_of, sized
from atoll.job.privacy import with_chain
from atoll.job.record import record_faults, record_trainer
from atoll.job.start import Initial
from atoll.privacy.links.account import RunAccount
from atoll.report.folder import RunFolder
from atoll.runs.result import Run
from atoll.runs.roll import evaluation_faults
from atoll.runs.session import Comparison, Session
from atoll.runs.statement import statement_of
from atoll.runtime.client import Parts
from atoll.runtime.loop import Evaluation, Loop
from atoll.runtime.processes import ProcessExecutor
from atoll.runtime.profile import Stopwatch, timed
from atoll.runtime.schedule import turns_of
from atoll.runtime.serial import SerialExecutor
from atoll.simulation.asked import RoundObserver, chosen, folder_agreed, told_of_rounds
from atoll.simulation.compare import compare, pooled
from atoll.simulation.handed import unfit_rows, unfit_start

__all__ = ["planned_cost", "simulate"]

EXECUTORS = ("serial", "processes", "ray")


def simulate(
    job: Job,
    clients: Mapping[ClientId, Any] | None = None,
    *,
    held_out: Mapping[ClientId, Any] | None = None,
    central: Any = None,
    executor: str | Callable[[Parts], Executor] | None = None,
    workers: int | None = None,
    seed: int | None = None,
    initial: Initial | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observers: Sequence[RoundObserver] = (),
    profile: bool | Stopwatch = False,
) -> Run:
    """Run ``job`` as a simulation, on this machine or on a Ray cluster.

    Args:
        job: from :func:`atoll.load_job`, or built in Python.
        clients: training data by client, listed or made on demand
            (:class:`~atoll.data.population.LazyClients`); None for a job that brings its own.
        held_out: test data by client, for federated evaluation.
        central: test data of the coordinator.
        executor: ``serial``, ``processes``, ``ray``, or a function from the run's parts to an executor;
            None for the job's own choice. It never changes a bit of the result.
        workers: number of processes or actors; None for the job's choice, 0 for one per core.
        seed: replaces the job's seed.
        initial: the model to begin at: a file, a run's folder, or arrays by name; None for the seed's.
        out: folder for the run; None keeps everything in memory.
        resume: continue from the newest checkpoint in ``out``, to the same bits.
        overwrite: replace an earlier run in ``out``.
        observers: called with each round's record.
        profile: tell where the time went (``run.profile``, ``profile.json``); a stopwatch may run already.

    Raises:
        AtollError: with all faults that can be found before training, before anything is written.
    """
    began = datetime.now(UTC)
    job, told = chosen(job, executor, workers, seed, initial), told_of_rounds(observers)
    out = folder_agreed(out, resume, overwrite)
    watch = profile if isinstance(profile, Stopwatch) else Stopwatch() if profile else None
    with timed(watch, "data"):
        islands = _islands(job, clients, held_out, central)
    apart = clients is None and _has_sites(job)
    job = _settled(job, islands, apart)
    with timed(watch, "model"):
        parts = _parts(job, islands, apart=apart)
    with _locked(out):
        folder = None if out is None else _folder(Path(out), resume or overwrite)
        session = Session(job, parts, islands, folder, began, _comparison(job, parts))
        progress = session.resumed() if resume else None
        with (
            _stop_on_signal(folder is not None) as interrupted,
            _executor(job, parts, executor, workers, watch) as where,
        ):
            if folder is not None and overwrite:
                folder.clear()  # not before all that can refuse the run has agreed to it
            loop = Loop(
                parts,
                where,
                schedule=job.schedule,
                clock=job.clock,
                evaluation=Evaluation(
                    job.evaluate_every, islands.central if job.central else None, job.federated
                ),
                stop=job.stop,
                observers=(session.record, *_watchers(job), *told),
                save=session.save,
                interrupted=interrupted,
                watch=watch,
            )
            try:
                finished = loop.run(progress)
            except AtollError as error:
                session.failed(error)
                raise
        with timed(watch, "finish"):
            run = session.finish(finished)
        return run if watch is None else _profiled(run, watch, folder)


def _watchers(job: Job) -> Iterator[RoundObserver]:
    """Who ends a run whose watched metric no evaluation computes: it would be watched for ever."""
    where, _, name = job.stop.metric.partition(".")
    privacy: Mapping[str, Any] = job.definition.get("privacy") or {}
    if not name or privacy.get("counts"):  # a rule may hold figures back
        return
    seen: list[bool] = []

    def look(record: Mapping[str, Any]) -> None:
        found = record.get(where)
        if found and not seen:
            seen.append(True)
            if name not in found:
                message = (
                    f"{job.stop.metric!r} is watched, and evaluations compute {', '.join(found)}"
                )
                raise JobError(message, remedy=suggest(name, found))

    yield look


def planned_cost(job: Job, islands: Islands) -> Mapping[str, Any]:
    """What the job will have cost after all planned rounds, as a run's manifest says it.

    Args:
        job: with data of its own.
        islands: these.

    Returns:
        the manifest's ``privacy``; empty for a job without differential privacy.

    Raises:
        JobConflict: the job cannot run on this federation, or no noise keeps its goal.
        MissingExtra: calibrating needs a library that is not installed.
    """
    if job.privacy.client is None and job.privacy.record is None:
        return {}
    apart = _has_sites(job)
    job = _settled(job, islands, apart)
    parts, rounds = _parts(job, islands, apart=apart), job.stop.rounds
    if isinstance(parts.chain.account, RunAccount):
        rounds = min(rounds, parts.chain.account.most)  # it ends before it would pass its goal
    return statement_of(parts.chain, rounds, rounds)


def _settled(job: Job, islands: Islands, apart: bool) -> Job:
    """The job now that its sites are known: a deployment settles the same of the same job."""
    settled = job.settled(len(islands.train), masks=False) if apart else job.alone
    return settled.asking(islands.agreed)


def _profiled(run: Run, watch: Stopwatch, folder: RunFolder | None) -> Run:
    found = replace(watch.profile(), path=run.manifest["training"])
    if folder is not None:
        folder.write_profile(found.to_plain())
    return replace(run, profile=found)


@contextlib.contextmanager
def _locked(out: str | Path | None) -> Iterator[None]:
    """Keep other processes from running in the same folder; a killed process holds no lock.

    Raises:
        StorageError: another run is writing there.
    """
    if out is None or os.name != "posix":
        yield
        return
    import fcntl  # does not exist elsewhere

    descriptor = os.open(RunFolder(out).path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"another run is writing to {out}",
                remedy="wait for it to end, or name another folder",
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def _folder(path: Path, agreed: bool) -> RunFolder:
    """The run's folder.

    Raises:
        StorageError: it holds an earlier run, and it is not ``agreed`` what becomes of it.
    """
    folder = RunFolder(path)
    if folder.used and not agreed:
        raise StorageError(
            f"{path} holds an earlier run",
            remedy="continue it with --resume (in Python resume=True), replace it with --overwrite "
            "(overwrite=True), or name another folder",
        )
    return folder


def _islands(
    job: Job,
    clients: Mapping[ClientId, Any] | None,
    held_out: Mapping[ClientId, Any] | None,
    central: Any,
) -> Islands:
    if clients is None:
        if job.islands is None:
            raise JobError(
                "this job has no data of its own", remedy="pass clients={id: data} to simulate"
            )
        return job.islands(job.seed)
    return islands_of(clients, held_out or {}, central)


def _trainer(job: Job, islands: Islands) -> Trainer:
    made: Any = job.trainer
    # As it is written down: a layout that cannot be made is to say why, and is no missing method.
    whole = getattr_static(made, "fit", None) is not None
    trainer: Trainer = made if whole else made(sized(islands))
    if getattr_static(trainer, "fit", None) is None:
        remedy = "return one, such as LinearTrainer('logistic', islands.features)"
        raise JobError(
            f"{trainer!r:.60}, which the job's function made, is no trainer", remedy=remedy
        )
    if job.privacy.record is None or job.privacy_faults:
        return trainer
    rows = [rows_of(islands.train, client) for client in ids_of(islands.train)]
    own = turns_of(job.schedule, job.stop.rounds).visits
    return record_trainer(job.privacy, trainer, rows, job.local, own)


def _has_sites(job: Job) -> bool:
    """Whether the job's clients are sites with tables of their own, which a deployment could ask."""
    data: Mapping[str, Any] = job.definition.get("data", {})
    if not data:
        return False
    from atoll.job.datasets import BUILT_IN  # of job files

    return not data["partition"] and data["source"] not in BUILT_IN


def _parts(job: Job, islands: Islands, *, apart: bool) -> Parts:
    """What is fixed for the run; all its faults at once, before anything is written.

    Args:
        job: what runs.
        islands: its data.
        apart: see :class:`~atoll.runtime.client.Parts`.

    Raises:
        JobConflict: the job cannot run on this federation.
    """
    parts = Parts(
        algorithm=job.algorithm,
        trainer=_trainer(job, islands),
        clients=islands.train,
        seed=Seed(job.seed),
        local=job.local,
        weighting=job.weighting,
        held_out=islands.held_out if job.federated or job.compare else {},
        apart=apart,
    )
    if job.starts:
        parts = replace(parts, first=job.first(parts.trainer))
    faults = [*job.faults(parts.trainer, parts.clients, parts.held_out), *job.privacy_faults]
    faults += unfit_rows(parts.trainer, islands)
    if job.stop.metric.startswith("central.") and islands.central is None:
        reason = f"{job.stop.metric!r} is watched, but there is no central test set"
        remedy = "pass central= to simulate, set data.central_test = true, or watch federated"
        faults.append(Fault("stop.metric", reason, remedy))
    if len(parts.clients) and not job.schedule.faults(len(parts.clients)):
        rounds = job.stop.rounds
        if job.study is not None:
            parts, found = with_digits(job.privacy, parts, len(parts.clients))
        else:
            parts, found = with_chain(
                job.privacy, parts, job.schedule, rounds, job.privacy_faults, job.outside
            )
        faults += found
    if job.privacy.record is not None and len(parts.clients):
        faults += record_faults(parts.trainer, parts.clients[next(iter(parts.clients))])
    faults += evaluation_faults(parts.clients, parts.held_out, job.federated, job.compare)
    raise_faults(JobConflict, "this job cannot run on this federation", faults)
    raise_faults(JobError, "the model cannot begin", unfit_start(parts))
    return parts


def _comparison(job: Job, parts: Parts) -> Comparison | None:
    if not job.compare:
        return None
    return lambda rounds, sites: compare(parts, rounds, sites, pooled(parts.clients))


@contextlib.contextmanager
def _executor(
    job: Job,
    parts: Parts,
    executor: str | Callable[[Parts], Executor] | None,
    workers: int | None,
    watch: Stopwatch | None,
) -> Iterator[Executor]:
    with timed(watch, "start"):
        made = _started(job, parts, executor or job.executor[0], workers)
    try:
        yield made
    finally:
        with timed(watch, "stop"):
            made.close()


def _started(
    job: Job, parts: Parts, chosen: str | Callable[[Parts], Executor], workers: int | None
) -> Executor:
    _, count, method = job.executor
    if callable(chosen):
        return chosen(parts)
    for link in ("mask", "encrypt"):
        if parts.chain.find(link) is None:
            continue
        if chosen == "serial":
            return _hiding(link)(parts)
        raise JobConflict(
            f"a simulation that hides updates runs in one process, not with executor {chosen!r}",
            remedy="set executor.name = 'serial', or privacy.aggregation = 'quantised' for the same "
            "bits in the clear",
        )
    if chosen == "serial":
        return SerialExecutor(parts)
    if chosen == "processes":
        like = parts.broadcast(parts.start())
        return ProcessExecutor(
            parts, like, workers=count if workers is None else workers, method=method
        )
    if chosen == "ray":
        from atoll.runtime.ray import RayExecutor  # not for those who have no cluster

        address, gpus = job.cluster
        size = count if workers is None else workers
        return RayExecutor(parts, workers=size, address=address, gpus=gpus)
    raise JobError(f"unknown executor {chosen!r}", remedy=suggest(chosen, EXECUTORS))


def _hiding(link: str) -> Callable[[Parts], Executor]:
    """The executor whose updates nobody sees; its protocol is imported by the runs that speak it."""
    if link == "mask":
        from atoll.runtime.masked import MaskedExecutor

        return MaskedExecutor
    from atoll.runtime.encrypted import EncryptedExecutor

    return EncryptedExecutor


@contextlib.contextmanager
def _stop_on_signal(resumable: bool) -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM end a resumable run after the round in flight, with a checkpoint.

    A run that leaves nothing to resume from is ended as any program is: at once. Under ``asyncio.run`` too,
    whose own handler would cancel a task that cannot hear of it before the run has ended.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    if not resumable:
        with _heard_at_once():
            yield asked.is_set
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt  # asked twice: now
        asked.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _heard_at_once() -> Iterator[None]:
    """SIGINT raises :class:`KeyboardInterrupt` where ``asyncio.run`` has put a handler of its own."""
    asyncio, before = sys.modules.get("asyncio"), signal.getsignal(signal.SIGINT)
    owner = getattr(getattr(before, "func", None), "__self__", None)  # a partial of Runner's method
    if asyncio is None or not isinstance(owner, asyncio.Runner):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
