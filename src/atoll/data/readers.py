"""Tables from files: CSV, Parquet and NumPy; sites from one file each or from a column."""

from __future__ import annotations

import csv
import glob
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, Fault, MissingExtra, raise_faults, suggest
from atoll.core.layout import Array
from atoll.core.values import ClientId
from atoll.data.columns import BLURRED, blurred, is_missing
from atoll.data.idx import fashion_mnist, idx_examples, read_idx
from atoll.data.table import Table, label

__all__ = [
    "NOT_KNOWN",
    "as_table",
    "fashion_mnist",
    "idx_examples",
    "read_examples",
    "read_idx",
    "read_table",
    "sites_from_column",
    "sites_from_files",
]

NOT_KNOWN = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""Texts that mean "missing" in any CSV file; declare others as a column's missing codes."""

_BLANKS = [" " * width for width in range(1, 33)]
"""Cells of blanks in quotes: one such cell would make text of a column of numbers."""

_COMMA_NUMBER = re.compile(r"\s*[+-]?\d+(,\d+)*(\.\d+)?\s*")

_UNREADABLE = (OSError, ValueError, EOFError, csv.Error, zipfile.BadZipFile)
"""What readers raise on damaged files; pandas' and pyarrow's own errors derive from these."""


def read_table(path: str | Path, names: str = "") -> Table:
    """The table in a ``.csv``, ``.parquet``, ``.npz`` or ``.npy`` file.

    An ``.npz`` holds one array per column; a two-dimensional array ``x`` becomes the columns ``x0``,
    ``x1``, … An ``.npy`` holds a structured array, or a two-dimensional one (columns ``x0`` …).

    Args:
        path: of the file.
        names: a column whose values are names whatever they look like: in a CSV file ``007`` stays that.

    Raises:
        DataError: no such file, an unknown format, or content that cannot be read.
        MissingExtra: pandas is needed and not installed.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown format {path.suffix!r}", remedy=suggest("", _READERS))
    if not path.is_file():
        if path.is_dir():
            raise DataError(f"{path}: is a folder, not a file", remedy="name a file in it")
        raise DataError(f"{path}: no such file", remedy="check the path")
    try:
        return _read_csv(path, names) if reader is _read_csv else reader(path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8 text (byte {error.object[error.start]:#04x})",
            remedy="export it with the encoding UTF-8",
        ) from error
    except _UNREADABLE as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: cannot be read ({first})", remedy="check the file") from error


def as_table(rows: Any) -> Table:
    """The table that rows in hand are: a table, a pandas frame, columns by name, or a file.

    Raises:
        DataError: something else, or a file that cannot be read.
    """
    if isinstance(rows, Table):
        return rows
    if isinstance(rows, str | Path):
        return read_table(rows)
    if hasattr(rows, "columns") and hasattr(rows, "iloc"):
        return _from_frame(rows)
    if isinstance(rows, Mapping):
        return Table.of(rows)
    raise DataError(
        f"a {type(rows).__name__} is no table", remedy="give a pandas frame, or columns by name"
    )


def read_examples(path: str | Path) -> Examples:
    """Rows that are no table (images, sequences) from an ``.npz`` with ``features`` and ``targets``.

    Raises:
        DataError: not such a file, arrays of different lengths, or of something else than numbers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise DataError(
                    f"{path}: holds one array", remedy="save features and targets, .npz"
                )
            absent = sorted({"features", "targets"} - set(stored.files))
            if absent:
                known = ", ".join(stored.files)
                raise DataError(f"{path}: no array {absent[0]!r}", remedy=f"it holds: {known}")
            examples = Examples(stored["features"], stored["targets"])
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({error})", remedy="check the file") from error
    for what, found in (("features", examples.features), ("targets", examples.targets)):
        if found.dtype.kind not in "biuf" or not found.ndim:
            raise DataError(
                f"{path}: {what} of dtype {found.dtype} and shape {found.shape} are no rows of numbers",
                remedy="save numbers, with a row for each example; of classes 0, 1, …",
            )
    if len(examples.features) != len(examples.targets):
        raise DataError(
            f"{path}: {len(examples.features)} rows of features, {len(examples.targets)} targets"
        )
    return examples


_Data = TypeVar("_Data", Table, Examples)


