"""What a long-lived process does with memory that it has freed."""

from __future__ import annotations

import contextlib
import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Numbers of settings of GNU's allocator, from its malloc.h."""
_ARENAS = 2
"""Heaps of the allocator: by itself it gives each thread one of its own, which keeps what it has freed."""


def keep_freed_memory() -> None:
    """Let GNU's allocator keep what a message or a slab of a model has freed for the next one.

    By itself it gives the last megabytes back to the system each time, which then clears them again: a
    round of a large model spent more time on that than on its sums. What is longer than
    a slab's arrays still goes back.
    """
    with contextlib.suppress(
        OSError, AttributeError, TypeError
    ):  # another system, another allocator
        allocator = ctypes.CDLL(None).mallopt
        allocator(_MMAP_THRESHOLD, 4 << 20)
        allocator(_TRIM_THRESHOLD, 64 << 20)
        allocator(_ARENA_MAX, _ARENAS)
