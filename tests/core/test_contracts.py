"""Where algorithms and trainers meet: weights, and a client's whole vector."""

from dataclasses import replace

import numpy as np
import pytest

from atoll.core.contracts import Examples, Trainer, Weighting, Work
from atoll.core.errors import JobError
from atoll.core.layout import Entry, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Mean
from atoll.core.seeds import Seed


class Recorder:
    """A trainer that remembers what it was asked."""

    corrects = True

    def __init__(self, *entries):
        self.layout = Layout.of(entries)
        self.asked = []

    def initial(self, seed):
        self.asked.append(seed)
        return np.arange(self.layout.size, dtype=np.float32)

    def fit(self, parameters, data, **asked):
        self.asked.append(asked)
        return Fit(parameters, 1, 0.1, len(data), 0.0)

    def gradient(self, parameters, data):
        return -parameters, float(len(data))

    def evaluate(self, parameters, data):
        return {"loss": Mean.of(0.0, len(data))}


BODY, HEAD = Entry("body", (2,)), Entry("head", (1,), personal=True)
ROWS = Examples(np.zeros((3, 2)), np.zeros(3))


def work(*entries):
    return Work("bern", 3.0, Recorder(*entries), ROWS, LocalWork(), Seed(1) / "round" / 4, 4)


def test_weights_by_examples_uniform_and_given():
    assert Weighting().of("bern", 30) == 30.0
    assert Weighting("uniform").of("bern", 30) == 1.0
    assert Weighting("given", {"bern": 0.6}).of("bern", 30) == 0.6


def test_a_plain_class_with_the_right_methods_is_a_trainer():
    assert isinstance(Recorder(BODY), Trainer)
    assert not isinstance(object(), Trainer)


def test_without_personal_entries_the_shared_vector_is_the_whole():
    shared = np.ones(2, np.float32)
    assert work(BODY).full(shared, {}) is shared


def test_a_personal_part_comes_from_memory():
    whole = work(BODY, HEAD).full(np.ones(2, np.float32), {"personal": np.array([9], np.float32)})
    assert whole.tolist() == [1.0, 1.0, 9.0]
    assert whole.dtype == np.float32


def test_a_client_without_memory_starts_from_the_initial_personal_part_in_every_round():
    task = work(BODY, HEAD)
    later = replace(task, seed=Seed(1) / "round" / 9)
    for each in (task, later):
        assert each.full(np.ones(2, np.float32), {}).tolist() == [1.0, 1.0, 2.0]
    assert task.trainer.asked == [Seed(1) / "initial"] * 2


def test_fitting_passes_the_tasks_parts_on():
    task = work(BODY)
    rule = LocalRule(mu=0.5)
    start = np.zeros(2, np.float32)
    assert task.fit(start).parameters is start
    task.fit(start, rule)
    plain, ruled = task.trainer.asked
    assert plain["rule"].trivial
    assert ruled == {"work": task.local, "rule": rule, "seed": task.seed / "fit", "round": 4}


def test_a_task_knows_its_rows():
    task = work(BODY)
    assert task.examples == len(ROWS) == 3
    assert task.gradient(np.ones(2))[1] == 3.0


def test_an_unlisted_client_has_no_given_weight():
    with pytest.raises(JobError, match="basel"):
        Weighting("given", {"bern": 0.6}).of("basel", 30)


def test_a_misspelt_weighting_does_not_pass_for_another():
    with pytest.raises(JobError, match="did you mean 'uniform'"):
        Weighting("unifrom")
