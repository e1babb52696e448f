"""Random numbers that may protect somebody: keyed by the operating system, never by a seed.

A :class:`SystemSource` is the keystream of AES-256-CTR under a key from ``os.urandom``. Nothing a job
can name gives it another key. Mechanisms take a :class:`Source`, so that tests can replay one.

Continuous noise on a computer is not continuous: the low bits of a floating-point sum can tell what it
was before the noise (Mironov, *On Significance of the Least Significant Bits*, CCS 2012). Here noise
and value are both rounded to one grid, a power of two about 2^-23 of the standard deviation; their sum
is exact, and what reads it afterwards (float32, the mean) cannot undo it. Rounding the value may move two
neighbouring ones apart by one cell in each coordinate, and :func:`noised` adds so much more noise.
Draws are whole numbers of cells (:mod:`atoll.privacy.dp.normal`); the probability of each is right to some
2^-40 of itself.
"""

from __future__ import annotations

import math
import os
import threading
from typing import Any, Protocol

import numpy as np

from atoll.core.errors import JobError, MissingExtra, UpdateRefused
from atoll.core.layout import Array
from atoll.privacy.dp.normal import BLOCK, FINE, LARGEST, Normals, Whole

__all__ = ["Draws", "Source", "SystemSource", "chosen", "gaussian", "grid_of", "noised", "words"]

_EXACT = 2.0**52
"""Cells up to which a value with its noise is exact in float64."""

_REKEY = 1 << 36
"""Bytes under one key: far from where a block cipher in counter mode could be told from chance."""

_ZEROS = bytes(1 << 18)


class Source(Protocol):
    """Where random bits come from."""

    def fill(self, into: np.ndarray[Any, Any]) -> None:
        """Write random bytes over all of ``into``, contiguous, of any dtype."""
        ...


class SystemSource:
    """Random bits of this process: AES-256-CTR under a key of the operating system.

    A fork, a copy and a process it is sent to each get a key of their own, so no two ever see the
    same noise. Threads may share one.

    Raises:
        MissingExtra: the library ``cryptography`` is not installed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process, self._left = -1, 0
        self._stream: Any = None

    def __reduce__(self) -> tuple[type[SystemSource], tuple[()]]:
        """A copy is another source."""
        return (SystemSource, ())

    def fill(self, into: np.ndarray[Any, Any]) -> None:
        """Write random bytes over all of ``into``."""
        target = into.data.cast("B")
        with self._lock:
            for start in range(0, len(target), len(_ZEROS)):
                part = target[start : start + len(_ZEROS)]
                if self._left < len(part) or self._process != os.getpid():
                    self._rekey()
                self._stream.update_into(memoryview(_ZEROS)[: len(part)], part)
                self._left -= len(part)

    def _rekey(self) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        except ImportError as missing:
            raise MissingExtra(
                "the library cryptography is not installed",
                remedy="pip install 'atoll[privacy]'",
            ) from missing
        key = algorithms.AES256(os.urandom(32))
        self._stream = Cipher(key, modes.CTR(os.urandom(16))).encryptor()
        self._process, self._left = os.getpid(), _REKEY


def words(source: Source, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """``count`` uniform 64-bit words."""
    out = np.empty(count, np.uint64)
    source.fill(out)
    return out


def chosen(source: Source, rows: int, rate: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Poisson sampling: each of ``rows`` row numbers with probability ``rate``, independently.

    The probability is right to 2^-64. How many there are is itself random, and may be 0.

    Raises:
        JobError: ``rate`` is not in (0, 1].
    """
    if not 0 < rate <= 1:
        raise JobError(f"sampling rate {rate} is not in (0, 1]")
    if rate == 1:
        return np.arange(rows)
    bar = np.uint64(min(math.ceil(rate * 2.0**64), 2**64 - 1))
    return np.flatnonzero(words(source, rows) < bar)


def grid_of(sd: float) -> float:
    """The grid that goes with a standard deviation: a power of two, about 2^-23 of it.

    >>> grid_of(1.0) == 2.0**-23, grid_of(1.9) == 2.0**-23
    (True, True)
    """
    return math.ldexp(1.0, math.frexp(sd)[1] - 1 - FINE)


def gaussian(source: Source, size: int, sd: float) -> Array:
    """``size`` normal draws with standard deviation ``sd``, float64, on the grid of ``sd``.

    Raises:
        JobError: ``sd`` is not a finite number above 0.
    """
    if not 0 < sd < math.inf:
        raise JobError(f"noise with standard deviation {sd}")
    out = np.empty(size)
    grid = grid_of(sd)
    for place, cells in Normals(source, sd / grid, size).blocks(size):
        np.multiply(cells, grid, out=out[place])
    return out


