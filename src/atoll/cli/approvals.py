"""``atoll node jobs …``: the jobs that wait for a site's steward, and what is decided of them."""

from __future__ import annotations

import getpass
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.node_home import Folder, Json, home_at
from atoll.cli.output import data_line, table_of, talk

if TYPE_CHECKING:
    from atoll.node.policy.approvals import Approvals, Waiting

__all__ = ["commands"]

commands = typer.Typer(
    help="Approve single jobs, where node.toml has policy.approval.", no_args_is_help=True
)

_Request = Annotated[str, typer.Argument(metavar="REQUEST", help="Its digest, or how that begins.")]


@commands.command("list")
def list_all(
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Only those of which nothing was said yet.")
    ] = False,
    home: Folder = None,
    as_json: Json = False,
) -> None:
    """The jobs that have asked to take part, the newest first."""
    found = [w for w in _approvals(home).all() if not (waiting and w.decision)]
    if as_json:
        data_line(json.dumps([_told(w) for w in found], indent=2))
        return
    rows = [
        (
            w.digest[:12],
            _state(w),
            str(w.request.job.get("name", "")),
            w.request.researcher,
            w.request.dataset,
            _moment(w.asked),
        )
        for w in found
    ]
    data_line(table_of(("request", "state", "job", "by", "dataset", "asked"), rows))


@commands.command()
def show(request: _Request, home: Folder = None, as_json: Json = False) -> None:
    """All that one job asks for: its definition, its code, who submitted it and who takes part."""
    found = _approvals(home).find(request)
    if as_json:
        data_line(json.dumps(_told(found), indent=2))
        return
    asked = found.request
    columns = ", ".join(asked.columns) or "as the file has them"
    lines = [
        f"request     {found.digest}",
        f"state       {_state(found)}",
        f"asked       {_moment(found.asked)}, by run {found.run} of {asked.researcher or 'nobody'}",
        f"federation  {asked.federation}",
        f"sites       {', '.join(asked.sites) or 'not said'}",
        f"dataset     {asked.dataset}: {columns}",
        *(f"code        {found.code / name}  sha256 {sha}" for name, sha in asked.code.items()),
        *([] if asked.code else ["code        none of its own"]),
        "job",
        json.dumps(_said(asked.job), indent=2),
    ]
    data_line("\n".join(lines))


@commands.command()
def approve(request: _Request, home: Folder = None) -> None:
    """Let a job take part: just this one, with this code, from this researcher, with these sites."""
    at = _approvals(home)
    found = at.find(request)
    at.decide(found.digest, approved=True, by=_user())
    talk(f"{found.digest[:12]} is approved; its researcher can submit it again")


@commands.command()
def deny(
    request: _Request,
    reason: Annotated[str, typer.Option(help="For its researcher.")] = "",
    home: Folder = None,
) -> None:
    """Keep a job out; one that was approved, and is at work, stops at its next task."""
    at = _approvals(home)
    found = at.find(request)
    at.decide(found.digest, approved=False, by=_user(), reason=reason)
    talk(f"{found.digest[:12]} is denied")


def _approvals(path: Path | None) -> Approvals:
    from atoll.node.policy.approvals import Approvals
    from atoll.wire.identity import Identity

    at = home_at(path)
    at.joined()
    return Approvals(at.approvals, Identity.load(at.identity))


def _state(found: Waiting) -> str:
    if found.decision is None:
        return "waits"
    said = "approved" if found.decision.approved else "denied"
    why = f" ({found.decision.reason})" if found.decision.reason else ""
    return f"{said} by {found.decision.by} {_moment(found.decision.time)}{why}"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _told(found: Waiting) -> dict[str, Any]:
    decision = None if found.decision is None else vars(found.decision)
    return {
        "digest": found.digest,
        "run": found.run,
        "asked": found.asked,
        "decision": decision,
        "files": str(found.code),
        **found.request.to_plain(),
    }


def _said(job: Any) -> Any:
    """What a reader has to look at: neither nulls nor tables with nothing in them."""
    if not isinstance(job, dict):
        return job
    kept = {key: _said(value) for key, value in job.items()}
    return {key: value for key, value in kept.items() if value not in (None, {}, [])}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # one that the machine has no name for, as in containers
        return str(os.getuid())
