"""A run that ends before its time leaves what it had come to: the model of its last committed round."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import played_sites as played
import pytest

import atoll
from atoll.core.errors import StateError, StorageError
from atoll.report.folder import read_model
from atoll.server.stopping import Stopping
from atoll.server.store.contract import STOPPED

World = played.World
LEFT = ("manifest.json", "metrics.jsonl", "model.safetensors", "report.html")


def left(world: World, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder(world, run) / "manifest.json").read_text())
    return found


def folder(world: World, run: str) -> Path:
    return world.home / "runs" / run


def simulated(*overrides: str) -> Any:
    job = atoll.load_job(played.HEART, ["evaluation.compare=false", *overrides])
    return atoll.simulate(job, executor="serial")


@pytest.mark.parametrize("killed", [False, True])
def test_a_cancelled_run_leaves_the_model_of_its_last_committed_round(
    world: World, killed: bool
) -> None:
    run = world.submit(played.heart_spec("rounds.count=50"))
    world.reach("train", 3)
    next(iter(world.sites.values())).turn(world.service)  # the round under way has an answer
    world.service.cancel(run, played.RESEARCHER)
    if killed:
        world.kill()
    world.service.step()
    assert world.service.job(run).status == "cancelled"
    manifest, twin = left(world, run), simulated("rounds.count=3")
    assert (manifest["status"], manifest["rounds"]) == ("cancelled by ruth after round 3", 3)
    assert manifest["model_hash"] == twin.model_hash == world.hash(run)
    assert all((folder(world, run) / name).is_file() for name in LEFT)
    named, _ = read_model(folder(world, run) / "model.safetensors")
    assert {n: v.tobytes() for n, v in named.items()} == {
        n: v.tobytes() for n, v in twin.parameters.items()
    }


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_the_operator_ends_is_cancelled_whoever_has_submitted_it(
    world: World, killed: bool
) -> None:
    run = world.submit(played.heart_spec("rounds.count=50"))
    other = world.submit(played.heart_spec("rounds.count=10"))
    world.reach("train", 3)
    if killed:
        world.kill()
    world.store.add_event(STOPPED, "cancelled by whoever runs the server", run, "", 0.0)
    world.time += world.settings.members_every
    world.service.step()
    assert world.service.job(run).status == "cancelled"
    assert left(world, run)["status"] == "cancelled by whoever runs the server after round 3"
    world.run()
    assert world.service.job(other).status == "completed"


def test_what_the_operator_says_is_told_once_to_a_run_that_comes_later_too(world: World) -> None:
    """A line can be read while the run's engine is being made, and its row cannot always be written."""
    asked: list[str] = []
    outcomes = iter([StorageError("no room"), None, StateError("it has ended")])

    def cancel(why: str) -> None:
        asked.append(why)
        if (error := next(outcomes)) is not None:
            raise error

    late, other = (
        SimpleNamespace(id="late", cancel=cancel),
        SimpleNamespace(id="other", cancel=cancel),
    )
    stopping: Any = Stopping(world.service._office)
    world.store.add_event(STOPPED, "enough", "late", "", 0.0)
    stopping.look([])
    with pytest.raises(StorageError):
        stopping.look([late, other])
    stopping.look([late, other])
    stopping.look([late, other])
    assert asked == ["enough", "enough"]
    world.store.add_event(STOPPED, "too late", "other", "", 0.0)
    stopping.look([late, other])
    stopping.look([late, other])
    assert asked[2:] == ["too late"]


def test_the_same_job_runs_to_its_end_after_it_was_cancelled(world: World) -> None:
    spec = played.heart_spec("rounds.count=3")
    first = world.submit(spec)
    world.reach("evaluate", 1)
    world.service.cancel(first, played.RESEARCHER)
    world.service.step()
    second = world.submit(spec)
    assert second != first
    world.run()
    assert world.service.job(second).status == "completed"
    assert world.hash(second) == simulated("rounds.count=3").model_hash


@pytest.mark.parametrize("kind", ["survey", "sums", "ready", "train"])
def test_a_run_that_is_cancelled_before_its_first_round_has_no_model_and_says_so(
    world: World, kind: str
) -> None:
    run = world.submit(played.heart_spec("rounds.count=3"))
    world.reach(kind)
    world.service.cancel(run, played.RESEARCHER)
    world.service.step()
    manifest = left(world, run)
    assert (manifest["status"], manifest["rounds"]) == ("cancelled by ruth", 0)
    assert not (folder(world, run) / "model.safetensors").exists()


def test_a_run_that_fails_leaves_the_model_of_its_last_committed_round_too(world: World) -> None:
    asked = ("rounds.quorum=4", "rounds.max_aborts=1", "rounds.deadline=100")
    run = world.submit(played.heart_spec("rounds.count=50", *asked))
    world.reach("train", 2)
    assert world.ended(run, absent=("hungary",)) == "failed"
    manifest = left(world, run)
    assert manifest["status"].startswith("failed: ")
    assert "hungary" in manifest["status"]
    assert "lower the quorum" in world.service.job(run).reason  # no statistic, which asks everybody
    assert manifest["model_hash"] == simulated("rounds.count=2").model_hash
    assert all((folder(world, run) / name).is_file() for name in LEFT)


def test_a_checkpoint_that_is_gone_costs_the_model_and_not_the_end(world: World) -> None:
    run = world.submit(played.heart_spec("rounds.count=50"))
    world.reach("train", 2)
    world.blobs.delete(world.store.rounds(run)[-1].checkpoint)
    world.service.cancel(run, played.RESEARCHER)
    world.service.step()
    assert world.service.job(run).status == "cancelled"
    assert left(world, run)["status"] == "cancelled by ruth"
