import gzip

import numpy as np
import pandas as pd
import pytest

from atoll.core.errors import DataError, MissingExtra
from atoll.data import readers
from atoll.data.disclosure import persons_of
from atoll.data.readers import (
    as_table,
    read_examples,
    read_table,
    sites_from_column,
    sites_from_files,
)
from atoll.data.table import Table


def test_csv_cells_become_numbers_text_and_missing(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\ufeffage,sex,flag,kind\n63,f,TRUE,None\n,NA,FALSE,a\n", encoding="utf-8")
    table = read_table(path)
    assert table.names == ("age", "sex", "flag", "kind")
    np.testing.assert_array_equal(table["age"], [63, np.nan])
    assert table["sex"].tolist() == ["f", None]
    assert table["flag"].tolist() == [1.0, 0.0]
    assert table["kind"].tolist() == ["None", "a"]


def test_a_csv_column_with_one_wrong_cell_keeps_that_cell(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x\n1\n1O\n")
    assert read_table(path)["x"].tolist() == ["1", "1O"]


@pytest.mark.parametrize(
    "content",
    [
        "x,y\n1,a\n2,\n",
        " x , y\n1,a\n2,\n",  # names with spaces around them
        "x,y\n1,a,\n2,,\n",  # a comma at the end of each row
        "x,y,\n1,a,\n2,,\n",  # and of the header
        "x,y,,\n1,a\n2,\n",
        "\n\nx,y\n1,a\n\n   \n2,\n",  # empty lines
        "x,y\r1,a\r2,\r",
        "x,y\n1,a\n2,\n,\n",  # a row without a value
    ],
)
def test_commas_spaces_and_lines_around_a_table_change_nothing_in_it(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content.encode())
    table = read_table(tmp_path / "a.csv")
    assert table.names == ("x", "y")
    assert table["x"][:2].tolist() == [1, 2]
    assert table["y"][:2].tolist() == ["a", None]


def test_parquet_equals_csv(tmp_path):
    frame = pd.DataFrame({"x": [1.5, None], "g": ["a", None], "b": [True, None], "k": [1, 2]})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    one, two = read_table(tmp_path / "a.parquet"), read_table(tmp_path / "a.csv")
    for name in frame.columns:
        np.testing.assert_array_equal(one[name], two[name])
    np.testing.assert_array_equal(one["b"], [1, np.nan])


@pytest.mark.parametrize("blank", [" ", "   ", '""', '" "', ""])
def test_a_cell_of_blanks_is_missing_and_makes_no_text_of_numbers(tmp_path, blank):
    (tmp_path / "a.csv").write_text(f'g, x,b\n "a, b", 1.5,True\nc,{blank},False\nd,3, {blank}\n')
    table = read_table(tmp_path / "a.csv")
    assert table.names == ("g", "x", "b")
    assert table["g"].tolist() == ["a, b", "c", "d"]
    np.testing.assert_array_equal(table["x"], [1.5, np.nan, 3])
    np.testing.assert_array_equal(table["b"], [1, 0, np.nan])


@pytest.mark.parametrize("index", ["g", ["g", "k"]], ids=["a column", "several"])
def test_an_index_with_a_name_is_a_column(tmp_path, index):
    frame = pd.DataFrame({"g": ["b", "a"], "k": [3, 1], "x": [1.5, None]})
    path = tmp_path / "a.parquet"
    frame.set_index(index).to_parquet(path)
    for table in (read_table(path), as_table(frame.set_index(index))):
        assert table.names == ("g", "k", "x")
        assert table["g"].tolist() == ["b", "a"]
        assert table["k"].tolist() == [3, 1]
        assert list(sites_from_column(table, "g")) == ["a", "b"]


def test_an_index_that_only_counts_rows_or_is_a_column_already_is_none(tmp_path):
    frame = pd.DataFrame({"g": ["b", "a"], "k": [3, 1]})
    for index in (frame.set_index("g", drop=False), frame.rename_axis("row"), frame[::-1][::-1]):
        assert as_table(index).names == ("g", "k")
    frame.index = ["p", "q"]
    assert as_table(frame).names == ("g", "k")


def test_names_that_are_one_as_text_are_two_columns_of_one_name():
    frame = pd.DataFrame([[1, 2]], columns=[1, "1"])
    for rows in (frame, {1: [1], "1": [2]}):
        with pytest.raises(DataError, match="column '1' appears twice"):
            as_table(rows)


def test_days_are_the_same_from_a_csv_and_a_parquet_file(tmp_path):
    frame = pd.DataFrame({"visit": pd.to_datetime(["2021-01-31", None, "2021-02-28"])})
    frame["x"] = [1, 2, 3]
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "b.parquet")
    for name in ("a.csv", "b.parquet"):
        assert read_table(tmp_path / name)["visit"].tolist() == ["2021-01-31", None, "2021-02-28"]


def test_times_of_day_are_read_as_text(tmp_path):
    times = pd.to_datetime(["2020-01-02 08:30", None])
    pd.DataFrame({"d": times}).to_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet")["d"].tolist() == ["2020-01-02 08:30:00", None]


def test_numpy_files_become_columns(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(4).reshape(2, 2), y=np.array([0, 1]))
    assert read_table(tmp_path / "a.npz").names == ("x0", "x1", "y")
    np.save(tmp_path / "b.npy", np.array([(1, 2.5)], dtype=[("k", "i4"), ("v", "f8")]))
    assert read_table(tmp_path / "b.npy")["v"].tolist() == [2.5]
    np.save(tmp_path / "c.npy", np.eye(2))
    assert read_table(tmp_path / "c.npy")["x1"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "unknown format '.txt'"),
        ("a.csv", b"", "a.csv: is empty"),
        ("a.csv", b"\xef\xbb\xbf \n\n", "a.csv: is empty"),
        ("a.csv", b"x,x\n1,2\n", "column 'x' appears twice"),
        ("a.csv", b"x, x\n1,2\n", "column 'x' appears twice"),
        ("a.csv", b"x,y\n1,2\n1,2,3,4\n", "line 3 is too long: 4 values, 2 columns"),
        ("a.csv", b"x,y\n1,2,3\n4,5,6\n", "line 2 is too long: 3 values, 2 columns"),
        ("a.csv", b"x,y\n1,2,\n4,5,6\n", "line 3 is too long: 3 values, 2 columns"),
        ("a.csv", b'x,y,z\n"a\nb",2,3\n4,5\n', "line 4 is cut short: 2 of 3 values"),
        ("a.csv", b'x,y,z\n1,"2,3\n4,5,6\n', "line 2 is cut short: 2 of 3 values"),
        ("a.csv", b",x\n0,5\n1,6\n", "column 1 has no name"),
        ("a.csv", b"x,y,\n0,5,6\n1,6,\n", "line 2 is too long: 3 values, 2 columns"),
        ("a.csv", "x,y\n1,2\n".encode("utf-16-le"), "characters of code 0"),
        ("a.csv", b"x,y\n1,a\0b\n", "characters of code 0"),
        ("a.csv", "x,y\n1,2\n".encode("utf-16"), "is not UTF-8 text (byte 0xff)"),
        ("a.csv", b"x\n\xff\xfe\n", "is not UTF-8 text (byte 0xff)"),
        ("a.csv", b"x;y\n1;2\n", "columns are separated by ';'"),
        ("a.csv", b"x\ty\n1\t2\n", "export it with commas"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.npz", b"no npz", "cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_object_arrays_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object))
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path / "a.npy")


