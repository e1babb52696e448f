"""What the thread of a run has to do next, and when: calls that come, calls put off, and one alarm.

Other threads hand in calls; the thread itself puts some off and sets the alarm. It takes one after another
out of here and makes it, so that nothing of a run happens at the same time as something else of it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import queue
import time
from collections.abc import Callable

__all__ = ["Agenda", "Call"]

Call = Callable[[], None]


class Agenda:
    """The calls of one thread. :meth:`put` and :meth:`stop` are for any other too, the rest is for that one."""

    def __init__(self) -> None:
        self._stopped = False
        self._calls: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._later: list[tuple[float, int, Call]] = []
        self._numbers = itertools.count()  # calls put off to the same moment are made in order
        self._alarm, self._overdue = math.inf, _nothing

    def put(self, call: Call) -> None:
        """A call for as soon as possible."""
        self._calls.put(call)

    def later(self, after: float, call: Call) -> None:
        """A call for after so many seconds."""
        heapq.heappush(self._later, (time.monotonic() + after, next(self._numbers), call))

    def set_alarm(self, after: float, call: Call) -> None:
        """A call for after so many seconds unless the alarm is cleared before; there is one at a time."""
        self._alarm, self._overdue = time.monotonic() + after, call

    def clear_alarm(self) -> None:
        """Do not make the call of the alarm."""
        self._alarm = math.inf

    def stop(self) -> None:
        """Nothing more is to be done; whoever waits in :meth:`next` wakes up."""
        self._stopped = True
        self.put(_nothing)

    @property
    def stopped(self) -> bool:
        """Whether nothing more is to be done."""
        return self._stopped

    @property
    def empty(self) -> bool:
        """Whether no call has come or is put off."""
        return not self._later and self._calls.empty()

    def next(self, idle: float) -> Call | None:
        """The call to make next; None when none was to be made for ``idle`` seconds."""
        now, due = time.monotonic(), self._later[0][0] if self._later else math.inf
        try:
            return self._calls.get(timeout=max(0.0, min(idle, due - now, self._alarm - now)))
        except queue.Empty:
            now = time.monotonic()
            if self._alarm <= now:
                self.clear_alarm()
                return self._overdue
            return heapq.heappop(self._later)[2] if due <= now else None


def _nothing() -> None:
    """In place of a call."""
