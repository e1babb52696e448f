"""What a private trainer looks for in a module, a loss and rows before it trains, and refuses."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, JobConflict
from atoll.core.local import LocalWork
from atoll.core.seeds import Seed

sys.path.insert(0, str(Path(__file__).parent))

from private_modules import dense, fit, private, some


def test_every_fault_is_named_at_once():
    class Mixing(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    def build():
        return nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), Mixing(), nn.BatchNorm1d(4), nn.Linear(4, 3)
        )

    trainer = private(build)
    with pytest.raises(JobConflict) as refused:
        fit(trainer, some((4,)), LocalWork())
    text = str(refused.value)
    assert text.count("BatchNorm1d mixes the rows") == 2
    assert "depends on the other rows" in text
    assert "GroupNorm" in text
    assert len(trainer.faults(some((4,)))) == 3


def test_statistics_losses_and_dtypes_that_would_leak_are_found():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += x.sum()
            return x

    counting = private(lambda: nn.Sequential(Counting(), nn.Linear(4, 3)))
    assert [f.place for f in counting.faults(some((4,)))] == ["0.seen"]
    weighted = partial(functional.cross_entropy, weight=torch.tensor([1.0, 5.0, 2.0]))
    assert [f.place for f in private(dense, loss=weighted).faults(some((4,)))] == ["loss"]
    norm = private(
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3),
            nn.InstanceNorm1d(4, track_running_stats=True),
            nn.Flatten(),
            nn.Linear(20, 3),
        )
    )
    assert "keeps statistics" in str(norm.faults(some((2, 7)))[0])
    half = private(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).half())
    assert any("float16" in str(f) for f in half.faults(some((4,))))
    frozen = dense().requires_grad_(False)
    assert "nothing" in str(private(lambda: frozen).faults(some((4,)))[0])
    assert private(dense).faults(some((4,))) == []


class Centred(nn.Linear):
    """What the first batch was moves the gradients of all that follow."""

    centre = None

    def forward(self, x):
        if self.centre is None:
            self.centre = x.detach().mean()
        return super().forward(x - self.centre)


class Averages(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.mean = torch.zeros(4)

    def forward(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return super().forward(x)


@pytest.mark.parametrize("kind", [Centred, Averages])
def test_a_module_that_keeps_something_of_its_rows_is_refused(kind):
    trainer = private(partial(kind, 4, 3))
    with pytest.raises(JobConflict, match="keeps something of a batch"):
        fit(trainer, some((4,)), LocalWork())


def test_an_augmentation_that_mixes_rows_is_refused():
    def mixup(x, noise):
        return 0.7 * x + 0.3 * x[torch.randperm(len(x), generator=noise)]

    with pytest.raises(JobConflict, match="augment: a row it gives depends on the other rows"):
        fit(private(dense, augment=mixup), some((4,)), LocalWork())

    def noisy(x, noise):
        return x.add_(torch.randn(x.shape, generator=noise))

    assert private(dense, augment=noisy).faults(some((4,))) == []


def test_rows_that_a_loss_ignores_are_refused():
    """The mean over the others would grow with each of them."""
    rows = some((4,))
    for label in (-1, -100):
        targets = rows.targets.copy()
        targets[3] = label
        with pytest.raises(DataError, match=f"target {label} in row 3"):
            fit(private(dense), Examples(rows.features, targets), LocalWork())
    ignoring = private(dense, loss=nn.CrossEntropyLoss(ignore_index=1))
    assert [f.place for f in ignoring.faults(rows)] == ["loss"]


@pytest.mark.parametrize("table", [1, 2])
def test_made_up_rows_that_a_module_does_not_know_are_a_fault(table):
    trainer = private(lambda: nn.Sequential(nn.Embedding(table, 4), nn.Flatten(), nn.Linear(12, 1)))
    data = some((3,))
    found = trainer.faults(Examples(data.features * 0, data.targets * 0))
    assert "out of" in str(found[0])


def test_a_check_leaves_the_module_as_it_was():
    trainer = private(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    trainer.faults(some((4,)))
    state = trainer.module_with(trainer.initial(Seed(0))).state_dict()
    assert state["1.num_batches_tracked"] == 0
    assert not state["1.running_mean"].any()


def test_precision_and_second_clipping_are_refused():
    with pytest.raises(JobConflict, match="bfloat16"):
        private(dense, precision="bfloat16")
    with pytest.raises(JobConflict, match="clip_norm"):
        fit(private(dense), some((4,)), LocalWork(clip_norm=1.0))
