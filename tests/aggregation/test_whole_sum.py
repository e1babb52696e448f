"""Integers add up as they are; what would leave 64 bits, or count by halves, is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.aggregation.exact import ExactSum, Fold, sum_of
from atoll.aggregation.whole import WholeSum
from atoll.core.errors import UpdateRefused
from atoll.core.values import Update

numbers = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=6)


@given(numbers, st.integers(0, 6))
def test_any_split_and_order_gives_the_sum_of_python_integers(values: list[int], cut: int) -> None:
    folds = [Fold(10), Fold(10)]
    for index, value in enumerate(values):
        folds[index < cut].add(Update({"w": np.array([value], np.int32)}, 1.0, 0))
    folds[0].merge(folds[1])
    found = folds[0].aggregate().sums["w"]
    assert found.dtype == np.int64
    assert found.tolist() == [sum(values)]


def test_sixty_four_bits_are_used_to_the_last_and_not_beyond() -> None:
    whole = WholeSum(1, "int64")
    whole.add(np.array([2**62]))
    whole.add(np.array([2**62 - 1]))
    with pytest.raises(UpdateRefused, match="64 bits"):
        whole.add(np.array([1]))
    assert whole.total().tolist() == [2**63 - 1]


@pytest.mark.parametrize(
    ("vector", "factor", "reason"),
    [
        (np.zeros(2, np.int64), 1.0, "shape"),
        (np.zeros(1, np.int32), 1.0, "int32"),
        (np.zeros(1, np.int64), 0.5, "whole number"),
    ],
)
def test_what_is_no_vector_of_this_sum_is_refused(
    vector: np.ndarray, factor: float, reason: str
) -> None:
    with pytest.raises(UpdateRefused, match=reason):
        WholeSum(1, "int64").add(vector, factor)


def test_a_factor_counts_an_integer_several_times() -> None:
    whole = WholeSum(1, "int32")
    whole.add(np.array([2**30], np.int32), 8.0)
    assert whole.total().tolist() == [2**33]


def test_the_dtype_chooses_the_sum() -> None:
    assert isinstance(sum_of(1, "int32"), WholeSum)
    assert isinstance(sum_of(1, "float32"), ExactSum)
    with pytest.raises(UpdateRefused, match="uint8"):
        sum_of(1, "uint8")
