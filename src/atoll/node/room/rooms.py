"""What is in the room of a run's worker at this site; :mod:`atoll.node.room.sandbox` makes it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from atoll.core.errors import PolicyError
from atoll.node.datasets import Dataset, Datasets
from atoll.node.home import Home
from atoll.node.orders import Report
from atoll.node.room import sandbox, syscalls, usage
from atoll.node.room.process import Ended, Log, Worker
from atoll.node.room.sandbox import Room
from atoll.node.room.view import view_of
from atoll.node.settings import Limits
from atoll.node.site import Site
from atoll.wire.findings import Finding, fault, ok, warning
from atoll.wire.messages import TaskBody

__all__ = ["finding", "new_worker", "room_for"]

logger = logging.getLogger("atoll.node")

_WAYS = "allow user namespaces to the node's user, or start it as a service that may make them"


def new_worker(
    site: Site,
    body: TaskBody,
    folder: Path,
    log: Log,
    heard: Callable[[Worker, Report | Ended], None],
) -> Worker:
    """A worker for a run, in a room of its own where the machine can make one.

    Args:
        site: what all runs share.
        body: its first task.
        folder: its own.
        log: see :class:`~atoll.node.room.process.Worker`.
        heard: likewise.

    Raises:
        PolicyError: the site wants a room, and the machine makes none; or it works on as many runs as it may.
        AtollError: the dataset of the run cannot be looked up.
        OSError: no process can be started.
    """
    site.take_on(body.run)
    return Worker(folder, site.settings, log, heard, _room(site, body, folder))


def room_for(
    limits: Limits, home: Home, dataset: Dataset, folder: Path, reads: Sequence[str] = ()
) -> Room | None:
    """The room of a worker at this site; None where it is to have none, or the machine makes none.

    Args:
        limits: of job code.
        home: of the node; nothing of it is there but what is named here.
        dataset: the one that is there, of all that are registered.
        folder: the worker's own.
        reads: what else it may read.

    Raises:
        PolicyError: the site wants a room, and the machine makes none.
        AtollError: the datasets cannot be looked up.
        OSError: the folder cannot be written; or whether the machine makes rooms could not be found out.
    """
    if limits.sandbox == "off":
        return None
    if limits.sandbox == "on" and (why := sandbox.trouble() or syscalls.trouble()):
        raise PolicyError(
            f"job code is to run in a sandbox at this site, and none can be made: {why}",
            remedy=_WAYS,
        )
    if why := sandbox.trouble():
        _told(why)
        return None
    others = [
        one.path for one in Datasets(home.datasets).all().values() if one.path != dataset.path
    ]
    base = folder / "room"
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Room(
        folder=str(folder),
        base=str(base),
        reads=[dataset.path, *reads, *limits.reads],
        hides=[str(home.path.absolute()), *others],
        memory=limits.memory,
        processes=limits.processes,
    )


def _room(site: Site, body: TaskBody, folder: Path) -> Room | None:
    home, (dataset, _) = site.home, site.asked(site.cache.path(body.plan.blob))
    reads = [str(view_of(folder).absolute()), str(site.spool.place(body.run).absolute())]
    room = room_for(site.settings.limits, home, dataset, folder, reads)
    if room is None or body.code:
        return room
    queries = Path(dataset.queries).parent  # statistics bring no code, and note what they are asked
    queries.mkdir(parents=True, exist_ok=True, mode=0o700)
    return room.model_copy(update={"writes": [str(queries)]})


@functools.lru_cache
def _told(why: str) -> None:
    logger.warning("job code sees what the node's user sees: no sandbox can be made: %s", why)


def finding(limits: Limits) -> Finding:
    """Whether job code is shut in, for ``atoll doctor``."""
    if limits.sandbox == "off":
        return warning("sandbox", "job code sees what the node's user sees", 'sandbox = "auto"')
    worse = fault if limits.sandbox == "on" else warning
    try:
        room, filtered, counted = sandbox.trouble(), syscalls.trouble(), usage.trouble()
    except OSError as error:
        return worse(
            "sandbox", f"it was not found out whether one can be made: {error}", "look again"
        )
    rest = f"; {filtered}" if filtered else "; calls of the kernel are filtered"
    rest += f"; its limits hold for one process alone: {counted}" if counted else ""
    if room:
        return worse("sandbox", f"none can be made: {room}{rest}", _WAYS)
    seen = "job code sees its own dataset and run, no network, and nothing else of the node's"
    if filtered:
        return worse("sandbox", seen + rest, "run the node on a kernel with seccomp")
    if counted:
        return warning("sandbox", seen + rest, "set MemoryMax and TasksMax for the node's service")
    return ok("sandbox", seen + rest)
