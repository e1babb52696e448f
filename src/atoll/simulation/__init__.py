"""A job run on this machine: the round loop over local executors, a run folder and a report."""

from __future__ import annotations

from atoll.runs.result import Run
from atoll.simulation.run import simulate

__all__ = ["Run", "simulate"]
