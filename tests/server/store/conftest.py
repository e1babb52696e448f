"""Stores of every kind, each opened as often as a test likes on one and the same database."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.server.store.contract import Store
from atoll.server.store.memory import MemoryDatabase, MemoryStore
from atoll.server.store.sql import SqlStore

sys.path.insert(0, str(Path(__file__).parent))

import postgres_cluster

Opener = Callable[[], Store]


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_cluster.Cluster]:
    if postgres_cluster.programs() is None:
        pytest.skip("PostgreSQL is not installed: no initdb on this machine")
    with postgres_cluster.cluster() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database that survives its writers."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens one more store on the test's database."""
    opened: list[Store] = []
    if request.param == "memory":
        database = MemoryDatabase()
        open_one: Opener = lambda: MemoryStore(database)  # noqa: E731 three openers side by side
    else:
        url = str(tmp_path / "store.db")
        if request.param == "postgresql":
            url = request.getfixturevalue("postgres").new_database()
        open_one = lambda: SqlStore(url)  # noqa: E731 three openers side by side

    def remembered() -> Store:
        opened.append(open_one())
        return opened[-1]

    yield remembered
    for store in opened:
        store.close()


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()
