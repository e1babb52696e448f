"""Odd modules go into a vector and come out unchanged."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from atoll.core.contracts import Examples
from atoll.core.errors import LayoutError
from atoll.core.local import LocalRule, LocalWork
from atoll.core.seeds import Seed
from atoll.models.torch.adapter import TorchTrainer


class Odd(nn.Module):
    """Every kind of entry at once."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.low = nn.Parameter(torch.tensor([0.1, 6e-8], dtype=torch.float16))
        self.brain = nn.Parameter(torch.tensor([0.1, 3e38], dtype=torch.bfloat16))
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("whole", torch.tensor([[-7, 1 << 20]]))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("wide", torch.tensor([2.5]).expand(3))
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, x):
        z = self.frozen(self.norm(self.body(x))) * self.scalar
        return z + self.low.float()[0] + self.brain.float()[0] + self.wide


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.again = nn.Linear(3, 3, bias=False)
        self.again.weight = self.first.weight
        self.shared = nn.Sequential(self.first, nn.Linear(3, 2))

    def forward(self, x):
        return self.shared(self.again(x))


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.tensor([1 / 3], dtype=torch.float64))
        self.single = nn.Linear(2, 2)
        self.register_buffer("count", torch.tensor(2**24 + 1))

    def forward(self, x):
        return self.single(x.float()) * self.own.float()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(4, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.cell(x[:, None])[0][:, -1])


class Heavy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 2))

    def forward(self, x):
        return self.layer(x)


MODULES = {"odd": Odd, "tied": Tied, "double": Double, "lstm": Recurrent, "weight norm": Heavy}


def same(one, two):
    assert list(one) == list(two)
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype, name
        assert tensor.equal(two[name]), name


@pytest.mark.parametrize("kind", MODULES.values(), ids=MODULES)
def test_a_module_comes_out_of_its_vector_unchanged(kind):
    torch.manual_seed(5)
    module = kind()
    before = copy.deepcopy(module.state_dict())
    trainer = TorchTrainer(module)
    vector = trainer.initial(Seed(0))
    same(trainer.state_dict_from(vector), before)
    again = trainer.module_with(vector)
    same(again.state_dict(), before)
    assert again.training is False
    fresh = TorchTrainer(kind)
    same(fresh.state_dict_from(vector), before)
    # the same through the working copy that trains: zero steps leave every bit
    data = Examples(np.ones((2, 4), np.float32), np.array([0, 1]))
    none = LocalWork(epochs=1e-12)
    got = fresh.fit(vector, data, work=none, rule=LocalRule(), seed=Seed(1), round=0)
    assert got.steps == 0
    assert got.parameters.tobytes() == vector.tobytes()


def test_dtypes_regions_and_names_of_the_layout():
    layout = TorchTrainer(Odd, personal=["norm.*"]).layout
    entries = {e.name: e for e in layout.entries}
    assert layout.dtype == "float32"
    assert "scratch" not in entries
    assert entries["low"].dtype == "float16"
    assert entries["brain"].dtype == "float32"
    assert entries["whole"].dtype == "int64"
    assert entries["flags"].dtype == "bool"
    assert not entries["frozen.weight"].trainable
    assert not entries["norm.running_mean"].trainable
    assert entries["norm.num_batches_tracked"].personal
    assert entries["norm.weight"].personal
    assert entries["norm.weight"].trainable


def test_tied_weights_are_one_entry_and_stay_tied():
    trainer = TorchTrainer(Tied)
    assert [(e.name, e.aliases) for e in trainer.layout.entries] == [
        ("first.weight", ("again.weight", "shared.0.weight")),
        ("shared.1.weight", ()),
        ("shared.1.bias", ()),
    ]
    module = trainer.module_with(trainer.initial(Seed(0)))
    assert module.first.weight is module.again.weight


def test_a_double_or_a_big_whole_number_widens_the_vector():
    assert TorchTrainer(Double).layout.dtype == "float64"
    single = nn.Linear(2, 2)
    single.register_buffer("count", torch.tensor(2**24 + 1))
    assert TorchTrainer(single).layout.dtype == "float64"
    single.register_buffer("count", torch.tensor(2**53 + 1))
    with pytest.raises(LayoutError, match="count"):
        _ = TorchTrainer(single).layout


def test_tensors_that_no_vector_holds_are_all_named():
    module = nn.ModuleDict({"lazy": nn.LazyLinear(2)})
    module.register_buffer("wave", torch.zeros(2, dtype=torch.complex64))
    module.register_buffer("ghost", torch.zeros(2, device="meta"))
    with pytest.raises(LayoutError) as caught:
        _ = TorchTrainer(nn.ModuleList([module])).layout
    text = str(caught.value)
    for name in ("0.lazy.weight", "0.lazy.bias", "0.wave", "0.ghost"):
        assert name in text


def test_a_trainer_crosses_processes_without_its_buffers(rows, work):
    trainer = TorchTrainer(Odd, classes=3)
    vector, data = trainer.initial(Seed(3)), rows(12, classes=3, dtype="float32")

    def fit(t):
        return t.fit(vector, data, work=work(batch_size=4), rule=LocalRule(), seed=Seed(1), round=0)

    size = len(pickle.dumps(trainer))
    first = fit(trainer)
    assert len(pickle.dumps(trainer)) < size + 2000
    other = pickle.loads(pickle.dumps(trainer))
    assert fit(other).parameters.tobytes() == first.parameters.tobytes()
    assert other.initial(Seed(3)).tobytes() == vector.tobytes()


def test_a_given_module_is_copied_and_crosses_too():
    module = nn.Linear(2, 2)
    trainer = TorchTrainer(module)
    before = trainer.initial(Seed(0))
    with torch.no_grad():
        module.weight.zero_()
    assert trainer.initial(Seed(1)).tobytes() == before.tobytes()
    assert pickle.loads(pickle.dumps(trainer)).initial(Seed(2)).tobytes() == before.tobytes()


def test_a_foreign_vector_is_refused():
    with pytest.raises(LayoutError, match="shape"):
        TorchTrainer(Tied).module_with(np.zeros(3, np.float32))
