"""Groups that train without single models are held against their clients one by one."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from atoll.core.contracts import Examples, Lane
from atoll.core.errors import JobConflict
from atoll.core.local import LocalRule, LocalWork, Optimizer, Schedule
from atoll.core.seeds import Seed
from atoll.models.networks import Rows
from atoll.models.torch.adapter import TorchTrainer

ROUNDS = 5
NEAR = {"float32": 1e-6, "float64": 1e-12}
CLASSES = 3
WORK = LocalWork(epochs=1.0, batch_size=4, optimizer=Optimizer(lr=0.1))

ACTIVATIONS = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    lambda: nn.GELU(approximate="tanh"),
    lambda: nn.LeakyReLU(0.2),
    nn.SiLU,
]


def examples(n, features=6, classes=CLASSES, seed=0, real=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)).astype(dtype)
    y = rng.normal(size=(n, real)) if real else rng.integers(classes, size=n)
    return Examples(x, y.astype(dtype) if real else y)


def chain(widths=(6, 5, CLASSES), activation=nn.ReLU, bias=True):
    layers = [nn.Flatten()]
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


@st.composite
def chains(draw):
    """(module, loss, targets): a chain of one to four layers, and a loss for it."""
    torch.manual_seed(draw(st.integers(0, 99)))
    loss = draw(st.sampled_from(["cross_entropy", "nll_sum", "bce", "mse"]))
    outputs = draw(st.sampled_from([1, 2])) if loss in ("bce", "mse") else CLASSES
    widths = [6, *draw(st.lists(st.integers(1, 7), max_size=3)), outputs]
    layers = [draw(st.sampled_from([nn.Flatten(), Rows(6), nn.Identity()]))]
    for a, b in itertools.pairwise(widths):
        layers.append(nn.Linear(a, b, bias=draw(st.booleans())))
        if draw(st.booleans()):
            layers.append(draw(st.sampled_from(ACTIVATIONS))())
    if not isinstance(layers[-1], nn.Linear):
        layers.pop()
    return nn.Sequential(*layers), loss, outputs if loss in ("bce", "mse") else 0


@st.composite
def groups(draw):
    module, loss, real = draw(chains())
    optimizer = Optimizer(
        lr=draw(st.sampled_from([0.01, 0.1])), weight_decay=draw(st.sampled_from([0.0, 0.1]))
    )
    work = LocalWork(
        epochs=draw(st.sampled_from([1.0, 0.5, 1.5, 2.0, 2.4])),
        steps=draw(st.sampled_from([None, None, 1, 5])),
        batch_size=draw(st.sampled_from([1, 3, 4, 0, 100])),
        optimizer=optimizer,
        schedule=Schedule(
            draw(st.sampled_from(["constant", "step", "cosine"])),
            gamma=0.5,
            every=2,
            floor=0.1,
            unit=draw(st.sampled_from(["round", "epoch"])),
        ),
        drop_last=draw(st.booleans()),
    )
    sizes = draw(st.lists(st.sampled_from([1, 2, 4, 7, 8, 13]), min_size=2, max_size=5))
    clients = [examples(n, seed=i, real=real) for i, n in enumerate(sizes)]
    if loss == "bce":
        clients = [Examples(c.features, (c.targets > 0).astype(np.float32)) for c in clients]
    fractions = draw(
        st.lists(st.sampled_from([1.0, 0.6]), min_size=len(sizes), max_size=len(sizes))
    )
    works = [replace(work, epochs=work.epochs * f) for f in fractions]
    return module, loss, clients, works, draw(st.sampled_from([0.0, 0.0, 0.5]))


def lanes_for(clients, works, rule, t):
    return [
        Lane(c, w, rule, Seed(7) / t / i, weight=float(len(c)) * (0.5 if i % 2 else 1.0))
        for i, (c, w) in enumerate(zip(clients, works, strict=True))
    ]


def one_by_one(trainer, point, lanes, t, rules=None):
    rules = rules or [lane.rule for lane in lanes]
    return [
        trainer.fit(point, n.data, work=n.work, rule=r, seed=n.seed, round=t)
        for n, r in zip(lanes, rules, strict=True)
    ]


def summed(fits, lanes, point):
    return sum(
        n.weight * (f.parameters.astype(np.float64) - point)
        for f, n in zip(fits, lanes, strict=True)
    )


def near(a, b, dtype):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b)) <= NEAR[dtype] * float(np.linalg.norm(b))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(case=groups())
@settings(deadline=None, max_examples=20)
def test_a_group_changes_by_what_its_clients_change(case, dtype):
    module, loss, clients, works, mu = case
    module = module.double() if dtype == "float64" else module.float()
    apart = TorchTrainer(module, loss=loss, path="general")
    together = TorchTrainer(module, loss=loss, path="algebra")
    assert together.together(works[0], 13) > 1
    a = b = apart.initial(Seed(0))
    for t in range(ROUNDS):
        wanted = lanes_for(clients, works, LocalRule(mu, a), t)
        fits = one_by_one(apart, a, wanted, t)
        total = sum(n.weight for n in wanted)
        a = (a + summed(fits, wanted, a) / total).astype(dtype)
        done = together.fit_together(b, lanes_for(clients, works, LocalRule(mu, b), t), round=t)
        b = (b + done.change.astype(np.float64) / total).astype(dtype)
        assert list(done.steps) == [f.steps for f in fits]
        np.testing.assert_allclose(
            done.losses, [f.loss for f in fits], rtol=20 * NEAR[dtype], atol=20 * NEAR[dtype]
        )
    assert near(b, a, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(case=groups())
@settings(deadline=None, max_examples=15)
def test_control_variates_in_terms_of_rows_are_the_ones_of_whole_vectors(case, dtype):
    """SCAFFOLD's option II: c_i is the mean of the client's last local gradients."""
    module, loss, clients, works, _ = case
    module = module.double() if dtype == "float64" else module.float()
    works = [replace(w, optimizer=replace(w.optimizer, weight_decay=0.0)) for w in works]
    apart = TorchTrainer(module, loss=loss, path="general")
    together = TorchTrainer(module, loss=loss, path="algebra")
    a = b = apart.initial(Seed(0))
    c = np.zeros_like(a)
    d = c.copy()
    own, compact = [np.zeros_like(a) for _ in clients], [{} for _ in clients]
    for t in range(ROUNDS):
        lanes = lanes_for(clients, works, LocalRule(), t)
        total = sum(n.weight for n in lanes)
        fits = one_by_one(apart, a, lanes, t, [LocalRule(shift=c - c_i) for c_i in own])
        new = [
            (c_i - c - (f.parameters - a) / f.lr_sum).astype(dtype)
            for c_i, f in zip(own, fits, strict=True)
        ]
        moved = sum(n.weight * (x - y) for n, x, y in zip(lanes, new, own, strict=True)) / total
        a, c, own = (
            (a + summed(fits, lanes, a) / total).astype(dtype),
            (c + moved).astype(dtype),
            new,
        )
        lanes = [replace(n, own=m) for n, m in zip(lanes, compact, strict=True)]
        done = together.fit_controlled(b, lanes, d, round=t)
        b = (b + done.together.change.astype(np.float64) / total).astype(dtype)
        d, compact = (d + done.control / total).astype(dtype), done.means
    assert near(b, a, dtype)
    # A mean gradient is a difference of weights over a short path: it has fewer good digits.
    gap = max(
        float(np.linalg.norm(together.dense(m, x) - c_i))
        for m, x, c_i in zip(compact, clients, own, strict=True)
    )
    # One of 0 has none at all.
    assert gap <= 1e3 * NEAR[dtype] * max(1e-3, *(float(np.linalg.norm(c_i)) for c_i in own))


def test_where_the_parameters_lie_in_memory_does_not_show():
    """They come from a file in one process and out of shared memory in another."""
    trainer = TorchTrainer(chain((40, 33, 10)), path="algebra")
    clients = [examples(n, 40, 10, n) for n in (9, 17, 30)]
    point = trainer.initial(Seed(0))
    lanes = lanes_for(clients, [WORK] * 3, LocalRule(), 0)
    wanted = trainer.fit_together(point, lanes, round=0).change.tobytes()
    room = np.empty(len(point) + 16, point.dtype)
    for start in range(16):
        there = room[start : start + len(point)]
        there[:] = point
        assert trainer.fit_together(there, lanes, round=0).change.tobytes() == wanted


def trained(trainer, lanes, controlled=False):
    """All that a group's training gives, as bytes."""
    point = trainer.initial(Seed(0))
    if not controlled:
        done, means = trainer.fit_together(point, lanes, round=0), []
        parts = [done.change]
    else:
        found = trainer.fit_controlled(point, lanes, point * 0.1, round=0)
        done, means = found.together, found.means
        parts = [done.change, found.control, *(m[k] for m in means for k in sorted(m))]
    return [p.tobytes() for p in parts], list(done.steps), list(done.losses)


