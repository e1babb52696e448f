"""Lanes against the client-by-client trainer: equal up to rounding, whatever the clients are."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from atoll.algorithms import FedAvg, FedNova, Scaffold
from atoll.core.contracts import Examples, Lane, LaneTrainer, Trainer
from atoll.core.errors import DataError, JobError
from atoll.core.local import LocalRule, LocalWork, Optimizer, Schedule
from atoll.core.seeds import Seed
from atoll.models.networks import mlp
from atoll.models.torch.adapter import TorchTrainer
from atoll.models.torch.lanes import LanesTrainer
from atoll.runtime.client import Parts
from atoll.runtime.loop import Loop, Stop
from atoll.runtime.processes import ProcessExecutor
from atoll.runtime.serial import SerialExecutor

SIZES = (12, 1, 7, 5, 10, 3, 1, 6)
WORK = LocalWork(epochs=2, batch_size=5, optimizer=Optimizer(lr=0.1))


class Branches(nn.Module):
    """Two ways that meet, tied weights, a frozen layer, and a buffer of whole numbers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.again = self.a
        self.register_buffer("times", torch.tensor([2, 3]))

    def forward(self, x):
        x = torch.tanh(self.a(x)) + self.frozen(self.b(x))
        return self.out(self.again(x)) * self.times.sum()


NETS = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
    "branches": Branches,
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)),
    "cnn": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 3),
    ),
    "embedding": lambda: nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(20, 3)),
}


def made(net="mlp", dtype=torch.float64, **options):
    torch.manual_seed(0)
    return TorchTrainer(NETS[net]().to(dtype), **options)


def clients(sizes=SIZES, classes=3, words=False, seed=0):
    rng = np.random.default_rng(seed)

    def one(n):
        x = rng.integers(9, size=(n, 4)) if words else rng.normal(size=(n, 4))
        return Examples(x, rng.integers(classes, size=n) if classes else rng.normal(size=n))

    return [one(n) for n in sizes]


def lanes_of(data, work=WORK, rules=None):
    rules = rules or [LocalRule()] * len(data)
    return [
        Lane(d, work, rule, Seed(3) / i, 1.0)
        for i, (d, rule) in enumerate(zip(data, rules, strict=True))
    ]


def starts(trainer, count, noise=0.05):
    """A start of its own for every client, as with personal layers."""
    part, rng = trainer.layout.trainable, np.random.default_rng(5)
    found = [trainer.initial(Seed(0)) for _ in range(count)]
    for vector in found:
        vector[part] += (noise * rng.normal(size=vector[part].shape)).astype(vector.dtype)
    return found


def singly(trainer, vectors, lanes, round=0):
    return [
        trainer.fit(v, e.data, work=e.work, rule=e.rule, seed=e.seed, round=round)
        for v, e in zip(vectors, lanes, strict=True)
    ]


def assert_lanes_equal_single_clients(trainer, lanes, near=1e-12, round=0, **how):
    beside = LanesTrainer(trainer, **{"width": 3, **how})
    vectors = starts(trainer, len(lanes))
    kept = [v.copy() for v in vectors]
    assert beside.explain(lanes[0].work, lanes[0].data).startswith("lanes")
    found = beside.fit_lanes(vectors, lanes, round=round)
    for one, other, start in zip(found, singly(trainer, kept, lanes, round), vectors, strict=True):
        moved = np.linalg.norm(other.parameters - start)
        assert np.linalg.norm(one.parameters - other.parameters) <= near * max(1, moved)
        assert (one.steps, one.examples) == (other.steps, other.examples)
        assert one.lr_sum == pytest.approx(other.lr_sum)
        assert one.loss == pytest.approx(other.loss, rel=10 * near, nan_ok=True)
        assert moved > 0 or one.steps == 0
    np.testing.assert_array_equal(vectors, kept)


@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("net", NETS)
def test_unequal_clients_end_where_each_ends_alone(net, dtype, near):
    lanes = lanes_of(clients(words=net == "embedding"))
    assert_lanes_equal_single_clients(made(net, dtype), lanes, near)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("sgd", {"momentum": 0.9, "weight_decay": 0.01}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("adam", {"betas": (0.8, 0.9), "weight_decay": 0.01}),
        ("adamw", {"weight_decay": 0.1}),
        ("adagrad", {"eps": 1e-6}),
        ("rmsprop", {"momentum": 0.5}),
        ("rmsprop", {}),
    ],
)
def test_each_lane_has_its_own_optimiser(name, fields):
    work = LocalWork(epochs=2, batch_size=4, optimizer=Optimizer(name, lr=0.02, **fields))
    assert_lanes_equal_single_clients(made(), lanes_of(clients(), work), 1e-11)


