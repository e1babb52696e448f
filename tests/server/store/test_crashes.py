"""Servers that are killed, cut off or beaten to it: nothing half-done, nothing acknowledged lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import event
from store_rows import answer, invite, key, round_row, run_row, secret, started

from atoll.core.errors import FenceError, NotFound, StateError, StorageError
from atoll.server.store import database
from atoll.server.store.sql import SqlStore

WRITER = Path(__file__).with_name("store_writer.py")


def writer(url: str) -> subprocess.Popen[str]:
    """A server in a process of its own, writing already."""
    process = subprocess.Popen([sys.executable, WRITER, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.first = process.stdout.readline()
    return process


def killed(process: subprocess.Popen[str]) -> list[str]:
    """End it without a word of warning; returns what it had said."""
    os.kill(process.pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=30)
    # What is cut off in the middle of a line was acknowledged all the same.
    return said.splitlines()


class TestKilled:
    def test_no_kill_leaves_half_a_transaction(self, url: str) -> None:
        random, said = Random(7), []
        for epoch in range(1, 6):
            process = writer(url)
            assert process.first == f"epoch {epoch}\n"
            said += [process.stdout.readline().strip() for _ in range(random.randint(8, 24))]
            time.sleep(random.uniform(0.0, 0.01))
            said += killed(process)
        store = SqlStore(url)
        rounds, rows = store.rounds("r1"), store.contributions("r1")
        assert len(rounds) > 5
        assert [r.number for r in rounds] == list(range(1, len(rounds) + 1))
        assert {f"round {r.number}" for r in rounds} >= {s for s in said if s.startswith("round")}
        assert {f"task {c.task}" for c in rows} >= {s for s in said if s.startswith("task")}
        assert all(store.held(c.sha256) == c.task.encode() * 500 for c in rows)
        with store.database.reading() as db:
            marks = dict(
                tuple(r) for r in db.exec_driver_sql("SELECT task, round FROM contributions")
            )
        for row in rounds:
            assert len(row.tasks) == 3
            assert all(marks.pop(task) == row.number for task in row.tasks)
        assert set(marks.values()) <= {None}
        assert len(marks) <= 3
        store.close()

    def test_lock_is_free_at_once_after_a_kill(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process = writer(url)
        store = SqlStore(url)
        monkeypatch.setattr(database, "_PATIENCE", 0.2)
        with pytest.raises(FenceError, match="writer"):
            store.acquire("second", 1.0)
        killed(process)
        monkeypatch.setattr(database, "_PATIENCE", 10.0)
        assert store.acquire("second", 2.0) == 2
        store.close()


def comes_to(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)


def cut_off(store: SqlStore) -> None:
    """Take a server's lock away without its knowing."""
    if store.database.sqlite:
        store.database.unlock()
        return
    with store.database.writing() as db:
        db.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
        )


class TestTwoServers:
    def test_cut_off_server_can_write_nothing(self, url: str) -> None:
        first, second = SqlStore(url), SqlStore(url)
        started(first)
        task = "r1.train.0.Ulm"
        first.hold("a" * 64, b"small")
        first.contribute(1, answer(task))
        first.drop("a" * 64)
        first.hold("b" * 64, b"late")
        cut_off(first)
        assert second.acquire("second", 2.0) == 2
        writes = [
            lambda: first.add_run(1, run_row("r2")),
            lambda: first.set_run(1, "r1", status="failed"),
            lambda: first.contribute(1, answer("r1.train.0.Bern")),
            lambda: first.contribute(1, answer(task)),
            lambda: first.commit_round(1, round_row(1, (task,))),
        ]
        for write in writes:
            with pytest.raises(FenceError, match="another server took over"):
                write()
        for store in (first, second):
            assert store.runs() == (run_row(),)
            assert [c.task for c in store.contributions("r1")] == [task]
            assert store.rounds("r1") == ()
        assert second.holdings() == {"a" * 64: 5}
        second.commit_round(2, round_row(1, (task,)))
        assert first.kept("r1", "Ulm") == task
        first.close()
        second.close()

    def test_transaction_under_way_ends_before_the_store_changes_hands(self, url: str) -> None:
        first, second = SqlStore(url), SqlStore(url)
        started(first)
        cut_off(first)
        seen: list[object] = []

        def take_over() -> None:
            second.acquire("second", 2.0)
            seen.append(second.run("r1").status)

        thread = threading.Thread(target=take_over)
        with first.database.writing(1) as db:
            thread.start()
            db.exec_driver_sql("UPDATE runs SET status = 'completed'")
            time.sleep(0.3)
            assert seen == []
        thread.join(30)
        assert seen == ["completed"]
        first.close()
        second.close()

    def test_one_commits_of_two_that_race(self, url: str) -> None:
        first, second = SqlStore(url), SqlStore(url)
        started(first)
        cut_off(first)
        tasks = [f"r1.train.{n}.Ulm" for n in range(20)]
        for task in tasks:
            first.contribute(1, answer(task))
        committed: list[tuple[int, int]] = []

        def play(store: SqlStore, epoch: int) -> None:
            try:
                for n, task in enumerate(tasks):
                    store.commit_round(epoch, round_row(n + 1, (task,)))
                    committed.append((epoch, n + 1))
            except (FenceError, StateError):
                return

        threads = [threading.Thread(target=play, args=(first, 1))]
        threads[0].start()
        time.sleep(0.02)
        second.acquire("second", 2.0)
        last = second.last_round("r1")
        done = 0 if last is None else last.number
        tasks_left = tasks[done:]
        for n, task in enumerate(tasks_left, done + 1):
            second.commit_round(2, round_row(n, (task,)))
            committed.append((2, n))
        threads[0].join(30)
        assert max(Counter(n for _, n in committed).values()) == 1
        assert [r.number for r in second.rounds("r1")] == list(range(1, 21))
        first.close()
        second.close()


