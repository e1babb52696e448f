"""Every path of torch training is held against autograd's through whole runs (decision D7).

The serial executor with ``path="general"`` is the definition of correct. A path that adds up in another
order agrees with it within 1e-6 of the parameters' norm after five rounds, 1e-12 in float64; one path
gives the same bits on every executor.
"""

from __future__ import annotations

import sys
from contextlib import closing
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from atoll.algorithms import ALGORITHMS
from atoll.core.contracts import Examples, Weighting
from atoll.core.local import LocalRule, LocalWork, Optimizer, Schedule
from atoll.core.seeds import Seed
from atoll.models.torch.adapter import TorchTrainer
from atoll.runtime.client import Parts
from atoll.runtime.loop import Loop, Stop
from atoll.runtime.processes import ProcessExecutor
from atoll.runtime.schedule import Synchronous
from atoll.runtime.serial import SerialExecutor

sys.path.insert(0, str(Path(__file__).parent))  # workers inherit it

from path_models import WIDTH, dense, image, wide  # only where torch is installed

NEAR = {"float32": 1e-6, "float64": 1e-12}
SIZES = {f"c{i}": n for i, n in enumerate([1, 2, 5, 8, 9, 13, 20, 3])}
MANY = {f"d{i}": 1 + i % 7 for i in range(32)}
"""The fewest of which those of a large model share sums."""


def rows(n, seed):
    rng = np.random.default_rng(seed)
    return Examples(rng.normal(size=(n, WIDTH)).astype(np.float32), rng.integers(3, size=n))


@cache
def trainer_of(path, build, dtype):
    """Shared by tests: a trainer keeps nothing from one fit to the next but what it compiled."""
    return TorchTrainer(partial(build, dtype), path=path)


def parts_of(algorithm, path, build=dense, clients=None, optimizer=None, dtype="float32"):
    held = clients or {c: rows(n, i) for i, (c, n) in enumerate(SIZES.items())}
    work = LocalWork(
        epochs=1.5,
        batch_size=4,
        optimizer=optimizer or Optimizer(lr=0.05),
        schedule=Schedule("step", gamma=0.7, every=2),
    )
    uniform = type(algorithm).__name__ == "FedDyn"
    return Parts(
        algorithm=algorithm,
        trainer=trainer_of(path, build, dtype),
        clients=held,
        seed=Seed(3),
        local=work,
        weighting=Weighting("uniform" if uniform else "examples"),
    )


def end_of(parts, make=SerialExecutor, rounds=5):
    """Parameters after some rounds and every round's record without measured times."""
    records = []
    with closing(make(parts)) as executor:
        keep = lambda r: records.append({k: v for k, v in r.items() if k != "seconds"})  # noqa: E731
        loop = Loop(
            parts, executor, schedule=Synchronous(), stop=Stop(rounds=rounds), observers=[keep]
        )
        state = loop.run().progress.state
    return state.parameters, records


def processes(parts, workers):
    first = parts.algorithm.broadcast(Loop(parts, SerialExecutor(parts)).start().state)
    return ProcessExecutor(parts, first, workers=workers)


