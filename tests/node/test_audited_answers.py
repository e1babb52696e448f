"""Nodes with an audit log at work: a line for every answer before it leaves, one, and no values in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_federation as ff
import pytest

from atoll.core.errors import StateError, StorageError
from atoll.node.agent import Agent
from atoll.node.audit.answers import Answers
from atoll.node.audit.log import AuditLog
from atoll.node.audit.reading import check, entries
from atoll.node.datasets import Datasets
from atoll.node.home import Home
from atoll.node.policy.steward import opened
from atoll.node.settings import Policy, Settings
from atoll.wire.disk import RealDisk
from atoll.wire.identity import Identity


@pytest.fixture
def server() -> ff.FakeServer:
    return ff.FakeServer()


class Full(RealDisk):
    """A disk that takes no lines of the audit log for a while."""

    full = False

    def append(self, path: Path, offset: int, data: Any) -> None:
        if self.full and path.parent.name == "audit":
            raise StorageError("no space left on device")
        super().append(path, offset, data)


def east(folder: Path, server: Any, disk: Any = None, steward: Any = None) -> ff.Running:
    home = Home(folder / "east")
    home.make()
    if not home.identity.exists():
        Identity.create(home.identity)
        (folder / "east.csv").write_text(ff.table_text(1))
        Datasets(home.datasets).add("sites", folder / "east.csv")
    log = AuditLog(home.audit, Identity.load(home.identity), disk)
    settings = Settings(limits=ff.LIMITS)
    agent = Agent(home, "east", server, settings, jitter=lambda: 0.0, steward=steward, audit=log)
    return ff.Running(agent)


def lines(folder: Path, what: str = "answer") -> list[dict[str, Any]]:
    home = Home(folder / "east")
    key = Identity.load(home.identity).public_bytes
    check(home.audit, key)
    return [e for e in entries(home.audit, key) if e["what"] == what]


def hang_up(server: ff.FakeServer) -> None:
    server.down = True
    server.wake()
    ff.eventually(lambda: server.waiting == 0)
    server.down = False


def test_what_left_stands_in_the_log_with_its_hash_and_whose_job_it_was(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    solo = ff.Solo(server, tmp_path)
    with east(tmp_path, server):
        ready = server.offer(solo.run.task("ready", "east", initial=True))
        server.result(ready.id)
        task = solo.train()
        server.result(task.id)
        while_running = lines(tmp_path)
    found = lines(tmp_path)
    assert [(e["task"], e["answer"]) for e in found] == server.deliveries
    assert while_running == found
    last = found[-1]
    raw = server.received[task.id]
    assert (last["bytes"], last["answer"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert last["job"] == solo.run.spec.hash()
    told = {key: last[key] for key in ("by", "dataset", "aggregation", "kind", "form", "outcome")}
    assert told == {
        "by": "ana",
        "dataset": "sites",
        "aggregation": "plain",
        "kind": "train",
        "form": "plain",
        "outcome": "left",
    }
    assert task.broadcast is not None
    assert (last["model"], last["rows"], last["round"]) == (task.broadcast.sha256, 42, 0)
    assert [e["change"] for e in lines(tmp_path, "dataset")] == ["registered"]


def test_no_value_of_a_row_is_in_the_log(tmp_path: Path, server: ff.FakeServer) -> None:
    solo = ff.Solo(server, tmp_path)
    with east(tmp_path, server):
        for kind in ("survey", "sums", "ready"):
            server.result(server.offer(solo.run.task(kind, "east", initial=kind == "ready")).id)
        server.result(solo.train().id)
    raw = "".join(p.read_text() for p in Home(tmp_path / "east").audit.glob("*.jsonl"))
    cells = {cell for row in ff.table_text(1).splitlines()[1:] for cell in row.split(",")[:2]}
    assert len(cells) > 100
    assert not [cell for cell in cells if cell in raw]


def test_an_answer_that_is_sent_again_has_one_line(tmp_path: Path, server: ff.FakeServer) -> None:
    solo = ff.Solo(server, tmp_path)
    with east(tmp_path, server):
        task = solo.train()
        server.result(task.id)
        server.lose(task)
        server.result(task.id)
    hang_up(server)
    with east(tmp_path, server):  # a new process sends it of itself
        ff.eventually(lambda: len(server.deliveries) > 2)
    assert len(set(server.deliveries)) == 1
    assert len(lines(tmp_path)) == 1


def test_an_answer_in_the_spool_without_a_line_gets_it_before_it_leaves(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    """As after a power failure, which took the line and left the answer."""
    solo = ff.Solo(server, tmp_path)
    with east(tmp_path, server):
        task = solo.train()
        server.result(task.id)
    hang_up(server)
    shutil.rmtree(Home(tmp_path / "east").audit)
    with east(tmp_path, server):
        ff.eventually(lambda: len(server.deliveries) > 1)
    (line,) = lines(tmp_path)
    assert (line["task"], line["answer"]) == server.deliveries[0]
    assert (line["kind"], line["round"], line["outcome"], line["rows"]) == ("train", 0, "left", 42)


def test_what_was_refused_and_what_failed_is_told_with_the_reason(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    solo = ff.Solo(server, tmp_path)
    with east(tmp_path, server):
        bodies = [server.result(solo.train(-1.0).id)[0]]  # no code sleeps for so long
        Datasets(Home(tmp_path / "east").datasets).remove("sites")
        bodies.append(server.result(solo.train().id)[0])
    hang_up(server)
    home = Home(tmp_path / "east")
    Datasets(home.datasets).add("sites", tmp_path / "east.csv")
    rules = opened(home, Settings(policy=Policy(unmasked=False)))
    with east(tmp_path, server, steward=rules):
        bodies.append(server.result(solo.train().id)[0])
    found = lines(tmp_path)
    assert [e["outcome"] for e in found] == ["failed", "failed", "refused"]
    assert [e["outcome"] for e in found] == [body.status for body in bodies]
    assert [e["reason"] for e in found] == [body.reason[:500] for body in bodies]
    assert "ValueError" in found[0]["reason"]
    assert "without masks" in found[2]["reason"]
    assert [e["change"] for e in lines(tmp_path, "dataset")][:2] == ["registered", "removed"]


class Refusing:
    """A steward that lets nothing leave."""

    trouble = ""

    def __getattr__(self, name: str) -> Any:
        return lambda *given: "" if name == "tell" else None

    def leaving(self, held: Any) -> None:
        raise StateError("another answer has left this site")


def test_an_answer_that_stays_after_all_is_told_once(tmp_path: Path, server: ff.FakeServer) -> None:
    solo = ff.Solo(server, tmp_path)
    with east(tmp_path, server, steward=Refusing()):
        task = solo.train()
        ff.eventually(lambda: lines(tmp_path, "withheld"))
        server.withdraw(task.id)
        server.offer(task)
        server.lost.add(task.id)
        server.wake()
        ff.eventually(lambda: len(server.polls) > 3)
    assert server.deliveries == []
    (line,) = lines(tmp_path, "withheld")
    assert line["reason"] == "another answer has left this site"
    assert line["answer"] == lines(tmp_path)[0]["answer"]


def test_nothing_leaves_while_the_log_cannot_be_written(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    disk, solo = Full(), ff.Solo(server, tmp_path)
    with east(tmp_path, server, disk):
        server.result(solo.train().id)
        disk.full = True
        task = solo.train()
        state = tmp_path / "east" / "state.json"
        ff.eventually(lambda: "no space left" in json.loads(state.read_text())["trouble"])
        assert len(server.deliveries) == 1
        disk.full = False
        server.result(task.id)
    assert [e["task"] for e in lines(tmp_path)] == [task for task, _ in server.deliveries]


def test_a_head_that_cannot_be_written_is_said_once_for_as_long_as_it_stays_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found: list[str] = []

    def anchor() -> None:
        if found:
            raise StorageError(found[0])

    answers = Answers(SimpleNamespace(anchor=anchor), Path, str, dict)  # type: ignore[arg-type]
    for said in (["full"], ["full"], ["read-only"], [], ["read-only"]):
        found[:] = said
        answers.anchor()
    assert [record.getMessage() for record in caplog.records] == ["full", "read-only", "read-only"]


def test_the_line_is_durable_before_a_byte_leaves(tmp_path: Path, server: ff.FakeServer) -> None:
    """Also of a long answer, which is brought to the server while the disk writes it."""
    synced: list[int] = []

    class Noting(RealDisk):
        def fsync(self, path: Path) -> None:
            size = path.stat().st_size
            super().fsync(path)
            if path.suffix == ".jsonl":
                synced.append(size)

    log = tmp_path / "east" / "audit" / "audit-000001.jsonl"

    class Asking(ff.FakeServer):
        def _durable(self, sha256: str) -> None:
            raw = log.read_bytes()
            end = raw.index(b"\n", raw.index(sha256.encode())) + 1
            assert synced[-1] >= end

        def call(self, method: str, path: str, **more: Any) -> Any:
            if method == "POST" and "kind" in more:
                self._durable(hashlib.sha256(more["body"]).hexdigest())
            return super().call(method, path, **more)

        def upload(self, blob: Any, path: Path, task: str) -> None:
            self._durable(blob.sha256)
            super().upload(blob, path, task)

    asking = Asking()
    solo = ff.Solo(asking, tmp_path, size=200_000)  # more than a request may hold
    with east(tmp_path, asking, Noting()):
        asking.result(solo.train().id)
        asking.result(asking.offer(solo.run.task("ready", "east")).id)
    assert len(asking.uploads) == 1
    assert len(lines(tmp_path)) == 2
