"""Every store keeps the contract: durable, fenced, exactly once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from store_rows import answer, invite, key, round_row, run_row, secret, started

from atoll.core.errors import AuthError, FenceError, NotFound, StateError, StorageError
from atoll.server.store import database
from atoll.server.store.contract import Lease, Store

Opener = Callable[[], Store]


class TestTheLock:
    def test_epochs_grow_by_one_over_restarts(self, opener: Opener) -> None:
        for epoch in (1, 2, 3):
            one = opener()
            assert one.acquire("server", float(epoch)) == epoch
            assert one.lease() == Lease(epoch, "server", float(epoch))
            one.close()

    def test_fresh_store_has_no_holder(self, store: Store) -> None:
        assert store.lease().epoch == 0

    def test_second_live_server_is_refused_by_name(
        self, opener: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = opener(), opener()
        first.acquire("lab-a pid 12", 0.0)
        with monkeypatch.context() as patch:
            patch.setattr(database, "_PATIENCE", 0.2)
            with pytest.raises(FenceError, match="lab-a pid 12"):
                second.acquire("lab-b", 1.0)
        assert second.lease().epoch == 1
        first.close()
        assert second.acquire("lab-b", 2.0) == 2

    def test_epochs_go_on_behind_one_that_others_have_seen(self, opener: Opener) -> None:
        for above, epoch in ((17, 18), (3, 19), (0, 20)):
            one = opener()
            assert one.acquire("server", 0.0, above) == epoch
            assert one.lease().epoch == epoch
            one.close()

    def test_server_cannot_acquire_twice(self, store: Store) -> None:
        store.acquire("server", 0.0)
        with pytest.raises(FenceError):
            store.acquire("server", 1.0)

    @pytest.mark.parametrize("epoch", [0, 1, 3])
    def test_no_write_of_another_epoch_leaves_a_trace(self, opener: Opener, epoch: int) -> None:
        store = opener()
        started(store)
        store.contribute(1, answer("r1.train.0.Ulm"))
        store.close()
        newer = opener()
        assert newer.acquire("newer", 20.0) == 2
        refused = [
            lambda: newer.add_run(epoch, run_row("r2")),
            lambda: newer.set_run(epoch, "r1", status="failed"),
            lambda: newer.share(epoch, "r1", "bob", 21.0),
            lambda: newer.unshare(epoch, "r1", "bob", 21.0),
            lambda: newer.contribute(epoch, answer("r1.train.0.Bern")),
            lambda: newer.commit_round(epoch, round_row(1, ("r1.train.0.Ulm",))),
        ]
        for write in refused:
            with pytest.raises(FenceError, match=f"epoch is {epoch}, the store's is 2"):
                write()
        assert newer.runs() == (run_row(),)
        assert [c.client for c in newer.contributions("r1")] == ["Ulm"]
        assert newer.last_round("r1") is None
        assert newer.kept("r1", "Ulm") == ""
        assert newer.readers("r1") == ()

    def test_closed_store_answers_no_more(self, store: Store) -> None:
        store.close()
        with pytest.raises(StorageError, match="closed"):
            store.runs()


class TestMembers:
    def test_code_admits_its_key_once(self, store: Store) -> None:
        store.add_invite(invite("Ulm"))
        member = store.join(secret("Ulm"), "", key("u"), 5.0)
        assert (member.name, member.role, member.key) == ("Ulm", "site", key("u"))
        assert member.fingerprint == hashlib.sha256(key("u")).hexdigest()
        assert (member.status, member.joined) == ("active", 5.0)
        assert store.members() == (member,)
        assert store.member(member.fingerprint) == member
        assert store.member("0" * 64) is None
        (used,) = store.invites()
        assert (used.used, used.used_by) == (5.0, member.fingerprint)
        with pytest.raises(AuthError, match="used before"):
            store.join(secret("Ulm"), "", key("x"), 6.0)
        assert store.members() == (member,)

    def test_lost_reply_can_be_asked_for_again(self, store: Store) -> None:
        store.add_invite(invite("Ulm"))
        first = store.join(secret("Ulm"), "", key("u"), 5.0)
        assert store.join(secret("Ulm"), "", key("u"), 500.0) == first

    @pytest.mark.parametrize(
        ("text", "name", "now", "message"),
        [
            ("other", "", 5.0, "not known"),
            ("Ulm", "", 100.0, "expired"),
            ("Ulm", "Bern", 5.0, "for 'Ulm', not 'Bern'"),
        ],
    )
    def test_wrong_code_admits_nobody(
        self, store: Store, text: str, name: str, now: float, message: str
    ) -> None:
        store.add_invite(invite("Ulm"))
        with pytest.raises(AuthError, match=message):
            store.join(secret(text), name, key("u"), now)
        assert store.members() == ()
        assert store.invites() == (invite("Ulm"),)

    def test_open_code_lets_the_newcomer_say_its_name(self, store: Store) -> None:
        store.add_invite(invite("", "open", role="researcher"))
        assert store.join(secret("open"), "ada", key("a"), 1.0).name == "ada"
        assert store.members()[0].role == "researcher"

    @pytest.mark.parametrize("name", ["", " x", "a\nb", "a\0b", "x" * 201, "\ud800"])
    def test_name_that_is_none_is_refused(self, store: Store, name: str) -> None:
        store.add_invite(invite("", "open"))
        with pytest.raises(StateError, match="not a name"):
            store.join(secret("open"), name, key("a"), 1.0)
        assert store.members() == ()

    def test_name_of_an_active_member_is_taken(self, store: Store) -> None:
        store.add_invite(invite("Ulm"))
        store.add_invite(invite("Ulm", "second"))
        store.join(secret("Ulm"), "", key("u"), 1.0)
        with pytest.raises(StateError, match="member already"):
            store.join(secret("second"), "", key("x"), 2.0)
        with pytest.raises(StateError, match="member already"):
            store.add_invite(invite("Ulm", "third"))
        assert [i.used for i in store.invites()] == [1.0, None]

    def test_key_has_one_owner(self, store: Store) -> None:
        for name in ("Ulm", "Bern"):
            store.add_invite(invite(name))
        store.join(secret("Ulm"), "", key("u"), 1.0)
        with pytest.raises(StateError, match="belongs to 'Ulm'"):
            store.join(secret("Bern"), "", key("u"), 2.0)

    def test_secret_is_used_for_one_invitation(self, store: Store) -> None:
        store.add_invite(invite("Ulm", "s"))
        with pytest.raises(StateError, match="secret"):
            store.add_invite(invite("Bern", "s"))
        assert [i.name for i in store.invites()] == ["Ulm"]

    def test_an_invitation_that_was_withdrawn_lets_nobody_in(self, store: Store) -> None:
        for name, text in (("Ulm", "a"), ("Ulm", "b"), ("Ulm", "c"), ("Bern", "d")):
            store.add_invite(invite(name, text))
        store.join(secret("a"), "", key("u"), 1.0)
        assert (store.withdraw("Ulm"), store.withdraw("Ulm")) == (2, 0)
        with pytest.raises(AuthError, match="not known"):
            store.join(secret("b"), "", key("v"), 2.0)
        assert store.join(secret("a"), "", key("u"), 2.0).status == "active"  # a lost reply
        assert [i.name for i in store.invites()] == ["Ulm", "Bern"]

    def test_revoked_key_never_comes_back_but_its_name_does(self, store: Store) -> None:
        store.add_invite(invite("Ulm"))
        store.join(secret("Ulm"), "", key("u"), 1.0)
        assert store.set_member("Ulm", "revoked").status == "revoked"
        store.add_invite(invite("Ulm", "second"))
        with pytest.raises(AuthError, match="revoked"):
            store.join(secret("second"), "", key("u"), 2.0)
        with pytest.raises(AuthError, match="revoked"):
            store.join(secret("Ulm"), "", key("u"), 2.0)
        store.join(secret("second"), "", key("v"), 3.0)
        assert [(m.key[:1], m.status) for m in store.members()] == [
            (b"u", "revoked"),
            (b"v", "active"),
        ]

    def test_one_that_left_may_join_again_with_its_key(self, store: Store) -> None:
        store.add_invite(invite("Ulm"))
        store.join(secret("Ulm"), "", key("u"), 1.0)
        assert store.set_member("Ulm", "left").status == "left"
        with pytest.raises(NotFound):
            store.set_member("Ulm", "left")
        with pytest.raises(AuthError, match="used before"):
            store.join(secret("Ulm"), "", key("u"), 2.0)
        store.add_invite(invite("Ulm", "again"))
        store.join(secret("again"), "Ulm", key("u"), 3.0)
        assert [(m.status, m.joined) for m in store.members()] == [("active", 3.0)]

    def test_revoking_a_name_revokes_all_its_keys(self, store: Store) -> None:
        for text, letter in (("a", "u"), ("b", "v")):
            store.add_invite(invite("Ulm", text))
            store.join(secret(text), "", key(letter), 1.0)
            last = store.set_member("Ulm", "left")
        assert last.key == key("v")
        assert store.set_member("Ulm", "revoked").key == key("v")
        assert [m.status for m in store.members()] == ["revoked", "revoked"]

    def test_stranger_cannot_be_revoked(self, store: Store) -> None:
        with pytest.raises(NotFound, match="'Ulm'"):
            store.set_member("Ulm", "revoked")


class TestRuns:
    def test_run_comes_back_as_it_went_in(self, opener: Opener) -> None:
        store = opener()
        epoch = store.acquire("server", 0.0)
        rows = (run_row("r2", spec="ü" * 5000), run_row("r1", created=1.7e9 + 0.123456))
        for row in rows:
            store.add_run(epoch, row)
        store.close()
        again = opener()
        assert again.runs() == rows
        assert again.run("r1") == rows[1]

    def test_id_is_taken_once(self, store: Store) -> None:
        epoch = started(store)
        with pytest.raises(StateError, match="r1"):
            store.add_run(epoch, run_row(name="other"))
        assert store.run("r1").name == "heart"

    def test_four_fields_change_and_no_other(self, store: Store) -> None:
        epoch = started(store)
        store.set_run(epoch, "r1", status="failed", reason="no\0quorum", plan="b" * 64)
        store.set_run(epoch, "r1", phase="sums")
        row = store.run("r1")
        assert (row.status, row.plan, row.phase) == ("failed", "b" * 64, "sums")
        assert row.reason == "no\N{REPLACEMENT CHARACTER}quorum"
        with pytest.raises(TypeError, match="spec"):
            store.set_run(epoch, "r1", spec="")

    def test_unknown_run_is_named(self, store: Store) -> None:
        epoch = store.acquire("server", 0.0)
        asked = [
            lambda: store.run("r9"),
            lambda: store.set_run(epoch, "r9", status="x"),
            lambda: store.contribute(epoch, answer("r9.train.0.Ulm")),
            lambda: store.commit_round(epoch, round_row(1, run="r9")),
        ]
        for ask in asked:
            with pytest.raises(NotFound, match="r9"):
                ask()
        assert store.contributions("r9") == ()
        assert store.rounds("r9") == ()
        assert store.last_round("r9") is None
        assert store.kept("r9", "Ulm") == ""


class TestRounds:
    def test_first_bytes_stay(self, opener: Opener) -> None:
        store = opener()
        epoch = started(store)
        first = answer("r1.train.0.Ulm")
        assert store.contribute(epoch, first) == "new"
        assert store.contribute(epoch, answer(first.task, received=2.0)) == "same"
        assert store.contribute(epoch, answer(first.task, "b" * 64)) == "different"
        store.close()
        again = opener()
        assert again.contribute(again.acquire("again", 1.0), first) == "same"
        assert again.contributions("r1") == (first,)

    def test_contributions_come_in_order_of_arrival_by_prefix(self, store: Store) -> None:
        epoch = started(store)
        tasks = [
            "r1.train.1.Ulm",
            "r1.train.1.Bern",
            "r1.train.10.Ulm",
            "r1.Train.1.x",
            "r1.train_1.y",
        ]
        for task in tasks:
            store.contribute(epoch, answer(f"{task}.z", client="Ulm"))
        assert [c.task for c in store.contributions("r1")] == [f"{t}.z" for t in tasks]
        found = store.contributions("r1", "r1.train.1.")
        assert [c.task for c in found] == ["r1.train.1.Ulm.z", "r1.train.1.Bern.z"]

    def test_round_and_its_marks_are_one(self, opener: Opener) -> None:
        store = opener()
        epoch = started(store)
        for client in ("Ulm", "Bern"):
            store.contribute(epoch, answer(f"r1.train.0.{client}"))
        row = round_row(1, ("r1.train.0.Bern", "r1.train.0.Ulm"))
        store.commit_round(epoch, row)
        store.close()
        again = opener()
        assert again.last_round("r1") == row
        assert again.kept("r1", "Ulm") == "r1.train.0.Ulm"
        assert again.kept("r1", "Berne") == ""

    def test_answers_are_written_with_their_round(self, opener: Opener) -> None:
        store = opener()
        epoch = started(store)
        ulm, bern = answer("r1.train.0.Ulm"), answer("r1.train.0.Bern", client="Bern")
        assert store.contribute(epoch, ulm) == "new"
        row = round_row(1, (bern.task, ulm.task))
        assert store.commit_round(epoch, row, [ulm, bern]) == ("same", "new")
        store.close()
        again = opener()
        assert again.contributions("r1") == (ulm, bern)
        assert again.kept("r1", "Bern") == bern.task
        assert again.last_round("r1") == row

    def test_a_round_that_is_refused_writes_no_answers(self, store: Store) -> None:
        epoch = started(store)
        ulm, bern = answer("r1.train.0.Ulm"), answer("r1.train.0.Bern")
        store.contribute(epoch, ulm)
        other = answer(ulm.task, "b" * 64)
        with pytest.raises(StateError, match=r"r1\.train\.0\.Ulm is not that"):
            store.commit_round(epoch, round_row(1, (ulm.task,)), [bern, other])
        with pytest.raises(StateError, match=r"r2\.train\.0\.Ulm is not that of run r1"):
            store.commit_round(epoch, round_row(1), [answer("r2.train.0.Ulm", run="r2")])
        with pytest.raises(NotFound):
            store.commit_round(epoch, round_row(1, ("r1.train.0.Genoa",)), [bern])
        with pytest.raises(FenceError):
            store.commit_round(epoch - 1, round_row(1, (bern.task,)), [bern])
        assert store.contributions("r1") == (ulm,)
        assert store.last_round("r1") is None

    def test_several_answers_are_written_at_once_or_not_at_all(self, store: Store) -> None:
        epoch = started(store)
        ulm, bern = answer("r1.train.0.Ulm"), answer("r1.train.0.Bern")
        with pytest.raises(NotFound):
            store.contribute_all(epoch, [ulm, answer("r9.train.0.Ulm")])
        assert store.contributions("r1") == ()
        assert store.contribute_all(epoch, [ulm, bern]) == ("new", "new")
        again = [bern, answer(ulm.task, "b" * 64)]
        assert store.contribute_all(epoch, again) == ("same", "different")
        assert store.contributions("r1") == (ulm, bern)

    def test_contribution_enters_one_round_only(self, store: Store) -> None:
        epoch = started(store)
        store.contribute(epoch, answer("r1.train.0.Ulm"))
        store.contribute(epoch, answer("r1.train.1.Bern"))
        store.commit_round(epoch, round_row(1, ("r1.train.0.Ulm",)))
        with pytest.raises(StateError, match="into round 1 already"):
            store.commit_round(epoch, round_row(2, ("r1.train.1.Bern", "r1.train.0.Ulm")))
        with pytest.raises(NotFound, match=r"r1\.train\.1\.Ulm"):
            store.commit_round(epoch, round_row(2, ("r1.train.1.Bern", "r1.train.1.Ulm")))
        with pytest.raises(StateError, match="twice"):
            store.commit_round(epoch, round_row(2, ("r1.train.1.Bern",) * 2))
        assert store.kept("r1", "Bern") == ""
        assert len(store.rounds("r1")) == 1
        store.commit_round(epoch, round_row(2, ("r1.train.1.Bern",)))

    @pytest.mark.parametrize("number", [0, 1, 3])
    def test_round_number_grows(self, store: Store, number: int) -> None:
        epoch = started(store)
        store.commit_round(epoch, round_row(3))
        with pytest.raises(StateError, match="cannot follow round 3"):
            store.commit_round(epoch, round_row(number))
        store.commit_round(epoch, round_row(4))
        assert [r.number for r in store.rounds("r1")] == [3, 4]
        assert [r.number for r in store.rounds("r1", after=3)] == [4]

    def test_runs_do_not_mix(self, store: Store) -> None:
        epoch = started(store)
        store.add_run(epoch, run_row("r10"))
        store.contribute(epoch, answer("r10.train.0.Ulm"))
        with pytest.raises(NotFound):
            store.commit_round(epoch, round_row(1, ("r10.train.0.Ulm",)))
        store.commit_round(epoch, round_row(1, ("r10.train.0.Ulm",), "r10"))
        assert store.kept("r1", "Ulm") == ""
        assert store.rounds("r1") == ()
        assert store.contributions("r1") == ()

    def test_kept_is_the_newest_committed_training(self, store: Store) -> None:
        epoch = started(store)
        tasks = ["r1.train.0.Ulm", "r1.evaluate.0.Ulm", "r1.train.1.Ulm", "r1.train.2.Ulm"]
        for task in tasks:
            store.contribute(epoch, answer(task))
        store.commit_round(epoch, round_row(1, (tasks[0],)))
        assert store.kept("r1", "Ulm") == tasks[0]
        store.commit_round(epoch, round_row(2, (tasks[2], tasks[1])))
        assert store.kept("r1", "Ulm") == tasks[2]
        store.commit_round(epoch, round_row(3, ()))
        assert store.kept("r1", "Ulm") == tasks[2]

    def test_record_is_kept_to_the_bit(self, store: Store) -> None:
        epoch = started(store)
        row = round_row(1)
        record = {
            **row.record,
            "tiny": 5e-324,
            "third": 1 / 3,
            "big": 2**60,
            "order": {"b": 1, "a": 2},
        }
        store.commit_round(epoch, type(row)("r1", 1, record, "", "", ()))
        (kept,) = store.rounds("r1")
        assert kept.record == record
        assert list(kept.record["order"]) == ["b", "a"]


class TestSmallBlobs:
    def test_it_is_durable_with_the_next_write(self, opener: Opener) -> None:
        store = opener()
        epoch = started(store)
        store.hold("a" * 64, b"one")
        store.hold("b" * 64, b"")
        assert store.held("a" * 64) == b"one"
        assert store.holdings() == {"a" * 64: 3, "b" * 64: 0}
        store.contribute(epoch, answer("r1.train.0.Ulm"))
        store.hold("c" * 64, b"late")
        store.close()
        again = opener()
        assert again.held("a" * 64) == b"one"
        assert again.held("b" * 64) == b""
        assert again.held("c" * 64) is None
        assert again.holdings() == {"a" * 64: 3, "b" * 64: 0}

    @pytest.mark.parametrize("write", ["add_run", "set_run", "contribute", "commit_round"])
    def test_every_write_with_an_epoch_carries_it(self, opener: Opener, write: str) -> None:
        store = opener()
        epoch = started(store)
        store.hold("a" * 64, b"one")
        writes = {
            "add_run": lambda: store.add_run(epoch, run_row("r2")),
            "set_run": lambda: store.set_run(epoch, "r1", plan="a" * 64),
            "contribute": lambda: store.contribute(epoch, answer("r1.train.0.Ulm")),
            "commit_round": lambda: store.commit_round(epoch, round_row(1)),
        }
        writes[write]()
        store.close()
        assert opener().held("a" * 64) == b"one"

    def test_dropped_is_gone_at_once_and_for_good_with_the_next_write(self, opener: Opener) -> None:
        store = opener()
        epoch = started(store)
        store.hold("a" * 64, b"one")
        store.hold("b" * 64, b"two")
        store.set_run(epoch, "r1", phase="x")
        store.drop("a" * 64)
        store.drop("9" * 64)
        assert store.held("a" * 64) is None
        assert store.holdings() == {"b" * 64: 3}
        store.set_run(epoch, "r1", phase="y")
        store.drop("b" * 64)
        store.close()
        assert opener().holdings() == {"b" * 64: 3}

    def test_held_again_after_it_was_dropped_it_stays(self, opener: Opener) -> None:
        store = opener()
        epoch = started(store)
        store.hold("a" * 64, b"one")
        store.drop("a" * 64)
        store.hold("a" * 64, b"one")
        store.set_run(epoch, "r1", phase="x")
        assert store.held("a" * 64) == b"one"

    def test_refused_write_carries_nothing(self, opener: Opener) -> None:
        store = opener()
        started(store)
        store.hold("a" * 64, b"one")
        with pytest.raises(FenceError):
            store.contribute(7, answer("r1.train.0.Ulm"))
        with pytest.raises(NotFound):
            store.commit_round(1, round_row(1, ("r1.train.0.Ulm",)))
        assert store.held("a" * 64) == b"one"
        store.close()
        assert opener().holdings() == {}


class TestLog:
    def test_lines_are_numbered_and_belong_to_runs(self, store: Store) -> None:
        store.add_event("start", "server\0 started", "", "", 1.0)
        store.add_event("alarm", "two answers", "r1", "Ulm", 2.0)
        store.add_event("end", "", "r2", "", 3.0)
        assert [e.text for e in store.events()] == [
            "server\N{REPLACEMENT CHARACTER} started",
            "two answers",
            "",
        ]
        (line,) = store.events("r1")
        assert (line.kind, line.site, line.at) == ("alarm", "Ulm", 2.0)
        assert [e.kind for e in store.events(after=line.number)] == ["end"]
