"""What a worker made for a round whose sum alone is seen, and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll.job.summed import lanes_told
from atoll.privacy.secagg.terms import Terms
from atoll.wire.frames import Allowed, open_frame
from atoll.wire.messages import ResultBody, TaskBody, read_body

__all__ = ["Start", "Trained", "start_of"]

_ANY = Allowed(most_arrays=10_000, most_bytes=1 << 46)

Start = tuple[Any, ...]
"""What decides what a worker makes of a task: its model, and how much of what it does."""


@dataclass(frozen=True)
class Trained:
    """The integers of a round, as the worker gave them.

    Args:
        task: the task they were made for; from the first answer on, the one that has been answered.
        result: the worker's result.
        memory: the client's memory; None where it has none, or none any more.
        start: what they were made from.
    """

    task: str
    result: Path
    memory: Path | None
    start: Start = ()

    def read(self) -> tuple[ResultBody, Mapping[str, Any]]:
        """Body and integers of the result."""
        raw, arrays = open_frame(self.result, _ANY)
        return read_body(ResultBody, raw), arrays

    def lane_faults(self, done: ResultBody, terms: Terms) -> str:
        """Why these are no terms for it; empty where they are.

        By a bound of its own choice a server could ask, refusal by refusal, how large one site's numbers are.
        """
        if done.answer.get("lanes") == lanes_told(terms.lanes):
            return ""
        return "the lanes of the terms are not those of the job, or their bounds are others"


def start_of(body: TaskBody) -> Start:
    """What the worker would make of it depends on this alone."""
    model = body.broadcast.sha256 if body.broadcast else ""
    code = tuple(sorted((name, ref.sha256) for name, ref in body.code.items()))
    work = body.version, body.scale, body.fraction, body.repeat, body.kept
    return *work, model, body.plan.sha256, code
