import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from atoll.core.errors import DataError
from atoll.data.table import Table, as_column, label


def test_numbers_and_booleans_become_float64_with_nan():
    column = as_column([1, None, True, 2.5])
    assert column.dtype == np.float64
    assert column.tolist()[:1] + column.tolist()[2:] == [1.0, 1.0, 2.5]
    assert math.isnan(column[1])


def test_text_stays_an_object_and_blank_text_is_missing():
    assert as_column(["a", " ", None, 2, float("nan")]).tolist() == ["a", None, None, 2, None]


@pytest.mark.parametrize("single", [63, "male", None, 2.5, np.float64(3)])
def test_a_column_is_no_single_value(single):
    """Text of four letters was a column of four rows."""
    with pytest.raises(DataError, match=r"'sex' is .*, and no list of values"):
        Table.of({"age": [1, 2, 3, 4], "sex": single})


def test_text_arrays_of_numpy_become_objects():
    assert as_column(np.array(["x", ""])).tolist() == ["x", None]


def test_integer_arrays_become_float64():
    assert as_column(np.array([1, 2], np.int8)).dtype == np.float64


def test_a_table_of_columns_knows_its_length_and_rows():
    table = Table.of({"age": [63, 41, None], "sex": ["f", "m", None]})
    assert len(table) == 3
    assert table.names == ("age", "sex")
    taken = table.take(np.array([2, 0]))
    assert taken["sex"].tolist() == [None, "f"]
    assert taken["age"][1] == 63
    assert table.take(table["age"] > 50)["sex"].tolist() == ["f"]


def test_columns_can_be_left_out_without_touching_the_table():
    table = Table.of({"a": [1], "b": [2]})
    assert table.without("a").names == ("b",)
    assert table.names == ("a", "b")


def test_a_table_without_columns_has_no_rows():
    assert len(Table({})) == 0


def test_columns_of_different_lengths_are_refused_with_both_lengths():
    with pytest.raises(DataError, match=r"'a': 1, 'b': 2"):
        Table.of({"a": [1], "b": [1, 2]})


def test_columns_with_two_dimensions_are_refused_by_name():
    with pytest.raises(DataError, match="deep"):
        Table({"deep": np.zeros((2, 2))})


def test_a_misspelt_column_gets_a_suggestion():
    with pytest.raises(DataError) as caught:
        Table.of({"cholesterol": [1]})["cholestrol"]
    assert "did you mean 'cholesterol'?" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "name"),
    [(3.0, "3"), (3, "3"), (2.5, "2.5"), (" a ", "a"), (np.float64(1), "1"), (True, "1")],
)
def test_labels_are_the_same_for_the_same_category(value, name):
    assert label(value) == name


def test_cells_that_hold_several_values_are_text_as_in_a_csv_file():
    """A Parquet file with a column of lists could not be read at all."""
    assert as_column([[1, 2], [3, 4], None]).tolist() == ["[1, 2]", "[3, 4]", None]
    pairs = np.empty(2, object)
    pairs[:] = [np.array([1.5, 2.0]), np.array([])]
    assert as_column(pairs).tolist() == ["[1.5, 2.0]", "[]"]


def test_bytes_are_the_text_that_they_encode():
    given = ["Zürich".encode(), b"bern", None, b"", b"\xff"]
    assert as_column(given).tolist() == ["Zürich", "bern", None, None, "\\xff"]
    assert as_column(np.array([b"bern", b"basel"])).tolist() == ["bern", "basel"]


def test_days_are_the_same_text_in_whatever_way_a_column_holds_them():
    """At midnight, ``str`` of some adds hours, and of others nanoseconds: categories of one site only."""
    days = pd.Series(pd.to_datetime(["2021-01-31", None]))
    arrow = pd.Series(days, dtype="timestamp[us][pyarrow]")
    for held in (
        days,
        days.to_numpy(),
        days.dt.date,
        arrow,
        days.astype("category"),
        days.to_numpy().astype("datetime64[D]"),
        ["2021-01-31", pd.NaT],
    ):
        assert as_column(held).tolist() == ["2021-01-31", None]
    assert as_column(pd.to_datetime(["2021-01-31 00:00", "2021-01-31 08:30"])).tolist() == [
        "2021-01-31 00:00:00",
        "2021-01-31 08:30:00",
    ]


def test_pandas_missing_values_and_decimal_numbers_are_read():
    assert as_column([pd.NA, "a"]).tolist() == [None, "a"]
    assert as_column(pd.array([1, None], "Int64"))[0] == 1
    assert as_column([Decimal("1.5"), None, Decimal("NaN")])[0] == 1.5
    assert as_column([Decimal("1.5"), None, Decimal("NaN")]).dtype == np.float64
