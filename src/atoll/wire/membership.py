"""A researcher's folder: the key, whom it belongs to, and how the server is known."""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from atoll.core.errors import Busy, NotFound, StateError, StorageError
from atoll.wire.trouble import remedy_of, unreadable

if TYPE_CHECKING:
    import atoll.wire.codes  # by their whole names, of which other rooms have the last part too
    import atoll.wire.identity
    from atoll.wire import https
    from atoll.wire.messages import JoinReply

__all__ = [
    "Membership",
    "channel_to",
    "enrolled",
    "join",
    "membership_in",
    "move",
    "read_json",
    "write_json",
]

_NOBODY = "join"
"""For whom the first request is: the answer tells the federation's id."""

_PATIENCE = 180.0
"""Seconds for which joining is tried again where many do so from one address."""

_PAUSE = 2.0, 6.0
"""Shortest and longest pause between two tries, in seconds."""

log = logging.getLogger("atoll.wire")


@dataclass(frozen=True)
class Membership:
    """What a researcher knows of the federation they joined.

    Args:
        federation: its id.
        name: the researcher's, in it.
        server: ``host:port``.
        pin: SHA-256 of the server's certificate, in hex.
        server_key: the server's public key, in hex.
        joined: seconds since 1970.
    """

    federation: str
    name: str
    server: str
    pin: str
    server_key: str
    joined: float


def channel_to(home: Path, membership: Membership, proxy: str | None) -> https.Channel:
    """A channel to the server, signed with the key in the folder."""
    from atoll.wire.https import Channel, Pin
    from atoll.wire.identity import Identity

    pin = Pin(bytes.fromhex(membership.pin), bytes.fromhex(membership.server_key))
    identity = Identity.load(home / "identity.pem")
    return Channel(membership.server, pin, identity, membership.federation, proxy=proxy)


def enrolled(
    invitation: atoll.wire.codes.Invitation,
    identity: atoll.wire.identity.Identity,
    role: Literal["site", "researcher"],
    dial: Callable[..., Any],
    proxy: str | None,
) -> JoinReply:
    """Have the federation pin a key, as that of a site or of a researcher.

    When the answer is lost, the same key may ask again. A server that takes no more newcomers from one
    address at the moment is asked again for three minutes; a warning in the log says so.

    Args:
        invitation: what the code says.
        identity: the key.
        role: for which the code has to be.
        dial: makes the channel, as :class:`~atoll.wire.https.Channel` does.
        proxy: see there.

    Raises:
        StateError: the code is for another role; it is not used up.
        AuthError: it has expired or was used, or the server is not the one it names.
        Busy: still too many newcomers.
        Unreachable: the server does not answer.
    """
    from importlib.metadata import version

    from atoll.wire.https import Pin
    from atoll.wire.messages import JoinBody, JoinReply

    body = JoinBody(
        secret=invitation.secret.hex(),
        key=identity.public_bytes.hex(),
        version=version("atoll"),
        role=role,
    )
    pin = Pin(invitation.certificate)
    with closing(dial(invitation.address, pin, identity, _NOBODY, proxy=proxy)) as channel:
        reply: JoinReply = _admitted(lambda: channel.json("POST", "/v1/join", body, JoinReply))
    if reply.role != role:
        raise StateError(
            f"this code is for a {reply.role}, {reply.name!r}, not for a {role}",
            remedy=f"ask for a {role}'s code",
        )
    return reply


def _admitted(ask: Callable[[], JoinReply]) -> JoinReply:
    """The answer of ``ask``, which is called again while too many newcomers ask at once."""
    deadline, told = time.monotonic() + _PATIENCE, False
    while True:
        try:
            return ask()
        except Busy:
            pause = random.uniform(*_PAUSE)
            if time.monotonic() + pause > deadline:
                raise
        if not told:
            told = True
            log.warning(
                "many join from this address at once, and the server takes them one after the other: "
                "trying again for %d minutes",
                _PATIENCE // 60,
            )
        time.sleep(pause)


def join(folder: Path, code: str, proxy: str | None) -> Membership:
    """Make a key, if there is none yet, and have the federation pin it: ``atoll.connect``."""
    from atoll.wire.codes import read_code
    from atoll.wire.https import Channel
    from atoll.wire.identity import Identity

    invitation = read_code(code)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}") from error
    path = folder / "identity.pem"
    # A key that is there is from a join whose answer was lost: the same key may ask again.
    identity = Identity.load(path) if path.exists() else Identity.create(path)
    reply = enrolled(invitation, identity, "researcher", Channel, proxy)
    membership = Membership(
        federation=reply.federation,
        name=reply.name,
        server=invitation.address,
        pin=invitation.certificate.hex(),
        server_key=reply.server_key,
        joined=time.time(),
    )
    write_json(folder / "federation.json", asdict(membership))
    return membership


def move(
    folder: Path, *, address: str = "", certificate: str = "", proxy: str | None = None
) -> Membership:
    """Note that the server has another address, or another certificate, once it has answered there.

    Its own key stays the same and has to sign the answer, so no other server can be meant.

    Args:
        folder: of the researcher.
        address: ``host:port``; empty: as before.
        certificate: SHA-256 of the certificate, in hex; empty: as before.
        proxy: as :func:`join` takes it.

    Raises:
        NotFound: nobody has joined in this folder.
        AuthError: another certificate or key is there; nothing is changed.
        WireError: the server does not answer; nothing is changed.
    """
    from atoll.wire.messages import MembersReply

    known = membership_in(folder)
    if known is None:
        raise NotFound(f"nobody has joined a federation in {folder}", remedy="atoll job join CODE")
    made = replace(known, server=address or known.server, pin=certificate or known.pin)
    with channel_to(folder, made, proxy) as channel:
        channel.json("GET", "/v1/federation", None, MembersReply)
    write_json(folder / "federation.json", asdict(made))
    return made


def membership_in(folder: Path) -> Membership | None:
    """Who has joined in this folder; None for nobody.

    Raises:
        StorageError: the record is damaged.
    """
    raw = read_json(folder / "federation.json")
    if not raw:
        return None
    if set(raw) != {field.name for field in fields(Membership)}:
        raise StorageError(
            f"{folder / 'federation.json'} is damaged", remedy="restore it, or join again"
        )
    return Membership(**raw)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return raw if isinstance(raw, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file of the folder, durably.

    Raises:
        StorageError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}", remedy=remedy_of(error)
        ) from error