def test_a_frame_with_a_column_twice_is_refused_by_its_name():
    frame = pd.DataFrame([[1, 2, 3]], columns=["age", "bmi", "age"])
    with pytest.raises(DataError, match="column 'age' appears twice"):
        readers.as_table(frame)


def test_a_folder_that_is_named_like_a_file_is_called_one(tmp_path):
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(DataError, match=r"a\.csv: is a folder"):
        read_table(tmp_path / "a.csv")


def test_a_number_beyond_every_float_is_infinite_and_not_a_crash(tmp_path):
    (tmp_path / "a.csv").write_text(f"x\n1\n{'9' * 400}\n-{'9' * 400}\n")
    assert read_table(tmp_path / "a.csv")["x"].tolist() == [1.0, np.inf, -np.inf]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "a.csv")


def test_examples_come_from_an_npz(tmp_path):
    np.savez(tmp_path / "a.npz", features=np.zeros((3, 1, 2, 2)), targets=np.arange(3))
    assert len(read_examples(tmp_path / "a.npz")) == 3
    np.savez(tmp_path / "b.npz", features=np.zeros(3), target=np.arange(3))
    with pytest.raises(DataError, match="no array 'targets'"):
        read_examples(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", features=np.zeros(3), targets=np.arange(2))
    with pytest.raises(DataError, match="3 rows of features, 2 targets"):
        read_examples(tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"features": np.zeros((2, 3)), "targets": ["cat", "dog"]}, "targets of dtype <U3"),
        ({"features": np.zeros((2, 3)) + 1j, "targets": [0, 1]}, "features of dtype complex128"),
        (
            {"features": np.zeros((2, 3), "M8[s]"), "targets": [0, 1]},
            "features of dtype datetime64",
        ),
        (
            {"features": np.zeros(()), "targets": [0, 1]},
            r"features of dtype float64 and shape \(\)",
        ),
    ],
    ids=["names", "complex", "dates", "no rows"],
)
def test_examples_are_numbers(tmp_path, arrays, told):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=told):
        read_examples(tmp_path / "a.npz")


