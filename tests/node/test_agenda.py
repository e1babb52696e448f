"""What a run's thread is given to do comes when it should, and nothing comes twice."""

from __future__ import annotations

import threading
import time

import pytest

from atoll.node.agenda import Agenda


def test_calls_come_in_order_and_those_put_off_when_their_time_has_come() -> None:
    agenda, done = Agenda(), list[str]()
    agenda.later(0.02, lambda: done.append("late"))
    agenda.later(0.01, lambda: done.append("soon"))
    for name in ("first", "second"):
        agenda.put(lambda name=name: done.append(name))
    began = time.monotonic()
    while not agenda.empty:
        if (call := agenda.next(1.0)) is not None:
            call()
    assert done == ["first", "second", "soon", "late"]
    assert 0.02 <= time.monotonic() - began < 0.9
    assert agenda.next(0.01) is None


def test_the_alarm_comes_once_unless_it_is_cleared() -> None:
    agenda, done = Agenda(), list[str]()
    agenda.set_alarm(0.01, lambda: done.append("cleared"))
    agenda.clear_alarm()
    assert agenda.next(0.05) is None
    agenda.set_alarm(0.0, lambda: done.append("replaced"))
    agenda.set_alarm(0.01, lambda: done.append("alarm"))
    assert agenda.empty  # an alarm alone is no reason to stay
    call = agenda.next(1.0)
    assert call is not None
    call()
    assert done == ["alarm"]
    assert agenda.next(0.05) is None


def test_who_waits_wakes_up_when_all_is_over() -> None:
    agenda = Agenda()
    threading.Timer(0.05, agenda.stop).start()
    began = time.monotonic()
    call = agenda.next(60.0)
    assert call is not None
    call()
    assert agenda.stopped
    assert time.monotonic() - began < 30.0


def test_whether_all_is_over_is_said_by_stop_alone() -> None:
    agenda = Agenda()
    assert not agenda.stopped
    with pytest.raises(AttributeError):
        agenda.stopped = True  # type: ignore[misc]
    agenda.stop()
    assert agenda.stopped
