"""``atoll run`` and ``atoll report``: a job simulated on this machine, and its report."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from atoll.job.load import load_job
from atoll.report.compare import comparison_lines
from atoll.report.folder import plain
from atoll.report.html import write_report
from atoll.report.progress import progress
from atoll.report.tensorboard import TensorBoard
from atoll.simulation import Run, simulate

__all__ = ["report", "run"]


def run(
    job: Annotated[Path, typer.Argument(help="The job file (TOML).")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.", show_default="runs/<name>")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as local.lr=0.1."),
    ] = None,
    executor: Annotated[str | None, typer.Option(help="serial or processes.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes; 0: one per core.")] = None,
    seed: Annotated[int | None, typer.Option(help="Replace the job's seed.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a job as a simulation on this machine."""
    made = load_job(job, settings or ())
    folder = out or Path("runs") / made.name
    with ExitStack() as watching:
        observers: list[Any] = []
        if not quiet:
            observers.append(watching.enter_context(progress(made.stop.rounds, title=made.name)))
        if tensorboard:
            observers.append(watching.enter_context(TensorBoard(folder / "tensorboard")))
        try:
            done = simulate(
                made,
                executor=executor,
                workers=workers,
                seed=seed,
                out=folder,
                resume=resume,
                overwrite=overwrite,
                observers=observers,
            )
        except KeyboardInterrupt:
            _interrupted(job)
    if as_json:
        print(json.dumps(plain(_result(done)), indent=2, allow_nan=False))  # noqa: T201 data goes to stdout
    else:
        _show(done)
    if done.status.startswith("interrupted"):
        _interrupted(job)


def _interrupted(job: Path) -> NoReturn:
    Console(stderr=True).print(f"interrupted; continue with: atoll run {job} --resume")
    raise typer.Exit(130)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
) -> None:
    """Write the report of a finished run again."""
    typer.echo(write_report(folder))


def _result(done: Run) -> dict[str, Any]:
    last = done.rounds[-1] if done.rounds else {}
    return {
        "name": done.manifest["name"],
        "status": done.status,
        "rounds": done.manifest["rounds"],
        "model_hash": done.model_hash,
        "central": last.get("central"),
        "federated": last.get("federated"),
        "comparison": done.manifest["comparison"],
        "folder": str(done.folder),
        "report": str(done.folder / "report.html") if done.folder else None,
    }


def _show(done: Run) -> None:
    console = Console(file=sys.stdout, highlight=False)
    for line in comparison_lines(done.manifest):
        console.print(line, soft_wrap=True)
    last: Mapping[str, Any] = done.rounds[-1] if done.rounds else {}
    for kind in ("central", "federated"):
        found = {
            k: v for k, v in (last.get(kind) or {}).items() if v is not None and k != "confusion"
        }
        if found:
            text = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
            console.print(f"{kind:<10} {text}")
    console.print(f"status     {done.status}, {done.manifest['rounds']} rounds")
    console.print(f"model      sha256 {done.model_hash}", soft_wrap=True)
    if done.folder is not None:
        console.print(f"report     {done.folder / 'report.html'}", soft_wrap=True)
