"""A federation in one process whose sites encrypt: keys, ciphertexts and openings are the node's own code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import masked_sites as masked
import numpy as np
import played_sites as played

from atoll.core.errors import AtollError
from atoll.node.run_keys import RunKeys
from atoll.node.settings import Masking, Settings
from atoll.node.site import Site as NodeSite
from atoll.node.spool import Spool
from atoll.node.sums.encrypting import Encrypted
from atoll.node.sums.masking import SUBJECTS
from atoll.wire.frames import Blob, encode
from atoll.wire.messages import ResultBody, TaskBody

STEPS = ("train", "pledge", "open")


class EncryptedSite(masked.MaskedSite):
    """A site whose encrypted rounds are played by the node's own code.

    Attributes:
        lie: changes the arrays of what it says, given the task; None for an honest one.
        deceived: changes the arrays of what the server says to it, likewise.
        smallest: fewest sites in a cohort.
        sent: the arrays of its last answer of each kind.
        reasons: why it has not answered, by kind.
    """

    lie: Callable[[TaskBody, dict[str, Any]], None] | None = None
    deceived: Callable[[TaskBody, dict[str, Any]], None] | None = None
    smallest = 3

    def begin(self) -> None:
        super().begin()
        settings = Settings(masking=Masking(smallest=self.smallest))
        self.node = NodeSite(
            self.home,
            self.name,
            settings,
            SimpleNamespace(),
            Spool(self.home.spool, masked.QuickDisk()),
            SimpleNamespace(),
            lambda: 0.0,
            self.node.trust,
        )
        self.encrypted: dict[str, Encrypted] = {}
        self.sent: dict[str, dict[str, Any]] = {}
        self.reasons: dict[str, str] = {}

    def keys(self, run: str) -> bytes:
        return RunKeys(self.home.keys).key(run)

    def _work(self, service: Any, task: TaskBody) -> bytes:
        if task.said is None:
            return played.Site._work(self, service, task)
        if task.run not in self.encrypted:
            self.encrypted[task.run] = Encrypted(task.run, self.node, self.now)
        encrypted = self.encrypted[task.run]

        def find(blob: Blob) -> Path:
            path = self._file(service, blob)
            if self.deceived is None or blob != task.said.blob:
                return path
            body, arrays = played.decode(path.read_bytes(), played.EVERYTHING)
            changed = {name: np.array(array) for name, array in arrays.items()}
            self.deceived(task, changed)
            path = path.with_suffix(".other")
            path.write_bytes(encode(body, changed))
            return path

        try:
            held = encrypted.held(task, find)
            if held is None:
                assert task.kind in SUBJECTS
                self._begin_work(service, task, encrypted)
                held = encrypted.held(task, find)
            frame = self.node.spool.read(held)
        except AtollError as error:
            self.reasons[task.kind] = str(error)
            body = ResultBody(task=task.id, status="failed", reason=str(error)[:1000])
            return encode(body.model_dump())
        body, arrays = played.decode(frame, played.EVERYTHING)
        self.said.append((task.kind, body, len(frame)))
        changed = {name: np.array(array) for name, array in arrays.items()}
        if self.lie is not None:
            self.lie(task, changed)
            frame = encode(body, changed)
        self.sent[task.kind] = changed
        return frame


class EncryptedWorld(masked.MaskedWorld):
    """Such sites and their server; everybody has pinned everybody's key."""

    def site(self, name: str, table: Any) -> EncryptedSite:
        return EncryptedSite(name, table, self.home / "nodes" / name, lambda: self.time)
