"""``simulate``: the folder it leaves, resuming, refusing, and failing honestly."""

import asyncio
import errno
import fcntl
import json
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import runtime_clients as rc

from atoll.algorithms import FedAvg, Scaffold
from atoll.core.errors import (
    CheckpointError,
    ClientError,
    DataError,
    JobConflict,
    JobError,
    QuorumError,
    StorageError,
)
from atoll.core.layout import Layout
from atoll.job import Job, load_job
from atoll.job.privacy import Privacy
from atoll.models.linear import LinearTrainer
from atoll.runtime import checkpoint
from atoll.runtime.clock import Clock, Delay
from atoll.runtime.cohort import Cohort
from atoll.runtime.loop import Stop
from atoll.runtime.schedule import Synchronous
from atoll.runtime.serial import SerialExecutor
from atoll.simulation import simulate

CLIENTS = rc.federation(rc.SIZES)
HELD_OUT = {c: rc.rows(8, 50 + i) for i, c in enumerate(CLIENTS)}


def job(**changes) -> Job:
    parts = rc.parts(changes.pop("algorithm", FedAvg()))
    return Job(
        **{
            "trainer": parts.trainer,
            "algorithm": parts.algorithm,
            "local": parts.local,
            "stop": Stop(rounds=4),
            "seed": 3,
            **changes,
        }
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stop_after(round):
    """An observer that asks the run to stop, as Ctrl-C does, in the middle of a round."""

    def observe(record):
        if record["round"] == round:
            os.kill(os.getpid(), signal.SIGINT)

    return observe


def test_executors_and_folders_do_not_change_a_bit(tmp_path):
    plain = simulate(job(), CLIENTS, held_out=HELD_OUT)
    assert plain.folder is None
    runs = [
        simulate(job(), CLIENTS, held_out=HELD_OUT, out=tmp_path / "a"),
        simulate(job(), CLIENTS, held_out=HELD_OUT, executor="processes", workers=2),
        simulate(job(), CLIENTS, held_out=HELD_OUT, executor=SerialExecutor),
    ]
    assert {r.model_hash for r in runs} == {plain.model_hash}
    assert [r.manifest["executor"] for r in runs[:2]] == ["serial", "processes"]
    assert simulate(job(), CLIENTS, seed=4).model_hash != plain.model_hash
    for run in runs:
        assert [r["sites"] for r in run.rounds] == [r["sites"] for r in plain.rounds]


def test_the_folder_holds_what_its_reference_says(tmp_path):
    out = tmp_path / "deep" / "run"
    seen = []
    watched = Stop(4, "federated.loss")
    run = simulate(job(stop=watched), CLIENTS, held_out=HELD_OUT, out=out, observers=[seen.append])
    assert {p.name for p in out.iterdir()} == {
        *("manifest.json", "metrics.jsonl", "model.safetensors", "best.safetensors"),
        *("checkpoint", "report.html"),
    }
    assert [r["round"] for r in lines(out)] == [r["round"] for r in seen] == [1, 2, 3, 4]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == run.status == "completed"
    assert manifest["model_hash"] == run.model_hash == lines(out)[-1]["model_hash"]
    assert manifest["data"]["c4"]["rows"] == 64
    assert manifest["best"]["round"] == run.progress.best.round
    assert np.array_equal(run.parameters["weight"], run.vector)
    assert run.best_parameters["weight"].tobytes() == run.progress.best.parameters.tobytes()


@pytest.mark.parametrize("where", ["serial", "processes"])
def test_a_profile_is_kept_and_changes_nothing(tmp_path, where):
    plain = simulate(job(), CLIENTS, held_out=HELD_OUT)
    run = simulate(
        job(), CLIENTS, held_out=HELD_OUT, out=tmp_path, executor=where, workers=2, profile=True
    )
    assert plain.profile is None
    assert run.model_hash == plain.model_hash
    assert json.loads((tmp_path / "profile.json").read_text()) == run.profile.to_plain()
    names = [p.name for p in run.profile.phases]
    assert names[:3] == ["data", "model", "start"]
    assert names[-2:] == ["finish", "rest"]
    assert run.profile.tasks == 4 * len(CLIENTS)


@pytest.mark.parametrize(
    ("algorithm", "says"), [(FedAvg(), "stacked, "), (Scaffold(), "one by one: ")]
)
def test_manifest_and_profile_say_which_way_training_took(tmp_path, algorithm, says):
    named = job(algorithm=algorithm, trainer=LinearTrainer("logistic", rc.FEATURES))
    run = simulate(named, CLIENTS, out=tmp_path, profile=True)
    assert run.manifest["training"].startswith(says)
    for file, key in (("manifest.json", "training"), ("profile.json", "path")):
        assert json.loads((tmp_path / file).read_text())[key] == run.manifest["training"]
    assert run.profile.path == run.manifest["training"]


@pytest.mark.parametrize("every", [0, 1, 3])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, every):
    settings = {"algorithm": Scaffold(), "checkpoint_every": every, "stop": Stop(7)}
    whole = simulate(job(**settings), CLIENTS, held_out=HELD_OUT, out=tmp_path / "whole")
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "broken"
    for at in (2, 5):
        part = simulate(
            job(**settings),
            CLIENTS,
            held_out=HELD_OUT,
            out=out,
            resume=True,
            observers=[stop_after(at)],
        )
        assert part.status == "interrupted"
        assert part.manifest["rounds"] == at
        assert signal.getsignal(signal.SIGINT) is before
    rest = simulate(job(**settings), CLIENTS, held_out=HELD_OUT, out=out, resume=True)
    assert rest.model_hash == whole.model_hash
    for ours, theirs in zip(lines(out), lines(whole.folder), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert len(rest.rounds) == 7


@pytest.fixture
def interruptible():
    """Python's own handler, which is missing where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_asking_twice_stops_at_once():
    def twice(record):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        simulate(job(), CLIENTS, observers=[twice])


def test_a_run_outside_the_main_thread_leaves_signals_alone():
    found = []
    thread = threading.Thread(target=lambda: found.append(simulate(job(), CLIENTS).status))
    thread.start()
    thread.join()
    assert found == ["completed"]


def test_resuming_asks_for_the_same_job_and_the_same_data(tmp_path):
    simulate(job(), CLIENTS, out=tmp_path)
    with pytest.raises(CheckpointError, match="another job"):
        simulate(job(seed=9), CLIENTS, out=tmp_path, resume=True)
    other = {**CLIENTS, "c0": rc.rows(40, 77)}
    with pytest.raises(CheckpointError, match="another data set"):
        simulate(job(), other, out=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="without a folder"):
        simulate(job(), CLIENTS, resume=True)
    (newest := checkpoint.newest(tmp_path / "checkpoint")).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="delete it to use the one before"):
        simulate(job(), CLIENTS, out=tmp_path, resume=True)
    newest.unlink()
    assert simulate(job(), CLIENTS, out=tmp_path, resume=True).status == "completed"


def test_an_earlier_run_is_not_overwritten_by_accident(tmp_path):
    first = simulate(job(), CLIENTS, out=tmp_path)
    with pytest.raises(StorageError, match="earlier run") as caught:
        simulate(job(), CLIENTS, out=tmp_path)
    assert "--resume" in caught.value.remedy
    second = simulate(job(seed=8), CLIENTS, out=tmp_path, overwrite=True)
    assert second.model_hash != first.model_hash
    assert len(lines(tmp_path)) == 4


def test_an_earlier_run_is_lost_only_to_one_that_can_begin(tmp_path):
    first = simulate(job(), CLIENTS, out=tmp_path)

    def broken(parts):
        raise JobConflict("no worker can be had")

    masked = job(privacy=Privacy(aggregation="masked"))
    for bad, how in ((job(), {"executor": broken}), (masked, {"executor": "processes"})):
        with pytest.raises(JobConflict):
            simulate(bad, CLIENTS, out=tmp_path, overwrite=True, **how)
    assert simulate(job(), CLIENTS, out=tmp_path, resume=True).model_hash == first.model_hash


def test_to_resume_and_to_overwrite_is_a_contradiction(tmp_path):
    simulate(job(), CLIENTS, out=tmp_path)
    with pytest.raises(JobError, match="exclude each other"):
        simulate(job(), CLIENTS, out=tmp_path, resume=True, overwrite=True)
    assert len(lines(tmp_path)) == 4


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    simulate(job(), CLIENTS, out=tmp_path)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(StorageError, match="another run is writing"):
            simulate(job(), CLIENTS, out=tmp_path, **how)
    os.close(descriptor)
    assert len(lines(tmp_path)) == 4
    assert simulate(job(), CLIENTS, out=tmp_path, resume=True).status == "completed"


def test_a_failed_run_says_so_and_can_be_continued(tmp_path, monkeypatch):
    whole = simulate(job(), CLIENTS)
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left|cannot") as caught:
        simulate(job(), CLIENTS, out=tmp_path)
    assert "manifest" not in str(caught.value)
    monkeypatch.undo()
    assert simulate(job(), CLIENTS, out=tmp_path, resume=True).model_hash == whole.model_hash


def test_when_all_clients_fail_the_manifest_tells_why(tmp_path):
    bad = rc.federation(rc.SIZES, dict.fromkeys(rc.SIZES, rc.RAISES))
    with pytest.raises(ClientError, match="out of luck"):
        simulate(job(), bad, out=tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["status"].startswith("failed: all 10 clients of the round failed")
    slow = Clock(Delay("constant", 9.0))
    with pytest.raises(QuorumError, match="none of the 4 rounds could commit"):
        simulate(
            job(schedule=Synchronous(deadline=1.0), clock=slow),
            CLIENTS,
            out=tmp_path,
            overwrite=True,
        )
    assert [r["committed"] for r in lines(tmp_path)] == [False] * 4


def test_a_site_that_cannot_train_alone_does_not_cost_the_federation_its_result(tmp_path):
    clients = rc.federation(rc.SIZES, {"c4": rc.RAISES})
    run = simulate(job(compare=True), clients, held_out=HELD_OUT, out=tmp_path)
    assert run.status == "completed without c4 from round 1"
    found = run.manifest["comparison"]
    assert found["sites"]["c4"]["alone"] is None
    assert found["sites"]["c4"]["federated"]["loss"] > 0
    assert found["sites"]["c0"]["alone"]["loss"] > 0
    assert "out of luck" in found["failed"]["c4"]
    assert (tmp_path / "report.html").is_file()


def test_faults_between_job_and_federation_come_together_before_anything_is_written(tmp_path):
    clients = {**CLIENTS, "empty": rc.rows(1, 0)}
    clients["empty"] = replace(
        clients["empty"],
        features=clients["empty"].features[:0],
        targets=clients["empty"].targets[:0],
    )
    bad = job(schedule=Synchronous(Cohort("uniform", 50)), stop=Stop(3, "federated.loss"))
    with pytest.raises(JobError) as caught:
        simulate(bad, clients, out=tmp_path / "never")
    text = str(caught.value)
    assert "cohort of 50 from a federation of 11" in text
    assert "'empty' has no rows" in text
    assert "needs held-out rows" in text
    assert not (tmp_path / "never").exists()
    with pytest.raises(JobError, match="no data of its own"):
        simulate(job())
    with pytest.raises(DataError, match="not a client"):
        simulate(job(), CLIENTS, held_out={"stranger": HELD_OUT["c0"]})
    with pytest.raises(JobError, match="did you mean 'processes'"):
        simulate(job(), CLIENTS, executor="process")


def test_personal_entries_show_their_initial_values_in_the_model():
    run = simulate(job(), CLIENTS)
    layout: Layout = run.trainer.layout
    start = run.trainer.initial(rc.parts(FedAvg()).seed / "initial")
    assert run.parameters["intercept"] == start[layout.personal]
    assert run.parameters["weight"].tobytes() == run.vector.tobytes()
    assert set(run.progress.memories) == set(CLIENTS)


SITES = """
name = "sites"
[data]
source = "rows.csv"
target = "y"
site_column = "site"
[local]
batch_size = 4
[rounds]
count = 2
[evaluation]
compare = false
"""


@pytest.mark.parametrize("dealt", [False, True])
def test_sites_with_tables_of_their_own_are_trained_apart_to_the_bits_of_a_deployment(
    tmp_path, dealt
):
    rng = np.random.default_rng(5)
    lines = [f"{s},{x:.3f},{'yes' if x > 0 else 'no'}" for s in "abc" for x in rng.normal(size=30)]
    tmp_path.joinpath("rows.csv").write_text("\n".join(["site,x,y", *lines]))
    text = SITES.replace('site_column = "site"', 'drop = ["site"]') if dealt else SITES
    text += "[data.partition]\nclients = 3\n" if dealt else ""
    tmp_path.joinpath("job.toml").write_text(text)
    seen = []

    def executor(parts):
        seen.append(parts)
        return SerialExecutor(parts)

    run = simulate(load_job(tmp_path / "job.toml"), executor=executor)
    assert seen[0].apart != dealt
    assert run.manifest["training"].startswith("stacked" if dealt else "one by one")


@pytest.mark.parametrize(
    ("stop", "changes", "told"),
    [
        ({"metric": "loss"}, {}, "names no evaluation"),
        ({"metric": "central.loss"}, {}, "no central test set"),
        ({"metric": "federated.loss"}, {"federated": False}, "evaluation.federated is off"),
        ({"metric": "federated.loss"}, {"evaluate_every": 0}, "never computed"),
        ({"patience": 2}, {}, "need a metric"),
    ],
)
def test_a_job_made_in_python_is_not_left_watching_what_nobody_computes(stop, changes, told):
    with pytest.raises(JobConflict, match=told):
        simulate(job(stop=Stop(rounds=4, **stop), **changes), CLIENTS, held_out=HELD_OUT)


def test_a_misspelt_metric_is_no_early_stop_and_no_best_model(tmp_path):
    watched = job(stop=Stop(rounds=9, metric="federated.los", patience=2))
    with pytest.raises(JobError, match="evaluations compute") as caught:
        simulate(watched, CLIENTS, held_out=HELD_OUT, out=tmp_path)
    assert "did you mean 'loss'?" in caught.value.remedy
    assert not (tmp_path / "best.safetensors").exists()


def test_ctrl_c_ends_a_run_under_asyncio_at_once():
    """Its own handler cancels a task, which hears of it when the run has ended."""
    seen = []

    def observe(record):
        seen.append(record["round"])
        signal.raise_signal(signal.SIGINT)

    async def main():
        simulate(job(), CLIENTS, observers=[observe])

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [1]
