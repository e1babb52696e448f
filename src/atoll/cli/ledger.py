"""``atoll node ledger …``: what a site's data have been asked for, and what they may be asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli.node_home import Folder, Json, home_at, key_of
from atoll.cli.output import data_line, table_of, talk

if TYPE_CHECKING:
    from atoll.node.home import Home
    from atoll.node.policy.ledger import Accounts, Balance, Entry, Limit

__all__ = ["commands"]

commands = typer.Typer(
    help="The privacy ledger: what the site's data have been asked for.", no_args_is_help=True
)


@commands.command()
def show(
    dataset: Annotated[str | None, typer.Argument(help="One dataset only.")] = None,
    entries: Annotated[bool, typer.Option("--entries", help="Each round by itself.")] = False,
    home: Folder = None,
    as_json: Json = False,
) -> None:
    """What each dataset may be asked for, what it has been asked for, and what is left."""
    from atoll.node.policy.budgets import Budgets

    at = home_at(home)
    accounts, _ = _opened(at)
    limits = [n for n in Budgets(at.budgets).all() if dataset in (None, n.dataset)]
    found = [b for b in accounts.balances(limits) if dataset in (None, b.dataset)]
    listed = [e for e in accounts.entries if dataset in (None, e.charge.dataset)]
    if as_json:
        told: dict[str, Any] = {"datasets": [_balance(b) for b in found]}
        if entries:
            told["entries"] = [e.to_plain() for e in listed]
        data_line(json.dumps(told, indent=2))
    elif entries:
        data_line(_entries_table(listed))
    else:
        data_line(_balances_table(found))
        if not limits:
            talk("no dataset has a limit: atoll node ledger limit DATASET --epsilon 3 --delta 1e-5")


@commands.command()
def limit(
    dataset: Annotated[str, typer.Argument(help="Name of the dataset, as registered.")],
    epsilon: Annotated[
        float | None, typer.Option(help="Most that all rounds of all jobs may cost together.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="At which epsilon is meant.")] = None,
    unit: Annotated[
        str, typer.Option(help="Whose presence is hidden: record, person or site.")
    ] = "record",
    replace: Annotated[
        bool, typer.Option("--replace", help="Compare datasets in which one unit is exchanged.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the limit away.")] = False,
    home: Folder = None,
    as_json: Json = False,
) -> None:
    """Set what a dataset may be asked for in all; holds from the next round on."""
    from atoll.core.errors import JobError
    from atoll.node.datasets import Datasets
    from atoll.node.policy.budgets import Budgets
    from atoll.node.policy.ledger import Limit

    at = home_at(home)
    budgets = Budgets(at.budgets)
    if remove:
        budgets.remove(dataset, unit)
        talk(f"{dataset} has no limit for one {unit} any more; what was spent stays in the ledger")
        return
    if epsilon is None or delta is None:
        raise JobError("a limit has an epsilon and a delta", remedy="--epsilon 3 --delta 1e-5")
    key_of(at)  # what a limit in another folder would hold for is nothing
    relation = "replace" if replace else "add_or_remove"
    made = Limit(dataset, epsilon, delta, unit, relation)
    before = budgets.set(made)
    registered = Datasets(at.datasets).all()
    if dataset not in registered:
        talk(f"no dataset is registered as {dataset!r} yet: atoll node data add {dataset} PATH")
        if close := get_close_matches(dataset, registered, 1):
            talk(
                f"did you mean {close[0]!r}? It has no part in this limit: set it again, and --remove this one"
            )
    if before is not None:
        talk(f"before: {before}")
    (found,) = _balances(at, made)
    data_line(json.dumps(_balance(found), indent=2) if as_json else _balances_table([found]))


@commands.command()
def verify(
    seen: Annotated[
        str | None, typer.Option(help="A head that was noted before: COUNT.HASH.SIGNATURE.")
    ] = None,
    ask: Annotated[
        bool, typer.Option("--ask", help="Compare with what the federation's server has seen.")
    ] = False,
    home: Folder = None,
    as_json: Json = False,
) -> None:
    """Check every line of the ledger and of the book of masked rounds; status 5 names a bad one."""
    from atoll.core.errors import StorageError
    from atoll.node.journal import Head, objection, read_head, read_journal

    at = home_at(home)
    key = key_of(at).public_bytes
    _, found = _opened(at)
    book = read_journal(at.pledges, key)
    for text in filter(None, (seen, _asked(at) if ask else "")):
        head = Head.parse(text)
        head.check(at.ledger.name, key)
        if reason := objection(at.ledger, found, head):
            raise StorageError(reason, remedy="put the newest copy of the ledger back")
    newest = read_head(at.ledger, key)
    told = {
        "ledger": {"lines": len(found.bodies), "torn": found.torn, "head": str(newest or "")},
        "pledges": {"lines": len(book.bodies), "torn": book.torn},
    }
    if as_json:
        data_line(json.dumps(told, indent=2))
        return
    data_line(f"ledger   {len(found.bodies)} lines, as they were written")
    data_line(f"pledges  {len(book.bodies)} lines, as they were written")
    if newest is not None:
        talk(f"note this head elsewhere, and compare with --seen later:\n{newest}")


def _asked(home: Home) -> str:
    """What the server remembers."""
    from atoll.node.join import opened
    from atoll.node.link import Link
    from atoll.node.settings import read_settings

    _, channel = opened(home, read_settings(home.settings))
    try:
        reply, _ = Link(channel).poll((), 0)
    finally:
        channel.close()
    talk("the server has seen no head" if not reply.ledger else "asked the server")
    return reply.ledger


def _opened(home: Home) -> tuple[Accounts, Any]:
    from atoll.node.policy.ledger_file import read_ledger

    return read_ledger(home.ledger, key_of(home).public_bytes)


def _balances(home: Home, limit: Limit) -> list[Balance]:
    accounts, _ = _opened(home)
    return [b for b in accounts.balances([limit]) if b.limit == limit]


def _number(value: float) -> float | None:
    """JSON knows neither infinity nor NaN."""
    return value if math.isfinite(value) else None


def _balance(found: Balance) -> dict[str, Any]:
    limit = found.limit
    return {
        "dataset": found.dataset,
        "unit": limit.unit if limit else None,
        "epsilon": limit.epsilon if limit else None,
        "delta": limit.delta if limit else None,
        "neighbouring": limit.neighbouring if limit else None,
        "spent": _number(found.spent),
        "unbounded": math.isinf(found.spent),
        "left": _number(found.left),
        "rounds": found.rounds,
        "open": found.open,
        "runs": found.runs,
        "queries": found.queries,
        "researchers": list(found.researchers),
    }


def _balances_table(found: list[Balance]) -> str:
    header = (
        "dataset",
        "limit",
        "spent",
        "left",
        "rounds",
        "open",
        "runs",
        "queries",
        "researchers",
    )
    rows = [
        (
            b.dataset,
            str(b.limit or "none"),
            "" if b.limit is None else _up(b.spent),
            "" if b.limit is None else f"{math.floor(b.left * 100) / 100:.2f}",
            str(b.rounds),
            str(b.open),
            str(b.runs),
            str(b.queries),
            ", ".join(b.researchers),
        )
        for b in found
    ]
    return table_of(header, rows)


def _told(event: Mapping[str, Any]) -> str:
    """An event for people: its kind, and of statistics what was asked."""
    asked = ", ".join(map(str, event.get("analyses", ())))
    return f"{event.get('kind', '')}: {asked}" if asked else str(event.get("kind", ""))


def _up(value: float) -> str:
    return f"{math.ceil(value * 100) / 100:.2f}" if math.isfinite(value) else "no bound"


def _entries_table(found: list[Entry]) -> str:
    from datetime import UTC, datetime

    rows = [
        (
            datetime.fromtimestamp(e.at, UTC).strftime("%Y-%m-%d %H:%M"),
            e.charge.dataset,
            e.charge.unit,
            e.state,
            str(e.charge.round),
            e.charge.run,
            e.charge.job[:12],
            e.charge.researcher,
            e.charge.federation,
            ", ".join(_told(event) for event in e.charge.events),
        )
        for e in found
    ]
    charge = ("dataset", "unit", "state", "round", "run", "job", "by", "federation", "events")
    return table_of(("when", *charge), rows)
