"""What the server that forks worker processes imports besides their job: its other children hear Ctrl-C.

Whoever first asks ``multiprocessing`` for a process by ``forkserver`` starts that server, for all who ask in
the same process. Where it is started while SIGINT waits (:func:`~atoll.runtime.starting.held_back`), each of
its children begins so. A worker goes on by itself (:func:`~atoll.runtime.starting.settle`). A process of
somebody else, such as one of a pool, would never hear of Ctrl-C; here it does, before it does anything of its
own.

To be imported in that server only.
"""

from __future__ import annotations

import signal
from multiprocessing import current_process
from multiprocessing.util import register_after_fork

from atoll.runtime.starting import WORKER

__all__ = ["hear"]


def hear(_: object) -> None:
    """Let SIGINT through, in a process that is no worker."""
    if not current_process().name.startswith(WORKER):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))


register_after_fork(hear, hear)