def several(features=6):
    """Groups of other sizes, ways and numbers of epochs, one after the other."""
    sizes = [(13, 13, 13, 13), (2, 13), (7, 4, 9), (1, 1), (8, 8, 8), (30, 3), (5, 5)]
    for i, (rows, epochs, controlled) in enumerate(
        itertools.product(sizes, (1.0, 1.5), (False, True))
    ):
        work = replace(WORK, epochs=epochs)
        clients = [examples(n, features, seed=i + j) for j, n in enumerate(rows)]
        yield lanes_for(clients, [work] * len(rows), LocalRule(), i), controlled


@pytest.mark.parametrize("biased", [True, False])
def test_what_groups_leave_in_memory_never_reaches_another(biased):
    """Memory is kept from group to group, also what a group with NaNs has left there."""
    trainer = TorchTrainer(chain(bias=biased), path="algebra")
    poison = lanes_for([bad("nan"), examples(40, seed=3)], [WORK] * 2, LocalRule(), 0)
    for lanes, controlled in several():
        with pytest.raises(JobConflict):
            trainer.fit_together(trainer.initial(Seed(0)), poison, round=0)
        fresh = TorchTrainer(trainer.module, path="algebra")
        assert trained(trainer, lanes, controlled) == trained(fresh, lanes, controlled)


