"""Seeded storms over a whole federation: what is promised holds after every step.

Each chunk of seeds runs in an interpreter of its own: there the modules for threads and time are played, and
the order of sets is fixed, so that a failing seed is the same one when it is run again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from storm.weather import KINDS, POINTS

HERE = Path(__file__).parent
CHUNK = 100
BUGS = {
    "dropped fsync": {"G2"},
    "dropped fsync at the node": {"G2", "G3", "G8", "G9"},
    "forgotten key": {"G2"},
    "missing fence": {"G5"},
    "acknowledged first": {"G1", "G2"},
    "acknowledged before the round": {"G1", "G2", "G3"},
    "double fold": {"G6"},
    "forgotten epoch": {"G5"},
    "unread mark": {"G5"},
    "unwritten line": {"G9"},
}
"""Bugs that are planted, and the guarantees that each breaks; the first is found, whichever it is."""


@cache
def storm(*arguments: str) -> dict[str, Any]:
    """What a simulation tells; one that was run before is not run again."""
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "storm.run", "--json", *arguments]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("first", range(0, 300, CHUNK))
def test_no_storm_breaks_a_promise(first: int) -> None:
    found = storm("--seeds", f"{first}:{first + CHUNK}")
    assert not found["failed"], "\n\n".join(found["failed"])
    assert {kind for kind in KINDS if not found["counts"].get(kind)} == set()
    died = {point for point in POINTS if found["crashes"].get(point)}
    assert len(died) > len(POINTS) / 2, sorted(set(POINTS) - died)
    completed = sum(n for state, n in found["states"].items() if "completed" in state)
    assert completed > CHUNK / 2, found["states"]


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    found = storm("--seeds", "0:300", "--stop", "--bug", bug)
    assert found["guarantees"], f"300 seeds have not found: {bug}"
    assert set(found["guarantees"]) <= BUGS[bug], found["failed"]


def test_a_seed_is_the_same_storm_whenever_it_is_run() -> None:
    again = storm.__wrapped__
    assert storm("--seeds", "0:6")["digest"] == again("--seeds", "0:6")["digest"]


def test_a_failing_seed_tells_how_to_run_it_again() -> None:
    (text,) = storm("--seeds", "0:300", "--stop", "--bug", "missing fence")["failed"]
    last = text.splitlines()[-1]
    assert last.startswith("replay: PYTHONHASHSEED=0 PYTHONPATH=tests/simulation python")
    assert "-m storm.run --seed " in last
    assert last.endswith('--trace --bug "missing fence"')


@pytest.mark.parametrize("jobs", [(), ("--jobs", "2")], ids=["one", "two"])
def test_a_failing_seed_is_told_when_it_fails(jobs: tuple[str, ...]) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(HERE)}
    asked = ["--seeds", "0:1000000", "--bug", "double fold", *jobs]
    parent = subprocess.Popen(
        [sys.executable, "-m", "storm.run", *asked],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stderr is not None
        told, replay = parent.stderr.readline(), parent.stderr.readline()
        parent.terminate()
        parent.stderr.read()  # until its processes have ended too
    assert re.match(r"seed \d+: G6 at ", told)
    assert re.search(r'-m storm.run --seed \d+ --trace --bug "double fold"$', replay.rstrip())


def test_seeds_spread_over_processes_are_all_told_of() -> None:
    alone, spread = storm("--seeds", "0:7"), storm("--seeds", "0:7", "--jobs", "2")
    assert sum(spread["states"].values()) == 7
    assert {**spread, "digest": ""} == {**alone, "digest": ""}


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="looks at /proc and /dev/shm")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_processes_of_a_simulation_end_with_it(how: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-m", "storm.run", "--seeds", "0:1000000", "--jobs", "2"]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        children = eventually(lambda: both(folders_of(children_of(parent.pid))))
    finally:
        parent.send_signal(how)
        parent.wait()
    eventually(lambda: not any(map(lives, children)))
    assert not folders_of(children)


def children_of(pid: int) -> list[int]:
    told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in told.split()]


def folders_of(pids: list[int]) -> list[int]:
    """Those of them whose scratch folder is there."""
    return [pid for pid in pids for _ in Path("/dev/shm").glob(f"storm-{pid}-*")]


def both(pids: list[int]) -> list[int]:
    return pids if len(pids) == 2 else []


def lives(pid: int) -> bool:
    """Whether a process is more than an entry that nobody has looked at since its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(look: Callable[[], Any], seconds: float = 60.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return found
