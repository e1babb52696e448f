"""What a site has answered, and what it must therefore not answer any more.

An analyst who gets the mean age of everybody and then of everybody but one knows the age of one. The log
keeps, by column, which persons stood behind each answer, and refuses what would isolate too few. It is an
audit of sums in the manner of F. Y. Chin and G. Ozsoyoglu, "Auditing and inference control in statistical
databases", IEEE Trans. Software Eng. 8 (1982): answers are vectors over persons, and a combination of them
that is not zero for a few persons only tells about those.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from atoll.core.errors import Forbidden, StorageError
from atoll.core.layout import Array

__all__ = ["QueryLog", "Released"]

_MOST_SETS = 500
"""A column with more different sets behind its answers is closed: an audit takes time."""

_ONE_SET = "use the same rows as before: one analysis population for all analyses"


@dataclass(frozen=True, eq=False)
class Released:
    """One set of rows whose sums are about to leave.

    Args:
        columns: the columns that are summed.
        rows: which rows take part, ``(n,)`` bool.
        table: empty for a selection, which is audited in full. Cells of one table of suppressed counts
            carry the table's name: they are small by nature and held against cells of other tables.
        cuts: increasing cut points between which the rows of the first column are counted.
        apart: the site's sums have places of their own among those of all, where masks hide nothing.
    """

    columns: tuple[str, ...]
    rows: Array
    table: str = ""
    cuts: Array = field(default_factory=lambda: np.zeros(0))
    apart: bool = False


@dataclass(frozen=True, eq=False)
class _Entry:
    """A released set in terms of persons."""

    columns: tuple[str, ...]
    members: Array
    table: str
    cuts: tuple[float, ...]
    masked: bool = False
    data: str = ""

    def same(self, other: _Entry) -> bool:
        """Whether the other one tells the same; a sum with those of other sites in it tells another thing."""
        alike = self.columns == other.columns and self.cuts == other.cuts
        alike = alike and self.data == other.data and self.masked == other.masked
        return alike and np.array_equal(self.members, other.members)

    def to_plain(self) -> dict[str, Any]:
        bits = np.packbits(self.members).tobytes().hex()
        return {
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
        return cls(columns, members, plain["table"], cuts, masked, data)


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
            entry = _Entry(columns, members, one.table, cuts, hidden, self.data)
            if any(entry.same(old) for old in entries):
                continue
            for name in entry.columns:
                known = [old for old in entries if name in old.columns]
                self._look(name, entry, known, site)
            if cuts and values is not None:
                column = values[one.columns[0]]
                self._between(one, entry, entries, column, persons, site)
            entries.append(entry)
            fresh.append(entry)
        if not dry:
            self._write(fresh)
            self._entries = entries

    def _look(self, name: str, new: _Entry, known: Sequence[_Entry], site: str) -> None:
        if any(_other_rows(new, old) for old in known):
            raise Forbidden(
                f"the site's rows have changed since column {name!r} was last asked about",
                site=site,
                remedy="let the site review what was released, and begin a new log",
            )
        if len(known) >= _MOST_SETS:
            raise Forbidden(
                f"column {name!r} has been asked about in {len(known)} different selections",
                site=site,
                remedy=_ONE_SET,
            )
        if new.table:
            wrong = any(_close(new, old, self.minimum) for old in known if old.table)
        else:
            wrong = _isolates([*(old for old in known if not old.table), new], self.minimum)
        if wrong:
            raise Forbidden(
                f"together with earlier answers about column {name!r} this one would isolate "
                f"fewer than {self.minimum} persons",
                site=site,
                remedy=_ONE_SET,
            )

    def _between(
        self,
        one: Released,
        new: _Entry,
        entries: Sequence[_Entry],
        column: Array,
        persons: Array,
        site: str,
    ) -> None:
        """Refuse cut points that lie too close to those of an earlier count of the same rows."""
        for old in entries:
            if old.columns != new.columns or not old.cuts:
                continue
            if not np.array_equal(old.members, new.members):
                continue
            every = np.array(sorted({*old.cuts, *new.cuts}))
            place = np.searchsorted(every, column[one.rows], side="right")
            for i in range(1, len(every)):
                pair = {float(every[i - 1]), float(every[i])}
                if pair <= set(old.cuts) or pair <= set(new.cuts):
                    continue
                count = len(np.unique(persons[one.rows][place == i]))
                if 0 < count < self.minimum:
                    raise Forbidden(
                        f"cut points {every[i - 1]:g} and {every[i]:g} of column {one.columns[0]!r}, "
                        f"one of them asked for earlier, isolate fewer than {self.minimum} persons",
                        site=site,
                        remedy="use the same cut points as before",
                    )

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
    if new.table == old.table:
        return False  # what is small inside one table is suppressed there
    if min(new.members.sum(), old.members.sum()) < minimum:
        return False
    more, less = int((new.members & ~old.members).sum()), int((old.members & ~new.members).sum())
    return (less == 0 and 0 < more < minimum) or (more == 0 and 0 < less < minimum)


def _isolates(entries: Sequence[_Entry], minimum: int) -> bool:
    """Whether a combination of these sets is not zero for 1 to ``minimum - 1`` persons only.

    Persons that every set treats alike form an atom. A combination that vanishes outside some atoms
    exists exactly where the sets, cut down to the other atoms, have a lower rank.
    """
    every = np.array([entry.members for entry in entries], bool)
    packed = np.packbits(every, axis=0)  # one word a person sorts faster than a column of booleans
    keys = packed.T.copy().view([("", np.uint8)] * packed.shape[0])[:, 0]
    _, first, sizes = np.unique(keys, return_index=True, return_counts=True)
    patterns = every[:, first]
    masked = np.array([entry.masked for entry in entries], bool)
    if masked.any():  # the persons of other sites, who are in every masked sum
        patterns = np.column_stack([patterns, masked])
        sizes = np.append(sizes, minimum)
    inside = patterns.any(axis=0)  # who was never asked about is in no combination
    vectors, sizes = patterns[:, inside].astype(np.float64), sizes[inside]
    if not vectors.size:
        return False
    full = np.linalg.matrix_rank(vectors)
    small = [int(i) for i in np.flatnonzero(sizes < minimum)]
    for few in _small_unions(small, sizes, minimum):
        rest = np.delete(vectors, few, axis=1)
        if (np.linalg.matrix_rank(rest) if rest.size else 0) < full:
            return True
    return False


def _small_unions(small: Sequence[int], sizes: Array, minimum: int) -> Iterable[list[int]]:
    """Single small atoms, pairs, and as many of the smallest as stay below the minimum together."""
    yield from ([i] for i in small)
    yield from ([i, j] for i, j in combinations(small, 2) if sizes[i] + sizes[j] < minimum)
    smallest = sorted(small, key=lambda i: (sizes[i], i))
    taken, count = list[int](), 0
    for i in smallest:
        if count + sizes[i] >= minimum:
            break
        taken, count = [*taken, i], count + int(sizes[i])
    if len(taken) > 2:
        yield taken
