"""What the store keeps of the server's starts, and of uploads that nothing refers to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from atoll.core.errors import FenceError
from atoll.server.store import rules
from atoll.server.store.contract import Store, Upload

A, B = "a" * 64, "b" * 64


def test_what_each_start_has_drawn_is_kept_with_its_epoch(opener: Callable[[], Store]) -> None:
    for epoch, drawn in ((1, "1f" * 8), (2, "2f" * 8)):
        store = opener()
        assert store.acquire("server", 0.0, start=drawn) == epoch
        assert store.starts()[epoch] == drawn
        store.close()
    assert opener().starts() == {1: "1f" * 8, 2: "2f" * 8}


def test_a_start_that_draws_nothing_forgets_those_before_it(opener: Callable[[], Store]) -> None:
    store = opener()
    store.acquire("server", 0.0, start="1f" * 8)
    store.close()
    store = opener()
    assert store.acquire("a restore", 0.0, above=9) == 10
    assert store.starts() == {}


def test_only_so_many_starts_are_kept(
    opener: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "_STARTS", 3)
    for number in range(5):
        store = opener()
        store.acquire("server", 0.0, start=f"{number:016x}")
        found = store.starts()
        store.close()
    assert sorted(found) == [3, 4, 5]


def test_uploads_are_kept_over_restarts_until_they_are_gone(opener: Callable[[], Store]) -> None:
    store = opener()
    epoch = store.acquire("server", 0.0)
    first, other = Upload("ruth", A, 10**10, 1.7e9 + 0.5), Upload("ann", B, 1, 2.0)
    store.note_uploads(epoch, [first, other])
    store.note_uploads(epoch, [Upload("ruth", A, 10**10, 1.7e9 + 9)])
    store.close()
    store = opener()
    assert store.uploads() == (other, Upload("ruth", A, 10**10, 1.7e9 + 9))
    with pytest.raises(FenceError):
        store.note_uploads(epoch + 1, [], [first])
    epoch = store.acquire("server", 0.0)
    store.note_uploads(epoch, [Upload("ann", A, 2, 3.0)], [first, Upload("nobody", B, 0, 0.0)])
    assert store.uploads() == (Upload("ann", A, 2, 3.0), other)
