"""Every error Atoll raises, in one tree.

::

    AtollError
    ├── JobError              the job asks for something impossible        exit 2
    │   └── JobConflict       two valid choices exclude each other         exit 2
    ├── DataError             a site's data do not match what was declared exit 3
    ├── LayoutError           a vector or model does not fit its layout    exit 3
    ├── UpdateRefused         one client's update may not enter a sum      exit 4
    ├── QuorumError           too few clients contributed                  exit 4
    ├── ClientError           code at a client raised                      exit 4
    ├── CheckpointError       a checkpoint cannot be read or continued     exit 5
    ├── StorageError          a folder cannot be written                   exit 5
    │   └── FenceError        another server holds the store               exit 5
    ├── MissingExtra          an optional library is not installed         exit 6
    ├── WireError             bytes from another machine are not valid     exit 7
    │   ├── Unreachable       the other side does not answer               exit 7
    │   │   ├── Busy          it was asked too much at once                exit 7
    │   │   └── PutBack       nor will it before its operator has acted    exit 7
    │   └── TooLarge          more than was declared or is allowed         exit 7
    ├── AuthError             who sent this is not known for certain       exit 8
    │   └── Forbidden         known, and not allowed to do this            exit 8
    ├── PolicyError           a site's own rule forbids it                 exit 8
    └── StateError            the request does not fit what already is     exit 9
        ├── NotFound          there is no such thing                       exit 9
        └── Equivocation      two different answers to one task            exit 9

Each error carries a stable ``code``, what is wrong, and the next step. Faults that can be found
together are reported together: see :class:`Fault` and :func:`raise_faults`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "AtollError",
    "AuthError",
    "Busy",
    "CheckpointError",
    "ClientError",
    "DataError",
    "Equivocation",
    "Fault",
    "FenceError",
    "Forbidden",
    "JobConflict",
    "JobError",
    "LayoutError",
    "MissingExtra",
    "NotFound",
    "PolicyError",
    "PutBack",
    "QuorumError",
    "StateError",
    "StorageError",
    "TooLarge",
    "Unreachable",
    "UpdateRefused",
    "WireError",
    "raise_faults",
    "suggest",
]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, what, and what to do next.

    Args:
        place: key, column or site.
        message: what is wrong, with the offending value.
        remedy: the next step.
        withheld: the message without any value of the data, where it has one.
        count: how many faults it stands for.
    """

    place: str
    message: str
    remedy: str = ""
    withheld: str = ""
    count: int = 1

    def apart(self) -> Fault:
        """The fault as others than the owner of the data may read it."""
        if not self.withheld:
            return self
        return Fault(self.place, self.withheld, "the site sees more with: atoll doctor --job")

    def __str__(self) -> str:
        """One line: place, message, remedy."""
        line = f"{self.place}: {self.message}" if self.place else self.message
        return f"{line} ({self.remedy})" if self.remedy else line


