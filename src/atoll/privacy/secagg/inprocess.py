"""A whole masked round in one process, with real cryptography: simulations, tests, measurements.

The two machines are the ones a deployment runs; this is the shell around them when all messages are
function calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from atoll.core.errors import StateError, UpdateRefused
from atoll.core.layout import Array
from atoll.privacy.secagg import server as at_server
from atoll.privacy.secagg import site as at_site
from atoll.privacy.secagg.keys import needs_cryptography
from atoll.privacy.secagg.ledger import Book
from atoll.privacy.secagg.masks import (
    MaskPlan,
    RingSum,
    Rooms,
    masked_chunks,
    masked_integers,
    place_in,
    root_of,
)
from atoll.privacy.secagg.messages import FromSite, Invitation
from atoll.privacy.secagg.policy import Approved
from atoll.privacy.secagg.server import Server
from atoll.privacy.secagg.site import Site
from atoll.privacy.secagg.terms import Terms

__all__ = ["Guest", "Identity", "Relay", "Round", "play"]


class Identity:
    """An Ed25519 identity that lives in this process only.

    Args:
        secret: 32 bytes from the operating system.

    Raises:
        MissingExtra: ``cryptography`` is not installed.
    """

    def __init__(self, secret: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        except ImportError as error:
            raise needs_cryptography(error) from error
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public_bytes = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The signature of ``message``, 64 bytes."""
        return self._key.sign(message)


@dataclass
class Guest:
    """One site in a round of this process.

    Args:
        site: the machine, idle.
        approved: what it knows of the round itself.
        values: its input, one vector per lane.
        entropy: 32 bytes from the operating system.
        rounding: 32 bytes that rounding draws from; None rounds to the nearest.
        book: its ledger.
        chunks: its masked input, once it exists.
        said: the messages it has sent, in order.
        aborted: why it gave up; empty if it did not.
        blames: the peer that it blames for it, if any.
        rounded: whether ``values`` are integers already.
        rooms: where masked inputs lie; guests may share them.
    """

    site: Site
    approved: Approved
    values: Mapping[str, Array]
    entropy: bytes = field(repr=False)
    rounding: bytes | None = field(default=None, repr=False)
    book: Book = field(default_factory=Book)
    chunks: list[memoryview] = field(default_factory=list, repr=False)
    said: list[FromSite] = field(default_factory=list, repr=False)
    aborted: str = ""
    blames: str = ""
    rounded: bool = False
    rooms: Rooms = field(default_factory=Rooms, repr=False)
    _room: Mapping[str, Array] | None = field(default=None, repr=False)

    def hear(self, event: at_site.Event, terms: Terms) -> list[FromSite]:
        """Give ``event`` to the machine, do what it asks for, and return what it says."""
        todo, words = deque([event]), list[FromSite]()
        while todo:
            self.site, effects = at_site.step(self.site, todo.popleft())
            for effect in effects:
                if isinstance(effect, at_site.Say):
                    words.append(effect.message)
                elif isinstance(effect, at_site.Abort):
                    self.aborted, self.blames = effect.reason, effect.blamed
                else:
                    todo.append(self._do(effect, terms))
        self.said += words
        return words

    def _do(self, effect: at_site.Keep | at_site.Mask, terms: Terms) -> at_site.Event:
        if isinstance(effect, at_site.Mask):
            try:
                return at_site.Masked(root_of(self._masked(terms, effect.plan)))
            except UpdateRefused as error:
                self.chunks = []
                return at_site.Cancel(error.message)
        try:
            self.book.keep(effect.record, effect.apart)
        except StateError as error:
            return at_site.Denied(effect.record, error.message)
        return at_site.Kept(effect.record)

    def _masked(self, terms: Terms, plan: MaskPlan) -> Iterator[memoryview]:
        """Mask the input, chunk by chunk, so that each can be hashed while it is in the cache."""
        self._room, self.chunks = self.rooms.take(terms), []
        place = place_in(self._room)
        if self.rounded:
            chunks = masked_integers(terms, plan, self.values, place)
        else:
            chunks = masked_chunks(terms, plan, self.values, self.rounding, place)
        for chunk in chunks:
            self.chunks.append(chunk)
            yield chunk

    def settle(self, terms: Terms) -> None:
        """The input is in the sum, and its memory serves the next."""
        self.chunks = []
        if self._room is not None:
            self.rooms.give(terms, self._room)
            self._room = None


