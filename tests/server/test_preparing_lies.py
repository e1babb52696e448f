"""Answers before the first round that no honest node gives: who sent them is named, and nobody else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import played_sites as played
import pytest

from atoll.runs.session import Session

LIAR = "cleveland"  # the first to answer, whom the others are compared with

Change = Callable[[Any, dict[str, Any], dict[str, Any]], None]


def sums(**vectors: Any) -> Change:
    def change(task: Any, body: dict[str, Any], arrays: dict[str, Any]) -> None:
        if task.kind == "sums":
            arrays.update({name: np.asarray(value, np.float64) for name, value in vectors.items()})

    return change


def ready(**fields: Any) -> Change:
    def change(task: Any, body: dict[str, Any], arrays: dict[str, Any]) -> None:
        if task.kind == "ready":
            body["answer"].update(fields)

    return change


LIES = {
    "few digits": (sums(limbs=np.zeros(3)), "'limbs' has shape (3,)"),
    "no rows": (sums(rows=[]), "'rows' has shape (0,)"),
    "rows below 0": (sums(rows=[-1e6]), "the counts 'rows' are not those of -1e+06 rows"),
    "rows that are no number": (sums(rows=[np.nan]), "not those of nan rows"),
    "halves of rows": (sums(rows=[100.5]), "not those of 100.5 rows"),
    "more values than rows": (sums(present=np.full(7, 1e6)), "the counts 'present'"),
    "digits that are none": (sums(limbs=np.full(392, 0.5)), "are no digits"),
    "endless digits": (sums(limbs=np.full(392, 1e300)), "are no digits"),
    "very many rows": (ready(rows=2**70), "rows: Input should be less than"),
    "a card that is a number": (ready(card={"rows": 1, "columns": 5}), "columns: Input should be"),
    "a card with others' lines": (ready(card={"rows": 1, "page": "<p>"}), "no data card: page"),
    "no layout": (ready(layout={"a": 1}), "its layout is none"),
}


@pytest.mark.parametrize("lie", LIES)
def test_who_lies_before_the_first_round_is_named_and_other_runs_go_on(
    world: played.World, lie: str
) -> None:
    change, words = LIES[lie]
    world.sites[LIAR].change = change
    spec = played.heart_spec("rounds.count=1")
    lied = world.submit(spec)
    others = world.submit(spec, sites=[name for name in sorted(world.sites) if name != LIAR])
    world.run()
    row = world.store.run(lied)
    assert row.status == "failed"
    assert row.reason.startswith(f"at {LIAR}: ")
    assert words in row.reason
    honest = [name for name in world.sites if name != LIAR]
    assert not any(name in row.reason for name in honest)
    assert world.store.run(others).status == "completed"


def test_a_folder_that_cannot_be_finished_holds_up_no_other_run(
    world: played.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sites[LIAR].change = ready(way="x" * 5000)
    spec = played.heart_spec("rounds.count=1")
    first = world.submit(spec)
    others = world.submit(spec, sites=[name for name in sorted(world.sites) if name != LIAR])

    def broken(*given: Any) -> None:
        raise TypeError("no page can be made of this")

    monkeypatch.setattr(Session, "failed", broken)
    monkeypatch.setattr("atoll.server.rounds.engine.leave_failed", broken)
    world.run()
    assert world.store.run(first).status == "failed"
    assert world.store.run(others).status == "completed"
    assert any("no page can be made" in e.text for e in world.store.events(first))
