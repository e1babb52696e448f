"""What a node and its worker process say to each other, and how it crosses the pipe.

A message is its length (8 bytes, little-endian) and a frame (:mod:`atoll.wire.frames`) without arrays;
models, updates and memories lie in files that it names. The worker runs job code, so the node believes
nothing that comes from it: schemas are closed and lengths limited.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from atoll.core.errors import WireError
from atoll.node.datasets import Dataset
from atoll.node.near import Seen
from atoll.node.rules import Rule
from atoll.wire.frames import HEADER_LIMIT, Allowed, decode, encode, open_frame
from atoll.wire.messages import BlobRef, Message, ResultBody, TaskBody, read_body

__all__ = [
    "DatasetBody",
    "Order",
    "Report",
    "check_memory",
    "done_only",
    "named",
    "read_result",
    "receive",
    "send",
]

_MOST = HEADER_LIMIT + 64
"""Bytes of a message."""
_ANY = Allowed(most_arrays=10_000, most_bytes=1 << 46)
_DIGEST = r"^([0-9a-f]{64})?$"


class DatasetBody(Message):
    """A :class:`~atoll.node.datasets.Dataset` on its way to the worker."""

    name: str
    path: str
    missing: list[str]
    columns: dict[str, str]
    rule: dict[str, Any] = Field(default_factory=dict)
    queries: str = ""

    @property
    def dataset(self) -> Dataset:
        """As the rest of the program knows it."""
        rule = Rule.from_plain(self.rule)
        return Dataset(self.name, self.path, tuple(self.missing), self.columns, rule, self.queries)


class Order(Message):
    """One task for the worker, with everything it needs: a fresh worker can carry out any.

    Args:
        task: as the server gave it.
        plan: file of the run's plan.
        code: files of the job's own code by the names that the job gives them.
        broadcast: file of the broadcast; empty for none.
        memory: file of the client's memory; empty for none.
        result: file of the result: for the worker the one it writes, for the node the copy of that.
        keep: file of the client's new memory, likewise.
        dataset: what to compute on.
        digest: SHA-256 that the dataset's file must have; empty where this run sees it for the first time.
    """

    task: TaskBody
    plan: str
    code: dict[str, str] = Field(default_factory=dict)
    broadcast: str = ""
    memory: str = ""
    result: str
    keep: str
    dataset: DatasetBody
    digest: Annotated[str, Field(pattern=_DIGEST)] = ""


class Report(Message):
    """The worker's answer: the result lies in the file that the order named.

    Args:
        task: id of the task.
        kept: whether a new memory was written.
        digest: SHA-256 of the dataset's file; empty where it was not read.
        values: of an update to which the job's noise is added; 0 where there is none, or not yet.
    """

    task: str
    kept: bool
    digest: Annotated[str, Field(pattern=_DIGEST)] = ""
    values: Annotated[int, Field(ge=0)] = 0


def _at_once() -> None:
    """Reading waits by itself."""


def send(descriptor: int, message: Message, patience: float = 0.0) -> None:
    """Write one message.

    Args:
        descriptor: where to; if it does not wait, this does.
        message: what to write.
        patience: seconds for the other side to read some of it, where ``descriptor`` does not wait.

    Raises:
        TimeoutError: it read nothing for so long.
        OSError: the other side is gone.
    """
    raw = encode(message.model_dump())
    left = memoryview(len(raw).to_bytes(8, "little") + raw)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError as error:
            space = select.poll()
            space.register(descriptor, select.POLLOUT)
            if not space.poll(1000 * patience):
                raise TimeoutError("nobody reads the pipe") from error


def receive(descriptor: int, wait: Callable[[], None] = _at_once) -> dict[str, Any]:
    """Read one message's body.

    Args:
        descriptor: where from.
        wait: called before each read; it may wait for that, or raise.

    Raises:
        EOFError: the other side is gone.
        WireError: what it wrote is no message.
    """
    size = int.from_bytes(_exactly(descriptor, 8, wait), "little")
    if size > _MOST:
        raise WireError(f"a message of {size} bytes from a worker: at most {_MOST} are allowed")
    return decode(_exactly(descriptor, size, wait), Allowed())[0]


def _exactly(descriptor: int, size: int, wait: Callable[[], None]) -> bytes:
    parts: list[bytes] = []
    while size:
        wait()
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise EOFError("the pipe is closed")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def named(body: TaskBody) -> list[BlobRef]:
    """Everything a task names."""
    refs = [body.plan, *body.code.values(), body.broadcast, body.said]
    return [ref for ref in refs if ref is not None]


def done_only(body: ResultBody) -> bytes:
    """A result that says how the work went and nothing of what came of it."""
    said = ResultBody(task=body.task, status=body.status, reason=body.reason, seconds=body.seconds)
    return encode(said.model_dump())


def check_memory(path: Path, task: str) -> None:
    """Look whether a worker has written a memory that the spool can keep, and find again.

    Args:
        path: where it lies.
        task: its task.

    Raises:
        WireError: it is none, or that of another task.
        StorageError: it cannot be read.
    """
    if open_frame(path, _ANY)[0].get("task") != task:
        raise WireError("a memory that is not of its task")


def read_result(seen: Seen, task: str) -> ResultBody:
    """The body of a worker's result.

    Args:
        seen: where it lies, and its bytes where they have been read.
        task: its task.

    Raises:
        WireError: it is none, or that of another task.
        StorageError: it cannot be read.
    """
    told, _ = open_frame(seen.path, _ANY) if seen.raw is None else decode(seen.raw, _ANY)
    body = read_body(ResultBody, told)
    if body.task != task:
        raise WireError(f"it is that of {body.task!r:.100}")
    return body
