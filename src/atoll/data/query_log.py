"""What a site has answered, and what it must therefore not answer any more.

An analyst who gets the mean age of everybody and then of everybody but one knows the age of one. The log
keeps, by column, which persons stood behind each answer, and refuses what would isolate too few. It is an
audit of sums in the manner of F. Y. Chin and G. Ozsoyoglu, "Auditing and inference control in statistical
databases", IEEE Trans. Software Eng. 8 (1982): answers are vectors over persons, and a combination of them
that is not zero for a few persons only tells about those.

How many rows a job looks at is told whatever is asked of them. So beside the columns the log keeps the
selections themselves, and holds each against the others and against the cells of tables.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import Forbidden, StorageError
from atoll.core.layout import Array
from atoll.data.differences import isolates, nearly_nested

__all__ = ["QueryLog", "Released"]

_MOST_SETS = 500
"""A column with more different sets behind its answers is closed: an audit takes time."""

_ONE_SET = "use the same rows as before: one analysis population for all analyses"


@dataclass(frozen=True, eq=False)
class Released:
    """One set of rows whose sums are about to leave.

    Args:
        columns: the columns that are summed; none for the selection of rows itself, whose number is told.
        rows: which rows take part, ``(n,)`` bool.
        table: empty for a selection, which is audited in full. Cells of one table of suppressed counts
            carry the table's name: they are small by nature and held against cells of other tables.
        cuts: increasing cut points between which the rows of the first column are counted.
        apart: the site's sums have places of their own among those of all, where masks hide nothing.
        study: names the selection of rows that this is about, and what is looked at of it; empty for all rows.
    """

    columns: tuple[str, ...]
    rows: Array
    table: str = ""
    cuts: Array = field(default_factory=lambda: np.zeros(0))
    apart: bool = False
    study: tuple[str, str] = ("", "")


@dataclass(frozen=True, eq=False)
class _Entry:
    """A released set in terms of persons; ``rows`` where it has some rows of a person and not all."""

    columns: tuple[str, ...]
    members: Array
    table: str
    cuts: tuple[float, ...]
    masked: bool = False
    data: str = ""
    study: tuple[str, str] = ("", "")
    rows: Array | None = None

    def same(self, other: _Entry) -> bool:
        """Whether the other one tells the same; a sum with those of other sites in it tells another thing."""
        alike = self.columns == other.columns and self.cuts == other.cuts
        alike = alike and self.data == other.data and self.masked == other.masked
        alike = alike and bool(self.study[0]) == bool(other.study[0])
        alike = alike and np.array_equal(self.members, other.members)
        parts = [entry.rows for entry in (self, other) if entry.rows is not None]
        return alike and (not parts or (len(parts) == 2 and np.array_equal(parts[0], parts[1])))

    def rows_of(self, persons: Array) -> Array:
        """Which rows are in it."""
        return _rows_of(self.members, persons) if self.rows is None else self.rows

    @property
    def of_all(self) -> bool:
        """Whether it is about all rows, of which none were selected."""
        return bool(self.columns) and not self.study[0]

    def to_plain(self) -> dict[str, Any]:
        bits = np.packbits(self.members).tobytes().hex()
        about: dict[str, Any] = {"study": self.study} if any(self.study) else {}
        if self.rows is not None:
            about["rows"] = [np.packbits(self.rows).tobytes().hex(), len(self.rows)]
        return {
            **about,
            "columns": self.columns,
            "persons": bits,
            "count": len(self.members),
            "table": self.table,
            "cuts": self.cuts,
            "masked": self.masked,
            "data": self.data,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> _Entry:
        bits = np.frombuffer(bytes.fromhex(plain["persons"]), np.uint8)
        members = np.unpackbits(bits, count=plain["count"]).astype(bool)
        masked, data = bool(plain.get("masked", False)), str(plain.get("data", ""))
        columns, cuts = tuple(plain["columns"]), tuple(plain["cuts"])
        first, second = map(str, plain.get("study", ("", "")))
        rows, (raw, size) = None, plain.get("rows", ("", 0))
        if raw:
            packed = np.frombuffer(bytes.fromhex(raw), np.uint8)
            rows = np.unpackbits(packed, count=size).astype(bool)
        return cls(columns, members, plain["table"], cuts, masked, data, (first, second), rows)


@dataclass
class QueryLog:
    """The log of one site; it never leaves it.

    Args:
        minimum: least number of persons that a combination of answers may isolate.
        path: file to keep it in, one line an answer; None for memory only.
        masked: the answers are only seen added to those of other sites, so a small set by itself tells
            nothing; a difference of two still does.
        data: what names the site's rows, such as a digest of their file; answers from other rows under
            the same log are not compared but refused.

    Raises:
        StorageError: the file cannot be read. A last line that a crash has torn was never answered.
    """

    minimum: int = 11
    path: Path | None = None
    masked: bool = False
    data: str = ""
    _entries: list[_Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            self._entries = _read(self.path)

    def __len__(self) -> int:
        """Number of different sets answered."""
        return len(self._entries)

    def admit(
        self,
        released: Iterable[Released],
        persons: Array,
        values: Mapping[str, Array] | None = None,
        *,
        site: str = "",
        dry: bool = False,
    ) -> None:
        """Note all sets that one analysis is about to release, or refuse it and note none.

        Args:
            released: the sets.
            persons: the person behind each row, ``(n,)`` whole numbers from 0.
            values: the site's columns, where rows are counted between cut points.
            site: for the error.
            dry: only look: a federation asks all its sites before any of them notes.

        Raises:
            Forbidden: together with earlier answers it would isolate fewer than the minimum.
            StorageError: the log cannot be written; nothing may be sent.
        """
        entries, fresh = list(self._entries), list[_Entry]()
        for one in released:
            members = np.zeros(int(persons.max(initial=-1)) + 1, bool)
            members[persons[one.rows]] = True
            cuts = tuple(float(c) for c in one.cuts)
            columns = tuple(sorted(one.columns))
            hidden = self.masked and not one.apart
            rows = None if np.array_equal(one.rows, _rows_of(members, persons)) else one.rows
            entry = _Entry(columns, members, one.table, cuts, hidden, self.data, one.study, rows)
            if any(entry.same(old) for old in entries):
                continue
            seen = _Seen(values or {}, persons, one.rows)
            for name in entry.columns:
                known = [old for old in entries if name in old.columns]
                self._look(name, entry, known, seen, site)
                self._between(name, entry, known, seen, site)
            self._selections(entry, entries, seen, site)
            if not columns and not one.study[0]:
                continue  # all rows: that they were asked about is seen from what was
            entries.append(entry)
            fresh.append(entry)
        if not dry:
            self._write(fresh)
            self._entries = entries

    def _look(
        self, name: str, new: _Entry, known: Sequence[_Entry], seen: _Seen, site: str
    ) -> None:
        about = f"column {name!r}" if name else "selections of rows"
        if any(_other_rows(new, old) for old in known):
            raise Forbidden(
                f"the site's rows have changed since {about} was last asked about",
                site=site,
                remedy="let the site review what was released, and begin a new log",
            )
        if len(known) >= _MOST_SETS:
            raise Forbidden(
                f"{about} has been asked about in {len(known)} different selections",
                site=site,
                remedy=_ONE_SET,
            )
        wrong: bool | None
        if new.table:
            wrong = any(_close(new, old, self.minimum) for old in known if old.table)
        else:
            sets = [*(old for old in known if not old.table), new]
            wrong = _isolates(sets, self.minimum)
            if wrong is False:
                wrong = _isolates_rows(sets, seen.persons, self.minimum)
        if wrong is not False:
            raise self._refusal(about, wrong, site)

    def _refusal(self, about: str, wrong: bool | None, site: str) -> Forbidden:
        would = "may" if wrong is None else "would"
        return Forbidden(
            f"together with earlier answers about {about} this one {would} isolate "
            f"fewer than {self.minimum} persons",
            site=site,
            remedy=_ONE_SET,
        )

    def _between(
        self, name: str, new: _Entry, known: Sequence[_Entry], seen: _Seen, site: str
    ) -> None:
        """Refuse counts between cut points that are too close to an earlier count of the column."""
        values = seen.values.get(name)
        for old in () if values is None or new.table else known:
            if old.table or not (old.cuts or new.cuts):
                continue
            if np.array_equal(old.members, new.members):
                if old.cuts and new.cuts:
                    self._same_rows(name, new, old, seen, site)
            elif old.masked == new.masked and seen.nearly_nested(name, new, old, self.minimum):
                raise self._refusal(f"column {name!r}", True, site)

    def _same_rows(self, name: str, new: _Entry, old: _Entry, seen: _Seen, site: str) -> None:
        """Refuse cut points that lie too close to those of an earlier count of the same rows."""
        every = np.array(sorted({*old.cuts, *new.cuts}))
        place = np.searchsorted(every, seen.values[name][seen.rows], side="right")
        for i in range(1, len(every)):
            pair = {float(every[i - 1]), float(every[i])}
            if pair <= set(old.cuts) or pair <= set(new.cuts):
                continue
            count = len(np.unique(seen.persons[seen.rows][place == i]))
            if 0 < count < self.minimum:
                raise Forbidden(
                    f"cut points {every[i - 1]:g} and {every[i]:g} of column {name!r}, "
                    f"one of them asked for earlier, isolate fewer than {self.minimum} persons",
                    site=site,
                    remedy="use the same cut points as before",
                )

    def _selections(self, new: _Entry, entries: Sequence[_Entry], seen: _Seen, site: str) -> None:
        """Hold a selection of rows against earlier ones, and against the cells of tables of other ones."""
        if new.columns and not new.table:
            return
        asked = [old for old in entries if not old.columns]
        cells = [old for old in entries if old.table]
        if not new.columns:
            every = np.ones(len(new.members), bool)
            whole = {old.masked for old in entries if old.of_all and not _other_rows(new, old)}
            if not new.study[0] and new.masked in whole:
                return
            asked += [_Entry((), every, "", (), masked, self.data) for masked in sorted(whole)]
            self._look("", new, asked, seen, site)
            pairs = [(old, new) for old in cells]
        else:
            pairs = [(new, old) for old in asked]
        if any(seen.near(cell, chosen, self.minimum) for cell, chosen in pairs):
            raise self._refusal("selections of rows", True, site)

    def _write(self, fresh: Sequence[_Entry]) -> None:
        if self.path is None or not fresh:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                _cut_torn_line(self.path)
                lines = [json.dumps(entry.to_plain()) + "\n" for entry in fresh]
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StorageError(
                f"the query log {self.path} cannot be written",
                remedy="free space; nothing was sent",
            ) from error


def _read(path: Path) -> list[_Entry]:
    """The entries in a file; what follows the last line break was torn by a crash and never answered."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        return [_Entry.from_plain(json.loads(line)) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"the query log {path} cannot be read: {error}",
            remedy="put the newest copy back; nothing is answered without it",
        ) from error


