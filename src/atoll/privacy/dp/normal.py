"""Normal draws on whole numbers, from random bits, fast: strips of equal width, for whole arrays.

The wanted probability of the whole number j is that of a normal variable with standard deviation s within
half of j. It is split into two parts (a mixture, as in Marsaglia, MacLaren and Bray, *A Fast Procedure
for Generating Normal Random Variables*, CACM 7(1), 1964):

* Strips of 2^18 numbers lie side by side. In each, a *box* takes of every number the same share,
  as large as fits under the density and is a multiple of 2^-34. A draw of 16 bits names a box and 18 more a
  number in it: both exactly, and 99 draws of 100 end here.
* What is left, the *rest*, is sampled by rejection: between the boxes' tops and the density, and beyond
  the strips in the tail (Marsaglia 1964). It does not depend on whose draw it becomes, so it is drawn
  in advance, thousands at a time.

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

BLOCK = 1 << 14
"""Draws made at a time: the buffers stay in a core's cache."""

LARGEST = 1 << 30
"""Every draw is smaller than this."""

_WIDTH = 1 << 18
"""Whole numbers in a strip."""

_ENTRIES = 1 << 16
"""What 16 bits can name."""

_REACH = 4.0
"""Standard deviations that the strips cover, at each side."""

_REST = 0.011
"""About the share of draws that fall into the rest."""

_SPARE = 4096
"""Most draws of the rest that are made in advance."""

_NOWHERE = 2.0**60
"""A number so far away that its density is 0."""

_NORMAL = 1.0 / math.sqrt(2 * math.pi)

Whole = np.ndarray[Any, np.dtype[np.int32]]


class _Source(Protocol):
    def fill(self, into: np.ndarray[Any, Any]) -> None: ...


@dataclass(frozen=True, eq=False)
class Strips:
    """How one standard deviation is split.

    Shares are those of a whole strip, were it flat, over that of a strip at 0.

    Args:
        sd: s, in whole numbers.
        end: K 2^18: strips hold the numbers from -end to end - 1.
        counts: entries of 65536 that name each strip's box, ``(2 K,)``.
        starts: where the box that an entry names begins, ``(65536,)``; :data:`LARGEST` for the rest.
        trials: the strip in which an entry tries for the rest, 2 K for the tail, ``(65536,)``.
        first: first number of each strip, and one that no draw has for the tail, ``(2 K + 1,)``.
        boxes: share of each box, and less that of the tail, ``(2 K + 1,)``.
        hurdle: what a share of the rest is divided by to be a chance, ``(2 K + 1,)``.
        tries: expected number of trials for a draw of the rest.
    """

    sd: float
    end: int
    counts: Array
    starts: Whole
    trials: np.ndarray[Any, np.dtype[np.int64]]
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
    top = _WIDTH * _NORMAL / sd
    k = math.ceil(_REACH * sd / _WIDTH)
    first, end = np.arange(-k, k) * float(_WIDTH), k * _WIDTH
    tail = sum(0.5 * math.erfc((end + d) / sd / math.sqrt(2)) for d in (-0.5, 0.5)) / top
    near = density(np.minimum(abs(first), abs(first + _WIDTH - 1)), sd)
    far = density(np.maximum(abs(first), abs(first + _WIDTH)), sd)
    # A hair below the density, so that no rounding lifts a box above it.
    counts = np.floor(far * (top * _ENTRIES * (1 - 2.0**-40)))
    boxes = counts / (top * _ENTRIES)
    starts = np.full(_ENTRIES, LARGEST, np.int32)
    named = np.repeat(first, counts.astype(np.int64))
    starts[: named.size] = named
    # Where the rest is tried for: as often as its highest share in the strip, or more.
    highest = np.append(near - boxes, tail) * (1 + 2.0**-40)
    tried = np.ceil(highest / highest.sum() * (_ENTRIES - highest.size)).astype(np.int64)
    tried[highest.argmax()] += _ENTRIES - tried.sum()
    trials = np.repeat(np.arange(tried.size), tried)
    hurdle = tried * (highest / tried).max()
    tries = float(hurdle.sum() / (1.0 / top - boxes.sum()))
    first, boxes = np.append(first, _NOWHERE), np.append(boxes, -tail)
    return Strips(sd, end, counts, starts, trials, first, boxes, hurdle, tries)


def density(numbers: Array, sd: float) -> Array:
    """That of a normal variable, over the one at 0."""
    x = numbers * numbers
    x *= -0.5 / (sd * sd)
    return np.asarray(np.exp(x, out=x))


class Normals:
    """Draws with one standard deviation, and their buffers; for one thread.

    Args:
        source: of random bits.
        sd: standard deviation in whole numbers, from 2^24 up to 2^25.
        size: about how many draws will be asked for.

    Raises:
        JobError: any other standard deviation.
    """

    def __init__(self, source: _Source, sd: float, size: int) -> None:
        self.source, self.strips = source, strips(sd)
        expected = _REST * size
        self._ahead = min(_SPARE, int(expected + 3 * math.sqrt(expected)) + 1)
        most = min(size, BLOCK)
        self._bits = np.empty(6 * most, np.uint8)
        self._entry = np.empty(most, np.int64)
        self._start = np.empty(most, np.int32)
        self._spare = np.empty(0, np.int32)

    def fill(self, out: Whole) -> None:
        """Fill all of ``out`` with independent draws: at most :data:`BLOCK`, and ``size``."""
        n = out.size
        bits, entry, start = self._bits[: 6 * n], self._entry[:n], self._start[:n]
        self.source.fill(bits)
        np.copyto(entry, bits[4 * n :].view(np.uint16))
        np.bitwise_and(bits[: 4 * n].view(np.int32), _WIDTH - 1, out=out)
        # With "clip" NumPy needs no buffer; no index is out of range.
        np.take(self.strips.starts, entry, out=start, mode="clip")
        np.add(out, start, out=out)
        at = np.flatnonzero(start == LARGEST)
        if at.size > self._spare.size:
            fresh = self._rest(max(self._ahead, at.size))
            self._spare = np.concatenate([self._spare, fresh])
        out[at], self._spare = self._spare[: at.size], self._spare[at.size :]

    def _rest(self, count: int) -> Whole:
        """So many draws of the rest, or a few more."""
        found, have = list[Whole](), 0
        while have < count:
            missing = count - have
            trials = int(self.strips.tries * (missing + 4 * math.sqrt(missing))) + 8
            found.append(self._tried(trials))
            have += found[-1].size
        return np.concatenate(found)

    def _tried(self, count: int) -> Whole:
        """Those of so many trials for the rest that succeed, in their order."""
        given, bits = self.strips, np.empty((2, count), np.uint64)
        self.source.fill(bits)
        strip = given.trials[(bits[0] >> np.uint64(48)).view(np.int64)]
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
