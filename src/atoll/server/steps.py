"""The one thread in which the service does its work: folding, rounds, commits, deadlines."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from atoll.core.errors import AtollError, FenceError

__all__ = ["Steps", "Worker", "steady"]

log = logging.getLogger("atoll.server")

_LONGEST = 60.0
_AFTER_ERROR = 5.0
_NEW = "not started"


def steady() -> Callable[[], float]:
    """A clock that nobody sets: seconds since 1970 as they were at this call, and what has passed since.

    Deadlines stand on it: where a wall clock is set back by an hour, a round would end an hour late.
    """
    ahead = time.time() - time.monotonic()
    return lambda: ahead + time.monotonic()


class Worker(Protocol):
    """What is stepped."""

    def step(self) -> float | None:
        """Do all that is due; returns when more will be, in seconds since 1970, None for never."""
        ...


class Steps:
    """Calls ``step`` when it is due and when somebody says that there is work.

    Args:
        service: what is stepped.
        now: seconds since 1970, the service's clock.
        ended: called, from this thread, when the service can do no more: another server has the store.
    """

    def __init__(
        self,
        service: Worker,
        now: Callable[[], float],
        ended: Callable[[FenceError], None],
    ) -> None:
        self._service, self._now, self._ended = service, now, ended
        self._work = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="atoll-steps", daemon=True)
        self.trouble = _NEW
        self.seconds = 0.0
        self.count = 0

    def start(self) -> None:
        """Begin; what is due is done at once."""
        self._thread.start()

    def wake(self) -> None:
        """There is work; from any thread."""
        self._work.set()

    def stop(self, seconds: float = 30.0) -> bool:
        """Let the step in progress end, and no other begin; returns whether it ended in time."""
        self._stopping = True
        self._work.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            self._work.clear()
            try:
                due = self._step()
            except FenceError as error:
                self.trouble = str(error)
                log.error("%s", error)
                self._ended(error)
                return
            except Exception as error:
                # A run's own errors end that run inside the service; this one is the server's.
                self._hindered(error)
                due = self._now() + _AFTER_ERROR
            self._work.wait(_LONGEST if due is None else min(_LONGEST, max(0.0, due - self._now())))

    def _hindered(self, error: Exception) -> None:
        """Tell the log, once for as long as it stays the same; where it came from, of an error of ours only."""
        before, self.trouble = self.trouble, f"{type(error).__name__}: {error}"
        if not isinstance(error, AtollError):
            log.exception("a step of the service failed; it is tried again")
        elif before != self.trouble:
            log.error("the server cannot work; it is tried again: %s", error)

    def _step(self) -> float | None:
        began = time.monotonic()
        due = self._service.step()
        self.seconds += time.monotonic() - began
        self.count += 1
        if self.trouble not in ("", _NEW):
            log.warning("the server works again")
        self.trouble = ""
        return due
