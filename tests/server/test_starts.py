"""A deployed run that begins at a given model: the same bits as its simulation, or refused with the reason."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import played_sites as played
import pytest

import atoll
from atoll.core.errors import JobError
from atoll.job.start import Start, begun
from atoll.wire.frames import encode
from atoll.wire.messages import INITIAL, BlobRef

World = played.World
THREE = ("rounds.count=3",)
SCAFFOLD = ("rounds.count=3", "algorithm.name='scaffold'")
OWN_HEAD = (
    "rounds.count=3",
    "model.personal=['intercept']",
    "rounds.cohort='uniform'",
    "rounds.size=2",
)


def simulated(*overrides: str, **more: Any) -> Any:
    job = atoll.load_job(played.HEART, ["evaluation.compare=false", *overrides])
    return atoll.simulate(job, executor="serial", **more)


@pytest.fixture(scope="module")
def before() -> Any:
    """A run of the same job under another seed, which leaves a model."""
    return simulated("rounds.count=5", "seed=99")


@pytest.mark.parametrize("overrides", [THREE, SCAFFOLD, OWN_HEAD])
def test_a_run_from_a_model_ends_in_the_bits_of_its_simulation(
    world: World, before: Any, overrides: tuple[str, ...]
) -> None:
    start = Start.of(before.parameters)
    run = world.submit_from(played.heart_spec(*overrides), start)
    world.run()
    info = world.service.job(run)
    assert info.status == "completed", info.reason
    twin = simulated(*overrides, initial=before.parameters)
    assert world.hash(run) == twin.model_hash
    assert world.hash(run) != simulated(*overrides).model_hash
    assert info.job_hash == twin.manifest["job_hash"]
    manifest = json.loads((world.home / "runs" / run / "manifest.json").read_text())
    assert manifest["start"] == twin.manifest["start"]
    assert manifest["start"]["sha256"] == manifest["job"]["model"]["start"] == start.hash


def test_the_start_s_model_hash_is_that_of_the_run_it_comes_from(world: World, before: Any) -> None:
    run = world.submit_from(played.heart_spec(*THREE), Start.of(before.parameters))
    world.run()
    manifest = json.loads((world.home / "runs" / run / "manifest.json").read_text())
    assert manifest["start"]["model_hash"] == before.model_hash
    assert any("begins at a given model" in note for note in manifest["notes"])
    assert "begins at a given model" in (world.home / "runs" / run / "report.html").read_text()


def test_no_site_is_asked_for_the_vector_and_every_task_names_the_start(
    world: World, before: Any
) -> None:
    world.submit_from(played.heart_spec(*THREE), Start.of(before.parameters))
    world.run()
    asked = [task for site in world.sites.values() for task in site.asked]
    assert not any(task.initial for task in asked)
    assert {task.kind for task in asked if INITIAL in task.code} >= {"ready", "train", "evaluate"}


def test_a_server_that_is_killed_goes_on_from_the_same_model(world: World, before: Any) -> None:
    run = world.submit_from(played.heart_spec(*THREE), Start.of(before.parameters))
    world.killed_after_every_answer(run)
    assert world.hash(run) == simulated(*THREE, initial=before.parameters).model_hash


def test_a_model_of_another_layout_ends_the_run_before_its_first_round(
    world: World, before: Any
) -> None:
    tensors = dict(before.parameters)
    tensors["weight"] = tensors["weight"][..., :-1]
    run = world.submit_from(played.heart_spec(*THREE), Start.of(tensors))
    world.run()
    info = world.service.job(run)
    assert (info.status, info.rounds) == ("failed", 0)
    assert "layout" in info.reason
    assert "weight" in info.reason


def refused(world: World, spec: Any, **more: Any) -> str:
    with pytest.raises(JobError) as caught:
        world.submit(spec, **more)
    assert not world.store.runs()
    return str(caught.value)


def blob(world: World, raw: bytes) -> BlobRef:
    return BlobRef.of(world.blobs.put(raw))


def test_what_is_no_model_of_finite_numbers_is_refused_when_it_is_submitted(
    world: World, before: Any
) -> None:
    start = Start.of(before.parameters)
    spec = begun(played.heart_spec(*THREE), start)
    bad = {**start.tensors, "intercept": np.full(start.tensors["intercept"].shape, np.nan)}
    assert "not a finite number" in refused(world, spec, initial=blob(world, encode({}, bad)))
    other = {**start.tensors, "intercept": start.tensors["intercept"] + 1}
    assert "as the job says" in refused(world, spec, initial=blob(world, encode({}, other)))
    assert "frame" in refused(world, spec, initial=blob(world, b"PK\3\4" + bytes(5000)))


def test_a_model_comes_with_a_job_that_names_it_and_with_no_other(
    world: World, before: Any
) -> None:
    start, spec = Start.of(before.parameters), played.heart_spec(*THREE)
    assert "model.start" in refused(world, begun(spec, start))
    ref = blob(world, encode({}, start.tensors))
    assert "model" in refused(world, spec, initial=ref)
    gone = BlobRef(sha256="a" * 64, size=ref.size)
    assert "is not here" in refused(world, begun(spec, start), initial=gone)


def test_a_model_is_not_larger_than_the_server_allows(tmp_path: Any, before: Any) -> None:
    small = World(tmp_path / "small", played.heart_tables(), largest_vector=64)
    start = Start.of(before.parameters)
    ref = blob(small, encode({}, start.tensors))
    assert "64 are allowed" in refused(small, begun(played.heart_spec(*THREE), start), initial=ref)
