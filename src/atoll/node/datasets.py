"""The datasets of a site: registered by name, so that no job ever names a path of its own.

``datasets.toml`` is written by ``atoll node data`` and may be edited by hand::

    [heart]
    path = "/srv/registry/heart.csv"
    missing = ["?", "chol=0"]

    [heart.columns]
    age = "number"
    sex = "text"

    [heart.statistics]
    minimum = 20

A job reads the dataset called like its ``data.source`` without the ending. The columns seen when it was
registered are held against the file each time it is opened, so that an export that went wrong is found
before it is trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.contracts import Examples
from atoll.core.errors import DataError, Fault, NotFound, StorageError, raise_faults, suggest
from atoll.core.layout import Array
from atoll.data.readers import read_examples, read_table
from atoll.data.table import Table, label
from atoll.node.home import write_text
from atoll.node.rules import Rule, rule_faults
from atoll.wire.trouble import unreadable

__all__ = ["Dataset", "Datasets", "digest_of", "open_examples", "open_table"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KINDS = ("number", "text", "array")
_KEYS = ("path", "missing", "columns", "statistics")
_GONE = "is gone since the dataset was registered"
_TEXT = "was registered as number and now is text"


@dataclass(frozen=True)
class Dataset:
    """One registered dataset.

    Args:
        name: what jobs call it.
        path: where it lies.
        missing: values that mean "not known": ``CODE`` in any column, ``COLUMN=CODE`` in one.
        columns: kind of each column when it was registered: ``number``, ``text``, or ``array``.
        rule: what statistics may tell of it.
        queries: file of what statistics have been told of it.
    """

    name: str
    path: str
    missing: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    rule: Rule = field(default_factory=Rule)
    queries: str = ""

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "name": self.name,
            "path": self.path,
            "missing": list(self.missing),
            "columns": dict(self.columns),
            "rule": self.rule.to_plain(),
            "queries": self.queries,
        }


@dataclass(frozen=True)
class Datasets:
    """The register in the file ``path``."""

    path: Path

    def all(self) -> dict[str, Dataset]:
        """Every dataset by name.

        Raises:
            StorageError: the file cannot be read.
            DataError: with every fault in it.
        """
        try:
            raw = tomllib.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise unreadable(self.path, error) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} is not valid TOML: {error}") from error
        faults = [f for name, table in raw.items() for f in _faults(name, table)]
        raise_faults(DataError, str(self.path), faults)
        return {
            name: Dataset(
                name,
                table["path"],
                tuple(table.get("missing", ())),
                table.get("columns", {}),
                Rule.from_plain(table.get("statistics", {})),
                str(self.queries(name)),
            )
            for name, table in raw.items()
        }

    @property
    def state(self) -> tuple[int, ...] | None:
        """What tells one state of the register from the next, without reading it; None where there is none."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def told(self) -> dict[str, dict[str, Any]]:
        """What the site's audit log says of each dataset.

        Raises:
            StorageError: the file cannot be read.
            DataError: with every fault in it.
        """
        return {
            name: {"path": d.path, "columns": dict(d.columns), "rule": d.rule.to_plain()}
            for name, d in self.all().items()
        }

    def queries(self, name: str) -> Path:
        """The file of what statistics have been told of the dataset ``name``."""
        return self.path.parent / "queries" / f"{name}.jsonl"

    def govern(self, name: str, rule: Rule) -> Dataset:
        """Set what statistics may tell of a dataset; holds from the next task on.

        Raises:
            NotFound: none is registered under ``name``.
            DataError: the dataset has no such column.
        """
        found = self.all()
        known = self.get(name)
        asked = [*rule.columns, *([rule.person] if rule.person else [])]
        faults = [
            Fault(f"column {column!r}", "is not in the dataset", suggest(column, known.columns))
            for column in asked
            if column not in known.columns
        ]
        raise_faults(DataError, f"the rule of {name!r}", faults)
        made = replace(known, rule=rule)
        self._write({**found, name: made})
        return made

    def review(self, name: str) -> Path | None:
        """Begin a new query log for a dataset and keep the old one beside it; where that is now.

        Raises:
            NotFound: none is registered under ``name``.
            StorageError: it cannot be put away.
        """
        path = Path(self.get(name).queries)
        if not path.exists():
            return None
        kept = path.with_name(f"{path.stem}.{time.strftime('%Y%m%d-%H%M%S')}.reviewed")
        try:
            path.rename(kept)
        except OSError as error:
            raise StorageError(f"{path} cannot be put away: {error.strerror}") from error
        return kept

    def get(self, name: str) -> Dataset:
        """The dataset ``name``.

        Raises:
            NotFound: none is registered under it.
        """
        found = self.all()
        if name not in found:
            raise NotFound(
                f"no dataset {name!r} is registered at this site",
                remedy=f"atoll node data add {name} PATH",
            )
        return found[name]

    def add(self, name: str, path: Path, missing: Iterable[str] = ()) -> Dataset:
        """Register the file ``path``, after reading it, as ``name``; an earlier one is replaced.

        Raises:
            DataError: a bad name, no such file, not a table, or a missing code for no column.
        """
        if not _NAME.fullmatch(name):
            raise DataError(
                f"{name!r} cannot be a dataset's name",
                remedy="letters, digits and _ . - only, at most 64",
            )
        found = self.all()
        made = _observed(name, path.expanduser().resolve(), tuple(missing))
        rule = found[name].rule if name in found else Rule()
        made = replace(made, rule=rule, queries=str(self.queries(name)))
        self._write({**found, name: made})
        return made

    def remove(self, name: str) -> None:
        """Forget ``name``; the file stays where it is.

        Raises:
            NotFound: none is registered under it.
        """
        found = self.all()
        if name not in found:
            raise NotFound(f"no dataset {name!r} is registered", remedy=suggest(name, found))
        del found[name]
        self._write(found)

    def _write(self, found: Mapping[str, Dataset]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lines = [f"# Written by atoll node data, {time.strftime('%Y-%m-%d')}."]
        for name, dataset in sorted(found.items()):
            codes = ", ".join(map(_quoted, dataset.missing))
            lines += [f"\n[{_quoted(name)}]", f"path = {_quoted(dataset.path)}"]
            lines += [f"missing = [{codes}]", f"\n[{_quoted(name)}.columns]"]
            lines += [f"{_quoted(c)} = {_quoted(kind)}" for c, kind in dataset.columns.items()]
            if dataset.rule != Rule():
                plain = dataset.rule.to_plain().items()
                lines += [f"\n[{_quoted(name)}.statistics]"]
                lines += [
                    f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in plain
                ]
        write_text(self.path, "\n".join(lines) + "\n")


def open_table(dataset: Dataset) -> Table:
    """The dataset's table, its missing codes taken out.

    Raises:
        DataError: it cannot be read, or its columns are not those that were registered.
    """
    try:
        whole = read_table(dataset.path)
    except DataError as error:
        raise _unread(dataset.path, error.message, error.remedy) from error
    table = _without_codes(whole, dataset)
    seen = _kinds(table)
    faults = [
        Fault(f"column {c!r}", _GONE, suggest(c, seen), withheld=_GONE)
        for c in dataset.columns
        if c not in seen
    ]
    faults += [
        Fault(f"column {c!r}", _TEXT, "correct the file, or name its missing codes", withheld=_TEXT)
        for c, kind in dataset.columns.items()
        if c in seen and (kind, seen[c]) == ("number", "text")
    ]
    raise_faults(DataError, f"dataset {dataset.name!r} has changed", faults)
    return table


def open_examples(dataset: Dataset) -> Examples:
    """The dataset's rows where they are no table (images, sequences).

    Raises:
        DataError: it cannot be read.
    """
    return read_examples(dataset.path)


def digest_of(path: str) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unread(path, f"cannot be read: {error.strerror}", "look at it there") from error


def _unread(path: str, message: str, remedy: str) -> DataError:
    """The error of a dataset's file; others than its owner learn what becomes of it, not where it lies."""
    told = f"{path}: {message}" if path not in message else message
    there = "is no table that can be read" if Path(path).is_file() else "is not there"
    fault = Fault("the dataset's file", told, remedy, withheld=there)
    return DataError("the dataset cannot be opened", faults=[fault])


def _observed(name: str, path: Path, missing: tuple[str, ...]) -> Dataset:
    """The dataset with the columns its file has now."""
    bare = Dataset(name, str(path), missing)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) if path.is_file() else _absent(path) as stored:
            is_table = all(stored[n].ndim <= 2 for n in stored.files)
            if not is_table or {"features", "targets"} <= set(stored.files):
                shapes = dict.fromkeys(stored.files, "array")
                read_examples(path)
                return Dataset(name, str(path), (), shapes)
    table = read_table(path)
    if not len(table):
        raise DataError(f"{path} has no rows", remedy="check the file")
    faults = []
    for code in missing:
        column, equals, _ = code.partition("=")
        if equals and column not in table.columns:
            faults.append(
                Fault(f"missing {code!r}", f"no column {column!r}", suggest(column, table.columns))
            )
    raise_faults(DataError, str(path), faults)
    return Dataset(name, str(path), missing, _kinds(_without_codes(table, bare)))


