"""Nodes as processes of their own that are killed, stopped and started again."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_federation as ff
import node_process
import pytest
from doors import door_to, home_at, node_in_a_process
from process_copies import Copy

from atoll import simulate
from atoll.job.from_file import job_from_spec
from atoll.job.load import parse_job
from atoll.node.audit.reading import check, entries
from atoll.node.home import Home
from atoll.runtime.checkpoint import model_hash
from atoll.wire.identity import Identity


def started(door: str, home: Path, point: str = "") -> Copy:
    return node_in_a_process("node_process", door, home, point)


class Reborn(threading.Thread):
    """Starts a node that dies at one point after another, and last one that lives."""

    def __init__(self, door: str, home: Path) -> None:
        super().__init__(daemon=True)
        self.door, self.home = door, home
        self.deaths: list[str] = []
        self.done = threading.Event()
        self.gaps: list[float] = []

    def run(self) -> None:
        for point in node_process.POINTS:
            process = started(self.door, self.home, point)
            while process.poll() is None and not self.done.wait(0.01):
                pass
            if self.done.is_set():
                process.kill()
                process.wait()
                return
            assert process.returncode == -signal.SIGKILL
            self.deaths.append(point)
        process = started(self.door, self.home)
        self.done.wait()
        process.terminate()
        assert process.wait(45) == 0


@pytest.mark.slow
def test_a_node_killed_at_every_point_changes_no_bit_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    for seed, site in enumerate(("east", "west")):
        (tmp_path / "sites" / f"{site}.csv").write_text(ff.table_text(seed))
    rounds = {"count": len(node_process.POINTS) + 2}
    spec = parse_job(ff.job_tables(rounds=rounds, evaluation={"every": 4}), folder=tmp_path)
    servers = {site: ff.FakeServer() for site in ("east", "west")}
    home = home_at(tmp_path, "east", ff.table_text(0))
    west = ff.Running(ff.node_at(tmp_path, "west", servers["west"], ff.table_text(1)))
    with door_to(servers["east"], tmp_path) as door, west:
        reborn = Reborn(door, home)
        reborn.start()
        finished = ff.Deployed(spec, servers, tmp_path).prepare().run()
        ff.eventually(
            lambda: len(reborn.deaths) == len(node_process.POINTS) or not reborn.is_alive()
        )
        reborn.done.set()
        reborn.join(30)
    assert reborn.deaths == list(node_process.POINTS)
    expected = simulate(job_from_spec(spec, tmp_path), executor="serial").model_hash
    assert model_hash(finished.progress.state.parameters) == expected
    delivered = set(servers["east"].deliveries)
    lines = Counter((e["task"], e["answer"]) for e in entries_of(home) if e["what"] == "answer")
    assert delivered <= lines.keys()
    assert set(lines.values()) == {1}  # however often it was sent
    # Of each of these deaths one answer may be left over that was never sent.
    assert len(lines) <= len(delivered) + len(node_process.POINTS)
    assert check(Home(home).audit, Identity.load(Home(home).identity).public_bytes).lines


def entries_of(home: Path) -> list[dict[str, Any]]:
    """The node's audit log."""
    at = Home(home)
    return list(entries(at.audit, Identity.load(at.identity).public_bytes))


@contextmanager
def one_node(folder: Path) -> Iterator[tuple[ff.FakeServer, ff.Solo, Copy, str]]:
    server = ff.FakeServer()
    solo = ff.Solo(server, folder)
    home_at(folder, "east", ff.table_text(1))
    with door_to(server, folder) as door:
        process = started(door, folder / "east")
        try:
            yield server, solo, process, door
        finally:
            process.kill()
            process.wait()
            server.down = True
            server.wake()


def worker_of(folder: Path) -> int:
    """Number of the worker process, as ``atoll node status`` would read it."""

    def state() -> Any:
        runs = Home(folder / "east").read(Home(folder / "east").state).get("runs", {})
        return runs.get("r1", {}).get("worker")

    ff.eventually(state)
    return int(state())


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def test_a_terminated_node_ends_at_once_and_takes_up_its_work_again(tmp_path: Path) -> None:
    with one_node(tmp_path) as (server, solo, process, door):
        assert server.result(solo.train().id)[0].status == "done"
        hit = solo.train(60.0)
        pid = worker_of(tmp_path)
        ff.eventually(lambda: any(hit.id in have for have in server.polls))
        process.terminate()
        assert process.wait(30) == 0  # its task takes a minute
        ff.eventually(lambda: ended(pid), 25.0)
        assert json.loads((tmp_path / "east" / "state.json").read_text())["state"] == "stopped"
        server.offer(solo.task(id=hit.id, broadcast=solo.task().broadcast))
        again = started(door, tmp_path / "east")
        try:
            assert server.result(hit.id)[0].status == "done"
        finally:
            again.terminate()
            assert again.wait(45) == 0


def test_workers_of_a_killed_node_do_not_outlive_it(tmp_path: Path) -> None:
    with one_node(tmp_path) as (server, solo, process, _):
        server.result(solo.train().id)
        pid = worker_of(tmp_path)
        solo.train(60.0)
        ff.eventually(lambda: not ended(pid))
        process.kill()
        process.wait()
        ff.eventually(lambda: ended(pid), 45.0)


def test_two_nodes_do_not_share_a_folder(tmp_path: Path) -> None:
    with one_node(tmp_path) as (_, __, ___, door):
        ff.eventually(lambda: Home(tmp_path / "east").running)
        second = started(door, tmp_path / "east")
        assert second.wait(45) == 1
