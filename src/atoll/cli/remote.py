"""``atoll job``: join a federation as a researcher, submit jobs, watch them, fetch results."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli.output import brief, data_line, table_of, talk
from atoll.cli.refusals import refusals_in, refused_lines
from atoll.cli.whereabouts import Address, Certificate, pin_of, show_server

if TYPE_CHECKING:
    from atoll.connection import Connection, RunInfo

__all__ = ["job"]

job = typer.Typer(
    name="job", help="Jobs at a federation's server.", no_args_is_help=True, add_completion=False
)

_Run = Annotated[str, typer.Argument(help="Id of the run.")]
_Name = Annotated[str, typer.Argument(help="Of the other researcher.")]
_Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder with the researcher's key.",
        readable=False,
        envvar="ATOLL_HOME",
        show_default="~/.atoll/researcher",
    ),
]
_Proxy = Annotated[
    str | None,
    typer.Option(help="http://[user:password@]host:port.", show_default="HTTPS_PROXY"),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_FAILED = 4
_PATIENCE = 600.0
"""Seconds for which a server that is away is waited for while a run is watched."""


def _connect(home: Path | None, proxy: str | None, code: str = "") -> Connection:
    from atoll.connection import connect

    return connect(home, code=code, proxy=proxy)


@job.command()
def join(
    code: Annotated[str, typer.Argument(help="From whoever runs the server.")],
    home: _Home = None,
    proxy: _Proxy = None,
) -> None:
    """Join a federation as a researcher."""
    from atoll.wire.identity import Identity, spoken

    with _connect(home, proxy, code) as federation:
        mine = federation.membership
        key = Identity.load(federation.home / "identity.pem").fingerprint
        data_line(f"{mine.name} {mine.federation}")
        talk(f"your key       {spoken(key)}")
        talk("compare it by telephone with what atoll server sites shows")


@job.command()
def whoami(home: _Home = None, as_json: _Json = False, proxy: _Proxy = None) -> None:
    """Show one's name in the federation, and the fingerprint of the key that signs one's jobs."""
    from atoll.wire.identity import Identity, spoken

    with _connect(home, proxy) as federation:
        mine = federation.membership
        key = Identity.load(federation.home / "identity.pem").fingerprint
    told = {"name": mine.name, "federation": mine.federation, "fingerprint": key}
    spoken_of = {**told, "fingerprint": spoken(key)}
    lines = [f"{name:<12} {value}" for name, value in spoken_of.items()]
    data_line(json.dumps(told, indent=2) if as_json else "\n".join(lines))


@job.command()
def server(
    home: _Home = None,
    address: Address = "",
    certificate: Certificate = "",
    proxy: _Proxy = None,
) -> None:
    """Show where the server is and how it is known, or note that it has moved or renewed its certificate."""
    from atoll.connection import default_home
    from atoll.wire.membership import move

    with _connect(home, proxy) as federation:
        known = federation.membership
    if address or certificate:
        known = move(
            home or default_home(), address=address, certificate=pin_of(certificate), proxy=proxy
        )
        talk("it has answered there with its own key")
    show_server(known.server, known.pin, known.server_key)


@job.command()
def submit(
    file: Annotated[Path, typer.Argument(help="The job file (TOML).")],
    home: _Home = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key.")
    ] = None,
    site: Annotated[
        list[str] | None,
        typer.Option(help="A site that takes part; may be repeated.", show_default="all"),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="RUN|FILE",
            help="Begin at the model of an earlier run, or of a file.",
            show_default="the seed's model",
        ),
    ] = "",
    proxy: _Proxy = None,
) -> None:
    """Hand in a job and print the id of its run."""
    with _connect(home, proxy) as federation:
        first = federation.start(start) if start else None
        run = federation.submit(file, settings=settings or (), sites=site or (), initial=first)
    if first is not None:
        talk(f"begins at {start}, sha256 {first.hash}")
    data_line(run)
    talk(f"next: atoll job watch {run}")


@job.command("list")
def list_(home: _Home = None, as_json: _Json = False, proxy: _Proxy = None) -> None:
    """List the runs that you may read."""
    with _connect(home, proxy) as federation:
        found = federation.jobs()
    if as_json:
        data_line(json.dumps([asdict(info) for info in found], indent=2))
        return
    rows = [
        (i.id, i.by, i.status, i.phase or "-", str(i.rounds), brief(i.reason) or "-") for i in found
    ]
    data_line(table_of(("run", "by", "status", "phase", "rounds", "remark"), rows))


@job.command()
def show(run: _Run, home: _Home = None, as_json: _Json = False, proxy: _Proxy = None) -> None:
    """Show where one run stands."""
    with _connect(home, proxy) as federation:
        info = federation.show(run)
    data_line(json.dumps(asdict(info), indent=2) if as_json else _text(info))


@job.command()
def watch(
    run: _Run,
    home: _Home = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each round's record, a line of JSON each.")
    ] = False,
    proxy: _Proxy = None,
) -> None:
    """Show a run's rounds until it ends."""
    from atoll.report.progress import progress

    with _connect(home, proxy) as federation:
        info = federation.show(run, patience=_PATIENCE, notice=talk)
        total = federation.planned(run) or (info.rounds if info.ended else 0)
        if as_json:
            for record in federation.watch(run, notice=talk):
                data_line(json.dumps(record))
        else:
            with progress(total, title=info.name) as watcher:
                for record in federation.watch(run, notice=talk):
                    watcher(record)
        info = federation.show(run, patience=_PATIENCE, notice=talk)
    if not as_json:
        data_line(_text(info))
    if info.status != "completed":
        raise typer.Exit(_FAILED)


