"""``atoll check`` and ``atoll methods``: what a job is, before anything runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.output import data_line, table_of

if TYPE_CHECKING:
    from atoll.job import Job
    from atoll.job.datasets import Islands

__all__ = ["check", "methods"]


def check(
    job: Annotated[Path, typer.Argument(help="The job file (TOML).")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    data: Annotated[bool, typer.Option(help="Also read and check the data.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the canonical form.")] = False,
) -> None:
    """Check a job file, and its data, without training."""
    from atoll.job import load_job
    from atoll.simulation.run import planned_cost

    made = load_job(job, settings or ())
    islands = _checked_data(made) if data else None
    notes = list(islands.notes) if islands else []
    cost = planned_cost(made, islands) if islands else {}
    rows = {c: len(d) for c, d in islands.train.items()} if islands else {}
    if as_json:
        found = {
            "hash": made.hash(),
            "job": made.describe(),
            "clients": rows if islands else None,
            "notes": notes,
            **({"privacy": cost} if cost else {}),
        }
        data_line(json.dumps(found, indent=2))
        return
    data_line(f"job        {made.name}\nhash       {made.hash()}")
    if islands:
        data_line(f"clients    {len(rows)} with {sum(rows.values())} training rows")
    if cost:
        data_line(f"privacy    {cost['differential privacy']} after {cost['rounds']} rounds")
    if "membership attacks" in cost:
        data_line(f"attacks    {cost['membership attacks']}")
    for note in notes:
        data_line(f"note       {note}")
    data_line("no faults found" if islands else "no faults found; the data were not read")


def _checked_data(job: Job) -> Islands | None:
    """The job's data, which the job can run on."""
    from atoll.core.errors import JobConflict, raise_faults

    if job.islands is None:
        return None
    islands = job.islands(job.seed)
    trainer = job.trainer(islands) if callable(job.trainer) else job.trainer
    faults = job.faults(trainer, islands.train, islands.held_out)
    raise_faults(JobConflict, "this job cannot run on this federation", faults)
    return islands


def methods() -> None:
    """List the algorithms and their options."""
    from atoll.job.registry import algorithms

    rows = []
    for name, kind in algorithms().items():
        fields: tuple[Any, ...] = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        rows.append((name, ", ".join(f"{f.name}={f.default!r}" for f in fields) or "-"))
    data_line(table_of(("name", "options and defaults"), rows))
