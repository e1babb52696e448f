"""A worker's tray: the numbers of a fold in shared memory, the rest of it by message."""

from __future__ import annotations

import pickle
from multiprocessing import get_context

import numpy as np
import pytest

from atoll.aggregation.exact import Fold
from atoll.core.errors import UpdateRefused
from atoll.core.values import Broadcast, Update
from atoll.runtime.shared import Tray


def a_fold(*sizes: int, tray: Tray | None = None) -> Fold:
    fold = Fold(2) if tray is None else tray.fold(2)
    rng = np.random.default_rng(3)
    for weight in (1.0, 2.5):
        vectors = {f"v{i}": rng.standard_normal(n) for i, n in enumerate(sizes)}
        fold.add(Update(vectors, weight, 4))
    return fold


def through(tray: Tray, fold: Fold) -> tuple[Fold, int]:
    message = pickle.dumps(tray.lay(fold))
    return tray.lift(*pickle.loads(message)), len(message)


@pytest.mark.parametrize("sizes", [(20_000,), (300, 7), (20_000, 20_000)])
def test_a_fold_arrives_with_the_same_bits_whether_it_fits_or_not(sizes: tuple[int, ...]) -> None:
    tray = Tray(get_context("spawn"), Broadcast(0, {"parameters": np.zeros(20_000)}))
    expected = a_fold(*sizes).aggregate()
    a_fold(*sizes[::-1], tray=tray)  # what an earlier round left there
    arrived, _ = through(tray, a_fold(*sizes, tray=tray))
    total = Fold()
    total.merge(arrived)
    found = total.aggregate()
    assert found.sums.keys() == expected.sums.keys()
    assert all((found.sums[n] == expected.sums[n]).all() for n in found.sums)
    assert (found.weight, found.count, found.examples) == (3.5, 2, 8)


def test_a_first_update_that_is_refused_leaves_room_for_the_next() -> None:
    tray = Tray(get_context("spawn"), Broadcast(0, {"parameters": np.zeros(100)}))
    fold = tray.fold(3)
    for bad in (np.full(100, np.nan), np.full(60, np.inf)):
        with pytest.raises(UpdateRefused):
            fold.add(Update({"v": bad}, 1.0, 1))
    fold.add(Update({"v": np.arange(60.0)}, 2.0, 1))
    arrived, _ = through(tray, fold)
    assert (arrived.aggregate().sums["v"] == 2 * np.arange(60)).all()


def test_the_message_of_a_fold_on_the_tray_does_not_grow_with_the_model() -> None:
    lengths = []
    for size in (100, 20_000):
        tray = Tray(get_context("spawn"), Broadcast(0, {"parameters": np.zeros(size)}))
        lengths.append(through(tray, a_fold(size, tray=tray))[1])
    assert abs(lengths[1] - lengths[0]) < 100


def test_a_fold_of_nothing_stays_one() -> None:
    tray = Tray(get_context("spawn"), Broadcast(0, {"parameters": np.zeros(5)}))
    arrived, _ = through(tray, tray.fold(1))
    assert arrived.aggregate().count == 0
