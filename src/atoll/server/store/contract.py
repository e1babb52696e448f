"""What the server remembers, as frozen rows, and the one interface through which it does.

A store is a notebook that survives its writer: each method is one transaction, done whole or not at
all, and durable when it returns. :mod:`atoll.server.store.sql` keeps it in SQLite or PostgreSQL,
:mod:`atoll.server.store.memory` is its twin for simulations; one contract test holds for both.

*Fencing.* A server first calls :meth:`Store.acquire`, which hands out a number larger than any before,
its epoch. What moves a run forward takes that epoch and is refused with
:class:`~atoll.core.errors.FenceError` once a newer one exists, so of two servers only one can commit,
whatever each believes. What an administrator does from another process takes no epoch.

*Exactly once.* A contribution's key is its run and task: :meth:`Store.contribute` keeps the first bytes
it hears of and says ``"different"`` to any others. :meth:`Store.commit_round` writes a round and marks
the contributions that went into it in one transaction; none can enter a second round. Contributions
that came with the last of a round may be written in that transaction too.

*Waits.* On most disks waiting for a commit is what a round costs. Contributions that arrive together
share one commit, and small blobs (:meth:`Store.hold`) are written in the same transaction as the row
that names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

__all__ = [
    "RESTORED",
    "STOPPED",
    "Contribution",
    "Event",
    "Heard",
    "Invite",
    "Lease",
    "Member",
    "RoundRow",
    "RunRow",
    "Store",
    "Upload",
]

Role = Literal["site", "researcher"]
Standing = Literal["active", "revoked", "left"]

#: What :meth:`Store.contribute` found: nothing before, the same bytes, or other bytes.
Heard = Literal["new", "same", "different"]


RESTORED = "restored"
"""Kind of the event of a store that was put back from a backup."""

STOPPED = "stopped"
"""Kind of the event by which whoever runs the server ends a run; its text is the reason."""


@dataclass(frozen=True)
class Lease:
    """Who last acquired the store: ``epoch`` 0 means that nobody ever did."""

    epoch: int
    holder: str
    since: float


@dataclass(frozen=True)
class Member:
    """One key of the federation and whose it is.

    Args:
        name: of the site or researcher; one active key per name.
        role: what it may do.
        key: raw Ed25519 public key, 32 bytes.
        fingerprint: SHA-256 of the key, in hex.
        status: a revoked key never comes back; one that left may join again.
        joined: seconds since 1970.
    """

    name: str
    role: Role
    key: bytes
    fingerprint: str
    status: Standing
    joined: float


@dataclass(frozen=True)
class Invite:
    """A one-time invitation; of its secret only the hash is kept.

    Args:
        secret_hash: SHA-256 of the secret, in hex.
        name: whom it is for; empty lets the newcomer say its name.
        role: what the newcomer may do.
        expires: seconds since 1970.
        used: when it was used; None while it was not.
        used_by: fingerprint of the key that used it.
    """

    secret_hash: str
    name: str
    role: Role
    expires: float
    used: float | None = None
    used_by: str = ""


@dataclass(frozen=True)
class RunRow:
    """One run of a submitted job.

    Args:
        id: of the run.
        name: of the job.
        job_hash: of the job's canonical form.
        spec: the canonical form itself.
        files: the job's own files by name, each ``{"sha256": …, "size": …}``.
        sites: names of the sites, sorted.
        by: name of the researcher.
        created: seconds since 1970.
        status: such as ``"open"``, ``"completed"``, ``"failed"``; the engine's words.
        reason: why it ended as it did.
        plan: SHA-256 of the newest plan; empty before there is one.
        phase: how far it is; the engine's words.
        signed: the researcher's signature, as :class:`~atoll.wire.messages.SignedBody` in plain.
    """

    id: str
    name: str
    job_hash: str
    spec: str
    files: Mapping[str, Any]
    sites: tuple[str, ...]
    by: str
    created: float
    status: str
    reason: str = ""
    plan: str = ""
    phase: str = ""
    signed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contribution:
    """One site's acknowledged answer to one task; the bytes lie in the blob ``sha256``.

    Args:
        run: the run's id.
        task: the task's id, ``{run}.{kind}.{number}.{client}``.
        client: the site's name.
        sha256: digest of the whole result frame, in hex.
        size: of the frame, in bytes.
        status: ``"done"``, ``"failed"`` or ``"refused"``.
        examples: records that went in.
        weight: of the update in the sum.
        received: seconds since 1970.
    """

    run: str
    task: str
    client: str
    sha256: str
    size: int
    status: str
    examples: int
    weight: float
    received: float


@dataclass(frozen=True)
class RoundRow:
    """One ended round: what went in, what came out.

    Args:
        run: the run's id.
        number: of the round, growing.
        record: the round's record as plain JSON.
        checkpoint: SHA-256 of the blob that continues the run from here; may be empty.
        model_hash: of the parameters after the round.
        tasks: ids of the contributions that went into it.
    """

    run: str
    number: int
    record: Mapping[str, Any]
    checkpoint: str
    model_hash: str
    tasks: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Event:
    """A line of the log: ``number`` grows, ``at`` is seconds since 1970."""

    number: int
    kind: str
    text: str
    run: str
    site: str
    at: float


@dataclass(frozen=True)
class Upload:
    """What a member has begun to upload and nothing refers to yet.

    Args:
        owner: the member's name.
        sha256: of the whole, in hex.
        size: of the whole, in bytes.
        at: when something was last added to it, to within a part of the time for which it is kept.
    """

    owner: str
    sha256: str
    size: int
    at: float


class Store(Protocol):
    """The server's memory. Every method is one transaction and may be called from any thread.

    Any method may raise :class:`~atoll.core.errors.StorageError` when the database cannot be used;
    nothing of that transaction is then written. Methods that take an ``epoch`` raise
    :class:`~atoll.core.errors.FenceError` and write nothing when it is not the newest.
    """

    def acquire(self, holder: str, now: float, above: int = 0, start: str = "") -> int:
        """Become the one server on this store; returns the new epoch: larger than any before, and ``above``.

        The lock goes with the process: when that dies, however, the next server gets it at once.

        Args:
            holder: who, for others that try.
            now: seconds since 1970.
            above: see above.
            start: what this start has drawn, kept with its epoch; empty for one whose sites may have seen
                epochs that this store knows nothing of: all that was kept of starts is then forgotten.

        Raises:
            FenceError: another live server holds the store; the message names it.
        """
        ...

    def keep_lock(self) -> None:
        """See that this server still holds the store, where a database may have let go of it.

        Who has acquired it meanwhile keeps it. For the thread that acquired the store, or one after another.
        """
        ...

    def lease(self) -> Lease:
        """Who acquired the store last."""
        ...

    def starts(self) -> Mapping[int, str]:
        """What the latest starts on this store have drawn, by their epoch."""
        ...

    def close(self) -> None:
        """Let go of the lock and of all connections; nothing may be called afterwards."""
        ...

    # Members ------------------------------------------------------------------------------------

    def members(self) -> tuple[Member, ...]:
        """All keys ever admitted, in the order in which they came."""
        ...

    def member(self, fingerprint: str) -> Member | None:
        """The key with this fingerprint, whatever its status; None when there is none."""
        ...

    def add_invite(self, invite: Invite) -> None:
        """Keep an invitation.

        Raises:
            StateError: its secret was used before, or an active member has its name, or one alike.
        """
        ...

    def invites(self) -> tuple[Invite, ...]:
        """All invitations, used and expired ones included, in the order in which they were made."""
        ...

    def withdraw(self, name: str) -> int:
        """Forget the invitations for a name that were not used, so that nobody joins by them; how many."""
        ...

    def join(
        self, secret_hash: str, name: str, key: bytes, now: float, role: Role | None = None
    ) -> Member:
        """Admit a key by its invitation, which is used up in the same transaction.

        The same secret with the same key again gives the same answer, so that a lost reply can be asked
        for once more. ``name`` counts where the invitation leaves it open; it may be empty otherwise.
        A ``role`` other than the invitation's is refused, and uses nothing up.

        Raises:
            AuthError: no such invitation, used by another key, expired, or for another name; or the
                key was revoked.
            StateError: an active member has this name or one alike, the key belongs to another one, or it is
                for another role.
        """
        ...

    def set_member(self, name: str, status: Literal["revoked", "left"]) -> Member:
        """Revoke all keys of a name, or let its active key leave; returns the newest one.

        Raises:
            NotFound: nobody has that name, or nobody who could leave.
        """
        ...

    # Runs ---------------------------------------------------------------------------------------

    def add_run(self, epoch: int, row: RunRow) -> None:
        """Keep a new run.

        Raises:
            StateError: the id is taken.
        """
        ...

    def run(self, id: str) -> RunRow:
        """One run.

        Raises:
            NotFound: there is none with this id.
        """
        ...

    def runs(self) -> tuple[RunRow, ...]:
        """All runs in the order in which they came."""
        ...

    def set_run(self, epoch: int, id: str, **changes: str) -> None:
        """Change ``status``, ``reason``, ``plan`` or ``phase``; nothing else of a run ever changes.

        Raises:
            NotFound: there is none with this id.
            TypeError: another field is named.
        """
        ...

    def share(self, epoch: int, run: str, name: str, now: float) -> bool:
        """Let a researcher read a run, with a line in the log; whether that is new.

        Raises:
            NotFound: there is no such run.
        """
        ...

    def unshare(self, epoch: int, run: str, name: str, now: float) -> bool:
        """Take that back, with a line in the log; whether there was anything to take back.

        Raises:
            NotFound: there is no such run.
        """
        ...

    def readers(self, run: str) -> tuple[str, ...]:
        """With whom a run is shared, by name in alphabetical order; none for a run that is not there."""
        ...

    def shared_with(self, name: str) -> frozenset[str]:
        """Ids of the runs that are shared with a researcher."""
        ...

    # Rounds -------------------------------------------------------------------------------------

    def contribute(self, epoch: int, row: Contribution) -> Heard:
        """Keep a site's answer unless its task has one: the durable idempotency key.

        Raises:
            NotFound: there is no such run.
        """
        ...

    def contribute_all(self, epoch: int, rows: Sequence[Contribution]) -> tuple[Heard, ...]:
        """The same for several answers, in one transaction.

        Raises:
            NotFound: there is no such run; none is written then.
        """
        ...

    def contributions(self, run: str, prefix: str = "") -> tuple[Contribution, ...]:
        """Answers to tasks whose id starts with ``prefix``, in order of arrival."""
        ...

    def commit_round(
        self, epoch: int, row: RoundRow, answers: Sequence[Contribution] = ()
    ) -> tuple[Heard, ...]:
        """Write a round and mark its contributions, together.

        Args:
            epoch: of the server.
            row: the round.
            answers: contributions that are not there yet, as for :meth:`contribute_all`.

        Returns:
            what was found of each of ``answers``.

        Raises:
            NotFound: there is no such run, or no contribution to one of the tasks.
            StateError: the number is not larger than the last one, or one of the contributions
                went into an earlier round, or one of ``answers`` is another than that which is there.
        """
        ...

    def rounds(self, run: str, after: int = 0) -> tuple[RoundRow, ...]:
        """Rounds with a number larger than ``after``, in order."""
        ...

    def last_round(self, run: str) -> RoundRow | None:
        """The newest round; None before the first."""
        ...

    def kept(self, run: str, client: str) -> str:
        """Id of this client's last train task that went into a round; empty when there is none."""
        ...

    # Small blobs --------------------------------------------------------------------------------

    def hold(self, sha256: str, raw: bytes) -> None:
        """Keep a small blob: seen at once, durable with the next write that takes an epoch.

        So it is durable before anything that names it; what nobody names may be lost in a crash.
        """
        ...

    def drop(self, sha256: str) -> None:
        """Forget a small blob, if it is held: gone at once, for good with the next such write."""
        ...

    def held(self, sha256: str) -> bytes | None:
        """The bytes of a small blob; None when it is not held."""
        ...

    def holdings(self) -> Mapping[str, int]:
        """Digests of all small blobs, with their sizes."""
        ...

    # Uploads ------------------------------------------------------------------------------------

    def note_uploads(self, epoch: int, rows: Sequence[Upload], gone: Sequence[Upload] = ()) -> None:
        """Keep ``rows``, in place of the same bytes of the same owner, and ``gone`` no longer."""
        ...

    def uploads(self) -> tuple[Upload, ...]:
        """All that are kept, by owner and digest."""
        ...

    # Log ----------------------------------------------------------------------------------------

    def add_event(self, kind: str, text: str, run: str, site: str, now: float) -> None:
        """Append a line to the log; ``run`` and ``site`` may be empty."""
        ...

    def events(self, run: str | None = None, after: int = 0) -> tuple[Event, ...]:
        """Lines with a number larger than ``after``: all, or those of one run."""
        ...
