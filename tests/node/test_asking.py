"""Whose question to the server is open: the asking thread's, or a result's."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from atoll.node import asking
from atoll.node.asking import LINGER, Turns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds, to be set."""
    now = [100.0]
    monkeypatch.setattr(asking.time, "monotonic", lambda: now[0])
    return now


def asking_thread(turns: Turns) -> threading.Event:
    """A thread that comes to ask; set once it need not wait any more."""
    begun, done = threading.Event(), threading.Event()

    def ask() -> None:
        begun.set()
        turns.wait()
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    assert begun.wait(30)
    return done


def waits(turns: Turns) -> bool:
    return not asking_thread(turns).wait(0.1)


def asks(turns: Turns) -> bool:
    return asking_thread(turns).wait(30)


def test_while_the_asking_thread_asks_a_result_brings_nothing(clock: list[float]) -> None:
    turns = Turns()
    turns.wait()
    assert not turns.bring()
    turns.polled(work=False)
    assert turns.bring()


def test_two_results_bring_one_question(clock: list[float]) -> None:
    turns = Turns()
    assert (turns.bring(), turns.bring()) == (True, False)
    turns.brought(work=False)
    assert turns.bring()


def test_after_a_task_results_have_a_moment_in_which_nobody_asks(clock: list[float]) -> None:
    turns = Turns()
    turns.wait()
    turns.polled(work=True)
    assert waits(turns)
    clock[0] += 0.3
    turns = Turns()
    assert asks(turns)


def test_after_news_without_a_task_the_thread_asks_at_once(clock: list[float]) -> None:
    turns = Turns()
    assert turns.bring()
    assert waits(turns)
    turns.brought(work=False)
    assert asks(Turns())
    turns.wait()
    assert not turns.bring()


def test_a_result_whose_answer_is_overdue_keeps_nobody_from_asking(clock: list[float]) -> None:
    turns = Turns()
    assert turns.bring()
    clock[0] += 2 * LINGER
    turns.wait()
    turns.brought(work=True)
    assert not turns.bring()  # that question is still open
