"""Integers under masks, and their sum without them; chunk by chunk, whatever the model's size.

A mask is the keystream of AES-256-CTR under a key that two sites share (one adds it, the other
subtracts it) or that a site holds alone (it adds it), read as integers of the ring. A chunk of input is
rounded, then all keystreams are added to it while it is in the cache; nothing of the size of the model
is made on the way, and what is made is made in memory that stays (:class:`Rooms`): on many machines
new pages cost more than the masks. A key serves one input only, which is why the counter may start at 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array
from atoll.privacy.secagg.fixed import Rounding, signed_values
from atoll.privacy.secagg.terms import Lane, Terms

__all__ = [
    "CHUNK",
    "MaskPlan",
    "Piece",
    "Place",
    "RingSum",
    "Rooms",
    "RootHash",
    "chunks_of",
    "masked_chunks",
    "masked_integers",
    "pieces",
    "place_in",
    "root_of",
    "workbench",
]

CHUNK = 65_536
"""Values in one chunk: with its float64 copy and one keystream it stays in a core's cache."""

_ZEROS = bytes(8 * CHUNK)
_ROUNDING_BYTES = 4
_MOST_ROOMS = 16

Words = np.ndarray[Any, Any]
_Chunk = TypeVar("_Chunk", bytes, memoryview, bytes | memoryview)


@dataclass(frozen=True)
class MaskPlan:
    """Which keystreams are added to an input, and which subtracted.

    Args:
        added: keys, 32 bytes each.
        subtracted: likewise.
    """

    added: tuple[bytes, ...] = field(repr=False)
    subtracted: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True)
class Piece:
    """One chunk's place: values ``start`` to ``stop`` of ``lane``."""

    lane: Lane
    start: int
    stop: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the ring's words, little-endian as they travel."""
        return np.dtype("<u4" if self.lane.bits == 32 else "<u8")

    @property
    def size(self) -> int:
        """Bytes of the chunk."""
        return (self.stop - self.start) * self.lane.bits // 8


def pieces(terms: Terms) -> Iterator[Piece]:
    """The chunks of a masked input, in order."""
    for lane in terms.lanes:
        for start in range(0, lane.length, CHUNK):
            yield Piece(lane, start, min(start + CHUNK, lane.length))


def chunks_of(terms: Terms, words: Mapping[str, Array]) -> list[memoryview]:
    """The chunks of a masked input that came as one array of words per lane; views, no copies.

    Raises:
        UpdateRefused: an array is not as long, or of another kind, than its lane.
    """
    _check_lanes(terms, words)
    found = []
    for piece in pieces(terms):
        part = words[piece.lane.name][piece.start : piece.stop]
        if part.dtype != piece.dtype:
            raise UpdateRefused(f"lane {piece.lane.name!r} is {part.dtype}, not {piece.dtype}")
        found.append(part.view(np.uint8).data)
    return found


