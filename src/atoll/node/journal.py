"""A file of lines that only grows, in which nothing can be changed, taken out or put back unnoticed.

Each line is a JSON object that holds the hash of the line before it and, at its end, its own::

    {"before":"…","line":7,…,"sha256":"…"}

Beside the file lies its *head*: number and hash of the last line that counts, signed with the site's key.
A line is durable first, then the head, then the caller goes on; so a crash leaves at most one line that
nobody was told of, whole or torn. A whole one stays, a torn one does not count, and everything else that
does not fit (a changed, removed, exchanged or added line, a file that is shorter than its head says, a head
that somebody else signed) is refused with the number of the line.

What lies in one folder can be put back as a whole. That is found by whoever has seen a later head:
:meth:`Journal.objection` compares.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from atoll.core.errors import AuthError, StorageError
from atoll.wire.disk import Disk, RealDisk, keep
from atoll.wire.identity import check_signature

__all__ = [
    "START",
    "Head",
    "Journal",
    "Reading",
    "Signer",
    "keep_head",
    "line_of",
    "objection",
    "read_head",
    "read_journal",
]

_END = re.compile(rb',"sha256":"([0-9a-f]{64})"}\n')
_NUMBER = re.compile(r"[1-9][0-9]{0,15}|0")
START = hashlib.sha256(b"atoll journal").hexdigest()
"""What the first line follows."""
_REMEDY = "put the newest copy back; work that this file guards is refused until then"


class Signer(Protocol):
    """A site's Ed25519 identity."""

    @property
    def public_bytes(self) -> bytes:
        """The raw public key."""

    def sign(self, message: bytes) -> bytes:
        """The signature of ``message``, 64 bytes."""


