"""The durable book of masked rounds says what the one in memory says, through restarts, crashes and kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import KEY, Crash, crash_at, touched

from atoll.core.errors import StateError, StorageError
from atoll.node.pledges import Pledges
from atoll.privacy.secagg.ledger import Book, Record
from atoll.privacy.secagg.terms import Occasion
from atoll.wire.identity import Identity
from atoll.wire.lossy_disk import LossyDisk

PLACE = Path("/node/pledges.jsonl")
NAMES = ("a", "b", "c", "d", "e")
KINDS = ("join", "input", "pledge", "release")


def step(
    kind: str,
    attempt: int = 0,
    round: int = 1,
    members: tuple[str, ...] = NAMES,
    source: str = "",
    memory: str = "",
) -> Record:
    value = b"set" + bytes(",".join(members), "ascii") if kind in KINDS[2:] else kind.encode()
    at = Occasion("lagoon", "job", round, attempt, f"model {round % 2}")
    named = members if kind in KINDS[2:] else ()
    return Record(kind, at, value, named, source, memory)  # type: ignore[arg-type]


def test_a_round_is_released_once_whatever_is_started_again(tmp_path: Path) -> None:
    path = tmp_path / "pledges.jsonl"
    for kind in KINDS:
        Pledges(path, KEY).keep(step(kind))
    for kind in KINDS:
        Pledges(path, KEY).keep(step(kind))  # the same again is no other
    book = Pledges(path, KEY)
    assert [record.kind for record in book.records] == list(KINDS)
    for other in (step("join", 1), step("release", members=NAMES[:4]), step("release", 1)):
        with pytest.raises(StateError, match="released for round 1 already"):
            book.keep(other)
    assert len(path.read_bytes().splitlines()) == 4


def test_an_update_is_in_one_sum_whatever_is_started_again(tmp_path: Path) -> None:
    path = tmp_path / "pledges.jsonl"
    for kind in KINDS:
        Pledges(path, KEY).keep(step(kind, round=1, source="v7"))
    book = Pledges(path, KEY)
    assert {record.source for record in book.records} == {"v7"}
    with pytest.raises(StateError, match="update is in the sum of round 1 already"):
        book.keep(step("join", round=2, source="v7"))
    book.keep(step("join", round=2, source="v8"))  # another version is another update
    again = step("join", round=3, source="v7")  # of the very buffer, which had no sum
    assert again.occasion.model == step("join", round=1).occasion.model
    book.keep(again)


def test_one_model_is_in_sums_with_one_memory_of_the_site(tmp_path: Path) -> None:
    """Rounds 1 and 3 start from one model, as in a run whose round 1 had no sum, or in the same job anew."""
    path = tmp_path / "pledges.jsonl"
    for kind in KINDS:
        Pledges(path, KEY).keep(step(kind, round=1, memory="m1"))
    book = Pledges(path, KEY)
    assert {record.memory for record in book.records} == {"m1"}
    for other in ("", "m2"):
        for attempt, members in enumerate((NAMES, ("a", "x", "y", "z"))):
            with pytest.raises(StateError, match="another memory, is in the sum of round 1"):
                book.keep(step("join", attempt, round=3, members=members, memory=other), 3)
    for kind in KINDS[:2]:
        book.keep(step(kind, round=3, memory="m1"), 3)
    with pytest.raises(StateError, match="input was made from another memory"):
        book.keep(step("pledge", round=3, memory="m2"), 3)
    book.keep(step("pledge", round=3, memory="m1"), 3)
    book.keep(step("join", round=2, memory="m2"), 3)  # which is another model


steps = st.builds(
    step,
    st.sampled_from(KINDS),
    st.integers(0, 2),
    st.integers(1, 3),
    st.sampled_from((NAMES, NAMES[:4], NAMES[:2])),
    st.sampled_from(("", "start", "model 1")),
    st.sampled_from(("", "own")),
)


@settings(deadline=None)
@given(st.lists(st.tuples(steps, st.booleans()), max_size=20))
def test_it_allows_what_the_book_in_memory_allows(asked: list[tuple[Record, bool]]) -> None:
    disk, model = LossyDisk(), Book()
    book = Pledges(PLACE, KEY, disk)
    for record, restart in asked:
        if restart:
            disk.crash()
            book = Pledges(PLACE, KEY, disk)
        said = []
        for each in (model, book):
            try:
                each.keep(record, 3)
                said.append("")
            except StateError as error:
                said.append(error.message)
        assert bool(said[0]) == bool(said[1]), said
        assert book.records == tuple(model.records)


def test_after_a_crash_at_any_operation_no_round_is_released_twice() -> None:
    for number in range(1, 60):
        disk, kept = crash_at(number), list[Record]()
        ended = False
        try:
            book = Pledges(PLACE, KEY, disk)
            for kind in KINDS:
                book.keep(step(kind))
                kept.append(step(kind))
            ended = True
            disk.before = lambda operation, path: None
        except Crash:
            pass
        disk.crash(Random(number))
        after = Pledges(PLACE, KEY, disk)
        assert list(after.records[: len(kept)]) == kept  # what may have left is written
        if len(kept) == 4:
            with pytest.raises(StateError):
                after.keep(step("join", 1))
        if ended:
            return
    raise AssertionError("the last crash came before the end")


def test_a_touched_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pledges.jsonl"
    book = Pledges(path, KEY)
    for kind in KINDS:
        book.keep(step(kind))
    for _, line, raw in touched(path.read_bytes()):
        path.write_bytes(raw)
        with pytest.raises(StorageError, match=f"line {line}:"):
            Pledges(path, KEY)


PROCESS = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[3])
    from test_pledges import KINDS, step
    from atoll.node.pledges import Pledges
    from atoll.wire.identity import Identity

    book = Pledges(Path(sys.argv[1]), Identity.load(Path(sys.argv[2])))
    first = int(sys.argv[4])
    for number in range(first, first + 1000):
        for kind in KINDS:
            book.keep(step(kind, round=number))
            print(kind, number, flush=True)
    """
)


def test_a_killed_process_has_written_every_step_it_told_of(tmp_path: Path) -> None:
    path, key = tmp_path / "pledges.jsonl", tmp_path / "identity.pem"
    identity, draw = Identity.create(key), Random(5)
    told: set[tuple[str, int]] = set()
    for start in range(4):
        run = [sys.executable, "-c", PROCESS, str(path), str(key), str(Path(__file__).parent)]
        with subprocess.Popen([*run, str(1000 * start)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(draw.randint(3, 12)):
                kind, number = process.stdout.readline().decode().split()
                told.add((kind, int(number)))
            os.kill(process.pid, signal.SIGKILL)
            for line in process.stdout.read().decode().splitlines():
                if len(line.split()) == 2:
                    told.add((line.split()[0], int(line.split()[1])))
        book = Pledges(path, identity)
        written = {(record.kind, record.occasion.round) for record in book.records}
        assert told <= written
        assert len(written) <= len(told) + start + 1
        for kind, number in told:
            if kind == "release":
                with pytest.raises(StateError):
                    book.keep(step("join", 1, number))
