"""A single dense layer is trained as the regression that it is, held against its clients one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from atoll.core.contracts import Examples, Lane
from atoll.core.errors import AtollError
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.models.torch.adapter import TorchTrainer

WORK = LocalWork(epochs=2.0, batch_size=4, optimizer=Optimizer(lr=0.1, weight_decay=0.01))
SIZES = (9, 4, 1, 13)


def lanes(work=WORK, shape=(6,), dtype=np.float32, rule=None):
    made = []
    for i, n in enumerate(SIZES):
        rng = np.random.default_rng(i)
        rows = Examples(rng.normal(size=(n, *shape)).astype(dtype), rng.integers(3, size=n))
        made.append(Lane(rows, work, rule or LocalRule(), Seed(i), 1.0 + i))
    return made


def one_by_one(trainer, start, group):
    fits = [
        trainer.fit(start, x.data, work=x.work, rule=x.rule, seed=x.seed, round=2) for x in group
    ]
    change = sum(x.weight * (f.parameters - start) for x, f in zip(group, fits, strict=True))
    return change, [f.steps for f in fits], [f.loss for f in fits]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (lambda bias: nn.Linear(6, 3, bias=bias), (6,)),
        (lambda bias: nn.Sequential(nn.Flatten(), nn.Linear(6, 3, bias=bias)), (2, 3)),
    ],
)
def test_a_group_moves_as_its_clients_do_one_by_one(module, shape, dtype, bias):
    torch.manual_seed(0)
    trainer = TorchTrainer(module(bias).to(getattr(torch, dtype)))
    start = trainer.initial(Seed(0))
    rule = LocalRule(mu=0.3, anchor=start)
    for work in (WORK, replace(WORK, clip_norm=0.05)):
        group = lanes(work, shape, dtype, rule)
        assert trainer.explain(work, group[0].data).startswith("stacked")
        found = trainer.fit_together(start, group, round=2)
        change, steps, losses = one_by_one(trainer, start, group)
        near = {"float32": 2e-6, "float64": 1e-13}[dtype]
        np.testing.assert_allclose(found.change, change, rtol=0, atol=near)
        assert list(found.steps) == steps
        np.testing.assert_allclose(found.losses, losses, rtol=near)


@pytest.mark.parametrize(
    ("trainer", "work"),
    [
        (TorchTrainer(nn.Linear(6, 3), path="algebra"), WORK),
        (TorchTrainer(nn.Linear(6, 3), path="general"), WORK),
        (TorchTrainer(nn.Linear(6, 3), loss="nll_sum"), WORK),
        (TorchTrainer(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))), WORK),
        (TorchTrainer(nn.Linear(6, 3)), replace(WORK, optimizer=Optimizer("adam", lr=0.1))),
        (TorchTrainer(nn.Linear(6, 3)), replace(WORK, optimizer=Optimizer(lr=0.1, momentum=0.9))),
    ],
)
def test_what_is_no_plain_small_regression_goes_its_own_way(trainer, work):
    assert not trainer.explain(work, lanes()[0].data).startswith("stacked")


def test_personal_and_large_regressions_go_their_own_way():
    rows = lanes()[0].data
    personal = TorchTrainer(nn.Linear(6, 3), personal=["bias"])
    assert not personal.explain(WORK, rows).startswith("stacked")
    wide = Examples(np.zeros((9, 70_000), np.float32), np.zeros(9, np.int64))
    large = TorchTrainer(nn.Linear(70_000, 3))
    assert not large.explain(WORK, wide).startswith("stacked")


@pytest.mark.parametrize(
    "targets",
    [
        np.array([0, 1, 2, 0, 1, 2, 0, 1, -100]),  # torch leaves such rows out
        np.full((9, 3), 1 / 3, np.float32),
        np.zeros((9, 1), np.int64),
    ],
)
def test_targets_that_torch_alone_understands_are_left_to_it(targets):
    trainer = TorchTrainer(nn.Linear(6, 3))
    rows = Examples(np.zeros((9, 6), np.float32), targets)
    group = [Lane(rows, WORK, LocalRule(), Seed(0), 1.0)]
    with pytest.raises(AtollError):
        trainer.fit_together(trainer.initial(Seed(0)), group, round=0)