def noised(
    source: Source,
    values: Array,
    bound: float,
    noise_multiplier: float,
    dtype: str = "float64",
    out: Array | None = None,
) -> Array:
    """``values`` with Gaussian noise that hides a contribution of L2 norm ``bound``.

    The standard deviation is ``noise_multiplier * bound`` and about 2^-23 sqrt(size) of itself more, for
    what rounding to the grid adds to the contribution. The sum is exact before it takes the dtype of
    the result, so what was released is :class:`~atoll.privacy.dp.events.Gaussian` with this multiplier.

    Args:
        source: of random bits.
        values: what is to be released, any shape, before the noise.
        bound: most that one unit changes ``values`` by, in L2.
        noise_multiplier: z.
        dtype: of the result, unless it has a place.
        out: where to put it, of the shape of ``values``, contiguous; it may be ``values``.

    Raises:
        JobError: bound or multiplier out of range.
        UpdateRefused: a value is not finite, or beyond what can be added exactly.
    """
    noise = _Noise(source, np.size(values), bound, noise_multiplier)
    return noise.added(values, np.empty(np.shape(values), dtype) if out is None else out)


class _Noise:
    """Noise for one size, bound and multiplier, with its buffers and spare draws; for one thread."""

    def __init__(self, source: Source, size: int, bound: float, noise_multiplier: float) -> None:
        if not (0 < bound < math.inf and 0 < noise_multiplier < math.inf):
            raise JobError(f"noise for bound {bound} with multiplier {noise_multiplier}")
        self.sd = _deviation(size, bound, noise_multiplier)
        self.grid = grid_of(self.sd)
        self._normals = Normals(source, self.sd / self.grid, size)
        self._work = np.empty(min(size, BLOCK))

    def added(self, values: Array, out: Array) -> Array:
        """Put ``values`` with noise into ``out``; see :func:`noised`."""
        flat, into = np.ascontiguousarray(values).reshape(-1), out.reshape(-1)
        halved = self.grid == 1 and flat.dtype == into.dtype == np.float32
        for place, cells in self._normals.blocks(flat.size):
            own = flat[place]
            add = self._narrow if halved and _are_small(own) else self._wide
            add(own, cells, into[place])
        return out

    def _narrow(self, values: Array, cells: Whole, out: Array) -> None:
        """The same as :meth:`_wide` in half the width."""
        whole = self._work.view(np.int32)[: values.size]
        np.copyto(whole, values, "unsafe")
        np.add(whole, cells, whole)
        np.copyto(out, whole, "unsafe")

    def _wide(self, values: Array, cells: Whole, out: Array) -> None:
        """Cut values to the grid, add whole numbers of cells, go back: exact up to the last step."""
        whole = self._work[: values.size]
        np.multiply(values, 1 / self.grid, out=whole, dtype=np.float64)
        np.trunc(whole, out=whole)
        if not _longest(whole) < _EXACT:
            raise UpdateRefused(
                f"a value beyond {_EXACT * self.grid:g}, or not finite, under noise of {self.sd:g}"
            )
        np.add(whole, cells, out=whole)
        np.multiply(whole, self.grid, out=out, casting="same_kind")


def _deviation(size: int, bound: float, noise_multiplier: float) -> float:
    """Of the noise: for the bound, and for what rounding to the grid adds to a contribution."""
    sd = noise_multiplier * bound
    return sd + noise_multiplier * grid_of(sd) * math.sqrt(size)


def _are_small(values: Array) -> bool:
    """Whether 30 bits hold them all: shown in one pass by their length; not if one is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(values @ values < float(LARGEST) ** 2)


def _longest(values: Array) -> float:
    """The largest absolute value, without a copy; NaN if there is one."""
    return max(float(np.maximum.reduce(values)), -float(np.minimum.reduce(values)))


class Draws:
    """What private training draws: its sampling and its noise.

    Buffers and spare draws of one step serve the next; no thread, copy or fork gets those of another.

    Args:
        source: of random bits; by default the system's, of each process for itself.
    """

    def __init__(self, source: Source | None = None) -> None:
        self.source = SystemSource() if source is None else source
        self._kept: dict[tuple[float, ...], _Noise] = {}

    def __reduce__(self) -> tuple[type[Draws], tuple[Source]]:
        """A copy has no draws in advance."""
        return (Draws, (self.source,))

    def chosen(self, rows: int, rate: float) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Poisson sampling; see :func:`chosen`."""
        return chosen(self.source, rows, rate)

    def cell(self, size: int, bound: float, noise_multiplier: float) -> float:
        """The grid of :meth:`noised` for so many values: a power of two."""
        return grid_of(_deviation(size, bound, noise_multiplier))

    def noised(
        self, values: Array, bound: float, noise_multiplier: float, out: Array | None = None
    ) -> Array:
        """Values with noise, in their own dtype; see :func:`noised`."""
        key = (os.getpid(), values.size, bound, noise_multiplier)
        # Taken out while in use: another thread makes its own.
        noise = self._kept.pop(key, None)
        if noise is None:
            noise = _Noise(self.source, values.size, bound, noise_multiplier)
        found = noise.added(values, np.empty_like(values) if out is None else out)
        self._kept = {key: noise}
        return found
