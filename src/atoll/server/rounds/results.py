"""A run's folder at the server, ``home/runs/<id>``: the same as a simulation's, file by file."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from atoll.core.errors import AtollError, NotFound, suggest
from atoll.job.deployed import settled_of
from atoll.job.package import spec_from_plain
from atoll.report.folder import RunFolder
from atoll.server.office import LEDGERS, Office
from atoll.server.store.contract import RunRow, Store
from atoll.wire.frames import Blob
from atoll.wire.messages import JobReply, RoundsReply

__all__ = [
    "CANCELLING",
    "ENDED",
    "OPEN",
    "Files",
    "Readable",
    "leave_failed",
    "reply_of",
    "rounds_of",
    "sweep",
]

OPEN = "open"
"""Status of a run that goes on."""
CANCELLING = "cancelling"
"""Status of a run that is to be cancelled."""
ENDED = ("completed", "failed", "cancelled")
"""Statuses of a run that has ended."""

_MOST_ROUNDS = 500

_PIECE = 1 << 20


def leave_failed(office: Office, row: RunRow, status: str) -> None:
    """An honest manifest of a run that ended before its first round, or before it was back there."""
    folder, last = RunFolder(office.folder(row.id)), office.store.last_round(row.id)
    folder.write_manifest(
        {
            "name": row.name,
            "atoll": str(sys.modules["atoll"].__version__),
            "job": json.loads(row.spec),
            "job_hash": row.job_hash,
            "started": datetime.fromtimestamp(row.created, UTC).isoformat(timespec="seconds"),
            "finished": datetime.fromtimestamp(office.now(), UTC).isoformat(timespec="seconds"),
            "status": status,
            "rounds": last.number if last else 0,
            "executor": "deployed",
            "sites": list(row.sites),
        }
    )


def sweep(office: Office, row: RunRow) -> None:
    """Delete what a run that has ended needs no more; its code and last checkpoints stay."""
    here = set(office.blobs.digests())
    for contribution in office.store.contributions(row.id):
        if contribution.sha256 in here:
            office.blobs.delete(contribution.sha256)
    plan = office.store.run(row.id).plan
    if plan:
        office.blobs.delete(plan)


@dataclass(frozen=True)
class Readable:
    """Something to be sent, piece by piece.

    Args:
        size: bytes.
        read: gives the bytes from the first number up to the second.
        sha: SHA-256 that has taken all of them; None where it was not taken here.
    """

    size: int
    read: Callable[[int, int], bytes | memoryview]
    sha: hashlib._Hash | None = None


def reply_of(store: Store, row: RunRow, *, whole: bool = False) -> JobReply:
    """What a researcher is told of a run; the ``whole`` of it where one run alone is asked for."""
    last = store.last_round(row.id)
    return JobReply(
        id=row.id,
        name=row.name,
        job_hash=row.job_hash,
        by=row.by,
        created=row.created,
        sites=list(row.sites),
        status=row.status,
        phase=row.phase,
        reason=row.reason,
        rounds=last.number if last else 0,
        aggregation=_aggregation(row) if whole else "",
        readers=list(store.readers(row.id)) if whole else [],
    )


def _aggregation(row: RunRow) -> str:
    try:
        return str(settled_of(spec_from_plain(json.loads(row.spec)), len(row.sites)))
    except AtollError:  # a job of another version, long over
        return ""


def rounds_of(store: Store, run: str, after: int) -> RoundsReply:
    """Records of the rounds after number ``after``, at most so many that one answer holds them."""
    row, rows = store.run(run), store.rounds(run, after)
    shown = [{k: v for k, v in r.record.items() if k != LEDGERS} for r in rows[:_MOST_ROUNDS]]
    ended = row.status in ENDED and len(shown) == len(rows)
    return RoundsReply(rounds=shown, status=row.status, ended=ended, reason=row.reason)


class Files:
    """The files of ended runs, named by digest and size; a digest is taken once per change.

    Args:
        office: of the server.
    """

    def __init__(self, office: Office) -> None:
        self._office = office
        self._known: dict[Path, tuple[tuple[int, int], Blob]] = {}

    def listed(self, run: str) -> dict[str, Blob]:
        """All files of a run's folder by path, such as ``checkpoint/round-00000060.safetensors``."""
        folder = self._office.folder(run)
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".tmp")
        return {p.relative_to(folder).as_posix(): self._blob(p) for p in paths}

    def path(self, run: str, name: str) -> Path:
        """One of the files that :meth:`listed` names.

        Raises:
            NotFound: there is none of that name.
        """
        names = self.names(run)
        if name not in names:
            raise NotFound(f"run {run} has no file {name!r:.120}", remedy=suggest(name, names))
        return names[name]

    def readable(self, run: str, name: str) -> Readable:
        """The content of one of them; see :meth:`path`."""
        path = self.path(run, name)
        return Readable(path.stat().st_size, lambda start, stop: _part(path, start, stop))

    def names(self, run: str) -> Mapping[str, Path]:
        """Where the files lie."""
        folder = self._office.folder(run)
        found = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".tmp")
        return {p.relative_to(folder).as_posix(): p for p in found}

    def _blob(self, path: Path) -> Blob:
        state = path.stat()
        mark = (state.st_mtime_ns, state.st_size)
        known = self._known.get(path)
        if known is None or known[0] != mark:
            sha = hashlib.sha256()
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    sha.update(piece)
            known = self._known[path] = mark, Blob(sha.hexdigest(), state.st_size)
        return known[1]


def _part(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(max(0, stop - start))
