"""``inputs.json`` of a deployed run: the simulation's where every site agrees, a note where one does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import played_sites as played
import pytest

import atoll
from atoll.data.inputs import Inputs
from atoll.data.readers import read_table
from atoll.report.folder import read_model

World = played.World
TWO = ("rounds.count=2",)


def folder(world: World, *overrides: str) -> Path:
    """Of a run that has ended."""
    run = world.submit(played.heart_spec(*TWO, *overrides))
    world.run()
    info = world.service.job(run)
    assert info.status == "completed", info.reason
    return world.home / "runs" / run


def notes(found: Path) -> str:
    return " ".join(json.loads((found / "manifest.json").read_text())["notes"])


@pytest.mark.parametrize("way", ["plain", "quantised"])
def test_where_all_sites_agree_new_rows_can_be_given_to_the_model(
    world: World, tmp_path: Path, way: str
) -> None:
    more = (*TWO, f"privacy.aggregation='{way}'")
    found = folder(world, *more)
    job = atoll.load_job(played.HEART, ["evaluation.compare=false", *more])
    atoll.simulate(job, executor="serial", out=tmp_path / "twin")
    assert (found / "inputs.json").read_bytes() == (tmp_path / "twin" / "inputs.json").read_bytes()
    assert "no inputs.json" not in notes(found)
    inputs, (model, _) = Inputs.read(found), read_model(found / "model.safetensors")
    features = inputs.features(read_table(played.HEART.parent / "heart.csv"))
    chances = inputs.probabilities(features @ model["weight"] + model["intercept"])
    assert np.isfinite(chances).all()


def against(task: Any, body: dict[str, Any], arrays: Any) -> None:
    if task.kind == "ready":
        body["answer"]["inputs"] = False


def silent(task: Any, body: dict[str, Any], arrays: Any) -> None:
    """A node that does not know of this."""
    if task.kind == "ready":
        del body["answer"]["inputs"]


@pytest.mark.parametrize("change", [against, silent])
def test_one_site_that_does_not_agree_is_enough_and_is_named(world: World, change: Any) -> None:
    site = sorted(world.sites)[1]
    world.sites[site].change = change
    found = folder(world)
    assert not (found / "inputs.json").exists()
    assert f"do not hand them out: {site}. Their stewards may" in notes(found)
    assert "do not hand them out" in (found / "report.html").read_text()


def test_with_differential_privacy_nobody_is_asked(world: World) -> None:
    found = folder(
        world,
        "privacy.aggregation='plain'",
        "privacy.record.noise_multiplier=1.0",
        "privacy.record.open_metrics=true",
    )
    assert not (found / "inputs.json").exists()
    assert "no account of differential privacy" in notes(found)


def test_sites_that_preprocess_each_for_itself_have_nothing_in_common(world: World) -> None:
    found = folder(world, "preprocessing.mode='site'")
    assert not (found / "inputs.json").exists()
    assert "inputs.json" not in notes(found)
