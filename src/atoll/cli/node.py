"""``atoll node …``: a site joins a federation, registers its data, and works."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atoll.cli import approvals, ledger
from atoll.cli.audit_log import commands as audit_log
from atoll.cli.node_home import Folder, Json, home_at
from atoll.cli.output import data_line, table_of, talk
from atoll.cli.whereabouts import Address, Certificate, pin_of, show_server

if TYPE_CHECKING:
    from atoll.node.home import Home
    from atoll.node.peers import Peers
    from atoll.wire.messages import MemberBody

__all__ = ["commands"]

commands = typer.Typer(help="Take part in a federation with a site's data.", no_args_is_help=True)
data = typer.Typer(help="The datasets that jobs may name.", no_args_is_help=True)
commands.add_typer(data, name="data")
commands.add_typer(ledger.commands, name="ledger")
commands.add_typer(audit_log, name="log")
commands.add_typer(approvals.commands, name="jobs")


@commands.command()
def join(
    code: Annotated[str, typer.Argument(help="From whoever runs the federation's server.")],
    home: Folder = None,
    proxy: Annotated[
        str | None, typer.Option(help="http://[user:password@]host:port of an HTTP proxy.")
    ] = None,
) -> None:
    """Join a federation with a one-time code; makes this site's key."""
    from atoll.node.join import join
    from atoll.node.settings import keep_proxy, read_settings
    from atoll.wire.identity import Identity, spoken

    at = home_at(home)
    settings = read_settings(at.settings)
    made = join(at, code, proxy=proxy if proxy is not None else settings.proxy or None)
    if proxy:
        keep_proxy(at.settings, proxy)
    fingerprint = Identity.load(at.identity).fingerprint
    data_line(f"joined       {made.federation}\nas           {made.site}")
    data_line(f"fingerprint  {spoken(fingerprint)}")
    talk("next: read the fingerprint to the others by telephone (atoll node peers shows theirs),")
    talk("then: atoll node data add NAME PATH, and atoll node start")


@commands.command()
def start(home: Folder = None) -> None:
    """Work for the federation until stopped (Ctrl-C or SIGTERM)."""
    from atoll.cli.log import begin_log
    from atoll.node.agent import Agent, stop_on_signal
    from atoll.node.join import audited, opened, trusted
    from atoll.node.policy.steward import opened as stewarded
    from atoll.node.settings import read_settings
    from atoll.runtime.allocator import keep_freed_memory

    at = home_at(home)
    begin_log(logging.WARNING)
    logging.getLogger("atoll.node").setLevel(logging.INFO)
    settings = read_settings(at.settings)
    with at.locked() as here:
        known, channel = opened(at, settings)
        audit, trust = audited(at, known), trusted(at, known)
        rules = stewarded(at, settings, audit.decided)
        agent = Agent(
            at,
            known.site,
            channel,
            settings,
            trust=trust,
            steward=rules,
            here=here,
            audit=audit,
        )
        talk(f"{known.site} works for {known.federation} at {known.server}; stop with Ctrl-C")
        keep_freed_memory()
        gc.collect()
        gc.freeze()  # what is here now stays: later collections need not look at it again
        with stop_on_signal(agent):
            agent.run()
    talk("stopped; what was in progress is done again after the next start")


@commands.command()
def status(home: Folder = None, as_json: Json = False) -> None:
    """What this node is, and what it is doing."""
    from atoll.node.policy.approvals import Approvals
    from atoll.wire.identity import Identity
    from atoll.wire.trouble import cramped

    at = home_at(home)
    known, key = at.joined(), Identity.load(at.identity)
    running = at.running
    state = at.read(at.state)
    told: dict[str, Any] = {
        "site": known.site,
        "federation": known.federation,
        "server": known.server,
        "fingerprint": key.fingerprint,
        "running": running,
        "epoch": state.get("epoch", 0),
        "state": state.get("state", "") if running else "stopped",
        "since": state.get("since", "") if running else "",
        "trouble": (state.get("trouble", "") if running else "") or cramped(at.path),
        "code": state.get("code", "") if running else "",
        "runs": state.get("runs", {}) if running else {},
        "waiting": Approvals(at.approvals, key).waiting,
        "datasets": [d.to_plain() for d in _register(at).all().values()],
    }
    data_line(json.dumps(told, indent=2) if as_json else _status_text(told))


