"""What a site knows in one attempt, and the checks between its steps.

All methods are pure: they return a session that knows more, or raise when the server or a peer told
something that does not fit. Numbers of the steps are those of the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from atoll.core.errors import AuthError
from atoll.privacy.secagg.canonical import digest, pack
from atoll.privacy.secagg.graph import neighbours
from atoll.privacy.secagg.keys import Pair, derive, keystream, open_sealed, seal, signed_by, usable
from atoll.privacy.secagg.ledger import Record
from atoll.privacy.secagg.masks import MaskPlan
from atoll.privacy.secagg.messages import (
    Commitment,
    Deal,
    Dealt,
    Envelope,
    Kind,
    Opening,
    Pledge,
    Release,
    Roster,
    Share,
    Survivors,
    roster_hash,
    share_hash,
)
from atoll.privacy.secagg.shamir import SHARE_BYTES, split
from atoll.privacy.secagg.terms import Terms

__all__ = ["Session", "commit_seed", "pair_key", "stream_key"]

Sign = Callable[[bytes], bytes]


def commit_seed(seed: bytes, context: bytes, index: int) -> bytes:
    """What a site says of the seed of its own mask before it is opened."""
    return digest("seed", seed, context, index)


def stream_key(seed: bytes, context: bytes, index: int) -> bytes:
    """The mask key of a site's own seed."""
    return derive(seed, "own mask", context, index)


def pair_key(pair: Pair, other: bytes, context: bytes, i: int, j: int) -> bytes:
    """The mask key of two sites, the same from both sides."""
    return derive(pair.agreed(other), "pair mask", context, min(i, j), max(i, j))


