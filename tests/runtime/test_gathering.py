"""One call at the server: every phase at every event, and what holds in any order of events."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.core.contracts import Outcome
from atoll.core.errors import StateError
from atoll.runtime.gathering import (
    PHASES,
    RULES,
    Alarm,
    Ask,
    Away,
    Cancel,
    Closed,
    Complete,
    Delivered,
    Failed,
    Folded,
    FoldIt,
    Gathering,
    Left,
    Refused,
    Seen,
    Tick,
    step,
)

DEADLINE, SILENCE = 100.0, 60.0
OTHER = Ask("t-other", "other")
"""Keeps a call from ending while one ask is looked at."""


def call(*asks, deadline=DEADLINE, silence=SILENCE, enough=None):
    return Gathering.start(asks, 0.0, deadline, silence, enough)


def after(gathering, *events):
    effects = []
    for event in events:
        gathering, more = step(gathering, event)
        effects += more
    return gathering, effects


def phase_of(gathering, task="t"):
    return next(slot.phase for slot in gathering.slots if slot.ask.id == task)


LEADS = {
    "open": [Seen("a", 1)],
    "silent": [Seen("a", 1), Seen("other", 50), Tick(61)],
    "delivered": [Delivered("t", "aa", 1)],
    "answered": [Delivered("t", "aa", 1), Folded("t", 10, 2.0)],
    "closed": [Left("a", "moved house")],
}
"""How an ask comes into each phase."""

EVENTS = {
    "seen": Seen("a", 62),
    "delivered again": Delivered("t", "aa", 62),
    "delivered other": Delivered("t", "bb", 62),
    "folded": Folded("t", 7, 1.5),
    "refused": Refused("t", "not finite"),
    "failed": Failed("t", "no memory", 3.0),
    "left": Left("a", "revoked"),
    "silence": Tick(61),
    "deadline": Tick(100),
    "away": Away(62),
    "cancel": Cancel("cancelled by b"),
}

FOLD, ALARM, SHUT = FoldIt("t"), "alarm", Closed("t")
EXPECTED = {
    # event:          (open, silent, delivered, answered, closed): phase after, and the effect
    "seen": ("open", "open", "delivered", "answered", "closed"),
    "delivered again": (
        ("delivered", FOLD),
        ("delivered", FOLD),
        "delivered",
        "answered",
        "closed",
    ),
    "delivered other": (
        ("delivered", FOLD),
        ("delivered", FOLD),
        ("delivered", ALARM),
        ("answered", ALARM),
        "closed",
    ),
    "folded": ("open", "silent", "answered", "answered", "closed"),
    "refused": (("answered", SHUT), ("answered", SHUT), "answered", "answered", "closed"),
    "failed": (("answered", SHUT), ("answered", SHUT), "answered", "answered", "closed"),
    "left": (("closed", SHUT), ("closed", SHUT), "delivered", "answered", "closed"),
    "silence": ("silent", "silent", "delivered", "answered", "closed"),
    "deadline": (("closed", SHUT), ("closed", SHUT), "delivered", "answered", "closed"),
    "away": ("open", "open", "delivered", "answered", "closed"),
    "cancel": (("closed", SHUT), ("closed", SHUT), ("closed", SHUT), "answered", "closed"),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_at_every_event(phase, event):
    given_, _ = after(call(Ask("t", "a"), OTHER), *LEADS[phase])
    assert phase_of(given_) == phase
    # The other client speaks, so that only this ask decides.
    if event in ("silence", "deadline"):
        given_, _ = step(given_, Seen("other", min(60.9, EVENTS[event].now)))
        assert phase_of(given_) == phase
    found, effects = step(given_, EVENTS[event])
    expected = EXPECTED[event][PHASES.index(phase)]
    then, effect = expected if isinstance(expected, tuple) else (expected, None)
    assert phase_of(found) == then
    mine = [e for e in effects if getattr(e, "task", "") == "t"]
    if effect == ALARM:
        reason = "answered with aa first, then with bb"
        assert mine == [Alarm("t", "a", reason)]
    else:
        assert mine == ([effect] if effect else [])


def test_the_table_knows_every_pair():
    kinds = {type(event) for event in EVENTS.values()}
    assert set(RULES) == {(phase, kind) for phase in PHASES for kind in kinds}


def outcome(events, **options):
    found, effects = after(call(Ask("t", "a"), OTHER, **options), *events)
    found, more = step(found, Left("other", ""))
    return found.outcomes()[0], effects + list(more), found


def test_what_is_told_of_each_end():
    folded = [Delivered("t", "aa", 1), Folded("t", 10, 2.5)]
    assert outcome(folded)[0] == Outcome("a", "contributed", 10, "", 2.5)
    refused = [Delivered("t", "aa", 1), Refused("t", "3 values are not finite")]
    assert outcome(refused)[0] == Outcome("a", "refused", reason="3 values are not finite")
    failed = [Delivered("t", "aa", 1), Failed("t", "boom", 4.0)]
    assert outcome(failed)[0] == Outcome("a", "failed", reason="boom", seconds=4.0)
    left = outcome([Left("a", "revoked")])[0]
    assert left == Outcome("a", "dropped", reason="revoked")
    late = outcome([Seen("a", 99), Tick(100)])[0]
    assert late == Outcome("a", "late", reason="not done 100 s after the start")
    never = outcome([Tick(100)])[0]
    assert never == Outcome("a", "unavailable", reason="nothing heard for 60 s")
    brief = outcome([Tick(30)], deadline=30.0)[0]
    assert brief == Outcome("a", "unavailable", reason="nothing heard for 30 s")
    silent = outcome([Seen("a", 5), Seen("other", 64), Tick(65)])[0]
    assert silent == Outcome("a", "dropped", reason="nothing heard for 60 s")


def test_a_silent_client_is_not_waited_for_but_its_answer_counts_while_others_work():
    found, _ = after(call(Ask("t", "a"), OTHER), Seen("other", 59), Tick(60))
    assert found.open_tasks("a") == ("t",)
    assert not found.complete
    found, effects = step(found, Delivered("t", "aa", 70))
    assert effects == (FoldIt("t"),)
    found, effects = after(
        found, Folded("t", 1, 0.1), Delivered("t-other", "bb", 71), Folded("t-other", 1, 0.1)
    )
    assert effects == [FoldIt("t-other"), Complete()]
    assert [o.status for o in found.outcomes()] == ["contributed", "contributed"]


def test_when_everybody_is_silent_the_call_ends_before_its_deadline():
    found, effects = after(call(Ask("t", "a"), OTHER), Tick(59.9), Tick(60))
    assert effects == [Closed("t"), Closed("t-other"), Complete()]
    assert [o.status for o in found.outcomes()] == ["unavailable", "unavailable"]


def test_an_accepted_answer_is_folded_even_after_the_deadline():
    found, _ = after(call(Ask("t", "a"), OTHER), Delivered("t", "aa", 99), Tick(150))
    assert not found.complete
    found, effects = step(found, Folded("t", 5, 1.0))
    assert effects == (Complete(),)
    assert [o.status for o in found.outcomes()] == ["contributed", "unavailable"]


def test_an_answer_that_comes_after_the_deadline_is_late_though_no_tick_came_first():
    start = call(Ask("t", "a"), OTHER)
    assert start.accepts("t", 99.9)
    assert not start.accepts("t", 100.0)
    assert not start.accepts("unknown", 1.0)
    found, effects = step(start, Delivered("t", "aa", 100.0))
    assert FoldIt("t") not in effects
    assert found.outcomes()[0].status == "late"


def test_a_clock_that_runs_backwards_makes_nobody_silent_and_opens_nothing():
    found, effects = after(call(Ask("t", "a"), OTHER), Seen("a", 50), Seen("other", 50), Tick(3))
    assert effects == []
    assert found.now == 50
    assert phase_of(found) == "open"


def test_a_server_that_was_stopped_blames_nobody_for_its_silence():
    found, effects = after(call(Ask("t", "a"), OTHER, deadline=None), Away(500), Tick(501))
    assert effects == []
    assert found.next_tick == 560


def test_the_next_tick_is_where_something_changes():
    start = call(Ask("t", "a"), OTHER)
    assert start.next_tick == 60
    heard, _ = after(start, Seen("a", 30), Seen("other", 45))
    assert heard.next_tick == 90
    heard, _ = after(heard, Seen("a", 80), Seen("other", 80))
    assert heard.next_tick == 100
    taken, _ = after(start, Delivered("t", "aa", 1), Delivered("t-other", "bb", 1))
    assert taken.next_tick is None  # folding is the server's own work
    endless = call(Ask("t", "a"), deadline=None)
    assert endless.next_tick == 60
    done, _ = step(endless, Cancel("enough"))
    assert done.next_tick is None


def test_once_enough_have_contributed_the_others_are_surplus():
    start = call(*(Ask(f"t{i}", f"c{i}") for i in range(4)), enough=2)
    found, effects = after(
        start,
        Delivered("t0", "aa", 1),
        Delivered("t1", "bb", 2),
        Delivered("t2", "cc", 3),
        Folded("t0", 1, 0.1),
        Refused("t1", "not finite"),
    )
    assert not found.complete  # t2 was accepted, so it is folded in any case
    assert effects == [FoldIt("t0"), FoldIt("t1"), FoldIt("t2")]
    found, effects = after(found, Folded("t2", 1, 0.1))
    assert effects == [Closed("t3"), Complete()]
    statuses = [o.status for o in found.outcomes()]
    assert statuses == ["contributed", "refused", "contributed", "surplus"]


def test_an_equivocation_is_told_once_and_the_first_answer_stays_also_after_the_end():
    found, effects = after(
        call(Ask("t", "a")),
        Delivered("t", "aa", 1),
        Folded("t", 1, 0.1),
        Delivered("t", "bb", 2),
        Delivered("t", "cc", 3),
        Delivered("t", "aa", 4),
    )
    assert [type(e) for e in effects] == [FoldIt, Complete, Alarm]
    assert found.outcomes()[0].status == "contributed"


def test_a_call_that_asks_nothing_is_complete_and_ids_are_unique():
    assert call().complete
    assert call().outcomes() == ()
    with pytest.raises(StateError, match="two tasks of one call are called 't'"):
        call(Ask("t", "a"), Ask("t", "b"))


def test_one_client_may_be_asked_for_several_things():
    found, _ = after(call(Ask("t", "a"), Ask("u", "a"), OTHER), Delivered("t", "aa", 1))
    assert found.open_tasks("a") == ("u",)
    found, effects = step(found, Left("a", "gone"))
    assert effects == (Closed("u"),)


# Any order, any repetition.

CLIENTS = ["a", "b", "c"]
TASKS = {f"t-{c}": c for c in CLIENTS}
moments = st.floats(0, 130, allow_nan=False)
arbitrary = st.one_of(
    st.builds(Seen, st.sampled_from(CLIENTS), moments),
    st.builds(Delivered, st.sampled_from([*TASKS, "?"]), st.sampled_from(["aa", "bb"]), moments),
    st.builds(Folded, st.sampled_from([*TASKS, "?"]), st.just(3), st.just(0.5)),
    st.builds(Refused, st.sampled_from([*TASKS]), st.just("bad")),
    st.builds(Failed, st.sampled_from([*TASKS]), st.just("boom")),
    st.builds(Left, st.sampled_from(CLIENTS), st.just("left")),
    st.builds(Tick, moments),
    st.builds(Away, moments),
    st.builds(Cancel, st.just("stop")),
)
everybody = [Ask(t, c) for t, c in TASKS.items()]


@given(st.lists(arbitrary, max_size=25), st.sampled_from([None, 1, 2]))
@settings(max_examples=400, deadline=None)
def test_whatever_happens_the_call_ends_by_its_deadline_with_one_answer_a_task(events, enough):
    gathering = call(*everybody, enough=enough)
    folds, completes, fixed = [], 0, {}
    for event in [*events, Tick(DEADLINE)]:
        gathering, effects = step(gathering, event)
        folds += [e.task for e in effects if isinstance(e, FoldIt)]
        completes += Complete() in effects
        for slot in gathering.slots:  # an outcome that was told is never another one later
            if slot.ask.id in fixed:
                assert slot.outcome == fixed[slot.ask.id]
            if slot.outcome is not None:
                fixed[slot.ask.id] = slot.outcome
        assert gathering.complete == bool(completes)
    for task in folds:
        gathering, effects = step(gathering, Folded(task, 3, 0.5))
        completes += Complete() in effects
    assert gathering.complete
    assert completes == 1
    assert len(set(folds)) == len(folds)
    assert len(gathering.outcomes()) == len(CLIENTS)
    contributed = {o.client for o in gathering.outcomes() if o.status == "contributed"}
    assert contributed <= {TASKS[t] for t in folds}


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_order_and_repetition_do_not_change_what_becomes_of_the_same_answers(data):
    """Answers come in any order and repeatedly; how each is taken depends on its bytes alone."""
    kinds = [Folded, Refused, Failed]
    verdicts = {t: data.draw(st.sampled_from(kinds)) for t in TASKS}
    answering = data.draw(st.lists(st.sampled_from([*TASKS]), unique=True))

    def verdict(task):
        kind = verdicts[task]
        return kind(task, 3, 0.5) if kind is Folded else kind(task, "why")

    def play():
        gathering, to_fold = call(*everybody), []
        wanted = data.draw(st.permutations(answering * data.draw(st.integers(1, 3))))
        for task in wanted:
            gathering, effects = step(gathering, Delivered(task, task, 5.0))
            to_fold += [e.task for e in effects if isinstance(e, FoldIt)]
            while to_fold and data.draw(st.booleans()):
                gathering, _ = step(gathering, verdict(to_fold.pop()))
        for event in data.draw(st.permutations([verdict(t) for t in to_fold] * 2)):
            gathering, _ = step(gathering, event)
        gathering, _ = step(gathering, Tick(DEADLINE))
        assert gathering.complete
        return gathering.outcomes()

    assert play() == play()
