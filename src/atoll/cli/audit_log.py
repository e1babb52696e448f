"""``atoll node log …``: what has left the site, and whether its lines are as they were written."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.node_home import Folder, Json, home_at, key_of
from atoll.cli.output import brief, data_line, table_of, talk

if TYPE_CHECKING:
    from atoll.node.audit.reading import Totals

__all__ = ["commands"]

commands = typer.Typer(help="The audit log: what has left this site.", no_args_is_help=True)


@commands.command()
def show(
    run: Annotated[str | None, typer.Option(help="Of one run only.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Of one dataset only.")] = None,
    since: Annotated[
        str | None, typer.Option(help="From this day or moment (UTC) on: 2026-01-31[T08:00].")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Answers with exactly the bytes of this file.")
    ] = None,
    digest: Annotated[
        str | None, typer.Option("--hash", help="Answers whose bytes have this SHA-256.")
    ] = None,
    last: Annotated[int, typer.Option(min=1, help="Most lines that are shown.")] = 50,
    by_run: Annotated[bool, typer.Option("--totals", help="What has left for each run.")] = False,
    home: Folder = None,
    as_json: Json = False,
) -> None:
    """What has left this site, newest last."""
    from atoll.core.errors import NotFound
    from atoll.node.audit.reading import totals

    answer = _hash_of(file) if file is not None else (digest or "").lower()
    found = _wanted(home, run, dataset, _moment(since), answer)
    if by_run:
        made = totals(found)
        told = [_plain(each) for each in made]
        data_line(json.dumps(told, indent=2) if as_json else _totals_table(made))
        return
    listed = deque(found, maxlen=last)
    if answer and not listed:
        raise NotFound(
            f"nothing with the SHA-256 {answer} has left this site as far as its log tells",
            remedy="the log holds hashes of whole answers, as the server keeps them",
        )
    data_line(json.dumps(list(listed), indent=2) if as_json else _table(listed))


@commands.command()
def verify(
    seen: Annotated[
        str | None, typer.Option(help="A head that was noted before: FILE:COUNT.HASH.SIGNATURE.")
    ] = None,
    first: Annotated[
        int, typer.Option("--from", min=1, help="File to begin with, where you keep those before.")
    ] = 1,
    home: Folder = None,
    as_json: Json = False,
) -> None:
    """Check every line of the log, its order and its signed heads; status 5 names a bad line."""
    from atoll.node.audit.reading import check

    folder, key = _opened(home)
    found = check(folder, key, seen=seen or "", first=first)
    if as_json:
        data_line(json.dumps(vars(found), indent=2))
        return
    data_line(f"audit log  {found.lines} lines in {found.files} files, as they were written")
    if found.behind:
        talk(
            f"the last {found.behind} of them are behind the signed head, which follows in seconds"
        )
    if found.head:
        talk(f"note this head elsewhere, and compare with --seen later:\n{found.head}")


def _opened(given: Path | None) -> tuple[Path, bytes]:
    """Folder of the log, and the site's public key."""
    home = home_at(given)
    return home.audit, key_of(home).public_bytes


def _wanted(
    home: Path | None, run: str | None, dataset: str | None, since: float, answer: str
) -> Iterator[dict[str, Any]]:
    from atoll.node.audit.reading import entries

    def wanted(entry: Mapping[str, Any]) -> bool:
        name = entry.get("name") if entry["what"] == "dataset" else entry.get("dataset")
        return (
            entry["what"] not in _INNER
            and entry["at"] >= since
            and run in (None, entry.get("run"))
            and dataset in (None, name)
            and answer in ("", entry.get("answer"))
        )

    return entries(*_opened(home), wanted)


_INNER = ("begins", "continues", "goes on", "run")
"""Lines that hold the log together."""


def _moment(text: str | None) -> float:
    from atoll.core.errors import JobError

    if text is None:
        return 0.0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise JobError(f"{text!r} is no moment", remedy="--since 2026-01-31T08:00") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _hash_of(path: Path) -> str:
    from atoll.core.errors import DataError

    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _table(found: deque[dict[str, Any]]) -> str:
    header = ("when", "what", "run", "by", "dataset", "task", "form", "rows", "bytes", "sha256")
    return table_of((*header, "note"), [_row(entry) for entry in found])


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    what = str(entry["what"])
    told: Callable[[Mapping[str, Any]], tuple[str, ...]] = _TOLD.get(what, _other)
    return (_when(entry["at"]), *told(entry))


def _answer(entry: Mapping[str, Any]) -> tuple[str, ...]:
    kind = f"{entry['kind']} {entry['round']}"
    size = (str(entry.get("rows", "")), str(entry["bytes"]), entry["answer"][:16])
    note = brief(entry.get("reason", "")) or ("in the ledger" if "charge" in entry else "")
    return (entry["outcome"], *_whose(entry), kind, entry["form"], *size, note)


def _withheld(entry: Mapping[str, Any]) -> tuple[str, ...]:
    kind = " ".join(entry["task"].split(".")[1:3])
    return ("withheld", *_whose(entry), kind, "", "", "", entry["answer"][:16], entry["reason"])


def _dataset(entry: Mapping[str, Any]) -> tuple[str, ...]:
    rest = ("",) * 5
    return (f"data {entry['change']}", "", "", entry["name"], *rest, entry.get("path", ""))


def _approval(entry: Mapping[str, Any]) -> tuple[str, ...]:
    note = f"request {entry['request'][:12]} {brief(entry['reason'])}".rstrip()
    return (entry["decision"], "", entry["by"], *("",) * 6, note)


def _other(entry: Mapping[str, Any]) -> tuple[str, ...]:
    note = " ".join(filter(None, (entry.get("federation", ""), "as", entry.get("site", ""))))
    return (str(entry["what"]), *("",) * 8, note)


_TOLD = {"answer": _answer, "withheld": _withheld, "dataset": _dataset, "approval": _approval}


def _whose(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    return entry["run"], entry.get("by", ""), entry.get("dataset", "")


def _plain(found: Totals) -> dict[str, Any]:
    return {
        "run": found.run,
        **found.facts,
        "first": found.first,
        "last": found.last,
        "left": found.left,
        "refused": found.refused,
        "failed": found.failed,
        "bytes": found.sent,
        "charged": found.charged,
    }


def _totals_table(found: list[Totals]) -> str:
    header = ("run", "job", "by", "dataset", "aggregation", "first", "last")
    rows = [
        (
            t.run,
            t.facts["name"] or t.facts["job"][:12],
            t.facts["by"],
            t.facts["dataset"],
            t.facts["aggregation"],
            _when(t.first),
            _when(t.last),
            str(t.left),
            str(t.refused),
            str(t.failed),
            str(t.sent),
            str(t.charged),
        )
        for t in found
    ]
    return table_of((*header, "left", "refused", "failed", "bytes", "charged"), rows)
