"""A node at work: the bits of the serial executor, restarts, failures, and nothing that listens."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_federation as ff
import pytest

from atoll import simulate
from atoll.core.errors import AtollError, Forbidden, Unreachable
from atoll.job.from_file import job_from_spec
from atoll.job.load import parse_job
from atoll.node import errands
from atoll.runtime.checkpoint import model_hash
from atoll.wire.messages import BlobRef, PollReply

SITES = ("east", "west")


def federation(folder: Path, **over: Any) -> Any:
    """The tables of all sites in ``folder/sites``, and a job on them."""
    (folder / "sites").mkdir()
    for seed, site in enumerate(SITES):
        (folder / "sites" / f"{site}.csv").write_text(ff.table_text(seed))
    return parse_job(ff.job_tables(**over), folder=folder)


def simulated(spec: Any, folder: Path) -> str:
    """The model's hash in a simulation of the same job."""
    return simulate(job_from_spec(spec, folder), executor="serial").model_hash


def nodes(folder: Path, servers: dict[str, ff.FakeServer], **settings: Any) -> list[ff.Running]:
    return [
        ff.Running(ff.node_at(folder, site, server, ff.table_text(seed), **settings))
        for seed, (site, server) in enumerate(servers.items())
    ]


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"algorithm": {"name": "fedavg"}, "model": {"kind": "logistic", "personal": ["intercept"]}},
    ],
    ids=["scaffold", "personal"],
)
def test_a_deployed_run_ends_in_the_bits_of_the_serial_executor(
    tmp_path: Path, over: dict[str, Any]
) -> None:
    spec = federation(tmp_path, **over)
    servers = {site: ff.FakeServer() for site in SITES}
    east, west = nodes(tmp_path, servers)
    with east, west:
        finished = ff.Deployed(spec, servers, tmp_path).prepare().run()
    assert model_hash(finished.progress.state.parameters) == simulated(spec, tmp_path)


@pytest.fixture
def server() -> ff.FakeServer:
    return ff.FakeServer()


@pytest.fixture
def solo(server: ff.FakeServer, tmp_path: Path) -> ff.Solo:
    return ff.Solo(server, tmp_path)


def east(folder: Path, server: Any, **settings: Any) -> ff.Running:
    return ff.Running(ff.node_at(folder, "east", server, ff.table_text(1), **settings))


def worker_of(agent: Any, run: str = "r1") -> int:
    """Number of a run's worker process, once it is at work."""
    ff.eventually(lambda: run in agent._runs and agent._runs[run].state()["worker"])
    return int(agent._runs[run].state()["worker"])


def at_work(agent: Any, task: str) -> bool:
    run = task.partition(".")[0]
    return run in agent._runs and agent._runs[run].state()["tasks"].get(task) == "working"


def test_killing_the_worker_fails_its_task_and_no_other(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server) as agent:
        done = solo.train()
        assert server.result(done.id)[0].status == "done"
        before = worker_of(agent)
        hit = solo.train(60.0)
        ff.eventually(lambda: at_work(agent, hit.id))
        os.kill(before, signal.SIGKILL)
        body, _ = server.result(hit.id)
        assert (body.status, "killed from outside" in body.reason) == ("failed", True)
        after = solo.train()
        assert server.result(after.id)[0].status == "done"
        assert worker_of(agent) != before