def _absent(path: Path) -> Any:
    raise DataError(f"{path}: no such file", remedy="check the path")


def _kinds(table: Table) -> dict[str, str]:
    return {n: "number" if c.dtype.kind == "f" else "text" for n, c in table.columns.items()}


def _without_codes(table: Table, dataset: Dataset) -> Table:
    if not dataset.missing:
        return table
    every, single = set[str](), dict[str, set[str]]()
    for code in dataset.missing:
        column, equals, value = code.partition("=")
        if equals:
            single.setdefault(column, set()).add(value.strip())
        else:
            every.add(code.strip())
    return Table(
        {
            name: _cleaned(cells, every | single.get(name, set()))
            for name, cells in table.columns.items()
        }
    )


def _cleaned(cells: Array, codes: set[str]) -> Array:
    if not codes:
        return cells
    out = cells.copy()
    if cells.dtype.kind == "f":
        for code in codes:
            try:
                out[cells == float(code)] = np.nan
            except ValueError:
                continue  # a word, in a column of numbers
        return out
    kept = [None if c is not None and label(c) in codes else c for c in cells]
    numbers = [_number(c) for c in kept]
    if all(n is not None for n in numbers):  # only the codes had made it a column of words
        return np.array(numbers, np.float64)
    out[:] = kept
    return out


def _number(cell: object) -> float | None:
    """A cell as a number, NaN where it is missing, None where it is none."""
    if cell is None:
        return float("nan")
    try:
        return float(str(cell))
    except ValueError:
        return None


def _quoted(text: str) -> str:
    """A TOML basic string; JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _faults(name: str, table: Any) -> Iterable[Fault]:
    if not isinstance(table, dict):
        yield Fault(name, "is no table", f"write [{name}] and path = … below it")
        return
    for key in sorted(set(table) - set(_KEYS)):
        yield Fault(f"{name}.{key}", "unknown key", suggest(key, _KEYS))
    yield from rule_faults(f"{name}.statistics", table.get("statistics", {}))
    if not isinstance(table.get("path"), str):
        yield Fault(f"{name}.path", "is required", "add path = …")
    codes, columns = table.get("missing", []), table.get("columns", {})
    if not isinstance(codes, list) or not all(isinstance(c, str) for c in codes):
        yield Fault(f"{name}.missing", "is not a list of texts", 'write missing = ["?"]')
    if not isinstance(columns, dict) or not all(k in _KINDS for k in columns.values()):
        yield Fault(f"{name}.columns", f"holds other kinds than {', '.join(_KINDS)}")
