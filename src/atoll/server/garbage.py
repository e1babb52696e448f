"""Blobs that nobody needs any more, found when the server starts.

While a run goes on its useless blobs are deleted after each commit; what a crash left in between is
found here. A blob is deleted only when it says itself that it belongs to a run of this store, and that
run does not need it: bytes of unknown origin stay, and so does an answer that was uploaded and whose
delivery is still to come.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from atoll.core.errors import NotFound
from atoll.runtime.checkpoint import begins
from atoll.server.blobs.contract import Blobs
from atoll.server.store.contract import RoundRow, RunRow, Store
from atoll.wire.frames import HEADER_LIMIT, MAGIC

__all__ = ["collect", "needed"]

_KEPT = 2


def collect(store: Store, blobs: Blobs, ended: Collection[str]) -> list[str]:
    """Delete what no run needs; returns the digests.

    Args:
        store: what is known.
        blobs: what is there.
        ended: statuses of runs that have ended.
    """
    runs = {row.id: row for row in store.runs()}
    kept = needed(store, ended)
    answered = {c.task for row in runs.values() for c in store.contributions(row.id)}
    deleted = []
    for sha256 in list(blobs.digests()):
        if sha256 in kept:
            continue
        run, task = _origin(blobs, sha256)
        if run not in runs:
            continue
        coming = task and task not in answered and runs[run].status not in ended
        if not coming:
            blobs.delete(sha256)
            deleted.append(sha256)
    return deleted


def needed(store: Store, ended: Collection[str]) -> set[str]:
    """Digests of all that some run needs; see :func:`collect`."""
    return {sha256 for row in store.runs() for sha256 in _needed(store, row, ended)}


def _needed(store: Store, row: RunRow, ended: Collection[str]) -> list[str]:
    over = row.status in ended
    rounds = _newest(store, row.id) if over else store.rounds(row.id)
    needed = [ref["sha256"] for ref in row.files.values()]
    needed += [r.checkpoint for r in rounds[-_KEPT:]]
    if not over:
        used = {task for r in rounds for task in r.tasks}
        needed += [c.sha256 for c in store.contributions(row.id) if c.task not in used]
        needed.append(row.plan)
    return needed


def _newest(store: Store, run: str) -> tuple[RoundRow, ...]:
    """The rounds whose checkpoints are kept, and of a run that has ended no others: a server has thousands."""
    last = store.last_round(run)
    found = () if last is None else store.rounds(run, last.number - _KEPT)
    return found if len(found) >= _KEPT else store.rounds(run)


def _origin(blobs: Blobs, sha256: str) -> tuple[str, str]:
    """The run that a blob names, and the task if it is an answer; empty where it names none."""
    try:
        start = blobs.read(sha256, 0, 16)
        if start[:8] == MAGIC:
            length = int.from_bytes(start[8:], "little")
            body = _json(blobs, sha256, 16, length).get("body", {})
            task = str(body.get("task", ""))
            return str(body.get("run") or task.partition(".")[0]), task
        size = blobs.size(sha256) or 0
        at = begins(start, blobs.read(sha256, max(0, size - 8), size), size)
        length = int.from_bytes(blobs.read(sha256, at, at + 8), "little")
        meta = _json(blobs, sha256, at + 8, length).get("__metadata__", {})
        return str(json.loads(meta["record"])["extra"]["run"]), ""
    except (ValueError, KeyError, TypeError, AttributeError, NotFound):
        return "", ""


def _json(blobs: Blobs, sha256: str, start: int, length: int) -> Any:
    if length > 64 * HEADER_LIMIT:
        return {}
    return json.loads(blobs.read(sha256, start, start + length))
