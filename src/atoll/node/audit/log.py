"""A site's audit log: a line for each answer before its first byte leaves, and for what else its steward asks.

::

    audit/audit-000001.jsonl        lines, each with the hash of the one before it
    audit/audit-000001.jsonl.head   how many there are, signed with the site's key
    audit/audit-000002.jsonl        begins with how the first file ended, which says that it goes on here

A line is an object with ``what`` it tells:

============  ==========================================================================================
what          and beside it
============  ==========================================================================================
``begins``    the log, or ``continues`` (``file``, ``lines`` and ``digest`` of the file before, ``state``)
``joined``    ``federation``, ``site``, ``server``, ``server_key``; and ``left`` again
``dataset``   ``name`` and ``change``: registered, removed or changed; ``path``, ``columns`` and ``rule``
``approval``  ``request`` (digest) and ``decision``: approved or denied; ``by``, ``decided`` and ``reason``
``run``       ``job`` (hash), ``name``, ``by``, ``dataset``, ``aggregation`` of a ``run``, once
``answer``    :func:`atoll.node.audit.answers.described`
``withheld``  the ``answer`` of a ``task`` that was written down, and did not leave for a ``reason``
``goes on``   ``file``: the next one
============  ==========================================================================================

It is written by the node, and by ``join`` and ``leave`` while no node runs. The newest file is read when it is
opened, and the one before, so a long log costs a node no memory.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from atoll.core.errors import StorageError
from atoll.node.audit.segment import Segment
from atoll.node.journal import Reading, Signer, read_journal
from atoll.wire.disk import Disk, RealDisk

__all__ = ["LINES", "AuditLog", "check_link", "closed", "file_of", "files_in"]

LINES = 10_000
"""Lines of a file, some 5 MB; then the next one begins."""
_RECENT = 1000
"""Lines among which are those of answers that were on their way when the process before this one ended."""
_FILE = re.compile(r"audit-(\d{6,})\.jsonl")


class AuditLog:
    """The log in ``folder``. One process writes it; any of its threads may.

    Args:
        folder: its own.
        signer: the site's identity.
        disk: where it lies.
        most: lines of a file.
        now: seconds since 1970.

    Raises:
        StorageError: it is not as it was written (the message names the line), or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        signer: Signer,
        disk: Disk | None = None,
        *,
        most: int = LINES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._signer, self._most, self._now = folder, signer, most, now
        self._disk: Disk = RealDisk() if disk is None else disk
        self._lock = threading.RLock()
        self._answers: dict[str, dict[str, tuple[Segment, int]]] = {}
        self._waits: dict[tuple[str, str], Callable[[], None]] = {}
        self._runs: dict[str, Mapping[str, Any]] = {}
        self._federation: Mapping[str, Any] = {}
        self._datasets: dict[str, str] = {}
        self._decisions: dict[str, str] = {}
        self._unsure = False  # whether rare lines may not be durable
        self._next: Segment | None = None
        self._disk.make_folder(folder)
        self._number = max(files_in(folder, self._disk), default=1)
        self._segment = self._opened()

    # Answers ------------------------------------------------------------------------------------

    def answer(
        self, task: str, sha256: str, body: Mapping[str, Any], *, durable: bool = True
    ) -> None:
        """Write down an answer; :meth:`secured` waits until the line is durable. The same again is no new line.

        Args:
            task: its task.
            sha256: of its bytes.
            body: what is told of it.
            durable: whether its line is waited for; else it survives the end of this process, and that of
                the machine from the next line on that is waited for, or :meth:`anchor`.

        Raises:
            StorageError: it could not be written; the answer may not leave. Trying again is safe.
        """
        with self._lock:
            if sha256 in self._answers.get(task, {}):
                return
            number = self._write(body)
            known = self._answers.setdefault(task, {})
            known[sha256] = self._segment, number if durable else 0
            if durable:
                self._waits[task, sha256] = self._segment.begin_sync()

    def secured(self, task: str, sha256: str) -> bool:
        """Wait until the line of an answer survives any crash; False where there is none.

        Raises:
            StorageError: it may not survive one; the answer may not leave. Trying again is safe.
        """
        with self._lock:
            wait = self._waits.pop((task, sha256), None)
            line = self._answers.get(task, {}).get(sha256)
        if wait is not None:
            with suppress(StorageError):  # another try, which tells
                wait()
        if line is not None:
            segment, number = line
            segment.sync(number)
        return line is not None or self._written(task, sha256)

    def withheld(self, task: str, sha256: str, body: Mapping[str, Any]) -> None:
        """Write down why an answer stays after all, once.

        Raises:
            StorageError: it could not be written.
        """
        with self._lock:
            known, mark = self._answers.setdefault(task, {}), f"withheld {sha256}"
            if mark not in known:
                known[mark] = self._segment, self._write(body)

    def run(self, run: str, facts: Mapping[str, Any]) -> None:
        """Say what a run is, unless that has been said.

        Raises:
            StorageError: it could not be written.
        """
        with self._lock:
            if self._runs.get(run) != facts:
                self._write({"what": "run", "run": run, **facts})
                self._runs[run] = facts

    def settle(self, task: str) -> None:
        """No more is asked of a task: its answers need not be known by heart."""
        with self._lock:
            for sha256 in self._answers.pop(task, {}):
                self._waits.pop((task, sha256), None)

    def end(self, run: str) -> None:
        """The same of a run that is over."""
        with self._lock:
            self._runs.pop(run, None)
            for task in [name for name in self._answers if name.partition(".")[0] == run]:
                self.settle(task)

    # What else happens --------------------------------------------------------------------------

    def joined(self, federation: Mapping[str, Any]) -> None:
        """Say, durably, for which federation this site works, unless that has been said.

        Raises:
            StorageError: it could not be written.
        """
        with self._lock:
            if self._federation != federation:
                self._rare({"what": "joined", **federation})
                self._federation = dict(federation)
            self._sure()

    def left(self) -> None:
        """Say, durably, that it works for that one no more.

        Raises:
            StorageError: it could not be written.
        """
        with self._lock:
            self._rare({"what": "left", **self._federation})
            self._federation = {}
            self._sure()

    def register(self, datasets: Mapping[str, Mapping[str, Any]]) -> None:
        """Say, durably, what has changed in the register of datasets since that was last said.

        Args:
            datasets: all that are registered, by name: ``path``, ``columns`` and ``rule``.

        Raises:
            StorageError: it could not be written.
        """
        with self._lock:
            now = {name: _digest(plain) for name, plain in datasets.items()}
            for name in sorted(now.keys() | self._datasets.keys()):
                if name not in now:
                    self._rare({"what": "dataset", "change": "removed", "name": name})
                    del self._datasets[name]
                elif now[name] != self._datasets.get(name):
                    change = "changed" if name in self._datasets else "registered"
                    told = {"what": "dataset", "change": change, "name": name, **datasets[name]}
                    self._rare(told)
                    self._datasets[name] = now[name]
            self._sure()

    def decided(self, request: str, approved: bool, by: str, decided: float, reason: str) -> None:
        """Say, durably, what a steward has decided of a request, unless that was said.

        Args:
            request: its digest.
            approved: yes or no.
            by: who decided.
            decided: when, in seconds since 1970.
            reason: for the researcher.

        Raises:
            StorageError: it could not be written.
        """
        said = {"by": by, "decided": decided, "reason": reason}
        body = {"request": request, "decision": "approved" if approved else "denied", **said}
        with self._lock:
            if self._decisions.get(request) != (now := _digest(body)):
                self._rare({"what": "approval", **body})
                self._decisions[request] = now
            self._sure()

    def _rare(self, body: Mapping[str, Any]) -> None:
        """Write a line that is rare; :meth:`_sure` waits for it."""
        self._write(body)
        self._unsure = True

    def _sure(self) -> None:
        """Make rare lines durable, those included that an earlier try has written and the disk may not have.

        Raises:
            StorageError: they may not be. Trying again is safe.
        """
        if self._unsure:
            self.anchor()
            self._unsure = False

    def anchor(self) -> None:
        """Make durable what is written, and move the signed head there; answers need not wait for this.

        Raises:
            StorageError: it could not be written.
        """
        with self._lock:
            segment = self._segment
        segment.sync(segment.count)
        segment.anchor()

    # Files --------------------------------------------------------------------------------------

    def _write(self, body: Mapping[str, Any]) -> int:
        """Write a line with its time; the number it has in the present file."""
        if self._segment.count >= self._most:
            self._go_on()
        return self._segment.write({"at": round(self._now(), 3), **body})

    def _go_on(self) -> None:
        """Begin the next file; where that ends in the middle, it is taken up again."""
        old, number = self._segment, self._number + 1
        if self._next is None:
            path = file_of(self._folder, number)
            found = read_journal(path, self._signer.public_bytes, self._disk)
            new = Segment(path, self._signer, self._disk, found)
            old.sync(old.count)
            if not found.digests:
                new.append(self._continuing(old))
            old.write(self._closing(path))
            self._next = new
        old.sync(old.count)
        old.anchor()
        self._segment, self._next, self._number = self._next, None, number

    def _continuing(self, old: Segment) -> Mapping[str, Any]:
        state = {
            "federation": self._federation,
            "datasets": self._datasets,
            "decisions": self._decisions,
        }
        end = {"file": old.path.name, "lines": old.count, "digest": old.last}
        return {"at": round(self._now(), 3), "what": "continues", **end, "state": state}

    def _closing(self, path: Path) -> Mapping[str, Any]:
        return {"at": round(self._now(), 3), "what": "goes on", "file": path.name}

    def _opened(self) -> Segment:
        """The newest file, after what a crash has left of going on to it was mended."""
        key, number = self._signer.public_bytes, self._number
        path, earlier = file_of(self._folder, number), file_of(self._folder, number - 1)
        before = read_journal(earlier, key, self._disk)
        found = read_journal(path, key, self._disk)
        if closed(found):
            raise missing(file_of(self._folder, number + 1))
        if number > 1 and not found.digests:
            if closed(before) or not before.digests:
                raise missing(path if before.digests else earlier)
            # Nothing is lost: the one before has not said that it goes on.
            self._number, path, found, before = number - 1, earlier, before, Reading()
        elif before.digests:
            check_link(path, found, earlier, before)
            if not closed(before):
                Segment(earlier, self._signer, self._disk, before).append(self._closing(path))
        made = Segment(path, self._signer, self._disk, found)
        if not found.digests:
            begins = {"what": "begins", "key": key.hex()}
            made.append({"at": round(self._now(), 3), **begins})
        bodies = (*before.bodies, *found.bodies)
        for body in bodies:
            self._learn(body)
        for body in bodies[-_RECENT:]:
            if body.get("what") == "answer":
                self._answers.setdefault(body["task"], {})[body["answer"]] = made, 0
        return made

    def _learn(self, body: Mapping[str, Any]) -> None:
        """Know what a line that was written before says of the site."""
        what = body.get("what")
        if what == "continues":
            self._federation = body["state"]["federation"]
            self._datasets = dict(body["state"]["datasets"])
            self._decisions = dict(body["state"]["decisions"])
        elif what in ("joined", "left"):
            plain = {key: value for key, value in body.items() if key not in ("at", "what")}
            self._federation = plain if what == "joined" else {}
        elif what == "dataset" and body["change"] == "removed":
            self._datasets.pop(body["name"], None)
        elif what == "dataset":
            keys = body.keys() - {"at", "what", "change", "name"}
            self._datasets[body["name"]] = _digest({key: body[key] for key in keys})
        elif what == "approval":
            said = {key: value for key, value in body.items() if key not in ("at", "what")}
            self._decisions[body["request"]] = _digest(said)
        elif what == "run":
            facts = {k: v for k, v in body.items() if k not in ("at", "what", "run")}
            self._runs[body["run"]] = facts

    def _written(self, task: str, sha256: str) -> bool:
        """Whether an earlier process has written down an answer, in whichever file."""
        for number in reversed(files_in(self._folder, self._disk)):
            raw = bytes(self._disk.view(file_of(self._folder, number)))
            named = (line for line in raw.splitlines() if sha256.encode() in line)
            if any(_names(line, task, sha256) for line in named):
                return True
        return False


