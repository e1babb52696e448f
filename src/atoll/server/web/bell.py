"""Waking those who wait for news, from whatever thread the news come."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

__all__ = ["Bell"]


class Bell:
    """Rings for names. A waiter takes its place first, then looks, then waits: nothing is missed.

    Args:
        loop: the event loop of all waiters.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the server is about to stop, so that nobody should wait any more."""
        return self._closed

    @contextmanager
    def place(self, name: str) -> Iterator[asyncio.Event]:
        """A place among those who wait for ``name``; clear the event before each look."""
        event = asyncio.Event()
        self._waiting.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            waiting = self._waiting[name]
            waiting.discard(event)
            if not waiting:
                del self._waiting[name]

    def ring(self, names: Collection[str]) -> None:
        """Wake those who wait for one of ``names``; from any thread, also after the loop has ended."""
        # Whoever takes a place after this look finds the news when it looks itself.
        if not any(name in self._waiting for name in names):
            return
        with suppress(RuntimeError):  # nobody waits in a loop that has ended
            self._loop.call_soon_threadsafe(self._ring, tuple(names))

    def close(self) -> None:
        """Wake everybody for the last time."""
        self._closed = True
        self._ring(tuple(self._waiting))

    def _ring(self, names: Collection[str]) -> None:
        for name in names:
            for event in self._waiting.get(name, ()):
                event.set()
