"""Sums and server steps slab by slab, held against the whole in one go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.aggregation.exact import Fold
from atoll.algorithms import ALGORITHMS, FedAvg
from atoll.core.contracts import Task, Weighting
from atoll.core.errors import UpdateRefused
from atoll.core.layout import Entry, Layout
from atoll.core.local import Fit
from atoll.core.metrics import Count, Mean
from atoll.core.seeds import Seed
from atoll.core.values import Aggregate, State, Update
from atoll.job.standing import Rows
from atoll.runtime.checkpoint import model_hash
from atoll.runtime.client import Parts
from atoll.server.rounds import slabs
from atoll.server.rounds.folding import pattern_of
from atoll.server.rounds.slabs import BySlabs, SlabFold

LAYOUT = Layout(
    (
        Entry("statistics", (5,), trainable=False),
        Entry("body", (3, 11)),
        Entry("head", (4,), personal=True),
    )
)
SIZE = 38
OPTIONS: Mapping[str, dict[str, Any]] = {
    "fedavgm": {"momentum": 0.9, "nesterov": True},
    "feddyn": {"alpha": 0.1},
    "fedprox": {"mu": 0.1},
    "qfedavg": {"q": 1.0},
}


@dataclass(eq=False)
class Wanderer:
    """A trainer that moves anywhere."""

    layout: Layout
    rng: np.random.Generator
    corrects: bool = True
    moved: int = field(default=0)

    def initial(self, seed: Any) -> np.ndarray:
        return np.linspace(-1, 1, self.layout.size, dtype=self.layout.dtype)

    def fit(
        self, parameters: Any, data: Any, *, work: Any, rule: Any, seed: Any, round: int
    ) -> Fit:
        self.moved += 1
        step = self.rng.standard_normal(parameters.size).astype(parameters.dtype)
        return Fit(parameters + step, 2 + self.moved % 3, 0.3, len(data), 0.5 + self.moved)

    def gradient(self, parameters: Any, data: Any) -> tuple[np.ndarray, float]:
        return self.rng.standard_normal(parameters.size).astype(parameters.dtype), 0.75

    def evaluate(self, parameters: Any, data: Any) -> Mapping[str, Any]:
        return {"loss": Mean.of(0.5, len(data))}


def rounds(name: str, slab: int, long: bool) -> tuple[State, list[Mapping[str, tuple[int, ...]]]]:
    """The state after three rounds of three clients, folded and stepped whole or by slabs."""
    inner = ALGORITHMS[name](**OPTIONS.get(name, {}))
    algorithm = BySlabs(inner, slab)
    trainer = Wanderer(LAYOUT, np.random.default_rng(7))
    clients = {c: Rows(n) for c, n in (("a", 3), ("b", 5), ("c", 11))}
    weighting = Weighting("uniform")
    parts = Parts(algorithm, trainer, clients, Seed(0), weighting=weighting)
    state = algorithm.init(trainer.initial(None), LAYOUT, 3)
    memories: dict[str, Any] = {}
    shapes = []
    for _ in range(3):
        fold = SlabFold(SIZE, 3) if long else Fold(3)
        for number, client in enumerate(clients):
            task = Task(client, state.round, 1.0 / (1 + number))
            model, memory = algorithm.broadcast(state), memories.get(client, {})
            update, memories[client] = algorithm.client(model, memory, parts.work(task))
            shapes.append({n: v.shape for n, v in update.vectors.items()})
            expected = pattern_of(parts, task, model).expected.vectors
            assert {n: shape for n, (shape, _) in expected.items()} == shapes[-1]
            if isinstance(fold, SlabFold):
                fold.add(update, task.scale, lambda u=update: u.vectors)  # type: ignore[misc]
            else:
                fold.add(update, task.scale)
        state = algorithm.server(state, fold.aggregate())
    return state, shapes


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize(("slab", "workers"), [(5, 2), (37, 2), (7, 2), (5, 1)])
def test_every_algorithms_server_step_is_the_same_by_slabs(
    name: str, slab: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """37 leaves a last slab of one value, as long as a scalar slot; with one worker three go together."""
    monkeypatch.setattr(slabs, "_WORKERS", workers)
    whole, _ = rounds(name, SIZE, long=False)
    parts, _ = rounds(name, slab, long=True)
    assert parts.round == whole.round == 3
    assert parts.trained == whole.trained
    assert parts.parameters.tobytes() == whole.parameters.tobytes()
    assert model_hash(parts.parameters) == model_hash(whole.parameters.copy())  # taken on the way
    assert parts.slots.keys() == whole.slots.keys()
    for slot in whole.slots:
        assert parts.slots[slot].tobytes() == whole.slots[slot].tobytes(), slot
        assert not parts.slots[slot].flags.writeable
    assert not parts.parameters.flags.writeable


class Normed(FedAvg):
    """Another's method that looks at the whole change."""

    def server(self, state: State, aggregate: Aggregate) -> State:
        mean = aggregate.mean("delta")
        scaled = mean / np.linalg.norm(mean)
        return state.next((state.parameters + scaled).astype(state.parameters.dtype))


def test_a_method_of_others_gets_the_whole_sums() -> None:
    state = State.start(np.zeros(8, np.float32), Layout((Entry("w", (8,)),)), 1)
    fold = SlabFold(8, 1)
    update = Update({"delta": np.arange(8, dtype=np.float32)}, 2.0, 2)
    fold.add(update, 1.0, lambda: update.vectors)
    after = BySlabs(Normed(), 3).server(state, fold.aggregate())
    assert np.linalg.norm(after.parameters) == pytest.approx(1.0)