def test_two_threads_that_share_a_trainer_do_not_share_memory():
    trainer = TorchTrainer(chain(), path="algebra")
    groups = list(several())
    wanted = [trained(TorchTrainer(trainer.module, path="algebra"), *g) for g in groups]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            assert list(pool.map(lambda g: trained(trainer, *g), groups)) == wanted


def test_a_group_trained_while_another_reads_its_rows_has_memory_of_its_own():
    """Rows may be made when they are asked for, by code that may train."""
    trainer = TorchTrainer(chain(), path="algebra")
    groups = list(several())

    class Asking(Examples):
        @property
        def features(self):
            trained(trainer, *groups[0])
            return self.__dict__["features"]

        @features.setter
        def features(self, value):
            self.__dict__["features"] = value

    lanes, controlled = groups[4]
    wanted = trained(TorchTrainer(trainer.module, path="algebra"), lanes, controlled)
    trained(trainer, *groups[0])  # so that there is memory, and enough of it
    asking = [replace(n, data=Asking(n.data.features, n.data.targets)) for n in lanes]
    assert trained(trainer, asking, controlled) == wanted


def test_targets_of_another_shape_are_not_trained_as_one_group():
    trainer = TorchTrainer(chain((6, 5, 1)), loss="mse", path="algebra")
    flat, column = examples(8, real=1), examples(8, real=1)
    flat = Examples(flat.features, flat.targets[:, 0])
    lanes = lanes_for([column, flat], [WORK] * 2, LocalRule(), 0)
    with pytest.raises(JobConflict, match="targets of"):
        trainer.fit_together(trainer.initial(Seed(0)), lanes, round=0)


def test_a_clients_share_does_not_depend_on_when_others_are_done():
    """Clients who have no more steps stay where they are, also under decay and a proximal term."""
    trainer = TorchTrainer(chain(), path="algebra")
    work = replace(WORK, optimizer=Optimizer(lr=0.1, weight_decay=0.3))
    point = trainer.initial(Seed(0))
    clients = [examples(3), examples(40, seed=1)]
    lanes = lanes_for(clients, [work] * 2, LocalRule(0.7, point), 0)
    alone = [replace(lanes[0], weight=1.0), replace(lanes[1], weight=0.0)]
    fit = one_by_one(TorchTrainer(chain(), path="general"), point, lanes[:1], 0)[0]
    assert near(
        trainer.fit_together(point, alone, round=0).change, fit.parameters - point, "float32"
    )


