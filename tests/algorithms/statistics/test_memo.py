"""What is remembered of a site's rows: once for the same arrays, anew for others, never sent along."""

from __future__ import annotations

import pickle

import numpy as np

from atoll.algorithms.statistics.memo import Memo


def test_the_same_arrays_are_worked_out_once_and_others_anew() -> None:
    made: list[float] = []

    def total(data: dict[str, np.ndarray]) -> float:
        made.append(float(sum(column.sum() for column in data.values())))
        return made[-1]

    memo: Memo[float] = Memo()
    data = {"a": np.ones(3), "b": np.ones(3)}
    same = dict(data)  # another mapping of the same arrays
    assert memo.of(0, data, ("a", "b"), lambda: total(data)) == 6
    assert memo.of(0, same, ("a", "b"), lambda: total(same)) == 6
    assert len(made) == 1
    other = data | {"b": np.full(3, 2.0)}
    assert memo.of(0, other, ("a", "b"), lambda: total(other)) == 9
    assert memo.of(1, data, ("a", "b"), lambda: total(data)) == 6
    assert memo.of(1, data, ("a",), lambda: 3.0) == 3
    assert len(made) == 3


def test_arrays_that_are_gone_are_not_taken_for_new_ones() -> None:
    memo: Memo[float] = Memo()
    for value in range(50):  # a new array may lie where an old one lay
        data = {"a": np.full(4, float(value))}
        assert memo.of(0, data, ("a",), lambda data=data: float(data["a"][0])) == value


def test_it_is_empty_in_another_process() -> None:
    memo: Memo[int] = Memo()
    data = {"a": np.ones(3)}
    memo.of(0, data, ("a",), lambda: 1)
    there = pickle.loads(pickle.dumps(memo))
    assert there.of(0, data, ("a",), lambda: 2) == 2
