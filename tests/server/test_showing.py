"""The next round's model is made while the round is committed, and nobody sees it before."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import played_sites as played
import pytest

from atoll.core.errors import NotFound, StorageError
from atoll.server.rounds import playing

World = played.World

SPEC = ("rounds.count=3", "evaluation.every=10")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is one that another core takes on."""
    monkeypatch.setattr(playing, "_LARGE", 0)


def at_commit(world: World, act: Callable[[], Any]) -> None:
    """Do something once, while the next round is being committed."""

    def before(operation: str) -> None:
        if operation.startswith("commit_round"):
            world.store.before = lambda operation: None
            act()

    world.store.before = before


def shown(world: World, run: str) -> set[str]:
    return set(world.service._office.shown.get(run, ()))


def made(world: World, run: str, but: set[str]) -> str:
    """The model that is being made."""
    until = time.monotonic() + 10
    while not (found := shown(world, run) - but) and time.monotonic() < until:
        time.sleep(0.001)
    (new,) = found
    return new


def test_a_model_is_made_beside_its_commit_and_nobody_sees_it(world: World, large: None) -> None:
    run = world.submit(played.heart_spec(*SPEC))
    world.reach("train")
    before, seen = shown(world, run), list[str]()

    def look() -> None:
        seen.append(made(world, run, before))
        for site in world.sites:
            assert not world.service.poll(site, ()).tasks
            with pytest.raises(NotFound):
                world.service.blob(site, seen[0])

    at_commit(world, look)
    for site in world.sites.values():
        site.turn(world.service)
    world.service.step()
    (task,) = world.service.poll("hungary", ()).tasks
    assert task.number == 1
    assert task.broadcast is not None
    assert [task.broadcast.sha256] == seen
    assert world.service.blob("hungary", seen[0]).size == task.broadcast.size


def test_of_a_round_that_was_not_committed_nothing_is_shown(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, world = make_world(), make_world()
    expected = plain.submit(played.heart_spec(*SPEC))
    plain.run()
    monkeypatch.setattr(playing, "_LARGE", 0)
    run = world.submit(played.heart_spec(*SPEC))
    world.reach("train")
    before = shown(world, run)

    def full() -> None:
        made(world, run, before)
        raise StorageError("the disk is full")

    at_commit(world, full)
    for site in world.sites.values():
        site.turn(world.service)
    world.service.step()
    assert not world.store.rounds(run)
    assert not shown(world, run)
    world.time += 10.0
    world.run()
    assert world.service.job(run).reason == "completed"
    assert world.hash(run) == plain.hash(expected)
