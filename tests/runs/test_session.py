"""A run's folder, written by whoever drives the run."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import runtime_clients as rc

from atoll.algorithms import Scaffold
from atoll.core.errors import CheckpointError
from atoll.job.build import Job
from atoll.job.datasets import islands_of
from atoll.report.folder import RunFolder, read_model
from atoll.runs import Session
from atoll.runtime import checkpoint
from atoll.runtime.loop import Evaluation, Loop, Next, Stop, Train
from atoll.runtime.serial import SerialExecutor
from atoll.simulation import simulate

CLIENTS = rc.federation({"a": 20, "b": 9, "c": 14})
TESTS = {c: rc.rows(8, 50 + i) for i, c in enumerate(CLIENTS)}


@dataclass(frozen=True)
class Sized:
    """What a coordinator knows of a site's rows."""

    rows: int

    def __len__(self) -> int:
        return self.rows


@dataclass(frozen=True, eq=False)
class Standing:
    """A trainer that can say what a model looks like, and nothing else."""

    layout: Any
    start: Any

    def initial(self, seed: Any) -> Any:
        return self.start.copy()


def deployed(folder, *, rounds=3):
    """The coordinator's side of a run: stand-ins for data and trainer, and no executor."""
    real = rc.parts(Scaffold(), CLIENTS)
    real = replace(real, held_out=TESTS)
    initial = real.trainer.initial(real.seed / "initial")
    parts = replace(
        real,
        trainer=Standing(real.trainer.layout, initial),
        clients={c: Sized(len(e)) for c, e in CLIENTS.items()},
        held_out={c: Sized(len(e)) for c, e in TESTS.items()},
    )
    job = Job(real.trainer, real.algorithm, local=real.local, stop=Stop(rounds), seed=3)
    facts = {"executor": "remote", "training": "general"}
    cards = [{"site": c, "fingerprint": f"print-{c}"} for c in CLIENTS]
    islands = replace(islands_of({}, {}, None), train=parts.clients, cards=cards)
    began = datetime(2026, 1, 2, tzinfo=UTC)
    session = Session(job, parts, islands, folder, began, facts=facts)
    return real, parts, session


def drive(real, parts, session, progress=None, *, rounds=3, saved=()):
    executor = SerialExecutor(real)
    loop = Loop(
        parts,
        evaluation=Evaluation(1, None, True),
        stop=Stop(rounds),
        observers=[session.record],
        save=saved.append if isinstance(saved, list) else session.save,
    )
    steps, answer = loop.play(progress), None
    while True:
        try:
            call = steps.send(answer)
        except StopIteration as end:
            return session.finish(end.value)
        if isinstance(call, Next):
            answer = call.planned()
        elif isinstance(call, Train):
            answer = executor.run(call.tasks, call.broadcasts, call.memories)
        else:
            answer = executor.evaluate(call.broadcast, call.clients, call.memories)


def test_a_driven_run_leaves_the_folder_of_a_simulation(tmp_path):
    real, parts, session = deployed(RunFolder(tmp_path / "deployed"))
    run = drive(real, parts, session)
    other = simulate(
        session.job, CLIENTS, held_out=TESTS, out=tmp_path / "simulated", executor="serial"
    )
    assert run.model_hash == other.model_hash
    names = [sorted(p.name for p in (tmp_path / k).iterdir()) for k in ("deployed", "simulated")]
    assert names[0] == names[1]
    models = [read_model(tmp_path / k / "model.safetensors") for k in ("deployed", "simulated")]
    assert {n: v.tobytes() for n, v in models[0][0].items()} == {
        n: v.tobytes() for n, v in models[1][0].items()
    }
    for row, twin in zip(run.rounds, other.rounds, strict=True):
        assert {**row, "seconds": 0} == {**twin, "seconds": 0}
    manifest = json.loads((tmp_path / "deployed" / "manifest.json").read_text())
    assert manifest.keys() == dict(other.manifest).keys()
    assert (manifest["executor"], manifest["training"]) == ("remote", "general")
    assert manifest["status"] == "completed"
    assert manifest["data"]["b"] == {"rows": 9, "fingerprint": "print-b"}
    assert manifest["comparison"] is None
    for name in ("model_hash", "job_hash", "parameters", "seed", "rounds", "versions"):
        assert manifest[name] == other.manifest[name], name


def test_a_run_goes_on_from_a_checkpoint_that_is_kept_elsewhere(tmp_path):
    real, parts, session = deployed(RunFolder(tmp_path / "whole"))
    saved = []
    whole = drive(real, parts, session, saved=saved)
    raw = checkpoint.encode(saved[1], session.job.hash(), session.notes)
    # The folder has lost a line and holds one of a round that was never committed.
    folder = RunFolder(tmp_path / "again")
    folder.append({**whole.rounds[0], "round": 7})
    real, parts, session = deployed(folder)
    progress, notes = checkpoint.decode(raw, session.job.hash())
    session.continued(progress, notes, whole.rounds[:2])
    assert [r["round"] for r in folder.read_rounds()] == [1, 2]
    again = drive(real, parts, session, progress)
    assert [r["model_hash"] for r in again.rounds] == [r["model_hash"] for r in whole.rounds]
    _, _, other = deployed(None)
    other.islands = replace(other.islands, cards=[{"site": "a", "fingerprint": "changed"}])
    with pytest.raises(CheckpointError, match="round 2 was made with another data set"):
        other.continued(progress, notes, [])


def test_a_comparison_is_asked_for_once_with_the_last_figures_and_only_where_given(tmp_path):
    asked = []

    def comparison(rounds, sites):
        asked.append((rounds, sites))
        return {"metric": "loss", "sites": {}, "failed": {}}

    real, parts, session = deployed(None)
    session.comparison = comparison
    run = drive(real, parts, session)
    assert asked == [(3, run.rounds[-1]["sites"])]
    assert run.manifest["comparison"]["metric"] == "loss"
    assert np.isfinite(asked[0][1]["a"]["loss"])
