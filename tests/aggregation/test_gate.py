"""The limit on norms: who is beyond it is refused, and nobody else changes by a bit."""

import numpy as np
import pytest

from atoll.aggregation.gate import Gate, norm_of
from atoll.core.errors import JobError, UpdateRefused
from atoll.core.values import Update


def update(*values, **more):
    return Update({"delta": np.array(values, np.float32), **more}, 2.0, 2)


def test_norm_is_of_all_vectors_together_and_per_unit_of_weight():
    assert norm_of(update(3.0, 4.0)) == 5.0
    assert norm_of(update(3.0, 4.0, control=np.array([[12.0]]))) == 13.0


def test_long_vectors_are_squared_block_by_block():
    assert norm_of(update(*np.full(200_000, 2.0))) == pytest.approx(np.sqrt(200_000) * 2)


def test_the_limit_itself_passes_and_what_is_above_does_not():
    Gate(5.0).check(update(3.0, 4.0))
    with pytest.raises(UpdateRefused, match=r"norm 5, allowed are 4.9"):
        Gate(4.9).check(update(3.0, 4.0))


def test_without_a_limit_everything_passes():
    Gate().check(update(1e30))


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_what_is_no_number_is_beyond_any_limit(value):
    with pytest.raises(UpdateRefused):
        Gate(1e20).check(update(value))


@pytest.mark.parametrize("limit", [-1.0, np.nan, np.inf])
def test_limits_that_are_none_are_refused(limit):
    with pytest.raises(JobError, match="max_norm"):
        Gate(limit)


def test_an_integer_beyond_its_range_is_refused_and_the_ends_pass():
    gate = Gate(most={"delta": 100})
    gate.check(Update({"delta": np.array([100, -100], np.int32)}, 1.0, 0))
    for value in (101, -101, np.iinfo(np.int64).min):
        with pytest.raises(UpdateRefused, match="100 is the most"):
            gate.check(Update({"delta": np.array([0, value], np.int64)}, 1.0, 0))
