"""Becomes another user once all that commands need has been read: that user may not be able to read it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import typer.rich_utils  # noqa: F401 read late by commands that fail

import atoll.server.web.serving  # noqa: F401 read when a server starts
from atoll.cli.main import main
from atoll.node.home import Federation, Home
from atoll.server import admin
from atoll.wire.identity import Identity

NOBODY = 65534


def found(folder: Path) -> None:
    """A node's folder and a server's."""
    home = Home(folder / "node")
    home.join(Federation("lagoon-1", "east", "127.0.0.1:9", "ab" * 32, "cd" * 32, 1.5))
    Identity.create(home.identity)
    admin.found(folder / "server", admin.Founding("x", "127.0.0.1:9"), time.time())


def command() -> None:
    """``atoll``, run by nobody."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    sys.exit(main(sys.argv[1:]))


def _read_all() -> None:
    """Run commands on folders of one's own: whatever they need has then been read."""
    with (
        tempfile.TemporaryDirectory(prefix="atoll-spare-", dir="/tmp") as spare,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        found(Path(spare))
        node, server = ["--home", f"{spare}/node"], ["--home", f"{spare}/server"]
        for words in (
            *(["node", "status", *node], ["node", "peers", *node], ["node", "data", "list", *node]),
            ["node", "server", "--address", "127.0.0.1:9", *node],
            ["node", "start", "--home", "/dev/null"],
            *(["server", "status", *server], ["server", "invite", "x", *server]),
            ["server", "change", f"{spare}/server", "--renew"],
            ["server", "init", f"{spare}/server"],
            *(["doctor", *node], ["doctor", "--server", f"{spare}/server"]),
        ):
            main(words)


if __name__ != "__main__" and os.getuid() == 0:
    _read_all()