@pytest.mark.parametrize(
    "fields",
    [
        {"clip_norm": 0.1},
        {"batch_size": 0},
        {"batch_size": 5, "drop_last": True},
        {"steps": 7, "batch_size": 3},
        {"epochs": 1e-12},  # no step at all
        {"epochs": 4, "schedule": Schedule("step", 0.5, 1, unit="epoch")},
        {"schedule": Schedule("cosine", every=9)},
    ],
    ids=lambda fields: next(iter(fields)) if len(fields) == 1 else "-".join(fields),
)
def test_local_work_is_each_clients_own(fields):
    lanes = lanes_of(clients(), replace(WORK, **fields))
    assert_lanes_equal_single_clients(made(), lanes, round=4)


def test_clients_with_unequal_work_share_a_group():
    lanes = [
        replace(lane, work=replace(WORK, epochs=1 + i % 3, batch_size=2 + i))
        for i, lane in enumerate(lanes_of(clients()))
    ]
    assert_lanes_equal_single_clients(made(), lanes)


@pytest.mark.parametrize("kind", ["fedprox", "scaffold", "both"])
@pytest.mark.parametrize("personal", [(), ("2.*",)], ids=["all shared", "personal head"])
def test_local_rules_act_in_each_lane_on_the_shared_region(kind, personal):
    trainer = made(personal=personal)
    shared, rng = trainer.layout.shared.stop, np.random.default_rng(1)
    rules = [
        LocalRule(
            0.0 if kind == "scaffold" else 0.3,
            None if kind == "scaffold" else rng.normal(size=shared),
            None if kind == "fedprox" else rng.normal(size=shared),
        )
        for _ in SIZES
    ]
    assert_lanes_equal_single_clients(trainer, lanes_of(clients(), rules=rules))


@pytest.mark.parametrize(("loss", "classes"), [("bce", 2), ("mse", 0), ("l1", 0), ("nll_sum", 3)])
def test_every_named_loss_is_taken_apart_into_rows(loss, classes):
    torch.manual_seed(0)
    outputs = 3 if loss == "nll_sum" else 1
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()
    lanes = lanes_of(clients(classes=classes))
    assert_lanes_equal_single_clients(TorchTrainer(net, loss=loss), lanes)


LAYERS = {
    "dense": lambda n, m: [nn.Linear(n, m)],
    "tanh": lambda n, m: [nn.Linear(n, m), nn.Tanh()],
    "relu": lambda n, m: [nn.Linear(n, m), nn.ReLU()],
    # eps this large: two values that hardly differ, normalised, would multiply any rounding by hundreds,
    # so that one client alone, started from another last bit, would end 1e-11 away from itself
    "normed": lambda n, m: [nn.Linear(n, m), nn.LayerNorm(m, eps=0.1)],
    "grouped": lambda n, m: [nn.Linear(n, m), nn.GroupNorm(1, m, eps=0.1)],
    "conv": lambda n, m: [
        nn.Unflatten(1, (1, n)),
        nn.Conv1d(1, 2, 3, padding=1),
        nn.AdaptiveAvgPool1d(m),
        nn.Flatten(),
        nn.Linear(2 * m, m),
    ],
}


@settings(max_examples=25, deadline=None)
@given(
    layers=st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.integers(2, 6)), max_size=3),
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    batch=st.integers(0, 5),
    width=st.integers(2, 4),
    name=st.sampled_from(["sgd", "adamw"]),
)
def test_any_architecture_trains_in_lanes_as_alone(layers, sizes, batch, width, name):
    torch.manual_seed(1)
    parts, n = [], 4
    for kind, m in layers:
        parts += LAYERS[kind](n, m)
        n = m
    trainer = TorchTrainer(nn.Sequential(*parts, nn.Linear(n, 3)).double())
    # an eps this large keeps AdamW from blowing rounding of vanishing gradients up
    work = LocalWork(epochs=1, batch_size=batch, optimizer=Optimizer(name, lr=0.05, eps=1e-3))
    assert_lanes_equal_single_clients(trainer, lanes_of(clients(sizes), work), width=width)


