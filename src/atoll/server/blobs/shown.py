"""Frames that are shown to sites and stand on no disk: models on their way out.

What a round's tasks start from is in memory already, and after a stop it is made anew from the
checkpoint, to the same bytes. So it is not written a second time: its frame is sent piece by piece from
the vectors themselves. They lie in the order of their names, not in that of a mapping: sites refuse to go on
with a round from another model than it was begun with.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from atoll.core.layout import Array
from atoll.core.values import freeze
from atoll.wire.frames import Blob, pieces

__all__ = ["Shown"]


class Shown:
    """One frame; it holds on to the vectors, not to copies of them.

    Args:
        body: of the frame.
        arrays: its vectors; nobody may change them any more.

    Attributes:
        blob: digest and size of the frame.
        sha: SHA-256 that has taken the whole frame; who wants to go on with it copies it.
    """

    def __init__(self, body: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        ordered = {name: _fixed(arrays[name]) for name in sorted(arrays)}
        self._pieces = [memoryview(p) for p in pieces(body, ordered)]
        self._starts = [0, *accumulate(map(len, self._pieces))]
        self.sha = hashlib.sha256()
        for piece in self._pieces:
            self.sha.update(piece)
        self.blob = Blob(self.sha.hexdigest(), self._starts[-1])

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Bytes from ``start`` up to ``stop``, or to the end; not copied where they lie in one piece.

        >>> import numpy as np
        >>> shown = Shown({"version": 1}, {"w": np.arange(3, dtype=np.uint8)})
        >>> list(shown.read(shown.blob.size - 2, shown.blob.size + 9))
        [1, 2]
        """
        found = []
        stop = min(stop, self.blob.size)
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            piece, begin = self._pieces[number], self._starts[number]
            found.append(piece[start - begin : stop - begin])
            start, number = begin + len(piece), number + 1
        return found[0] if len(found) == 1 else b"".join(found)


def _fixed(array: Array) -> Array:
    """The array, which nobody can change through this name."""
    return array if not array.flags.writeable else freeze(array.view())
