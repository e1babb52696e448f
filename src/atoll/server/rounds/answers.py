"""What a site's answer may hold, and reading one from its file.

The frame is checked against what was asked before a value is looked at: names, shapes and dtypes of
the vectors follow from the job, and the arrays are views into the file, so a forged answer costs no more
memory than an honest one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from atoll.core.errors import UpdateRefused
from atoll.core.layout import Array
from atoll.wire.frames import HEADER_LIMIT, Allowed, decode
from atoll.wire.messages import ResultBody, read_body

__all__ = ["Expected", "Slot", "read_answer"]

Slot = tuple[tuple[int, ...] | None, str]
"""Shape and dtype of one vector; no shape stands for one axis of any length, ``float`` for both floats."""

_FLOATS = ("float32", "float64")


@dataclass(frozen=True)
class Expected:
    """The vectors of an answer.

    Args:
        vectors: shape and dtype by name.
        most: most bytes of vectors of unknown length.
    """

    vectors: Mapping[str, Slot] = field(default_factory=dict)
    most: int = 0

    @cached_property
    def bytes(self) -> int:
        """Most bytes of all vectors together."""
        sizes = [
            self.most if shape is None else math.prod(shape) * np.dtype(dtype).itemsize
            for shape, dtype in self.vectors.values()
        ]
        return sum(sizes) + 64 * len(sizes)

    @property
    def largest(self) -> int:
        """Most bytes of a whole answer."""
        return self.bytes + HEADER_LIMIT + 64

    @cached_property
    def allowed(self) -> Allowed:
        """The same for a reader of frames."""
        return Allowed(
            names=frozenset(self.vectors),
            dtypes=frozenset(d for _, dtype in self.vectors.values() for d in _dtypes(dtype)),
            most_arrays=len(self.vectors),
            most_bytes=self.bytes,
        )

    def check(self, arrays: Mapping[str, Array], *, done: bool) -> None:
        """Refuse missing vectors, and shapes and dtypes that are not those asked for.

        Args:
            arrays: as they came.
            done: whether the task was done; a failed one has no vectors.

        Raises:
            UpdateRefused: with the name of the vector.
        """
        if not done:
            if arrays:
                raise UpdateRefused(f"a task that was not done came with {sorted(arrays)}")
            return
        if missing := sorted(set(self.vectors) - set(arrays)):
            raise UpdateRefused(f"vector {missing[0]!r} is missing")
        for name, array in arrays.items():
            shape, dtype = self.vectors[name]
            fits = array.ndim == 1 if shape is None else array.shape == shape
            if not fits or array.dtype.name not in _dtypes(dtype):
                raise UpdateRefused(
                    f"vector {name!r} has shape {array.shape} and dtype {array.dtype} "
                    f"where {'any length' if shape is None else shape} {dtype} is expected"
                )


def _dtypes(dtype: str) -> tuple[str, ...]:
    return _FLOATS if dtype == "float" else (dtype,)


def read_answer(
    frame: memoryview | bytes, task: str, expected: Expected
) -> tuple[ResultBody, dict[str, Array]]:
    """A site's answer to ``task``; no value has been looked at.

    Args:
        frame: the whole frame; the vectors are views into it.
        task: whose answer it is said to be.
        expected: what it may hold.

    Raises:
        WireError: no frame, or one with arrays that are not expected.
        UpdateRefused: another task's answer, or vectors that do not fit.
    """
    raw, arrays = decode(frame, expected.allowed)
    body = read_body(ResultBody, raw)
    if body.task != task:
        raise UpdateRefused(f"an answer to {body.task!r:.120} was sent for {task!r}")
    expected.check(arrays, done=body.status == "done")
    return body, arrays