def test_hidden_files_of_a_folder_are_no_sites(tmp_path):
    """Systems leave some beside those that were copied: ``._rome.csv`` of macOS is none of ours."""
    for name in ("rome.csv", "._rome.csv", ".rome.csv"):
        (tmp_path / name).write_text("x\n1\n")
    assert list(sites_from_files(tmp_path)) == ["rome"]


def test_each_file_of_a_folder_is_a_site(tmp_path):
    for name in ("rome.csv", "oslo.csv"):
        (tmp_path / name).write_text("x\n1\n")
    (tmp_path / "readme.md").write_text("not data")
    assert list(sites_from_files(tmp_path)) == ["oslo", "rome"]
    assert list(sites_from_files(str(tmp_path / "r*.csv"))) == ["rome"]


def test_broken_site_files_are_reported_together(tmp_path):
    (tmp_path / "bern.csv").write_text("x\n1\n")
    (tmp_path / "oslo.csv").write_text("")
    (tmp_path / "rome.csv").write_text("x,x\n1,2\n")
    np.savez(tmp_path / "bern.npz", x=np.arange(2))
    with pytest.raises(DataError) as caught:
        sites_from_files(tmp_path)
    assert len(caught.value.faults) == 3
    assert "a second file for site 'bern'" in str(caught.value)
    assert "site 'oslo'" in str(caught.value)


def test_a_pattern_without_files_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no table at"):
        sites_from_files(tmp_path / "*.csv")


def test_a_column_names_the_sites():
    table = Table.of({"site": ["b", "a", "b"], "x": [1, 2, 3]})
    sites = sites_from_column(table, "site")
    assert list(sites) == ["a", "b"]
    assert sites["b"]["x"].tolist() == [1, 3]
    assert sites["b"].names == ("x",)
    assert list(sites_from_column(Table.of({"s": [2, 10], "x": [0, 0]}), "s")) == ["10", "2"]


