"""Nodes in processes of their own: their folder, their start, and the way to the server of the test."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_federation as ff
import node_process
import pytest
from process_copies import Copy, Launcher

from atoll.node.datasets import Datasets
from atoll.node.home import Home
from atoll.wire.identity import Identity

READ = ("ledger_process", "node_process", "dp_accounting.pld.privacy_loss_distribution")
launcher: Callable[[], Launcher] | None = None
"""Copies a process that has read these modules; there while tests of this folder run."""


@contextmanager
def door_to(server: ff.FakeServer, folder: Path) -> Iterator[str]:
    """The server behind a socket that other processes of this user may use."""

    class Door(node_process.BaseManager):
        pass

    Door.register("server", callable=lambda: server)
    path = str(folder / "door")
    listener = Door(address=path, authkey=b"test").get_server()
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    try:
        yield path
    finally:
        listener.listener.close()


def _serve(listener: Any) -> None:
    with pytest.raises(SystemExit):  # how a manager's server ends
        listener.serve_forever()


def home_at(folder: Path, name: str, table: str) -> Path:
    """A node's folder with one dataset."""
    (folder / f"{name}.csv").write_text(table)
    home = Home(folder / name)
    Datasets(home.datasets).add("sites", folder / f"{name}.csv")
    Identity.create(home.identity)
    return folder / name


def node_in_a_process(kind: str, door: str, home: Path, point: str = "") -> Copy:
    """A node in a process of its own, which dies at ``point``.

    Args:
        kind: the module with its ``alone``.
        door: see :func:`door_to`.
        home: the node's folder; its log lies beside it.
        point: one of the module's ``POINTS``; empty to live on.
    """
    words = [kind, door, str(home), *([point] if point else [])]
    log = home.with_name(f"{home.name}.log")
    assert launcher is not None
    return launcher().start(f"{kind}:alone", words, log, os.environ)
