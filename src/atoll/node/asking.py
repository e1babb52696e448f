"""Who has the node's one open question to the server: the thread that asks, or a result that is handed in.

A node that says what is new with its result needs no question of its own while the server answers that. So a
short round is one message a site: the result goes out, and its receipt comes with the next task. To leave
results the turn, the thread that asks holds back for a moment after a task has come.
"""

from __future__ import annotations

import threading
import time

__all__ = ["LINGER", "Turns"]

LINGER = 1.0
"""Seconds that a receipt may wait for news to go with it."""

_BRIEF = 0.25
"""Seconds of work for which a result is waited for instead of asking."""


class Turns:
    """Whose question is open; never two, unless one that a result brought is overdue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._polls = self._brought = False
        self._until = 0.0

    def wait(self) -> None:
        """Wait until the thread that asks has to; its question counts as open until :meth:`polled`."""
        while True:
            with self._lock:
                left = self._until - time.monotonic()
                self._polls = left <= 0
                self._changed.clear()
            if left <= 0:
                return
            self._changed.wait(min(left, _BRIEF))

    def polled(self, work: bool) -> None:
        """That question is answered; ``work``: with a task."""
        with self._lock:
            self._polls = False
            self._rest(work)

    def bring(self) -> bool:
        """Whether a result should bring a question along; if so, :meth:`brought` is to follow."""
        with self._lock:
            if self._polls or self._brought:
                return False
            self._brought = True
            self._until = time.monotonic() + 2 * LINGER
            return True

    def brought(self, work: bool) -> None:
        """What a result has asked is answered, or has failed; ``work``: with a task."""
        with self._lock:
            self._brought = False
            self._rest(work)

    def _rest(self, work: bool) -> None:
        self._until = time.monotonic() + _BRIEF if work else 0.0
        if not work:  # else the thread that asks looks early enough by itself
            self._changed.set()
