"""What was released is always counted: by hand, by a state machine with crashes, and by events that compose."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from journals import KEY, OTHER_KEY, Crash, crash_at, touched

from atoll.core.errors import DataError, PolicyError, StateError, StorageError
from atoll.node.journal import read_journal
from atoll.node.policy.ledger import Accounts, Charge, Entry, Limit, composed_epsilon
from atoll.node.policy.ledger_file import Ledger, read_ledger
from atoll.privacy.dp.events import Gaussian, MatrixGaussian, to_plain
from atoll.privacy.dp.losses import gaussian_epsilon
from atoll.runtime.schedule import Turns
from atoll.wire.disk import RealDisk
from atoll.wire.lossy_disk import LossyDisk

PLACE = Path("/node/ledger.jsonl")
LIMIT = Limit("heart", 3.0, 1e-5)


def added(events: Any, delta: float, neighbouring: str) -> float:
    """Epsilons that simply add up, so that every number here can be checked by hand."""
    return float(sum(event["epsilon"] * event["count"] for event in events))


def charge(number: int, epsilon: float = 1.0, run: str = "r1", **more: Any) -> Charge:
    event = {"kind": "stated", "epsilon": epsilon, "delta": 0.0, "count": 1}
    given = {"dataset": "heart", "unit": "record", "job": "ab" * 32, "researcher": "ana", **more}
    return Charge(f"{run}.train.{number}.east", events=(event,), run=run, round=number, **given)


def ledger(path: Path, disk: Any = None, federation: str = "") -> Ledger:
    return Ledger(path, KEY, disk, federation=federation, epsilon=added, now=lambda: 1e9)


def test_what_is_reserved_counts_and_what_was_never_released_is_given_back(tmp_path: Path) -> None:
    book = ledger(tmp_path / "ledger.jsonl")
    for number in range(3):
        book.reserve(charge(number), [LIMIT])
    assert book.spent(LIMIT) == 3.0
    with pytest.raises(PolicyError):
        book.reserve(charge(3), [LIMIT])
    book.settle(charge(2).task)  # nothing of it had left
    assert book.spent(LIMIT) == 2.0
    book.release(charge(1).task, "a" * 64)
    book.settle(charge(1).task)
    assert book.spent(LIMIT) == 2.0
    book.reserve(charge(3), [LIMIT])
    assert [e.state for e in book.entries] == ["reserved", "settled", "returned", "reserved"]
    assert ledger(tmp_path / "ledger.jsonl").entries == book.entries


def test_a_second_researcher_is_refused_by_name_of_what_is_left(tmp_path: Path) -> None:
    book = ledger(tmp_path / "ledger.jsonl")
    book.reserve(charge(1, 2.625), [LIMIT])
    with pytest.raises(PolicyError) as caught:
        book.reserve(charge(7, 0.5, run="r2", job="cd" * 32, researcher="ben"), [LIMIT])
    assert caught.value.message == (
        "dataset 'heart' has epsilon 0.37 left of epsilon 3 at delta 1e-05 for one record: round 7 of "
        "job cdcdcdcdcdcd (run r2, by ben) would bring what is spent from 2.63 to 3.13"
    )
    book.reserve(charge(7, 0.375, run="r2", job="cd" * 32, researcher="ben"), [LIMIT])
    assert book.spent(LIMIT) == 3.0


def test_the_same_round_again_costs_nothing_and_another_answer_does_not_leave(
    tmp_path: Path,
) -> None:
    book = ledger(tmp_path / "ledger.jsonl")
    for _ in range(3):
        book.reserve(charge(1), [LIMIT])
    for _ in range(2):
        book.release(charge(1).task, "a" * 64)
    with pytest.raises(StateError, match="another answer"):
        book.release(charge(1).task, "b" * 64)
    with pytest.raises(PolicyError, match="has left this site"):
        book.reserve(charge(1), [LIMIT])
    with pytest.raises(StateError, match="was another one before"):
        book.reserve(charge(1, job="ef" * 32), [LIMIT])
    for task in ("r9.train.1.east", ""):
        with pytest.raises(StateError, match="nothing is reserved"):
            book.release(task, "a" * 64)
    assert book.spent(LIMIT) == 1.0


def test_what_was_given_back_does_not_leave_and_may_be_reserved_again(tmp_path: Path) -> None:
    book = ledger(tmp_path / "ledger.jsonl")
    book.reserve(charge(1), [LIMIT])
    book.settle(charge(1).task)
    with pytest.raises(StateError, match="nothing is reserved"):
        book.release(charge(1).task, "a" * 64)
    book.reserve(charge(1, 2.0), [LIMIT])
    assert book.spent(LIMIT) == 2.0


def test_another_federation_may_call_its_runs_the_same_and_all_of_it_counts(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    old = ledger(path, federation="old-1")
    old.reserve(charge(1), [LIMIT])
    old.release(charge(1).task, "a" * 64)
    old.reserve(charge(2, 0.25), [LIMIT])  # of which nothing will leave
    new = ledger(path, federation="new-2")
    assert new.entry(charge(1).task) is None
    assert new.open("r1") == ()
    assert new.give_back({charge(2).task}) == 1  # what lies here under this name is the new one's
    new.reserve(charge(1), [LIMIT])
    new.release(charge(1).task, "b" * 64)
    assert new.spent(LIMIT) == 2.0
    with pytest.raises(PolicyError, match="has left this site"):
        ledger(path, federation="old-1").reserve(charge(1), [LIMIT])
    (found,) = read_ledger(path, KEY.public_bytes, epsilon=added)[0].balances([LIMIT])
    assert (found.spent, found.runs, found.rounds) == (2.0, 2, 2)


def test_noise_over_a_whole_run_is_counted_for_each_federation_s(tmp_path: Path) -> None:
    event = to_plain(MatrixGaussian("tree", 5.0, rounds=8, participations=2, separation=3))
    made = Charge("r1.1", "heart", "site", (event,), "ab" * 32, "r1", 1)
    accounts = Accounts(lambda events, delta, relation: float(sum(e["count"] for e in events)))
    for each in (made, replace(made, federation="new-2")):
        accounts.check(each, [LIMIT])
        accounts.take(Entry(each, "reserved"))
    assert accounts.spent(LIMIT) == 2.0


def test_lines_without_a_federation_are_the_first_one_s_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger(path).reserve(charge(1), [LIMIT])  # as before they had one
    ledger(path, federation="old-1").release(charge(1).task, "a" * 64)
    (found,) = ledger(path, federation="new-2").entries
    assert (found.state, found.charge.federation) == ("released", "old-1")


def test_datasets_do_not_count_for_each_other(tmp_path: Path) -> None:
    book = ledger(tmp_path / "ledger.jsonl")
    book.reserve(charge(1, 3.0), [LIMIT])
    book.reserve(charge(2, 5.0, dataset="lung"), [LIMIT])
    assert book.spent(LIMIT) == 3.0
    assert book.spent(Limit("lung", 9.0, 1e-5)) == 5.0


def test_a_coarser_unit_counts_for_a_finer_one_and_not_the_other_way_round(tmp_path: Path) -> None:
    book = ledger(tmp_path / "ledger.jsonl")
    site = Limit("heart", 2.0, 1e-5, "site")
    book.reserve(charge(1, unit="site"), [LIMIT, site])
    assert (book.spent(LIMIT), book.spent(site)) == (2.0, 1.0)
    with pytest.raises(PolicyError, match=r"limit for one site.*promises something for one record"):
        book.reserve(charge(2), [LIMIT, site])
    book.reserve(charge(2), [LIMIT])
    assert (book.spent(LIMIT), book.spent(site)) == (3.0, math.inf)
    (first, second) = Accounts(added).balances([LIMIT, site])
    assert (first.spent, second.left) == (0.0, 2.0)


def test_a_record_of_a_hidden_site_costs_twice_the_contribution_of_the_site() -> None:
    # A record more may turn the site's update round, from +C to -C: N(2 C, z C) against N(0, z C).
    event = to_plain(Gaussian(4.0))
    accounts = Accounts()
    made = Charge("r1.train.1.east", "heart", "site", (event,), "ab" * 32, "r1", 1)
    accounts.take(Entry(made, "released"))
    for relation, twice in (("add_or_remove", gaussian_epsilon(4.0, 1e-5)), ("replace", None)):
        site = Limit("heart", 9.0, 1e-5, "site", relation)
        record = replace(site, unit="record")
        assert accounts.spent(record) == pytest.approx(gaussian_epsilon(2.0, 1e-5))
        assert accounts.spent(site) == pytest.approx(twice or gaussian_epsilon(2.0, 1e-5))
    person = Limit("heart", 1.5, 1e-5, "person")
    with pytest.raises(PolicyError, match="for one person"):
        Accounts().check(made, [person])  # 0.93 for the site, 1.99 for one of its persons


def test_noise_over_a_whole_run_is_counted_once_and_only_for_the_rounds_it_was_made_for() -> None:
    event = to_plain(MatrixGaussian("tree", 5.0, rounds=8, participations=2, separation=3))
    accounts = Accounts(lambda events, delta, relation: float(sum(e["count"] for e in events)))

    def of(number: int, run: str = "r1") -> Charge:
        return Charge(f"{run}.{number}", "heart", "site", (event,), "ab" * 32, run, number)

    def go(number: int, run: str = "r1") -> None:
        accounts.check(of(number, run), [LIMIT])
        accounts.take(Entry(of(number, run), "reserved"))

    go(1)
    with pytest.raises(PolicyError, match="3 apart"):
        go(3)
    go(4)
    assert accounts.spent(LIMIT) == 1.0
    with pytest.raises(PolicyError, match="round 3 of them"):
        go(8)
    go(1, "r2")
    with pytest.raises(PolicyError):
        go(9, "r2")  # a run of eight rounds
    assert accounts.spent(LIMIT) == 2.0
    accounts.take(Entry(of(1), "returned"))
    assert accounts.spent(LIMIT) == 2.0
    accounts.take(Entry(of(4), "returned"))
    assert accounts.spent(LIMIT) == 1.0


def test_a_job_whose_sites_rest_is_refused_when_it_asks_more_often_than_it_says(
    tmp_path: Path,
) -> None:
    book, turns = ledger(tmp_path / "ledger.jsonl"), Turns(rounds=9, visits=3, separation=4)
    limit = Limit("heart", 100.0, 1e-5)

    def ask(number: int, run: str = "r1") -> None:
        book.reserve(charge(number, run=run), [limit], turns)

    ask(2)
    for near in (0, 3, 5):
        with pytest.raises(PolicyError, match="3 of 9 rounds, 4 apart"):
            ask(near)
    book.settle("r1.train.2.east")  # nothing left: it may be asked again at once
    ask(3)
    book.release("r1.train.3.east", "a" * 64)
    ask(7)
    with pytest.raises(PolicyError, match="3 of 9 rounds"):
        ask(12)  # the plan has nine rounds, whatever the server says their numbers are
    ask(3, "r2")  # another run of the job is paid for by itself
    assert book.spent(limit) == 3.0
    again = ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(PolicyError, match="4 apart"):
        again.reserve(charge(9), [limit], turns)


def test_a_job_that_asks_for_epsilon_3_over_50_rounds_stops_at_3(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    from atoll.privacy.dp.calibration import Goal, calibrate

    noise = calibrate(Goal(3.0, 1e-5), rounds=50)
    event = to_plain(Gaussian(noise))
    book = Ledger(tmp_path / "ledger.jsonl", KEY)

    def asked(number: int) -> Charge:
        return Charge(f"r1.{number}", "heart", "record", (event,), "ab" * 32, "r1", number)

    for number in range(50):
        book.reserve(asked(number), [LIMIT])
    with pytest.raises(PolicyError, match=r"epsilon 0\.0\d left of epsilon 3"):
        book.reserve(asked(50), [LIMIT])
    assert 2.98 < book.spent(LIMIT) <= 3.0
    assert composed_epsilon([{**event, "count": 50}], 1e-5, "add_or_remove") == book.spent(LIMIT)


def test_what_cannot_be_added_up_is_not_begun(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.jsonl", KEY)
    asked = Charge("r1.1", "heart", "record", ({"kind": "hope", "count": 1},), "ab" * 32)
    with pytest.raises(Exception, match="unknown privacy event 'hope'"):
        book.reserve(asked, [LIMIT])
    assert book.entries == ()


def test_a_start_gives_back_what_was_lost_with_the_process_and_keeps_what_lies_ready(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.jsonl"
    book = ledger(path)
    for number in range(4):
        book.reserve(charge(number, 0.5), [LIMIT])
    book.release(charge(0).task, "a" * 64)
    again = ledger(path)
    assert again.give_back({charge(1).task}) == 2
    assert again.spent(LIMIT) == 1.0
    assert [e.state for e in ledger(path).entries] == [
        "released",
        "reserved",
        "returned",
        "returned",
    ]


def test_a_touched_ledger_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    book = ledger(path)
    for number in range(2):
        book.reserve(charge(number), [LIMIT])
        book.release(charge(number).task, "a" * 64)
    refused = total = 0
    for _, line, raw in touched(path.read_bytes()):
        path.write_bytes(raw)
        total += 1
        for opened in (ledger, lambda p: read_ledger(p, KEY.public_bytes)):
            with pytest.raises(StorageError, match=f"line {line}:"):
                opened(path)
        refused += 1
    assert refused == total > 200


def test_an_old_copy_of_the_whole_folder_is_refused_once_the_server_has_spoken(
    tmp_path: Path,
) -> None:
    path, head = tmp_path / "ledger.jsonl", tmp_path / "ledger.jsonl.head"
    book = ledger(path)
    book.reserve(charge(1), [LIMIT])
    old = path.read_bytes(), head.read_bytes()
    book.release(charge(1).task, "a" * 64)
    book.reserve(charge(2), [LIMIT])
    seen = str(book.head)
    book.see(seen)
    book.see("")
    book.see("no head at all")
    book.see(str(Ledger(tmp_path / "other" / "ledger.jsonl", OTHER_KEY).head))
    assert book.trouble == ""
    path.write_bytes(old[0])
    head.write_bytes(old[1])
    back = ledger(path)
    back.reserve(charge(5), [LIMIT])  # the server has not spoken yet
    back.see(seen)
    for act in (
        lambda: back.reserve(charge(6), [LIMIT]),
        lambda: back.release(charge(5).task, "b" * 64),
    ):
        with pytest.raises(StorageError, match=r"is not the newest: .*line 3"):
            act()
    back.settle(charge(5).task)  # what never left may still be given back
    assert back.spent(LIMIT) == 1.0


def test_a_line_that_is_no_entry_is_named() -> None:
    good = Entry(charge(1), "reserved")
    assert Entry.from_plain(good.to_plain()) == good
    for change in ({"state": "lost"}, {"unit": "house"}, {"more": 1}, {"events": 3}):
        with pytest.raises(DataError, match="no entry"):
            Entry.from_plain({**good.to_plain(), **change})


@pytest.mark.parametrize("refused", ["append", "ledger.jsonl", ".ledger.jsonl.head.partial"])
def test_what_the_disk_refused_is_written_by_the_next_try_before_anything_leaves(
    tmp_path: Path, refused: str
) -> None:
    class Full(RealDisk):
        full = False

        def append(self, path: Path, offset: int, data: Any) -> None:
            if self.full and refused == "append":
                raise StorageError("no space left on device")
            super().append(path, offset, data)

        def fsync(self, path: Path) -> None:
            if self.full and path.name == refused:
                raise StorageError("no space left on device")
            super().fsync(path)

    disk, path, task = Full(), tmp_path / "ledger.jsonl", charge(1).task
    book = ledger(path, disk)
    for act in (
        lambda: book.reserve(charge(1), [LIMIT]),
        lambda: book.release(task, "a" * 64),
    ):
        disk.full = True
        with pytest.raises(StorageError, match="no space"):
            act()
        assert book.spent(LIMIT) == 1.0  # it counts from the try on
        disk.full = False
        act()
    assert [e.state for e in ledger(path).entries] == ["released"]
    assert read_journal(path, KEY.public_bytes).digest(book.head.count) == book.head.digest


def work(book: Ledger, left: list[str]) -> None:
    """Three rounds; ``left`` are the tasks whose answers have left the site."""
    for number in range(3):
        if charge(number).task in left:
            continue
        book.reserve(charge(number, 0.75), [LIMIT])
        book.release(charge(number).task, "a" * 64)
        left.append(charge(number).task)
        book.settle(charge(number).task)


@pytest.mark.parametrize("power", [False, True], ids=["program", "power"])
def test_after_a_crash_at_any_operation_all_that_left_is_counted(power: bool) -> None:
    ended, crashes = False, 0
    while not ended:
        crashes += 1
        disk, left = crash_at(crashes), list[str]()
        try:
            work(ledger(PLACE, disk), left)
            ended = True
        except Crash:
            pass
        disk.before = lambda operation, path: None
        if power:
            disk.crash(Random(crashes))
        after = ledger(PLACE, disk)
        counted = after.spent(LIMIT)
        assert 0.75 * len(left) <= counted <= 0.75 * (len(left) + 1)
        held = [e for e in after.entries if e.state == "released"]
        after.give_back(())
        # Over-counted by a release in flight at most: what was reserved only is back.
        assert after.spent(LIMIT) <= 0.75 * (len(left) + 1)
        again = [*left, *(e.charge.task for e in held if e.charge.task not in left)]
        work(after, again)
        assert after.spent(LIMIT) == 2.25
        assert len(read_journal(PLACE, KEY.public_bytes, disk).bodies) >= 6
    assert crashes > 60


class Machine(RuleBasedStateMachine):
    """Rounds that are reserved, answered and settled, on a disk that fails in every way."""

    @initialize(seed=st.integers(0, 99))
    def begin(self, seed: int) -> None:
        self.random, self.fail = Random(seed), 0
        self.disk = LossyDisk(self.before)
        self.book = ledger(PLACE, self.disk)
        self.left: dict[str, str] = {}
        self.heads: list[str] = []

    def before(self, operation: str, path: Path) -> None:
        if self.fail:
            self.fail -= 1
            if not self.fail:
                raise Crash if self.crash else StorageError("the disk is full")

    crash = False
    numbers = st.integers(0, 5)

    def attempt(self, act: Any) -> bool:
        """Do it; what fails, fails by the disk, by a crash, or by a rule."""
        try:
            act()
        except (StorageError, PolicyError, StateError):
            return False
        except Crash:
            self.restart(power=False, keep=())
            return False
        finally:
            self.fail = 0
        return True

    @rule(soon=st.integers(1, 14), crash=st.booleans())
    def fails_soon(self, soon: int, crash: bool) -> None:
        self.fail, self.crash = soon, crash

    @rule(number=numbers, epsilon=st.sampled_from((0.5, 1.0, 1.5)))
    def reserve(self, number: int, epsilon: float) -> None:
        before = self.book.spent(LIMIT)
        if self.attempt(lambda: self.book.reserve(charge(number, epsilon), [LIMIT])):
            assert self.book.spent(LIMIT) <= LIMIT.epsilon
            assert self.book.spent(LIMIT) - before in (0.0, epsilon)

    @rule(number=numbers, answer=st.sampled_from(("a" * 64, "b" * 64)))
    def release(self, number: int, answer: str) -> None:
        task = charge(number).task
        if self.attempt(lambda: self.book.release(task, answer)):
            assert self.left.get(task, answer) == answer  # never two answers
            self.left[task] = answer
            self.heads.append(str(self.book.head))

    @rule(number=numbers)
    def settle(self, number: int) -> None:
        self.attempt(lambda: self.book.settle(charge(number).task))

    @rule(power=st.booleans(), keep=st.sets(numbers))
    def restart(self, power: bool, keep: Any) -> None:
        self.fail = 0
        if power:
            self.disk.crash(self.random)
        self.book = ledger(PLACE, self.disk)
        self.book.give_back({charge(number).task for number in keep})

    @precondition(lambda self: self.heads)
    @rule()
    def hear_from_the_server(self) -> None:
        self.book.see(self.heads[-1])
        assert self.book.trouble == ""

    @invariant()
    def what_left_is_counted(self) -> None:
        if not hasattr(self, "book"):
            return
        counted = {e.charge.task for e in self.book.entries if e.state != "returned"}
        assert self.left.keys() <= counted
        states = {e.charge.task: e.state for e in self.book.entries}
        assert all(states[task] in ("released", "settled") for task in self.left)
        total = sum(
            e.charge.events[0]["epsilon"] for e in self.book.entries if e.state != "returned"
        )
        assert self.book.spent(LIMIT) == total <= LIMIT.epsilon


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
