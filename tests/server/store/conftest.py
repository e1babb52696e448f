"""Stores of every kind, each opened afresh on the database that it had before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.server.store.contract import Store
from atoll.server.store.memory import MemoryDatabase, MemoryStore

sys.path.insert(0, str(Path(__file__).parent))

Opener = Callable[[], Store]


@pytest.fixture(params=["memory"])
def opener(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """Opens one more store on one and the same database."""
    opened: list[Store] = []
    open_one = _memory()

    def remembered() -> Store:
        opened.append(open_one())
        return opened[-1]

    yield remembered
    for store in opened:
        store.close()


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()


def _memory() -> Opener:
    database = MemoryDatabase()
    return lambda: MemoryStore(database)
