"""A run that goes on for more rounds than its job had planned."""

import json
import os
import re
import signal

import pytest
import runtime_clients as rc

from atoll.algorithms import FedAvg, FedBuff, Scaffold
from atoll.core.contracts import Weighting
from atoll.core.errors import CheckpointError
from atoll.core.local import LocalWork, Optimizer
from atoll.job import Job
from atoll.job.privacy import ClientPrivacy, Privacy
from atoll.runs.longer import differences
from atoll.runtime.loop import Stop
from atoll.runtime.schedule import Asynchronous
from atoll.simulation import simulate

CLIENTS = rc.federation({"a": 20, "b": 9, "c": 14})
TESTS = {c: rc.rows(8, 50 + i) for i, c in enumerate(CLIENTS)}


def job(rounds, **changes) -> Job:
    parts = rc.parts(changes.pop("algorithm", Scaffold()), CLIENTS)
    stop = Stop(rounds, metric=changes.pop("metric", "federated.loss"))
    return Job(
        **{
            "trainer": parts.trainer,
            "algorithm": parts.algorithm,
            "local": parts.local,
            "stop": stop,
            "seed": 3,
            **changes,
        }
    )


def run(rounds, folder=None, *, resume=False, observers=(), **changes):
    return simulate(
        job(rounds, **changes),
        CLIENTS,
        held_out=TESTS,
        out=folder,
        resume=resume,
        observers=observers,
    )


def told(run):
    """All records but how long they took."""
    return [{**record, "seconds": 0} for record in run.rounds]


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


class Killed(Exception):
    pass


def killed_in(number):
    def look(record):
        if record["round"] == number:
            raise Killed

    return look


@pytest.mark.parametrize(
    "changes",
    [{}, {"schedule": Asynchronous(buffer=2), "algorithm": FedBuff()}],
    ids=["synchronous", "asynchronous"],
)
def test_more_rounds_end_in_the_bits_of_a_run_that_planned_them(tmp_path, changes):
    whole = run(7, **changes)
    run(3, tmp_path, **changes)
    longer = run(7, tmp_path, resume=True, **changes)
    assert longer.model_hash == whole.model_hash
    assert told(longer) == told(whole)
    assert longer.manifest["job_hash"] == whole.manifest["job_hash"] == job(7, **changes).hash()
    assert longer.manifest["best"] == whole.manifest["best"]
    assert manifest(tmp_path)["status"] == "completed"


def test_going_on_may_be_killed_and_planned_anew(tmp_path):
    run(2, tmp_path)
    with pytest.raises(Killed):
        run(6, tmp_path, resume=True, observers=[killed_in(3)])
    # The folder no longer says that a run has ended in it, and is the longer job's.
    assert manifest(tmp_path)["status"] == "interrupted"
    assert manifest(tmp_path)["job_hash"] == job(6).hash()
    with pytest.raises(Killed):
        run(8, tmp_path, resume=True, observers=[killed_in(5)])
    assert run(8, tmp_path, resume=True).model_hash == run(8).model_hash


def test_a_run_that_was_interrupted_may_go_on_for_longer(tmp_path):
    def stop(record):
        if record["round"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run(4, tmp_path, observers=[stop]).status == "interrupted"
    assert run(9, tmp_path, resume=True).model_hash == run(9).model_hash


def test_a_killed_run_may_go_on_for_longer_and_tells_what_else_is_different(tmp_path):
    with pytest.raises(Killed):
        run(4, tmp_path, observers=[killed_in(3)])
    assert manifest(tmp_path)["status"] == "interrupted"
    with pytest.raises(CheckpointError, match=r"algorithm\.server_lr \(1\.0 then, 0\.5 now\)"):
        run(4, tmp_path, resume=True, algorithm=Scaffold(server_lr=0.5))
    assert run(6, tmp_path, resume=True).model_hash == run(6).model_hash


def test_a_killed_run_states_what_its_privacy_may_have_come_to(tmp_path):
    noise = Privacy(clip=1.0, client=ClientPrivacy(noise_multiplier=1.0))
    plain = {
        "algorithm": FedAvg(),
        "weighting": Weighting("uniform"),
        "federated": False,
        "metric": "",
    }
    with pytest.raises(Killed):
        run(4, tmp_path, observers=[killed_in(3)], privacy=noise, **plain)
    whole = run(4, privacy=noise, **plain).manifest["privacy"]
    assert manifest(tmp_path)["privacy"]["epsilon"] == whole["epsilon"]


def test_an_evaluation_out_of_turn_counts_where_it_was_watched(tmp_path):
    plain = {"evaluate_every": 2, "metric": ""}
    run(3, tmp_path / "plain", **plain)
    longer = run(6, tmp_path / "plain", resume=True, **plain)
    assert longer.model_hash == run(6, **plain).model_hash
    run(3, tmp_path / "watched", evaluate_every=2)
    with pytest.raises(CheckpointError, match=r"round 3 was evaluated .* out of turn"):
        run(6, tmp_path / "watched", resume=True, evaluate_every=2)
    run(4, tmp_path / "even", evaluate_every=2)
    assert run(6, tmp_path / "even", resume=True, evaluate_every=2).status == "completed"


def test_what_does_not_go_on_says_why_and_changes_nothing(tmp_path):
    folder = tmp_path / "run"
    run(3, folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match="had planned 3 rounds, and 2 are fewer") as caught:
        run(2, folder, resume=True)
    assert "with more rounds" in caught.value.remedy
    other = LocalWork(optimizer=Optimizer(lr=0.5))
    with pytest.raises(CheckpointError, match=re.escape("local.optimizer.lr (")):
        run(5, folder, resume=True, local=other)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_noise_is_made_for_the_rounds_that_were_planned(tmp_path):
    private = {
        "weighting": Weighting("uniform"),
        "privacy": Privacy(clip=1.0, client=ClientPrivacy(noise_multiplier=1.0)),
        "federated": False,
        "metric": "",
    }
    run(2, tmp_path, **private)
    with pytest.raises(CheckpointError, match="more of them cost more"):
        run(4, tmp_path, resume=True, **private)


def test_differences_name_keys_that_only_one_has():
    old = {"a": {"b": 1, "c": (1, 2)}, "x": {}}
    new = {"a": {"b": 2, "c": [1, 2]}, "y": 0}
    assert differences(old, new) == [
        "a.b (1 then, 2 now)",
        "x ({} then, not there now)",
        "y (not there then, 0 now)",
    ]
