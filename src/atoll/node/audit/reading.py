"""A site's audit log for its steward: checked from the first line to the last, and joined to what can be read.

Nothing is changed here, and the node may be running. A head that somebody has kept elsewhere shows that nothing
that stood there has been taken back since: who can write the node's folder can put an old copy of all of it in
place, and no file in it would tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.core.errors import AuthError, StorageError
from atoll.node.audit.log import check_link, closed, file_of, files_in, missing
from atoll.node.journal import Head, Reading, objection, read_head, read_journal
from atoll.wire.disk import Disk, RealDisk

__all__ = ["Checked", "Totals", "check", "entries", "newest_head", "totals"]

_HEAD = re.compile(r"(\d{1,9}):(.+)")
_FACTS = ("job", "name", "by", "dataset", "aggregation")


@dataclass(frozen=True)
class Checked:
    """A log that is as it was written.

    Args:
        files: of it that were read.
        lines: in them.
        behind: lines at the end that no head names yet: of the last seconds, or before a crash.
        head: how far it has come, as :func:`check` takes it later; empty where there is nothing.
    """

    files: int
    lines: int
    behind: int
    head: str


def newest_head(folder: Path, key: bytes, disk: Disk | None = None) -> Head | None:
    """The head of a log's newest file; None where there is none.

    Raises:
        StorageError: damaged, or not signed with the site's ``key`` (raw).
    """
    used = RealDisk() if disk is None else disk
    numbers = files_in(folder, used)
    return read_head(file_of(folder, numbers[-1]), key, used) if numbers else None


def check(
    folder: Path, key: bytes, *, seen: str = "", first: int = 1, disk: Disk | None = None
) -> Checked:
    """Check every line, how files follow one another, and the heads.

    Args:
        folder: of the log.
        key: the site's raw public key.
        seen: a head that was kept elsewhere; empty for none.
        first: number of the file to begin with, where those before it were taken to another place.
        disk: where it lies.

    Raises:
        StorageError: with file and number of the line at fault.
        AuthError: ``seen`` is no head of this site's log.
    """
    used = RealDisk() if disk is None else disk
    at, head = _parsed(folder, seen, key) if seen else (0, None)
    files = lines = behind = 0
    newest = ""
    for number, found in _files(folder, key, first, used):
        path = file_of(folder, number)
        if head is not None and number == at and (reason := objection(path, found, head)):
            raise StorageError(reason, remedy="put the newest copy of the log back")
        files, lines = files + 1, lines + len(found.digests)
        own = read_head(path, key, used)
        behind = 0 if own is None else max(0, len(found.digests) - own.count)
        newest = "" if own is None else f"{number}:{own}"
    if head is not None and (at < first or at >= first + files):
        raise StorageError(
            f"{file_of(folder, at)}, line {head.count}: was seen elsewhere, and the file is not among these",
            remedy="put the newest copy of the log back",
        )
    return Checked(files, lines, behind, newest)


def entries(
    folder: Path,
    key: bytes,
    wanted: Callable[[Mapping[str, Any]], bool] = lambda entry: True,
    *,
    disk: Disk | None = None,
) -> Iterator[dict[str, Any]]:
    """Lines of the log that are wanted, oldest first; all are checked. With an answer comes what its run is.

    Args:
        folder: of the log.
        key: the site's raw public key.
        wanted: is given a line with ``at``, ``what`` and whatever else it tells.
        disk: where it lies.

    Raises:
        StorageError: as :func:`check`.
    """
    used = RealDisk() if disk is None else disk
    runs: dict[str, Mapping[str, Any]] = {}
    for number, found in _files(folder, key, min(files_in(folder, used), default=1), used):
        for line, body in enumerate(found.bodies, 1):
            if body.get("what") == "run":
                runs[body["run"]] = {name: body.get(name, "") for name in _FACTS}
            entry = {"file": number, "line": line, **runs.get(body.get("run", ""), {}), **body}
            if wanted(entry):
                yield entry


@dataclass
class Totals:
    """What has left for one run.

    Args:
        run: its id.
        facts: job, name, researcher, dataset and aggregation, as far as they are known.
        first, last: when, in seconds since 1970.
        left, refused, failed: answers.
        sent: bytes of all of them.
        charged: answers that the privacy ledger counts.
    """

    run: str
    facts: Mapping[str, str]
    first: float
    last: float = 0.0
    left: int = 0
    refused: int = 0
    failed: int = 0
    sent: int = 0
    charged: int = 0
    _charges: set[str] = field(default_factory=set, repr=False)

    def take(self, entry: Mapping[str, Any]) -> None:
        """Add an answer."""
        self.last = entry["at"]
        setattr(self, entry["outcome"], getattr(self, entry["outcome"]) + 1)
        self.sent += entry["bytes"]
        if "charge" in entry:
            self._charges.add(entry["charge"])
            self.charged = len(self._charges)


def totals(found: Iterator[dict[str, Any]]) -> list[Totals]:
    """What has left, by run, in the order in which they began."""
    runs: dict[str, Totals] = {}
    for entry in found:
        if entry["what"] == "answer":
            facts = {name: str(entry.get(name, "")) for name in _FACTS}
            made = runs.setdefault(entry["run"], Totals(entry["run"], facts, entry["at"]))
            made.facts = facts
            made.take(entry)
    return list(runs.values())


def _files(folder: Path, key: bytes, first: int, disk: Disk) -> Iterator[tuple[int, Reading]]:
    """The files of a log one after another, checked."""
    numbers = files_in(folder, disk)
    earlier, before = file_of(folder, first - 1), Reading()
    number = first
    while number == first or closed(before) or number <= max(numbers, default=0):
        path = file_of(folder, number)
        found = read_journal(path, key, disk)
        if not found.digests and (numbers or number > first):
            if number != numbers[-1] or closed(before):
                raise missing(path)
        elif before.digests:
            check_link(path, found, earlier, before)
            if not closed(before) and number < numbers[-1]:
                raise StorageError(f"{earlier}, line {len(before.digests) + 1}: is missing")
        if found.digests:
            yield number, found
        earlier, before, number = path, found, number + 1


def _parsed(folder: Path, seen: str, key: bytes) -> tuple[int, Head]:
    if (told := _HEAD.fullmatch(seen.strip())) is None:
        raise AuthError(f"{seen[:200]!r} is no head of an audit log", remedy="FILE:COUNT.HASH.SIGN")
    number, head = int(told[1]), Head.parse(told[2])
    head.check(file_of(folder, number).name, key)
    return number, head
