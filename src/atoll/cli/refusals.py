"""Analyses of a run of statistics that may not be shown: by name, with the reason and what helps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import typer

from atoll.core.errors import AtollError

__all__ = ["end_refused", "refusals_in", "refused_lines"]


def refusals_in(folder: Path) -> dict[str, AtollError]:
    """Why analyses of the run in ``folder`` are not shown, by name; of a run without results nothing."""
    if not (folder / "results.json").is_file():
        return {}
    from atoll.stats.remote import read_results

    return read_results(folder).refused


def refused_lines(refused: Iterable[AtollError]) -> list[str]:
    """One entry for each: the reason, and below it what helps, further to the right."""
    further = "\n" + " " * 11
    return ["refused    " + further.join(str(error).splitlines()) for error in refused]


def end_refused(refused: Mapping[str, AtollError], asked: int) -> None:
    """End with the status of the first refusal where none of ``asked`` analyses may be shown.

    Raises:
        Exit: as said; where some are shown there is something to go on with, and nothing is raised.
    """
    if refused and len(refused) == asked:
        raise typer.Exit(next(iter(refused.values())).exit_status)
