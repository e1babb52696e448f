"""What updates pass on their way out is the same between institutions as in a simulation."""

from __future__ import annotations

import json
from typing import Any

import played_sites as played
import pytest

import atoll

EXACT = {
    "clipped": ("privacy.clip=0.05",),
    "by layer": ("privacy.clip=0.05", "privacy.clip_by=layer"),
    "adaptive": ("privacy.clip=0.05", "privacy.clip_by=adaptive", "algorithm.weights=uniform"),
    "integers": ("privacy.aggregation=quantised",),
    "two vectors": ("privacy.aggregation=quantised", "algorithm.name=scaffold"),
    "integers, adaptive": (
        "privacy.aggregation=quantised",
        "privacy.clip=0.05",
        "privacy.clip_by=adaptive",
        "algorithm.weights=uniform",
    ),
}


REST = ("rounds.cohort=uniform", "rounds.size=2", "rounds.separation=2")
BLT = (
    *("privacy.clip=1.0", "algorithm.weights=uniform", "privacy.client.epsilon=20.0"),
    "privacy.client.mechanism=blt",
)


def simulated(*overrides: str) -> Any:
    job = atoll.load_job(played.HEART, overrides=["evaluation.compare=false", *overrides])
    return atoll.simulate(job, executor="serial")


@pytest.mark.parametrize("overrides", EXACT.values(), ids=list(EXACT))
def test_a_deployed_run_has_the_bits_of_the_simulated_one(
    world: played.World, overrides: tuple[str, ...]
) -> None:
    asked = (*overrides, "rounds.count=3")
    run = world.submit(played.heart_spec(*asked))
    world.run()
    twin = simulated(*asked)
    assert world.hash(run) == twin.model_hash
    mine = world.service.rounds(run).rounds[-1]
    for entry in ("contributed", "privacy", "train", "federated"):
        assert mine.get(entry) == twin.rounds[-1].get(entry)


def test_a_cancelled_run_says_what_it_had_spent(world: played.World) -> None:
    noise = ("privacy.clip=1.0", "algorithm.weights=uniform", "privacy.client.epsilon=20.0")
    asked = ("rounds.count=4", "evaluation.federated=false", "stop.metric=''", *noise)
    run = world.submit(played.heart_spec(*asked))
    world.reach("train", 2)
    world.service.cancel(run, played.RESEARCHER)
    world.run()
    last = world.service.rounds(run).rounds[-1]
    assert last["round"] == 2
    manifest = json.loads((world.home / "runs" / run / "manifest.json").read_text())
    assert manifest["privacy"]["epsilon"] >= last["privacy"]["epsilon"] > 5


@pytest.mark.parametrize(
    ("overrides", "unit"),
    [
        (("privacy.clip=1.0", "algorithm.weights=uniform", "privacy.client.epsilon=20.0"), "site"),
        (("privacy.record.epsilon=20.0",), "record"),
        ((*BLT, *REST), "site"),
        (("privacy.record.epsilon=20.0", *REST), "record"),
        (("privacy.clip=1.0", "algorithm.weights=uniform", "privacy.client.found=0.2"), "site"),
        (("privacy.record.found=0.2", *REST), "record"),
    ],
    ids=[
        "clients",
        "rows",
        "clients that rest",
        "rows of clients that rest",
        "what finds clients",
        "what finds rows of clients that rest",
    ],
)
def test_a_deployed_run_says_what_it_spent(
    world: played.World, overrides: tuple[str, ...], unit: str
) -> None:
    asked = ("rounds.count=2", "evaluation.federated=false", "stop.metric=''", *overrides)
    run = world.submit(played.heart_spec(*asked))
    world.run()
    said = world.service.rounds(run).rounds[-1]["privacy"]
    assert said["unit"] == unit
    if any(".found" in override for override in overrides):
        assert 0.199 < said["attack"]["found"] <= 0.2
        assert said["epsilon"] > 5
    else:
        assert 19 < said["epsilon"] <= 20