@job.command()
def cancel(run: _Run, home: _Home = None, proxy: _Proxy = None) -> None:
    """End a run of your own."""
    with _connect(home, proxy) as federation:
        info = federation.cancel(run)
    data_line(f"{info.id} {info.status}")


@job.command()
def share(run: _Run, name: _Name, home: _Home = None, proxy: _Proxy = None) -> None:
    """Let another researcher read a run of your own."""
    with _connect(home, proxy) as federation:
        info = federation.share(run, name)
    _say_readers(info)


@job.command()
def unshare(run: _Run, name: _Name, home: _Home = None, proxy: _Proxy = None) -> None:
    """Take that back; what was fetched before stays fetched."""
    with _connect(home, proxy) as federation:
        info = federation.unshare(run, name)
    _say_readers(info)


def _say_readers(info: RunInfo) -> None:
    data_line(f"{info.id} {', '.join(info.readers) or '-'}")
    if info.open:
        talk("runs are open here: every researcher may read this one, whomever it is shared with")


@job.command()
def result(
    run: _Run,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files.", show_default="runs/<run>")
    ] = None,
    home: _Home = None,
    proxy: _Proxy = None,
) -> None:
    """Fetch the folder of a run that has ended."""
    from atoll.wire.membership import read_json

    with _connect(home, proxy) as federation:
        folder = federation.result(run, out or Path("runs") / run)
    data_line(str(folder))
    status = str(read_json(folder / "manifest.json").get("status", ""))
    if status and not status.startswith("completed"):
        talk(f"this run is not complete: {brief(status)}")
    for line in refused_lines(refusals_in(folder).values()):
        talk(line)
    if (folder / "report.html").is_file():
        talk(f"report: {folder / 'report.html'}")


def _text(info: RunInfo) -> str:
    made = datetime.fromtimestamp(info.created, UTC).strftime("%Y-%m-%d %H:%M UTC")
    # A line of its own could pass for one of ours: it begins further to the right.
    reason = f"\n{'':11}".join(line.strip() for line in info.reason.splitlines())
    remark = f": {reason}" if reason not in ("", info.status) else ""
    phase = f" ({info.phase})" if info.phase and not info.ended else ""
    return "\n".join(
        [
            f"run        {info.id}",
            f"job        {info.name}, {info.job_hash}",
            f"submitted  {made} by {info.by}",
            f"sites      {', '.join(info.sites)}",
            f"status     {info.status}{phase}{remark}",
            f"rounds     {info.rounds}",
            *([f"updates    {info.aggregation}"] if info.aggregation else []),
            f"read by    {'every researcher' if info.open else ', '.join([info.by, *info.readers])}",
        ]
    )
