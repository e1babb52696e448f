"""A simulation that begins at a given model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.core.errors import CheckpointError, JobError
from atoll.core.seeds import Seed
from atoll.models.linear import LinearTrainer
from atoll.runtime.serial import SerialExecutor

HEART = Path(__file__).parents[2] / "examples" / "heart" / "job.toml"
QUICK = ("evaluation.compare=false", "rounds.count=2")


def job(*overrides: str) -> atoll.Job:
    return atoll.load_job(HEART, [*QUICK, *overrides])


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return atoll.simulate(job("seed=9"), out=tmp_path_factory.mktemp("runs") / "before")


def begins(made: atoll.Job, initial: Any, **more: Any) -> tuple[Any, Any]:
    """The run, and the vector that its executor was given to begin at."""
    seen: list[Any] = []

    def executor(parts: Any) -> SerialExecutor:
        seen.append(parts.start().parameters)
        return SerialExecutor(parts)

    return atoll.simulate(made, executor=executor, initial=initial, **more), seen[0]


def test_it_begins_at_the_very_numbers_of_the_run_named(before: Any) -> None:
    run, first = begins(job(), before.folder)
    assert first.tobytes() == before.vector.tobytes()
    assert run.manifest["start"]["model_hash"] == before.model_hash
    assert run.manifest["start"]["sha256"] == run.manifest["job"]["model"]["start"]
    assert any("begins at a given model" in note for note in run.manifest["notes"])
    twin, _ = begins(job(), before.parameters)
    assert twin.model_hash == run.model_hash
    assert twin.manifest["job_hash"] == run.manifest["job_hash"]
    assert "start" not in before.manifest


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_personal_entries_begin_there_too(before: Any, executor: str) -> None:
    one = (
        "model.personal=['intercept']",
        "rounds.cohort='uniform'",
        "rounds.size=1",
        "rounds.count=1",
    )
    run = atoll.simulate(job(*one), initial=before.folder, executor=executor, workers=2)
    away = next(c for c in run.manifest["data"] if c not in run.progress.memories)
    assert (
        run.parameters_of(away)["intercept"].tobytes() == before.parameters["intercept"].tobytes()
    )
    assert run.parameters["intercept"].tobytes() == before.parameters["intercept"].tobytes()
    own = run.trainer.initial(Seed(run.job.seed) / "initial")
    assert own[run.trainer.layout.personal].tobytes() != before.parameters["intercept"].tobytes()
    # Who has trained, did so from there: of the same shared entries, and another own one, comes another.
    (taken,) = run.progress.memories
    moved = {**before.parameters, "intercept": before.parameters["intercept"] + 3.0}
    other = atoll.simulate(job(*one), initial=moved, executor=executor, workers=2)
    assert run.parameters_of(taken)["intercept"] != other.parameters_of(taken)["intercept"]


def test_a_resumed_run_must_begin_where_it_began(before: Any, tmp_path: Path) -> None:
    whole = atoll.simulate(job("rounds.count=3"), initial=before.folder)
    out = tmp_path / "run"
    atoll.simulate(job(), initial=before.folder, out=out)
    with pytest.raises(CheckpointError, match=r"model\.start"):
        atoll.simulate(job("rounds.count=3"), out=out, resume=True)
    more = atoll.simulate(job("rounds.count=3"), initial=before.folder, out=out, resume=True)
    assert more.model_hash == whole.model_hash


def test_what_does_not_fit_is_told_before_anything_is_written(before: Any, tmp_path: Path) -> None:
    wrong = {**before.parameters, "weight": before.parameters["weight"][:1]}
    with pytest.raises(JobError) as caught:
        atoll.simulate(job(), initial=wrong, out=tmp_path / "run")
    assert "entry 'weight': has shape" in str(caught.value)
    assert not (tmp_path / "run" / "manifest.json").exists()
    named = job(f"model.start='{'a' * 64}'")
    with pytest.raises(JobError, match="not given"):
        atoll.simulate(named)
    with pytest.raises(JobError, match="is given"):
        atoll.simulate(named, initial=before.folder)


def test_a_job_made_in_python_has_the_start_in_its_hash(before: Any) -> None:
    rows = atoll.Examples(np.eye(3), np.array([0, 1, 1]))
    trainer = LinearTrainer("logistic", features=3)
    made = atoll.Job(trainer=trainer, stop=atoll.Stop(1), federated=False)
    start = {"weight": np.ones(3), "intercept": 0.0}
    run, first = begins(made, start, clients={"a": rows, "b": rows})
    assert sorted(first.tolist()) == [0, 1, 1, 1]
    assert run.manifest["job_hash"] != made.hash()
    assert run.manifest["job"]["model"]["start"] == run.manifest["start"]["sha256"]


def test_what_a_private_run_begins_at_is_told_as_not_counted(before: Any) -> None:
    private = ("privacy.record.noise_multiplier=1.0", "privacy.record.open_metrics=true")
    run = atoll.simulate(job(*private), initial=before.folder)
    assert "the model that it begins at" in run.manifest["privacy"]["not counted in it"]
    plain = atoll.simulate(job(*private))
    assert "begins at" not in json.dumps(plain.manifest["privacy"])
