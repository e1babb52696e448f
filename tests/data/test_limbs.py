from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import DataError
from atoll.data import limbs
from atoll.data.limbs import LOW, decode, encode, exact_sum, exact_sum_of_squares

values = st.lists(st.floats(-1e40, 1e40).filter(lambda x: x == 0 or abs(x) > 1e-40), max_size=30)


@settings(deadline=None)
@given(values)
def test_sums_are_those_of_rational_arithmetic(xs):
    total = decode(encode(exact_sum(np.array(xs, np.float64))))
    assert total == sum(map(Fraction, xs), Fraction(0))


@settings(deadline=None)
@given(st.lists(st.floats(-1e15, 1e15).filter(lambda x: x == 0 or abs(x) > 1e-15), max_size=30))
def test_sums_of_squares_are_those_of_rational_arithmetic(xs):
    total = decode(encode(exact_sum_of_squares(np.array(xs, np.float64))))
    assert total == sum((Fraction(x) ** 2 for x in xs), Fraction(0))


@settings(deadline=None)
@given(values, values)
def test_digits_of_two_sites_add_up(xs, ys):
    added = encode(exact_sum(np.array(xs, np.float64))) + encode(
        exact_sum(np.array(ys, np.float64))
    )
    assert decode(added) == sum(map(Fraction, xs + ys), Fraction(0))


@settings(deadline=None)
@given(st.lists(st.floats(-1e-90, 1e-90), max_size=20), st.integers(0, 20))
def test_what_lies_below_the_unit_is_cut_value_by_value(xs, cut):
    whole = exact_sum(np.array(xs, np.float64))
    parts = exact_sum(np.array(xs[:cut], np.float64)) + exact_sum(np.array(xs[cut:], np.float64))
    assert whole == parts
    assert abs(Fraction(whole) * Fraction(2) ** LOW - sum(map(Fraction, xs), Fraction(0))) <= (
        len(xs) * Fraction(2) ** LOW
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e46])
def test_what_cannot_be_summed_is_named(bad):
    with pytest.raises(DataError, match="cannot be summed"):
        exact_sum(np.array([1.0, bad]))


def test_long_columns_are_added_up_in_parts(monkeypatch):
    values = np.random.default_rng(0).normal(size=100) * 10.0 ** np.arange(-60, 40)
    whole = exact_sum(values)
    monkeypatch.setattr(limbs, "_AT_ONCE", 7)
    assert exact_sum(values) == whole
