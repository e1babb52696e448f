"""Makes ``fake_federation`` importable, here and in processes that tests start; those are copies of one."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import doors
import worker_copies
from process_copies import Launcher

from atoll.node.room import process

OF_WORKERS = {
    *("test_hostile_code", "test_rehearsal", "test_sandbox", "test_syscalls", "test_usage"),
    *("test_view", "test_worker"),
}
"""Tests of the worker's process itself, which is then started as nodes start it."""


@pytest.fixture(scope="session", autouse=True)
def _launcher() -> Iterator[None]:
    """The process that is copied starts when a node is first asked for."""
    made: list[Launcher] = []

    def launcher() -> Launcher:
        if not made:
            read = [name for name in doors.READ if importlib.util.find_spec(name.partition(".")[0])]
            path = [str(Path(__file__).parent), str(Path(worker_copies.__file__).parent)]
            made.append(Launcher([*read, "worker_copies:read"], path))
        return made[0]

    doors.launcher = launcher
    yield
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def _copier() -> Iterator[SimpleNamespace]:
    with worker_copies.copier() as copier:
        yield copier


@pytest.fixture(autouse=True)
def _workers_are_copies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.module.__name__.rpartition(".")[2] not in OF_WORKERS:
        monkeypatch.setattr(process, "subprocess", request.getfixturevalue("_copier"))


@pytest.fixture(autouse=True)
def _no_run_is_left() -> Iterator[None]:
    """The thread of a run that a test has left would be found by a later test, as if it were its own."""
    yield
    until = time.monotonic() + 10.0
    while left := [t.name for t in threading.enumerate() if t.name.startswith("run ")]:
        assert time.monotonic() < until, f"{left} are left"
        time.sleep(0.01)