class TestManyThreads:
    def test_first_of_many_equal_answers_is_new(self, url: str) -> None:
        store = SqlStore(url)
        started(store)
        heard: list[str] = []
        barrier = threading.Barrier(6)

        def send(letter: str) -> None:
            barrier.wait()
            heard.append(store.contribute(1, answer("r1.train.0.Ulm", letter * 64)))

        threads = [threading.Thread(target=send, args=(x,)) for x in "aaabbb"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Counter(heard) == {"new": 1, "same": 2, "different": 3}
        assert len(store.contributions("r1")) == 1
        store.close()

    def test_answers_that_come_together_share_a_commit(self, url: str) -> None:
        store = SqlStore(url)
        started(store)
        store.add_run(1, run_row("r2"))
        commits: list[int] = []
        event.listen(store.database.engine, "checkin", lambda *_: commits.append(1))
        told: dict[str, object] = {}

        def send(task: str, epoch: int) -> None:
            try:
                told[task] = store.contribute(epoch, answer(task))
            except (FenceError, NotFound) as error:
                told[task] = type(error)

        tasks = [f"r1.train.0.site-{n}" for n in range(8)]
        others = {"r1.train.0.late": 7, "r3.train.0.Ulm": 1, "r2.train.0.Ulm": 1}
        # While this transaction is open all of them arrive; the first waits to write for the rest.
        with store.database.writing():
            threads = [
                threading.Thread(target=send, args=one)
                for one in [*((task, 1) for task in tasks), *others.items()]
            ]
            threads[0].start()
            comes_to(lambda: store._leading.locked() and not store._arrived)
            for thread in threads[1:]:
                thread.start()
            comes_to(lambda: len(store._arrived) == len(threads) - 1)
            commits.clear()
        for thread in threads:
            thread.join(30)
        wanted: dict[str, object] = dict.fromkeys(tasks, "new")
        wanted |= dict(zip(others, (FenceError, NotFound, "new"), strict=True))
        assert told == wanted
        assert len(commits) == 3  # the open one, the first to come, all the others
        assert len(store.contributions("r1")) == 8
        store.close()

    def test_all_who_share_a_commit_share_its_failure(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = SqlStore(url)
        started(store)
        told: list[str] = []

        def send(task: str) -> None:
            try:
                told.append(store.contribute(1, answer(task)))
            except StorageError as error:
                told.append(error.message)

        def full(*_: object) -> None:
            raise StorageError("the disk is full")

        monkeypatch.setattr(store, "_hear", full)
        with store.database.writing():
            threads = [threading.Thread(target=send, args=(f"r1.train.{n}.Ulm",)) for n in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(0.2)
        for thread in threads:
            thread.join(30)
        assert told == ["the disk is full"] * 4
        monkeypatch.undo()
        assert store.contribute(1, answer("r1.train.0.Ulm")) == "new"
        store.close()

    def test_one_code_admits_one_of_many_keys(self, url: str) -> None:
        store, other = SqlStore(url), SqlStore(url)
        store.add_invite(invite("Ulm"))
        admitted: list[str] = []
        barrier = threading.Barrier(4)

        def join(at: SqlStore, letter: str) -> None:
            barrier.wait()
            try:
                admitted.append(at.join(secret("Ulm"), "", key(letter), 1.0).fingerprint)
            except Exception as error:
                admitted.append(type(error).__name__)

        threads = [
            threading.Thread(target=join, args=(at, x))
            for at, x in zip((store, other) * 2, "abcd", strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Counter(admitted)["AuthError"] == 3
        assert [m.fingerprint for m in store.members()] == [a for a in admitted if len(a) == 64]
        store.close()
        other.close()

    def test_commands_write_beside_the_server(self, url: str) -> None:
        store, command = SqlStore(url), SqlStore(url)
        epoch = started(store)
        failed: list[BaseException] = []

        def invite_many() -> None:
            try:
                for n in range(20):
                    command.add_invite(invite(f"site {n}"))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=invite_many)
        thread.start()
        for n in range(20):
            store.contribute(epoch, answer(f"r1.train.{n}.Ulm"))
        thread.join()
        assert failed == []
        assert len(command.contributions("r1")) == len(store.invites()) == 20
        store.close()
        command.close()
