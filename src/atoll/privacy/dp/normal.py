"""Normal draws on whole numbers, from random bits, fast: strips of equal width, for whole arrays.

The wanted probability of the whole number j is that of a normal variable with standard deviation s within
half of j. It is split into two parts (a mixture, as in Marsaglia, MacLaren and Bray, *A Fast Procedure
for Generating Normal Random Variables*, CACM 7(1), 1964):

* Strips of 2^16 numbers lie side by side. In each stand *boxes* of one height, as many as fit under the
  density, 65536 in all. A draw of 32 bits names a box by 16 and a number in it by 16, both exactly: some 99
  draws of 100 end here. The height is as large as it can be for so many to fit.
* What is left, the *rest*, is split in the same way once more: a second row of 65536 boxes on top of the first,
  on strips of 2^13. They take some nine tenths of it.
* The *remainder* is sampled by rejection: between the boxes' tops and the density, and beyond the strips in
  the tail (Marsaglia 1964).

Which draws come from the rest is settled by the gaps between them, which are geometric, so nobody has to
look for them among the others. Neither they nor the numbers that the rest gives depend on anything else, so
both are drawn in advance, thousands at a time.

The probability of a number is therefore that of the density in float64, at every place: a part in 2^40.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from atoll.core.errors import JobError
from atoll.core.layout import Array

__all__ = ["BLOCK", "FINE", "LARGEST", "Normals", "Source", "Whole"]

BLOCK = 1 << 16
"""Draws made at a time: the buffers stay in a core's second cache."""

FINE = 23
"""Binary digits of a standard deviation: fewer, and strips are too wide for it; more, and boxes too high."""

LARGEST = 1 << 30
"""Every draw is smaller than this."""

_PLACE = 16
"""Bits that name a number in a strip."""

_FINE_PLACE = 13
"""The same for the finer strips of the rest."""

_ENTRIES = 1 << (32 - _PLACE)
"""Boxes: what the other bits of a word can name."""

_TRIED = 15
"""Bits that name the strip of a trial for the rest."""

_REACH = 4.0
"""Standard deviations that the strips cover, at each side."""

_SPARE = 1 << 14
"""Most draws that are made in advance for a row of boxes; twice as many each time, up to here."""

_TRIALS = 8192
"""Most trials for the remainder at a time: more would need memory from the operating system each time."""

_NOWHERE = 2.0**60
"""A number so far away that its density is 0."""

_NORMAL = 1.0 / math.sqrt(2 * math.pi)

Whole = np.ndarray[Any, np.dtype[np.int32]]