def _cut_torn_line(path: Path) -> None:
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole < len(raw):
        os.truncate(path, whole)


def _other_rows(new: _Entry, old: _Entry) -> bool:
    return len(new.members) != len(old.members) or new.data != old.data


def _close(new: _Entry, old: _Entry, minimum: int) -> bool:
    """Whether one cell lies in another, both large, and few persons lie between them."""
    if (new.table, new.study) == (old.table, old.study):
        return False  # what is small inside one table is suppressed there
    if min(new.members.sum(), old.members.sum()) < minimum:
        return False
    more, less = int((new.members & ~old.members).sum()), int((old.members & ~new.members).sum())
    return (less == 0 and 0 < more < minimum) or (more == 0 and 0 < less < minimum)


def _isolates(entries: Sequence[_Entry], minimum: int) -> bool | None:
    """Whether a combination of these sets tells about 1 to ``minimum - 1`` persons; None: not known."""
    sets = np.array([entry.members for entry in entries], bool)
    return isolates(sets, np.array([entry.masked for entry in entries], bool), minimum)


def _isolates_rows(entries: Sequence[_Entry], persons: Array, minimum: int) -> bool | None:
    """The same where sets have some rows of a person and not all: rows of few persons may be left of many."""
    if all(entry.rows is None for entry in entries):
        return False
    sets = np.array([entry.rows_of(persons) for entry in entries], bool)
    for entry, rows in zip(entries[:-1], sets[:-1], strict=True):
        if entry.masked == entries[-1].masked:
            between = len(np.unique(persons[rows ^ sets[-1]]))
            if 0 < between < minimum:
                return True
    shared = np.array([entry.masked for entry in entries], bool)
    return isolates(sets, shared, minimum, persons)


