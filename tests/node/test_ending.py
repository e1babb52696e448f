"""A node that has ended has left nothing: no worker, no folder of one, no thread cut off in the middle."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import fake_federation as ff
import pytest

from atoll.node.room import process


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder takes a while to be removed."""
    clear = process.clear

    def slowly(folder: Path) -> None:
        time.sleep(0.3)
        clear(folder)

    monkeypatch.setattr(process, "clear", slowly)


def nothing_is_left(folder: Path) -> None:
    assert list((folder / "east" / "work").iterdir()) == []
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("worker ", "run "))]


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("when", ["idle", "at work", "over"])
def test_it_waits_for_the_folders_of_its_workers(tmp_path: Path, when: str) -> None:
    server = ff.FakeServer()
    solo = ff.Solo(server, tmp_path)
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1))) as agent:
        assert server.result(solo.train().id)[0].status == "done"
        if when == "at work":
            hit = solo.train(60.0)
            ff.eventually(lambda: any(hit.id in have for have in server.polls))
        if when == "over":
            server.end("r1")
            ff.eventually(lambda: not agent._runs)
    nothing_is_left(tmp_path)
    assert when != "over" or not (tmp_path / "east" / "spool" / "r1" / "run.json").exists()


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(process, "clear", lambda folder: let_go.wait(60))
    server = ff.FakeServer()
    solo = ff.Solo(server, tmp_path)
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1))):
        assert server.result(solo.train().id)[0].status == "done"
        began = time.monotonic()
    assert time.monotonic() - began < 20.0
    let_go.set()
    ff.eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("worker ")])
