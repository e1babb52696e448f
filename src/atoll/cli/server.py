"""``atoll server``: found a federation, run its server, invite, look, revoke, cancel."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from atoll.cli.output import brief, data_line, table_of, talk
from atoll.core.errors import JobError, MissingExtra

if TYPE_CHECKING:
    from atoll.server.admin import Overview
    from atoll.server.settings import Runs

__all__ = ["server"]

server = typer.Typer(
    name="server", help="The server of a federation.", no_args_is_help=True, add_completion=False
)

_DEFAULT = Path("atoll-server")
_NEEDS = ("alembic", "cryptography", "httptools", "sqlalchemy", "uvicorn")

# What cannot be read is told with a remedy, not by the parser.
_Folder = Annotated[
    Path,
    typer.Argument(help="Folder of the server.", envvar="ATOLL_SERVER_HOME", readable=False),
]
_Home = Annotated[
    Path,
    typer.Option(
        "--home", help="Folder of the server.", envvar="ATOLL_SERVER_HOME", readable=False
    ),
]
_Also = Annotated[
    Path | None, typer.Argument(help="Folder of the server; as --home.", readable=False)
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_RUNS = "Who may read runs: open, every researcher; own, theirs and those shared with them."


def _check_installed() -> None:
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"a server needs {', '.join(missing)}", remedy="pip install 'atoll[server]'"
        )


@server.command()
def init(
    home: _Folder = _DEFAULT,
    name: Annotated[str, typer.Option(help="Of the federation, for people.")] = "federation",
    address: Annotated[
        str, typer.Option(help="HOST:PORT that the sites connect to.")
    ] = "127.0.0.1:7443",
    listen: Annotated[
        str,
        typer.Option(help="HOST:PORT to bind, where it differs.", show_default="all interfaces"),
    ] = "",
    store: Annotated[
        str, typer.Option(help="URL of a PostgreSQL database.", show_default="SQLite in the folder")
    ] = "",
    blobs: Annotated[
        str, typer.Option(help="URL of an object store.", show_default="a folder")
    ] = "",
    cert: Annotated[
        Path | None, typer.Option(help="Certificate (PEM).", show_default="makes its own")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    runs: Annotated[str, typer.Option(help=_RUNS)] = "open",
) -> None:
    """Found a federation: make the folder of its server."""
    _check_installed()
    from atoll.server.admin import DEFAULT_ADDRESS, Founding, found

    asked = Founding(name, address, listen, store, blobs, cert, key, _runs(runs))
    charter = found(home, asked, time.time())
    data_line(charter.federation)
    talk(f"made {home}; it holds the federation's keys: keep it private, and back it up")
    if address == DEFAULT_ADDRESS:
        talk("sites on other machines cannot reach this address: give --address HOST:PORT")
    talk(f"next: atoll server start {quote(str(home))}")


@server.command()
def start(
    home: _Folder = _DEFAULT,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also log each refused request.")
    ] = False,
    uploads: Annotated[
        float,
        typer.Option(
            help="GiB that a researcher may have uploaded and no job refers to.", min=0.001
        ),
    ] = 32.0,
) -> None:
    """Run the server until it is told to stop (SIGTERM, or Ctrl-C)."""
    _check_installed()
    from atoll.cli.log import begin_log
    from atoll.server.home import ServerHome
    from atoll.server.settings import GIB, Settings
    from atoll.server.web.serving import Running, serve

    begin_log(logging.INFO if verbose else logging.WARNING)
    charter = ServerHome(home).charter()

    def up(running: Running) -> None:
        where = f"{charter.address}, listening on port {running.port}"
        talk(f"federation {charter.federation} at {where}")

    chosen = Settings(uploads=round(uploads * GIB))
    status = serve(ServerHome(home), settings=chosen, ready=up)
    talk("stopped")
    if status:
        raise typer.Exit(status)


@server.command()
def change(
    home: _Folder = _DEFAULT,
    address: Annotated[
        str, typer.Option(help="HOST:PORT that the sites connect to.", show_default="as before")
    ] = "",
    listen: Annotated[str, typer.Option(help="HOST:PORT to bind.", show_default="as before")] = "",
    cert: Annotated[
        Path | None, typer.Option(help="Another certificate (PEM).", show_default="as before")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="Make another certificate.")] = False,
    runs: Annotated[str, typer.Option(help=_RUNS, show_default="as before")] = "",
) -> None:
    """Give the server another address or certificate, or say who may read runs; you tell its members."""
    _check_installed()
    from atoll.server import admin
    from atoll.server.home import ServerHome
    from atoll.wire.certificates import certificate_fingerprint
    from atoll.wire.identity import spoken

    asked = admin.Change(address, listen, cert, key, renew, _runs(runs) if runs else None)
    charter = admin.change(home, asked, time.time())
    shown = spoken(certificate_fingerprint(ServerHome(home).certificate(charter)).hex())
    data_line(f"address      {charter.address}\ncertificate  {shown}")
    if runs:
        data_line(f"runs         {charter.runs}")
    if runs == "open":
        talk("every researcher may then read every run, those that were one's own before included")
    if address or renew or cert:
        talk("codes that were not used yet do not work then")
    talk("it counts from the next start of the server")
    said = f" --address {charter.address}" if address else ""
    said += f' --certificate "{shown}"' if renew or cert else ""
    if said:
        talk("read it to every site and researcher by telephone; there, with the node stopped:")
        talk(f"atoll node server{said}")
        talk(f"atoll job server{said}")


@server.command()
def restored(
    seen: Annotated[
        int, typer.Option(min=1, max=2**53, help="The newest epoch that a site has seen.")
    ],
    home: _Folder = _DEFAULT,
) -> None:
    """Let a server that was put back from a backup go on after all that its sites have seen since."""
    _check_installed()
    from atoll.server import admin

    epoch = admin.restored(home, seen, time.time())
    data_line(f"epoch        {epoch}")
    talk("runs that were submitted after the backup are lost: submit them again, they get new ids")
    talk(f"next: atoll server start {quote(str(home))}")


@server.command()
def invite(
    name: Annotated[str, typer.Argument(help="Of the site or researcher.")],
    home: _Home = _DEFAULT,
    role: Annotated[str, typer.Option(help="site or researcher.")] = "site",
    days: Annotated[float, typer.Option(help="How long the code is good.")] = 7.0,
) -> None:
    """Print a code that lets one newcomer join, once."""
    _check_installed()
    from atoll.server import admin

    data_line(admin.invite(home, name, _role(role), days, time.time()))
    command = "node" if role == "site" else "job"
    talk(f"good for {days:g} days, once; {name} runs: atoll {command} join CODE")


def _runs(text: str) -> Runs:
    if text == "open":
        return "open"
    if text == "own":
        return "own"
    raise JobError(f"{text!r:.40} does not say who may read runs", remedy="use open or own")


def _role(text: str) -> Literal["site", "researcher"]:
    if text == "site":
        return "site"
    if text == "researcher":
        return "researcher"
    raise JobError(f"there is no role {text!r:.40}", remedy="use --role site or --role researcher")


@server.command()
def sites(folder: _Also = None, home: _Home = _DEFAULT, as_json: _Json = False) -> None:
    """List the members with the fingerprints of their keys."""
    _check_installed()
    from atoll.server import admin
    from atoll.wire.identity import spoken

    found = admin.overview(folder or home, time.time(), alarms=0)
    rows = [
        {
            "name": member.name,
            "role": member.role,
            "status": member.status,
            "fingerprint": member.fingerprint,
            "joined": member.joined,
        }
        for member in found.members
    ]
    if as_json:
        data_line(json.dumps(rows, indent=2))
        return
    table = [
        (str(r["name"]), str(r["role"]), str(r["status"]), spoken(str(r["fingerprint"])[:32]))
        for r in rows
    ]
    data_line(table_of(("name", "role", "status", "fingerprint (first half)"), table))
    for waiting in found.open_invites:
        talk(f"invited, not yet joined: {waiting.name}, until {_day(waiting.expires)}")


@server.command()
def status(folder: _Also = None, home: _Home = _DEFAULT, as_json: _Json = False) -> None:
    """Say whether the server runs, and where its runs stand."""
    _check_installed()
    from atoll.server import admin

    found = admin.overview(folder or home, time.time())
    data_line(json.dumps(_plain(found), indent=2) if as_json else _text(found))


@server.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Of the site or researcher.")],
    home: _Home = _DEFAULT,
) -> None:
    """Never accept a member's key again, nor a code that was made for its name and not used."""
    _check_installed()
    from atoll.server import admin

    codes = admin.revoke(home, name, time.time())
    data_line(f"{name} revoked")
    if codes:
        talk(f"nobody joins any more by {'a code' if codes == 1 else f'{codes} codes'} made for it")
    talk("a running server refuses it within a second; to let it in again: atoll server invite")
    if open_runs := admin.open_runs(home, name):
        talk(f"what was submitted by {name} goes on: {', '.join(open_runs)}")
        talk("to end it: atoll server cancel RUN")