@commands.command()
def peers(
    home: Folder = None,
    as_json: Json = False,
    pin: Annotated[
        bool,
        typer.Option("--pin", help="Pin the keys shown, of sites (masked rounds) and researchers."),
    ] = False,
    repin: Annotated[
        list[str] | None,
        typer.Option(help="A member that has a new key, as it told you itself. Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Pin this member and no other. Repeatable.")
    ] = None,
    unpin: Annotated[
        list[str] | None, typer.Option(help="A member whose key is to count no more. Repeatable.")
    ] = None,
) -> None:
    """Everybody in the federation with the fingerprints of their keys, for checking by telephone.

    A job counts where a researcher has signed it whose key is pinned here. Of one whose name is not pinned
    the first key counts that this site has seen, unless policy.researchers is "pinned".
    """
    from atoll.core.errors import NotFound, suggest
    from atoll.node.join import opened
    from atoll.node.link import Link
    from atoll.node.peers import Peers
    from atoll.node.settings import read_settings
    from atoll.wire.identity import spoken

    at = home_at(home)
    books = {"site": Peers(at.peers), "researcher": Peers(at.researchers)}
    if unpin:  # also while the server does not answer
        gone = [name for book in books.values() for name in book.unpin(unpin)]
        talk(f"no more pinned: {', '.join(gone) or 'nobody, as none of them was'}")
    known, channel = opened(at, read_settings(at.settings))
    try:
        reply = Link(channel).members()
    finally:
        channel.close()
    if pin or repin or only:
        meant = [m for m in reply.members if not only or m.name in {*only, *(repin or ())}]
        if absent := sorted({*(only or ()), *(repin or ())} - {m.name for m in meant}):
            raise NotFound(
                f"{', '.join(absent)}: no member of this federation",
                remedy=suggest(absent[0], [m.name for m in reply.members]),
            )
        new = _pinned(books, meant, repin or ())
        talk(f"pinned: {', '.join(new) or 'nothing new'}")
    if as_json:
        data_line(reply.model_dump_json(indent=2))
        return
    pinned = {role: book.all() for role, book in books.items()}
    rows = [("the server", "server", "", spoken(reply.server), "")]
    rows += [
        (m.name, m.role, m.status, spoken(m.fingerprint), _pin_text(pinned[m.role], m))
        for m in reply.members
    ]
    data_line(table_of(("name", "role", "status", "fingerprint", "pinned"), rows))
    talk(f"you are {known.site}; compare the others' lines with what they see themselves")


@commands.command()
def server(
    home: Folder = None,
    address: Address = "",
    certificate: Certificate = "",
) -> None:
    """Show where the server is and how it is known, or note that it has moved or renewed its certificate."""
    from atoll.node.join import move
    from atoll.node.settings import read_settings

    at = home_at(home)
    known = at.joined()
    if address or certificate:
        known = move(
            at, read_settings(at.settings), address=address, certificate=pin_of(certificate)
        )
        talk("it has answered there with its own key; next: atoll node start")
    show_server(known.server, known.pin, known.server_key)


@commands.command()
def leave(
    home: Folder = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not tell the server, which is gone for good.")
    ] = False,
) -> None:
    """Leave the federation; the key and the datasets stay here."""
    from atoll.node.join import leave
    from atoll.node.settings import read_settings

    at = home_at(home)
    known = at.joined()
    if not yes:
        typer.confirm(f"Leave {known.federation} as {known.site}?", abort=True, err=True)
    leave(at, read_settings(at.settings), tell=not offline)
    talk(f"{known.site} has left {known.federation}; a new code is needed to join again")


@data.command("add")
def add(
    name: Annotated[str, typer.Argument(help="As jobs call it: 'heart' for heart.csv.")],
    path: Annotated[Path, typer.Argument(help="A .csv, .parquet, .npz or .npy file.")],
    missing: Annotated[
        list[str] | None,
        typer.Option(help="A value that means 'not known': CODE, or COLUMN=CODE. Repeatable."),
    ] = None,
    home: Folder = None,
) -> None:
    """Register a dataset under a name; jobs never see its path."""
    register = _register(home_at(home))
    made = register.add(name, path, missing or ())
    data_line(f"{made.name}  {made.path}")
    data_line(table_of(("column", "kind"), list(made.columns.items())))
    for other in register.all().values():
        if other.path == made.path and other.name != name:
            talk(
                f"the same rows are registered as {other.name!r}: its rule, its limit and what it was asked "
                f"for do not count for {name!r} (atoll node data rule, atoll node ledger limit)"
            )


@data.command("list")
def list_all(home: Folder = None, as_json: Json = False) -> None:
    """The registered datasets."""
    found = _register(home_at(home)).all().values()
    if as_json:
        data_line(json.dumps([d.to_plain() for d in found], indent=2))
        return
    rows = [(d.name, str(len(d.columns)), d.path) for d in found]
    data_line(table_of(("name", "columns", "path"), rows))


@data.command("remove")
def remove(
    name: Annotated[str, typer.Argument(help="Of the dataset.")], home: Folder = None
) -> None:
    """Forget a dataset; its file stays where it is."""
    from atoll.node.rules import Rule

    register = _register(home_at(home))
    ruled = name in (found := register.all()) and found[name].rule != Rule()
    register.remove(name)
    talk(f"{name} is not registered any more")
    if ruled:
        talk("its rule is forgotten too; atoll node data add NAME PATH over a name keeps it")


