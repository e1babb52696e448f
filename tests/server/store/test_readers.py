"""With whom a run is shared is kept by every store, each change with its line in the log."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, inspect, text
from store_rows import run_row, started

from atoll.core.errors import NotFound
from atoll.server.store import migrations
from atoll.server.store.contract import Store
from atoll.server.store.database import read_url
from atoll.server.store.sql import SqlStore

Opener = Callable[[], Store]


def logged(store: Store) -> list[tuple[str, str, str, float]]:
    return [(e.kind, e.text, e.run, e.at) for e in store.events()]


def test_a_run_is_shared_with_names_until_that_is_taken_back(opener: Opener) -> None:
    store = opener()
    epoch = started(store)
    store.add_run(epoch, run_row("r2"))
    assert store.readers("r1") == ()
    assert store.share(epoch, "r1", "cleo", 1.0)
    assert store.share(epoch, "r1", "Zoë", 2.0)
    assert store.share(epoch, "r2", "cleo", 3.0)
    assert not store.share(epoch, "r1", "cleo", 4.0)
    store.close()
    again = opener()
    assert again.readers("r1") == ("Zoë", "cleo")
    assert again.shared_with("cleo") == {"r1", "r2"}
    assert (again.shared_with("Cleo"), again.readers("r3")) == (frozenset(), ())
    epoch = again.acquire("next", 5.0)
    assert again.unshare(epoch, "r1", "cleo", 6.0)
    assert not again.unshare(epoch, "r1", "cleo", 7.0)
    assert again.readers("r1") == ("Zoë",)
    assert again.shared_with("cleo") == {"r2"}
    assert logged(again) == [
        ("shared", "with cleo", "r1", 1.0),
        ("shared", "with Zoë", "r1", 2.0),
        ("shared", "with cleo", "r2", 3.0),
        ("unshared", "with cleo", "r1", 6.0),
    ]


def test_what_is_not_there_is_not_shared(store: Store) -> None:
    epoch = started(store)
    for change in (store.share, store.unshare):
        with pytest.raises(NotFound, match="no run r9"):
            change(epoch, "r9", "cleo", 1.0)
    assert store.events() == ()


def test_a_store_of_the_shape_before_is_brought_up_to_date_with_all_that_it_holds(url: str) -> None:
    SqlStore(url).close()
    engine = create_engine(read_url(url))
    with engine.begin() as db:  # as the first shape was
        for later in ("readers", "starts", "uploads"):
            db.execute(text(f"DROP TABLE {later}"))
        db.execute(text("ALTER TABLE runs DROP COLUMN signed"))
        db.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    # Rows of that time.
    with engine.begin() as db:
        db.execute(text("UPDATE lease SET epoch = 7"))
    store = SqlStore(url)
    assert store.lease().epoch == 7
    epoch = started(store)
    assert store.share(epoch, "r1", "cleo", 1.0)
    assert store.readers("r1") == ("cleo",)
    store.close()
    with engine.connect() as db:
        assert inspect(db).has_table("readers")
        assert db.scalar(text("SELECT version_num FROM alembic_version")) == migrations.HEAD
    engine.dispose()
