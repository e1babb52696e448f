"""``atoll.simulate``: a job, its clients, an executor, and what comes out."""

from __future__ import annotations

import contextlib
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import atoll
from atoll.core.contracts import Executor, Trainer
from atoll.core.errors import (
    AtollError,
    CheckpointError,
    JobConflict,
    JobError,
    MissingExtra,
    StorageError,
    raise_faults,
    suggest,
)
from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.job.build import Job
from atoll.job.datasets import Islands, islands_of
from atoll.report.folder import RunFolder, write_model
from atoll.report.html import write_report
from atoll.runtime import checkpoint
from atoll.runtime.checkpoint import Progress, model_hash
from atoll.runtime.client import Parts
from atoll.runtime.loop import Evaluation, Finished, Loop
from atoll.runtime.processes import ProcessExecutor
from atoll.runtime.serial import SerialExecutor
from atoll.simulation.compare import compare, pooled
from atoll.simulation.status import participation_status

__all__ = ["Run", "simulate"]

EXECUTORS = ("serial", "processes")

RoundObserver = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Run:
    """One execution of a job.

    Args:
        job: what ran.
        trainer: the trainer it ran with.
        progress: the final record.
        rounds: one record per round (see the reference of ``metrics.jsonl``).
        manifest: what ran on what, and how it ended.
        folder: where it was written; None when it was not.
    """

    job: Job
    trainer: Trainer
    progress: Progress
    rounds: Sequence[Mapping[str, Any]]
    manifest: Mapping[str, Any]
    folder: Path | None = None

    @property
    def status(self) -> str:
        """How it ended, with the sites that were lost."""
        return str(self.manifest["status"])

    @property
    def vector(self) -> Array:
        """The final shared parameters as one flat vector, ``(d,)``."""
        return self.progress.state.parameters

    @property
    def model_hash(self) -> str:
        """SHA-256 of the final shared parameters."""
        return model_hash(self.vector)

    @property
    def parameters(self) -> dict[str, Array]:
        """The final model as named arrays; personal entries hold their initial values."""
        return self.trainer.layout.unpack(self._whole(self.vector))

    @property
    def best_parameters(self) -> dict[str, Array]:
        """The best model by the watched metric; the final one when none was watched."""
        best = self.progress.best
        return self.trainer.layout.unpack(self._whole(best.parameters if best else self.vector))

    @property
    def model(self) -> Any:
        """The final model in its own framework; named arrays where there is none."""
        make = getattr(self.trainer, "module_with", None)
        return make(self._whole(self.vector)) if make else self.parameters

    @property
    def metrics(self) -> Any:
        """A pandas DataFrame, one row per round, columns such as ``central.accuracy``.

        Raises:
            MissingExtra: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingExtra(
                "run.metrics is a pandas table", remedy="pip install 'atoll[tables]'"
            ) from error
        rows = []
        for record in self.rounds:
            row: dict[str, Any] = {k: record[k] for k in ("round", "clock", "seconds", "committed")}
            row["contributed"] = len(record["contributed"])
            for kind in ("train", "central", "federated"):
                row |= {f"{kind}.{n}": v for n, v in (record[kind] or {}).items()}
            rows.append(row)
        return pd.DataFrame(rows).set_index("round") if rows else pd.DataFrame()

    def report(self, folder: str | Path) -> Path:
        """Write the run's folder and its offline HTML report; returns the report's path.

        Records and results of an earlier run in ``folder`` are replaced.
        """
        target = RunFolder(Path(folder))
        target.truncate(0)
        for record in self.rounds:
            target.append(record)
        _write_results(target, self)
        return write_report(target)

    def _whole(self, shared: Array) -> Array:
        layout = self.trainer.layout
        if layout.shared.stop == layout.size:
            return shared
        start = self.trainer.initial(Seed(self.job.seed) / "initial")
        return np.concatenate([shared, start[layout.personal]])


def simulate(
    job: Job,
    clients: Mapping[ClientId, Any] | None = None,
    *,
    held_out: Mapping[ClientId, Any] | None = None,
    central: Any = None,
    executor: str | Callable[[Parts], Executor] | None = None,
    workers: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    observers: Sequence[RoundObserver] = (),
) -> Run:
    """Run ``job`` on this machine.

    Args:
        job: from :func:`atoll.load_job`, or built in Python.
        clients: training data by client; None for a job that brings its own.
        held_out: test data by client, for federated evaluation.
        central: test data of the coordinator.
        executor: ``serial``, ``processes``, or a function from the run's parts to an executor;
            None for the job's own choice. It never changes a bit of the result.
        workers: number of processes; None for the job's choice, 0 for one per core.
        seed: replaces the job's seed.
        out: folder for the run; None keeps everything in memory.
        resume: continue from the newest checkpoint in ``out``, to the same bits.
        overwrite: replace an earlier run in ``out``.
        observers: called with each round's record.

    Raises:
        AtollError: see :mod:`atoll.core.errors`; all faults that can be found before training are
            reported together, before anything is written.
    """
    began = datetime.now(UTC)
    if seed is not None:
        changed = {**job.definition, "seed": seed} if job.definition else {}
        job = replace(job, seed=seed, definition=changed)
    if isinstance(executor, str):
        job = replace(job, executor=(executor, *job.executor[1:]))
    islands = _islands(job, clients, held_out, central)
    trainer = _trainer(job, islands)
    parts = Parts(
        algorithm=job.algorithm,
        trainer=trainer,
        clients=islands.train,
        seed=Seed(job.seed),
        local=job.local,
        weighting=job.weighting,
        held_out=islands.held_out if job.federated or job.compare else {},
    )
    _check(job, parts)
    folder = None if out is None else _folder(Path(out), resume, overwrite)
    session = _Session(job, parts, islands, folder, began)
    progress = session.resumed() if resume else None
    with _stop_on_signal() as interrupted, _executor(job, parts, executor, workers) as where:
        loop = Loop(
            parts,
            where,
            schedule=job.schedule,
            clock=job.clock,
            evaluation=Evaluation(
                job.evaluate_every, islands.central if job.central else None, job.federated
            ),
            stop=job.stop,
            observers=(session.record, *observers),
            save=session.save,
            interrupted=interrupted,
        )
        try:
            finished = loop.run(progress)
        except AtollError as error:
            session.failed(error)
            raise
    return session.finish(finished)


def _folder(path: Path, resume: bool, overwrite: bool) -> RunFolder:
    """The run's folder; an earlier run in it is continued, replaced, or left alone.

    Raises:
        StorageError: it holds an earlier run, and neither was asked for.
    """
    folder = RunFolder(path)
    if folder.used and not resume:
        if not overwrite:
            raise StorageError(
                f"{path} holds an earlier run",
                remedy="continue it with --resume, replace it with --overwrite, or name another folder",
            )
        for old in (folder.checkpoint, path / "tensorboard"):
            shutil.rmtree(old, ignore_errors=True)
        for file in (folder.manifest, folder.metrics, folder.report, *path.glob("*.safetensors")):
            file.unlink(missing_ok=True)
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
    if isinstance(job.trainer, Trainer):
        return job.trainer
    return job.trainer(islands)


def _check(job: Job, parts: Parts) -> None:
    """All faults between the job and its federation, at once, before anything is written."""
    faults = job.faults(parts.trainer, parts.clients, parts.held_out)
    raise_faults(JobConflict, "this job cannot run on this federation", faults)


@contextlib.contextmanager
def _executor(
    job: Job,
    parts: Parts,
    executor: str | Callable[[Parts], Executor] | None,
    workers: int | None,
) -> Iterator[Executor]:
    name, count, method = job.executor
    chosen = executor or name
    if callable(chosen):
        made = chosen(parts)
    elif chosen == "serial":
        made = SerialExecutor(parts)
    elif chosen == "processes":
        like = parts.algorithm.broadcast(Loop(parts, SerialExecutor(parts)).start().state)
        made = ProcessExecutor(
            parts, like, workers=count if workers is None else workers, method=method
        )
    else:
        raise JobError(f"unknown executor {chosen!r}", remedy=suggest(chosen, EXECUTORS))
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM end the run after the round in flight, with a checkpoint."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
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


@dataclass(eq=False)
class _Session:
    """Writes a run's folder while it happens; without a folder it only remembers the rounds."""

    job: Job
    parts: Parts
    islands: Islands
    folder: RunFolder | None
    began: datetime
    rounds: list[Mapping[str, Any]] = field(default_factory=list)
    saved: int = -1
    tick: float = field(default_factory=time.perf_counter)

    def _notes(self) -> dict[str, Any]:
        prints = {c["site"]: c["fingerprint"] for c in self.islands.cards if c.get("fingerprint")}
        return {"data": prints, "layout": self.parts.trainer.layout.digest()}

    def resumed(self) -> Progress | None:
        """The progress of the newest checkpoint; None when the run died before its first."""
        if self.folder is None:
            raise CheckpointError("there is nothing to resume without a folder", remedy="give out=")
        path = checkpoint.newest(self.folder.checkpoint)
        if path is None:
            self.folder.truncate(0)
            return None
        progress, notes = checkpoint.read(path, self.job.hash())
        for what, mine in self._notes().items():
            if notes[what] != mine:
                raise CheckpointError(
                    f"{path} was made with another {'model' if what == 'layout' else 'data set'}",
                    remedy="resume with the unchanged files, or start anew in another folder",
                )
        self.folder.truncate(progress.rounds)
        self.rounds = list(self.folder.read_rounds())
        self.saved = progress.rounds
        return progress

    def record(self, record: Mapping[str, Any]) -> None:
        """One round's record."""
        self.rounds.append(record)
        if self.folder is not None:
            self.folder.append(record)

    def save(self, progress: Progress) -> None:
        """A checkpoint when it is due."""
        every = self.job.checkpoint_every
        if self.folder is not None and every and progress.rounds % every == 0:
            self._write(progress)

    def _write(self, progress: Progress) -> None:
        if self.folder is not None and self.saved != progress.rounds:
            self.folder.sync()
            checkpoint.write(self.folder.checkpoint, progress, self.job.hash(), self._notes())
            self.saved = progress.rounds

    def failed(self, error: AtollError) -> None:
        """Leave an honest manifest behind a run that could not end."""
        if self.folder is not None:
            with contextlib.suppress(StorageError):  # a full disk must not hide the first error
                self.folder.write_manifest(self.manifest(f"failed: {error.message}", None, None))

    def finish(self, finished: Finished) -> Run:
        """The last checkpoint, the comparison, the manifest, the model and the report."""
        progress = finished.progress
        self._write(progress)
        comparison = None
        if self.job.compare and self.parts.held_out and finished.status != "interrupted":
            sites = next((r["sites"] for r in reversed(self.rounds) if r["sites"]), None)
            if sites is not None:
                together = pooled(self.parts.clients)
                comparison = compare(self.parts, progress.rounds, sites, together)
        status = participation_status(finished.status, self.rounds)
        run = Run(
            job=self.job,
            trainer=self.parts.trainer,
            progress=progress,
            rounds=self.rounds,
            manifest=self.manifest(status, progress, comparison),
            folder=None if self.folder is None else self.folder.path,
        )
        if self.folder is not None:
            _write_results(self.folder, run)
            write_report(self.folder)
        return run

    def manifest(
        self, status: str, progress: Progress | None, comparison: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """What ran on what, and how it ended."""
        best = progress.best if progress else None
        prints = self._notes()["data"]
        return {
            "name": self.job.name,
            "atoll": atoll.__version__,
            "job": self.job.describe(),
            "job_hash": self.job.hash(),
            "seed": self.job.seed,
            "started": self.began.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": progress.seconds if progress else time.perf_counter() - self.tick,
            "status": status,
            "rounds": progress.rounds if progress else len(self.rounds),
            "data": {
                c: {"rows": len(d), "fingerprint": prints.get(c, "")}
                for c, d in self.parts.clients.items()
            },
            "cards": list(self.islands.cards),
            "versions": _versions(),
            "executor": self.job.executor[0],
            "model_hash": model_hash(progress.state.parameters) if progress else "",
            "parameters": self.parts.trainer.layout.size,
            "best": None
            if best is None
            else {"round": best.round, "metric": self.job.stop.metric, "value": best.value},
            "comparison": comparison,
            "notes": [*self.islands.notes, *_unjudged(self.parts)],
        }


def _versions() -> dict[str, str]:
    """Versions of what computes: torch among them where the run's trainer has loaded it."""
    found = {"python": platform.python_version(), "numpy": np.__version__}
    torch = sys.modules.get("torch")
    return found if torch is None else {**found, "torch": str(torch.__version__)}


def _unjudged(parts: Parts) -> list[str]:
    """The sites that no evaluation speaks of, where others are evaluated on rows of their own."""
    bare = [c for c in parts.clients if c not in parts.held_out] if parts.held_out else []
    counts = {c: len(parts.clients[c]) for c in bare[:5]}
    named = ", ".join(f"{c} ({n} row{'s' if n > 1 else ''})" for c, n in counts.items())
    more = f" and {len(bare) - 5} more" if len(bare) > 5 else ""
    return [f"trained on, but without rows to test on: {named}{more}"] if bare else []


def _write_results(folder: RunFolder, run: Run) -> None:
    meta = {"job": str(run.manifest["job_hash"]), "layout": run.trainer.layout.to_json()}
    write_model(folder.model, run.parameters, meta)
    if run.progress.best is not None:
        write_model(folder.path / "best.safetensors", run.best_parameters, meta)
    folder.write_manifest(run.manifest)
