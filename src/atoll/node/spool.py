"""What a node must not lose: finished results until they are settled, and clients' memories.

::

    spool/<run>/              files of one run (:mod:`atoll.node.run_folder`)
    spool/.taking-<number>    being written; means nothing after a restart

A memory comes before the result that goes with it, so a result that is there has its memory. Results that
exist are never made again: what a server may have seen is sent again in the same bytes.

A long result need not be on the disk when it is taken over: it is brought to the server while the disk writes,
and handed in when both are done.

A run whose clients keep no memory writes none. ``run.json`` says so, so that a memory that is *lost*
is told from one that never was.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll.core.errors import StorageError
from atoll.node.near import Near, Seen
from atoll.node.run_folder import ANY, Held, Kind, RunFolder, RunRecord, folder_name
from atoll.wire.disk import Disk, RealDisk
from atoll.wire.frames import Blob, decode, encode, read_header

__all__ = ["Spool"]

_Frame = bytes | Path | Seen


class Spool:
    """The spool in ``folder``. Any thread may use it.

    Args:
        folder: its own.
        disk: where it lies.
        most: bytes of results and memories together; :attr:`full` beyond.

    Raises:
        StorageError: a file is damaged, or the folder cannot be read.
    """

    def __init__(self, folder: Path, disk: Disk | None = None, most: int = 1 << 40) -> None:
        self._folder, self._most = folder, most
        self._disk: Disk = RealDisk() if disk is None else disk
        self.near = Near(self._disk)  # short results, before they are here
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._runs: dict[str, RunRecord] = {}
        self._sizes: dict[Path, int] = {}
        self._halfway: dict[tuple[str, str, str], tuple[Blob, Path]] = {}
        self._disk.make_folder(folder)
        for name in self._disk.names(folder):
            if name.startswith("."):
                self._disk.remove(folder / name)
            else:
                self._recover(RunFolder(self._disk, folder / name))

    # Reading ------------------------------------------------------------------------------------

    @property
    def results(self) -> tuple[Held, ...]:
        """Every result that is not settled."""
        with self._lock:
            return tuple(held for run in self._runs.values() for held in run.results.values())

    @property
    def runs(self) -> tuple[str, ...]:
        """Every run of which something is here."""
        with self._lock:
            return tuple(self._runs)

    @property
    def used(self) -> int:
        """Bytes of results and memories."""
        with self._lock:
            return sum(self._sizes.values())

    @property
    def full(self) -> bool:
        """Whether no more work should be taken on."""
        return self.used >= self._most

    def result(self, run: str, task: str) -> Held | None:
        """The result of a task, if it is there."""
        with self._lock:
            found = self._runs.get(run)
            return None if found is None else found.results.get(task)

    def read(self, held: Held) -> bytes:
        """A result's bytes."""
        raw = self.near.take(held.blob)
        return self._disk.read(held.path) if raw is None else raw

    def memory(self, run: str, kept: str) -> Path | None:
        """Where the client's memory after the task ``kept`` lies; None where it keeps none.

        Raises:
            StorageError: it should be here and is not.
        """
        if not kept:
            return None
        with self._lock:
            found = self._runs.get(run)
            if found is not None and kept in found.memories:
                return found.memories[kept]
            if found is not None and found.stateful is False:
                return None
        raise StorageError(
            f"the client's memory after task {kept!r} is not at this site any more",
            remedy="restore the node's folder as it was, or start the run anew",
        )

    def digest(self, run: str) -> str:
        """SHA-256 of the dataset's file as this run first saw it; empty before."""
        with self._lock:
            found = self._runs.get(run)
            return "" if found is None else found.digest

    def header(self, held: Held) -> Mapping[str, Any]:
        """The body of a result.

        Raises:
            WireError: it is none.
            StorageError: it cannot be read.
        """
        return read_header(self._disk.view(held.path), ANY).body

    # Writing ------------------------------------------------------------------------------------

    def begin(self, run: str, digest: str) -> None:
        """Note what the run's dataset looks like.

        Raises:
            StorageError: the folder cannot be written.
        """
        with self._lock:
            found = self._runs.get(run) or RunRecord(run)
            if found.digest != digest:
                self._note(replace(found, digest=digest))

    def prepare(self, run: str, place: Path, trains: bool) -> tuple[Path, Path]:
        """Where a worker's result and memory are to be copied: over files that earlier tasks of the run left.

        Args:
            run: id of the run; no other run's files are used.
            place: path of both without the ending, where job code does not come; nothing is there.
            trains: whether the task trains, so that its files are as large as the last.
        """
        result, memory = (place.with_suffix(f".{kind}") for kind in ("result", "memory"))
        with self._lock:
            found = self._runs.get(run)
        if found is not None and trains:
            for path in (memory, result) if found.stateful else (result,):
                self._of(run).reuse(path)
        return result, memory

    def write(self, run: str, path: Path, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a file over one that an earlier task of the run left; :meth:`finish` takes it over.

        Args:
            run: id of the run; no other run's files are used.
            path: on the same disk.
            pieces: its bytes; each is written before the next is asked for.

        Raises:
            StorageError: it cannot be written.
        """
        self._of(run).reuse(path)
        self._disk.write(path, pieces)

    def retire(self, run: str, path: Path) -> None:
        """Let go of a file beside the spool, so that the run's next one may be written over it."""
        with self._lock:
            known = run in self._runs
        if known and path.exists():
            self._of(run).retire(path)
        else:
            self._disk.remove(path)

    def finish(
        self,
        run: str,
        task: str,
        frame: _Frame,
        *,
        memory: bytes | Path | None = None,
        before: str = "",
        trained: bool = False,
        wait: bool = True,
        named: Callable[[Blob], None] | None = None,
    ) -> Held:
        """Take over a finished result; when this returns it survives any crash.

        Args:
            run: id of the run.
            task: id of the task; what is there for it already stays as it is.
            frame: the result, or the file on the same disk that holds it, which is moved.
            memory: the client's memory after the task, likewise; None where it has none.
            before: the task whose memory it started from; kept under the new name where there is no new one.
            trained: whether the task trains, so that ``memory`` says whether clients keep any.
            wait: for the disk; else a result without memory is durable after
                :meth:`write_through`.
            named: told what the result's bytes are before they have their place here.

        Raises:
            StorageError: it cannot be written.
        """
        with self._lock:
            found = self._runs.get(run) or RunRecord(run)
            if task in found.results:
                return found.results[task]
            if trained:
                found = self._remember(found, task, memory, before)
            kind: Kind = "result" if task in found.memories else "fresh"
            blob, path = self._take(found, task, frame, kind, wait=wait, named=named)
            self._halfway = {k: v for k, v in self._halfway.items() if k[:2] != (run, task)}
            return self._hold(Held(task, run, blob, path))

    def write_through(self, held: Held) -> None:
        """Make a result durable that was taken over without waiting. Others need not wait for this.

        Raises:
            StorageError: it cannot be written; it is still there.
        """
        if held.path.suffix == ".fresh":
            self._disk.fsync_named(held.path)

    def _hold(self, held: Held) -> Held:
        found = self._runs.get(held.run) or RunRecord(held.run)
        self._runs[held.run] = replace(found, results={**found.results, held.task: held})
        return held

    def _remember(
        self, found: RunRecord, task: str, memory: bytes | Path | None, before: str
    ) -> RunRecord:
        old = found.memories.get(before)
        if memory is None and old is not None:
            _, arrays = decode(self._disk.view(old), ANY)
            memory = encode({"task": task}, arrays)
        stateful = memory is not None or bool(found.stateful)
        if stateful is not found.stateful:
            found = self._note(replace(found, stateful=stateful))
        if memory is None:
            return found
        _, path = self._take(found, task, memory, "memory")
        if (earlier := found.memories.get(task, path)) != path:
            self._drop(earlier)  # of a try that did not come to its result
        found = replace(found, memories={**found.memories, task: path})
        self._runs[found.run] = found
        return found

    def settle(self, run: str, task: str) -> None:
        """Let go of a result; a memory that goes with it stays."""
        with self._lock:
            self._give_up(run, task)
            found = self._runs.get(run)
            if found is None or task not in found.results:
                return
            self._drop(found.results[task].path)
            rest = {name: held for name, held in found.results.items() if name != task}
            self._runs[run] = replace(found, results=rest)

    def keep_memory(self, run: str, kept: str, pending: Collection[str]) -> None:
        """Let go of all memories of a run but that after ``kept`` and those of ``pending`` tasks.

        Nothing goes where ``kept`` has no memory here: an old message must not cost the newest one.
        What the disk does not remove stays for the next time: whoever wants to work must not wait for that.
        """
        with self._lock:
            found = self._runs.get(run)
            if found is None or kept not in found.memories:
                return
            rest = dict(found.memories)
            for task in rest.keys() - {kept, *pending}:
                with suppress(StorageError):
                    self._drop(rest[task])
                    del rest[task]
            self._runs[run] = replace(found, memories=rest)

    def end(self, run: str) -> None:
        """Let go of everything of a run."""
        with self._lock:
            self._give_up(run)
            found = self._runs.pop(run, None)
            if found is None:
                return
            for path in (*(h.path for h in found.results.values()), *found.memories.values()):
                self._drop(path)
            self._of(run).close()

    # How ----------------------------------------------------------------------------------------

    def place(self, run: str) -> Path:
        """The folder of a run, which is there from now on.

        Raises:
            StorageError: it cannot be made.
        """
        folder = self._of(run)
        folder.make()
        return folder.path

    def _of(self, run: str) -> RunFolder:
        return RunFolder(self._disk, self._folder / folder_name(run))

    def _note(self, found: RunRecord) -> RunRecord:
        """Write ``run.json``."""
        self._of(found.run).note(found, by=self._aside())
        self._runs[found.run] = found
        return found

    def _take(
        self,
        found: RunRecord,
        task: str,
        what: _Frame,
        kind: Kind,
        *,
        wait: bool = True,
        named: Callable[[Blob], None] | None = None,
    ) -> tuple[Blob, Path]:
        """Make bytes or a file durable under the name that says what they are, fresh ones if it may ``wait``.

        What an earlier try has moved, before the disk failed it, is not moved again: whoever tries again
        has it no more.
        """
        key = found.run, task, kind
        if key not in self._halfway:
            self._halfway[key] = self._moved(found, task, what, kind, named)
        blob, path = self._halfway[key]
        path = self._of(found.run).make_durable(path, wait=wait)
        self._sizes[path] = blob.size
        return blob, path

    def _moved(
        self,
        found: RunRecord,
        task: str,
        what: _Frame,
        kind: Kind,
        named: Callable[[Blob], None] | None,
    ) -> tuple[Blob, Path]:
        if found.run not in self._runs:
            self._note(found)
        if isinstance(what, bytes):
            blob, aside = Blob.of(what), self._aside()
            self._disk.write(aside, [what])
        else:
            seen = what if isinstance(what, Seen) else Seen(what)
            blob, aside = self.near.name(seen), seen.path
        try:
            if named is not None:
                named(blob)
            return blob, self._of(found.run).move_in(aside, task, blob, kind)
        except StorageError:
            if isinstance(what, bytes):
                self._disk.remove(aside)
            raise

    def _give_up(self, run: str, task: str = "") -> None:
        """Remove what tries that failed have moved, for a task or for a whole run."""
        for key, (_, path) in list(self._halfway.items()):
            if key[0] == run and key[1] == (task or key[1]):
                self._drop(path)
                del self._halfway[key]
                found = self._runs[run]
                rest = {t: p for t, p in found.memories.items() if p != path}
                self._runs[run] = replace(found, memories=rest)

    def _aside(self) -> Path:
        return self._folder / f".taking-{next(self._numbers)}"

    def _drop(self, path: Path) -> None:
        RunFolder(self._disk, path.parent).retire(path)
        self._sizes.pop(path, None)

    def _recover(self, folder: RunFolder) -> None:
        if (found := folder.recovered()) is not None:
            record, sizes = found
            self._runs[record.run] = record
            self._sizes.update(sizes)
