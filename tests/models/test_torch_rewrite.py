"""Recorded steps in operations that do less: the same values, most of them to the last bit."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from atoll.core.contracts import Examples
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.models.torch import fit as torch_fit
from atoll.models.torch.adapter import TorchTrainer
from atoll.models.torch.record import record
from atoll.models.torch.rewrite import rewritten, scored

WORK = LocalWork(2, batch_size=4, optimizer=Optimizer(lr=0.1))
RELU = torch.ops.aten.relu.default


def pooled(**pool):
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2, **pool),
        nn.Conv2d(3, 4, 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class Twice(nn.Module):
    """What is rectified is pooled, and read once more."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3 * 3 * 3 + 3, 3)

    def forward(self, x):
        h = torch.relu(self.first(x))
        rest = nn.functional.max_pool2d(h, 2).flatten(1)
        return self.last(torch.cat([rest, h.sum((2, 3))], 1))


class Changed(nn.Module):
    """What goes into the rectifier is changed before the pooling, under another name of it or the same."""

    def __init__(self, other):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(27, 3)
        self.named = torch.ops.aten.alias if other else nn.Identity()

    def forward(self, x):
        h = self.first(x)
        rectified = torch.relu(self.named(h))
        h.add_(1.0)
        return self.last(nn.functional.max_pool2d(rectified, 2).flatten(1))


def tape_of(module):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, 2, 6, 6, generator=draw)
    y = torch.tensor([0, 2, 1, 1])

    def forward(module, loss, x, y):
        return loss(module(x), y)

    return record(forward, module, nn.functional.cross_entropy, list(module.parameters()), (x, y))


def rectified(tape):
    return [call.args[0].numel() for call in tape.calls if call.func is RELU]


def test_a_rectifier_goes_behind_the_pooling():
    tape = tape_of(pooled())
    assert rectified(tape) == [4 * 3 * 36, 4 * 4 * 4]
    assert rectified(rewritten(tape)) == [4 * 3 * 9, 4 * 4 * 1]


def test_what_flows_back_is_cut_off_in_one_order_of_memory():
    module = pooled().to(memory_format=torch.channels_last)
    tape = rewritten(tape_of(module))
    back = [c for c in tape.calls if c.func is torch.ops.aten.threshold_backward.default]
    assert len(back) == 2
    assert all(c.args[0].stride() == c.args[1].stride() == c.out.stride() for c in back)


def test_it_stays_where_something_else_reads_it_or_nothing_gets_smaller():
    for module in (Twice(), pooled(stride=1, padding=1)[:3] + nn.Sequential(nn.Flatten())):
        tape = tape_of(module if isinstance(module, Twice) else module.append(nn.Linear(147, 3)))
        assert rectified(rewritten(tape)) == rectified(tape)


@pytest.mark.parametrize("other", [False, True])
def test_it_stays_where_what_goes_in_is_changed_before_the_pooling(other):
    tape = tape_of(Changed(other))
    assert rectified(rewritten(tape)) == rectified(tape) == [4 * 3 * 36]


@pytest.mark.parametrize("pool", [{}, {"padding": 1}, {"ceil_mode": True}, {"stride": 3}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_client_ends_at_the_same_bits(pool, precision, monkeypatch):
    rng = np.random.default_rng(1)
    # Rounded, so that largest values are tied, and shifted, so that many pools have nothing positive.
    x = (rng.normal(size=(9, 2, 6, 6)).round(1) - 0.3).astype(np.float32)
    data = Examples(x, rng.integers(3, size=9))

    def ends():
        module = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, **pool),
            nn.Flatten(),
            nn.LazyLinear(3),
        )
        torch.manual_seed(0)
        module(torch.zeros(1, 2, 6, 6))
        trainer = TorchTrainer(module, path="compiled", precision=precision)
        start = np.random.default_rng(2).normal(size=trainer.layout.size).astype(np.float32)
        done = trainer.fit(start, data, work=WORK, rule=LocalRule(), seed=Seed(1), round=0)
        assert trainer.explain(WORK, data) == "compiled"
        return done.parameters.tobytes(), done.loss

    moved = ends()
    monkeypatch.setattr(torch_fit, "rewritten", lambda tape: tape)
    assert ends() == moved


def test_a_value_that_is_no_number_is_passed_on_all_the_same():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 2, 6, 6)).astype(np.float32)
    x[1, 0, 2, 2] = np.nan
    trainer = TorchTrainer(pooled(), path="compiled")
    start = trainer.initial(Seed(0))
    done = trainer.fit(
        start,
        Examples(x, np.array([0, 1, 2, 0])),
        work=WORK,
        rule=LocalRule(),
        seed=Seed(1),
        round=0,
    )
    assert np.isnan(done.loss)
    assert np.isnan(done.parameters).any()


def classifier(ignored=-100, **options):
    def forward(module, loss, x, y):
        return nn.functional.cross_entropy(module(x), y, ignore_index=ignored, **options)

    return forward


def taped(forward, labels=(0, 2, 1, 1)):
    torch.manual_seed(0)
    net, x, y = nn.Linear(6, 3), torch.randn(4, 6), torch.tensor(labels)
    return record(forward, net, None, list(net.parameters()), (x, y))


def names(tape):
    return {str(call.func).split(".")[1] for call in tape.calls}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_cross_entropy_reads_a_one_at_each_label(reduction):
    tape = taped(classifier(reduction=reduction))
    found = scored(tape)
    assert found.hot.shape == (4, 3)
    assert {n for n in names(tape) if "nll" in n}
    assert not {n for n in names(found.tape) if "nll" in n}


def test_other_losses_stay_as_they_are():
    weights = torch.tensor([1.0, 2.0, 3.0])
    others = {
        "weights": classifier(weight=weights),
        "a class is left out": classifier(ignored=2),
        "smoothed": classifier(label_smoothing=0.1),
        "single": classifier(reduction="none"),
        "scaled": lambda m, loss, x, y: 2 * classifier()(m, loss, x, y),
        "other labels": lambda m, loss, x, y: classifier()(m, loss, x, 2 - y),
        "twice": lambda m, loss, x, y: classifier()(m, loss, x, y) + classifier()(m, loss, -x, y),
    }
    for name, forward in others.items():
        whole = forward
        if name == "single":
            whole = lambda m, loss, x, y: forward(m, loss, x, y).mean()  # noqa: B023, E731
        assert scored(taped(whole)) is None, name


def test_rows_of_a_negative_label_are_left_out_as_torch_leaves_them_out():
    rng = np.random.default_rng(1)
    labels = np.array([0, 2, -100, 1, 1, 0, -100, 2])
    clients = [
        Examples(rng.normal(size=(8, 6)).astype(np.float32), y) for y in (labels, abs(labels) % 3)
    ]

    def fit(path, data):
        torch.manual_seed(3)
        trainer = TorchTrainer(nn.Linear(6, 3), path=path)
        start = trainer.initial(Seed(0))
        return trainer.fit(start, data, work=WORK, rule=LocalRule(), seed=Seed(1), round=0)

    for data in clients:
        general, compiled = (fit(path, data) for path in ("general", "compiled"))
        np.testing.assert_allclose(compiled.parameters, general.parameters, rtol=1e-5, atol=1e-6)
        assert compiled.loss == pytest.approx(general.loss, rel=1e-5)
