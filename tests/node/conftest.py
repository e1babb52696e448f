"""Makes ``fake_federation`` importable, here and in processes that tests start; those are copies of one."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import doors
from process_copies import Launcher


@pytest.fixture(scope="session", autouse=True)
def _launcher() -> Iterator[None]:
    """The process that is copied starts when a node is first asked for."""
    made: list[Launcher] = []

    def launcher() -> Launcher:
        if not made:
            read = [name for name in doors.READ if importlib.util.find_spec(name.partition(".")[0])]
            made.append(Launcher(read, [str(Path(__file__).parent)]))
        return made[0]

    doors.launcher = launcher
    yield
    for one in made:
        one.close()