def test_a_client_that_diverges_leaves_its_neighbours_alone():
    trainer = LanesTrainer(made(), width=3)
    data = clients()
    good = trainer.fit_lanes(starts(trainer, len(data)), lanes_of(data), round=0)
    data[2] = Examples(data[2].features * 1e200, data[2].targets)
    mixed = trainer.fit_lanes(starts(trainer, len(data)), lanes_of(data), round=0)
    assert not np.isfinite(mixed[2].parameters).all()
    for i in (0, 1, 3, 4, 5, 6, 7):
        np.testing.assert_array_equal(mixed[i].parameters, good[i].parameters)


def test_what_was_trained_before_leaves_no_trace():
    used, lanes = LanesTrainer(made(), width=3), lanes_of(clients())
    vectors = starts(used, len(lanes))
    used.fit_lanes(starts(used, 5), lanes_of(clients((40, 9, 8, 30, 2))), round=0)
    again = used.fit_lanes(vectors, lanes, round=0)
    fresh = LanesTrainer(made(), width=3).fit_lanes(vectors, lanes, round=0)
    for a, b in zip(again, fresh, strict=True):
        assert a.parameters.tobytes() == b.parameters.tobytes()
        assert a.loss == b.loss


def test_a_group_is_cut_among_the_devices():
    lanes = lanes_of(clients())
    assert_lanes_equal_single_clients(made(), lanes, devices=("cpu", "cpu", "cpu"))
    assert LanesTrainer(made(), width=4, devices=("cpu", "cpu"), refill=3).lanes == 24


def normed():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()


class Centred(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class Counting(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Slowing(nn.Linear):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) / self.calls


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.rand_like(x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(4, 3)

    def forward(self, x):
        return self.cell(x[None])[0][0]


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        (lambda: made(loss=nn.MultiMarginLoss()), "loss function of one's own"),
        (lambda: made(augment=lambda x, noise: x), "augmented"),
        (lambda: TorchTrainer(normed()), r"1 \(BatchNorm1d\) keeps running statistics"),
        (
            lambda: TorchTrainer(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).double()),
            r"1 \(Dropout\) draws random numbers",
        ),
        (lambda: TorchTrainer(nn.Linear(4, 3).requires_grad_(False)), "parameters are none"),
        (lambda: TorchTrainer(Centred(4, 3).double()), "do rows of a batch meet"),
        (lambda: TorchTrainer(Counting(4, 3).double()), "changes buffer 'calls'"),
        (lambda: TorchTrainer(Slowing(4, 3).double()), "keeps state outside its buffers"),
        (lambda: TorchTrainer(Noisy(4, 3).double()), "a trial failed"),
        (lambda: TorchTrainer(Recurrent().double()), "a trial failed"),
    ],
)
def test_what_lanes_cannot_train_is_trained_client_by_client_and_says_why(trainer, says):
    inner = trainer()
    beside, lanes = LanesTrainer(inner, width=3), lanes_of(clients((5, 10)))
    found = beside.explain(WORK, lanes[0].data)
    assert found.startswith("client by client: ")
    with pytest.raises(AssertionError, match=says):
        assert found == ""
    vectors = [inner.initial(Seed(0))] * 2
    for a, b in zip(
        beside.fit_lanes(vectors, lanes, round=0), singly(inner, vectors, lanes), strict=True
    ):
        assert a.parameters.tobytes() == b.parameters.tobytes()


def test_the_row_of_a_padding_index_is_not_trained_in_any_lane():
    table = nn.Sequential(nn.Embedding(9, 3, padding_idx=4), nn.Flatten(), nn.Linear(12, 3))
    inner = TorchTrainer(table.double())
    words = np.random.default_rng(0).integers(9, size=(12, 4))
    lanes = lanes_of([Examples(words, np.arange(12) % 3)] * 3)
    beside = LanesTrainer(inner, width=3)
    assert "has a padding index" in beside.explain(WORK, lanes[0].data)
    vectors = [inner.initial(Seed(0))] * 3
    for fit in beside.fit_lanes(vectors, lanes, round=0):
        found = inner.layout.views(fit.parameters)["0.weight"][4]
        assert found.tolist() == inner.layout.views(vectors[0])["0.weight"][4].tolist()