# How ------------------------------------------------------------------------------------------------


def file_of(folder: Path, number: int) -> Path:
    """A file of a log, by its number from 1."""
    return folder / f"audit-{number:06}.jsonl"


def files_in(folder: Path, disk: Disk) -> tuple[int, ...]:
    """Numbers of a log's files, in order."""
    return tuple(sorted(int(m[1]) for n in disk.names(folder) if (m := _FILE.fullmatch(n))))


def closed(found: Reading) -> bool:
    """Whether the last line of a file says that there is another one."""
    return bool(found.bodies) and found.bodies[-1].get("what") == "goes on"


def missing(path: Path) -> StorageError:
    """The error of a file that is not there."""
    return StorageError(
        f"{path}, line 1: the file is missing", remedy="put it back, with its head beside it"
    )


def check_link(path: Path, found: Reading, earlier: Path, before: Reading) -> None:
    """Refuse a file that is not the continuation of the one before it.

    Raises:
        StorageError: with the line where that shows.
    """
    said = found.bodies[0] if found.bodies else {}
    count, lines = said.get("lines", 0), len(before.digests) - closed(before)
    if said.get("what") != "continues" or said.get("file") != earlier.name:
        raise StorageError(f"{path}, line 1: does not continue {earlier.name}")
    if lines != count or before.digest(count) != said.get("digest"):
        line = min(count, lines) + (lines != count)
        raise StorageError(
            f"{earlier}, line {line}: is not what {path.name} continues", remedy="put both back"
        )


def _digest(plain: Mapping[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _names(line: bytes, task: str, sha256: str) -> bool:
    try:
        body = json.loads(line)
    except ValueError:  # the torn end of a file that was never told of
        return False
    told = body.get("what"), body.get("task"), body.get("answer")
    return bool(told == ("answer", task, sha256))
