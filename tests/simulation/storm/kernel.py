"""Virtual time on one thread: every thread of the programs under test is a greenlet that this moves on.

The programs keep their own code. Where they say ``threading``, ``queue`` or ``time`` they are given the
modules at the end of this file, whose locks, queues and clocks belong to a :class:`Kernel`. It runs one
greenlet at a time until that waits, and picks the next from a heap ordered by virtual time and, at one
moment, by a seeded draw: so a seed decides every interleaving, and the same seed gives the same one.

A :class:`Process` that is killed unwinds with :class:`Killed`; whatever its cleaning up tries to do
outside is refused, since a dead process cleans nothing up.
"""

from __future__ import annotations

import heapq
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

from greenlet import getcurrent, greenlet

__all__ = ["EPOCH", "Event", "Kernel", "Killed", "Process", "virtual_modules"]

EPOCH = 1_700_000_000.0
"""Wall clock time, in seconds since 1970, at which every simulation starts."""


class Killed(BaseException):
    """Ends the threads of a process that was killed; no ``except Exception`` stops it."""


class Process:
    """A process: its threads, and whether it lives.

    Args:
        name: such as ``server-2`` or ``north-1``.
        role: ``server`` or ``node``.
        number: its process id.
        owner: ``server``, or the site.
        owned: the :class:`~storm.world.Server` or :class:`~storm.world.Node` whose process it is.
    """

    def __init__(self, name: str, role: str, number: int, owner: str, owned: Any) -> None:
        self.name, self.role, self.number = name, role, number
        self.owner, self.owned = owner, owned
        self.dead = False
        self.threads: list[Thread] = []
        self.skew = 0.0


class Kernel:
    """The one thread that moves all greenlets, and the clock.

    Args:
        random: decides who goes first among those who could.
        after: called after each step, that is each time a greenlet waits or ends.
    """

    def __init__(self, random: Random, after: Callable[[], None] = lambda: None) -> None:
        self.now = 0.0
        self.steps = 0
        self.random, self.after = random, after
        self.current: Thread | None = None
        self._heap: list[tuple[float, float, int, Any, int]] = []
        self._number = 0
        self._hub = getcurrent()
        self.failures: list[tuple[Thread, BaseException]] = []

    @property
    def process(self) -> Process | None:
        """Whose code runs; None while it is the simulator's own."""
        return None if self.current is None else self.current.process

    def at(self, seconds: float, what: Any, ticket: int = -1) -> None:
        """Call or wake ``what`` after so many seconds."""
        self._number += 1
        moment = self.now + max(0.0, seconds)
        heapq.heappush(self._heap, (moment, self.random.random(), self._number, what, ticket))

    def spawn(self, process: Process, function: Callable[[], None], name: str) -> Thread:
        """Start a thread of a process."""
        thread = Thread(function, name, process)
        thread.start()
        return thread

    def run(self, until: Callable[[], bool], longest: float) -> bool:
        """Move on until ``until()`` or the clock shows ``longest``; returns whether it came to that."""
        while not until():
            if not self._heap or self._heap[0][0] > longest:
                return False
            moment, _, _, what, ticket = heapq.heappop(self._heap)
            if isinstance(what, Thread):
                if what.ticket != ticket or what.ended:
                    continue
                self.now = max(self.now, moment)
                self._switch(what)
            else:
                self.now = max(self.now, moment)
                what()
            self.steps += 1
            self.after()
        return True

    def _switch(self, thread: Thread, *thrown: Any) -> None:
        thread.ticket += 1
        self.current = thread
        try:
            if thrown:
                thread.greenlet.throw(*thrown)
            else:
                thread.greenlet.switch()
        finally:
            self.current = None

    def kill(self, process: Process) -> None:
        """End all threads of a process; not to be called from one of them."""
        process.dead = True
        for thread in [t for t in process.threads if not t.ended]:
            # A thread that has not run yet has nothing to unwind.
            if thread.begun:
                self._switch(thread, Killed)
            thread.ended = True
        process.threads.clear()

    def wait(self, seconds: float | None = None) -> bool:
        """The current thread waits to be woken, or for so long; returns whether it was woken."""
        thread = self.current
        if thread is None:
            raise RuntimeError("the simulator itself must not wait")
        if thread.process.dead:
            raise Killed
        thread.woken, thread.waiting = False, True
        if seconds is not None:
            self.at(seconds, thread, thread.ticket)
        self._hub.switch()
        thread.waiting = False
        return thread.woken

    def wake(self, thread: Thread) -> None:
        """Let a waiting thread go on, at this moment."""
        if thread.waiting and not thread.woken:
            thread.woken = True
            self.at(0.0, thread, thread.ticket)


_running: list[Kernel] = []


def kernel() -> Kernel:
    """The kernel of the simulation that runs."""
    return _running[-1]


# What stands for the module ``threading`` ----------------------------------------------------------


