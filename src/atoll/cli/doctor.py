"""``atoll doctor``: look at a node or a server, a line for each thing, each fault with its remedy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli.node_home import home_at
from atoll.cli.output import data_line, plain, talk
from atoll.core.errors import JobError

if TYPE_CHECKING:
    from atoll.wire.findings import Finding

__all__ = ["doctor"]

_MARKS = {"ok": "ok     ", "warning": "warning", "fault": "FAULT  ", "unknown": "?      "}
_COLOURS = {"ok": "32", "warning": "33", "fault": "1;31", "unknown": "2"}


def doctor(
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", help="Folder of a node.", show_default="~/.atoll/node", readable=False
        ),
    ] = None,
    server: Annotated[
        Path | None, typer.Option("--server", help="Folder of a server.", readable=False)
    ] = None,
    job: Annotated[
        Path | None, typer.Option("--job", help="A job file that is to run there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look for what could go wrong at a node or a server, and say what to do about it."""
    if home is not None and server is not None:
        raise JobError("a node and a server are looked at one by one", remedy="leave one out")
    found = []
    for finding in _examined(home, server, job):
        found.append(finding)
        if not as_json:
            coloured = sys.stdout.isatty()
            data_line(_line(finding, colour=coloured), coloured=coloured)
    count = {state: sum(f.state == state for f in found) for state in _MARKS}
    if as_json:
        told = {"findings": [f.to_plain() for f in found], "count": count}
        data_line(json.dumps(told, indent=2))
    else:
        talk(_summary(count))
    status = next((f.status for f in found if f.state == "fault"), 0)
    if status:
        raise typer.Exit(status)


def _examined(home: Path | None, server: Path | None, job: Path | None) -> Iterator[Finding]:
    if server is not None:
        from atoll.server.doctor import examine

        return examine(server.absolute(), job=job)
    from atoll.node.doctor import examine as examine_node

    return examine_node(home_at(home).path, job=job)


def _line(finding: Finding, *, colour: bool) -> str:
    mark = _MARKS[finding.state]
    if colour:
        mark = f"\x1b[{_COLOURS[finding.state]}m{mark}\x1b[0m"
    told = "; ".join(line.strip() for line in finding.text.splitlines())  # a line is a finding
    text = f"{mark}  {finding.check:<12} {plain(told)}"
    if finding.remedy:
        text += f"\n{'':22} next: {plain(finding.remedy)}"
    return text


def _summary(count: dict[str, int]) -> str:
    told = [
        f"{count[state]} {word}{'s' if word != 'not looked at' and count[state] > 1 else ''}"
        for state, word in (
            ("fault", "fault"),
            ("warning", "warning"),
            ("unknown", "not looked at"),
        )
        if count[state]
    ]
    return ", ".join(told) if told else "all is well"
