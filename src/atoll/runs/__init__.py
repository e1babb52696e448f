"""What one execution of a job leaves behind, wherever it ran: its folder, manifest and result."""

from __future__ import annotations

from atoll.runs.result import Run
from atoll.runs.session import Session

__all__ = ["Run", "Session"]
