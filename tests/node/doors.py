"""Nodes in processes of their own: their folder, and the way to the server of the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_federation as ff
import node_process
import pytest

from atoll.node.datasets import Datasets
from atoll.node.home import Home


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
    Datasets(Home(folder / name).datasets).add("sites", folder / f"{name}.csv")
    return folder / name
