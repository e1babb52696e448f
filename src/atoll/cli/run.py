"""``atoll run`` and ``atoll report``: a job simulated on this machine, and its report."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.output import data_line, talk
from atoll.cli.refusals import end_refused, refusals_in, refused_lines

if TYPE_CHECKING:
    from atoll.job import Job
    from atoll.report.tensorboard import TensorBoard
    from atoll.runtime.profile import Stopwatch
    from atoll.simulation import Run

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
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER|FILE",
            help="Begin at the model of an earlier run's folder, or of a file.",
            show_default="the seed's model",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as local.lr=0.1."),
    ] = None,
    executor: Annotated[str | None, typer.Option(help="serial, processes or ray.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Workers; 0: one per core.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Replace the job's seed.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write TensorBoard events.")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Tell where the time went.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a job as a simulation on this machine."""
    from atoll.runtime.profile import Stopwatch, timed

    watch = Stopwatch() if profile else None
    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    again = "--resume in place of --overwrite" if overwrite else "--resume"
    # Options are overrides like any other, so the same checks speak about them.
    options = {"executor.name": executor, "executor.workers": workers, "seed": seed}
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    with timed(watch, "job"):
        from atoll.job import load_job

        made = load_job(job, [*(settings or ()), *given])
        made = made if start is None else made.begun(start)
    folder = out or Path("runs") / made.name
    ended = _ended(made, folder) if resume else None
    if ended is not None:
        talk(f"this run has already ended ({ended[0]['status']}); nothing was changed")
        if profile:
            talk("nothing ran, so there is no profile")
        manifest, last = ended
        account = None
    else:
        try:
            done = _simulated(made, folder, resume, overwrite, tensorboard, quiet, watch)
        except KeyboardInterrupt:
            talk(f"interrupted at once; continue with the same command and {again}")
            raise typer.Exit(130) from None
        manifest, last = done.manifest, done.rounds[-1] if done.rounds else {}
        account = done.profile.to_plain() if done.profile else None
    show = _as_json if as_json else _as_text
    data_line(show(manifest, last, folder, account))
    if manifest["status"].startswith("interrupted"):
        talk(f"interrupted; continue with the same command and {again}")
        raise typer.Exit(130)
    if made.study is not None:
        end_refused(refusals_in(folder), len(made.study.inquiries))


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
) -> None:
    """Write the report of a finished run again."""
    from atoll.report.html import write_report

    data_line(str(write_report(folder)))


def _simulated(
    job: Job,
    folder: Path,
    resume: bool,
    overwrite: bool,
    tensorboard: bool,
    quiet: bool,
    watch: Stopwatch | None,
) -> Run:
    from atoll.report.folder import RunFolder
    from atoll.report.progress import progress
    from atoll.simulation import simulate

    if resume and not RunFolder(folder).used:
        talk(f"{folder} holds no run to continue: it begins anew")
    with ExitStack() as watching:
        observers: list[Any] = []
        if not quiet and job.study is None:  # how many rounds statistics take is known afterwards
            observers.append(watching.enter_context(progress(job.stop.rounds, title=job.name)))
        if tensorboard:
            observers.append(_Events(folder / "tensorboard", resume, watching))
        return simulate(
            job,
            out=folder,
            resume=resume,
            overwrite=overwrite,
            observers=observers,
            profile=watch or False,
        )


class _Events:
    """TensorBoard's files, begun with the first round, when the run's folder is the run's."""

    def __init__(self, folder: Path, resume: bool, watching: ExitStack) -> None:
        from atoll.core.errors import MissingExtra

        if importlib.util.find_spec("tensorboardX") is None:  # known before training, not after
            raise MissingExtra(
                "TensorBoard events need tensorboardX", remedy="pip install 'atoll[tracking]'"
            )
        self._folder, self._resume, self._watching = folder, resume, watching
        self._writer: TensorBoard | None = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        from atoll.report.tensorboard import TensorBoard

        if self._writer is None:
            last = int(record["round"]) - 1 if self._resume else None
            self._writer = self._watching.enter_context(TensorBoard(self._folder, resumed_at=last))
        self._writer(record)


def _ended(job: Job, folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Manifest and last record of this very job when it has run to its end in ``folder``."""
    from atoll.report.folder import RunFolder

    if not (folder / "manifest.json").is_file():
        return None
    found = RunFolder.open(folder)
    manifest = found.read_manifest()
    over = str(manifest.get("status", "")).startswith(("completed", "stopped early"))
    if not over or manifest.get("job_hash") != job.hash() or not found.report.is_file():
        return None
    rounds: Sequence[Mapping[str, Any]] = found.read_rounds()
    return manifest, rounds[-1] if rounds else {}


def _as_json(
    manifest: Mapping[str, Any],
    last: Mapping[str, Any],
    folder: Path,
    profile: Mapping[str, Any] | None,
) -> str:
    from atoll.report.folder import plain

    result = {key: manifest[key] for key in ("name", "status", "rounds", "model_hash")}
    result |= {kind: last.get(kind) for kind in ("central", "federated")}
    result |= {
        "comparison": manifest["comparison"],
        "folder": str(folder),
        "report": str(folder / "report.html"),
    }
    if manifest["job"].get("statistics"):
        result["refused"] = {
            name: {"code": error.code, "message": error.message, "remedy": error.remedy}
            for name, error in refusals_in(folder).items()
        }
    if profile is not None:
        result["profile"] = profile
    return json.dumps(plain(result), indent=2, allow_nan=False)


def _as_text(
    manifest: Mapping[str, Any],
    last: Mapping[str, Any],
    folder: Path,
    profile: Mapping[str, Any] | None,
) -> str:
    from atoll.cli.profile import profile_text
    from atoll.report.compare import comparison_lines

    lines = list(comparison_lines(manifest))
    for kind in ("central", "federated"):
        found = {
            name: value
            for name, value in (last.get(kind) or {}).items()
            if value is not None and name != "confusion"
        }
        if found:
            text = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
            lines.append(f"{kind:<10} {text}")
    lines += [
        f"status     {manifest['status']}, {manifest['rounds']} rounds",
        *_what(manifest, folder),
        f"report     {folder / 'report.html'}",
    ]
    if profile is not None:
        lines += ["", profile_text(profile)]
    return "\n".join(lines)


def _what(manifest: Mapping[str, Any], folder: Path) -> list[str]:
    """What a run leaves: a model, or tables."""
    if manifest["job"].get("statistics"):
        if not (folder / "results.json").is_file():
            return []  # interrupted: there are none yet
        return [
            f"results    {folder / 'results.json'}",
            f"tables     {folder / 'tables'}",
            *refused_lines(refusals_in(folder).values()),
        ]
    return [f"model      sha256 {manifest['model_hash']}"]
