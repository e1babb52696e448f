"""The thread that works for the service: on time, when woken, after errors, and never against a fence."""

from __future__ import annotations

import threading
import time

import pytest

from atoll.core.errors import FenceError
from atoll.server import steps as steps_module
from atoll.server.steps import Steps


class Scripted:
    """Steps as told: each entry is when the next is due, an error, or what the step waits for."""

    def __init__(self, *script):
        self.script = list(script)
        self.times = []
        self.stepped = threading.Semaphore(0)

    def step(self):
        self.times.append(time.time())
        entry = self.script.pop(0) if self.script else None
        if isinstance(entry, threading.Event):
            entry.wait(30)
            entry = None
        self.stepped.release()
        if isinstance(entry, Exception):
            raise entry
        return None if entry is None else time.time() + entry

    def wait(self, number=1):
        for _ in range(number):
            assert self.stepped.acquire(timeout=30)


def comes_to(what):
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def started():
    made = []

    def start(service, ended=lambda error: None):
        steps = Steps(service, time.time, ended)
        made.append(steps)
        steps.start()
        return steps

    yield start
    for steps in made:
        assert steps.stop(10)


def test_a_step_follows_when_it_is_due_and_not_before(started):
    service = Scripted(0.2, None)
    started(service)
    service.wait(2)
    assert 0.19 <= service.times[1] - service.times[0] < 10


def test_news_bring_a_step_at_once_from_any_thread(started):
    service = Scripted()
    steps = started(service)
    service.wait()
    threading.Thread(target=steps.wake).start()
    service.wait()  # else nothing would be due for a minute


def test_news_during_a_step_bring_another(started):
    service = Scripted()
    steps = started(service)
    service.wait()
    real, inside = service.step, []

    def slow():
        if not inside:
            inside.append(1)
            steps.wake()  # while the step runs
        return real()

    service.step = slow
    steps.wake()
    service.wait(2)


def test_an_error_of_the_service_is_told_and_tried_again(started, monkeypatch, caplog):
    monkeypatch.setattr(steps_module, "_AFTER_ERROR", 0.1)
    again = threading.Event()
    service = Scripted(OSError("no space left"), again)
    steps = started(service)
    service.wait()
    comes_to(lambda: "no space left" in steps.trouble)
    again.set()
    service.wait()
    comes_to(lambda: steps.trouble == "")
    assert "tried again" in caplog.text


def test_who_is_fenced_off_works_no_more(started):
    lost = []
    service = Scripted(FenceError("another server took over"))
    steps = started(service, lost.append)
    service.wait()
    assert steps.stop(10)
    steps.wake()
    time.sleep(0.05)
    assert [str(error) for error in lost] == ["another server took over"]
    assert len(service.times) == 1
