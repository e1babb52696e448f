"""A model is one flat vector and the layout that says what lies where (decision D1).

The vector is ordered so that the two regions everybody needs are contiguous slices::

    [ shared, not trained | shared, trained | personal, trained | personal, not trained ]
    '------- shared -----------------------'
                          '------------ trainable -------------'

Only the shared region travels and is aggregated. What is not trained (BatchNorm statistics, frozen
parameters, counters) is averaged when shared; a frozen entry never differs, so it stays bit-equal.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.core.errors import LayoutError, suggest

__all__ = ["Array", "Entry", "Layout", "dtype_name"]

Array = NDArray[Any]
"""Any NumPy array; shapes are given in docstrings."""


@lru_cache(maxsize=64)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """``dtype.name``, which NumPy spells anew each time: longer than a step of a small model takes."""
    return dtype.name


_VECTOR_DTYPES = ("float32", "float64")
_ENTRY_DTYPES = frozenset(
    ["bool", "bfloat16", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


@dataclass(frozen=True)
class Entry:
    """One named tensor of a model.

    Args:
        name: unique name, such as ``layers.0.weight``.
        shape: its shape; ``()`` for a scalar.
        dtype: its own dtype in the model (``float16``, ``int64`` …), restored on the way out.
        trainable: whether local training changes it by gradient steps.
        personal: whether it stays at the client.
        aliases: further names of the same tensor (tied weights).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    trainable: bool = True
    personal: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def region(self) -> int:
        """Position of its region in the vector, 0 to 3 (see the module's picture)."""
        if self.personal:
            return 2 if self.trainable else 3
        return 1 if self.trainable else 0