class Source(Protocol):
    """Where random bytes come from."""

    def fill(self, into: np.ndarray[Any, Any]) -> None:
        """Overwrite all bytes of ``into`` with uniformly random ones."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """A row of boxes on strips: as many as there are entries, of one height.

    Args:
        place: bits that name a number in a strip, at most 16.
        counts: boxes on each strip; together 65536.
        shifts: what turns a word whose bits above ``place`` are an entry into a number: the box's first
            number less those bits, ``(65536,)``, modulo 2^32.
        share: of what is drawn that the boxes have, in (0, 1).
    """

    place: int
    counts: Array
    shifts: Whole
    share: float

    @classmethod
    def under(cls, shares: Array, first: Array, place: int) -> Boxes:
        """As high as fits under ``shares`` of all that is to be drawn, in strips from ``first`` on."""
        low, high = 0.0, float(shares.sum())
        while low < (middle := (low + high) / 2) < high:
            fits = np.floor(shares * (_ENTRIES / middle)).sum() >= _ENTRIES
            low, high = (middle, high) if fits else (low, middle)
        counts = np.floor(shares * (_ENTRIES / low))
        counts[counts.argmax()] -= (
            counts.sum() - _ENTRIES
        )  # like strips get room for one more together
        starts = np.repeat(first.astype(np.int64), counts.astype(np.int64))
        shifts: Whole = (starts - (np.arange(_ENTRIES) << place)).astype(np.uint32).view(np.int32)
        return cls(place, counts, shifts, low)

    @property
    def missing(self) -> float:
        """The share that no box has."""
        return 1 - self.share

    @property
    def each(self) -> float:
        """The share of one box."""
        return self.share / _ENTRIES


@dataclass(frozen=True, eq=False)
class Strips:
    """One split of the normal distribution, for strips -K to K - 1, and finer ones in them.

    Args:
        sd: standard deviation in whole numbers.
        end: numbers from -end to end - 1 are in strips.
        lower: boxes of all draws, on strips.
        upper: boxes of the rest, on fine strips, on top of them.
        trials: the fine strip in which an entry tries for the remainder, the last for the tail, ``(32768,)``.
        first: first number of each fine strip, and one that no draw has for the tail.
        boxes: density of each fine strip's boxes, and less that of the tail.
        hurdle: what a density of the remainder is divided by to be a chance, for each and the tail.
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
    """The split for one standard deviation, from 2^23 up to 2^24 whole numbers.

    Raises:
        JobError: any other.
    """
    if not 2.0**FINE <= sd < 2.0 ** (FINE + 1):
        raise JobError(f"normal draws with a standard deviation of {sd} whole numbers")
    wide = 1 << _PLACE
    whole = sd / _NORMAL  # the sum of the density over all numbers
    k = math.ceil(_REACH * sd / wide)
    end = k * wide
    first = np.arange(-k, k) * float(wide)
    lower = Boxes.under(_lowest(first, wide, sd) * (wide / whole), first, _PLACE)
    fine = 1 << _FINE_PLACE
    boxes = np.repeat(lower.counts * (whole / wide * lower.each), wide // fine)
    first, rest = np.arange(-end, end, fine).astype(np.float64), whole * lower.missing
    room = np.maximum(_lowest(first, fine, sd) - boxes, 0.0)
    upper = Boxes.under(room * (fine / rest), first, _FINE_PLACE)
    boxes += upper.counts * (rest / fine * upper.each)
    # Where the remainder is tried for: as often as its highest density in the strip, or more.
    tail = whole / fine * sum(0.5 * math.erfc((end + d) / sd / math.sqrt(2)) for d in (-0.5, 0.5))
    near = density(np.minimum(abs(first), abs(first + fine - 1)), sd)
    highest = np.append(near - boxes, tail) * (1 + 2.0**-40)
    tried = _spread(highest, 1 << _TRIED)
    trials = np.repeat(np.arange(tried.size, dtype=np.int16), tried)
    hurdle = tried * (highest / tried).max()
    tries = float(hurdle.sum() * fine / (rest * upper.missing))
    first, boxes = np.append(first, _NOWHERE), np.append(boxes, -tail)
    return Strips(sd, end, lower, upper, trials, first, boxes, hurdle, tries)


def _lowest(first: Array, width: int, sd: float) -> Array:
    """A hair below the density in each strip, so that no rounding lifts a box above it."""
    return density(np.maximum(abs(first), abs(first + width)), sd) * (1 - 2.0**-36)


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


class Row:
    """Draws from a row of boxes, and from elsewhere for what the boxes do not have.

    Which draws those are is settled in advance, and so is what they become.

    Args:
        source: of random bits.
        boxes: the row.
        rest: makes so many draws of what the boxes do not have.
        most: draws that are asked for at once.
    """

    def __init__(
        self, source: Source, boxes: Boxes, rest: Callable[[int], Whole], most: int
    ) -> None:
        self.source, self.boxes, self._rest = source, boxes, rest
        self._words, self._drawn = np.empty(most, np.uint32), np.empty(most, np.int32)
        self._entry = np.empty(most, np.int64)
        self._made = self._settled = self._ahead = 0
        self._places, self._others = np.empty(0, np.int64), np.empty(0, np.int32)

    def draw(self, count: int) -> Whole:
        """So many draws, which last until the next are asked for."""
        words, entry, drawn = self._words[:count], self._entry[:count], self._drawn[:count]
        self.source.fill(words)
        np.right_shift(words, _PLACE, entry)
        # With "clip" NumPy needs no buffer; no index is out of range.
        self.boxes.shifts.take(entry, None, drawn, "clip")
        if self.boxes.place < _PLACE:
            np.right_shift(words, _PLACE - self.boxes.place, words)
        np.add(drawn, words.view(np.int32), drawn)
        end = self._made + count
        while self._settled < end:
            self._settle(end - self._settled)
        upto = self._places.searchsorted(end)
        drawn[self._places[:upto] - self._made] = self._others[:upto]
        self._places, self._others = self._places[upto:], self._others[upto:]
        self._made = end
        return drawn

    def _settle(self, count: int) -> None:
        """Which of ``count`` draws or more are none of the boxes', by the gaps between them."""
        expected = self.boxes.missing * count
        ahead = min(max(int(expected + 3 * math.sqrt(expected)) + 1, self._ahead), _SPARE)
        gaps = np.log(uniform(self.source, ahead))
        gaps *= 1 / math.log1p(-self.boxes.missing)
        places = gaps.astype(np.int64)
        places += 1
        places = places.cumsum() + (self._settled - 1)
        self._places = np.concatenate([self._places, places])
        self._others = np.concatenate([self._others, self._rest(ahead)])
        self._settled, self._ahead = int(places[-1]) + 1, 2 * ahead


class Normals:
    """Draws with one standard deviation, with their buffers and spares; for one thread and one process.

    Args:
        source: of random bits.
        sd: standard deviation in whole numbers, from 2^23 up to 2^24.
        size: most draws that are asked for at once.

    Raises:
        JobError: any other standard deviation.
    """

    def __init__(self, source: Source, sd: float, size: int = BLOCK) -> None:
        self.source, self.strips = source, strips(sd)
        self._upper = Row(source, self.strips.upper, self.remainder, _SPARE)
        self._lower = Row(source, self.strips.lower, self.rest, min(size, BLOCK))

    def blocks(self, size: int) -> Iterator[tuple[slice, Whole]]:
        """Independent draws for ``size`` places: some of the places, and draws that last until the next."""
        for start in range(0, size, BLOCK):
            end = min(start + BLOCK, size)
            yield slice(start, end), self._lower.draw(end - start)

    def rest(self, count: int) -> Whole:
        """So many draws of the rest, which last until the next."""
        return self._upper.draw(count)

    def remainder(self, count: int) -> Whole:
        """So many draws of the remainder."""
        out, have = np.empty(count, np.int32), 0
        while have < count:
            missing = count - have
            trials = int(self.strips.tries * (missing + 4 * math.sqrt(missing))) + 8
            found = self.tried(min(trials, _TRIALS))[:missing]
            out[have : have + found.size] = found
            have += found.size
        return out

    def tried(self, count: int) -> Whole:
        """Those of so many trials for the remainder that succeed, in their order."""
        given, bits = self.strips, np.empty((2, count), np.uint64)
        self.source.fill(bits)
        strip = given.trials[(bits[0] >> np.uint64(64 - _TRIED)).view(np.int64)].astype(np.int64)
        numbers = given.first[strip]
        numbers += bits[0] & np.uint64((1 << _FINE_PLACE) - 1)
        left = density(numbers, given.sd)
        left -= given.boxes[strip]
        height = bits[1] * 2.0**-64
        height *= given.hurdle[strip]
        far = np.flatnonzero(strip == given.first.size - 1)
        if far.size:
            numbers[far] = self.tail(far.size)
        kept: Whole = numbers[height < left].astype(np.int32)
        return kept

    def tail(self, count: int) -> Array:
        """Numbers that no strip holds (Marsaglia 1964)."""
        end, sd = self.strips.end, self.strips.sd
        edge = (end - 0.5) / sd
        out, have = np.empty(count), 0
        while have < count:
            far = -np.log(uniform(self.source, 2 * count)) / edge
            kept = far[-2 * np.log(uniform(self.source, 2 * count)) > far * far]
            numbers = np.rint((edge + kept) * sd)
            numbers = np.copysign(numbers, uniform(self.source, kept.size) - 0.5)
            numbers = numbers[numbers != -end][: count - have]  # the lowest strip holds that one
            out[have : have + numbers.size] = numbers
            have += numbers.size
        return out


def uniform(source: Source, count: int) -> Array:
    """In (0, 1], from 63 bits each."""
    bits = np.empty(count, np.int64)
    source.fill(bits)
    np.right_shift(bits.view(np.uint64), 1, out=bits.view(np.uint64))
    return np.asarray((bits + 0.5) * 2.0**-63)
