"""What a run's room shows of the node's cache: the files that its present order names, and no others.

The cache holds the plans, code and models of all runs. A run's worker sees a folder of its own instead, in
which the node gives those files second names while an order is carried out.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from atoll.node.orders import Order

__all__ = ["View", "view_of"]

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)
"""Why a file may get no second name: it lies on another disk, is another user's, or the disk knows none."""


def view_of(folder: Path) -> Path:
    """Where the worker with this folder sees what it is shown; job code cannot write there."""
    return folder.with_name(f"{folder.name}.in")


class View:
    """The view of one worker.

    Args:
        folder: of the worker.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = view_of(folder)
        self._folder.mkdir(parents=True, mode=0o700)
        self._places: dict[str, str] = {}

    def show(self, files: Iterable[str]) -> None:
        """Show these files, and nothing that was shown before.

        A file whose second name is gone can be written over again (:mod:`atoll.wire.spares`).

        Raises:
            OSError: the disk does not take their names.
        """
        self._places.clear()
        folder = str(self._folder)
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        for path in set(files):
            place = os.path.join(folder, os.path.basename(path))
            try:
                os.link(path, place)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                shutil.copyfile(path, place)
            self._places[path] = place

    def seen(self, order: Order) -> Order:
        """An order with the names that what is shown has in the room."""
        told = {"plan": self._seen(order.plan), "broadcast": self._seen(order.broadcast)}
        code = {name: self._seen(path) for name, path in order.code.items()}
        return order.model_copy(update={**told, "code": code})

    def _seen(self, path: str) -> str:
        return self._places.get(path, path)
