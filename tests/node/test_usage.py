"""What a process and all that it has started hold, as it is seen from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from atoll.node.room import process
from atoll.node.room.process import Worker
from atoll.node.room.usage import Usage, peak_of, usage_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of its processes")
MIB = 1 << 20


@contextmanager
def running(code: str, folder: Path) -> Iterator[int]:
    """A process that has done ``code`` and waits, with those that it has started."""
    whole = f"import mmap, os, sys, threading, time\n{code}\nprint(1, flush=True)\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", whole], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"1\n"
        yield process.pid
    finally:
        process.communicate()


def of(pid: int, folder: Path, enough: float = 0.0) -> Usage:
    return usage_of(pid, folder, enough, room=False)


@pytest.fixture
def bare(tmp_path: Path) -> Usage:
    with running("", tmp_path) as pid:
        return of(pid, tmp_path)


FORKS = """
for _ in range(3):
    if not os.fork():
        os.close(1)
        sys.stdin.read()
        os._exit(0)
"""


def test_memory_that_many_share_counts_once(tmp_path: Path, bare: Usage) -> None:
    held = "held = bytearray(b'x' * (64 << 20))\n"
    with running(held + FORKS, tmp_path) as pid:
        exact, rough = of(pid, tmp_path), of(pid, tmp_path, enough=1 << 40)
        assert peak_of(pid) > 64 * MIB
    assert 64 * MIB <= exact.memory - bare.memory < 100 * MIB
    assert rough.memory - bare.memory > 200 * MIB  # which never says too little
    assert exact.tasks == 4


def test_shared_memory_and_threads_count(tmp_path: Path, bare: Usage) -> None:
    code = """
held = mmap.mmap(-1, 64 << 20)
held.write(b"x" * (64 << 20))
for _ in range(3):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""
    with running(code, tmp_path) as pid:
        found = of(pid, tmp_path)
    assert 64 * MIB <= found.memory - bare.memory < 100 * MIB
    assert found.tasks == 4


@pytest.mark.parametrize("way", ["open", "mapped"])
def test_files_without_a_name_count_once_and_others_not(
    tmp_path: Path, bare: Usage, way: str
) -> None:
    code = """
named = open("named", "wb")
named.write(bytes(8 << 20))
file = open("x", "w+b")
file.write(bytes(16 << 20))
file.flush()
os.unlink("x")
"""
    if way == "mapped":
        code += "held = mmap.mmap(file.fileno(), 16 << 20)\nfile.close()\n"
    with running(code + FORKS, tmp_path) as pid:
        found = of(pid, tmp_path)
    assert 16 * MIB <= found.unnamed < 17 * MIB
    assert bare.unnamed == 0


def test_a_process_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(0.01)
    process.wait()
    assert of(process.pid, tmp_path) == Usage(0, 0, 0)
    assert peak_of(process.pid) == 0


@pytest.mark.parametrize(
    ("lasts", "spent", "pause"), [(5.0, 0.01, 1.0), (0.2, 0.2, 4.0), (30.0, 30.0, 10.0)]
)
def test_a_look_is_followed_by_another_by_what_it_costs_and_soon_on_a_busy_machine_too(
    monkeypatch: pytest.MonkeyPatch, lasts: float, spent: float, pause: float
) -> None:
    now = SimpleNamespace(monotonic=100.0, thread_time=7.0)

    def look(worker: Worker) -> str:
        now.monotonic += lasts
        now.thread_time += spent
        return ""

    clock = SimpleNamespace(monotonic=lambda: now.monotonic, thread_time=lambda: now.thread_time)
    monkeypatch.setattr(process, "time", clock)
    monkeypatch.setattr(Worker, "_beyond", look)
    worker = object.__new__(Worker)
    worker._next_look = 0.0
    worker._look()
    assert worker._next_look == pytest.approx(100 + lasts + pause)
