"""A dense layer shows its row: by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import LayoutError
from atoll.privacy.audit.inversion import closest, cosine, row_of_dense, rows_of_dense


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 1000))
def test_the_gradient_of_one_row_shows_the_row(outputs, inputs, seed):
    draw = np.random.default_rng(seed)
    slope, row = draw.normal(size=outputs), draw.normal(size=inputs)
    for guess in rows_of_dense(np.outer(slope, row), slope):
        np.testing.assert_allclose(guess, row, rtol=1e-9)


def test_two_rows_show_their_mean_weighted_by_their_slopes():
    rows, slopes = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([3.0, 1.0])
    guess = row_of_dense((slopes @ rows)[None], np.array([slopes.sum()]))
    assert guess.tolist() == [0.75, 0.25]


def test_the_attacker_takes_the_output_that_moved_most():
    weight, bias = np.array([[1.0, 1.0], [-8.0, 4.0], [0.0, 0.0]]), np.array([1.0, -4.0, 0.0])
    assert row_of_dense(weight, bias).tolist() == [2.0, -1.0]
    assert rows_of_dense(weight, bias)[2].tolist() == [0.0, 0.0]


def test_cosines_by_hand():
    assert cosine(np.array([1.0, 0.0]), np.array([2.0, 0.0])) == 1.0
    assert cosine(np.zeros(2), np.ones(2)) == 0.0
    assert closest(np.array([0.0, 1.0]), np.array([[1.0, 0.0], [0.0, 3.0]])) == 1.0
    assert closest(np.ones(2), np.zeros((0, 2))) == 0.0


def test_shapes_of_no_layer_are_refused():
    with pytest.raises(LayoutError):
        rows_of_dense(np.zeros((2, 3)), np.zeros(3))
