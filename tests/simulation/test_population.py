"""Runs over populations that are described, not listed."""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import runtime_clients as rc

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import population_clients as pc

from atoll.algorithms import FedAvg, Scaffold
from atoll.core.contracts import Examples
from atoll.core.errors import CheckpointError, DataError, JobConflict
from atoll.core.seeds import Seed
from atoll.data.population import ClientIds, LazyClients, resampled
from atoll.job.build import Job
from atoll.models.linear import LinearTrainer
from atoll.report.folder import RunFolder
from atoll.runtime.clock import Clock, Delay
from atoll.runtime.cohort import Cohort
from atoll.runtime.loop import Stop
from atoll.runtime.schedule import Asynchronous, Synchronous
from atoll.simulation import simulate

HUGE = 10_000_000


def job(cohort=8, **changes) -> Job:
    settings = {
        "trainer": LinearTrainer("logistic", 3, dtype="float32"),
        "local": rc.parts(FedAvg()).local,
        "schedule": Synchronous(Cohort("uniform", cohort)),
        "stop": Stop(rounds=3),
        "seed": 3,
        **changes,
    }
    return Job(**settings)


@pytest.fixture
def unlisted(monkeypatch):
    """Nobody may walk through the ids of a large population."""
    walk = ClientIds.__iter__

    def guarded(self):
        for i, client in enumerate(walk(self)):
            if i > 10_000:
                raise AssertionError("all ids of a population were listed")
            yield client

    monkeypatch.setattr(ClientIds, "__iter__", guarded)


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize(
    "schedule",
    [
        Synchronous(Cohort("uniform", 8), over_selection=0.5),
        Synchronous(Cohort("poisson", rate=8 / HUGE)),
        Asynchronous(buffer=4, concurrency=8),
    ],
    ids=["uniform", "poisson", "asynchronous"],
)
def test_ten_million_clients_cost_what_was_invited(tmp_path, schedule):
    made = []

    def counted(index, seed):
        made.append(index)
        return pc.small(index, seed)

    clock = Clock(Delay("exponential", 1.0))
    small = job(schedule=schedule, clock=clock, checkpoint_every=0, stop=Stop(rounds=6))
    began = time.process_time()
    tracemalloc.start()
    run = simulate(small, LazyClients(HUGE, counted), out=tmp_path / "run")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert run.status == "completed"
    assert peak < 20e6
    assert time.process_time() - began < 10
    invited = {c for r in run.rounds for c in r["invited"]}
    assert len(set(made)) <= len(invited) + 3
    assert run.manifest["population"]["clients"] == HUGE
    assert run.manifest["population"]["invited"] == len(invited)
    assert list(run.manifest["data"]) == list(
        dict.fromkeys(c for r in run.rounds for c in r["invited"])
    )


def test_executors_agree_on_a_lazy_population():
    people = LazyClients(100_000, pc.small, Seed(1), pc.rows)
    drawn = resampled(
        Examples(np.random.default_rng(0).normal(size=(90, 3)), np.arange(90) % 2),
        50_000,
        7,
        Seed(2),
    )
    for clients in (people, drawn):
        one = simulate(job(algorithm=Scaffold()), clients)
        two = simulate(job(algorithm=Scaffold()), clients, executor="processes", workers=2)
        assert one.model_hash == two.model_hash
        assert [r["contributed"] for r in one.rounds] == [r["contributed"] for r in two.rounds]


def test_a_lazy_population_trains_like_the_same_clients_listed():
    people = LazyClients(300, pc.small, Seed(1))
    lazy, listed = simulate(job(), people), simulate(job(), dict(people.items()))
    assert lazy.model_hash == listed.model_hash
    assert lazy.manifest["data"].keys() == listed.manifest["data"].keys()
    told = {c: d["rows"] for c, d in lazy.manifest["data"].items() if d["rows"] is not None}
    assert told.items() <= {c: d["rows"] for c, d in listed.manifest["data"].items()}.items()


def test_a_resumed_run_wants_the_same_population(tmp_path):
    people = LazyClients(HUGE, pc.small, Seed(1))
    whole = simulate(job(stop=Stop(rounds=5)), people, out=tmp_path / "whole")

    def stop(record):
        if record["round"] == 2:
            raise KeyboardInterrupt

    out = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        simulate(job(stop=Stop(rounds=5)), people, out=out, observers=[stop])
    with pytest.raises(CheckpointError, match="another data set"):
        simulate(job(stop=Stop(rounds=5)), replace(people, seed=Seed(2)), out=out, resume=True)
    rest = simulate(job(stop=Stop(rounds=5)), people, out=out, resume=True)
    assert rest.model_hash == whole.model_hash


def test_evaluating_everybody_is_refused_and_a_sample_is_not():
    people, tests = (LazyClients(HUGE, pc.small, Seed(s)) for s in (1, 2))
    with pytest.raises(JobConflict, match=r"all 10,000,000 clients.*\n?.*sample"):
        simulate(job(), people, held_out=tests)
    with pytest.raises(JobConflict, match=r"pool the rows"):
        simulate(job(compare=True), people, held_out=tests.sample(5, Seed(0)))
    run = simulate(job(), people, held_out=tests.sample(5, Seed(0)))
    assert len(run.rounds[-1]["sites"]) == 5
    assert "rows to test on at 5 of 10,000,000 clients only" in run.manifest["notes"]
    assert simulate(job(federated=False), people, held_out=tests).status == "completed"


def test_held_out_rows_of_another_population_are_refused():
    people = LazyClients(20, pc.small)
    with pytest.raises(DataError, match="30 clients, but there are 20"):
        simulate(job(), people, held_out=LazyClients(30, pc.small))
    with pytest.raises(DataError, match="'client-9' is not a client"):
        simulate(job(), people, held_out={"client-9": pc.small(0, Seed(0))})


def test_a_client_that_cannot_be_made_is_that_clients_failure():
    people = LazyClients(500, pc.small, rows=5)
    run = simulate(job(60), people)
    for record in run.rounds:
        wrong = {c for c in record["invited"] if people.ids.index(c) % 4 != 2}
        assert set(record["missing"]) == wrong
        assert set(record["contributed"]) == set(record["invited"]) - wrong
        assert all("but 5 were announced" in why for why in record["missing"].values())


def test_the_report_counts_those_that_nobody_invited(tmp_path):
    simulate(job(), LazyClients(HUGE, pc.small), out=tmp_path)
    page = RunFolder.open(tmp_path).report.read_text()
    assert "24 of 10,000,000 clients contributed at least once" in page
    assert "10,000,000" in page
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert len(manifest["data"]) == 24
    assert all(len(entry["fingerprint"]) == 64 for entry in manifest["data"].values())
    assert (tmp_path / "manifest.json").stat().st_size < 20_000