@dataclass(frozen=True)
class Layout:
    """Names, shapes and dtypes of the entries, in vector order.

    Build it with :meth:`of`, which sorts the entries into regions.

    >>> layout = Layout.of([Entry("head.weight", (2, 3)), Entry("body.weight", (3,))],
    ...                    personal=["head.*"])
    >>> layout.size, layout.shared, [e.name for e in layout.entries]
    (9, slice(0, 3, None), ['body.weight', 'head.weight'])
    """

    entries: tuple[Entry, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse what no vector could have (a layout may come from a file).

        Raises:
            LayoutError: duplicate names, an unknown dtype, a bad shape, or entries out of order.
        """
        if self.dtype not in _VECTOR_DTYPES:
            raise LayoutError(f"a vector is float32 or float64, not {self.dtype!r}")
        counts = Counter(name for e in self.entries for name in (e.name, *e.aliases))
        if twice := sorted(name for name, count in counts.items() if count > 1):
            raise LayoutError(f"entry names appear twice: {', '.join(twice)}")
        for e in self.entries:
            if not all(isinstance(n, int) and n >= 0 for n in e.shape):
                raise LayoutError(f"entry {e.name!r} has shape {e.shape}: not whole numbers >= 0")
            if e.dtype not in _ENTRY_DTYPES:
                raise LayoutError(
                    f"entry {e.name!r} has dtype {e.dtype!r}",
                    remedy=suggest(e.dtype, _ENTRY_DTYPES),
                )
        if any(a.region > b.region for a, b in pairwise(self.entries)):
            raise LayoutError("entries are not sorted by region", remedy="use Layout.of")

    @classmethod
    def of(
        cls, entries: Iterable[Entry], *, personal: Iterable[str] = (), dtype: str = "float32"
    ) -> Layout:
        """Sort entries into regions; names matching a ``personal`` pattern stay at the client.

        Args:
            entries: the model's tensors in their own order.
            personal: shell patterns over entry names, such as ``head.*``.
            dtype: dtype of the vector, ``float32`` or ``float64``.

        Raises:
            LayoutError: duplicate names, an unknown dtype, no patterns, or one that matches nothing.
        """
        given = tuple(entries)
        names = [name for e in given for name in (e.name, *e.aliases)]
        patterns = tuple(personal)
        if isinstance(personal, str) or not all(isinstance(pattern, str) for pattern in patterns):
            told = f"personal is {personal!r:.60}, and no list of patterns"
            raise LayoutError(told, remedy="such as personal=['head.*']")
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise LayoutError(
                    f"personal pattern {pattern!r} matches no entry", remedy=suggest(pattern, names)
                )

        def marked(e: Entry) -> Entry:
            own = e.personal or any(
                fnmatchcase(n, p) for p in patterns for n in (e.name, *e.aliases)
            )
            return replace(e, personal=own)

        return cls(tuple(sorted(map(marked, given), key=lambda e: e.region)), dtype)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each entry, and the total size last: ``(len(entries) + 1,)``."""
        ends = [0]
        for e in self.entries:
            ends.append(ends[-1] + e.size)
        return tuple(ends)

    @cached_property
    def _kind(self) -> np.dtype[Any]:
        """``dtype`` as NumPy has it: comparing with a name makes one each time."""
        return np.dtype(self.dtype)

    @cached_property
    def size(self) -> int:
        """d: number of values in the whole vector."""
        return self.offsets[-1]

    def _bound(self, region: int) -> int:
        return sum(e.size for e in self.entries if e.region < region)

    @cached_property
    def shared(self) -> slice:
        """The region that travels."""
        return slice(0, self._bound(2))

    @cached_property
    def trainable(self) -> slice:
        """The region that gradient steps change, in the whole vector."""
        return slice(self._bound(1), self._bound(3))

    @cached_property
    def shared_trainable(self) -> slice:
        """The region that both travels and is trained."""
        return slice(self._bound(1), self._bound(2))

    @cached_property
    def personal(self) -> slice:
        """The region that stays at the client."""
        return slice(self._bound(2), self.size)

    def check(self, vector: Array, *, what: str = "vector") -> None:
        """Refuse a vector of another size or dtype than this layout's.

        Raises:
            LayoutError: with the expected and the given shape and dtype.
        """
        if not isinstance(vector, np.ndarray):
            raise LayoutError(f"{what} is a {type(vector).__name__}, and no array")
        if vector.shape != (self.size,) or vector.dtype != self._kind:
            raise LayoutError(
                f"{what} has shape {vector.shape} and dtype {vector.dtype}; "
                f"the layout says ({self.size},) {self.dtype}",
                remedy="use the model this layout was made from",
            )

    def views(self, vector: Array) -> dict[str, Array]:
        """Named views into ``vector``, without a copy, in the vector's dtype."""
        self.check(vector)
        return {
            e.name: vector[start : start + e.size].reshape(e.shape)
            for e, start in zip(self.entries, self.offsets, strict=False)
        }

    def pack(self, tensors: Mapping[str, Array]) -> Array:
        """The vector that holds ``tensors`` exactly.

        Raises:
            LayoutError: an entry is missing or unknown, has another shape, or a value the vector's
                dtype cannot hold exactly.
        """
        known = {name for e in self.entries for name in (e.name, *e.aliases)}
        if unknown := sorted(set(tensors) - known):
            raise LayoutError(f"no entry {unknown[0]!r}", remedy=suggest(unknown[0], known))
        vector = np.empty(self.size, self.dtype)
        for e, start in zip(self.entries, self.offsets, strict=False):
            if e.name not in tensors:
                raise LayoutError(f"entry {e.name!r} is missing", remedy=suggest(e.name, tensors))
            value = np.asarray(tensors[e.name])
            if value.shape != e.shape:
                raise LayoutError(f"entry {e.name!r} has shape {value.shape}, not {e.shape}")
            if not _put(vector[start : start + e.size], value.ravel()):
                raise LayoutError(
                    f"entry {e.name!r} ({value.dtype}) has values that {self.dtype} cannot hold"
                )
        return vector

    def unpack(self, vector: Array, *, copy: bool = True) -> dict[str, Array]:
        """Named tensors in their own dtypes (whole numbers are rounded), aliases included.

        They are copies; those of the vector's dtype are views of it where ``copy`` is false.
        NumPy has no ``bfloat16``: such entries keep the vector's dtype, which holds them exactly.
        """
        tensors: dict[str, Array] = {}
        for e, view in zip(self.entries, self.views(vector).values(), strict=True):
            dtype = np.dtype(self.dtype if e.dtype == "bfloat16" else e.dtype)
            # np.rint turns an array of shape () into a scalar, which is no tensor
            value = np.asarray(np.rint(view) if dtype.kind in "iub" else view).astype(
                dtype, copy=copy
            )
            for name in (e.name, *e.aliases):
                tensors[name] = value
        return tensors

    def to_json(self) -> str:
        """Canonical text form, from which :meth:`from_json` makes an equal layout."""
        rows = [
            [e.name, list(e.shape), e.dtype, e.trainable, e.personal, list(e.aliases)]
            for e in self.entries
        ]
        return json.dumps({"dtype": self.dtype, "entries": rows}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Read what :meth:`to_json` wrote.

        Raises:
            LayoutError: it is not a layout.
        """
        try:
            raw = json.loads(text)
            entries = tuple(
                Entry(name, tuple(shape), dtype, trainable, personal, tuple(aliases))
                for name, shape, dtype, trainable, personal, aliases in raw["entries"]
            )
            dtype = raw["dtype"]
        except (ValueError, TypeError, KeyError) as error:
            raise LayoutError(f"not a layout: {error}") from error
        return cls(entries, dtype)

    def digest(self) -> str:
        """SHA-256 of the canonical form, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _put(into: Array, value: Array) -> bool:
    """Write ``value`` into a float vector; whether every value arrived exactly."""
    if value.dtype == into.dtype:
        into[:] = value
        return True
    if value.dtype.kind not in "fiub":
        return False
    with np.errstate(over="ignore"):
        into[:] = value
    # A float at or beyond an integer's range has no defined conversion back.
    if value.dtype.kind in "iu" and np.any(into >= 2.0 ** np.iinfo(value.dtype).max.bit_length()):
        return False
    return np.array_equal(into.astype(value.dtype), value, equal_nan=value.dtype.kind == "f")