def test_single_clients_that_lanes_cannot_train_do_not_keep_the_others_out():
    inner, lanes = made(), lanes_of(clients())
    lanes[1] = replace(lanes[1], work=replace(WORK, optimizer=Optimizer("nadam")))
    ignored = lanes[2].data.targets.copy()
    ignored[0] = -100
    lanes[2] = replace(lanes[2], data=Examples(lanes[2].data.features, ignored))
    beside = LanesTrainer(inner, width=3)
    assert "nadam" in beside.explain(lanes[1].work, lanes[1].data)
    assert "ignored" in beside.explain(WORK, lanes[2].data)
    vectors = starts(inner, len(lanes))
    found = beside.fit_lanes(vectors, lanes, round=0)
    for i, (a, b) in enumerate(zip(found, singly(inner, vectors, lanes), strict=True)):
        np.testing.assert_allclose(a.parameters, b.parameters, rtol=0, atol=1e-12)
        assert (a.parameters.tobytes() == b.parameters.tobytes()) or i not in (1, 2)


def test_where_nothing_fits_lanes_no_groups_are_formed():
    assert LanesTrainer(TorchTrainer(normed()), width=8).lanes == 1
    assert LanesTrainer(made(), width=1).lanes == 1
    assert LanesTrainer(made(), width=8).lanes == 16


def test_faulty_rows_are_named():
    beside = LanesTrainer(made(classes=3), width=3)
    start = [beside.initial(Seed(0))]
    short = Examples(np.zeros((3, 4)), np.zeros(2, int))
    with pytest.raises(DataError, match="3 rows of features and 2 targets"):
        beside.fit_lanes(start, lanes_of([short]), round=0)
    with pytest.raises(DataError, match="target 3 in row 1"):
        beside.fit_lanes(start, lanes_of([Examples(np.zeros((2, 4)), np.array([0, 3]))]), round=0)
    with pytest.raises(DataError, match="no rows"):
        beside.fit_lanes(start, lanes_of(clients((0,))), round=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"devices": ("cuda:99",)}, "no device 'cuda:99'"),
        ({"devices": ("gpu",)}, "unknown device 'gpu'"),
        ({"devices": ("meta",)}, "do not run on 'meta'"),
        ({"devices": ()}, "no device is named"),
        ({"width": 0}, "width is 0"),
    ],
)
def test_options_are_checked_when_the_trainer_is_made(options, says):
    with pytest.raises(JobError, match=says):
        LanesTrainer(made(), **options)


def test_everything_else_is_the_inner_trainers():
    inner = made()
    beside, data = LanesTrainer(inner, width=3), clients()[0]
    assert isinstance(beside, Trainer)
    assert isinstance(beside, LaneTrainer)
    start = beside.initial(Seed(0))
    assert beside.corrects
    assert beside.layout is inner.layout
    np.testing.assert_array_equal(beside.gradient(start, data)[0], inner.gradient(start, data)[0])
    assert beside.evaluate(start, data)["loss"] == inner.evaluate(start, data)["loss"]
    assert beside.state_dict_from(start).keys() == beside.module_with(start).state_dict().keys()


ALGORITHMS = {"fedavg": FedAvg(), "fednova": FedNova(), "scaffold": Scaffold()}


def ended(parts, executor, rounds=3):
    end = Loop(parts, executor, stop=Stop(rounds=rounds)).run().progress
    slots = {name: v.tobytes() for name, v in end.state.slots.items()}
    kept = {c: {n: v.tobytes() for n, v in m.items()} for c, m in end.memories.items()}
    return end.state.parameters, (end.state.parameters.tobytes(), slots, kept)


@pytest.mark.parametrize("personal", [(), ("3.*",)], ids=["all shared", "personal head"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_in_lanes_is_the_same_on_every_executor_and_equals_one_without(name, personal):
    options = {"inputs": 4, "hidden": (6,), "classes": 3}
    inner = TorchTrainer(mlp, options, classes=3, personal=personal, path="general")
    data = {
        f"c{i}": Examples(e.features.astype(np.float32), e.targets) for i, e in enumerate(clients())
    }
    local = LocalWork(1, batch_size=4, optimizer=Optimizer(lr=0.05))
    parts = Parts(ALGORITHMS[name], LanesTrainer(inner, width=3), data, Seed(2), local)
    near, serial = ended(parts, SerialExecutor(parts))
    assert parts.trainer._stacks  # the run did go through lanes
    like = parts.algorithm.broadcast(Loop(parts, SerialExecutor(parts)).start().state)
    with closing(ProcessExecutor(parts, like, workers=2)) as executor:
        assert ended(parts, executor)[1] == serial
    plain = replace(parts, trainer=inner)
    alone, bits = ended(plain, SerialExecutor(plain))
    assert np.linalg.norm(near - alone) <= 1e-6 * np.linalg.norm(alone)
    assert bits[2].keys() == serial[2].keys()
