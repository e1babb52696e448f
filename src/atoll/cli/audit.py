"""``atoll audit``: attacks on a run, and malicious clients in front of the server's gate."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.node_home import home_at
from atoll.cli.output import data_line, table_of, talk

if TYPE_CHECKING:
    from atoll.core.values import Update
    from atoll.job import Job
    from atoll.simulation import Run
    from atoll.simulation.audit import Reported

__all__ = ["commands"]

commands = typer.Typer(
    help="Attack a run, or a job's own server, on purpose.", no_args_is_help=True
)


@commands.command("privacy")
def privacy(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    job: Annotated[
        Path | None,
        typer.Option(help="Its job file; without it the data are looked for from here."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="The overrides the run was made with."),
    ] = None,
    models: Annotated[int, typer.Option(min=4, help="Runs on random halves of the rows.")] = 16,
    rows: Annotated[int, typer.Option(min=20, help="Most rows that are attacked.")] = 400,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Ask how much a run's model tells about single rows; adds the answer to its report.

    The job is run again, several times, on random halves of some of its rows.
    """
    from atoll.report.audit import audit_lines
    from atoll.report.folder import RunFolder
    from atoll.report.html import write_report
    from atoll.simulation.audit import audit_job

    run = RunFolder.open(folder)
    manifest = run.read_manifest()
    made = _job_of(manifest, folder, job, settings or ())

    def told(done: int, of: int) -> None:
        if not quiet:
            talk(f"run {done} of {of}")

    stated = _stated(run.read_rounds())
    found = audit_job(made, models=models, rows=rows, reported=_reported(stated), told=told)
    found["protection"] = {
        "aggregation": (made.describe().get("privacy") or {}).get("aggregation", "plain"),
        "statement": {k: stated[k] for k in ("epsilon", "delta", "unit") if k in stated},
    }
    run.write_audit(found)
    report = write_report(run)
    if as_json:
        data_line(json.dumps({**found, "report": str(report)}, indent=2))
    else:
        data_line("\n".join([*audit_lines(found), f"report: {report}"]))


def _job_of(
    manifest: Mapping[str, Any], folder: Path, file: Path | None, settings: Sequence[str]
) -> Job:
    """The job of a run: from its file, or from the definition in the manifest."""
    from atoll.core.errors import JobConflict, JobError
    from atoll.job import load_job
    from atoll.job.from_file import job_from_spec
    from atoll.job.load import parse_job

    if file is not None:
        made = load_job(file, settings)
    else:
        definition = manifest.get("job") or {}
        if "data" not in definition:
            raise JobError(
                f"the run in {str(folder)!r} was not made from a job file",
                remedy="only jobs with data of their own can be run again",
            )
        here = Path.cwd()
        made = job_from_spec(parse_job(definition, source=str(folder)), here)
    if made.hash() != manifest.get("job_hash"):
        raise JobConflict(
            f"this is not the job of the run in {str(folder)!r}",
            remedy="name its job file and repeat the --set and --seed it was run with",
        )
    return made


