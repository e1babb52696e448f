"""Sketches of columns: what a guess needs to know, wherever the rows lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.errors import DataError
from atoll.data.columns import Column
from atoll.data.schema import infer_schema
from atoll.data.sketches import Sketch, clashes, guessed, merged, sketch
from atoll.data.table import Table, as_column

CELLS = st.one_of(
    st.none(), st.integers(-2, 60), st.floats(width=16), st.sampled_from(["a", "7", " b ", "inf"])
)


def of(*cells, named=False, column="x"):
    return sketch(Column(column), as_column(cells), named=named)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ((), Column("x", role="ignore")),
        ((None, None), Column("x", role="ignore")),
        ((0, 1, None), Column("x", "boolean")),
        ((True, False), Column("x", "boolean")),
        ((0, 2), Column("x", "integer")),
        ((0, 0.5), Column("x", "number")),
        ((1.0, float("inf")), Column("x", "number")),
        (("1", "2"), Column("x", "integer")),
        (("1", "two"), Column("x", "category")),
        (tuple(f"n{i}" for i in range(50)), Column("x", "category")),
        (tuple(f"n{i}" for i in range(51)), Column("x", "category", role="ignore")),
        (("short", "long " * 50), Column("x", "category", role="ignore")),
    ],
)
def test_a_column_is_guessed_from_its_cells(cells, expected):
    assert guessed("x", of(*cells)) == expected


def test_numbers_have_no_names_unless_they_are_asked_for():
    assert of(3, 1, 2.5) == Sketch(some=True, whole=False, binary=False, bare=True)
    assert of(3, 1, 2.5, named=True).levels == ("1", "2.5", "3")
    assert of("3", "1").levels == ("1", "3")
    assert of("b", " a ", None, "").levels == ("a", "b")


def test_names_are_read_under_the_missing_codes_of_the_column():
    column = Column("x", "category", missing=("?", -9))
    assert sketch(column, as_column(["u", "?", -9, 3]), named=True).levels == ("3", "u")


def test_too_many_names_over_all_sites_are_no_names():
    parts = [of(*(f"{site}{i}" for i in range(30))) for site in "ab"]
    assert merged(parts).levels is None
    assert len(merged([of(*(f"n{i}" for i in range(60)), named=True)] * 2, named=True).levels) == 60


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(CELLS, max_size=30), max_size=4), st.booleans(), st.randoms())
def test_sketches_merge_in_any_order_into_that_of_the_pooled_rows(sites, named, order):
    """Of columns that are objects, as in one file; a column of numbers alone has no names."""

    def objects(cells):
        column = np.empty(len(cells), object)
        column[:] = [None if cell != cell else cell for cell in cells]
        return column

    parts = [sketch(Column("x"), objects(cells), named=named) for cells in sites]
    pooled = sketch(Column("x"), objects([cell for cells in sites for cell in cells]), named=named)
    shuffled = order.sample(parts, len(parts))
    halves = [merged(shuffled[:2], named=named), merged(shuffled[2:], named=named)]
    assert merged(parts, named=named) == merged(halves, named=named) == pooled


def test_numbers_where_others_have_text_clash():
    sites = {"a": of(1, 2), "b": of("u", "v"), "c": of(None), "d": of("3", "w"), "e": of(4)}
    assert [fault.place for fault in clashes("x", sites)] == [
        "site 'a', column 'x'",
        "site 'e', column 'x'",
    ]
    assert clashes("x", {"a": of(1), "b": of(2)}) == []
    assert merged(sites.values()).bare
    keys = of(*(f"key {i}" for i in range(60)))
    assert clashes("x", {"a": of(1), "b": keys}) == []  # nobody reads it


def test_a_schema_is_not_guessed_over_a_clash():
    tables = {
        "a": Table.of({"x": [1, 2], "y": ["no", "yes"]}),
        "b": Table.of({"x": ["u", "v"], "y": [1, 0]}),
    }
    with pytest.raises(DataError, match="site 'a', column 'x': holds numbers, but text at 'b'"):
        infer_schema(tables, "y")
    rest = {site: table.without("x") for site, table in tables.items()}
    with_x = {site: Table({**t.columns, "z": np.arange(2.0)}) for site, t in rest.items()}
    assert infer_schema(with_x, "y").classes == ("0", "1", "no", "yes")  # classes are always named