class AtollError(Exception):
    """Root of the tree; catch this to catch everything Atoll raises on purpose.

    Args:
        message: what is wrong, with the offending value.
        remedy: the next step for the reader.
        site: the site or client it happened at, if it happened at one.
        faults: the single faults, when several were found at once.
    """

    code = "error"
    exit_status = 1

    def __init__(
        self, message: str, *, remedy: str = "", site: str = "", faults: Sequence[Fault] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.site = site
        self.faults = tuple(faults)

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process boundary with every field intact."""
        return (_rebuild, (type(self), self.message, self.remedy, self.site, self.faults))

    def __str__(self) -> str:
        """The message for people: site, text, faults and remedy."""
        where = f"at {self.site}: " if self.site else ""
        lines = [f"{where}{self.message}", *(f"  - {fault}" for fault in self.faults)]
        if self.remedy:
            lines.append(f"  next: {self.remedy}")
        return "\n".join(lines)


def _rebuild(
    kind: type[AtollError], message: str, remedy: str, site: str, faults: tuple[Fault, ...]
) -> AtollError:
    return kind(message, remedy=remedy, site=site, faults=faults)


class JobError(AtollError):
    """The job asks for something that does not exist or is malformed."""

    code = "job.invalid"
    exit_status = 2


class JobConflict(JobError):
    """Two choices of the job, each valid alone, exclude each other."""

    code = "job.conflict"


class DataError(AtollError):
    """A site's data do not match what the job declares."""

    code = "data.invalid"
    exit_status = 3


class LayoutError(AtollError):
    """A vector, model or file does not fit the declared layout."""

    code = "layout.mismatch"
    exit_status = 3


class UpdateRefused(AtollError):
    """One client's update may not enter the sum: non-finite, wrong shape or out of range."""

    code = "update.refused"
    exit_status = 4


class QuorumError(AtollError):
    """Too few clients contributed, too many rounds in a row."""

    code = "round.quorum"
    exit_status = 4


class ClientError(AtollError):
    """Code that ran at a client raised; ``site`` names the client."""

    code = "client.failed"
    exit_status = 4


class CheckpointError(AtollError):
    """A checkpoint is missing, damaged or belongs to another job."""

    code = "checkpoint.invalid"
    exit_status = 5


class StorageError(AtollError):
    """A folder or file cannot be written."""

    code = "storage.unwritable"
    exit_status = 5


class MissingExtra(AtollError):
    """An optional library is needed and not installed."""

    code = "install.extra"
    exit_status = 6


class FenceError(StorageError):
    """Another server holds the store, or has held it since: this one may not write any more."""

    code = "store.fenced"


class WireError(AtollError):
    """Bytes that came from another machine are not what they should be."""

    code = "wire.invalid"
    exit_status = 7


class Unreachable(WireError):
    """The other side does not answer, or the connection broke; trying again may help."""

    code = "wire.unreachable"


class Busy(Unreachable):
    """Too many requests at once; trying again later helps."""

    code = "wire.busy"


class PutBack(Unreachable):
    """The server was put back from a backup, and has lost what this site saw of it; its operator has to act."""

    code = "wire.putback"


class TooLarge(WireError):
    """More bytes than were declared, or than are allowed."""

    code = "wire.toolarge"


class AuthError(AtollError):
    """Who sent this is not known for certain: no signature, a wrong one, or an old one."""

    code = "auth.refused"
    exit_status = 8


class Forbidden(AuthError):
    """The sender is known and may not do this."""

    code = "auth.forbidden"


class PolicyError(AtollError):
    """A rule that a site has set for itself forbids it: its policy, or a limit of its privacy ledger."""

    code = "policy.refused"
    exit_status = 8


class StateError(AtollError):
    """The request contradicts what already is."""

    code = "state.conflict"
    exit_status = 9


class NotFound(StateError):
    """There is no such thing, or not for this sender."""

    code = "state.missing"


class Equivocation(StateError):
    """A site gave two different answers to one and the same task."""

    code = "wire.equivocation"


def suggest(word: str, known: Iterable[str]) -> str:
    """The remedy for an unknown ``word``: the nearest known one, or the whole list.

    >>> suggest("fedavgg", ["fedavg", "fedprox"])
    "did you mean 'fedavg'?"
    """
    options = sorted(known)
    folded = {option.casefold(): option for option in options}
    near = difflib.get_close_matches(str(word).casefold(), folded, n=1, cutoff=0.6)
    if near:
        return f"did you mean {folded[near[0]]!r}?"
    return f"known: {', '.join(options)}" if options else "none is known"


def raise_faults(kind: type[AtollError], what: str, faults: Sequence[Fault], **fields: str) -> None:
    """Raise ``kind`` listing all ``faults``; do nothing when there are none."""
    if faults:
        count = sum(fault.count for fault in faults)
        told = f"{count:,} fault{'s' if count > 1 else ''}"
        raise kind(f"{what}: {told}", faults=faults, **fields)
