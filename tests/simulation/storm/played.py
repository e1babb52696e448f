"""What a node is given in place of the outside: a channel, a worker process, a log that nobody reads."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from storm import kernel as k
from storm import work
from storm.front import receipt_in

from atoll.core.errors import AtollError, Unreachable
from atoll.node.orders import Order, Report
from atoll.node.room.process import Ended
from atoll.wire import transfers
from atoll.wire.frames import Allowed, Blob, decode, encode
from atoll.wire.messages import UploadReply, read_json
from atoll.wire.news import NEWS

if TYPE_CHECKING:
    from storm.nodes import Node

__all__ = ["Channel", "Log", "Worker", "new_worker"]

ANY = Allowed(most_arrays=100, most_bytes=1 << 30)
CHUNK = 400
"""Bytes of one part of an upload: small ones, so that there are several."""


class Log:
    """In place of a file."""

    def __init__(self, path: Path, most: int) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""


class Channel:
    """A node's words, over a network that loses some of them; in place of ``wire.https.Channel``."""

    def __init__(self, node: Node) -> None:
        self._node, self._world = node, node.world

    def call(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        body: bytes = b"",
        kind: str = "application/json",
        timeout: float = 60.0,
        digest: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> SimpleNamespace:
        world, node = self._world, self._node
        result = path.startswith("/v1/results/")
        if result and kind != "application/json":
            world.frames[hashlib.sha256(body).hexdigest()] = body
            node.misbehave(path, body)
        asked = {"content-type": kind, **(headers or {})}
        try:
            raw = world.network.ask(node.name, method, path, query, body, asked, timeout)
        except AtollError as error:
            if result:
                world.checks.told(node, path, error)
            raise
        kind = NEWS if path == "/v1/poll" else "application/json"
        if result:
            receipt, alone = receipt_in(raw)
            world.checks.acknowledged(node, receipt)
            if not alone:
                kind = NEWS
                world.count("news with a receipt")
        return SimpleNamespace(status=200, headers={"content-type": kind}, body=raw, first=None)

    def download(self, blob: Blob, path: Path) -> None:
        """With the real transfer: cut anywhere, it goes on from there."""
        world = self._world

        def fetch(at: int, write: Callable[[bytes], None]) -> int:
            span = {"range": f"bytes={at}-"}
            found = self.call("GET", f"/v1/blobs/{blob.sha256}", headers=span).body
            if world.chance("transfer cut"):
                part = found[: world.random.randint(0, len(found) - 1)]
                if part:
                    write(part)
                raise Unreachable("the connection broke")
            write(found)
            return len(found)

        transfers.download(blob, path, fetch)

    def upload(self, blob: Blob, path: Path, task: str) -> None:
        """With the real transfer; the file is on the node's disk."""
        world = self._world
        raw = self._node.disk.read(path)
        world.frames[hashlib.sha256(raw).hexdigest()] = raw
        copy = self._node.home.path / f"upload-{quote(path.name, safe='')}"
        copy.write_bytes(raw)
        where = f"/v1/uploads/{blob.sha256}"

        def put(at: int, chunk: bytes) -> int:
            query = f"task={quote(task, safe='')}&size={blob.size}&offset={at}"
            reply = self.call("PUT", where, query=query, body=chunk)
            if world.chance("transfer cut"):
                raise Unreachable("the connection broke")
            return read_json(UploadReply, reply.body).received

        received = read_json(UploadReply, self.call("GET", where).body).received
        transfers.upload(blob, copy, received, put)


class Worker:
    """A worker process: takes some time, writes its files to the node's disk, may end at any moment.

    Args:
        folder: where it writes.
        settings: not looked at.
        log: not written to.
        heard: told each report and the end.
    """

    numbers = itertools.count()

    def __init__(self, folder: Path, settings: Any, log: Log, heard: Callable[..., None]) -> None:
        process = k.kernel().process
        assert process is not None
        self.node: Node = process.owned
        self.folder = self.aside = folder  # it writes where the node would copy to
        self._heard = heard
        folder.mkdir(parents=True, exist_ok=True)
        with self.node.world.quiet():
            self.node.disk.make_folder(folder)
        self._over = False
        self.pid = process.number

    def order(self, order: Order) -> bool:
        if not self._over:
            k.Thread(target=lambda: self._work(order)).start()
        return not self._over

    def show(self, files: Any) -> None:
        """It sees everything."""

    def join(self, seconds: float) -> bool:
        return True

    def end(self, why: str = "") -> None:
        if not self._over:
            self._over = True
            ended = Ended(why or "was ended by the node")
            k.Thread(target=lambda: self._heard(self, ended)).start()

    def _work(self, order: Order) -> None:
        world = self.node.world
        k.kernel().wait(world.random.uniform(0.0, 2.0 * world.weather.breath))
        if world.chance("site slow"):
            k.kernel().wait(world.random.uniform(5.0, 60.0))
        if not self._over and world.chance("worker process ended"):
            self._over = True
            self._heard(self, Ended("was killed from outside"))
        if self._over:
            return
        with world.quiet():
            done = self._answered(order)
        fields = {**done.fields, "seconds": world.random.random()}  # made again, it is other bytes
        body = {"task": order.task.id, "status": "done", **fields}
        self._write(Path(order.result), encode(body, done.arrays))
        if done.memory:
            self._write(Path(order.keep), encode({"task": order.task.id}, done.memory))
        world.checks.worked(self.node, order.task.id)
        report = Report(task=order.task.id, kept=bool(done.memory), digest="ab" * 32)
        self._heard(self, report)

    def _answered(self, order: Order) -> work.Answer:
        plan = work.read_plan(Path(order.plan))
        model: work.Vectors = {}
        memory: work.Vectors = {}
        if order.broadcast:
            model = decode(Path(order.broadcast).read_bytes(), ANY)[1]
        if order.memory:
            memory = decode(self.node.disk.read(Path(order.memory)), ANY)[1]
        return work.answer(plan, order.task, model, memory)

    def _write(self, path: Path, raw: bytes) -> None:
        """To the node's disk, where the spool takes it from; and where its header is read."""
        path.write_bytes(raw)
        with self.node.world.quiet():
            self.node.disk.write(path, [raw])


def forged(frame: bytes, task: str, how: str) -> bytes:
    """What a malicious site makes of its own frame."""
    body, arrays = decode(frame, ANY)
    if how == "nan":
        arrays = {name: value * float("nan") for name, value in arrays.items()}
    elif how == "other task":
        body["task"] = task + "x"
    elif how == "weight":
        body["weight"] = 1e9
    elif how == "noise":
        return bytes(255 - byte for byte in frame)
    else:
        arrays = {name: value * 3 for name, value in arrays.items()}
        body["seconds"] = 77.0
    return encode(json.loads(json.dumps(body)), arrays)


def new_worker(site: Any, body: Any, folder: Path, log: Log, heard: Callable[..., None]) -> Worker:
    """In place of ``node.rooms.new_worker``: there are no processes, and no rooms for them."""
    return Worker(folder, site.settings, log, heard)
