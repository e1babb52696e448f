"""Normal draws from random bits, fast: the ziggurat of Marsaglia and Tsang, for whole arrays.

*The Ziggurat Method for Generating Random Variables* (J. Statistical Software 5(8), 2000). The density is
covered by layers of equal area, 1024 here; a draw takes a layer from 10 bits of a word and a place in
it from the other 54, and all but 4 in 1000 are done. The others would lie under the curve's edge, where the
density decides, or in the tail, which two exponentials give; whatever they become has a distribution that does
not depend on who they are, so it is drawn in advance, thousands at a time. The result is normal to float64's
rounding, with a tail beyond 15 standard deviations.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from atoll.core.layout import Array

__all__ = ["BLOCK", "Normals"]

BLOCK = 1 << 14
"""Draws made at a time: the buffers stay in a core's cache."""

_LAYERS = 1024
_LAST = 4.038849846109505
"""Where the lowest layer's box ends and the tail begins: the layers then close at the top."""

_PLACES = 2.0**-53

_UNSETTLED = 0.0045
"""About the share of draws that the first look does not settle."""

_SPARE = 4096
"""Most draws that are made in advance for these."""


class _Source(Protocol):
    def fill(self, into: np.ndarray[Any, Any]) -> None: ...


def _density(x: Array) -> Array:
    return np.asarray(np.exp(-0.5 * x * x))


@lru_cache(maxsize=1)
def edges() -> Array:
    """Half widths of the layers from the lowest up, and 0: ``(1025,)``.

    The lowest is as wide as a box of its area would be: what lies beyond :data:`_LAST` is the tail.
    """
    height = math.exp(-0.5 * _LAST * _LAST)
    tail = math.sqrt(math.pi / 2) * math.erfc(_LAST / math.sqrt(2))
    area = _LAST * height + tail
    out = [area / height, _LAST]
    for _ in range(_LAYERS - 2):
        height += area / out[-1]
        out.append(math.sqrt(-2 * math.log(height)))
    return np.array([*out, 0.0])


class Normals:
    """Draws with one standard deviation, and their buffers; for one thread.

    Args:
        source: of random bits.
        sd: standard deviation.
        size: about how many draws will be asked for.
    """

    def __init__(self, source: _Source, sd: float, size: int) -> None:
        self.source, self.sd = source, sd
        expected = _UNSETTLED * size
        self._ahead = min(_SPARE, int(expected + 3 * math.sqrt(expected)) + 1)
        wide = edges()
        self._scale = wide[:-1] * (sd * _PLACES)
        self._sure = wide[1:] * sd
        self._words = np.empty(BLOCK, np.int64)
        self._layer = np.empty(BLOCK, np.int64)
        self._width, self._size = np.empty((2, BLOCK))
        self._inside = np.empty(BLOCK, np.bool_)
        self._spare = np.empty(0)

    def fill(self, out: Array) -> None:
        """Fill all of ``out``, at most :data:`BLOCK` values, with independent draws."""
        at = self._first(out)
        if at.size > self._spare.size:
            fresh = self._others(max(self._ahead, at.size))
            self._spare = np.concatenate([self._spare, fresh])
        out[at], self._spare = self._spare[: at.size], self._spare[at.size :]

    def _others(self, count: int) -> Array:
        """What becomes of draws that the first look does not settle.

        A layer is among them as often as its part that is not sure is wide.
        """
        wide = edges()
        open_ = 1.0 - wide[1:] / wide[:-1]
        cut = np.cumsum(open_)
        layer = np.searchsorted(cut, self._uniform(count) * cut[-1])
        layer = np.minimum(layer, _LAYERS - 1)
        x = wide[layer + 1] + self._uniform(count) * (wide[layer] - wide[layer + 1])
        x = np.asarray(np.copysign(x, self._uniform(count) - 0.5) * self.sd)
        again = np.flatnonzero(~self._edge(layer, x))
        for start in range(0, again.size, BLOCK):
            own = again[start : start + BLOCK]
            fresh = np.empty(own.size)
            left = self._first(fresh)
            if left.size:
                fresh[left] = self._others(left.size)
            x[own] = fresh
        return x

    def _first(self, out: Array) -> Any:
        """A layer and a place for each; returns those that this does not settle."""
        n = out.size
        words, layer = self._words[:n], self._layer[:n]
        width, size, inside = self._width[:n], self._size[:n], self._inside[:n]
        self.source.fill(words)
        np.bitwise_and(words, _LAYERS - 1, out=layer)
        np.right_shift(words, 10, out=words)
        # With "clip" NumPy needs no buffer; no index is out of range.
        np.take(self._scale, layer, out=width, mode="clip")
        np.multiply(words, width, out=out)
        np.take(self._sure, layer, out=width, mode="clip")
        np.abs(out, out=size)
        np.greater_equal(size, width, out=inside)
        return np.flatnonzero(inside)

    def _edge(self, layer: Any, x: Array) -> Any:
        """Which draws at an edge stay; those of the lowest layer become draws of the tail."""
        wide = edges()
        low, high = _density(wide[layer]), _density(wide[layer + 1])
        stays = low + self._uniform(x.size) * (high - low) < _density(x / self.sd)
        tail = np.flatnonzero(layer == 0)
        if tail.size:
            x[tail] = np.copysign(self._tail(tail.size) * self.sd, x[tail])
            stays[tail] = True
        return stays

    def _tail(self, count: int) -> Array:
        """Absolute values beyond the last edge (Marsaglia 1964)."""
        out, have = np.empty(count), 0
        while have < count:
            far = -np.log(self._uniform(2 * count)) / _LAST
            kept = far[-2 * np.log(self._uniform(2 * count)) > far * far][: count - have]
            out[have : have + kept.size] = _LAST + kept
            have += kept.size
        return out

    def _uniform(self, count: int) -> Array:
        """In (0, 1], from 63 bits each."""
        bits = np.empty(count, np.int64)
        self.source.fill(bits)
        np.right_shift(bits.view(np.uint64), 1, out=bits.view(np.uint64))
        return (bits + 0.5) * 2.0**-63
