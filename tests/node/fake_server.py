"""A server in this process, in place of the channel to a real one, whose four verbs it speaks."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote

import numpy as np

from atoll.core.errors import Equivocation, NotFound, Unreachable
from atoll.wire.frames import Allowed, Blob, decode, encode
from atoll.wire.messages import BlobRef, PollReply, ReceiptBody, ResultBody, TaskBody
from atoll.wire.news import NEWS, First, joined

ANY = Allowed(most_arrays=1000, most_bytes=1 << 40)


@dataclass
class FakeServer:
    """The server as one site sees it."""

    down: bool = False
    epoch: int = 1
    start: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    tasks: dict[str, TaskBody] = field(default_factory=dict)
    received: dict[str, bytes] = field(default_factory=dict)
    deliveries: list[tuple[str, str]] = field(default_factory=list)
    polls: list[tuple[str, ...]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    unsettled: set[str] = field(default_factory=set)
    over: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    ledgers: list[str] = field(default_factory=list)
    waiting: int = 0
    inline: bool = True
    together: bool = True
    leading: bool = True
    changed: threading.Condition = field(default_factory=threading.Condition)

    # What a test does ---------------------------------------------------------------------------

    def keep(self, raw: bytes) -> BlobRef:
        blob = Blob.of(raw)
        self.blobs[blob.sha256] = raw
        return BlobRef.of(blob)

    def offer(self, task: TaskBody) -> TaskBody:
        """Ask for a task; one that trains shows that what came before is committed."""
        with self.changed:
            if task.kind == "train":
                self.unsettled.clear()
            self.tasks[task.id] = task
            self.changed.notify_all()
        return task

    def end(self, run: str) -> None:
        """The run has ended."""
        with self.changed:
            self.over.add(run)
            self.unsettled.clear()
            self.tasks.clear()
            self.changed.notify_all()

    def lose(self, task: TaskBody) -> None:
        """An answer that was acknowledged is damaged: ask for it again, whoever says to have it."""
        with self.changed:
            del self.received[task.id]
            self.lost.add(task.id)
            self.tasks[task.id] = task
            self.changed.notify_all()

    def withdraw(self, task: str) -> None:
        with self.changed:
            self.tasks.pop(task, None)
            self.changed.notify_all()

    def result(self, task: str, seconds: float = 60.0) -> tuple[ResultBody, dict[str, Any]]:
        with self.changed:
            there = self.changed.wait_for(lambda: task in self.received, seconds)
        assert there, f"no answer to {task}; deliveries: {self.deliveries}"
        body, arrays = decode(self.received[task], ANY)
        return ResultBody.model_validate(body), arrays

    def wake(self) -> None:
        with self.changed:
            self.changed.notify_all()

    # What a node does ---------------------------------------------------------------------------

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
    ) -> SimpleNamespace:
        self._reachable()
        assert digest in (None, hashlib.sha256(body).digest())
        if path == "/v1/poll":
            raw, kept = self._told(query, *self._poll(query))
        elif path.startswith("/v1/results/"):
            self.ledgers += [head for head in parse_qs(query).get("ledger", ()) if head]
            receipt = self._take(unquote(path.removeprefix("/v1/results/")), body, kind)
            raw, kept = receipt.model_dump_json().encode(), "application/json"
            if self.together and "wait=" in query:
                news, small = self._poll(query)
                both = {"receipt": receipt.model_dump(), "news": news}
                raw, kept = self._told(query, both, small)
        else:
            raise NotFound(f"{method} {path}")
        return SimpleNamespace(status=200, headers={"content-type": kept}, body=raw, first=None)

    def _told(self, query: str, body: Any, blobs: Any) -> tuple[bytes, str]:
        """News, in the form that was asked for, if this server knows it."""
        if self.leading and "first=1" in query.split("&"):
            rest = dict(sorted(blobs.items(), key=lambda item: item[1].size))
            first = First(rest.popitem()[1].data) if rest else None  # the longest
            return joined(first, encode(body, rest))[0], NEWS
        return encode(body, blobs), "application/octet-stream"

    def download(self, blob: Blob, path: Path) -> None:
        self._reachable()
        if blob.sha256 not in self.blobs:
            raise NotFound("no such blob")
        path.write_bytes(self.blobs[blob.sha256])

    def upload(self, blob: Blob, path: Path, task: str) -> None:
        self._reachable()
        raw = path.read_bytes()
        assert hashlib.sha256(raw).hexdigest() == blob.sha256
        self.uploads.append(task)
        self.blobs[blob.sha256] = raw

    def _reachable(self) -> None:
        if self.down:
            raise Unreachable("the server does not answer")

    def _poll(self, query: str) -> tuple[dict[str, Any], dict[str, Any]]:
        values = parse_qs(query, keep_blank_values=True)
        have = {t for t in values["have"][0].split(",") if t}
        self.polls.append(tuple(sorted(have)))

        def news() -> tuple[list[TaskBody], list[str]]:
            return (
                [t for name, t in self.tasks.items() if name not in have or name in self.lost],
                sorted(t for t in have if self._gone(t)),
            )

        with self.changed:
            self.waiting += 1
            self.changed.wait_for(lambda: any(news()) or self.down, float(values["wait"][0]))
            self.waiting -= 1
            self._reachable()
            tasks, gone = news()
        ledger = max(self.ledgers, key=lambda head: int(head.partition(".")[0]), default="")
        reply = PollReply(tasks=tasks, gone=gone, epoch=self.epoch, start=self.start, ledger=ledger)
        small = {}
        if self.inline:
            named = [ref for t in tasks for ref in (t.plan, t.broadcast, *t.code.values()) if ref]
            small = {
                r.sha256: np.frombuffer(self.blobs[r.sha256], np.uint8)
                for r in named
                if r.size <= 1 << 20 and r.sha256 in self.blobs
            }
        return reply.model_dump(), small

    def _gone(self, name: str) -> bool:
        if "." not in name:
            return name in self.over
        return name not in self.tasks and name not in self.unsettled

    def _take(self, task: str, body: bytes, kind: str) -> ReceiptBody:
        if kind == "application/json":
            body = self.blobs[json.loads(body)["blob"]["sha256"]]
        sha256 = hashlib.sha256(body).hexdigest()
        with self.changed:
            self.deliveries.append((task, sha256))
            if task in self.received:
                if self.received[task] != body:
                    raise Equivocation(f"two answers to {task}")
                again = True
            elif task not in self.tasks:
                raise NotFound(f"nobody asks for {task}")
            else:
                again = False
                self.received[task] = body
                self.lost.discard(task)
                self.tasks.pop(task)
                self.unsettled.add(task)
            self.changed.notify_all()
        return ReceiptBody(task=task, sha256=sha256, again=again)