def test_a_task_that_takes_too_long_is_ended(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    limits = ff.LIMITS.model_copy(update={"seconds": 1.0})
    with east(tmp_path, server, limits=limits):
        server.result(solo.train().id)  # the worker is there
        body, _ = server.result(solo.train(60.0).id)
        assert (body.status, "took longer than the 1 s" in body.reason) == ("failed", True)
        assert server.result(solo.train().id)[0].status == "done"


def test_a_task_that_is_not_wanted_any_more_is_given_up_at_once(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server) as agent:
        hit = solo.train(60.0)
        ff.eventually(lambda: at_work(agent, hit.id))
        server.withdraw(hit.id)
        assert server.result(solo.train().id)[0].status == "done"
    assert hit.id not in [task for task, _ in server.deliveries]


def test_a_server_that_is_away_gets_the_result_when_it_is_back(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server) as agent:
        server.result(solo.train().id)
        hit = solo.train(1.0)
        ff.eventually(lambda: at_work(agent, hit.id))
        server.down = True
        server.wake()
        ff.eventually(lambda: agent._runs["r1"].state()["tasks"].get(hit.id) == "finished")
        held = agent._site.spool.result("r1", hit.id)
        server.epoch, server.down = 2, False
        server.result(hit.id)
        assert server.deliveries[-1] == (hit.id, held.blob.sha256)
        assert server.result(solo.train().id)[0].status == "done"


def test_a_server_that_stays_away_is_logged_once_for_each_result(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo, caplog: pytest.LogCaptureFixture
) -> None:
    with east(tmp_path, server) as agent:
        server.result(solo.train().id)
        hit = solo.train(1.0)
        ff.eventually(lambda: at_work(agent, hit.id))
        server.down = True
        server.wake()
        ff.eventually(lambda: "is sent again later" in agent._site.trouble.get("r1", ""))
        time.sleep(2.0)  # in which it is tried again
        server.down = False
        server.result(hit.id)
        ff.eventually(lambda: not agent._site.trouble)
    assert caplog.text.count("is sent again later") == 1


def test_a_ledger_that_was_put_back_is_told_of_the_node(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    said = "an old copy was put back"
    with east(tmp_path, server) as agent:
        steward = SimpleNamespace(trouble=said, see=lambda head: None)
        object.__setattr__(agent._site, "steward", steward)
        home = agent._site.home
        ff.eventually(lambda: home.read(home.state).get("trouble") == said)


def test_a_server_that_was_replaced_is_not_worked_for(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server) as agent:
        server.epoch = 2
        server.result(solo.train().id)
        server.epoch = 1
        stale = solo.train()
        ff.eventually(lambda: "it was replaced" in agent._trouble)
        assert agent._state == "not connected"
        assert stale.id not in agent._runs["r1"].state()["tasks"]
        server.epoch = 2
        server.result(stale.id)
        ff.eventually(lambda: agent._state == "connected")


def test_news_that_others_have_overtaken_are_not_taken_in(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server) as agent:
        overdue = agent._takes
        first = solo.train()
        server.result(first.id)
        server.result(solo.train().id)
        ff.eventually(lambda: first.id not in agent._have())
        agent._take(overdue, PollReply(tasks=[first], gone=[], epoch=1), {})
        assert first.id not in agent._have()
        server.result(solo.train().id)
    assert [task for task, _ in server.deliveries].count(first.id) == 1


def test_a_restarted_node_sends_the_same_bytes_and_does_not_work_again(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server) as agent:
        server.result(solo.train().id)
        hit = solo.train(1.0)
        ff.eventually(lambda: at_work(agent, hit.id))
        server.down = True
        server.wake()
        ff.eventually(lambda: agent._site.spool.result("r1", hit.id))
        (held,) = [h for h in agent._site.spool.results if h.task == hit.id]
        bytes_then = held.path.read_bytes()
    server.down = False
    with east(tmp_path, server) as again:
        server.result(hit.id)
        assert server.received[hit.id] == bytes_then
        assert again._runs["r1"].state()["worker"] is None


def test_a_receipt_that_was_lost_is_asked_for_again(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    class Forgetful:
        lost = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(server, name)

        def call(self, method: str, path: str, **more: Any) -> Any:
            reply = server.call(method, path, **more)
            if method == "POST" and self.lost < 2:
                self.lost += 1
                raise Unreachable("the answer was lost")
            return reply

    with east(tmp_path, Forgetful()):
        hit = solo.train()
        ff.eventually(lambda: len(server.deliveries) == 3)
    assert len(set(server.deliveries)) == 1
    assert server.deliveries[0][0] == hit.id


def test_an_error_of_the_server_itself_loses_neither_task_nor_result(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    failed: list[str] = []

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(server, name)

        def once(self, what: str) -> None:
            if what not in failed:
                failed.append(what)
                raise AtollError("an error of the server itself")

        def download(self, blob: Any, path: Path) -> None:
            self.once("download")
            server.download(blob, path)

        def call(self, method: str, path: str, **more: Any) -> Any:
            self.once(method)
            return server.call(method, path, **more)

    solo = ff.Solo(server, tmp_path, size=300_000)
    with east(tmp_path, Broken()):
        assert server.result(solo.train().id)[0].status == "done"
    assert sorted(failed) == ["GET", "POST", "download"]


def test_a_task_that_is_asked_for_again_is_answered_from_the_spool(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server):
        hit = solo.train()
        server.result(hit.id)
        server.lose(hit)
        ff.eventually(lambda: len(server.deliveries) >= 2)
    assert len(set(server.deliveries)) == 1


def test_several_runs_are_worked_on_at_once(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    other = ff.Solo(server, tmp_path, run="r2")
    with east(tmp_path, server) as agent:
        long = solo.train(60.0)
        ff.eventually(lambda: at_work(agent, long.id))
        body, vectors = server.result(other.train().id)
        assert (body.status, vectors["delta"].tolist()) == ("done", [1.0, 2.0, 3.0])
        assert at_work(agent, long.id)


def test_another_site_s_task_is_not_touched(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    stray = solo.train(client="west")
    with east(tmp_path, server):
        ff.eventually(lambda: any(stray.id in have for have in server.polls))
        assert server.result(solo.train().id)[0].status == "done"
    assert [task for task, _ in server.deliveries if task == stray.id] == []


def test_a_dataset_that_is_not_registered_is_named_with_the_remedy(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with ff.Running(ff.node_at(tmp_path, "east", server)):
        body, _ = server.result(solo.train().id)
    assert body.status == "failed"
    assert "no dataset 'sites'" in body.reason
    assert "atoll node data add sites PATH" in body.reason


def test_data_that_change_during_a_run_fail_its_tasks(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server):
        assert server.result(solo.train().id)[0].status == "done"
    (tmp_path / "east.csv").write_text(ff.table_text(2))
    with ff.Running(ff.node_at(tmp_path, "east", server)):
        body, _ = server.result(solo.train().id)
    assert body.status == "failed"
    assert "changed since the run began" in body.reason


def test_long_blobs_are_downloaded_and_long_results_uploaded(
    tmp_path: Path, server: ff.FakeServer
) -> None:
    server.inline = False
    solo = ff.Solo(server, tmp_path, size=200_000)
    with east(tmp_path, server):
        hit = solo.train()
        body, vectors = server.result(hit.id)
    assert (body.status, vectors["delta"][-1]) == ("done", 200_000.0)
    assert server.uploads == [hit.id]


def test_a_blob_that_the_server_does_not_give_fails_the_task(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    missing = BlobRef(sha256="e" * 64, size=10)
    with east(tmp_path, server):
        body, _ = server.result(solo.train(broadcast=missing).id)
    assert (body.status, "cannot be fetched" in body.reason) == ("failed", True)


def test_what_the_cache_could_not_hold_is_not_downloaded(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    huge = BlobRef(sha256="e" * 64, size=1 << 50)
    with east(tmp_path, server):
        body, _ = server.result(solo.train(broadcast=huge).id)
    assert (body.status, "GiB of downloads" in body.reason) == ("failed", True)


def test_an_idle_run_lets_its_worker_go_and_settles_what_it_holds(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errands, "_IDLE", 0.2)
    with east(tmp_path, server) as agent:
        first = solo.train()
        server.result(first.id)
        pid = worker_of(agent)
        ff.eventually(lambda: not Path(f"/proc/{pid}").exists())
        assert agent._site.spool.result("r1", first.id)  # not settled yet
        second = solo.train()
        assert server.result(second.id)[0].status == "done"
        ff.eventually(lambda: not agent._site.spool.result("r1", first.id))
        ff.eventually(lambda: agent._runs["r1"]._over)
        with server.changed:
            server.unsettled.clear()
            server.changed.notify_all()
        ff.eventually(lambda: agent._site.spool.results == ())


def test_a_lost_memory_fails_the_task_and_is_not_taken_for_none(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server):
        body, _ = server.result(solo.train(kept="r1.train.77.east").id)
    assert (body.status, "not at this site any more" in body.reason) == ("failed", True)


def test_a_full_spool_takes_no_more_work(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server, spool=1e-7):
        assert server.result(solo.train().id)[0].status == "done"
        body, _ = server.result(_kept(server, solo))
    assert (body.status, "the spool of this site" in body.reason) == ("failed", True)


def _kept(server: ff.FakeServer, solo: ff.Solo) -> str:
    """A further task, while the first one's result is not settled."""
    body = solo.task()
    with server.changed:
        server.tasks[body.id] = body
        server.changed.notify_all()
    return body.id


def test_the_end_of_a_run_leaves_nothing_of_it(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server) as agent:
        server.result(solo.train().id)
        pid = worker_of(agent)
        server.end("r1")
        ff.eventually(lambda: agent._site.spool.runs == ())
        ff.eventually(lambda: not Path(f"/proc/{pid}").exists())
        assert agent._site.spool.used == 0


def test_a_node_that_was_shown_out_ends_with_the_reason(tmp_path: Path) -> None:
    class Shut:
        def call(self, *_: Any, **__: Any) -> Any:
            raise Forbidden("the key of east was revoked")

    with pytest.raises(Forbidden, match="revoked"):
        ff.node_at(tmp_path, "east", Shut()).run()


def test_the_question_to_the_server_stays_open_and_is_not_repeated(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server) as agent:
        hit = solo.train(1.0)
        ff.eventually(lambda: at_work(agent, hit.id))
        asked = len(server.polls)
        ff.eventually(lambda: server.waiting == 1)
        assert len(server.polls) <= asked + 1
        assert hit.id in server.polls[-1]
        server.result(hit.id)


def listening(pid: int | str) -> list[str]:
    """Sockets of a process that wait for connections: state 0A in the kernel's tables."""
    own = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a file that was closed meanwhile
            own.add(os.readlink(file))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                found.append(fields[1])
    return found


def test_the_check_for_listening_sockets_sees_one() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert len(listening(os.getpid())) == 1


def test_a_receipt_comes_with_the_next_task_and_no_question_is_asked_between(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    with east(tmp_path, server):
        server.result(solo.train().id)
        ff.eventually(lambda: server.waiting == 1)
        server.result(solo.train().id)
        for _ in range(3):
            asked = len(server.polls)
            server.result(solo.train().id)
            assert len(server.polls) == asked + 1  # with the result, or in its place


def test_a_server_that_gives_receipts_alone_is_asked_as_before(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    server.together = False
    with east(tmp_path, server):
        for _ in range(3):
            assert server.result(solo.train().id)[0].status == "done"


def test_a_server_that_puts_no_blob_first_is_understood(
    tmp_path: Path, server: ff.FakeServer, solo: ff.Solo
) -> None:
    server.leading = False
    with east(tmp_path, server):
        for _ in range(2):
            assert server.result(solo.train().id)[0].status == "done"


def test_nothing_listens(tmp_path: Path, server: ff.FakeServer, solo: ff.Solo) -> None:
    before = listening(os.getpid())
    with east(tmp_path, server) as agent:
        hit = solo.train(1.0)
        ff.eventually(lambda: at_work(agent, hit.id))
        assert listening(os.getpid()) == before
        assert listening(worker_of(agent)) == []
        server.result(hit.id)