@dataclass(frozen=True)
class Session:
    """One site's knowledge in one attempt.

    Args:
        terms: of the round.
        index: this site's.
        entropy: 32 bytes, from which its secrets derive.
        own: its commitment.
        peers: everybody's commitments, by index, once known.
        held: the shares it holds of each dealer: seed, key.
        dealers: who dealt (U2).
        survivors: whose input is in the sum (U3).
        root: of its masked input.
        roster: the hash of everybody's commitments.
        near: its neighbours.
    """

    terms: Terms
    index: int
    entropy: bytes = field(repr=False)
    own: Commitment
    peers: Mapping[int, Commitment] = field(default_factory=dict, repr=False)
    held: Mapping[int, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    dealers: tuple[int, ...] = ()
    survivors: tuple[int, ...] = ()
    root: bytes = b""
    roster: bytes = b""
    near: tuple[int, ...] = ()

    @classmethod
    def fresh(cls, terms: Terms, name: str, entropy: bytes, sign: Sign) -> Session:
        """Step 0: keys for one attempt.

        Raises:
            AuthError: the entropy is not 32 bytes.
        """
        if len(entropy) != 32:
            raise AuthError(f"an attempt needs 32 fresh bytes, not {len(entropy)}")
        index, context = terms.index(name), terms.context
        secret = {label: derive(entropy, label, context) for label in ("channel", "mask", "seed")}
        own = Commitment(
            index,
            Pair(secret["channel"]).public,
            Pair(secret["mask"]).public,
            commit_seed(secret["seed"], context, index),
        )
        own = replace(own, signature=sign(own.signed(context)))
        return cls(terms, index, entropy, own)

    def _secret(self, label: str) -> bytes:
        return derive(self.entropy, label, self.terms.context)

    @property
    def circle(self) -> tuple[int, ...]:
        """The neighbours and itself: who holds its shares."""
        return tuple(sorted((*self.near, self.index)))

    def _quorum(self, what: str, members: tuple[int, ...], within: Mapping[int, object]) -> None:
        """Refuse a set of sites that no honest server names."""
        if len(set(members)) < len(members):
            raise AuthError(f"{what} hold a site twice: {members}")
        if not set(members) <= set(within):
            raise AuthError(f"{what} hold a site that was not there before: {members}")
        if self.index not in members:
            raise AuthError(f"{what} do not hold this site ({self.index})")
        if len(members) < self.terms.threshold:
            raise AuthError(f"{what} are {len(members)}, the threshold is {self.terms.threshold}")

    def _near_enough(self, what: str, members: tuple[int, ...]) -> None:
        """Refuse a set that leaves this site too few neighbours to hide among."""
        near, least = set(self.circle) & set(members), self.terms.opening(len(self.peers))
        if len(near) < least:
            raise AuthError(f"{what} hold {len(near)} around this site, {least} are needed")

    def deal(self, roster: Roster, sign: Sign) -> tuple[Session, Deal]:
        """Step 1: check everybody's keys, and share this site's secrets.

        Raises:
            AuthError: a commitment is missing, twice, unsigned, or not this site's own.
        """
        context, said = self.terms.context, roster.commitments
        within = dict(enumerate(self.terms.cohort, 1))
        self._quorum("the commitments", tuple(c.sender for c in said), within)
        if self.own not in said:
            raise AuthError("the commitments hold other keys of this site than it sent")
        for commitment in said:
            if commitment == self.own:
                continue
            member = within[commitment.sender]
            if not signed_by(member.key, commitment.signature, commitment.signed(context)):
                raise AuthError(f"the keys of {member.name} are not signed by it for this round")
        peers = {commitment.sender: commitment for commitment in said}
        roster_is = roster_hash(said, context)
        near = neighbours(sorted(peers), roster_is, self.terms.degree)[self.index]
        for index in near:  # signed, so it is theirs: nobody else is to blame
            if not (usable(peers[index].channel) and usable(peers[index].mask)):
                name = within[index].name
                raise AuthError(f"a public key of {name} is no usable X25519 key", site=name)
        session = replace(self, peers=peers, roster=roster_is, near=near)
        return session, session._dealt(sign)

    def _dealt(self, sign: Sign) -> Deal:
        context, circle = self.terms.context, self.circle
        opening = self.terms.opening(len(self.peers))
        shares = []
        for label in ("seed", "mask"):
            drawn = keystream(self._secret(f"shares of {label}"), 64 * (opening - 1))
            shares.append(split(self._secret(label), opening, circle, drawn))
        channel, envelopes = Pair(self._secret("channel")), []
        for target, seed, key in zip(circle, *shares, strict=True):
            hashes = (
                share_hash(context, self.index, target, "seed", seed),
                share_hash(context, self.index, target, "key", key),
            )
            sealed = seal(
                self._channel_key(channel, self.index, target),
                seed + key,
                self._bound(self.index, target, hashes),
            )
            envelope = Envelope(self.index, target, sealed, hashes)
            signature = sign(envelope.signed(context, self.roster))
            envelopes.append(replace(envelope, signature=signature))
        return Deal(self.index, tuple(envelopes))

    def _bound(self, source: int, target: int, hashes: tuple[bytes, bytes]) -> bytes:
        """What a sealed pair of shares belongs to."""
        return pack("shares", self.terms.context, self.roster, source, target, hashes)

    def _channel_key(self, channel: Pair, source: int, target: int) -> bytes:
        other = self.peers[target if source == self.index else source]
        agreed = channel.agreed(other.channel)
        return derive(agreed, "channel key", self.terms.context, self.roster, source, target)

    def take(self, dealt: Dealt) -> Session:
        """Step 2: open the shares of the others.

        Raises:
            AuthError: an envelope is missing, too many, for somebody else, does not open, or its shares
                are not those that its dealer signed.
        """
        self._quorum("the dealers", dealt.members, self.peers)
        self._near_enough("the dealers", dealt.members)
        wanted = sorted(set(self.circle) & set(dealt.members))
        if sorted(envelope.source for envelope in dealt.envelopes) != wanted:
            raise AuthError(f"envelopes of {wanted} were to come")
        channel = Pair(self._secret("channel"))
        held = {e.source: self._opened(e, channel) for e in dealt.envelopes}
        return replace(self, held=held, dealers=tuple(sorted(dealt.members)))

    def _opened(self, envelope: Envelope, channel: Pair) -> tuple[bytes, bytes]:
        context, source = self.terms.context, envelope.source
        member = self.terms.cohort[source - 1]
        if envelope.target != self.index:
            raise AuthError(f"the shares of {member.name} are for another site")
        key = self._channel_key(channel, source, self.index)
        try:
            bound = self._bound(source, self.index, envelope.hashes)
            plain = open_sealed(key, envelope.sealed, bound)
        except AuthError as error:
            # Only its dealer could seal it, so an honest envelope needs no look at the signature. This
            # one does: if the dealer signed it, it is to blame, else what stands between.
            signed = envelope.signed(context, self.roster)
            theirs = signed_by(member.key, envelope.signature, signed)
            raise AuthError(error.message, site=member.name if theirs else "") from error
        seed, mask = plain[:SHARE_BYTES], plain[SHARE_BYTES:]
        hashes = (
            share_hash(context, source, self.index, "seed", seed),
            share_hash(context, source, self.index, "key", mask),
        )
        if len(mask) != SHARE_BYTES or hashes != envelope.hashes:
            raise AuthError(f"{member.name} dealt other shares than it signed", site=member.name)
        return seed, mask

    def plan(self) -> MaskPlan:
        """Step 2: the masks of the input, for everybody who dealt."""
        context, i, pair = self.terms.context, self.index, Pair(self._secret("mask"))
        keys = {
            j: pair_key(pair, self.peers[j].mask, context, i, j)
            for j in self.near
            if j in self.dealers
        }
        own = stream_key(self._secret("seed"), context, i)
        return MaskPlan(
            (own, *(key for j, key in keys.items() if j > i)),
            tuple(key for j, key in keys.items() if j < i),
        )

    def agree(self, survivors: Survivors) -> Session:
        """Step 3: whether this may be the set of sites in the sum.

        Raises:
            AuthError: it may not.
        """
        self._quorum("the survivors", survivors.members, dict.fromkeys(self.dealers))
        self._near_enough("the survivors", survivors.members)
        return replace(self, survivors=tuple(sorted(survivors.members)))

    def pledge(self) -> bytes:
        """Step 3: what is signed: who dealt and whose input is in the sum, under these keys."""
        return Pledge.signed(self.terms.context, self.roster, self.dealers, self.survivors)

    def record(self, kind: str) -> Record:
        """What the ledger keeps of the set of sites in the sum."""
        names = tuple(self.terms.cohort[i - 1].name for i in self.survivors)
        value = digest("survivors", self.pledge())
        return Record(
            "release" if kind == "release" else "pledge", self.terms.occasion, value, names
        )

    def check(self, opening: Opening) -> None:
        """Step 4: whether enough sites pledged to the very set this one pledged to.

        Raises:
            AuthError: they did not.
        """
        if tuple(sorted(opening.members)) != self.survivors:
            raise AuthError(f"asked to open {opening.members}, pledged was {self.survivors}")
        signed, valid = self.pledge(), set[int]()
        for pledge in opening.pledges:
            if pledge.sender not in self.survivors or pledge.sender in valid:
                raise AuthError(f"a pledge of {pledge.sender} does not count here")
            member = self.terms.cohort[pledge.sender - 1]
            if not signed_by(member.key, pledge.signature, signed):
                raise AuthError(f"{member.name} did not pledge to this set of sites")
            valid.add(pledge.sender)
        if len(valid) < self.terms.threshold:
            raise AuthError(f"{len(valid)} pledges, the threshold is {self.terms.threshold}")

    def release(self, sign: Sign) -> Release:
        """Step 4: for each dealer one share: of its seed if it is in the sum, else of its key."""
        shares = []
        for dealer, (seed, key) in sorted(self.held.items()):
            kind: Kind = "seed" if dealer in self.survivors else "key"
            shares.append(Share(dealer, kind, seed if kind == "seed" else key))
        release = Release(self.index, tuple(shares))
        signature = sign(release.signed(self.terms.context, self.roster))
        return replace(release, signature=signature)
