"""One run's folder in the spool: what its files are called, how they get there, what is found of them later.

::

    run.json                      what holds for the whole run at this site
    <task>-<sha256>.result        one finished result, the very frame that is sent
    <task>-<sha256>.fresh         the same, which a failing machine may still lose
    <task>-<sha256>.memory        the client's memory after that task
    spares/                       files that nobody needs, to be written over by the run's next ones

A name says what the file must hold, so damage is found, not trained on. Each file is written beside, synced,
renamed and its folder synced. A result without a memory has its digest's name, as a fresh one, before it is
synced, so that the disk is waited for once for both; a fresh one that is not whole after a stop was never
handed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from atoll.core.errors import StorageError, WireError
from atoll.wire.disk import Disk, keep
from atoll.wire.frames import Allowed, Blob, read_header

__all__ = ["ANY", "Held", "Kind", "RunFolder", "RunRecord", "folder_name"]

ANY = Allowed(most_arrays=10_000, most_bytes=1 << 46)
"""Results and memories of any shape: this site has made them."""

Kind = Literal["result", "fresh", "memory"]
"""What a file of a task is; its ending says so."""

_RUN = "run.json"
_REMEDY = (
    "move the run's folder away; its finished work is then done anew, and a run that keeps memories "
    "at its clients (SCAFFOLD, personal models) cannot go on with this site"
)


@dataclass(frozen=True)
class Held:
    """One finished result.

    Args:
        task: id of the task.
        run: id of its run.
        blob: digest and size of the frame.
        path: where it lies.
    """

    task: str
    run: str
    blob: Blob
    path: Path


@dataclass(frozen=True)
class RunRecord:
    """What the spool knows of a run.

    Args:
        run: its id.
        digest: SHA-256 of the dataset's file; empty before it was read.
        stateful: whether any task has left a memory; None before the first training.
        results, memories: file by task.
    """

    run: str
    digest: str = ""
    stateful: bool | None = None
    results: Mapping[str, Held] = field(default_factory=dict)
    memories: Mapping[str, Path] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """What is written down; which files there are is seen from the folder."""
        return {"run": self.run, "digest": self.digest, "stateful": self.stateful}


def folder_name(run: str) -> str:
    """What the folder of a run is called: its id, where that can be a name.

    >>> folder_name("r1"), folder_name("a/b"), len(folder_name(".."))
    ('r1', 'a%2Fb', 24)
    """
    name = quote(run, safe="")
    return _short(run) if len(name) > 150 or name.startswith(".") else name


class RunFolder:
    """The files in ``path``; whoever uses it sees to it that there is one thread at a time.

    Args:
        disk: where it lies.
        path: of the folder, which need not be there.
    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk, self.path = disk, path
        self._spares = path / "spares"

    def make(self) -> None:
        """Make the folder.

        Raises:
            StorageError: it cannot be made.
        """
        self._disk.make_folder(self.path)

    def note(self, record: RunRecord, by: Path) -> None:
        """Write down what holds for the whole run, durably.

        Args:
            record: what holds.
            by: where to write before the name is given, on the same disk.

        Raises:
            StorageError: it cannot be written.
        """
        self.make()
        keep(self._disk, self.path / _RUN, [json.dumps(record.to_plain()).encode()], by=by)

    # Files of tasks -----------------------------------------------------------------------------

    def move_in(self, aside: Path, task: str, blob: Blob, kind: Kind) -> Path:
        """Give a file that lies beside its name here; :meth:`make_durable` is still to come.

        Raises:
            StorageError: it is still where it was.
        """
        path = self.path / f"{_short(task)}-{blob.sha256}.{kind}"
        if kind != "fresh":
            self._disk.fsync(aside)
        self._disk.rename(aside, path)
        return path

    def make_durable(self, path: Path, *, wait: bool = True) -> Path:
        """Make what was moved in last through any crash, a fresh file if it may ``wait``.

        Returns:
            what it is called from then on.

        Raises:
            StorageError: it may be lost yet; trying again is safe.
        """
        if path.suffix != ".fresh":
            self._disk.fsync_folder(self.path)
        elif wait:
            self._disk.fsync_named(path)
            durable = path.with_suffix(".result")
            self._disk.rename(path, durable)  # from now on what is not whole is damage
            return durable
        return path

    def reuse(self, path: Path) -> None:
        """Let a file, here or beside, be written over one that an earlier task of the run left."""
        self._disk.reuse(path, self._spares)

    def retire(self, path: Path) -> None:
        """Remove a file, here or beside; that it may come back after a power failure does no harm."""
        self._disk.retire(path, self._spares)

    def close(self) -> None:
        """Remove what is left when no file of a task is.

        Raises:
            StorageError: not all of it is removed.
        """
        # Only when they are gone for good: files without their run.json would count as damage.
        self._disk.fsync_folder(self.path)
        self._sweep()
        self._disk.remove(self.path / _RUN)

    def _sweep(self) -> None:
        for name in self._disk.names(self._spares):
            self._disk.remove(self._spares / name)

    # After a stop -------------------------------------------------------------------------------

    def recovered(self) -> tuple[RunRecord, Mapping[Path, int]] | None:
        """What is here of the run, all of it durable, and bytes by file; None where nothing is.

        Raises:
            StorageError: a file is damaged, or the folder cannot be read.
        """
        self._sweep()
        names = self._whole()
        files = [name for name in names if name.endswith((".result", ".fresh", ".memory"))]
        if _RUN not in names:
            if files:
                raise StorageError(f"{self.path} holds results but no run.json", remedy=_REMEDY)
            return None  # made, or emptied, when the machine stopped
        record = self._record()
        results: dict[str, Held] = {}
        memories: dict[str, Path] = {}
        sizes: dict[Path, int] = {}
        for name in files:
            path = self.path / name
            task, blob = self._checked(path)
            if name.endswith(".memory"):
                memories[task] = path
            else:
                results[task] = Held(task, record.run, blob, path)
            sizes[path] = blob.size
            if name.endswith(".fresh"):
                self._disk.fsync(path)
        # What an earlier process has named, and not synced, is here for good from now on.
        self._disk.fsync_folder(self.path)
        found = RunRecord(record.run, record.digest, record.stateful, results, memories)
        return found, sizes

    def _whole(self) -> list[str]:
        """Names in the folder; results that the disk never got in full are removed."""
        names = []
        for name in self._disk.names(self.path):
            if name.endswith(".fresh") and not self._intact(self.path / name):
                self._disk.remove(self.path / name)
            else:
                names.append(name)
        return names

    def _intact(self, path: Path) -> bool:
        raw = self._disk.view(path)
        return path.stem.rpartition("-")[2] == hashlib.sha256(raw).hexdigest()

    def _record(self) -> RunRecord:
        path = self.path / _RUN
        try:
            raw = json.loads(self._disk.read(path))
            made = RunRecord(raw["run"], raw["digest"], raw["stateful"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path} is damaged", remedy=_REMEDY) from error
        if self.path.name != folder_name(made.run):
            raise StorageError(
                f"{path} belongs to another run, {made.run!r}", remedy="put it back to its folder"
            )
        return made

    def _checked(self, path: Path) -> tuple[str, Blob]:
        """Task and name of a file's bytes, which must be those it was written with."""
        raw = self._disk.view(path)
        blob = Blob(hashlib.sha256(raw).hexdigest(), len(raw))
        try:
            task = str(read_header(raw, ANY).body["task"])
        except (WireError, KeyError):
            task = ""
        if path.name.rpartition(".")[0] != f"{_short(task)}-{blob.sha256}":
            raise StorageError(
                f"{path} is damaged: {len(raw)} bytes that are not those written", remedy=_REMEDY
            )
        return task, blob


def _short(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]
