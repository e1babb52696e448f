"""How much a job's model tells about single rows: the job run again on random halves of its candidates.

Every candidate row is in or out of each run by a fair coin, all else stays as the job says. From those
runs come the membership risk (with each run in turn attacked, the others as shadows) and the lower bound
on epsilon that one of them proves. Whoever runs this holds all rows: it is made for simulations, before a
job goes to institutions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Array
from atoll.core.metrics import values
from atoll.core.seeds import Seed
from atoll.core.values import ClientId
from atoll.job.build import Job
from atoll.job.islands import Islands
from atoll.privacy.audit.membership import confidence, lira, lira_risk, loss_risk
from atoll.privacy.audit.one_run import audit as one_run
from atoll.runs.result import Run
from atoll.simulation.run import simulate

__all__ = ["Reported", "audit_job"]

_KEPT = 0.8
"""Largest part of a client's rows that are candidates: each client keeps some rows in every run."""


@dataclass(frozen=True)
class Reported:
    """What the job says about the protection of one row.

    Args:
        epsilon: None where no record-level differential privacy was promised.
        delta: of that statement; 0 without one.
    """

    epsilon: float | None = None
    delta: float = 0.0


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Rows that are in or out by a coin: by client, their positions."""

    rows: Mapping[ClientId, Array]

    @property
    def count(self) -> int:
        return sum(len(found) for found in self.rows.values())

    def kept(self, train: Mapping[ClientId, Any], coins: Array) -> dict[ClientId, Examples]:
        """The clients' rows without the candidates whose coin says out."""
        found, start = {}, 0
        for client, data in train.items():
            here = self.rows[client]
            out = here[~coins[start : start + len(here)]]
            start += len(here)
            stay = np.setdiff1d(np.arange(len(data)), out, assume_unique=True)
            found[client] = Examples(data.features[stay], data.targets[stay])
        return found


def audit_job(
    job: Job,
    *,
    models: int = 16,
    rows: int = 400,
    reported: Reported | None = None,
    told: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Attack ``models`` runs of ``job``; what came out, ready for JSON.

    Args:
        job: a job with data of its own.
        models: runs on random halves, 4 at least.
        rows: most candidate rows, over all clients.
        reported: what the job promises.
        told: called with the runs that are done and how many there are.

    Raises:
        JobError: fewer than 4 models, a job without data of its own, or one of statistics.
        DataError: clients whose rows are no :class:`~atoll.core.contracts.Examples`, or too few.
    """
    began = time.perf_counter()
    if models < 4:
        raise JobError(f"{models} models", remedy="4 at least; 16 give a usable figure")
    if job.islands is None:
        raise JobError("this job has no data of its own", remedy="audit a job file")
    if job.study is not None:
        raise JobError(
            "this attack asks what a trained model tells, and statistics train none",
            remedy="sites hold what statistics tell to their rule of disclosure",
        )
    islands = job.islands(job.seed)
    stream = Seed(job.seed) / "audit"
    candidates = _candidates(islands, rows, stream / "rows")
    coins = (stream / "coins").generator().random((models, candidates.count)) < 0.5
    losses = np.empty(coins.shape)
    for k, inside in enumerate(coins):
        run = simulate(_half(job, islands, candidates.kept(islands.train, inside)))
        losses[k] = _losses(run, islands.train, candidates)
        told(k + 1, models)
    return _found(losses, coins, reported or Reported(), time.perf_counter() - began)


def _candidates(islands: Islands, most: int, stream: Seed) -> _Candidates:
    sizes: dict[ClientId, int] = {}
    for client, data in islands.train.items():
        if not isinstance(data, Examples):
            raise DataError(
                f"rows of {client!r} are {type(data).__name__}", remedy="audit jobs on Examples"
            )
        sizes[client] = int(_KEPT * len(data))
    total = sum(sizes.values())
    if total < 20:
        raise DataError(f"{total} rows to attack", remedy="20 at least")
    share, found = min(1.0, most / total), {}
    for client, size in sizes.items():
        draw = (stream / client).generator()
        taken = draw.choice(len(islands.train[client]), round(share * size), replace=False)
        found[client] = np.sort(taken)
    return _Candidates(found)


def _half(job: Job, islands: Islands, train: Mapping[ClientId, Examples]) -> Job:
    """The job on these rows, with nothing evaluated and nothing written."""
    half = replace(islands, train=train, held_out={}, central=None, cards=(), notes=())
    return replace(
        job,
        islands=lambda seed: half,
        evaluate_every=0,
        central=False,
        federated=False,
        compare=False,
        checkpoint_every=0,
        stop=replace(job.stop, metric="", patience=0, target=None),
    )


def _losses(run: Run, train: Mapping[ClientId, Any], candidates: _Candidates) -> Array:
    """The final model's loss on each candidate."""
    layout, found = run.trainer.layout, list[float]()
    for client, positions in candidates.rows.items():
        whole = run.vector
        if layout.shared.stop < layout.size:
            memory = run.progress.memories.get(client, {})
            start = run.job.first(run.trainer)[layout.personal]
            whole = np.concatenate([whole, memory.get("personal", start)])
        data = train[client]
        for at in positions:
            row = Examples(data.features[at : at + 1], data.targets[at : at + 1])
            found.append(float(values(run.trainer.evaluate(whole, row))["loss"]))
    return np.array(found)


def _found(losses: Array, coins: Array, reported: Reported, seconds: float) -> dict[str, Any]:
    phi = confidence(losses)
    # The first run is the audited one: fixed before anything was seen.
    bound = one_run(lira(phi, coins, 0), coins[0], reported.delta)
    promised = reported.epsilon
    return {
        "models": len(coins),
        "rows": coins.shape[1],
        "seconds": round(seconds, 1),
        "membership": {
            "lira": asdict(lira_risk(phi, coins)),
            "loss": asdict(loss_risk(losses[coins], losses[~coins])),
        },
        "one_run": {
            **asdict(bound),
            "reported": promised,
            "holds": None if promised is None else bound.epsilon <= promised,
        },
    }