VALUES = st.floats(-1e6, 1e6, width=32) | st.sampled_from([1e12, -1e12, 1e-12, float("nan")])


@given(
    st.lists(st.tuples(st.lists(VALUES, min_size=6, max_size=6), st.integers(0, 9)), max_size=5),
    st.booleans(),
)
def test_sums_and_refusals_are_those_of_the_plain_fold(
    updates: list[tuple[list[float], int]], on_disk: bool
) -> None:
    plain, by_slabs = Fold(4), SlabFold(6, 4)
    if on_disk:
        by_slabs._bytes = 1 << 40  # as after many megabytes
    for values, weight in updates:
        vectors = {
            "delta": np.array(values, np.float32),
            "count": np.array([len(values) + 0.5]),
        }
        update = Update(vectors, float(weight), weight, {"n": Count(weight)})
        told = [_told(lambda u=update: plain.add(u, 0.5))]  # type: ignore[misc]
        told.append(_told(lambda u=update: by_slabs.add(u, 0.5, lambda: u.vectors)))  # type: ignore[misc]
        assert told[0] == told[1]
    mine, theirs = by_slabs.aggregate(), plain.aggregate()
    assert list(mine.sums) == list(theirs.sums)
    for name in theirs.sums:
        assert mine.sums[name].tobytes() == theirs.sums[name].tobytes()
    for name in ("weight", "scaled_weight", "count", "examples", "metrics"):
        assert getattr(mine, name) == getattr(theirs, name)


def _told(add: Any) -> str:
    try:
        add()
    except UpdateRefused as error:
        return error.message
    return ""


def test_long_updates_are_read_again_and_short_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "_IN_MEMORY", 48)
    fold, read = SlabFold(6, 3), []

    def reopen(number: int) -> Mapping[str, np.ndarray]:
        read.append(number)
        return {"delta": np.full(6, float(number), np.float32)}

    for number in range(3):
        update = Update({"delta": np.full(6, float(number), np.float32)}, 1.0, 1)
        fold.add(update, 1.0, lambda n=number: reopen(n))  # type: ignore[misc]
    assert read == []
    sums = fold.aggregate().sums
    assert sums["delta"].tolist() == [3.0] * 6
    assert read == [2]


def test_an_update_whose_rest_is_refused_leaves_no_trace() -> None:
    fold = SlabFold(3, 2)
    good = Update({"delta": np.ones(3, np.float32)}, 1.0, 1, {"n": Count(1)})
    fold.add(good, 1.0, lambda: good.vectors)
    bad = Update({"delta": np.ones(3, np.float32)}, 1.0, 1, {"n": Mean.of(1.0, 1)})
    with pytest.raises(UpdateRefused, match="metrics"):
        fold.add(bad, 1.0, lambda: bad.vectors)
    other = Update({"other": np.ones(3, np.float32)}, 1.0, 1)
    with pytest.raises(UpdateRefused, match="'other'"):
        fold.add(other, 1.0, lambda: other.vectors)
    assert fold.aggregate().sums["delta"].tolist() == [1.0, 1.0, 1.0]
    assert fold.aggregate().count == 1


def test_a_large_model_is_stood_for_by_a_small_one_of_its_kind() -> None:
    large = Layout(
        (
            Entry("statistics", (500,), trainable=False),
            Entry("body", (30, 110)),
            Entry("head", (40,), personal=True),
        )
    )
    for name in sorted(ALGORITHMS):
        algorithm = ALGORITHMS[name](**OPTIONS.get(name, {}))
        trainer = Wanderer(large, np.random.default_rng(0))
        parts = Parts(algorithm, trainer, {"a": Rows(4)}, Seed(0))
        model = algorithm.broadcast(algorithm.init(trainer.initial(None), large, 1))
        pattern = pattern_of(parts, Task("a", 0), model)
        update, _ = algorithm.client(model, {}, parts.work(Task("a", 0)))
        vectors = {n: (v.shape, v.dtype.name) for n, v in update.vectors.items()}
        assert pattern.expected.vectors == vectors, name
        assert pattern.metrics == {n: type(m) for n, m in update.metrics.items()}
        assert pattern.weighs
        assert pattern.counts


def place(vector: Any) -> int:
    return int(vector.__array_interface__["data"][0])


def test_a_models_memory_serves_the_next_one_once_nobody_holds_any_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slabs, "_LARGE", 4)
    rooms, f4 = slabs.Rooms(), np.dtype(np.float32)
    first = rooms.take(2048, f4)
    first[:] = 1
    first.flags.writeable = False
    part, at = memoryview(first)[1027:1029], place(first)
    del first
    second = rooms.take(2048, f4)  # a part of the first is still known
    second[:] = 2
    assert part.tolist() == [1, 1]
    assert place(second) != at
    del part
    third = rooms.take(2048, f4)
    assert place(third) == at
    assert third.flags.writeable
    del second, third
    assert rooms.take(1024, np.dtype(np.float64)).size == 1024  # another kind, the same bytes
    assert rooms.take(100, f4).size == 100


def test_no_more_memory_is_kept_than_a_round_makes_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "_LARGE", 4)
    rooms, f4 = slabs.Rooms(), np.dtype(np.float32)
    held = [rooms.take(2048, f4) for _ in range(3)]
    places = [place(vector) for vector in held]
    rooms.most = 2
    while held:
        del held[0]
    again = [rooms.take(2048, f4) for _ in range(2)]
    assert {place(vector) for vector in again} == set(places[:2])
    assert len(rooms._free) == 0
