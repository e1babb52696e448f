"""What this site has done in masked rounds, on the disk.

The durable form of :class:`atoll.privacy.secagg.ledger.Book`: a journal (:mod:`atoll.node.journal`) with a
line for each join, input, pledge and release. A line is durable before :meth:`Pledges.keep` returns, so
before anything of that step leaves; whether it may be written is decided by
:func:`atoll.privacy.secagg.ledger.objection` from all lines there ever were. A site that was killed at any
moment, or started twice in a row, releases the shares of one round once.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atoll.core.errors import StateError, StorageError
from atoll.node.journal import Head, Journal, Signer
from atoll.privacy.secagg.ledger import Kind, Record, objection
from atoll.privacy.secagg.terms import Occasion
from atoll.wire.disk import Disk

__all__ = ["Pledges"]

_KINDS: Mapping[str, Kind] = {
    "join": "join",
    "input": "input",
    "pledge": "pledge",
    "release": "release",
}


class Pledges:
    """A book of masked rounds that survives any crash. Any thread may use it.

    Args:
        path: the file.
        signer: the site's identity.
        disk: where the file lies.

    Raises:
        StorageError: the file is not as it was written, or cannot be read.
    """

    def __init__(self, path: Path, signer: Signer, disk: Disk | None = None) -> None:
        self._path = path
        self._journal = Journal(path, signer, disk)
        self._lock = threading.RLock()
        self._jobs: set[str] = set()
        self._rounds: defaultdict[tuple[str, str, int], list[Record]] = defaultdict(list)
        self._sums: defaultdict[str, list[Record]] = defaultdict(list)
        for number, body in enumerate(self._journal.lines, 1):
            try:
                self._index(_record(body))
            except (KeyError, TypeError, ValueError) as error:
                raise StorageError(
                    f"{path}, line {number}: is no step of a masked round",
                    remedy="does an older version of Atoll read what a newer one wrote?",
                ) from error

    @property
    def records(self) -> tuple[Record, ...]:
        """All steps, oldest first."""
        return tuple(_record(body) for body in self._journal.lines)

    def knows(self, job: str) -> bool:
        """Whether a round of this job was ever joined."""
        return job in self._jobs

    @property
    def head(self) -> Head:
        """Of the journal."""
        return self._journal.head

    def keep(self, record: Record, apart: int = 0) -> None:
        """Write ``record``, or find it written; when this returns it survives any crash.

        Args:
            record: the step that is going to be taken.
            apart: as in :func:`~atoll.privacy.secagg.ledger.objection`.

        Raises:
            StateError: it may not be written.
            StorageError: it could not be; nothing may leave. Trying again is safe.
        """
        with self._lock:
            same = self._rounds[record.occasion.name]
            if record in same:
                self._journal.secure()
                return
            # Nothing else in the book can stand against it: see objection().
            near = [r for r in self._sums[record.start] if r not in same]
            if reason := objection([*near, *same], record, apart):
                raise StateError(reason, remedy="nothing was sent; wait for the next round")
            # The head moves with the steps that bind: what comes before them costs one sync less.
            self._journal.append(_plain(record), anchor=record.kind in ("pledge", "release"))
            self._index(record)

    def _index(self, record: Record) -> None:
        self._jobs.add(record.occasion.job)
        self._rounds[record.occasion.name].append(record)
        if record.kind == "release":
            self._sums[record.start].append(record)


def _plain(record: Record) -> dict[str, Any]:
    at = record.occasion
    return {
        "kind": record.kind,
        "federation": at.federation,
        "job": at.job,
        "round": at.round,
        "attempt": at.attempt,
        "model": at.model,
        "value": record.value.hex(),
        "members": list(record.members),
        **({"source": record.source} if record.source else {}),
        **({"memory": record.memory} if record.memory else {}),
    }


def _record(body: Mapping[str, Any]) -> Record:
    at = Occasion(body["federation"], body["job"], body["round"], body["attempt"], body["model"])
    value, members = bytes.fromhex(body["value"]), tuple(body["members"])
    source, memory = body.get("source", ""), body.get("memory", "")
    return Record(_KINDS[body["kind"]], at, value, members, source, memory)
