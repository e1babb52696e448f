"""The folder of a run while it happens: records, checkpoints, and what is written at its end.

The same for a run on this machine and for one that a server drives: what only one of them knows (a
comparison with pooled rows, which sites of which versions took part) it hands over.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import AtollError, CheckpointError, StorageError
from atoll.core.values import ClientId
from atoll.data.population import MOST_LISTED
from atoll.job.build import Job
from atoll.job.islands import Islands
from atoll.report.folder import RunFolder, plain
from atoll.report.html import write_report
from atoll.runs.findings import write_findings
from atoll.runs.longer import why_not_longer
from atoll.runs.result import Run, write_results
from atoll.runs.roll import clients_roll, data_prints, population_entry, told_rows
from atoll.runs.statement import statement_of
from atoll.runs.status import participation_status
from atoll.runtime import checkpoint
from atoll.runtime.checkpoint import Progress, model_hash
from atoll.runtime.client import Parts
from atoll.runtime.groups import way
from atoll.runtime.loop import Finished

__all__ = ["Comparison", "Session"]

Comparison = Callable[[int, Mapping[ClientId, Mapping[str, float]]], Mapping[str, Any]]
"""From rounds run and the federated metrics by site to the manifest's ``comparison``."""


@dataclass(eq=False)
class Session:
    """Writes a run's folder while it happens; without a folder it only remembers the rounds.

    Args:
        job: what runs.
        parts: the run's parts. Clients need no more than a number of rows, and the trainer no more
            than a layout and initial parameters.
        islands: cards and notes of the data.
        folder: where to write; None for memory only.
        began: when the run began.
        comparison: asked at the end of a run that evaluated its sites; None for no comparison.
        facts: entries of the manifest that another knows better, such as ``executor``, ``training``
            and ``versions``.
    """

    job: Job
    parts: Parts
    islands: Islands
    folder: RunFolder | None
    began: datetime
    comparison: Comparison | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    remembered: list[Mapping[str, Any]] = field(default_factory=list)
    saved: int = -1
    tick: float = field(default_factory=time.perf_counter)

    @property
    def rounds(self) -> Sequence[Mapping[str, Any]]:
        """All records so far: from the folder, so that a long run does not fill memory."""
        return self.remembered if self.folder is None else self.folder.read_rounds()

    @cached_property
    def notes(self) -> dict[str, Any]:
        """What a checkpoint must agree with: the data and the model's layout."""
        prints = data_prints(self.islands.cards, self.parts.clients)
        return {"data": prints, "layout": self.parts.trainer.layout.digest()}

    def resumed(self) -> Progress | None:
        """The progress of the newest checkpoint; None when the run died before its first."""
        if self.folder is None:
            raise CheckpointError("there is nothing to resume without a folder", remedy="give out=")
        path = checkpoint.newest(self.folder.checkpoint)
        if path is None:
            self.folder.truncate(0)
            return None
        before: Mapping[str, Any] = {}
        try:
            progress, notes = checkpoint.read(path, self.job.hash())
        except CheckpointError as error:
            before = self.folder.read_manifest()
            progress, notes = self._of_fewer_rounds(path, before, error)
        self._agree(notes, str(path))
        self.folder.truncate(progress.rounds)
        self.saved = progress.rounds
        if before:
            self._taken_over(progress, before)
        return progress

    def _of_fewer_rounds(
        self, path: Path, before: Mapping[str, Any], refused: CheckpointError
    ) -> tuple[Progress, dict[str, Any]]:
        """The checkpoint of a run of the same job with fewer rounds.

        Args:
            path: the checkpoint.
            before: manifest of the run that left it; empty where none was written yet.
            refused: why it is none of this very job.

        Raises:
            CheckpointError: it is of neither; says what is different where that is known.
        """
        earlier = str(before.get("job_hash", ""))
        if earlier in ("", self.job.hash()):
            raise refused
        progress, notes = checkpoint.read(path, earlier)
        private = self.parts.chain.account is not None
        why = why_not_longer(before["job"], self.job, private=private, done=progress.rounds)
        if why:
            raise CheckpointError(
                f"{path} belongs to another job: {why}",
                remedy="resume with the unchanged job, or with more rounds and nothing else changed; "
                "or start anew in another folder",
            )
        return progress, notes

    def _taken_over(self, progress: Progress, before: Mapping[str, Any]) -> None:
        """From now on the folder is of this job, wherever it may be killed."""
        if self.folder is None:
            return
        checkpoint.write(self.folder.checkpoint, progress, self.job.hash(), self.notes)
        mine = {"job": self.job.describe(), "job_hash": self.job.hash(), "status": "interrupted"}
        self.folder.write_manifest({**before, **mine})

    def continued(
        self, progress: Progress, notes: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
    ) -> None:
        """Go on from a checkpoint that is kept elsewhere than in the folder.

        Args:
            progress: what it holds.
            notes: the :attr:`notes` it was made with.
            records: those of all rounds so far; they take the place of the folder's.

        Raises:
            CheckpointError: it is of another data set or model.
        """
        self._agree(notes, f"the checkpoint of round {progress.rounds}")
        if self.folder is not None:
            self.folder.truncate(0)
        self.remembered.clear()
        for record in records:
            self.record(record)

    def _agree(self, notes: Mapping[str, Any], what: str) -> None:
        for name, mine in self.notes.items():
            if notes[name] != mine:
                raise CheckpointError(
                    f"{what} was made with another {'model' if name == 'layout' else 'data set'}",
                    remedy="resume with the unchanged files, or start anew in another folder",
                )

    def record(self, record: Mapping[str, Any]) -> None:
        """One round's record."""
        if self.folder is not None:
            self.folder.append(record)
        else:
            self.remembered.append(plain(record))

    def save(self, progress: Progress) -> None:
        """A checkpoint when it is due."""
        every = self.job.checkpoint_every
        if self.folder is not None and every and progress.rounds % every == 0:
            if self.saved < 0:
                self.folder.write_manifest(self._manifest_if_killed())
            self._write(progress)

    def _write(self, progress: Progress) -> None:
        if self.folder is not None and self.saved != progress.rounds:
            self.folder.sync()
            checkpoint.write(self.folder.checkpoint, progress, self.job.hash(), self.notes)
            self.saved = progress.rounds

    def failed(self, error: AtollError) -> None:
        """Leave an honest manifest behind a run that could not end."""
        if self.folder is not None:
            with contextlib.suppress(StorageError):  # a full disk must not hide the first error
                self.folder.write_manifest(self._manifest_of_failure(error))
                write_report(self.folder)

    def left(self, status: str, progress: Progress | None) -> None:
        """Leave an honest folder behind a run that a server has ended before its time.

        Args:
            status: how it ended.
            progress: what its last committed round has left; None where there was none. The model is that of
                this round, and the round that was under way counts as paid for.

        Raises:
            StorageError: the disk refused it.
        """
        if self.folder is None:
            return
        rounds = self.rounds
        if progress is None or not progress.state.round or self.job.study is not None:
            self.folder.write_manifest(self.manifest(status, None, None, rounds))
        else:
            at = "" if status.startswith("failed") else f" after round {progress.rounds}"
            manifest = self.manifest(f"{status}{at}", progress, None, rounds)
            manifest["privacy"] = self._privacy(None, rounds)
            self._write(progress)
            write_results(self.folder, self._made(progress, manifest, rounds))
        write_report(self.folder)

    def finish(self, finished: Finished) -> Run:
        """The last checkpoint, the comparison, the manifest, the model and the report."""
        progress = finished.progress
        self._write(progress)
        comparison, rounds = None, self.rounds
        if self.comparison is not None and finished.status != "interrupted":
            sites = next((r["sites"] for r in reversed(rounds) if r["sites"]), None)
            if sites is not None:
                comparison = self.comparison(progress.rounds, sites)
        status = participation_status(finished.status, rounds)
        manifest = self.manifest(status, progress, comparison, rounds)
        run = self._made(progress, manifest, rounds)
        if self.folder is not None:
            write_results(self.folder, run)
            write_findings(self.folder, self.job, progress.state, run.manifest)
            write_report(self.folder)  # statistics that have ended have their page by now
        return run

    def _made(
        self,
        progress: Progress,
        manifest: Mapping[str, Any],
        rounds: Sequence[Mapping[str, Any]],
    ) -> Run:
        return Run(
            job=self.job,
            trainer=self.parts.trainer,
            progress=progress,
            rounds=rounds,
            manifest=manifest,
            folder=None if self.folder is None else self.folder.path,
            inputs=self.islands.inputs,
        )

    def _manifest_of_failure(self, error: AtollError) -> dict[str, Any]:
        return self.manifest(f"failed: {error.message}", None, None, self.rounds)

    def _manifest_if_killed(self) -> dict[str, Any]:
        """What was asked, beside the first checkpoint. Of privacy, what all planned rounds may come to."""
        manifest = self.manifest("interrupted", None, None, self.rounds)
        planned = self.job.stop.rounds
        return {**manifest, "privacy": statement_of(self.parts.chain, planned, planned)}

    def _privacy(
        self, progress: Progress | None, rounds: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """What was spent; where a run could not end, the round that it was in counts as tried."""
        if progress is not None:
            return statement_of(self.parts.chain, progress.state.round, progress.rounds)
        committed = sum(bool(record["committed"]) for record in rounds)
        tried = min(len(rounds) + 1, self.job.stop.rounds)
        return statement_of(self.parts.chain, committed, tried)

    def manifest(
        self,
        status: str,
        progress: Progress | None,
        comparison: Mapping[str, Any] | None,
        rounds: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """What ran on what, and how it ended."""
        best = progress.best if progress else None
        prints = self.notes["data"]
        return {
            "name": self.job.name,
            "atoll": str(sys.modules["atoll"].__version__),  # this room must not import the surface
            "job": self.job.describe(),
            "job_hash": self.job.hash(),
            "seed": self.job.seed,
            "started": self.began.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": progress.seconds if progress else time.perf_counter() - self.tick,
            "status": status,
            "rounds": progress.rounds if progress else len(rounds),
            "data": clients_roll(self.parts.clients, prints, rounds),
            "population": population_entry(self.parts.clients, prints, rounds),
            "cards": list(self.islands.cards),
            "versions": _versions(),
            "executor": self.job.executor[0],
            "training": way(self.parts) if progress else "",
            "model_hash": model_hash(progress.state.parameters) if progress else "",
            "parameters": self.parts.trainer.layout.size,
            "best": None
            if best is None
            else {"round": best.round, "metric": self.job.stop.metric, "value": best.value},
            "comparison": comparison,
            "aggregation": self.job.aggregation,
            "privacy": self._privacy(progress, rounds),
            "notes": [*_begun(self.job), *self.islands.notes, *_unjudged(self.parts)],
            **self._start(),
            **self.facts,
        }

    def _start(self) -> dict[str, Any]:
        """Where a run began, unless at its seed's model: hashes of all of it, and of what is shared."""
        if not self.job.starts:
            return {}
        first = self.parts.beginning()[self.parts.trainer.layout.shared]
        return {"start": {"sha256": self.job.starts, "model_hash": model_hash(first)}}


def _begun(job: Job) -> list[str]:
    return (
        [f"begins at a given model (sha256 {job.starts}), not at one of its seed"]
        if job.starts
        else []
    )


def _versions() -> dict[str, str]:
    """Versions of what computes: torch among them where the run's trainer has loaded it."""
    found = {"python": platform.python_version(), "numpy": np.__version__}
    torch = sys.modules.get("torch")
    return found if torch is None else {**found, "torch": str(torch.__version__)}


def _unjudged(parts: Parts) -> list[str]:
    """The sites that no evaluation speaks of, where others are evaluated on rows of their own."""
    if not parts.held_out:
        return []
    judged, everybody = len(parts.held_out), len(parts.clients)
    if everybody > MOST_LISTED:
        few = f"rows to test on at {judged:,} of {everybody:,} clients only"
        return [few] if judged < everybody else []
    bare = [c for c in parts.clients if c not in parts.held_out]
    counts = {c: told_rows(parts.clients, c) for c in bare[:5]}
    shown = {c: "" if n is None else f" ({n} row{'s' if n > 1 else ''})" for c, n in counts.items()}
    named = ", ".join(f"{c}{rows}" for c, rows in shown.items())
    more = f" and {len(bare) - 5} more" if len(bare) > 5 else ""
    return [f"trained on, but without rows to test on: {named}{more}"] if bare else []
