"""Sites that are silent, slow or no members any more, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import played_sites as played
import pytest

from atoll.core.errors import StateError

World = played.World
Change = Callable[[Any, dict[str, Any], dict[str, Any]], None]


def in_training(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Change:
    """A site that changes what it sends in training only."""

    def apply(task: Any, body: dict[str, Any], arrays: dict[str, Any]) -> None:
        if task.kind == "train":
            change(body, arrays)

    return apply


def missing(body: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays.clear()


def test_a_silent_site_is_dropped_by_name_and_the_run_says_since_when(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=4"))
    world.reach("train", 2)
    world.run(absent=("hungary",))
    assert len(world.store.rounds(run)) < 4
    world.wait(300, absent=("hungary",))
    reply = world.service.job(run)
    assert reply.status == "completed"
    since = 1 + max(
        r.number for r in world.store.rounds(run) if "hungary" in r.record["contributed"]
    )
    assert reply.reason == f"completed without hungary from round {since}"
    last = world.service.rounds(run).rounds[-1]
    assert "nothing heard for 60 s" in last["missing"]["hungary"]
    manifest = json.loads((world.home / "runs" / run / "manifest.json").read_text())
    assert manifest["status"] == reply.reason


def test_a_cut_of_the_servers_own_line_ends_no_run(world: World) -> None:
    everybody = tuple(world.sites)
    run = world.submit(played.heart_spec("rounds.count=3"))
    world.reach("train", 1)
    world.wait(600, absent=everybody)
    assert len(world.store.rounds(run)) == 1
    world.run()
    assert world.service.job(run).reason == "completed"


def test_a_round_ends_at_its_deadline_whoever_is_missing(world: World) -> None:
    """The server's line is cut for good: rounds are aborted at their deadlines, then the run fails."""
    everybody = tuple(world.sites)
    run = world.submit(
        played.heart_spec("rounds.count=9", "rounds.deadline=100", "rounds.max_aborts=2")
    )
    world.reach("train", 1)
    world.wait(900, absent=everybody)
    reply = world.service.job(run)
    assert reply.status == "failed"
    assert "2 rounds in a row could not commit" in reply.reason
    assert "hungary unavailable" in reply.reason or "hungary dropped" in reply.reason
    aborted = [r.record for r in world.store.rounds(run) if not r.record["committed"]]
    assert len(aborted) == 2
    assert all(set(r["missing"]) == set(everybody) for r in aborted)


def test_a_slow_site_that_is_heard_of_is_late_at_the_deadline_and_not_before(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=1", "rounds.deadline=100"))
    world.reach("train")
    world.run(absent=("hungary",))
    for _ in range(9):
        world.time += 10
        world.service.touch("hungary")
        world.run(absent=("hungary",))
        assert world.store.last_round(run) is None
    world.time += 10
    world.service.touch("hungary")
    world.run(absent=())
    record = world.service.rounds(run).rounds[0]
    assert record["missing"] == {"hungary": "late: not done 100 s after the start"}


def test_a_run_below_its_quorum_fails_by_name(world: World) -> None:
    world.sites["hungary"].change = in_training(missing)
    overrides = ("rounds.count=5", "rounds.quorum=4", "rounds.max_aborts=3")
    run = world.submit(played.heart_spec(*overrides))
    world.run()
    reply = world.service.job(run)
    assert reply.status == "failed"
    assert "3 of 4 updates were usable; quorum 4 (hungary refused" in reply.reason
    assert reply.rounds == 3


def test_a_site_without_an_answer_to_prepare_holds_the_run_until_the_deadline_then_is_named(
    make_world: Callable[..., World],
) -> None:
    world = make_world(round=500.0)
    run = world.submit(played.heart_spec("rounds.count=2"))
    world.wait(490, absent=("switzerland",))
    assert world.service.job(run).phase == "survey"
    world.wait(20, absent=("switzerland",))
    reply = world.service.job(run)
    assert reply.status == "failed"
    assert "switzerland" in reply.reason


@pytest.mark.parametrize("status", ["revoked", "left"])
def test_a_site_that_is_no_member_any_more_drops_out_of_its_calls(
    world: World, status: str
) -> None:
    run = world.submit(played.heart_spec("rounds.count=4"))
    world.reach("train", 2)
    if status == "left":
        world.service.leave("hungary")
    else:
        world.store.set_member("hungary", "revoked")  # by an administrator's process
        world.time += 2
    world.run(absent=("hungary",))
    reply = world.service.job(run)
    assert reply.status == "completed"
    assert reply.reason.startswith("completed without hungary from round ")
    with pytest.raises(StateError):
        world.service.deliver("hungary", f"{run}.train.3.hungary", b"")
    other = world.submit(played.heart_spec("rounds.count=1"))
    assert "hungary" not in world.service.job(other).sites
    why = world.service.rounds(run).rounds[-1]["missing"]["hungary"]
    assert ("revoked" if status == "revoked" else "left the federation") in why
