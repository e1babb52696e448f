"""Joining a federation, and leaving it: the site makes its key, the federation pins the public half."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll.core.errors import DataError, Forbidden, StateError, StorageError
from atoll.node.audit.log import AuditLog
from atoll.node.audit.reading import newest_head
from atoll.node.datasets import Datasets
from atoll.node.home import Federation, Home
from atoll.node.journal import read_head
from atoll.node.link import Link
from atoll.node.peers import Peers, Trust
from atoll.node.pledges import Pledges
from atoll.node.settings import Settings
from atoll.wire.codes import read_code
from atoll.wire.https import Channel, Pin
from atoll.wire.identity import Identity
from atoll.wire.membership import enrolled
from atoll.wire.trouble import remedy_of

__all__ = ["audited", "join", "leave", "move", "opened", "trusted"]

Dial = Callable[..., Any]
"""Makes a channel; :class:`~atoll.wire.https.Channel` unless a test gives another."""


def join(home: Home, code: str, *, proxy: str | None = None, dial: Dial = Channel) -> Federation:
    """Join the federation that ``code`` invites to.

    The code says where the server is, which certificate it must show, and a secret that works once. The
    request is signed with the new key, so nobody can have another's key pinned. When the answer is
    lost, the same command does it again with the same key.

    Args:
        home: the node's folder.
        code: as the server printed it.
        proxy: see :class:`~atoll.wire.https.Channel`.
        dial: makes the channel.

    Raises:
        StateError: this folder belongs to a federation already, or its ledger to another key; or the code
            is for a researcher.
        WireError: the code is mistyped; the group is named.
        AuthError: the code has expired or was used, or the server is not the one it names.
        Unreachable: the server does not answer.
    """
    if home.read(home.federation):
        known = home.joined()
        raise StateError(
            f"this node is {known.site!r} of the federation at {known.server} already",
            remedy="leave it first (atoll node leave), or give this one a --home of its own",
        )
    invitation = read_code(code)
    home.make()
    identity = _identity(home.identity)
    _check_books(home, identity)
    reply = enrolled(invitation, identity, "site", dial, proxy)
    made = Federation(
        federation=reply.federation,
        site=reply.name,
        server=invitation.address,
        pin=invitation.certificate.hex(),
        server_key=reply.server_key,
        joined=time.time(),
    )
    home.join(made)
    with suppress(StorageError):  # of which the node's start tells
        audited(home, made)
    return made


def opened(home: Home, settings: Settings, *, dial: Dial = Channel) -> tuple[Federation, Any]:
    """The federation this node belongs to, and a channel to its server.

    Raises:
        NotFound: it has not joined one.
        AtollError: the key cannot be read.
    """
    known = home.joined()
    identity = Identity.load(home.identity)
    pin = Pin(bytes.fromhex(known.pin), bytes.fromhex(known.server_key))
    channel = dial(known.server, pin, identity, known.federation, proxy=settings.proxy or None)
    return known, channel


def trusted(home: Home, known: Federation) -> Trust:
    """What this node needs for masked rounds.

    Raises:
        AtollError: its key, or its book of rounds, cannot be read.
    """
    identity = Identity.load(home.identity)
    book = Pledges(home.pledges, identity)
    server = bytes.fromhex(known.server_key)
    return Trust(known.federation, server, identity, book, Peers(home.peers))


def audited(home: Home, known: Federation) -> AuditLog:
    """The audit log of this node, which says for which federation it works and what is registered.

    Raises:
        StorageError: it is not as it was written, or cannot be written.
        AtollError: the key cannot be read.
    """
    log = AuditLog(home.audit, Identity.load(home.identity))
    log.joined(
        {
            "federation": known.federation,
            "site": known.site,
            "server": known.server,
            "server_key": known.server_key,
        }
    )
    with suppress(DataError):  # a register that cannot be read is told of with the first task
        log.register(Datasets(home.datasets).told())
    return log


def move(
    home: Home,
    settings: Settings,
    *,
    address: str = "",
    certificate: str = "",
    dial: Dial = Channel,
) -> Federation:
    """Note that the server has another address, or another certificate, once it has answered there.

    The server's own key stays the same and has to sign the answer, so no other server can be meant.

    Args:
        home: the node's folder.
        settings: of the site.
        address: ``host:port``; empty: as before.
        certificate: SHA-256 of the certificate, in hex, as the server's operator has read it out. What opens
            TLS on the way has another one. Empty: as before.
        dial: makes the channel.

    Raises:
        StorageError: the node is running.
        AuthError: another certificate or key is there; nothing is changed.
        AtollError: the server does not answer; nothing is changed.
    """
    with home.locked():
        known = home.joined()
        made = replace(known, server=address or known.server, pin=certificate or known.pin)
        pin = Pin(bytes.fromhex(made.pin), bytes.fromhex(made.server_key))
        identity = Identity.load(home.identity)
        channel = dial(made.server, pin, identity, made.federation, proxy=settings.proxy or None)
        try:
            Link(channel).members()
        finally:
            channel.close()
        home.move(made)
    return made


def leave(home: Home, settings: Settings, *, tell: bool = True, dial: Dial = Channel) -> Federation:
    """Leave the federation; key and datasets stay, so that a new code is enough to join again.

    What was finished and not handed in stays too, for this federation alone: :meth:`Home.join`.

    Args:
        home: the node's folder.
        settings: of the site.
        tell: whether the server is told; one that is gone for good cannot be.
        dial: makes the channel.

    Raises:
        StorageError: the node is running.
        AtollError: the server cannot be told; nothing is changed.
    """
    with home.locked():
        known = home.joined()
        log = audited(home, known)  # one that cannot be written is found before anything is changed
        if tell:
            _tell(home, settings, dial)
        log.left()
        _remove(home.state)
        _put_by(home)
    return known


def _tell(home: Home, settings: Settings, dial: Dial) -> None:
    _, channel = opened(home, settings, dial=dial)
    try:
        with suppress(Forbidden):  # it has been shown out already
            Link(channel).leave()
    finally:
        channel.close()


def _identity(path: Path) -> Identity:
    """The site's key; made now, unless an earlier attempt to join has left one."""
    return Identity.load(path) if path.exists() else Identity.create(path)


def _check_books(home: Home, identity: Identity) -> None:
    """Say before the code is used up that a node with this key could not start on the site's ledger."""
    try:
        folder = home.ledger.parent
        for path in (home.ledger, home.pledges):
            read_head(path, identity.public_bytes)
        folder = home.audit
        newest_head(folder, identity.public_bytes)
    except StorageError as error:
        raise StateError(
            f"{folder} is damaged, or was signed with another key than {home.identity.name} here",
            remedy="put that key back. A site that must have a new one moves this folder away and keeps it: "
            "what it has counted counts no more, so lower the limits by what is spent, then join again",
        ) from error


def _put_by(home: Home) -> None:
    """The federation is left; which one it was, the next join asks."""
    try:
        home.federation.replace(home.left)
    except OSError as error:
        raise StorageError(
            f"{home.federation} cannot be renamed: {error.strerror}", remedy=remedy_of(error)
        ) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be removed: {error.strerror}", remedy=remedy_of(error)
        ) from error
