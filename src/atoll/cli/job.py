"""``atoll check`` and ``atoll methods``: what a job is, before anything runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from atoll.algorithms import ALGORITHMS
from atoll.job.load import load_job, read_spec

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
    spec = read_spec(job, settings or ())
    made = load_job(job, settings or ())
    if as_json:
        print(json.dumps({"hash": spec.hash(), "job": spec.definition()}, indent=2))  # noqa: T201
        return
    console = Console(file=sys.stdout, highlight=False)
    console.print(f"job        {spec.name}\nhash       {spec.hash()}")
    if data and made.islands is not None:
        islands = made.islands(made.seed)
        rows = sum(len(d) for d in islands.train.values())
        console.print(f"clients    {len(islands.train)} with {rows} training rows")
        for note in islands.notes:
            console.print(f"note       {note}", soft_wrap=True)
    console.print("no faults found")


def methods() -> None:
    """List the algorithms and their options."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name")
    table.add_column("options and defaults")
    for name, kind in ALGORITHMS.items():
        fields: tuple[Any, ...] = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        options = ", ".join(f"{f.name}={f.default!r}" for f in fields)
        table.add_row(name, options or "-")
    Console(file=sys.stdout, highlight=False).print(table)