@dataclass(frozen=True)
class Head:
    """How far a journal had come when its site said so.

    Args:
        count: lines.
        digest: hash of the last one, in hex.
        signature: of the site, in hex.
    """

    count: int
    digest: str
    signature: str = ""

    def signed(self, name: str) -> bytes:
        """What the signature is on, for the journal called ``name``."""
        return f"atoll journal\n{name}\n{self.count}\n{self.digest}\n".encode()

    def check(self, name: str, key: bytes) -> None:
        """Refuse a head that ``key`` (raw, 32 bytes) did not sign for the journal ``name``.

        Raises:
            AuthError: wrong, or no signature at all.
        """
        try:
            signature = bytes.fromhex(self.signature)
        except ValueError as error:
            raise AuthError("the signature of a head is no hexadecimal number") from error
        check_signature(key, signature, self.signed(name))

    def __str__(self) -> str:
        """As it travels: ``count.digest.signature``.

        >>> str(Head(2, "ab", "cd"))
        '2.ab.cd'
        """
        return f"{self.count}.{self.digest}.{self.signature}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read what :meth:`__str__` wrote.

        Raises:
            AuthError: it is no head.
        """
        count, _, rest = text.partition(".")
        digest, _, signature = rest.partition(".")
        sizes = (len(digest), len(signature))
        if not _NUMBER.fullmatch(count) or sizes != (64, 128):
            raise AuthError(f"{text[:200]!r} is no head of a journal")
        return cls(int(count), digest, signature)


@dataclass(frozen=True)
class Reading:
    """What a journal's file holds.

    Args:
        bodies: the lines, oldest first.
        digests: their hashes.
        size: bytes of the whole lines.
        torn: whether a piece of a line comes after them.
    """

    bodies: tuple[Mapping[str, Any], ...] = ()
    digests: tuple[str, ...] = ()
    size: int = 0
    torn: bool = False

    def digest(self, count: int) -> str:
        """Hash of line ``count``; what the first line follows for 0."""
        return self.digests[count - 1] if count else START


def read_journal(path: Path, key: bytes, disk: Disk | None = None) -> Reading:
    """Read and check a journal without changing anything; it may be in use.

    Args:
        path: the file.
        key: the site's raw public key, which must have signed the head.
        disk: where it lies.

    Raises:
        StorageError: with the number of the line that is not as it was written.
    """
    used = RealDisk() if disk is None else disk
    head = _read_head(path, key, used)  # before the lines: they may grow meanwhile
    size = used.size(path)
    if head is None and size is None:
        return Reading()
    if head is None:
        raise StorageError(f"{_beside(path)} is missing beside {path}", remedy=_REMEDY)
    found = _read_lines(path, used.read(path) if size else b"")
    if len(found.digests) < head.count:
        last = f"its last line is {len(found.digests)}" if found.digests else "it is empty"
        raise _damage(path, len(found.digests) + 1, f"is missing: {last}, of {head.count}")
    if found.digest(head.count) != head.digest:
        raise _damage(path, head.count, "is not the one that was written: lines were replaced")
    return found


def read_head(path: Path, key: bytes, disk: Disk | None = None) -> Head | None:
    """The head beside a journal; None where there is none.

    Raises:
        StorageError: damaged, or not signed with the site's ``key`` (raw).
    """
    return _read_head(path, key, RealDisk() if disk is None else disk)


def objection(path: Path, found: Reading, seen: Head) -> str:
    """Why what was found in ``path`` is not the journal that had the head ``seen``, or a later state of it."""
    if seen.count > len(found.digests):
        return (
            f"{path} ends with line {len(found.digests)}, and line {seen.count} was seen "
            "elsewhere: an old copy was put back"
        )
    if found.digest(seen.count) != seen.digest:
        return (
            f"line {seen.count} of {path} is another than was seen elsewhere: the file was replaced"
        )
    return ""


def line_of(body: Mapping[str, Any], number: int, before: str) -> tuple[bytes, str]:
    """A line's bytes and its hash.

    Args:
        body: JSON-able; its keys are not ``before``, ``line`` and ``sha256``.
        number: of the line, from 1.
        before: hash of the line before it; :data:`START` for the first.
    """
    whole = {"before": before, "line": number, **body}
    text = json.dumps(whole, separators=(",", ":"), allow_nan=False, sort_keys=True).encode()
    digest = hashlib.sha256(text).hexdigest()
    return text[:-1] + f',"sha256":"{digest}"}}\n'.encode(), digest


def keep_head(disk: Disk, path: Path, signer: Signer, count: int, digest: str) -> Head:
    """Write, durably, how far the journal in ``path`` has come: ``count`` lines, the last with hash ``digest``.

    Raises:
        StorageError: it could not be written.
    """
    bare = Head(count, digest)
    made = Head(count, digest, signer.sign(bare.signed(path.name)).hex())
    keep(disk, _beside(path), [f"{made}\n".encode()])
    return made


class Journal:
    """A journal that one process writes. Any of its threads may.

    Args:
        path: the file; its folder is made.
        signer: signs the heads.
        disk: where it lies.

    Raises:
        StorageError: the file is not as it was written (the message names the line), or cannot be read.
    """

    def __init__(self, path: Path, signer: Signer, disk: Disk | None = None) -> None:
        self._path, self._signer = path, signer
        self._disk: Disk = RealDisk() if disk is None else disk
        self._lock = threading.RLock()
        self._disk.make_folder(path.parent)
        found = read_journal(path, signer.public_bytes, self._disk)
        self._bodies, self._digests = list(found.bodies), list(found.digests)
        self._size = found.size
        self._anchored: Head | None = None
        if found.bodies:  # what is torn behind them is written over by the next line
            # A killed process may have written what no disk has yet.
            self._disk.fsync(path)
            self._disk.fsync_folder(path.parent)
        self._anchor()

    @property
    def name(self) -> str:
        """What its heads are signed for."""
        return self._path.name

    @property
    def lines(self) -> tuple[Mapping[str, Any], ...]:
        """All lines, oldest first."""
        with self._lock:
            return tuple(self._bodies)

    @property
    def head(self) -> Head:
        """How far it has come, for others to remember: the newest signed head."""
        with self._lock:
            return self._anchored if self._anchored is not None else self._anchor()

    def append(self, body: Mapping[str, Any], *, anchor: bool = True) -> None:
        """Write a line; when this returns it survives any crash.

        Args:
            body: JSON-able; its keys are not ``before``, ``line`` and ``sha256``.
            anchor: whether the head is moved too. Without it, a later cut of the file in front of this
                line shows only when another line has been anchored behind it.

        Raises:
            StorageError: it could not be written. It may be there all the same.
        """
        with self._lock:
            raw, digest = line_of(body, len(self._bodies) + 1, self._last)
            first = not self._bodies
            self._disk.append(self._path, self._size, raw)
            self._disk.fsync(self._path)
            if first:
                self._disk.fsync_folder(self._path.parent)
            # From here on the line counts, also when the head cannot be written: a head that may be
            # on the disk already must never name a line that another has taken the place of.
            self._bodies.append(body)
            self._digests.append(digest)
            self._size += len(raw)
            if anchor:
                self._anchor()

    def secure(self) -> None:
        """Move the head to the last line, if it is not there; after a failed :meth:`append`.

        Raises:
            StorageError: it could not be written.
        """
        with self._lock:
            if self._anchored is None or self._anchored.count < len(self._bodies):
                self._anchor()

    def objection(self, seen: Head) -> str:
        """Why this is not the journal, or a continuation of it, that had the head ``seen``.

        Args:
            seen: kept by somebody else. A head that this site did not sign says nothing.
        """
        try:
            seen.check(self.name, self._signer.public_bytes)
        except AuthError:
            return ""
        with self._lock:
            return objection(self._path, Reading((), tuple(self._digests)), seen)

    @property
    def _last(self) -> str:
        return self._digests[-1] if self._digests else START

    def _anchor(self) -> Head:
        """Write the head."""
        self._anchored = keep_head(
            self._disk, self._path, self._signer, len(self._digests), self._last
        )
        return self._anchored


# How ------------------------------------------------------------------------------------------------


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.head")


def _damage(path: Path, line: int, what: str) -> StorageError:
    return StorageError(f"{path}, line {line}: {what}", remedy=_REMEDY)


def _read_head(path: Path, key: bytes, disk: Disk) -> Head | None:
    place = _beside(path)
    if disk.size(place) is None:
        return None
    try:
        head = Head.parse(disk.read(place).decode("ascii", "replace").strip())
        head.check(path.name, key)
    except AuthError as error:
        raise StorageError(
            f"{place} is damaged, or was not written with this site's key", remedy=_REMEDY
        ) from error
    return head


@dataclass
class _Lines:
    """Lines that are read one after another."""

    path: Path
    bodies: list[Mapping[str, Any]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def take(self, raw: bytes) -> None:
        number = len(self.digests) + 1
        end = _END.search(raw, max(0, len(raw) - 78))
        text = raw[: end.start()] + b"}" if end else b""
        digest = hashlib.sha256(text).hexdigest()
        if end is None or digest.encode() != end.group(1):
            raise _damage(self.path, number, "was changed after it was written")
        body = dict(json.loads(text))
        said, before = body.pop("line"), body.pop("before")
        if (said, before) != (number, self.digests[-1] if self.digests else START):
            raise _damage(
                self.path,
                number,
                f"was written as line {said} and does not follow the one before it here: "
                "lines were removed, exchanged or added",
            )
        self.bodies.append(body)
        self.digests.append(digest)


def _read_lines(path: Path, raw: bytes) -> Reading:
    found, at = _Lines(path), 0
    while at < len(raw):
        stop = raw.find(b"\n", at) + 1
        if not stop:
            break  # a piece without an end: no line of which anybody was told
        if b"\0" in raw[at:stop]:
            break  # what a power failure leaves where it reached the end before the beginning
        found.take(raw[at:stop])
        at = stop
    return Reading(tuple(found.bodies), tuple(found.digests), at, at < len(raw))
