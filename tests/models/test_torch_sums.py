"""Clients whose changes are added up in the model's own memory."""

import numpy as np
import pytest

pytest.importorskip("torch")

from torch import nn

from atoll.core.contracts import Examples, Lane
from atoll.core.errors import JobConflict
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.models.torch.adapter import TorchTrainer
from atoll.models.torch.sums import clients_to_a_sum

WORK = LocalWork(batch_size=4, optimizer=Optimizer(lr=0.05, momentum=0.5))


def net():
    return nn.Sequential(nn.Linear(6, 8000), nn.ReLU(), nn.Linear(8000, 2))


def lanes_of(sizes, rule=None):
    rng = np.random.default_rng(3)
    return [
        Lane(
            Examples(rng.normal(size=(n, 6)).astype(np.float32), rng.integers(2, size=n)),
            WORK,
            rule or LocalRule(),
            Seed(i),
            n / 3,
        )
        for i, n in enumerate(sizes)
    ]


def test_the_sum_is_that_of_the_changes_of_each():
    trainer = TorchTrainer(net)
    start = trainer.initial(Seed(0))
    lanes = lanes_of([9, 1, 4], LocalRule(mu=0.3, anchor=start))
    done = trainer.fit_together(start, lanes, round=0)
    fits = [
        trainer.fit(start, one.data, work=WORK, rule=one.rule, seed=one.seed, round=0)
        for one in lanes
    ]
    change = sum(
        one.weight * (f.parameters - start.astype(float))
        for one, f in zip(lanes, fits, strict=True)
    )
    assert np.abs(done.change - change).max() <= 1e-6 * np.abs(change).max()
    assert list(done.steps) == [3, 1, 1]
    assert list(done.losses) == [f.loss for f in fits]


def test_a_sum_that_is_not_finite_is_refused():
    trainer = TorchTrainer(net)
    lanes = lanes_of([4, 4])
    lanes[1].data.features[2, 1] = np.inf
    with pytest.raises(JobConflict, match="not finite"):
        trainer.fit_together(trainer.initial(Seed(0)), lanes, round=0)


def test_clients_share_a_sum_where_a_model_is_large_and_their_work_short():
    large = TorchTrainer(net)
    assert large.together(WORK, 128) == 5
    assert large.together(WORK, 129) == 1  # 33 steps: what is saved is little beside them
    assert [large.together(WORK, 8, clients=n) for n in (10, 31, 32, 100)] == [1, 1, 2, 5]
    assert TorchTrainer(net, path="general").together(WORK, 8) == 1
    assert TorchTrainer(nn.Linear(6, 2)).together(WORK, 8) == 1
    own = TorchTrainer(net, personal=["2.*"])
    assert own.together(WORK, 8) == 1
    assert clients_to_a_sum(large.layout, WORK, 0) == 1
    assert large.explain(WORK, lanes_of([8])[0].data) == "compiled"


def test_control_variates_want_large_products_or_single_clients():
    trainer = TorchTrainer(net)
    start = trainer.initial(Seed(0))
    with pytest.raises(JobConflict, match="do not pay"):
        trainer.fit_controlled(start, lanes_of([4, 4]), np.zeros_like(start), round=0)