@overload
def sites_from_files(where: str | Path) -> dict[ClientId, Table]: ...
@overload
def sites_from_files(where: str | Path, read: Callable[[Path], _Data]) -> dict[ClientId, _Data]: ...
def sites_from_files(
    where: str | Path, read: Callable[[Path], Any] = read_table
) -> dict[ClientId, Any]:
    """One site per file, named after the file without its suffix, in alphabetical order.

    Args:
        where: a folder (all its files of a known format, but hidden ones) or a pattern such as ``data/*.csv``.
        read: reads one file; :func:`read_examples` for rows that are no table.

    Raises:
        DataError: no file, two files of one name, or files that cannot be read; all are listed.
    """
    folder = Path(where)
    if folder.is_dir():
        shown = (p for p in folder.iterdir() if not p.name.startswith("."))
        paths = sorted(p for p in shown if p.suffix.lower() in _READERS)
    else:
        paths = sorted(Path(p) for p in glob.glob(str(where)))
    if not paths:
        raise DataError(
            f"no table at {str(where)!r}", remedy="name a folder or a pattern like *.csv"
        )
    sites: dict[ClientId, Any] = {}
    faults: list[Fault] = []
    for path in paths:
        if path.stem in sites:
            faults.append(Fault(str(path), f"a second file for site {path.stem!r}", "rename one"))
            continue
        try:
            sites[path.stem] = read(path)
        except DataError as error:
            faults.append(Fault(f"site {path.stem!r}", error.message, error.remedy))
    raise_faults(DataError, f"sites from {str(where)!r}", faults)
    return dict(sorted(sites.items()))  # "a-b.csv" comes before "a.csv", but "a" before "a-b"


