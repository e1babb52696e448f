"""What an examination finds: one line for each thing looked at, and what to do about it.

``atoll doctor`` looks at a site's node or at a server. What both have in common is here: the form of a
line, files that hold secrets, room on a disk, and how long a write takes until it is durable.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Literal

from atoll.core.errors import AtollError, StorageError
from atoll.wire.trouble import remedy_of

__all__ = [
    "Finding",
    "fault",
    "faults_of",
    "ok",
    "owners",
    "private_file",
    "private_folder",
    "room",
    "size_text",
    "together",
    "trusted_file",
    "unknown",
    "user",
    "warning",
    "writing",
]

State = Literal["ok", "warning", "fault", "unknown"]

_SLOW = 0.05
"""Seconds of a durable write beyond which rounds are felt to wait for it."""
_WRITES = 5
_BYTES = 64 << 10
_MOST_NAMED = 3
_MOST_SEEN = 20_000


@dataclass(frozen=True)
class Finding:
    """One line of an examination.

    Args:
        check: what was looked at, in a word.
        state: ``unknown`` where it could not be looked at.
        text: what was found; no secrets and no values of anybody's data.
        remedy: what to do; empty where there is nothing to do.
        status: exit status that a fault stands for; 0 for all else.
    """

    check: str
    state: State
    text: str
    remedy: str = ""
    status: int = 0

    def to_plain(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def ok(check: str, text: str) -> Finding:
    """All is well."""
    return Finding(check, "ok", text)


def warning(check: str, text: str, remedy: str) -> Finding:
    """It works, and may cease to."""
    return Finding(check, "warning", text, remedy)


def unknown(check: str, text: str) -> Finding:
    """It could not be looked at."""
    return Finding(check, "unknown", text)


def fault(check: str, text: str, remedy: str, kind: type[AtollError] = StorageError) -> Finding:
    """It does not work; ``kind`` is the error that it would become."""
    return Finding(check, "fault", text, remedy, kind.exit_status)


def faults_of(check: str, error: AtollError) -> Iterator[Finding]:
    """What an error says, a line for each of its faults."""
    if not error.faults:
        yield Finding(check, "fault", error.message, error.remedy, error.exit_status)
    for one in error.faults:
        text = f"{one.place}: {one.message}" if one.place else one.message
        remedy = one.remedy or error.remedy or "mend it there"
        yield Finding(check, "fault", text, remedy, error.exit_status)


def together(check: str, found: Iterable[Finding], text: str) -> Iterator[Finding]:
    """What is not well of many things alike, or ``text`` when all of them are."""
    bad = [finding for finding in found if finding.state != "ok"]
    yield from bad or [ok(check, text)]


def size_text(size: float) -> str:
    """Bytes for people.

    >>> [size_text(n) for n in (120, 3 << 20, 5.5 * 2**30)]
    ['120 B', '3 MiB', '5.5 GiB']
    """
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    place = 0
    while size >= 1024 and place < len(units) - 1:
        size, place = size / 1024, place + 1
    return f"{size:.3g} {units[place]}"


def private_file(check: str, path: Path) -> Finding:
    """A file that holds a secret: its owner alone may read it."""
    return _mode(check, path, 0o077, "600", "may be read or changed by others")


def private_folder(check: str, path: Path) -> Finding:
    """A folder that nobody else has to look into."""
    found = _mode(check, path, 0o077, "700", "is open to others")
    if found.state != "fault" or not path.is_dir():
        return found
    return warning(check, found.text, found.remedy)


def trusted_file(check: str, path: Path) -> Finding:
    """A file that says whom and what to trust: its owner alone may change it."""
    return _mode(check, path, 0o022, "go-w", "may be changed by others")


def _mode(check: str, path: Path, wide: int, narrow: str, what: str) -> Finding:
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        text = f"{path} cannot be looked at: {error.strerror}"
        return fault(check, text, "restore it, or check its owner and mode")
    if mode & wide:
        return fault(check, f"{path} {what} (mode {mode:04o})", f"chmod {narrow} {path}")
    return ok(check, f"{path} (mode {mode:04o})")


def user(check: str, path: Path) -> Finding:
    """Whether the folder is this user's, so that what is found holds for the real program too."""
    try:
        owner = path.stat().st_uid
    except OSError as error:
        return fault(
            check, f"{path} cannot be looked at: {error.strerror}", "check the path of the folder"
        )
    if owner != os.geteuid():
        text = f"{path} belongs to user {owner}, and you are user {os.geteuid()}"
        return warning(check, text, "look again as the user that the program runs as: sudo -u USER")
    return ok(check, f"{path} is yours")


def owners(check: str, path: Path) -> Finding:
    """Whether all in a folder is of one user: a command that was run as root leaves root's files."""
    try:
        whose = path.stat().st_uid
        found = list(islice(_others(path, whose), _MOST_NAMED + 1))
    except OSError as error:
        text = f"{path} cannot be looked at: {error.strerror}"
        return fault(check, text, remedy_of(error, reading=True) or "check the path of the folder")
    if found:
        more = " and more" if len(found) > _MOST_NAMED else ""
        text = f"{', '.join(map(str, found[:_MOST_NAMED]))}{more}: of another user than {path}"
        remedy = f"chown -R --reference={path} {path}; run commands as that user, not as root"
        return fault(check, text, remedy)
    return ok(check, f"all in {path} is of one user")


def _others(path: Path, whose: int) -> Iterator[Path]:
    """What does not belong to ``whose``, among as many names as can be looked at without a wait."""
    seen = 0
    for place, folders, names in os.walk(path):
        for name in (*folders, *names):
            seen += 1
            if seen > _MOST_SEEN:
                return
            with suppress(OSError):  # gone while we looked
                if os.lstat(os.path.join(place, name)).st_uid != whose:
                    yield Path(place, name)


def room(check: str, path: Path, needed: float, what: str) -> Finding:
    """Whether the disk under ``path`` has ``needed`` bytes left, for ``what``."""
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        return fault(check, f"{path} cannot be looked at: {error.strerror}", "check the disk")
    text = f"{size_text(free)} free under {path}"
    if free < needed:
        more = f"{text}, {size_text(needed)} needed {what}"
        return fault(check, more, "free space there, or move the folder to a larger disk")
    return ok(check, f"{text}; {size_text(needed)} needed {what}")


def writing(check: str, folder: Path) -> Finding:
    """Whether ``folder`` can be written, and how long it takes until a write is durable."""
    path = folder / f".doctor-{os.getpid()}"
    times = []
    try:
        for _ in range(_WRITES):
            began = time.perf_counter()
            _write_durably(path, folder)
            times.append(time.perf_counter() - began)
    except OSError as error:
        text = f"{folder} cannot be written: {error.strerror}"
        return fault(check, text, remedy_of(error) or "mend the folder")
    finally:
        with suppress(OSError):
            path.unlink()
    took = median(times)
    text = f"{folder}: a write is durable after {took * 1000:.1f} ms"
    if took > _SLOW:
        return warning(check, text, "every answer waits for that: use a local disk, best an SSD")
    return ok(check, text)


def _write_durably(path: Path, folder: Path) -> None:
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        if os.write(number, bytes(_BYTES)) < _BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(number)
    finally:
        os.close(number)
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
