"""Ports for the servers of tests, which nothing else on the machine is given by chance.

Where a test lets the system choose a port and lets go of it, any connection of any process may have that port
a moment later: the server that was to listen there, or to come back there, fails then. These ports lie below
those that the system gives away (from 32,768 on Linux, from 49,152 elsewhere), and no process names one twice.
"""

from __future__ import annotations

import random
import socket
from itertools import count

_PORTS = range(20_000, 32_000)
_FIRST = random.SystemRandom().randrange(len(_PORTS))  # processes begin at different places
_TURNS = count()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    for _ in _PORTS:
        port = _PORTS[(_FIRST + next(_TURNS)) % len(_PORTS)]
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError(f"all ports of {_PORTS} are taken")
