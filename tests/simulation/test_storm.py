"""Seeded storms over a whole federation: what is promised holds after every step.

Each chunk of seeds runs in an interpreter of its own: there the modules for threads and time are played, and
the order of sets is fixed, so that a failing seed is the same one when it is run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from storm.weather import KINDS, POINTS

HERE = Path(__file__).parent
CHUNK = 100
BUGS = {
    "dropped fsync": {"G2"},
    "dropped fsync at the node": {"G2", "G3", "G8"},
    "forgotten key": {"G2"},
    "missing fence": {"G5"},
    "acknowledged first": {"G1", "G2"},
    "double fold": {"G6"},
}
"""Bugs that are planted, and the guarantees that each breaks; the first is found, whichever it is."""


def storm(*arguments: str) -> dict[str, Any]:
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
    assert storm("--seeds", "0:6")["digest"] == storm("--seeds", "0:6")["digest"]


def test_a_failing_seed_tells_how_to_run_it_again() -> None:
    (text,) = storm("--seeds", "0:300", "--stop", "--bug", "missing fence")["failed"]
    last = text.splitlines()[-1]
    assert last.startswith("replay: PYTHONHASHSEED=0 PYTHONPATH=tests/simulation python")
    assert "-m storm.run --seed " in last
    assert last.endswith('--trace --bug "missing fence"')
