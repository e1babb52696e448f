"""The privacy ledger of a site: every charge is on the disk before what it stands for happens.

:meth:`Ledger.reserve` comes before a round's work, :meth:`Ledger.release` before the first byte of its
answer leaves, :meth:`Ledger.settle` when the server needs the answer no more. Each is a line of a journal
(:mod:`atoll.node.journal`), durable when the method returns. A crash in between leaves more counted than
was released, by the reservation in flight, never less.

The federation's server is told the journal's head with each answer, keeps it in its commit records, and
tells the newest one it has seen with every answer to a question. A node whose folder was put back to an
older state finds its own signature under a line that it does not have, and takes on no more work that
would have to be counted.

A site that goes from one federation to another keeps its ledger: each line says whose round it was. Lines that
were written before they did belong to the first federation that one names.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll.core.errors import AuthError, DataError, PolicyError, StateError, StorageError
from atoll.node.journal import Head, Journal, Reading, Signer, read_journal
from atoll.node.policy.ledger import (
    Accounts,
    Charge,
    Entry,
    Epsilon,
    Limit,
    State,
    composed_epsilon,
)
from atoll.runtime.schedule import Turns
from atoll.wire.disk import Disk

__all__ = ["Ledger", "read_ledger"]


class Ledger:
    """The ledger in the file ``path``. Any thread may use it.

    Args:
        path: the file.
        signer: the site's identity.
        disk: where the file lies.
        federation: that the node works for.
        epsilon: adds events up.
        now: seconds since 1970.

    Raises:
        StorageError: the file is not as it was written (the message names the line), or cannot be read.
    """

    def __init__(
        self,
        path: Path,
        signer: Signer,
        disk: Disk | None = None,
        *,
        federation: str = "",
        epsilon: Epsilon = composed_epsilon,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._federation, self._now = path, federation, now
        self._lock = threading.RLock()
        self._journal = Journal(path, signer, disk)
        self._accounts = Accounts(epsilon)
        self._doubtful: set[str] = set()
        self._trouble = ""
        _replay(path, self._journal.lines, self._accounts, federation)

    @property
    def head(self) -> Head:
        """How far the ledger has come, signed, for the server to remember."""
        return self._journal.head

    @property
    def trouble(self) -> str:
        """Why nothing more is counted here: it was put back to an older state. Empty while all is well."""
        return self._trouble

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every charge as it stands."""
        with self._lock:
            return self._accounts.entries

    def open(self, run: str) -> tuple[Entry, ...]:
        """Charges of a run that are reserved, and of which nothing has been released."""
        with self._lock:
            return self._accounts.open(run, self._federation)

    def entry(self, task: str) -> Entry | None:
        """The charge of a task; None where it has none."""
        with self._lock:
            return self._known(task)

    def spent(self, limit: Limit) -> float:
        """Epsilon of everything that counts for ``limit``."""
        with self._lock:
            return self._accounts.spent(limit)

    def see(self, head: str) -> None:
        """Hear how far this ledger had come when the server last heard of it.

        Args:
            head: as the server remembers it; empty where it does not. One without this site's own
                signature says nothing: nobody can stop a site with a head that it never had.
        """
        if not head:
            return
        try:
            seen = Head.parse(head)
        except AuthError:
            return
        with self._lock:
            self._trouble = self._trouble or self._journal.objection(seen)

    def reserve(
        self, charge: Charge, limits: Iterable[Limit] = (), turns: Turns | None = None
    ) -> None:
        """Set aside what a round is going to cost; it counts when this returns.

        The same charge again is no other one. A charge that was given back may be reserved anew.

        Args:
            charge: of the round's task.
            limits: those of its dataset count.
            turns: how often the job may ask; None for as often as the limits let it.

        Raises:
            PolicyError: a limit would be overdrawn, the job asks too often, or an answer to this task has
                left the site.
            StateError: the task has another charge.
            StorageError: it could not be written, or this is an old copy of the ledger.
            AtollError: the events cannot be added up.
        """
        charge = replace(charge, federation=self._federation)
        with self._lock:
            self._sound()
            known = self._known(charge.task)
            if known is not None and known.state != "returned" and known.charge != charge:
                raise StateError(
                    f"task {charge.task!r} was another one before: {known.charge}",
                    remedy="a server gives each task a number of its own",
                )
            if known is not None and known.state in ("released", "settled"):
                raise PolicyError(
                    f"an answer to {charge.task!r} has left this site; another one would cost twice",
                    remedy="the site takes part again in the next round",
                )
            if known is not None and known.state == "reserved":
                self._confirm(known)
                return
            limits = [limit for limit in limits if limit.dataset == charge.dataset]
            self._accounts.check(charge, limits, turns)
            under = tuple(map(str, limits))
            self._write(Entry(charge, "reserved", at=self._now(), limits=under))

    def afford(self, charge: Charge, limits: Iterable[Limit]) -> None:
        """Refuse what :meth:`reserve` would refuse now, and write nothing.

        Raises:
            AtollError: as :meth:`reserve`.
        """
        with self._lock:
            self._sound()
            self._accounts.check(replace(charge, federation=self._federation), limits)

    def release(self, task: str, answer: str) -> None:
        """Say that an answer is about to leave; it counts for good when this returns.

        Args:
            task: its charge is reserved.
            answer: SHA-256 of the answer. The same again is no second release.

        Raises:
            StateError: nothing is reserved, or another answer has left.
            StorageError: it could not be written: nothing may leave. Trying again is safe.
        """
        with self._lock:
            self._sound()
            known = self._known(task)
            if known is None or known.state == "returned":
                raise StateError(
                    f"nothing is reserved for {task!r}", remedy="its answer does not leave"
                )
            if known.state != "reserved":
                if known.answer != answer:
                    raise StateError(
                        f"another answer to {task!r} has left this site", remedy="this one does not"
                    )
                self._confirm(known)
                return
            self._write(replace(known, state="released", answer=answer, at=self._now()))

    def settle(self, task: str) -> None:
        """The server needs no answer to ``task`` any more: give back what was never released.

        Raises:
            StorageError: it could not be written; it counts until it is.
        """
        with self._lock:
            known = self._known(task)
            if known is None or known.state in ("settled", "returned"):
                return
            state: State = "settled" if known.state == "released" else "returned"
            self._write(replace(known, state=state, at=self._now()))

    def give_back(self, keep: Collection[str]) -> int:
        """After a start: give back all reservations whose work was lost with the process.

        Args:
            keep: tasks whose answers lie on the disk, to be sent.

        Returns:
            how many were given back.

        Raises:
            StorageError: it could not be written; they count until they are.
        """
        with self._lock:
            lost = [
                entry
                for entry in self._accounts.entries
                if entry.state == "reserved" and not self._kept(entry.charge, keep)
            ]
            for entry in lost:
                self._write(replace(entry, state="returned", at=self._now()))
            return len(lost)

    def _known(self, task: str) -> Entry | None:
        return self._accounts.entry(task, self._federation)

    def _kept(self, charge: Charge, keep: Collection[str]) -> bool:
        """Whether the answer lies here: of another federation's rounds none does any more."""
        return charge.federation == self._federation and charge.task in keep

    def _sound(self) -> None:
        if self._trouble:
            raise StorageError(
                f"the privacy ledger of this site is not the newest: {self._trouble}",
                remedy="its steward puts the newest copy back; nothing is counted until then",
            )

    def _confirm(self, known: Entry) -> None:
        """Write again what the disk may not have taken, and move the head."""
        if known.charge.task in self._doubtful:
            self._write(known)
        self._journal.secure()

    def _write(self, entry: Entry) -> None:
        """Write an entry. What counts, counts from the try on, what does not, after it."""
        task, back = entry.charge.task, entry.state == "returned"
        if not back:
            self._accounts.take(entry)
            self._doubtful.add(task)
        # The head stays where it is for what only closes an entry: without that line more is counted.
        self._journal.append(entry.to_plain(), anchor=entry.state in ("reserved", "released"))
        self._doubtful.discard(task)
        if back:
            self._accounts.take(entry)


def read_ledger(
    path: Path, key: bytes, disk: Disk | None = None, epsilon: Epsilon = composed_epsilon
) -> tuple[Accounts, Reading]:
    """The charges in a ledger's file, without changing it; the node may be running.

    Args:
        path: the file.
        key: the site's raw public key.
        disk: where it lies.
        epsilon: adds events up.

    Raises:
        StorageError: with the number of the line that is not as it was written.
    """
    found, accounts = read_journal(path, key, disk), Accounts(epsilon)
    _replay(path, found.bodies, accounts)
    return accounts, found


def _replay(
    path: Path, lines: Collection[Mapping[str, Any]], accounts: Accounts, federation: str = ""
) -> None:
    named = (str(body.get("federation", "")) for body in lines)
    first = next(filter(None, named), federation)
    for number, body in enumerate(lines, 1):
        try:
            accounts.take(Entry.from_plain({**body, "federation": body.get("federation") or first}))
        except DataError as error:
            raise StorageError(
                f"{path}, line {number}: {error.message}",
                remedy="was it written by a newer version of Atoll?",
            ) from error
