"""What the operator does: found a federation, invite, look, revoke, cancel. Works beside a running server.

These commands write to the store from a process of their own and take no part in running jobs, so they
need no lock. A running server sees a revocation, and that a run is to end, within a second.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from shlex import quote

from atoll.core.errors import JobError, StateError, StorageError, WireError
from atoll.server.blobs.opening import open_blobs
from atoll.server.epochs import put_back
from atoll.server.home import Charter, ServerHome
from atoll.server.rounds.results import ENDED
from atoll.server.settings import Runs
from atoll.server.store.contract import (
    RESTORED,
    STOPPED,
    Event,
    Invite,
    Member,
    Role,
    RunRow,
    Store,
)
from atoll.server.store.opening import open_store
from atoll.wire.certificates import certificate_fingerprint, create_certificate, server_context
from atoll.wire.codes import Invitation, encode_code, split_address
from atoll.wire.disk import RealDisk, keep
from atoll.wire.identity import Identity, write_secret
from atoll.wire.trouble import cramped

__all__ = [
    "DEFAULT_ADDRESS",
    "Change",
    "Founding",
    "Overview",
    "another_port",
    "cancel",
    "change",
    "found",
    "invite",
    "open_runs",
    "overview",
    "restored",
    "revoke",
    "split_listen",
]

DEFAULT_ADDRESS = "127.0.0.1:7443"
"""Where a server is when nobody says otherwise: on this machine, for trying things out."""

_NAME = re.compile(r"[^/\x00-\x1f\x7f]{1,200}")
_NAMES = "use 1 to 200 letters, figures and signs, but no /, and no space at the ends"
_DAY = 86_400.0


@dataclass(frozen=True)
class Founding:
    """What ``atoll server init`` is told.

    Args:
        name: of the federation, for people.
        address: ``host:port`` that members connect to.
        listen: ``host:port`` to bind; empty: all interfaces, or only this machine's own for a
            loopback address.
        store: URL of the database; empty: SQLite in the folder.
        blobs: URL of the object store; empty: a folder.
        certificate: PEM file; None: the server makes its own.
        key: its private key.
        runs: who may read them: every researcher, or those whose they are and whom they share them with.
    """

    name: str = "federation"
    address: str = DEFAULT_ADDRESS
    listen: str = ""
    store: str = ""
    blobs: str = ""
    certificate: Path | None = None
    key: Path | None = None
    runs: Runs = "open"


@dataclass(frozen=True)
class Change:
    """What ``atoll server change`` is told; what is left empty stays.

    Args:
        address: ``host:port`` that members connect to.
        listen: ``host:port`` to bind.
        certificate: PEM file of another certificate.
        key: its private key.
        renew: the server makes another certificate itself.
        runs: who may read them, those there are included.
    """

    address: str = ""
    listen: str = ""
    certificate: Path | None = None
    key: Path | None = None
    renew: bool = False
    runs: Runs | None = None


@dataclass(frozen=True)
class Overview:
    """Where a server stands.

    Args:
        charter: who it is.
        certificate: SHA-256 of its certificate, in hex.
        key: fingerprint of the key that signs answers.
        running: what the running server says of itself; None when none runs.
        epoch: of the last start.
        members: all keys that ever were admitted.
        open_invites: invitations that can still be used.
        runs: all runs.
        rounds: rounds ended, by run.
        alarms: the newest lines of the log.
        trouble: what an operator has to see to; empty for nothing.
    """

    charter: Charter
    certificate: str
    key: str
    running: dict[str, object] | None
    epoch: int
    members: tuple[Member, ...]
    open_invites: tuple[Invite, ...]
    runs: tuple[RunRow, ...]
    rounds: dict[str, int]
    alarms: tuple[Event, ...]
    trouble: str = ""


def found(path: Path, asked: Founding, now: float) -> Charter:
    """Make a server's folder: keys, certificate, store.

    Raises:
        StorageError: there is one already, or something cannot be written or opened.
        JobError: a value makes no sense.
    """
    home = ServerHome(path)
    _address(asked.address)
    listen = asked.listen or _listen_for(asked.address)
    _address(listen, split_listen)
    if not _NAME.fullmatch(asked.name):
        raise JobError(f"{asked.name!r:.80} is no name of a federation", remedy=_NAMES)
    _check_pair(asked.certificate, asked.key)
    home.make()
    slug = re.sub(r"[^a-z0-9]+", "-", asked.name.casefold()).strip("-")[:40] or "federation"
    charter = Charter(
        federation=f"{slug}-{secrets.token_hex(8)}",
        name=asked.name,
        address=asked.address,
        listen=listen,
        store=asked.store,
        blobs=asked.blobs,
        certificate="tls/cert.pem",
        key="tls/key.pem",
        founded=now,
        runs=asked.runs,
    )
    # What can fail comes before what is made once: a second try must not meet the keys of the first.
    _check_new(home, charter)
    open_blobs(charter.blobs, home.blobs)
    _certificate(home, charter, asked.certificate, asked.key, now)
    Identity.create(home.identity)
    write_secret(home.token, secrets.token_urlsafe(32).encode() + b"\n")
    home.write(charter)
    return charter


def _check_new(home: ServerHome, charter: Charter) -> None:
    """Open the store, and refuse one that a federation has: its members would be strangers to new keys.

    Raises:
        StorageError: it has members, invitations or starts; or it cannot be opened.
    """
    store = open_store(home.store_url(charter))
    try:
        used = store.lease().epoch or store.members() or store.invites()
    finally:
        store.close()
    if used:
        raise StorageError(
            "the store holds a federation already",
            remedy="take an empty database; or, for that federation, put back the folder of its server",
        )


def change(path: Path, asked: Change, now: float) -> Charter:
    """Give a server another address, or another certificate; its key stays, by which members know it.

    A certificate gets a file of its own, so that at no moment one lies beside another's key. A running server
    goes on with what it has until it is started again.

    Raises:
        NotFound: there is no server in the folder.
        StorageError: something cannot be read or written.
        JobError: a value makes no sense, or nothing is to change.
    """
    home = ServerHome(path)
    charter = home.charter()
    if asked == Change():
        raise JobError(
            "nothing is to change", remedy="give --address, --listen, --renew, --cert or --runs"
        )
    _check_pair(asked.certificate, asked.key)
    if asked.renew and asked.certificate is not None:
        raise JobError("a certificate is made or given", remedy="leave out --renew, or --cert")
    address, listen = asked.address or charter.address, asked.listen or charter.listen
    if asked.address and not asked.listen and listen == _listen_for(charter.address):
        listen = _listen_for(_address(address))
    _address(address)
    _address(listen, split_listen)
    made = replace(charter, address=address, listen=listen, runs=asked.runs or charter.runs)
    if asked.renew or asked.certificate is not None:
        number = next(n for n in count(2) if not home.path.joinpath("tls", f"key-{n}.pem").exists())
        made = replace(made, certificate=f"tls/cert-{number}.pem", key=f"tls/key-{number}.pem")
        _certificate(home, made, asked.certificate, asked.key, now)
    home.write(made)
    if made.runs != charter.runs:
        _note_runs(home, made, now)
    return made


def _note_runs(home: ServerHome, charter: Charter, now: float) -> None:
    """Who may read runs is a line in the log: members may want to know since when."""
    who = "every researcher" if charter.runs == "open" else "their own researchers alone"
    store = open_store(home.store_url(charter))
    try:
        store.add_event("runs", f"from the next start on they are read by {who}", "", "", now)
    finally:
        store.close()


def restored(path: Path, seen: int, now: float) -> int:
    """Let a server that was put back from a backup go on after all that its federation has seen since.

    Its epochs go on behind ``seen``, so that sites obey it, and runs get ids that none had before.

    Args:
        path: folder of the server, which must not run.
        seen: the newest epoch that a site names.
        now: seconds since 1970.

    Returns:
        the epoch behind which the next start is.

    Raises:
        StorageError: the server runs.
        StateError: it has been started since that epoch.
        NotFound: there is no server in the folder.
    """
    home = ServerHome(path)
    home.charter()  # before a lock file is made where there is no server
    with home.locked():
        _, _, store = _opened(path)
        try:
            if (newest := store.lease().epoch) > seen:
                raise StateError(
                    f"this server is in its epoch {newest} already, and {seen} was seen before that",
                    remedy=f"atoll server start {quote(str(path))}",
                )
            epoch = store.acquire("a restore", now, seen)
            text = f"from a backup of epoch {newest}; epochs go on behind {epoch}"
            store.add_event(RESTORED, text, "", "", now)
        finally:
            store.close()
    return epoch


def another_port(home: ServerHome, charter: Charter) -> str:
    """The command that gives a server another port; members are told where theirs is the same."""
    if split_listen(charter.listen)[1] != split_address(charter.address)[1]:
        return f"atoll server change {quote(str(home.path))} --listen HOST:PORT"
    return f"atoll server change {quote(str(home.path))} --address HOST:PORT, and tell every site"


def _check_pair(certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise JobError("a certificate and its key come together", remedy="give --cert and --key")


def _address(text: str, split: Callable[[str], tuple[str, int]] = split_address) -> str:
    """An address as a person gave it.

    Raises:
        JobError: it is none.
    """
    try:
        split(text)
    except WireError as error:
        raise JobError(
            error.message, remedy="write HOST:PORT, such as fl.example.org:7443"
        ) from error
    return text


def _certificate(
    home: ServerHome, charter: Charter, given: Path | None, its_key: Path | None, now: float
) -> None:
    certificate, key = home.certificate(charter), home.key(charter)
    if given is None or its_key is None:
        host = split_address(charter.address)[0]
        names = list(dict.fromkeys([host, "localhost", "127.0.0.1"]))
        create_certificate(certificate, key, names, now=now)
        return
    # Copied: the codes pin this very certificate, whatever is renewed elsewhere.
    server_context(given, its_key)
    write_secret(key, its_key.read_bytes())
    keep(RealDisk(), certificate, [given.read_bytes()])


def _listen_for(address: str) -> str:
    host, port = split_address(address)
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if local:
        return address
    return f"0.0.0.0:{port}"


def split_listen(listen: str) -> tuple[str, int]:
    """Host and port to bind; port 0 lets the system choose one.

    Raises:
        WireError: it is no address.
    """
    if listen.endswith(":0"):
        return split_address(f"{listen[:-2]}:1")[0], 0
    return split_address(listen)


def invite(path: Path, name: str, role: Role, days: float, now: float) -> str:
    """A code that lets one newcomer in, once.

    Args:
        path: folder of the server.
        name: whom it is for.
        role: what the newcomer may do.
        days: how long the code is good.
        now: seconds since 1970.

    Raises:
        StateError: an active member has this name.
        NotFound: there is no server in the folder.
    """
    if not _NAME.fullmatch(name) or name != name.strip():
        raise JobError(f"{name!r:.80} is no name of a member", remedy=_NAMES)
    if not 0 < days <= 366:
        raise JobError(f"{days:g} days: a code lives from some minutes to a year")
    home, charter, store = _opened(path)
    secret = secrets.token_bytes(16)
    try:
        store.add_invite(Invite(hashlib.sha256(secret).hexdigest(), name, role, now + days * _DAY))
        store.add_event("invited", f"{name} as {role}, for {days:g} days", "", name, now)
    finally:
        store.close()
    pin = certificate_fingerprint(home.certificate(charter))
    return encode_code(Invitation(charter.address, pin, secret))


def revoke(path: Path, name: str, now: float) -> int:
    """Never again accept a key of ``name``, nor a code that was made for it and not used.

    Returns:
        how many codes there were.

    Raises:
        NotFound: nobody has that name or is invited under it, or there is no server in the folder.
        StateError: it was revoked before.
    """
    _, _, store = _opened(path)
    try:
        codes = store.withdraw(name)
        if codes:
            text = f"{codes} code{'s' * (codes > 1)} for {name}, not used yet"
            store.add_event("withdrawn", text, "", name, now)
        found = [member for member in store.members() if member.name == name]
        if any(member.status != "revoked" for member in found) or not (found or codes):
            store.set_member(name, "revoked")
            store.add_event("revoked", f"the key of {name} is not accepted any more", "", name, now)
        elif not codes:
            raise StateError(f"{name} was revoked before", remedy="atoll server sites")
        return codes
    finally:
        store.close()


def open_runs(path: Path, by: str) -> tuple[str, ...]:
    """Ids of the runs that ``by`` has submitted and that have not ended.

    Raises:
        NotFound: there is no server in the folder.
    """
    _, _, store = _opened(path)
    try:
        return tuple(row.id for row in store.runs() if row.by == by and row.status not in ENDED)
    finally:
        store.close()


def cancel(path: Path, run: str, now: float) -> RunRow:
    """Say that a run is to end, whoever has submitted it; gives it as it is still.

    Raises:
        NotFound: there is none with this id, or no server in the folder.
        StateError: it has ended.
    """
    _, _, store = _opened(path)
    try:
        row = store.run(run)
        if row.status in ENDED:
            raise StateError(f"run {run} has ended: {row.status}", remedy="atoll server status")
        store.add_event(STOPPED, "cancelled by whoever runs the server", run, "", now)
        return row
    finally:
        store.close()


def overview(path: Path, now: float, alarms: int = 10) -> Overview:
    """Everything the operator wants to see at once.

    Raises:
        NotFound: there is no server in the folder.
    """
    home, charter, store = _opened(path)
    try:
        runs = store.runs()
        newest = {run.id: store.last_round(run.id) for run in runs}
        events, epoch = store.events(), store.lease().epoch
        lost = ". ".join(filter(None, put_back(events, epoch)))
        return Overview(
            charter=charter,
            certificate=certificate_fingerprint(home.certificate(charter)).hex(),
            key=Identity.load(home.identity).fingerprint,
            running=home.running(),
            epoch=epoch,
            members=store.members(),
            open_invites=tuple(i for i in store.invites() if i.used is None and i.expires > now),
            runs=runs,
            rounds={run: row.number if row else 0 for run, row in newest.items()},
            alarms=events[-alarms:] if alarms else (),
            trouble="; ".join(filter(None, (cramped(path), lost))),
        )
    finally:
        store.close()


def _opened(path: Path) -> tuple[ServerHome, Charter, Store]:
    home = ServerHome(path)
    charter = home.charter()
    return home, charter, open_store(home.store_url(charter))
