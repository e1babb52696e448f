"""Row 8: the ledger at the site never counts too little, and a file that was touched is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

from atoll.core.errors import StorageError
from atoll.node.policy.ledger import Charge, Limit
from atoll.node.policy.ledger_file import Ledger
from atoll.wire.lossy_disk import LossyDisk
from benchmarks.privacy.figures import Figure

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "node"))

from journals import KEY, Crash, crash_at, touched

PLACE = Path("/node/ledger.jsonl")
HEAD = Path("/node/ledger.jsonl.head")
LIMIT = Limit("heart", 100.0, 1e-5)


def _charge(number: int) -> Charge:
    event = {"kind": "stated", "epsilon": 1.0, "delta": 0.0, "count": 1}
    return Charge(f"r1.{number}", "heart", "record", (event,), "ab" * 32, "r1", number)


def _opened(disk: LossyDisk) -> Ledger:
    return Ledger(PLACE, KEY, disk, epsilon=lambda events, *_: sum(e["count"] for e in events))


def _work(book: Ledger, left: list[int]) -> None:
    for number in range(3):
        book.reserve(_charge(number), [LIMIT])
        book.release(_charge(number).task, "a" * 64)
        left.append(number)
        book.settle(_charge(number).task)


def crashes(quick: bool) -> list[Figure]:
    """The program ends, or the power fails, at every disk operation of three rounds."""
    tried = under = over = 0
    point, ended = 0, False
    while not ended:
        point += 1
        for seed in range(3 if quick else 40):
            disk, left = crash_at(point), list[int]()
            try:
                _work(_opened(disk), left)
                ended = True
            except Crash:
                pass
            disk.before = lambda operation, path: None
            if seed:  # seed 0: the program alone ended
                disk.crash(Random(seed))
            counted = _opened(disk).spent(LIMIT)
            tried += 1
            under += counted < len(left)
            over += counted > len(left) + 1
    what = f"{tried:,} crashes at {point} disk operations of three rounds"
    figure = f"{under} under-counted, {over} over-counted by more than one release"
    return [Figure(8, what, "0 under-counts", figure, under == over == 0)]


def forks(quick: bool) -> list[Figure]:
    """Every kind of touch on every line, and older copies of file and folder."""
    disk = LossyDisk()
    rounds = 3 if quick else 20
    copies, books = [], [_opened(disk)]
    for number in range(rounds):
        copies.append((disk.read(PLACE) if number else b"", disk.read(HEAD)))
        books[0].reserve(_charge(number), [LIMIT])
        books[0].release(_charge(number).task, "a" * 64)
    raw, head, seen = disk.read(PLACE), disk.read(HEAD), str(books[0].head)
    changed = [*(each for _, _, each in touched(raw)), *(old for old, _ in copies)]
    refused = sum(_refused(disk, each, head) for each in changed)
    folders = 0
    for old, older in copies:  # the whole folder: found when the server says what it has seen
        _put(disk, old, older)
        back = _opened(disk)
        back.see(seen)
        folders += bool(back.trouble)
    return [
        Figure(
            8,
            f"{len(changed):,} files flipped, cut, reordered, doubled or older",
            "100 % refused",
            f"{refused:,} refused",
            refused == len(changed),
        ),
        Figure(
            8,
            f"{rounds} older copies of the whole folder, once the server has answered",
            "100 % refused",
            f"{folders} refused",
            folders == rounds,
        ),
    ]


def _put(disk: LossyDisk, raw: bytes, head: bytes) -> None:
    disk.write(PLACE, [raw])
    disk.write(HEAD, [head])


def _refused(disk: LossyDisk, raw: bytes, head: bytes) -> bool:
    _put(disk, raw, head)
    try:
        _opened(disk)
    except StorageError as error:
        return "line " in error.message
    return False
