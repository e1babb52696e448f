"""One secret key for all sites of a run, through a server that must not have it.

Three steps, once a run. Each site says a fresh X25519 key; one site, the *dealer*, makes the key of CKKS and
seals it, once for all under a key for its content and that once for each site; every site opens its own.
Signatures with the sites' pinned identities stand on the first two, over the terms of the run, so the server
can put neither itself nor anybody else in a site's place, and nothing of one run means anything in another.

All of it follows from 32 secret bytes of the site, from the key, and from the terms: a site that was stopped
and asked again says the same once more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from atoll.core.errors import AuthError
from atoll.privacy.secagg.canonical import digest, pack
from atoll.privacy.secagg.keys import Pair, derive, open_sealed, seal, signed_by, usable
from atoll.privacy.secagg.terms import Terms

__all__ = ["WRAP", "Greeting", "Parcel", "greeting", "key_name", "parcel", "unpacked_key"]

WRAP = 48
"""Bytes of one site's wrap: a key of 32, and the seal's own 16."""

Sign = Callable[[bytes], bytes]
"""Makes the site's signature of bytes."""


@dataclass(frozen=True)
class Greeting:
    """A site's fresh public key (X25519, 32 bytes), and its signature on that."""

    channel: bytes
    signature: bytes

    @staticmethod
    def signed(context: bytes, index: int, channel: bytes) -> bytes:
        """What the signature is on."""
        return pack("he greeting", context, index, channel)


@dataclass(frozen=True)
class Parcel:
    """The secret key on its way to all sites.

    Args:
        sealed: the key, under a key for this content.
        wraps: that one, sealed for each site, in the order of the terms.
        signature: of the dealer.
    """

    sealed: bytes
    wraps: tuple[bytes, ...]
    signature: bytes

    @staticmethod
    def signed(roster: bytes, dealer: int, sealed: bytes, wraps: tuple[bytes, ...]) -> bytes:
        """What the signature is on."""
        return pack("he parcel", roster, dealer, hashlib.sha256(sealed).digest(), wraps)


def key_name(raw: bytes) -> bytes:
    """The name of a secret key, which tells nothing of it: 32 bytes."""
    return derive(raw, "atoll he name")


def greeting(terms: Terms, index: int, seed: bytes, sign: Sign) -> Greeting:
    """What the site says first.

    Args:
        terms: of the run.
        index: of the site in them.
        seed: its 32 secret bytes for this run.
        sign: its identity.
    """
    channel = _pair(terms, seed).public
    return Greeting(channel, sign(Greeting.signed(terms.context, index, channel)))


def parcel(
    terms: Terms, index: int, seed: bytes, greetings: Sequence[Greeting], raw: bytes, sign: Sign
) -> Parcel:
    """What the dealer sends, from what everybody has said and the key ``raw``.

    Raises:
        AuthError: a greeting is not its site's.
    """
    roster, pair = _roster(terms, greetings), _pair(terms, seed)
    content = derive(seed, "he content", roster)
    sealed = seal(content, raw, pack("he key", roster, index))
    wraps = tuple(
        seal(_wrapping(pair, said.channel, roster, index, to), content, _bound(roster, index, to))
        for to, said in enumerate(greetings, 1)
    )
    return Parcel(sealed, wraps, sign(Parcel.signed(roster, index, sealed, wraps)))


def unpacked_key(
    terms: Terms, index: int, seed: bytes, greetings: Sequence[Greeting], dealt: Parcel, dealer: int
) -> bytes:
    """The secret key out of what the dealer has sent.

    Raises:
        AuthError: a greeting or the parcel is not what its site has signed, or does not open.
    """
    roster = _roster(terms, greetings)
    member = terms.member(dealer)
    signed = Parcel.signed(roster, dealer, dealt.sealed, dealt.wraps)
    if member is None or not signed_by(member.key, dealt.signature, signed):
        raise AuthError("the key of this run does not come from the site that deals it")
    if len(dealt.wraps) != terms.sites:
        raise AuthError(f"a key for {len(dealt.wraps)} sites, {terms.sites} take part")
    opens = _wrapping(_pair(terms, seed), greetings[dealer - 1].channel, roster, dealer, index)
    try:
        content = open_sealed(opens, dealt.wraps[index - 1], _bound(roster, dealer, index))
        return open_sealed(content, dealt.sealed, pack("he key", roster, dealer))
    except AuthError as error:  # it has signed all of it, over the keys of all
        raise AuthError(
            f"the key that {member.name} has dealt does not open", site=member.name
        ) from error


def _pair(terms: Terms, seed: bytes) -> Pair:
    return Pair(derive(seed, "he channel", terms.context))


def _roster(terms: Terms, greetings: Sequence[Greeting]) -> bytes:
    """The hash of everybody's keys, all of them signed."""
    if len(greetings) != terms.sites:
        raise AuthError(f"{len(greetings)} sites have said a key, {terms.sites} take part")
    for index, (member, said) in enumerate(zip(terms.cohort, greetings, strict=True), 1):
        signed = Greeting.signed(terms.context, index, said.channel)
        if not signed_by(member.key, said.signature, signed):
            raise AuthError(f"the key that {member.name} is to have said is not signed by it")
        if not usable(said.channel):
            raise AuthError(f"the key that {member.name} has said is none", site=member.name)
    return digest("he roster", terms.context, tuple(said.channel for said in greetings))


def _wrapping(pair: Pair, channel: bytes, roster: bytes, dealer: int, to: int) -> bytes:
    return derive(pair.agreed(channel), "he wrap", roster, dealer, to)


def _bound(roster: bytes, dealer: int, to: int) -> bytes:
    return pack("he wrap", roster, dealer, to)
