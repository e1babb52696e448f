"""A server that was put back from a backup is told so by its sites, however often it was started since."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_bench import Bench

from atoll.core.errors import FenceError, PutBack
from atoll.server.blobs.folder import FolderBlobs
from atoll.server.epochs import PUT_BACK, put_back
from atoll.server.service import Service
from atoll.server.store.contract import RESTORED
from atoll.server.store.memory import MemoryDatabase, MemoryStore
from atoll.wire.lossy_disk import LossyDisk


def started(database: MemoryDatabase, drawn: str) -> Service:
    """One more start on that store; the one before has ended."""
    database.holder = None
    store, blobs = MemoryStore(database), FolderBlobs(Path("/blobs"), LossyDisk())
    service = Service(store, blobs, Path("/none"), now=lambda: 9.0)
    service.start(drawn * 16)
    return service


@pytest.fixture
def lost() -> tuple[MemoryDatabase, MemoryDatabase]:
    """A store in its epoch 2, and a copy of its epoch 1 that was started three times since."""
    database = MemoryDatabase()
    started(database, "a")
    backup = MemoryDatabase(lease=database.lease, starts=copy.copy(database.starts))
    started(database, "b")
    for drawn in "cde":
        started(backup, drawn)
    return database, backup


def test_starts_that_the_store_knows_are_no_trouble(
    lost: tuple[MemoryDatabase, MemoryDatabase],
) -> None:
    service = started(lost[0], "f")
    for seen in ("", "3", "3-" + "f" * 16, "2-" + "b" * 16, "1-" + "a" * 16, "no epoch"):
        service.epochs.hear("ulm", seen)
    assert service.epochs.strange == 0
    assert not lost[0].events


@pytest.mark.parametrize("seen", ["2-" + "b" * 16, "9-" + "b" * 16, "9"])
def test_a_start_that_it_does_not_know_says_that_it_was_put_back(
    lost: tuple[MemoryDatabase, MemoryDatabase], seen: str
) -> None:
    backup = lost[1]
    service = started(backup, "f")
    for _ in range(2):
        with pytest.raises(PutBack, match="put back from a backup") as caught:
            service.epochs.hear("ulm", seen)
    assert f"--seen {max(5, int(seen[0]))}" in caught.value.remedy
    with pytest.raises(PutBack):
        service.epochs.check("ulm")
    service.epochs.check("bern")
    service.epochs.hear("bern", "1-" + "a" * 16)  # away since before the copy
    assert [(e.kind, e.site) for e in backup.events] == [(PUT_BACK, "ulm")]
    assert service.epochs.strange == 1
    told, remedy = put_back(backup.events, 5)
    assert "ulm" in told
    assert f"--seen {max(5, int(seen[0]))}" in remedy


def test_it_is_over_when_the_server_was_told(lost: tuple[MemoryDatabase, MemoryDatabase]) -> None:
    backup = lost[1]
    service = started(backup, "f")
    with pytest.raises(PutBack):
        service.epochs.hear("ulm", "2-" + "b" * 16)
    backup.holder = None
    store = MemoryStore(backup)
    assert store.acquire("a restore", 9.0, 5) == 6  # as atoll server restored does
    store.add_event(RESTORED, "from a backup", "", "", 9.0)
    assert put_back(backup.events, 6) == ("", "")
    again = started(backup, "9")
    again.epochs.hear("ulm", "2-" + "b" * 16)
    assert again.epochs.strange == 0
    with pytest.raises(PutBack):
        again.epochs.hear("ulm", "8-" + "b" * 16)


def test_a_server_that_was_replaced_does_not_take_its_successor_for_a_lost_start(
    lost: tuple[MemoryDatabase, MemoryDatabase],
) -> None:
    old = started(lost[0], "f")
    started(lost[0], "9")
    with pytest.raises(FenceError):
        old.epochs.hear("ulm", "4-" + "9" * 16)
    assert not lost[0].events


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_such_a_site_is_told_with_its_question_and_nothing_is_taken_from_it(bench: Bench) -> None:
    ulm = bench.admit("ulm")
    assert bench.ask(ulm, "GET", "/v1/poll", f"have=&wait=0&seen={bench.epoch}").status == 200
    heard = bench.ask(ulm, "GET", "/v1/poll", f"have=&wait=0&seen={bench.epoch + 7}-{'b' * 16}")
    assert heard.code == "wire.putback"
    heard = bench.ask(ulm, "POST", "/v1/results/r-1.train.1.ulm", body=b"an old answer")
    assert heard.code == "wire.putback"
    bern = bench.admit("bern")
    assert bench.ask(bern, "GET", "/v1/poll", "have=&wait=0").status == 200
    assert bench.ask(ulm, "GET", "/v1/poll", "have=&wait=0").status == 200  # its file was removed


def test_an_answer_is_held_to_the_same_before_the_site_has_asked_for_anything(bench: Bench) -> None:
    ulm, path = bench.admit("ulm"), "/v1/results/r-1.train.1.ulm"
    heard = bench.ask(ulm, "POST", path, f"ledger=&seen={bench.epoch + 7}-{'b' * 16}", body=b"old")
    assert heard.code == "wire.putback"
    assert "put back from a backup" in heard.json["message"]
    assert [(e.kind, e.site) for e in bench.store.events() if e.kind == PUT_BACK] == [
        (PUT_BACK, "ulm")
    ]
    assert bench.ask(ulm, "POST", path, "ledger=", body=b"old").code == "wire.putback"
    heard = bench.ask(ulm, "POST", path, f"ledger=&seen={bench.epoch}", body=b"any")
    assert heard.code == "state.missing"  # as where nothing is amiss
    assert bench.service.epochs.strange == 0