Relay = Callable[[str, Any], Any]
"""What stands between: gets a site's name and a message to or from it, gives the message that arrives
(another one, or None for none)."""


def _straight(name: str, message: Any) -> Any:
    return message


@dataclass
class Round:
    """What came out of a round.

    Args:
        server: the machine at its end.
        total: the sum; None when the attempt failed.
        members: whose input is in it.
        failure: why there is none.
        blamed: who said what no honest site says, and what that was.
    """

    server: Server
    total: RingSum | None = None
    members: tuple[str, ...] = ()
    failure: str = ""
    blamed: dict[str, str] = field(default_factory=dict)


def play(
    terms: Terms,
    sign: Callable[[bytes], bytes],
    guests: Mapping[str, Guest],
    relay: Relay = _straight,
    now: float = 0.0,
    workers: int = 1,
) -> Round:
    """Play one attempt to its end.

    Args:
        terms: of the round.
        sign: the server's signature.
        guests: the sites by name; who is invited and not here stays silent.
        relay: what stands between.
        now: Unix seconds that the sites believe it is.
        workers: threads in which sites answer; the sum is the same for any number. With more than one,
            ``relay`` is called from all of them.

    Raises:
        JobError: the terms are no terms.
    """
    deliver = partial(_delivered, terms, guests, relay, now)
    game = _Game(terms, guests)
    with ThreadPoolExecutor(workers) as threads:
        each = map if workers == 1 else threads.map
        server, effects = Server.start(terms, sign)
        game.follow(server, effects)
        while game.result.server.phase not in ("done", "failed"):
            sends, game.sends = game.sends, []
            if not sends:
                game.tell(at_server.Close())
            # An input is in the sum, and its memory free, before the last site has masked its own.
            for words in each(deliver, sends):
                for word in words:
                    game.tell(word)
    return game.result


class _Game:
    """The server of a round, and what it asks for; in the order of what it is told."""

    def __init__(self, terms: Terms, guests: Mapping[str, Guest]) -> None:
        self._terms, self._guests, self._total = terms, guests, RingSum(terms)
        self.sends: list[at_server.Send] = []
        self.result = Round(Server(terms))

    def tell(self, event: at_server.Event) -> None:
        """Move the server on."""
        self.follow(*at_server.step(self.result.server, event))

    def follow(self, server: Server, effects: Iterable[at_server.Effect]) -> None:
        """Do what the server asks for."""
        result = self.result
        result.server = server
        for effect in effects:
            if isinstance(effect, at_server.Send):
                self.sends.append(effect)
            elif isinstance(effect, at_server.Fold):
                self.tell(_folded(effect, self._terms, self._guests, self._total))
            elif isinstance(effect, at_server.Unmask):
                self._total.unmask(effect.plan)
                result.total, result.members = self._total, effect.members
            elif isinstance(effect, at_server.Blame):
                result.blamed[effect.site] = effect.reason
            else:
                result.failure = effect.reason


def _delivered(
    terms: Terms, guests: Mapping[str, Guest], relay: Relay, now: float, send: at_server.Send
) -> list[FromSite]:
    """What the server gets in answer to one message."""
    guest, message = guests.get(send.to), relay(send.to, send.message)
    if guest is None or message is None:
        return []
    if isinstance(message, Invitation):
        message = at_site.Invite(message, guest.approved, guest.entropy, now)
    words = (relay(send.to, word) for word in guest.hear(message, terms))
    return [word for word in words if word is not None]


def _folded(
    fold: at_server.Fold, terms: Terms, guests: Mapping[str, Guest], total: RingSum
) -> at_server.Event:
    guest = guests[terms.cohort[fold.sender - 1].name]
    try:
        total.add(guest.chunks, fold.root)
    except UpdateRefused as error:
        return at_server.Spoiled(fold.sender, error.message)
    guest.settle(terms)
    return at_server.Folded(fold.sender)