def sites_from_column(table: Table, column: str) -> dict[ClientId, Table]:
    """One site per value of ``column``, which is then left out; sites in alphabetical order.

    Raises:
        DataError: no such column, rows without a site, or numbers that are not told apart (:func:`blurred`).
    """
    cells = table[column]
    names = [None if is_missing(cell) else label(cell) for cell in cells]
    blank = [row for row, name in enumerate(names, 1) if name is None]
    if blank:
        raise DataError(
            f"the site column {column!r} is empty in {len(blank)} rows, first in row {blank[0]}",
            remedy="give every row a site",
        )
    if blurred(cells):
        raise DataError(
            f"the site column {column!r} {BLURRED}",
            remedy="write them as text, for instance with a letter before the digits",
        )
    rows: dict[ClientId, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(str(name), []).append(row)
    rest = table.without(column)
    return {name: rest.take(np.array(rows[name])) for name in sorted(rows)}


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise MissingExtra(
            "CSV and Parquet files need pandas", remedy="pip install 'atoll[tables]'"
        ) from error
    return pandas


def _read_csv(path: Path, coded: str = "") -> Table:
    pandas = _pandas()
    header, width = _head(path)
    extra = [f"{_NO_NAME}{i}" for i in range(width - len(header))]
    names = [name or f"{_NO_NAME}in header {i}" for i, name in enumerate(header)]
    try:  # with all columns named, or pandas would cut longer rows, or take a column for row names
        frame = pandas.read_csv(
            path,
            encoding="utf-8-sig",
            header=0,
            names=[*names, *extra],
            keep_default_na=False,
            na_values=[*NOT_KNOWN, *_BLANKS],
            low_memory=False,
            index_col=False,
            skipinitialspace=True,
            dtype={coded: str} if coded in names else None,
        )
    except pandas.errors.ParserError:
        _check_lengths(path, header)
        raise
    if frame[names[-1]].isna().any() or not frame[extra].isna().all(axis=None):
        _check_lengths(path, header)
    nameless = [name for name in names if name.startswith(_NO_NAME)]
    full = [name for name in nameless if not frame[name].isna().all()]
    if full:
        raise DataError(
            f"{path}: column {names.index(full[0]) + 1} has no name",
            remedy="name it in the first line, or export without row numbers (in pandas index=False)",
        )
    if coded in names:
        frame[coded] = _as_written(frame[coded])
    table = _from_frame(frame.drop(columns=[*nameless, *extra]))
    commas = [name for name in table.names if _with_commas(table[name])]
    if commas:  # as text they would be categories, or be left out
        raise DataError(
            f"{path}: numbers with commas in {', '.join(map(repr, commas))}",
            remedy="export them with decimal points, and without separators of thousands",
        )
    return table


def _as_written(cells: Any) -> Any:
    """Names that were read as text: numbers again, unless a number would make another name of them."""
    known = cells.dropna().str.strip()
    if known.str.fullmatch(r"[+-]?0\d+|[+-]?\d{16,}").any():
        return cells
    numbers = _pandas().to_numeric(known, errors="coerce")
    return cells if numbers.isna().any() else numbers.reindex(cells.index)


_NO_NAME = "\0"
"""Begins what a column is called here that has no name in the file; no file that is read holds it."""


def _head(path: Path) -> tuple[list[str], int]:
    """The names of a CSV file's columns, and how many values its first lines have, at least as many.

    Raises:
        DataError: it is empty, no text, separated by other marks, or has a column twice.
    """
    with path.open("rb") as file:
        if any(b"\0" in piece for piece in iter(lambda: file.read(1 << 20), b"")):
            with path.open(encoding="utf-8-sig") as text:
                text.readline()  # what begins as no UTF-8 is told by the byte
            raise DataError(
                f"{path}: holds characters of code 0, as text in UTF-16 and damaged files do",
                remedy="export it with the encoding UTF-8",
            )
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = (
            row
            for row in csv.reader(file, skipinitialspace=True)
            if any(cell.strip() for cell in row)
        )
        header = [name.strip() for name in next(rows, [])]
        width = max(len(header), len(next(rows, [])))
    while header and not header[-1]:  # commas at the end of the line
        del header[-1]
    if not header:
        raise DataError(f"{path}: is empty", remedy="leave it out, or fill the file")
    only = header[0] if len(header) == 1 else ""
    other = next((mark for mark in (";", "\t", "|") if mark in only), None)
    if other:  # else the first key that names a column is blamed
        raise DataError(
            f"{path}: columns are separated by {other!r}",
            remedy="export it with commas, and numbers with decimal points",
        )
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:  # pandas would rename the second one silently
        raise DataError(f"{path}: column {twice[0]!r} appears twice", remedy="rename one")
    return header, width


def _check_lengths(path: Path, header: list[str]) -> None:
    """Hold each row against the header: a row cut short, or with a comma too many, would shift values.

    Empty values behind the last column are as good as none.

    Raises:
        DataError: a row has fewer values, or more; names its line.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader, line = csv.reader(file, skipinitialspace=True), 1
        for row in reader:
            size = max((i for i, cell in enumerate(row, 1) if cell.strip()), default=0)
            if size > len(header):
                raise DataError(
                    f"{path}: the row in line {line} is too long: {size} values, {len(header)} columns",
                    remedy="put text with commas into quotes, and name every column, row numbers too",
                )
            if size > 0 and len(row) < len(header):
                raise DataError(
                    f"{path}: the row in line {line} is cut short: {len(row)} of {len(header)} values",
                    remedy="put text with line ends into quotes, close each quote, and keep the commas "
                    "around empty values",
                )
            line = reader.line_num + 1


def _with_commas(column: Array) -> bool:
    """Whether all cells of a text column are numbers, one of them at least written with a comma."""
    cells = [cell for cell in column if cell is not None] if column.dtype == object else []
    return any("," in str(cell) for cell in cells) and all(
        _COMMA_NUMBER.fullmatch(str(cell)) for cell in cells
    )


def _read_parquet(path: Path) -> Table:
    pandas = _pandas()
    try:
        return _from_frame(pandas.read_parquet(path))
    except ImportError as error:
        raise MissingExtra(
            "Parquet files need pyarrow", remedy="pip install 'atoll[tables]'"
        ) from error


def _from_frame(frame: Any) -> Table:
    columns = {}
    for name, series in _series(frame).items():
        if series.dtype.kind in "biuf" and isinstance(series.dtype, np.dtype):
            columns[name] = series.to_numpy(np.float64)
            continue
        if series.dtype.kind == "m":
            cells = series.astype(str).to_numpy(object, copy=True)
        else:
            cells = series.astype(object).to_numpy(copy=True)
        cells[series.isna().to_numpy()] = None
        columns[name] = cells
    return Table.of(columns)


def _series(frame: Any) -> dict[str, Any]:
    """The columns of a pandas frame; an index that has a name is one too, as in the files of others."""
    index, columns = frame.index, [str(name) for name in frame.columns]
    levels = () if isinstance(index, _pandas().RangeIndex) else index.names  # a range counts rows
    found = [
        (str(name), index.get_level_values(i).to_series())
        for i, name in enumerate(levels)
        if name is not None and str(name) not in columns
    ]
    found += [(name, frame.iloc[:, i]) for i, name in enumerate(columns)]
    twice = [name for name, times in Counter(name for name, _ in found).items() if times > 1]
    if twice:
        raise DataError(f"column {twice[0]!r} appears twice", remedy="rename one")
    return dict(found)


def _read_npz(path: Path) -> Table:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return Table.of(_spread({name: stored[name] for name in stored.files}))


def _read_npy(path: Path) -> Table:
    array = np.load(path, allow_pickle=False)
    if array.dtype.names:
        return Table.of({name: array[name] for name in array.dtype.names})
    if array.ndim != 2:
        raise DataError(f"{path}: an array of shape {array.shape} is no table")
    return Table.of(_spread({"x": array}))


def _spread(arrays: Mapping[str, Any]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, array in arrays.items():
        if array.ndim == 2:
            columns |= {f"{name}{i}": array[:, i] for i in range(array.shape[1])}
        else:
            columns[name] = array
    return columns


_READERS: Mapping[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".npy": _read_npy,
}