@server.command()
def cancel(
    run: Annotated[str, typer.Argument(help="Id of the run.")], home: _Home = _DEFAULT
) -> None:
    """End a run, whoever has submitted it."""
    _check_installed()
    from atoll.server import admin
    from atoll.server.home import ServerHome

    row = admin.cancel(home, run, time.time())
    data_line(f"{row.id} of {row.by}")
    when = "now" if ServerHome(home).running() else "when the server is started"
    talk(f"it ends {when}; atoll job result then gives the model of its last committed round")


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _plain(found: Overview) -> dict[str, Any]:
    charter = found.charter
    return {
        "federation": charter.federation,
        "name": charter.name,
        "address": charter.address,
        "certificate": found.certificate,
        "key": found.key,
        "reading": charter.runs,
        "running": found.running,
        "epoch": found.epoch,
        "trouble": found.trouble,
        "members": [{"name": m.name, "role": m.role, "status": m.status} for m in found.members],
        "invited": [i.name for i in found.open_invites],
        "runs": [
            {
                "id": run.id,
                "name": run.name,
                "by": run.by,
                "status": run.status,
                "phase": run.phase,
                "reason": run.reason,
                "rounds": found.rounds[run.id],
            }
            for run in found.runs
        ],
        "log": [{"at": e.at, "kind": e.kind, "text": e.text, "site": e.site} for e in found.alarms],
    }