def _stated(rounds: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What the run's last record says of differential privacy; empty without any."""
    return (rounds[-1].get("privacy") if rounds else None) or {}


def _reported(stated: Mapping[str, Any]) -> Reported:
    """The promise for one row, where there is one."""
    from atoll.simulation.audit import Reported

    if stated.get("unit") == "record" and stated.get("epsilon") is not None:
        return Reported(float(stated["epsilon"]), float(stated.get("delta") or 0.0))
    return Reported()


@commands.command("clients")
def clients(
    file: Annotated[Path, typer.Argument(metavar="JOB", help="The job file (TOML).")],
    site: Annotated[
        str | None, typer.Option(help="The malicious client.", show_default="the first one")
    ] = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="NAME", help="Only this one; repeatable."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each run.")] = 3,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Let one client send NaN, false weights, flipped and scaled updates; tell what the server does.

    Every answer passes the checks of a real server. Ends with status 4 if a malformed update got through.
    """
    from atoll.job import load_job
    from atoll.privacy.audit.hostile import MALFORMED, TAMPERINGS, tampering

    job = load_job(file, settings or ())
    bad = site or _first_client(job)
    alone = _tampered(job, {bad: None}, rounds)
    lines, through = [], 0
    for name in attacks or TAMPERINGS:
        run = _tampered(job, {bad: tampering(name)}, rounds)
        refused = sum(str(r["missing"].get(bad, "")).startswith("refused") for r in run.rounds)
        asked = sum(bad in r["invited"] for r in run.rounds)
        same = run.model_hash == alone.model_hash
        through += name in MALFORMED and not (refused == asked and same)
        lines.append(
            {
                "attack": name,
                "kind": "malformed" if name in MALFORMED else "valid in form",
                "refused": refused,
                "asked": asked,
                "model_as_without": same,
                "reason": next((r["missing"][bad] for r in run.rounds if bad in r["missing"]), ""),
            }
        )
    data_line(json.dumps({"site": bad, "attacks": lines}, indent=2) if as_json else _table(lines))
    if through:
        talk(f"{through} malformed updates were not refused: please report this")
        raise typer.Exit(4)


def _first_client(job: Job) -> str:
    from atoll.core.errors import JobError

    if job.islands is None:
        raise JobError("this job has no data of its own", remedy="name a job file")
    return next(iter(job.islands(job.seed).train))


def _tampered(
    job: Job, tamper: Mapping[str, Callable[[Update], Update] | None], rounds: int
) -> Run:
    """A short run of the job with some clients tampered with."""
    from atoll.core.errors import JobConflict
    from atoll.runtime.client import Parts
    from atoll.server.rounds.tampering import TamperedExecutor
    from atoll.simulation import simulate

    def executor(parts: Parts) -> TamperedExecutor:
        if parts.chain.gives("sums only"):
            raise JobConflict(
                "the server of this job sees sums only, and no single update to refuse",
                remedy="audit it with --set privacy.aggregation=quantised",
            )
        if unknown := sorted(set(tamper) - set(parts.clients)):
            raise JobConflict(f"no client {unknown[0]!r}", remedy="see atoll check")
        return TamperedExecutor(parts, tamper)

    short = replace(
        job,
        stop=replace(job.stop, rounds=rounds, metric="", patience=0, target=None),
        evaluate_every=0,
        compare=False,
    )
    return simulate(short, executor=executor)


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            line["attack"],
            line["kind"],
            f"{line['refused']}/{line['asked']}",
            "yes" if line["model_as_without"] else "no",
            str(line["reason"]).split("\n")[0][:80],
        )
        for line in lines
    ]
    return table_of(("attack", "kind", "refused", "model as without it", "reason"), rows)


@commands.command("server")
def server(
    home: Annotated[
        Path | None,
        typer.Option("--home", envvar="ATOLL_NODE_HOME", help="Node whose rules are tried."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Let a server lie to six sites with this node's rules; tell what the sites release.

    Twenty-five lies about masked rounds, two about what an answer costs, and where TenSEAL is installed
    twenty-seven about encrypted rounds. Ends with status 4 if any site gave what it should not have.
    """
    from tempfile import TemporaryDirectory

    from atoll.core.errors import MissingExtra
    from atoll.node.lies import of_ciphers as lies_of_ciphers
    from atoll.node.lies import told as lies
    from atoll.node.settings import read_settings
    from atoll.privacy.he import contexts

    settings = read_settings(home_at(home).settings)
    found = []
    names = dict.fromkeys(lies.LIES, "masked")
    try:
        contexts.installed()
        names |= dict.fromkeys(lies_of_ciphers.CIPHER_LIES, "encrypted")
    except MissingExtra as error:
        talk(f"lies about encrypted rounds are left out: {error}")
    for lie in names:
        with TemporaryDirectory(prefix="atoll-audit-") as folder:
            found.append(lies.told(lie, Path(folder), settings))
    lines = [(one, next(iter(one.refused.values()), "")) for one in found]
    if as_json:
        told_of = [
            {
                "rounds": names[x.lie],
                "lie": x.lie,
                "released": x.released,
                "gave_up": len(x.refused),
                "reason": why,
            }
            for x, why in lines
        ]
        data_line(json.dumps({"lies": told_of}, indent=2))
    else:
        rows = [
            (names[x.lie], x.lie, str(len(x.released)), str(len(x.refused)), why[:80])
            for x, why in lines
        ]
        data_line(table_of(("rounds", "lie", "released", "gave up", "first reason"), rows))
    if not all(one.withstood for one in found):
        talk("a site released what it should not have: please report this")
        raise typer.Exit(4)
