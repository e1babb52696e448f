"""Files for the checkpoints of a run's first rounds, made while its sites are still at work.

From then on each checkpoint is written over one that is not kept any more. Making a file of a large model takes
several times as long as writing over it (:mod:`atoll.wire.spares`), and all sites wait for a checkpoint.
"""

from __future__ import annotations

from threading import Thread

from atoll.runtime.checkpoint import Progress
from atoll.server.blobs.contract import Blobs

__all__ = ["foreseen"]

_LARGE, _MOST = 8 << 20, 1 << 30
"""Bytes of checkpoints for which that is done: of shorter ones none needs it, and a disk may be slow."""

_FIRST = 3
"""Checkpoints that are not written over an earlier one, as two are kept beside the one that is written."""

_RECORD = 64 << 10
"""Bytes beside the vectors."""


def foreseen(blobs: Blobs, progress: Progress, rounds: int) -> Progress:
    """``progress``, of which ``rounds`` will be played in all; another thread makes the files."""
    state = progress.state
    size = sum(v.nbytes for v in (state.parameters, *state.slots.values())) + _RECORD
    count = min(_FIRST, rounds - progress.rounds)
    if _LARGE <= size <= _MOST and count > 0:
        Thread(target=blobs.foresee, args=(size, count), name="atoll-ahead", daemon=True).start()
    return progress
