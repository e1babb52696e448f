"""One task at a node: every state at every event, and what holds in any order of events."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.runtime.fulfilling import (
    RULES,
    STATES,
    Acknowledged,
    Fetch,
    Fetched,
    FetchFailed,
    Forget,
    Fulfilling,
    Gone,
    Offered,
    Restarted,
    Retry,
    Send,
    SendFailed,
    Settled,
    Work,
    Worked,
    WorkFailed,
    backoff,
    step,
)


def after(*events, task=None):
    task = task or Fulfilling("t")
    effects = []
    for event in events:
        task, more = step(task, event)
        effects += more
    return task, effects


LEADS = {
    "offered": [],
    "fetching": [Offered()],
    "working": [Offered(), Fetched()],
    "finished": [Offered(), Fetched(), Worked("aa")],
    "sent": [Offered(), Fetched(), Worked("aa"), Acknowledged()],
    "settled": [Offered(), Fetched(), Worked("aa"), Acknowledged(), Settled()],
    "dropped": [Offered(), Gone()],
}

EVENTS = {
    "offered": Offered(),
    "fetched": Fetched(),
    "fetch failed": FetchFailed(0.0),
    "worked": Worked("bb"),
    "work failed": WorkFailed("killed", "bb"),
    "acknowledged": Acknowledged(),
    "send failed": SendFailed(0.0),
    "gone": Gone(),
    "settled": Settled(),
    "restarted": Restarted(spooled=False),
    "restarted with an answer": Restarted(spooled=True),
}

F, W, S, X = Fetch(), Work(), Send(), Forget()
FETCH_LATER, SEND_LATER = Retry(0.05, Fetch()), Retry(0.05, Send())
EXPECTED = {
    # only what is not "nothing happens": event -> state before -> (state after, effect)
    "offered": {
        "offered": ("fetching", F),
        "sent": ("finished", S),
        "settled": ("fetching", F),
        "dropped": ("fetching", F),
    },
    "fetched": {"fetching": ("working", W)},
    "fetch failed": {"fetching": ("fetching", FETCH_LATER)},
    "worked": {
        "working": ("finished", S),
        "offered": ("offered", X),
        "fetching": ("fetching", X),
        "settled": ("settled", X),
        "dropped": ("dropped", X),
    },
    "work failed": {
        "fetching": ("finished", S),
        "working": ("finished", S),
        "offered": ("offered", X),
        "settled": ("settled", X),
        "dropped": ("dropped", X),
    },
    "acknowledged": {"finished": ("sent", None)},
    "send failed": {"finished": ("finished", SEND_LATER)},
    "gone": {
        "offered": ("dropped", X),
        "fetching": ("dropped", X),
        "working": ("dropped", X),
        "finished": ("sent", None),
    },
    "settled": {
        "offered": ("dropped", X),
        "fetching": ("dropped", X),
        "working": ("dropped", X),
        "finished": ("settled", X),
        "sent": ("settled", X),
    },
    "restarted": {
        "fetching": ("offered", None),
        "working": ("offered", None),
        "finished": ("offered", None),
        "sent": ("offered", None),
    },
    "restarted with an answer": {
        "offered": ("finished", S),
        "fetching": ("finished", S),
        "working": ("finished", S),
        "finished": ("finished", S),
        "sent": ("finished", S),
        "settled": ("settled", X),
        "dropped": ("dropped", X),
    },
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_every_state_at_every_event(state, event):
    task, _ = after(*LEADS[state])
    assert task.state == state
    found, effects = step(task, EVENTS[event])
    then, effect = EXPECTED[event].get(state, (state, None))
    assert found.state == then
    assert effects == (() if effect is None else (effect,))


def test_the_table_knows_every_pair():
    kinds = {type(event) for event in EVENTS.values()}
    assert set(RULES) == {(state, kind) for state in STATES for kind in kinds}


def test_the_way_of_a_task_without_trouble():
    task, effects = after(*LEADS["settled"])
    assert effects == [Fetch(), Work(), Send(), Forget()]
    assert task == Fulfilling("t", "settled", "aa")


def test_a_failure_is_an_answer_too_and_tells_why():
    task, effects = after(Offered(), Fetched(), WorkFailed("out of memory", "ff"))
    assert effects[-1] == Send()
    assert task == Fulfilling("t", "finished", "ff", failure="out of memory")
    cannot_begin, effects = after(Offered(), WorkFailed("disk full", "ff"))
    assert (cannot_begin.state, effects[-1]) == ("finished", Send())


def test_waits_double_up_to_five_seconds_and_a_success_starts_anew():
    waits = []
    task, _ = after(*LEADS["finished"])
    for _ in range(12):
        task, (retry,) = step(task, SendFailed(jitter=0.999999999))
        waits.append(round(retry.after, 3))
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    task, effects = after(Acknowledged(), Offered(), SendFailed(0.0), task=task)
    assert effects == [Send(), Retry(0.05, Send())]


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_between_half_and_the_whole_of_its_longest(tries, jitter):
    assert 0.05 <= backoff(tries, jitter) <= 5.0
    assert backoff(tries, 0.0) <= backoff(tries, jitter) <= 2 * backoff(tries, 0.0)


def test_a_lost_receipt_costs_no_work_and_forgets_nothing():
    # The server has counted the answer and asks no more: it may still be the one that was committed.
    task, effects = after(*LEADS["finished"], SendFailed(), Gone())
    assert task.state == "sent"
    assert Forget() not in effects
    assert after(Settled(), task=task)[1] == [Forget()]


@given(st.lists(st.sampled_from([*EVENTS.values()]), max_size=40))
@settings(max_examples=500, deadline=None)
def test_an_answer_is_never_made_twice_nor_replaced_unless_it_was_let_go(events):
    task, spooled = Fulfilling("t"), ""
    for event in events:
        if isinstance(event, Restarted):
            event = Restarted(spooled=bool(spooled))  # what the spool holds is a fact
        before = task
        task, effects = step(task, event)
        if isinstance(event, Worked | WorkFailed) and task.state != before.state:
            assert not spooled
            spooled = task.digest
        if Forget() in effects:
            spooled = ""
        if Work() in effects or Fetch() in effects:
            assert not spooled
        if Send() in effects:
            assert spooled
            assert task.digest in ("", spooled)
