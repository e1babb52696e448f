"""One line of the table: what was promised, what came out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Figure", "Row", "table"]


@dataclass(frozen=True)
class Figure:
    """One figure beside its goal.

    Args:
        row: number of the promise.
        what: what was tried.
        goal: what it had to come to; empty for a figure that is only shown.
        found: what it came to.
        holds: whether the goal is met.
    """

    row: int
    what: str
    goal: str
    found: str
    holds: bool = True


Row = Callable[[bool], Sequence[Figure]]
"""From "quick?" to figures."""


def table(figures: Sequence[Figure]) -> str:
    """A Markdown table."""
    lines = ["| row | tried | goal | figure | |", "|---|---|---|---|---|"]
    for f in figures:
        verdict = ("holds" if f.holds else "**missed**") if f.goal else "shown"
        lines.append(f"| {f.row} | {f.what} | {f.goal or '-'} | {f.found} | {verdict} |")
    return "\n".join(lines)
