"""What a table shows leaves every small cell open; zeros are shown, and totals."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from atoll.core.errors import Forbidden
from atoll.data.suppression import small, suppress

cells = st.sampled_from([0.0, 0.0, 1.0, 2.0, 5.0, 10.0, 11.0, 20.0, 33.0, 70.0])
tables = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=cells)
vectors = arrays(np.float64, st.integers(1, 8), elements=cells)


def test_a_table_without_small_cells_is_shown_whole():
    shown = suppress(np.array([[40.0, 0.0], [11.0, 25.0]]))
    assert shown.values.tolist() == [[40, 0, 40], [11, 25, 36], [51, 25, 76]]
    assert not shown.hidden.any()


def test_a_small_cell_takes_the_smallest_other_with_it():
    assert suppress(np.array([40.0, 3.0, 25.0, 12.0])).hidden.tolist() == [0, 1, 0, 1, 0]


def test_a_suppressed_cell_is_no_zero():
    shown = suppress(np.array([40.0, 0.0, 3.0, 12.0]), margins=False)
    assert [shown.text(i) for i in range(4)] == ["40", "0", "suppressed", "suppressed"]


def test_two_small_cells_of_few_persons_take_a_third():
    assert suppress(np.array([40.0, 3.0, 4.0, 12.0])).hidden.tolist() == [0, 1, 1, 1, 0]


def test_a_table_of_hardly_anybody_is_refused():
    with pytest.raises(Forbidden, match="whole table"):
        suppress(np.array([[3.0, 2.0], [1.0, 0.0]]))


def completions(shown):
    """Hidden entries that the equations of the margins determine, as an attacker solves them."""
    values, hidden = shown.values, shown.hidden
    if values.ndim == 1:
        values, hidden = values[None], hidden[None]
    places = [tuple(p) for p in np.argwhere(hidden)]
    lines = [[(r, c) for c in range(values.shape[1])] for r in range(values.shape[0])]
    if shown.values.ndim == 2:
        lines += [[(r, c) for r in range(values.shape[0])] for c in range(values.shape[1])]
    rows = [
        [(-1.0 if p == line[-1] else 1.0) if p in line else 0.0 for p in places] for line in lines
    ]
    matrix = np.array(rows).reshape(len(lines), len(places))
    _, s, right = np.linalg.svd(matrix)
    free = right[int((s > 1e-9).sum()) :]
    return [p for i, p in enumerate(places) if not np.abs(free[:, i]).max(initial=0) > 1e-9]


@given(tables)
@example(np.array([[0.0, 1, 1, 0], [0, 10, 0, 0], [0, 0, 1, 10]]))  # margins of other lines tell it
def test_no_small_cell_of_a_table_can_be_worked_out(table):
    full = np.zeros((table.shape[0] + 1, table.shape[1] + 1))
    full[:-1, :-1], full[-1, :-1], full[:-1, -1] = table, table.sum(0), table.sum(1)
    full[-1, -1] = table.sum()
    if 0 < table.sum() < 11:
        with pytest.raises(Forbidden):
            suppress(table)
        return
    shown = suppress(table)
    assert not (small(full, 11) & ~shown.hidden).any()
    assert np.array_equal(shown.values[~shown.hidden], full[~shown.hidden])
    assert not [p for p in completions(shown) if 0 < full[p] < 11]


@given(vectors)
def test_hidden_parts_of_a_known_total_hold_enough_together(vector):
    if 0 < vector.sum() < 11:
        return
    shown = suppress(vector)
    hidden = shown.hidden[:-1]
    assert not (small(vector, 11) & ~hidden).any()
    assert not shown.hidden[-1]
    if hidden.any():
        assert vector[hidden].sum() >= 11
        assert hidden.sum() >= 2 or vector[hidden].sum() >= 11


@given(tables)
def test_zeros_are_always_shown(table):
    if 0 < table.sum() < 11:
        return
    shown = suppress(table, margins=False)
    assert not shown.hidden[table == 0].any()
    assert (shown.values[table == 0] == 0).all()