def test_numbers_too_long_to_be_told_apart_name_no_sites_and_no_persons(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,x\n12345678901234567,1\n12345678901234568,2\n")
    for names in (lambda t: sites_from_column(t, "id"), lambda t: persons_of(t, "id")):
        with pytest.raises(DataError, match=r"'id' holds whole numbers too long .*\n.*a letter"):
            names(read_table(path))
    path.write_text("id,x\nn12345678901234567,1\nn12345678901234568,2\n")
    assert list(sites_from_column(read_table(path), "id"))[1] == "n12345678901234568"
    assert persons_of(read_table(path), "id").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("cells", "sites"),
    [
        ("007 012 007", ["007", "012"]),  # were "7" and "12", which nobody finds in the job
        ("1.0 2.0 1.0", ["1", "2"]),
        ("1 2 1", ["1", "2"]),
        ("12345678901234567 12345678901234568 9", ["12345678901234567", "12345678901234568", "9"]),
        ("a 07 7", ["07", "7", "a"]),
    ],
)
def test_names_of_sites_in_a_csv_file_are_as_they_are_written(tmp_path, cells, sites):
    lines = [f"{cell},{i},0{i}" for i, cell in enumerate(cells.split())]
    (tmp_path / "all.csv").write_text("\n".join(["site,x,code", *lines]) + "\n")
    found = sites_from_column(read_table(tmp_path / "all.csv", names="site"), "site")
    assert list(found) == sites
    assert sum(len(table) for table in found.values()) == 3
    assert found[sites[0]]["code"].dtype == np.float64


def test_rows_without_a_site_are_refused():
    with pytest.raises(DataError, match="empty in 1 rows, first in row 2"):
        sites_from_column(Table.of({"site": ["b", None], "x": [1, 2]}), "site")


def test_without_pandas_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("x\n1\n")
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pip install 'atoll\[tables\]'"):
        read_table(tmp_path / "a.csv")


def idx(values):
    codes = {"uint8": 8, "int32": 12, "float32": 13}
    head = bytes([0, 0, codes[values.dtype.name], values.ndim])
    sizes = np.array(values.shape, ">u4").tobytes()
    return head + sizes + values.astype(values.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_are_read_packed_or_not(tmp_path, dtype, pack):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "a").write_bytes(pack(idx(values)))
    read = readers.read_idx(tmp_path / "a")
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


WHOLE = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad magic in an empty file"),
        (b"PK\x03\x04", "bad magic 50 4b 03 04"),
        (b"\0\0\x07\x01\0\0\0\0", "bad magic"),
        (WHOLE[:9], "truncated inside the header"),
        (WHOLE[:-1], r"only 5 bytes where (2, 3) needs 6"),
        (WHOLE + b"x", "more bytes where (2, 3) needs 6"),
        (gzip.compress(WHOLE, mtime=0)[:-9], "damaged gzip data"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "the header declares"),
    ],
)
def test_a_malformed_idx_file_says_what_is_wrong(tmp_path, content, message):
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(DataError) as caught:
        readers.read_idx(tmp_path / "broken")
    assert message in str(caught.value)
    assert "broken" in str(caught.value)


def test_images_are_scaled_to_the_unit_interval(tmp_path):
    for prefix, n in (("train", 3), ("t10k", 2)):
        images = np.full((n, 2, 2), 255, np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        labels = gzip.compress(idx(np.arange(n, dtype=np.uint8)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(labels)
    train, test = readers.fashion_mnist(tmp_path)
    assert (train.features.shape, train.features.dtype) == ((3, 1, 2, 2), np.float32)
    assert train.features.max() == 1.0
    assert test.targets.tolist() == [0, 1]
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((3, 2, 2), np.uint8)))
    with pytest.raises(DataError, match="3 images"):
        readers.fashion_mnist(tmp_path)


def test_absent_images_come_with_the_way_to_get_them(tmp_path):
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        readers.fashion_mnist(tmp_path)


def test_numbers_with_commas_are_named_and_not_taken_for_categories(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('x,y,z\n"4,5",4.5,"a, b"\n7,,"1,2"\n')
    with pytest.raises(DataError, match=r"a\.csv: numbers with commas in 'x'\n.*decimal points"):
        read_table(path)
    path.write_text('x,z\n4.5,"a, b"\n7,"1,2"\n')
    assert read_table(path)["z"].tolist() == ["a, b", "1,2"]
