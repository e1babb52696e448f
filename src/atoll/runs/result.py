"""What a run leaves behind: its model, metrics, manifest and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.contracts import Trainer
from atoll.core.errors import MissingExtra, NotFound, suggest
from atoll.core.layout import Array
from atoll.core.values import ClientId
from atoll.data.inputs import Inputs
from atoll.job.build import Job
from atoll.job.inquiries.inquiry import Finding, Findings
from atoll.report.folder import RunFolder, write_model
from atoll.report.html import write_report
from atoll.runs.findings import findings_of, write_findings
from atoll.runs.statement import ledger_of
from atoll.runtime.checkpoint import Progress, model_hash
from atoll.runtime.profile import Profile

__all__ = ["Run", "write_results"]


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
        profile: where the time went; None unless it was asked for.
        inputs: what the model has to be given, and what its outputs mean; None for a job that was not
            trained on tables, or whose sites preprocess each for itself.
    """

    job: Job
    trainer: Trainer
    progress: Progress
    rounds: Sequence[Mapping[str, Any]]
    manifest: Mapping[str, Any]
    folder: Path | None = None
    profile: Profile | None = None
    inputs: Inputs | None = None

    def __repr__(self) -> str:
        """A line for notebooks; the records would fill the page."""
        at = "" if self.folder is None else f", in {self.folder}"
        return f"<Run {self.job.name!r}: {self.status}, {len(self.rounds)} rounds, {self.model_hash[:12]}{at}>"

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
        return self.named(self.vector)

    @property
    def best_parameters(self) -> dict[str, Array]:
        """The best model by the watched metric; the final one when none was watched."""
        best = self.progress.best
        return self.named(best.parameters if best else self.vector)

    @property
    def findings(self) -> Findings[Finding]:
        """What a job of statistics found, by analysis; see :class:`~atoll.job.inquiries.inquiry.Finding`.

        Analyses that may not be shown are in ``findings.refused``, each with its error; asking for one of them
        by name raises it.

        Raises:
            StateError: the job is none of statistics, or the run has not finished.
        """
        return findings_of(self.job, self.progress.state)

    @property
    def model(self) -> Any:
        """The final model in its own framework; named arrays where there is none."""
        return self._made(self.vector)

    @property
    def best_model(self) -> Any:
        """The best model by the watched metric, as :attr:`model` gives the final one."""
        best = self.progress.best
        return self._made(best.parameters if best else self.vector)

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """The privacy account after each committed round: epsilon, delta, unit, events; else empty."""
        return ledger_of(self.rounds)

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

        Another run in ``folder`` is replaced, with all that it left; this run's own folder keeps the rest.
        """
        target = RunFolder(Path(folder))
        if self.folder is None or not target.path.samefile(self.folder):
            target.clear()
        target.truncate(0)
        for record in self.rounds:
            target.append(record)
        write_results(target, self)
        if self.profile is not None:
            target.write_profile(self.profile.to_plain())
        if self.job.study is not None:
            write_findings(target, self.job, self.progress.state, self.manifest)
        return write_report(target)

    def parameters_of(self, client: ClientId) -> dict[str, Array]:
        """The final model as one client has it: the shared entries, and its own personal ones.

        A client that never took part has the initial ones.

        Raises:
            NotFound: the run knows no such client.
        """
        memories, known = self.progress.memories, self.manifest["data"]
        if client not in memories and client not in known:
            raise NotFound(f"no client {client!r} in this run", remedy=suggest(client, known))
        own = memories.get(client, {}).get("personal")
        if own is None:
            return self.parameters
        return self.trainer.layout.unpack(np.concatenate([self.vector, own]))

    def named(self, shared: Array, *, copy: bool = True) -> dict[str, Array]:
        """Shared parameters as named arrays, as in :attr:`parameters`; see :meth:`Layout.unpack`."""
        return self.trainer.layout.unpack(self._whole(shared), copy=copy)

    def _made(self, shared: Array) -> Any:
        make = getattr(self.trainer, "module_with", None)
        return make(self._whole(shared)) if make else self.named(shared)

    def _whole(self, shared: Array) -> Array:
        layout = self.trainer.layout
        if layout.shared.stop == layout.size:
            return shared
        return np.concatenate([shared, self.job.first(self.trainer)[layout.personal]])


def write_results(folder: RunFolder, run: Run) -> None:
    """Write the model, the best model when one was watched, what they have to be given, and the manifest."""
    meta = {"job": str(run.manifest["job_hash"]), "layout": run.trainer.layout.to_json()}
    if run.job.study is None:  # which trains nothing
        write_model(folder.model, run.named(run.vector, copy=False), meta)
    if (best := run.progress.best) is not None:
        write_model(folder.path / "best.safetensors", run.named(best.parameters, copy=False), meta)
    if run.inputs is not None:
        folder.write_inputs(run.inputs.to_json())
    folder.write_manifest(run.manifest)
