"""Whatever is asked of them in whatever order, the database and its twin in memory answer alike."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from postgres_cluster import Cluster
from store_rows import answer, invite, key, round_row, run_row, secret

from atoll.core.errors import AtollError
from atoll.server.store.contract import Store, Upload
from atoll.server.store.memory import MemoryDatabase, MemoryStore
from atoll.server.store.sql import SqlStore

RUNS = st.sampled_from(["r1", "r2", "none"])
CLIENTS = st.sampled_from(["Bern", "Ulm"])
TASKS = st.builds(
    "{}.{}.{}.{}".format,
    RUNS,
    st.sampled_from(["train", "evaluate"]),
    st.integers(0, 3),
    CLIENTS,
)
NAMES = st.sampled_from(["", "Bern", "Ulm", "a\nb"])
LETTERS = st.sampled_from("abc")
# The newest epoch, or one that is too old or not there yet.
OFF = st.sampled_from([0, 0, 0, 0, 0, -1, 1])


class Twins(RuleBasedStateMachine):
    """Asks both the same and compares what they say, refusals included."""

    new_database: Callable[[], Callable[[], Store]]

    def __init__(self) -> None:
        super().__init__()
        self.database = MemoryDatabase()
        self.now = 0.0
        self.reopen = type(self).new_database()
        self.stores: tuple[Store, Store] = (self.reopen(), MemoryStore(self.database))
        self.epoch = 0
        self.both(lambda s: s.acquire("one", 0.0))
        self.epoch = 1
        self.both(lambda s: s.add_run(1, run_row("r1")))

    def both(self, ask: Callable[[Store], Any]) -> Any:
        sql, twin = (self.told(ask, store) for store in self.stores)
        assert sql == twin
        return sql

    @staticmethod
    def told(ask: Callable[[Store], Any], store: Store) -> Any:
        try:
            return ask(store)
        except AtollError as error:
            return type(error), error.message

    @rule(drawn=st.sampled_from(["", "0" * 16, "f" * 16]), above=st.sampled_from([0, 0, 50]))
    def restart(self, drawn: str, above: int) -> None:
        for store in self.stores:
            store.close()
        self.stores = (self.reopen(), MemoryStore(self.database))
        self.epoch = self.both(lambda s: s.acquire("again", self.now, above, drawn))

    @rule(off=OFF, run=RUNS)
    def add_run(self, off: int, run: str) -> None:
        self.both(lambda s: s.add_run(self.epoch + off, run_row(run, reason="ü\0")))

    @rule(off=OFF, run=RUNS, word=st.text(max_size=3))
    def set_run(self, off: int, run: str, word: str) -> None:
        self.both(lambda s: s.set_run(self.epoch + off, run, phase=word, reason=word * 2))

    @rule(off=OFF, run=RUNS, name=NAMES, back=st.booleans())
    def share_or_unshare(self, off: int, run: str, name: str, back: bool) -> None:
        if back:
            self.both(lambda s: s.unshare(self.epoch + off, run, name, self.now))
        else:
            self.both(lambda s: s.share(self.epoch + off, run, name, self.now))
        self.both(lambda s: (s.readers(run), s.shared_with(name)))

    @rule(off=OFF, task=TASKS, letter=LETTERS, weight=st.floats(allow_nan=False))
    def contribute(self, off: int, task: str, letter: str, weight: float) -> None:
        row = answer(task, letter * 64, weight=weight, received=self.now)
        self.both(lambda s: s.contribute(self.epoch + off, row))

    @rule(off=OFF, number=st.integers(0, 6), tasks=st.lists(TASKS, max_size=3), run=RUNS)
    def commit_anything(self, off: int, number: int, tasks: list[str], run: str) -> None:
        self.both(lambda s: s.commit_round(self.epoch + off, round_row(number, tuple(tasks), run)))

    @rule(data=st.data(), run=RUNS)
    def commit_next(self, data: st.DataObject, run: str) -> None:
        heard = [c.task for c in self.stores[1].contributions(run)]
        last = self.stores[1].last_round(run)
        tasks = data.draw(st.lists(st.sampled_from(heard), unique=True) if heard else st.just([]))
        row = round_row(1 if last is None else last.number + 1, tuple(tasks), run)
        self.both(lambda s: s.commit_round(self.epoch, row))

    @rule(off=OFF, tasks=st.lists(TASKS, max_size=3), letter=LETTERS)
    def contribute_all(self, off: int, tasks: list[str], letter: str) -> None:
        rows = [answer(task, letter * 64, received=self.now) for task in tasks]
        self.both(lambda s: s.contribute_all(self.epoch + off, rows))

    @rule(off=OFF, tasks=st.lists(TASKS, max_size=3, unique=True), letter=LETTERS, run=RUNS)
    def commit_with_answers(self, off: int, tasks: list[str], letter: str, run: str) -> None:
        last = self.stores[1].last_round(run)
        row = round_row(1 if last is None else last.number + 1, tuple(tasks), run)
        rows = [answer(task, letter * 64, received=self.now) for task in tasks]
        self.both(lambda s: s.commit_round(self.epoch + off, row, rows))

    @rule(name=NAMES, text=LETTERS, expires=st.sampled_from([5.0, 1e9]))
    def add_invite(self, name: str, text: str, expires: float) -> None:
        self.both(lambda s: s.add_invite(invite(name, text, expires=expires)))

    @rule(text=LETTERS, name=NAMES, letter=LETTERS)
    def join(self, text: str, name: str, letter: str) -> None:
        self.now += 1.0
        self.both(lambda s: s.join(secret(text), name, key(letter), self.now))

    @rule(name=NAMES, status=st.sampled_from(["revoked", "left"]))
    def set_member(self, name: str, status: Any) -> None:
        self.both(lambda s: s.set_member(name, status))

    @rule(letter=LETTERS, drop=st.booleans())
    def hold_or_drop(self, letter: str, drop: bool) -> None:
        if drop:
            self.both(lambda s: s.drop(letter * 64))
        else:
            self.both(lambda s: s.hold(letter * 64, letter.encode()))
        self.both(lambda s: s.held(letter * 64))

    @rule(off=OFF, owner=CLIENTS, letters=st.lists(LETTERS, max_size=3), gone=st.lists(LETTERS))
    def note_uploads(self, off: int, owner: str, letters: list[str], gone: list[str]) -> None:
        rows = [Upload(owner, a * 64, n, self.now) for n, a in enumerate(dict.fromkeys(letters))]
        left = [Upload(owner, a * 64, 0, 0.0) for a in gone]
        self.both(lambda s: s.note_uploads(self.epoch + off, rows, left))

    @rule(text=st.text(max_size=5), run=RUNS)
    def add_event(self, text: str, run: str) -> None:
        self.both(lambda s: s.add_event("note", text, run, "", self.now))

    @rule(task=TASKS, after=st.integers(-1, 3))
    def ask_for_parts(self, task: str, after: int) -> None:
        run = task.partition(".")[0]
        prefix = task[: len(task) // 2]
        self.both(lambda s: s.contributions(run, prefix))
        self.both(lambda s: s.rounds(run, after))
        self.both(lambda s: s.events(run, after))

    @invariant()
    def all_is_equal(self) -> None:
        self.both(lambda s: (s.lease(), s.runs(), s.members(), s.invites(), s.events()))
        self.both(lambda s: sorted(s.holdings().items()))
        self.both(lambda s: (sorted(s.starts().items()), s.uploads()))
        for run in ("r1", "r2"):
            self.both(lambda s, r=run: (s.contributions(r), s.rounds(r), s.last_round(r)))
            self.both(lambda s, r=run: (s.kept(r, "Bern"), s.kept(r, "Ulm")))

    def teardown(self) -> None:
        for store in self.stores:
            store.close()


def machine(new_database: Callable[[], Callable[[], Store]]) -> type[Twins]:
    return type("Machine", (Twins,), {"new_database": staticmethod(new_database)})


def patient(examples: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def test_sqlite_and_memory_answer_alike(tmp_path: Path) -> None:
    template = tmp_path / "template.db"
    SqlStore(str(template)).close()

    def new() -> Callable[[], Store]:
        path = Path(tempfile.mkdtemp(dir=tmp_path)) / "store.db"
        shutil.copy(template, path)
        return lambda: SqlStore(str(path))

    run_state_machine_as_test(machine(new), settings=patient(20))


def test_postgresql_and_memory_answer_alike(postgres: Cluster) -> None:
    def new() -> Callable[[], Store]:
        url = postgres.new_database()
        return lambda: SqlStore(url)

    run_state_machine_as_test(machine(new), settings=patient(6))


@pytest.mark.parametrize("operation", ["contribute", "commit_round"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_crash_falls_before_or_after_a_write(operation: str, when: str) -> None:
    def crash(name: str) -> None:
        if name == operation:
            raise KeyboardInterrupt

    database = MemoryDatabase()
    store = MemoryStore(database, **{when: crash})
    epoch = store.acquire("one", 0.0)
    store.add_run(epoch, run_row())

    def play() -> None:
        store.contribute(epoch, answer("r1.train.0.Ulm"))
        store.commit_round(epoch, round_row(1, ("r1.train.0.Ulm",)))

    with pytest.raises(KeyboardInterrupt):
        play()
    store.crash()
    with pytest.raises(AtollError, match="crashed"):
        store.runs()
    again = MemoryStore(database)
    assert again.acquire("two", 1.0) == 2
    heard, rounds = len(again.contributions("r1")), len(again.rounds("r1"))
    written = when == "after"
    assert (heard, rounds) == ((written, 0) if operation == "contribute" else (1, written))


def test_server_that_lost_its_lock_lives_on_and_is_fenced() -> None:
    database = MemoryDatabase()
    first, second = MemoryStore(database), MemoryStore(database)
    first.acquire("one", 0.0)
    first.lose_lock()
    assert second.acquire("two", 1.0) == 2
    with pytest.raises(AtollError, match="another server took over"):
        first.add_run(1, run_row())
    first.crash()
    with pytest.raises(AtollError, match="held by two"):
        MemoryStore(database).acquire("three", 2.0)
