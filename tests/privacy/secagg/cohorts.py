"""Cohorts for tests of masked rounds: keys from names, inputs from a seed, so every failure repeats."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from atoll.privacy.secagg.inprocess import Guest
from atoll.privacy.secagg.ledger import Book
from atoll.privacy.secagg.masks import MaskPlan, RingSum, masked_chunks, root_of
from atoll.privacy.secagg.messages import Commitment, Deal, Pledge, Release, Vector
from atoll.privacy.secagg.policy import Approved, Policy
from atoll.privacy.secagg.site import Site
from atoll.privacy.secagg.terms import Lane, Member, Occasion, Terms, usual_threshold

STEPS = (Commitment, Deal, Vector, Pledge, Release)
LANES = (Lane("w", 7), Lane("weight", 1), Lane("count", 2, 1000.0, 64, 1.0, "refuse"))


class Key:
    """A signing key made of a name."""

    def __init__(self, name: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
        self.public_bytes = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


SERVER = Key("server")


def secret(*parts: object) -> bytes:
    """32 bytes that stand for the operating system's."""
    return hashlib.sha256(repr(parts).encode()).digest()


@dataclass
class Cohort:
    """Sites that know each other, and their ledgers over many rounds."""

    size: int = 5
    lanes: tuple[Lane, ...] = LANES
    degree: int = 0
    smallest: int = 5
    apart: int = 3
    books: dict[str, Book] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = {f"site{i:03d}": Key(f"site{i}") for i in range(1, self.size + 1)}
        pinned = {name: key.public_bytes for name, key in self.keys.items()}
        self.policy = Policy(
            "lagoon",
            SERVER.public_bytes,
            pinned,
            smallest=self.smallest,
            apart=self.apart,
            neighbours=2,
        )
        self.books = {name: Book() for name in self.keys}

    def terms(self, **changes: Any) -> Terms:
        members = tuple(Member(name, key.public_bytes) for name, key in self.keys.items())
        usual = Terms(
            Occasion("lagoon", "job", 1, 0, "model 1"),
            members,
            usual_threshold(self.size),
            self.lanes,
            expiry=100.0,
            degree=self.degree,
        )
        occasion = replace(usual.occasion, **changes.pop("occasion", {}))
        return replace(usual, occasion=occasion, **changes)

    def values(self, name: str, seed: int = 0) -> dict[str, Any]:
        rng = np.random.default_rng([seed, int(name[4:])])
        made = {}
        for lane in self.lanes:
            if lane.step:
                made[lane.name] = rng.integers(0, 1000, lane.length)
            else:
                made[lane.name] = rng.uniform(-1.2, 1.2, lane.length).astype(np.float32)
        return made

    def guests(self, terms: Terms, seed: int = 0, **approved: Any) -> dict[str, Guest]:
        at = terms.occasion
        usual = Approved(at.job, at.model, self.lanes)
        return {
            name: Guest(
                Site(name, key, self.policy),
                replace(usual, **approved),
                self.values(name, seed),
                secret("entropy", name, seed, at),
                secret("rounding", name, seed, at),
                self.books[name],
            )
            for name, key in self.keys.items()
        }


def plain_sum(terms: Terms, guests: dict[str, Guest], members: Any) -> dict[str, list[int]]:
    """The sum of the rounded inputs, without any mask."""
    total = RingSum(terms)
    for name in members:
        guest = guests[name]
        clear = list(masked_chunks(terms, MaskPlan((), ()), guest.values, guest.rounding))
        total.add(clear, root_of(clear))
    return {name: words.tolist() for name, words in total.integers().items()}


def integers(total: RingSum) -> dict[str, list[int]]:
    return {name: words.tolist() for name, words in total.integers().items()}


def silent(from_step: dict[str, int]) -> Any:
    """A relay in which a site says nothing from a step on (0: no keys … 4: no release)."""

    def relay(name: str, message: Any) -> Any:
        kind = STEPS.index(type(message)) if type(message) in STEPS else -1
        return None if kind >= from_step.get(name, 9) else message

    return relay


def released(guests: dict[str, Guest]) -> list[Release]:
    """All releases that sites sent."""
    return [word for guest in guests.values() for word in guest.said if isinstance(word, Release)]