@dataclass(frozen=True, eq=False)
class _Seen:
    """The rows that a new set is of.

    Args:
        values: the site's columns.
        persons: the person behind each row.
        rows: which of them are in the set.
    """

    values: Mapping[str, Array]
    persons: Array
    rows: Array

    def nearly_nested(self, name: str, new: _Entry, old: _Entry, minimum: int) -> bool:
        """Whether few persons lie between what two sets count between cut points of a column."""
        values = self.values[name]
        places = []
        for entry, rows in ((new, self.rows), (old, _rows_of(old.members, self.persons))):
            place = np.searchsorted(np.array(entry.cuts), values, side="right")
            place = np.where(rows & ~np.isnan(values), place, -1)
            places.append((place, len(entry.cuts) + 1))
        return nearly_nested(places[0], places[1], self.persons, minimum)

    def near(self, cell: _Entry, chosen: _Entry, minimum: int) -> bool:
        """Whether a cell of a table of other rows and a selection differ in few persons.

        Who lacks a value of the table's columns is in none of its cells, and does not count.
        """
        if cell.study[0] == chosen.study[0] or cell.masked != chosen.masked:
            return False
        if _other_rows(cell, chosen) or min(cell.members.sum(), chosen.members.sum()) < minimum:
            return False
        known = np.ones(len(self.persons), bool)
        for name in cell.columns:
            if name in self.values:
                known &= ~np.isnan(self.values[name])
        among = np.zeros(len(cell.members), bool)
        among[self.persons[known]] = True
        more = int((chosen.members & ~cell.members & among).sum())
        less = int((cell.members & ~chosen.members).sum())
        return (less == 0 and 0 < more < minimum) or (more == 0 and 0 < less < minimum)


def _rows_of(members: Array, persons: Array) -> Array:
    """The rows of persons."""
    rows: Array = members[persons]
    return rows