class Odd(nn.Linear):
    pass


def hooked(where):
    module = chain()
    part = module if where == "whole" else module[1]
    part.register_forward_hook(lambda m, i, o: o * 2)
    return module


def hooked_before():
    module = chain()
    module.register_forward_pre_hook(lambda m, i: (i[0] * 2,))
    return module


def hooked_behind():
    module = chain()
    module[1].register_full_backward_hook(lambda m, i, o: None)
    return module


def hooked_gradient():
    module = chain()
    module[1].weight.register_hook(lambda g: g * 2)
    return module


def tied():
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    module[2].weight = module[0].weight
    return module


def frozen():
    module = chain()
    module[1].bias.requires_grad_(False)
    return module


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)),
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)),
        lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Tanh(), nn.Linear(5, 3)),
        lambda: nn.Sequential(nn.Linear(6, 3), nn.ReLU()),
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 3)),
        lambda: nn.Sequential(nn.Flatten(0), nn.Linear(6, 3)),
        lambda: Odd(6, 3),
        lambda: hooked("whole"),
        lambda: hooked("part"),
        hooked_before,
        hooked_behind,
        hooked_gradient,
        tied,
        frozen,
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Linear(5, 3).double()),
        lambda: nn.Sequential(*[nn.Linear(6, 6)] * 2),
    ],
)
def test_what_is_no_chain_is_trained_one_by_one(build):
    assert TorchTrainer(build, path="algebra").together(WORK, 10) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "l1"},
        {"loss": nn.CrossEntropyLoss()},
        {"precision": "bfloat16"},
        {"augment": lambda x, g: x},
        {"personal": ["3.*"]},
        {"path": "compiled"},
        {"path": "general"},
    ],
)
def test_options_that_groups_do_not_have(options):
    assert TorchTrainer(chain, **{"path": "algebra", **options}).together(WORK, 10) == 1


@pytest.mark.parametrize(
    "work",
    [
        replace(WORK, clip_norm=1.0),
        replace(WORK, optimizer=Optimizer("adam")),
        replace(WORK, optimizer=Optimizer(momentum=0.9)),
    ],
)
def test_work_that_groups_do_not_do(work):
    assert TorchTrainer(chain, path="algebra").together(work, 10) == 1


def bad(kind):
    good = examples(8, seed=9)
    return {
        "nan": Examples(np.full_like(good.features, np.nan), good.targets),
        "infinite": Examples(good.features * np.inf, good.targets),
        "diverges": Examples(good.features * 1e30, good.targets),
        "whole numbers": Examples(np.ones((8, 6), np.int64), good.targets),
        "labels": Examples(good.features, good.targets + 2),
        "negative labels": Examples(good.features, good.targets - 1),
        "ignored labels": Examples(good.features, np.where(good.targets == 1, -100, 0)),
        "other features": Examples(good.features[:, :5], good.targets),
        "lengths": Examples(good.features[:5], good.targets),
        "nobody": Examples(good.features[:0], good.targets[:0]),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "nan",
        "infinite",
        "diverges",
        "whole numbers",
        "labels",
        "negative labels",
        "ignored labels",
        "other features",
        "lengths",
        "nobody",
    ],
)
def test_a_group_with_a_client_like_this_is_not_trained_as_one(kind):
    """Its clients are then taken one by one, so that everyone's failure, or success, is their own."""
    trainer = TorchTrainer(chain(), path="algebra")
    clients = [examples(8), bad(kind), examples(5, seed=2)]
    lanes = lanes_for(clients, [WORK] * 3, LocalRule(), 0)
    with pytest.raises(Exception):  # noqa: B017  # whatever it is, executors go on one by one
        trainer.fit_together(trainer.initial(Seed(0)), lanes, round=0)


def test_a_rule_that_pulls_elsewhere_is_refused():
    trainer = TorchTrainer(chain(), path="algebra")
    point = trainer.initial(Seed(0))
    for rule in (LocalRule(0.1, point + 1), LocalRule(shift=point)):
        with pytest.raises(JobConflict, match="pulls elsewhere"):
            trainer.fit_together(point, lanes_for([examples(4)] * 2, [WORK] * 2, rule, 0), round=0)
