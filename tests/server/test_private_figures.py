"""Figures of held-out rows with noise between institutions: in clear, under masks and as ciphertexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import masked_sites as masked
import played_sites as played
import pytest

ASKED = (
    "privacy.record.epsilon=20.0",
    "privacy.metrics.share=0.5",
    "privacy.metrics.loss=2.0",
    "rounds.count=2",
    "stop.metric=federated.loss",
)


def told(world: Any, aggregation: str) -> dict[str, Any]:
    run = world.submit(played.heart_spec(f"privacy.aggregation={aggregation}", *ASKED))
    world.run()
    assert world.store.run(run).reason == "completed"
    found: dict[str, Any] = dict(world.store.last_round(run).record)
    return found


def holds(record: dict[str, Any]) -> None:
    figures = record["federated"]
    assert set(figures) == {"accuracy", "accuracy_error", "loss", "loss_error"}
    assert abs(figures["accuracy"] - 0.8) < 0.2 + 5 * figures["accuracy_error"]
    assert 0 < figures["accuracy_error"] < 1
    spent = record["privacy"]
    assert 19 < spent["epsilon"] <= 20
    assert 9.7 < spent["figures"]["epsilon"] <= 10
    assert spent["outside"] == ["sums of the columns for preprocessing"]


def test_each_site_s_figures_have_noise_of_its_own(world: played.World) -> None:
    record = told(world, "plain")
    holds(record)
    assert set(record["sites"]) == set(world.sites)
    for own in record["sites"].values():
        assert own["accuracy_error"] > 0


def test_under_masks_the_sum_has_all_of_it_and_no_site_s_figures_are_told(
    tmp_path: Path, six: Any
) -> None:
    record = told(masked.MaskedWorld(tmp_path / "home", six), "masked")
    holds(record)
    assert record["sites"] is None


def test_as_ciphertexts_likewise(tmp_path: Path, hospitals: Any) -> None:
    pytest.importorskip("tenseal")
    import encrypted_sites as encrypted

    record = told(encrypted.EncryptedWorld(tmp_path / "home", hospitals), "encrypted")
    holds(record)
    assert record["sites"] is None