def _text(found: Overview) -> str:
    from atoll.wire.identity import spoken

    charter, running = found.charter, found.running
    active = [m for m in found.members if m.status == "active"]
    state = "stopped"
    if running is not None:
        state = f"running, process {running.get('pid', '?')}, port {running.get('port', '?')}"
    lines = [
        f"federation   {charter.federation} ({charter.name})",
        f"address      {charter.address}",
        f"server       {state}; epoch {found.epoch}",
        f"certificate  {spoken(found.certificate)}",
        f"key          {spoken(found.key)}",
        f"members      {sum(m.role == 'site' for m in active)} sites, "
        f"{sum(m.role == 'researcher' for m in active)} researchers",
    ]
    if charter.runs == "own":
        lines.append("runs         each researcher's own, and shared")
    if found.trouble:
        lines.append(f"trouble      {found.trouble}")
    if found.runs:
        rows = [
            (r.id, r.by, r.status, r.phase or "-", str(found.rounds[r.id]), brief(r.reason) or "-")
            for r in found.runs
        ]
        lines += ["", table_of(("run", "by", "status", "phase", "rounds", "remark"), rows)]
    if found.alarms:
        lines.append("")
        lines += [f"{_day(e.at)}  {e.kind}: {brief(e.text, 200)}" for e in found.alarms]
    return "\n".join(lines)
