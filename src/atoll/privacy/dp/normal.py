"""Normal draws on whole numbers, from random bits, fast: strips of equal width, for whole arrays.

The wanted probability of the whole number j is that of a normal variable with standard deviation s within
half of j. It is split into two parts (a mixture, as in Marsaglia, MacLaren and Bray, *A Fast Procedure
for Generating Normal Random Variables*, CACM 7(1), 1964):

* Strips of 2^16 numbers lie side by side. In each, a *box* takes of every number the same share,
  as large as fits under the density and is a multiple of 2^-32. A draw of 32 bits names a box by 16 and a
  number in it by 16: both exactly, and 97 or 98 draws of 100 end here.
* What is left, the *rest*, is split in the same way once more: a second row of boxes on top of the first,
  2^-32 of the rest high. These take some 85 of 100.
* The *remainder* is sampled by rejection: between the boxes' tops and the density, and beyond the strips in
  the tail (Marsaglia 1964).

Which number the rest gives does not depend on whose draw it becomes, so it is drawn in advance, thousands
at a time.

The probability of a number is therefore that of the density in float64, at every place: a part in 2^40.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from atoll.core.errors import JobError
from atoll.core.layout import Array

__all__ = ["BLOCK", "LARGEST", "Normals", "Whole"]

BLOCK = 1 << 17
"""Draws made at a time: the buffers stay in a core's second cache."""

LARGEST = 1 << 30
"""Every draw is smaller than this."""

_PLACE = 16
"""Bits that name a number in a strip."""

_WIDTH = 1 << _PLACE
"""Whole numbers in a strip."""

_ENTRIES = 1 << (32 - _PLACE)
"""What the other bits of a word can name: boxes."""

_TRIED = 15
"""Bits that name the strip of a trial for the rest."""

_REACH = 4.0
"""Standard deviations that the strips cover, at each side."""

_SPARE = 8192
"""Most draws of the rest that are made in advance; twice as many each time, up to here."""

_NOWHERE = 2.0**60
"""A number so far away that its density is 0."""

_NORMAL = 1.0 / math.sqrt(2 * math.pi)

Whole = np.ndarray[Any, np.dtype[np.int32]]


