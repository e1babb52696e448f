"""What a server allows itself and others: times in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Runs", "Settings"]

MIB = 1 << 20
GIB = 1 << 30

Runs = Literal["open", "own"]
"""Who may read runs: every researcher, or the one whose it is and those with whom it was shared."""


@dataclass(frozen=True)
class Settings:
    """The server's own choices; a job can choose its ``rounds.deadline`` alone.

    Args:
        holder: what a second server on the same store is told about this one.
        progress: a site that is silent for so long is not waited for, as long as others can do.
        together: that a short answer may wait to be written together with what comes of it.
        round: longest call of a job that names no deadline, and of all preparation.
        members_every: between looks at who is still a member.
        retry: before a run whose disk or store refused is taken up again.
        largest_file: of a job's own code.
        largest_vector: of an initial vector, and of any answer before the model's size is known.
        overhead: what an answer may have beside its vectors.
        uploads: what one researcher may have uploaded that no job refers to.
        uploads_kept: after which such an upload is forgotten.
        runs: who may read them.
    """

    holder: str = "a server"
    progress: float = 60.0
    together: float = 0.05
    round: float = 3600.0
    members_every: float = 1.0
    retry: float = 5.0
    largest_file: int = 4 * MIB
    largest_vector: int = 16 * GIB
    overhead: int = 2 * MIB
    uploads: int = 32 * GIB
    uploads_kept: float = 86_400.0
    runs: Runs = "open"