class RootHash:
    """One hash for all chunks, SHA-256 over the SHA-256 of each; they are hashed as they pass."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256(b"atoll secagg root 1")

    def through(self, chunks: Iterable[_Chunk]) -> Iterator[_Chunk]:
        """The same chunks."""
        for chunk in chunks:
            self._whole.update(hashlib.sha256(chunk).digest())
            yield chunk

    def digest(self) -> bytes:
        """The hash of what has passed."""
        return self._whole.digest()


def root_of(chunks: Iterable[bytes | memoryview]) -> bytes:
    """The :class:`RootHash` of chunks.

    >>> root_of([b"ab"]) == root_of([b"a", b"b"])
    False
    """
    root = RootHash()
    for _ in root.through(chunks):
        pass
    return root.digest()


class _Streams:
    """The keystreams of a plan, read side by side through one buffer."""

    def __init__(self, plan: MaskPlan) -> None:
        self._added = [_encryptor(key) for key in plan.added]
        self._subtracted = [_encryptor(key) for key in plan.subtracted]
        self._buffer = bytearray(8 * CHUNK)

    def add_to(self, words: Words, *, negative: bool = False) -> None:
        """Add the next words of all streams to ``words`` in place (or take them away)."""
        zeros = memoryview(_ZEROS)[: words.nbytes]
        into = memoryview(self._buffer)[: words.nbytes]
        mask = np.frombuffer(into, words.dtype)
        for streams, add in ((self._added, not negative), (self._subtracted, negative)):
            for stream in streams:
                stream.update_into(zeros, into)
                (np.add if add else np.subtract)(words, mask, out=words)


def _encryptor(key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()


Place = Callable[[Piece], Words]
"""Where the words of a piece are made."""


def _new(piece: Piece) -> Words:
    return np.empty(piece.stop - piece.start, piece.dtype)


def workbench() -> Place:
    """One place for all pieces: a chunk lasts until the next is asked for."""
    raw = np.empty(8 * CHUNK, np.uint8)
    return lambda piece: raw[: piece.size].view(piece.dtype)


class Rooms:
    """Memory for whole inputs, used again when an input is in the sum. Any thread may use it."""

    def __init__(self) -> None:
        self._free: list[tuple[tuple[Lane, ...], Mapping[str, Words]]] = []

    def take(self, terms: Terms) -> Mapping[str, Words]:
        """Words for each lane; what they hold means nothing."""
        with suppress(IndexError):  # none is left, or another thread has just taken the last one
            while True:
                lanes, room = self._free.pop()
                if lanes == terms.lanes:
                    return room
        return {lane.name: np.empty(lane.length, f"<u{lane.bits // 8}") for lane in terms.lanes}

    def give(self, terms: Terms, room: Mapping[str, Words]) -> None:
        """Take back what :meth:`take` gave; nobody may look at it any more."""
        if len(self._free) < _MOST_ROOMS:
            self._free.append((terms.lanes, room))


def place_in(room: Mapping[str, Words]) -> Place:
    """Each piece at its own place in words for whole lanes."""
    return lambda piece: room[piece.lane.name][piece.start : piece.stop]


def masked_chunks(
    terms: Terms,
    plan: MaskPlan,
    values: Mapping[str, Array],
    rounding: bytes | None,
    place: Place = _new,
) -> Iterator[memoryview]:
    """One site's input, rounded and masked, chunk by chunk.

    Args:
        terms: of the round.
        plan: the masks; with an empty one this is the rounded input in the clear.
        values: one vector per lane.
        rounding: 32 bytes, from which the draws for rounding come; None rounds to the nearest.
        place: where each chunk is made; the default is memory of its own.

    Raises:
        UpdateRefused: a lane is missing, unknown, of another length, or holds what it may not.
    """
    _check_lanes(terms, values)
    streams, grid = _Streams(plan), Rounding()
    draws = None if rounding is None else _encryptor(rounding)
    buffer = bytearray(_ROUNDING_BYTES * CHUNK)
    for piece in pieces(terms):
        part = values[piece.lane.name][piece.start : piece.stop]
        if part.dtype.kind not in "fiu":
            raise UpdateRefused(f"lane {piece.lane.name!r} is {part.dtype}, no real numbers")
        drawn = None
        if draws is not None and piece.lane.step is None:
            into = memoryview(buffer)[: _ROUNDING_BYTES * part.size]
            draws.update_into(memoryview(_ZEROS)[: len(into)], into)
            drawn = np.frombuffer(into, "<u4")
        words = place(piece)
        grid.put(piece.lane, terms.sites, part, drawn, _signed(words))
        streams.add_to(words)
        yield words.data.cast("B")


def masked_integers(
    terms: Terms, plan: MaskPlan, integers: Mapping[str, Array], place: Place = _new
) -> Iterator[memoryview]:
    """The same for an input that has been rounded before, where the values were.

    Args:
        terms: of the round.
        plan: the masks.
        integers: one vector of signed integers per lane.
        place: see :func:`masked_chunks`.

    Raises:
        UpdateRefused: a lane is missing, unknown, of another length, holds no integers, or one that is
            beyond what a site may send.
    """
    _check_lanes(terms, integers)
    streams = _Streams(plan)
    for piece in pieces(terms):
        lane, part = piece.lane, integers[piece.lane.name][piece.start : piece.stop]
        if part.dtype.kind != "i":
            raise UpdateRefused(f"lane {lane.name!r} is {part.dtype}, no signed integers")
        most = lane.levels(terms.sites)
        if int(part.max()) > most or int(part.min()) < -most:
            raise UpdateRefused(f"lane {lane.name!r} holds more than the declared {most}")
        words = place(piece)
        np.copyto(_signed(words), part, casting="same_kind")
        streams.add_to(words)
        yield words.data.cast("B")


def _signed(words: Words) -> Words:
    return words.view(f"<i{words.dtype.itemsize}")


def _check_lanes(terms: Terms, values: Mapping[str, Array]) -> None:
    wanted = {lane.name: (lane.length,) for lane in terms.lanes}
    given = {name: np.shape(vector) for name, vector in values.items()}
    if given != wanted:
        raise UpdateRefused(f"the input has lanes {given}, declared were {wanted}")


class RingSum:
    """The sum of masked inputs, one ring word per value whatever the number of sites.

    Args:
        terms: of the round.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.count = 0
        self._lanes = {
            lane.name: np.zeros(lane.length, f"<u{lane.bits // 8}") for lane in terms.lanes
        }
        place = place_in(self._lanes)
        self._words = [place(piece) for piece in pieces(terms)]

    def add(self, chunks: Sequence[bytes | memoryview], root: bytes) -> None:
        """Add one site's input: all of it, or nothing.

        Raises:
            UpdateRefused: the chunks are not as many or as long as declared, or not those whose
                root was signed.
        """
        sizes, wanted = [len(chunk) for chunk in chunks], [p.size for p in pieces(self.terms)]
        if sizes != wanted:
            raise UpdateRefused(f"{sum(sizes)} bytes in {len(sizes)} chunks do not fit the terms")
        if root_of(chunks) != root:
            raise UpdateRefused("the chunks are not those that were signed")
        for words, chunk in zip(self._words, chunks, strict=True):
            words += np.frombuffer(chunk, words.dtype)
        self.count += 1

    def unmask(self, plan: MaskPlan) -> None:
        """Take away the masks that are left in the sum; ``plan`` says how sites put them in."""
        streams = _Streams(plan)
        for words in self._words:
            streams.add_to(words, negative=True)

    def integers(self) -> dict[str, Array]:
        """The sum by lane, as signed integers of its ring; no copy."""
        return {name: _signed(words) for name, words in self._lanes.items()}

    def totals(self) -> dict[str, Array]:
        """The sum by lane, as float64 values.

        Raises:
            UpdateRefused: a sum is beyond what the sites in it can reach.
        """
        integers, lanes = self.integers(), self.terms.lanes
        return {
            lane.name: signed_values(lane, self.terms.sites, self.count, integers[lane.name])
            for lane in lanes
        }