@data.command("rule")
def rule(
    name: Annotated[str, typer.Argument(help="Of the dataset.")],
    minimum: Annotated[
        int | None, typer.Option(min=1, help="Least number of persons behind anything told.")
    ] = None,
    person: Annotated[
        str | None, typer.Option(help="Column that names the person; empty: each row is one.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="A column that statistics may read; repeatable. '*': all of them."),
    ] = None,
    extremes: Annotated[
        bool | None, typer.Option(help="Whether smallest and largest values may be told.")
    ] = None,
    differences: Annotated[
        bool | None, typer.Option(help="Whether differences of answers are refused.")
    ] = None,
    small: Annotated[
        str | None,
        typer.Option(help="Counts of fewer persons: 'masked' leaves under masks only; 'clear'."),
    ] = None,
    training: Annotated[
        str | None,
        typer.Option(
            help="Such counts inside what training in the clear takes: 'needed' leaves; 'strict'."
        ),
    ] = None,
    inputs: Annotated[
        bool | None, typer.Option(help="Whether means and scales are handed out with a model.")
    ] = None,
    home: Folder = None,
    as_json: Json = False,
) -> None:
    """Show or set what may be told of a dataset beside updates; no job can weaken it."""
    from dataclasses import replace

    from atoll.core.errors import DataError, raise_faults
    from atoll.node.rules import Rule, rule_faults

    register = _register(home_at(home))
    known = register.get(name)
    columns = None if column is None else [] if "*" in column else list(column)
    given = {
        "minimum": minimum,
        "person": person,
        "columns": columns,
        "extremes": extremes,
        "differences": differences,
        "small": small,
        "training": training,
        "inputs": inputs,
    }
    said = {key: value for key, value in given.items() if value is not None}
    if said:
        raise_faults(DataError, f"the rule of {name!r}", list(rule_faults(name, said)))
        plain = {**known.rule.to_plain(), **said}
        known = register.govern(name, replace(known.rule, **vars(Rule.from_plain(plain))))
    told = known.rule.to_plain()
    if as_json:
        data_line(json.dumps(told, indent=2))
        return
    rows = [(key, _rule_text(key, value)) for key, value in told.items()]
    data_line(table_of(("rule", name), rows))


def _rule_text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "columns":
        return ", ".join(value) or "all"
    return str(value) or "each row is one"


@data.command("review")
def review(
    name: Annotated[str, typer.Argument(help="Of the dataset.")], home: Folder = None
) -> None:
    """Begin a new log of queries after the file has changed; the old one is kept."""
    kept = _register(home_at(home)).review(name)
    if kept is None:
        talk(f"statistics have asked nothing of {name} yet")
        return
    talk(f"what was told until now is in {kept}; answers before and after are not compared")


def _pinned(
    books: Mapping[str, Peers], members: Iterable[MemberBody], again: Iterable[str]
) -> list[str]:
    """Pin the active members' keys, each in the book of its role; the names that are new."""
    shown = {role: dict[str, str]() for role in books}
    for member in members:
        if member.status == "active":
            shown[member.role][member.name] = member.fingerprint
    again = set(again)
    return [name for role, book in books.items() for name in book.pin(shown[role], again)]


def _pin_text(pinned: dict[str, str], member: Any) -> str:
    if member.name not in pinned:
        return "no"
    return "yes" if pinned[member.name] == member.fingerprint else "ANOTHER KEY"


def _register(home: Home) -> Any:
    from atoll.node.datasets import Datasets

    return Datasets(home.datasets)


def _status_text(told: dict[str, Any]) -> str:
    from atoll.wire.identity import spoken

    names = ", ".join(d["name"] for d in told["datasets"]) or "none; atoll node data add NAME PATH"
    since = f" since {told['since']}" if told["since"] else ""
    epoch = f", seen in its epoch {told['epoch']}" if told["epoch"] else ""
    lines = [
        f"site         {told['site']}",
        f"federation   {told['federation']} at {told['server']}{epoch}",
        f"fingerprint  {spoken(told['fingerprint'])}",
        f"state        {told['state']}{since}",
        f"datasets     {names}",
    ]
    if told["trouble"]:
        lines.append(f"trouble      {told['trouble']}")
    if told["waiting"]:
        lines.append(f"jobs         {told['waiting']} to approve: atoll node jobs list --waiting")
    for run, doing in told["runs"].items():
        tasks = ", ".join(f"{task} {state}" for task, state in doing["tasks"].items()) or "waiting"
        lines.append(f"run {run}  {tasks}")
    return "\n".join(lines)
