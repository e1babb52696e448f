"""Named, splittable seeds for experiments (never for keys, masks or privacy noise).

A seed is a path of names below a root number. The stream it yields depends only on that path: not
on what was drawn before, nor on which process draws. ``Seed(1) / "round" / 3 / "client" / "a"`` is
therefore the same stream in any executor, in any order and after any restart.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from atoll.core.layout import Array

__all__ = ["Seed"]

_KEY = struct.Struct("<2Q")
"""Philox's key: the first half of a digest."""


@dataclass(frozen=True)
class Seed:
    """A position in the tree of random streams.

    Args:
        root: the experiment's seed, any whole number.
        path: tagged names from the root down; made by ``/``.

    >>> a = Seed(7) / "cohort" / 3
    >>> a == Seed(7) / "cohort" / 3, int(a.generator().integers(1000))
    (True, 694)
    >>> a.integer() == (Seed(7) / "cohort" / 4).integer()
    False
    """

    root: int
    path: tuple[str, ...] = ()

    def __truediv__(self, name: str | int) -> Seed:
        """The child seed called ``name`` (an integer and its decimal text differ).

        Raises:
            TypeError: ``name`` is neither text nor a whole number.
        """
        tagged = f"s{name}" if isinstance(name, str) else f"i{index(name)}"
        return Seed(self.root, (*self.path, tagged))

    def at(self, *names: str | int) -> Seed:
        """``self / name / name ...`` in one step."""
        return Seed(self.root, (*self.path, *_tagged(names)))

    def digest(self, *names: str | int) -> bytes:
        """32 bytes that identify the path of ``self.at(*names)``.

        Each name is length-prefixed, so paths never collide.
        """
        named = map(_framed, (str(self.root), *self.path, *_tagged(names)))
        return hashlib.sha256(b"".join((b"atoll seed 1", *named))).digest()

    def generator(self) -> np.random.Generator:
        """A fresh NumPy generator (Philox, keyed by the digest) at the start of this stream."""
        key: Any = _Key(self.digest()[:16])  # NumPy's annotation knows only its own seed sequence
        return np.random.Generator(np.random.Philox(key))

    def permutation(self, n: int, *names: str | int) -> Array:
        """``at(*names).generator().permutation(n)`` for less than a generator costs.

        >>> order = (Seed(7) / "epoch" / 2).generator().permutation(9)
        >>> bool((Seed(7).permutation(9, "epoch", 2) == order).all())
        True
        """
        own = _own
        own.words["key"] = _KEY.unpack_from(self.digest(*names))
        own.bits.state = own.state
        return own.rng.permutation(n)

    def integer(self) -> int:
        """A whole number in [0, 2^63), for libraries that want one."""
        return int.from_bytes(self.digest()[16:24], "little") >> 1


def _tagged(names: tuple[str | int, ...]) -> list[str]:
    return [f"s{name}" if isinstance(name, str) else f"i{index(name)}" for name in names]


class _Key(ISeedSequence):
    """Hands Philox its key: ``Philox(key=...)`` would first ask the system for entropy it never uses."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> Any:
        """The key as 64-bit words, the lowest first; Philox asks for two."""
        return np.frombuffer(self._raw, "<u8", n_words).astype(dtype, copy=False)


class _Own(threading.local):
    """One generator for each thread, set to the start of whatever stream is asked for."""

    def __init__(self) -> None:
        key: Any = _Key(bytes(16))
        self.bits = np.random.Philox(key)
        self.rng = np.random.Generator(self.bits)
        # As lists, which NumPy reads in a third of the time that its own arrays take it.
        start: Any = self.bits.state
        self.words = {name: words.tolist() for name, words in start["state"].items()}
        self.state: Any = {**start, "buffer": start["buffer"].tolist(), "state": self.words}


_own = _Own()


@lru_cache(1024)
def _framed(name: str) -> bytes:
    raw = name.encode("utf-8", "surrogatepass")  # file names may hold lone surrogates
    return len(raw).to_bytes(4, "little") + raw