class Thread:
    """A thread of a process: :class:`threading.Thread` as far as it is used."""

    def __init__(
        self,
        target: Callable[..., None],
        name: str = "",
        process: Process | None = None,
        daemon: bool = True,
        args: tuple[Any, ...] = (),
    ) -> None:
        owner = process or kernel().process
        if owner is None:
            raise RuntimeError("a thread needs a process")
        self.process, self.name = owner, name
        self._target, self._args = target, args
        self.ticket = 0
        self.begun = self.ended = self.woken = self.waiting = False
        self._joining: list[Thread] = []
        self.greenlet: Any = None

    def start(self) -> None:
        mover = kernel()
        self.greenlet = greenlet(self._run, parent=mover._hub)
        self.process.threads.append(self)
        mover.at(0.0, self, self.ticket)

    def _run(self) -> None:
        self.begun = True
        try:
            if not self.process.dead:
                self._target(*self._args)
        except Killed:
            pass
        except BaseException as error:
            kernel().failures.append((self, error))
        finally:
            self.ended = True
            if self in self.process.threads:
                self.process.threads.remove(self)
            for other in self._joining:
                kernel().wake(other)

    def join(self, timeout: float | None = None) -> None:
        mover = kernel()
        if not self.ended and mover.current is not None:
            self._joining.append(mover.current)
            mover.wait(timeout)

    def is_alive(self) -> bool:
        return not self.ended


class Lock:
    """:class:`threading.Lock`; the simulator itself passes where nobody holds it."""

    def __init__(self) -> None:
        self._owner: Any = None
        self._count = 0
        self._waiting: deque[Thread] = deque()

    reentrant = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        mover = kernel()
        me = mover.current or mover
        if self._owner is None or (self.reentrant and self._owner is me):
            self._owner = me
            self._count += 1
            return True
        if not blocking:
            return False
        if me is mover:
            raise RuntimeError("the simulator itself came to a lock that is held")
        while self._owner is not None:
            self._waiting.append(me)
            woken = mover.wait(None if timeout < 0 else timeout)
            if not woken and self._owner is not None:
                if me in self._waiting:
                    self._waiting.remove(me)
                return False
        self._owner, self._count = me, 1
        return True

    def release(self) -> None:
        self._count -= 1
        if not self._count:
            self._owner = None
            while self._waiting:
                thread = self._waiting.popleft()
                if not thread.ended:
                    kernel().wake(thread)
                    break

    def locked(self) -> bool:
        return self._owner is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    """:class:`threading.RLock`."""

    reentrant = True


class Event:
    """:class:`threading.Event`."""

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[Thread] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waiting, self._waiting = self._waiting, []
        for thread in waiting:
            kernel().wake(thread)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        mover = kernel()
        if not self._set and mover.current is not None:
            me = mover.current
            self._waiting.append(me)
            mover.wait(timeout)
            if me in self._waiting:
                self._waiting.remove(me)
        return self._set


class SimpleQueue:
    """:class:`queue.SimpleQueue`."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._waiting: list[Thread] = []

    def put(self, item: Any) -> None:
        self._items.append(item)
        if self._waiting:
            kernel().wake(self._waiting.pop(0))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        mover = kernel()
        if not self._items and block and (timeout is None or timeout > 0):
            me = mover.current
            if me is None:
                raise RuntimeError("the simulator itself must not wait")
            self._waiting.append(me)
            mover.wait(timeout)
            if me in self._waiting:
                self._waiting.remove(me)
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def get_nowait(self) -> Any:
        return self.get(block=False)

    def empty(self) -> bool:
        return not self._items


def _wall() -> float:
    mover = kernel()
    process = mover.process
    return EPOCH + mover.now + (0.0 if process is None else process.skew)


_MODULES = {
    threading: SimpleNamespace(Thread=Thread, Lock=Lock, RLock=RLock, Event=Event),
    queue: SimpleNamespace(SimpleQueue=SimpleQueue, Empty=queue.Empty),
    time: SimpleNamespace(
        time=_wall,
        monotonic=lambda: kernel().now,
        perf_counter=lambda: kernel().now,
        sleep=lambda seconds: kernel().wait(seconds),
    ),
}

_REAL = ("atoll.wire.lossy_disk", "atoll.server.store.memory", "atoll.core", "atoll.cli")
"""Modules that keep the real ones: disk and database are shared by processes and lock for nobody long."""


@contextmanager
def virtual_modules(mover: Kernel) -> Iterator[None]:
    """Give all loaded modules of Atoll the modules of ``mover``."""
    changed = []
    for name, module in list(sys.modules.items()):
        if not name.startswith("atoll.") or name.startswith(_REAL):
            continue
        for real, virtual in _MODULES.items():
            if getattr(module, real.__name__, None) is real:
                setattr(module, real.__name__, virtual)
                changed.append((module, real))
    _running.append(mover)
    try:
        yield
    finally:
        _running.pop()
        for module, real in changed:
            setattr(module, real.__name__, real)