class _Source(Protocol):
    def fill(self, into: np.ndarray[Any, Any]) -> None: ...


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes on strips, each named by some of the 65536 entries, and by those left over none.

    Args:
        counts: entries that name each strip's box, ``(2 K,)``.
        shifts: what turns a word whose upper half is an entry into a number: the box's first number less that
            upper half, ``(65536,)``, modulo 2^32. Where there is no box a word becomes :data:`LARGEST` or more.
    """

    counts: Array
    shifts: Whole

    @classmethod
    def under(cls, shares: Array, first: Array) -> Boxes:
        """As large as fits under ``shares`` of all that is to be drawn, in strips from ``first`` on."""
        counts = np.floor(shares * _ENTRIES)
        starts = np.full(_ENTRIES, LARGEST, np.int64)
        starts[: int(counts.sum())] = np.repeat(first.astype(np.int64), counts.astype(np.int64))
        shifts: Whole = (starts - (np.arange(_ENTRIES) << _PLACE)).astype(np.uint32).view(np.int32)
        return cls(counts, shifts)

    @property
    def missing(self) -> float:
        """The share that no box has."""
        return 1 - float(self.counts.sum()) / _ENTRIES


@dataclass(frozen=True, eq=False)
class Strips:
    """How one standard deviation is split.

    Shares are those of a whole strip, were it flat, over that of a strip at 0.

    Args:
        sd: s, in whole numbers.
        end: K 2^16: strips hold the numbers from -end to end - 1.
        lower: boxes of all draws.
        upper: boxes of the rest, on top of them.
        trials: the strip in which an entry tries for the remainder, 2 K for the tail, ``(32768,)``.
        first: first number of each strip, and one that no draw has for the tail, ``(2 K + 1,)``.
        boxes: share of each strip's boxes, and less that of the tail, ``(2 K + 1,)``.
        hurdle: what a share of the remainder is divided by to be a chance, ``(2 K + 1,)``.
        tries: expected number of trials for a draw of the remainder.
    """

    sd: float
    end: int
    lower: Boxes
    upper: Boxes
    trials: np.ndarray[Any, np.dtype[np.int16]]
    first: Array
    boxes: Array
    hurdle: Array
    tries: float


@lru_cache(maxsize=8)
def strips(sd: float) -> Strips:
    """The split for one standard deviation, from 2^24 up to 2^25 whole numbers.

    Raises:
        JobError: any other.
    """
    if not 2.0**24 <= sd < 2.0**25:
        raise JobError(f"normal draws with a standard deviation of {sd} whole numbers")
    whole = sd / (_WIDTH * _NORMAL)
    k = math.ceil(_REACH * sd / _WIDTH)
    first, end = np.arange(-k, k) * float(_WIDTH), k * _WIDTH
    tail = whole * sum(0.5 * math.erfc((end + d) / sd / math.sqrt(2)) for d in (-0.5, 0.5))
    near = density(np.minimum(abs(first), abs(first + _WIDTH - 1)), sd)
    far = density(np.maximum(abs(first), abs(first + _WIDTH)), sd)
    far *= 1 - 2.0**-36  # a hair below the density, so that no rounding lifts a box above it
    lower = Boxes.under(far / whole, first)
    boxes = lower.counts * (whole / _ENTRIES)
    rest = whole * lower.missing
    upper = Boxes.under(np.maximum(far - boxes, 0.0) / rest, first)
    boxes += upper.counts * (rest / _ENTRIES)
    # Where the remainder is tried for: as often as its highest share in the strip, or more.
    highest = np.append(near - boxes, tail) * (1 + 2.0**-40)
    tried = _spread(highest, 1 << _TRIED)
    trials = np.repeat(np.arange(tried.size, dtype=np.int16), tried)
    hurdle = tried * (highest / tried).max()
    tries = float(hurdle.sum() / (rest * upper.missing))
    first, boxes = np.append(first, _NOWHERE), np.append(boxes, -tail)
    return Strips(sd, end, lower, upper, trials, first, boxes, hurdle, tries)


def _spread(shares: Array, entries: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """So many entries in about the proportion of ``shares``, at least one for each."""
    low, high = entries - shares.size, entries
    while high - low > 1:
        middle = (low + high) // 2
        fits = np.ceil(shares * (middle / shares.sum())).sum() <= entries
        low, high = (middle, high) if fits else (low, middle)
    found = np.ceil(shares * (low / shares.sum())).astype(np.int64)
    found[shares.argmax()] += entries - found.sum()
    return np.asarray(found)


def density(numbers: Array, sd: float) -> Array:
    """That of a normal variable, over the one at 0."""
    x = numbers * numbers
    x *= -0.5 / (sd * sd)
    return np.asarray(np.exp(x, out=x))


class Normals:
    """Draws with one standard deviation, with their buffers and spares; for one thread and one process.

    Args:
        source: of random bits.
        sd: standard deviation in whole numbers, from 2^24 up to 2^25.
        size: most draws that are asked for at once.

    Raises:
        JobError: any other standard deviation.
    """

    def __init__(self, source: _Source, sd: float, size: int = BLOCK) -> None:
        self.source, self.strips = source, strips(sd)
        self._most = min(size, BLOCK)
        expected = self.strips.lower.missing * self._most
        self._ahead = int(expected + 3 * math.sqrt(expected)) + 1
        self._words = np.empty(self._most, np.uint32)
        self._entry = np.empty(self._most, np.int64)
        self._boxless = np.empty(self._most, np.bool_)
        self._spare = np.empty(0, np.int32)

    def fill(self, out: Whole) -> None:
        """Fill all of ``out`` with independent draws: at most :data:`BLOCK`, and ``size``."""
        at = self._boxed(self.strips.lower, out)
        if at.size > self._spare.size:
            fresh = self._rest(min(max(self._ahead, at.size), self._most))
            self._spare = np.concatenate([self._spare, fresh])
            self._ahead = min(2 * self._ahead, _SPARE)
        out[at], self._spare = self._spare[: at.size], self._spare[at.size :]

    def _boxed(self, boxes: Boxes, out: Whole) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Fill ``out`` from boxes; returns where a draw found none."""
        n = out.size
        words, entry = self._words[:n], self._entry[:n]
        self.source.fill(words)
        np.right_shift(words, _PLACE, entry)
        # With "clip" NumPy needs no buffer; no index is out of range.
        boxes.shifts.take(entry, None, out, "clip")
        np.add(out, words.view(np.int32), out)
        return np.greater_equal(out, LARGEST, self._boxless[:n]).nonzero()[0]

    def _rest(self, count: int) -> Whole:
        """So many draws of the rest."""
        out = np.empty(count, np.int32)
        at = self._boxed(self.strips.upper, out)
        have = 0
        while have < at.size:
            missing = at.size - have
            trials = int(self.strips.tries * (missing + 4 * math.sqrt(missing))) + 8
            found = self._tried(trials)[:missing]
            out[at[have : have + found.size]] = found
            have += found.size
        return out

    def _tried(self, count: int) -> Whole:
        """Those of so many trials for the remainder that succeed, in their order."""
        given, bits = self.strips, np.empty((2, count), np.uint64)
        self.source.fill(bits)
        strip = given.trials[(bits[0] >> np.uint64(64 - _TRIED)).view(np.int64)].astype(np.int64)
        numbers = given.first[strip]
        numbers += bits[0] & np.uint64(_WIDTH - 1)
        left = density(numbers, given.sd)
        left -= given.boxes[strip]
        height = bits[1] * 2.0**-64
        height *= given.hurdle[strip]
        far = np.flatnonzero(strip == given.first.size - 1)
        if far.size:
            numbers[far] = self._tail(far.size)
        kept: Whole = numbers[height < left].astype(np.int32)
        return kept

    def _tail(self, count: int) -> Array:
        """Numbers that no strip holds (Marsaglia 1964)."""
        end, sd = self.strips.end, self.strips.sd
        edge = (end - 0.5) / sd
        out, have = np.empty(count), 0
        while have < count:
            far = -np.log(self._uniform(2 * count)) / edge
            kept = far[-2 * np.log(self._uniform(2 * count)) > far * far]
            numbers = np.rint((edge + kept) * sd)
            numbers = np.copysign(numbers, self._uniform(kept.size) - 0.5)
            numbers = numbers[numbers != -end][: count - have]  # the lowest strip holds that one
            out[have : have + numbers.size] = numbers
            have += numbers.size
        return out

    def _uniform(self, count: int) -> Array:
        """In (0, 1], from 63 bits each."""
        bits = np.empty(count, np.int64)
        self.source.fill(bits)
        np.right_shift(bits.view(np.uint64), 1, out=bits.view(np.uint64))
        return np.asarray((bits + 0.5) * 2.0**-63)
