import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.algorithms.statistics.analysis import added
from atoll.algorithms.statistics.digits import LARGEST, decode, encode
from atoll.core.errors import DataError, UpdateRefused

numbers = st.floats(-1e30, 1e30, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-15)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_a_number_comes_back_as_it_was(values):
    array = np.array(values)
    assert np.array_equal(decode(encode(array)), array)


@given(st.lists(numbers, min_size=1, max_size=12), st.randoms())
def test_sums_are_exact_and_do_not_depend_on_the_order(values, random):
    mixed = list(values)
    random.shuffle(mixed)
    total = added([{"x": np.array([v])} for v in values])["x"]
    assert np.array_equal(added([{"x": np.array([v])} for v in mixed])["x"], total)
    exact = math.fsum(values)
    assert abs(total[0] - exact) <= math.ulp(exact)


def test_a_large_value_that_cancels_leaves_the_small_one():
    parts = [1e25, 1e-9, -1e25]
    assert added([{"x": np.array([p])} for p in parts])["x"][0] == 1e-9


@pytest.mark.parametrize("bad", [math.nan, math.inf, LARGEST])
def test_what_cannot_be_added_exactly_is_refused(bad):
    with pytest.raises(UpdateRefused, match="larger units"):
        added([{"x": np.array([1.0, bad])}])[0]


def test_answers_of_different_shapes_are_refused_by_name():
    with pytest.raises(DataError, match="'b'"):
        added([{"b": np.zeros(2)}, {"b": np.zeros(3)}])
