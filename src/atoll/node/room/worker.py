"""``python -m atoll.node.room.worker``: the process that runs job code, one for each run at a site.

It holds no key and no connection, and where the machine lets it lives in a room of its own
(:mod:`atoll.node.room.sandbox`); it reads orders on its standard input and answers on its standard
output, which job code never sees: to that, input is empty and everything printed goes to the log. It
ends when the node ends, however that happens.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from pathlib import Path

from atoll.node.room import syscalls
from atoll.node.room.limits import allow, confine, crowd
from atoll.node.room.sandbox import STOPS, Room, enter
from atoll.node.settings import Limits

__all__ = ["main"]


def main(limits: str, folder: str, room: str = "") -> None:
    """A worker's life.

    Args:
        limits: what it may use, as JSON.
        folder: where the job's code is laid down.
        room: what there is to be seen, as JSON; empty for everything.
    """
    allowed = Limits.model_validate_json(limits)
    inbox, outbox = _take_pipes()
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # as it was begun without hearing them
    confine(allowed)
    if room:  # before there is another thread
        enter(Room.model_validate_json(room), inbox, outbox)
        crowd(allowed.processes)
    elif allowed.sandbox != "off" and not syscalls.trouble():
        syscalls.forbid()
    threading.Thread(target=_end_with_the_node, args=(inbox,), daemon=True).start()
    # Only now: importing what job code needs is under the limits too.
    from atoll.node.orders import Order, receive, send
    from atoll.node.room.workplace import Workplace

    place = Workplace(Path(folder), allowed.memory)
    while True:
        try:
            order = Order.model_validate(receive(inbox))
        except EOFError:
            return
        allow(allowed.cpu)
        send(outbox, place.carry_out(order))
        sys.stdout.flush()


def _take_pipes() -> tuple[int, int]:
    """Take over the pipes to the node, and leave job code an empty input and the log."""
    inbox, outbox = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    os.close(nowhere)
    return inbox, outbox


def _end_with_the_node(inbox: int) -> None:
    """Wait until the node's end of the pipe is closed, then end, with every child of job code."""
    watch = select.poll()
    watch.register(inbox, 0)  # nothing but "hung up"
    watch.poll()
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
