"""What tests of ledger and pledges share: a key, disks that end a program, files that were touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from atoll.wire.identity import Identity
from atoll.wire.lossy_disk import LossyDisk

KEY = Identity.fresh()
OTHER_KEY = Identity.fresh()


class Crash(Exception):
    """The program ends here."""


def crash_at(number: int) -> LossyDisk:
    """A disk whose ``number``-th operation never happens."""
    done = 0

    def before(operation: str, path: Path) -> None:
        nonlocal done
        done += 1
        if done == number:
            raise Crash

    return LossyDisk(before)


def touched(raw: bytes) -> Iterator[tuple[str, int, bytes]]:
    """A file as somebody may have left it: what was done, the first line where it shows, the bytes."""
    lines = raw.splitlines(keepends=True)
    for n, line in enumerate(lines):
        rest = b"".join(lines[n + 1 :])
        for place in range(0, len(line), 7):
            flipped = bytearray(line)
            flipped[place] ^= 1
            yield f"flip {n + 1}.{place}", n + 1, b"".join(lines[:n]) + bytes(flipped) + rest
        if n + 1 < len(lines):
            yield f"remove {n + 1}", n + 1, b"".join(lines[:n]) + rest
            swapped = [*lines[:n], lines[n + 1], line, *lines[n + 2 :]]
            yield f"exchange {n + 1}", n + 1, b"".join(swapped)
        yield f"twice {n + 1}", n + 2, b"".join(lines[: n + 1]) + line + rest
        yield f"end before {n + 1}", n + 1, b"".join(lines[:n])
        yield f"cut {n + 1}", n + 1, b"".join(lines[:n]) + line[: len(line) // 2]
    yield "empty", 1, b""