def distance(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def losses(records):
    return [r["metrics"]["train"]["train_loss"] for r in records] if "metrics" in records[0] else []


GENTLE = {
    "fedadam": {"tau": 0.1},
    "fedyogi": {"tau": 0.1},
    "fedadagrad": {"tau": 0.1},
    "feddyn": {"alpha": 0.1},
}
"""Divisors of a mean change, at which float32 keeps its digits: rounding is divided by them as well."""


def algorithm(name, **options):
    return ALGORITHMS[name](**GENTLE.get(name, {}), **options)


def test_clients_of_the_large_model_share_sums_where_there_are_many():
    parts = parts_of(algorithm("fedavg"), "auto", wide, {"d0": rows(7, 0)})
    share = partial(parts.trainer.together, parts.local, 7)
    assert [share(clients=n) > 1 for n in (len(MANY) - 1, len(MANY))] == [False, True]


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_path_ends_where_the_general_one_does(name, dtype):
    for build, paths, sizes in (
        (dense, ("compiled", "algebra"), SIZES),
        (image, ("auto",), SIZES),
        (wide, ("auto",), MANY),
    ):
        held = {c: rows(n, i) for i, (c, n) in enumerate(sizes.items())}
        wanted, told = end_of(parts_of(algorithm(name), "general", build, held, dtype=dtype))
        for path in paths:
            got, records = end_of(parts_of(algorithm(name), path, build, held, dtype=dtype))
            assert distance(got, wanted) <= NEAR[dtype], (build.__name__, path)
            assert [r["missing"] for r in records] == [r["missing"] for r in told]
            assert losses(records) == pytest.approx(losses(told), rel=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
        Optimizer(lr=0.05, weight_decay=0.1),
        Optimizer("adam", lr=0.01, eps=1e-3, weight_decay=0.1),
    ],
)
@pytest.mark.parametrize("name", ["fedprox", "scaffold", "fednova", "feddyn"])
def test_local_optimisers_and_corrections_add_up_on_every_path(optimizer, name):
    options = {"option": 1} if name == "scaffold" else {}
    if name == "fednova" and optimizer.name != "sgd":
        pytest.skip("FedNova needs local SGD")
    ends = [
        end_of(parts_of(algorithm(name, **options), path, dense, optimizer=optimizer))[0]
        for path in ("general", "compiled", "algebra")
    ]
    for got in ends[1:]:
        assert distance(got, ends[0]) <= NEAR["float32"]


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedprox"])
@pytest.mark.parametrize(
    ("path", "build"), [("compiled", image), ("compiled", wide), ("algebra", dense)]
)
def test_a_path_gives_the_same_bits_on_any_number_of_workers(name, path, build):
    clients = {f"c{i}": rows(1 + i % 9, i) for i in range(60)}
    parts = parts_of(algorithm(name), path, build, clients)
    wanted, told = end_of(parts, rounds=2)
    for workers in (1, 2, 4):
        trainer_of.cache_clear()  # a worker compiles for itself
        got, records = end_of(parts, partial(processes, workers=workers), rounds=2)
        assert got.tobytes() == wanted.tobytes(), workers
        assert records == told


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
@pytest.mark.parametrize(
    ("path", "build"),
    [("general", dense), ("compiled", dense), ("algebra", dense), ("compiled", wide)],
)
def test_only_the_client_whose_rows_are_not_finite_is_refused(name, path, build):
    clients = {f"c{i}": rows(1 + i % 9, i) for i in range(36 if build is wide else 12)}
    clients["c4"].features[0, 0] = np.nan
    clients["c7"] = Examples(clients["c7"].features, clients["c7"].targets + 3)
    parts = parts_of(algorithm(name), path, build, clients)
    wanted, _ = end_of(parts_of(algorithm(name), "general", build, clients))
    got, records = end_of(parts)
    for record in records:
        assert record["missing"].keys() == {"c4", "c7"}
        assert record["missing"]["c4"].startswith("refused")
        assert record["missing"]["c7"].startswith("failed: IndexError")
    assert distance(got, wanted) <= NEAR["float32"]
    there, told = end_of(parts, partial(processes, workers=2))
    assert there.tobytes() == got.tobytes()
    assert told == records


def test_a_diverged_model_leaves_the_path_as_it_was():
    """Whether a step can be replayed is tried on the first weights, not on the present ones."""
    clients = {"a": rows(8, 0), "b": rows(5, 1)}
    trainer_of.cache_clear()
    parts = parts_of(ALGORITHMS["fedavg"](), "compiled", image, clients)
    trainer = parts.trainer
    wild = np.full_like(trainer.initial(Seed(0)), np.nan)
    go = partial(trainer.fit, work=parts.local, rule=LocalRule(), seed=Seed(1), round=0)
    go(wild, clients["a"])
    trainer_of.cache_clear()
    again = trainer_of("compiled", image, "float32")
    start = trainer.initial(Seed(0))
    fresh = again.fit(
        start, clients["a"], work=parts.local, rule=LocalRule(), seed=Seed(1), round=0
    )
    assert go(start, clients["a"]).parameters.tobytes() == fresh.parameters.tobytes()
    assert trainer.explain(parts.local, clients["b"]) == "compiled"
