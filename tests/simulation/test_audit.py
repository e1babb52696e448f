"""An audit finds what a model remembers, and finds nothing where nothing is learned."""

import numpy as np
import pytest

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, JobError
from atoll.core.local import LocalWork, Optimizer
from atoll.job.build import Job
from atoll.job.islands import Islands
from atoll.models.linear import LinearTrainer
from atoll.runtime.loop import Stop
from atoll.simulation.audit import Reported, audit_job

WIDE = 60


def job(lr, rows=40, **changes):
    """Two clients with labels that are pure chance: what the model knows, it remembers."""
    draw = np.random.default_rng(0)
    train = {
        name: Examples(draw.normal(size=(rows, WIDE)), draw.integers(0, 2, rows)) for name in "ab"
    }
    return Job(
        LinearTrainer("logistic", WIDE),
        local=LocalWork(epochs=20, batch_size=0, optimizer=Optimizer(lr=lr)),
        stop=Stop(3),
        islands=lambda seed: Islands(train),
        **changes,
    )


def test_a_model_that_remembers_is_found_out():
    found = audit_job(job(lr=2.0), models=8, rows=1000)
    assert found["rows"] == 64  # four fifths of 80
    assert found["membership"]["lira"]["auc"] > 0.8
    assert found["membership"]["loss"]["auc"] > 0.8
    assert found["one_run"]["epsilon"] > 0.3
    assert found["one_run"]["holds"] is None


def test_a_model_that_learns_nothing_tells_nothing_and_the_same_twice():
    once, twice = (audit_job(job(lr=1e-300), models=6, rows=30) for _ in range(2))
    assert once["one_run"]["epsilon"] == 0.0
    assert {**once, "seconds": 0} == {**twice, "seconds": 0}


def test_a_promise_that_is_false_is_contradicted():
    found = audit_job(job(lr=2.0), models=8, rows=1000, reported=Reported(0.05, 1e-5))
    assert (found["one_run"]["reported"], found["one_run"]["holds"]) == (0.05, False)


def test_progress_is_told():
    calls = []
    audit_job(job(lr=0.1), models=4, rows=20, told=lambda done, of: calls.append((done, of)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_what_cannot_be_audited_is_refused():
    with pytest.raises(JobError, match="3 models"):
        audit_job(job(0.1), models=3)
    with pytest.raises(DataError, match="20 at least"):
        audit_job(job(0.1, rows=8))
    with pytest.raises(JobError, match="no data"):
        audit_job(Job(LinearTrainer("logistic", 2)))
