"""A server in a thread of the test's process, on the loopback interface."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from free_ports import free_port

from atoll.server import admin
from atoll.server.admin import Founding
from atoll.server.home import ServerHome
from atoll.server.web.limits import Limits
from atoll.server.web.serving import serve


@contextlib.contextmanager
def live(home: Path, limits: Limits | None = None):
    """Runs the server in ``home``, founded if need be, until the block ends."""
    if not (home / "server.json").exists():
        admin.found(home, Founding(address=f"127.0.0.1:{free_port()}"), time.time())
    up, found = threading.Event(), []

    def ready(running):
        found.append(running)
        up.set()

    asked = {"ready": ready, "limits": limits}
    thread = threading.Thread(target=serve, args=(ServerHome(home),), kwargs=asked)
    thread.start()
    try:
        assert up.wait(30)
        yield home
    finally:
        for running in found:
            running.stop(0)
        thread.join(30)
        assert not thread.is_alive()
