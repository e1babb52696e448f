"""Figures of held-out rows with noise: in the account, with their error, and in no mask without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runtime_clients as rc
from private_runs import CLIENTS, by_row, job

from atoll import simulate
from atoll.core.errors import JobConflict
from atoll.core.metrics import merge_all
from atoll.job.declared import MetricsPrivacy, Privacy, RowPrivacy
from atoll.job.figures import with_figures
from atoll.job.record import record_event
from atoll.privacy.dp.events import Gaussian
from atoll.privacy.dp.rdp import rdp_epsilon
from atoll.runs.result import Run
from atoll.runtime.loop import Stop

ROUNDS = 4
TESTS = rc.federation({"a": 300, "b": 400, "c": 300, "d": 200, "e": 500})


def run(out: Path | None = None, executor: Any = None, **given: Any) -> Run:
    return simulate(job(**given), CLIENTS, held_out=TESTS, out=out, executor=executor, workers=2)


def settings(every: int = 1, aggregation: Any = "plain", **more: Any) -> dict[str, Any]:
    metrics = MetricsPrivacy(every=every, evaluations=-(-ROUNDS // every), **more)
    record = with_figures(RowPrivacy(clip=0.5, epsilon=4.0), metrics)
    privacy = Privacy(aggregation=aggregation, record=record, metrics=metrics)
    made = {**by_row(epsilon=4.0), "privacy": privacy, "stop": Stop(ROUNDS)}
    return {**made, "federated": True, "compare": False, "evaluate_every": every}


@pytest.mark.parametrize("every", [1, 3])
def test_training_and_figures_are_one_account_that_keeps_to_epsilon(
    every: int, tmp_path: Path
) -> None:
    made = run(**settings(every, share=0.25), out=tmp_path)
    assert made.status == "completed"
    last = made.ledger[-1]
    count = -(-ROUNDS // every)
    assert last["figures"]["evaluations"] == count
    assert 0.97 < last["figures"]["epsilon"] <= 1.0
    assert 3.9 < last["epsilon"] <= 4.0
    training, noise = last["events"]
    assert noise["count"] == count
    z = noise["noise_multiplier"]
    # What the statement says is what dp-accounting's own definition of the two together gives.
    events = [Gaussian(**{k: v for k, v in training.items() if k != "kind"}), Gaussian(z, 1, count)]
    assert last["epsilon"] == pytest.approx(rdp_epsilon(events, last["delta"]))
    said = json.loads((tmp_path / "manifest.json").read_text())["privacy"]
    assert said["not counted in it"] == "nothing that the job releases"
    assert f"{count} evaluations" in said["figures of held-out rows"]
    assert "with noise of each client" in (tmp_path / "report.html").read_text()


def test_training_has_more_noise_where_figures_take_a_share() -> None:
    made = settings(share=0.5)
    record, work = made["privacy"].record, made["local"]
    noise = [
        record_event(one, 40, work, ROUNDS).noise_multiplier
        for one in (RowPrivacy(clip=0.5, epsilon=4.0), record)
    ]
    assert 1.05 * noise[0] < noise[1] < 1.6 * noise[0]


def test_figures_come_with_their_error_and_two_runs_have_others() -> None:
    first, second = (run(**settings(noise_multiplier=6.0)) for _ in range(2))
    for made in (first, second):
        for record in made.rounds:
            told = record["federated"]
            assert set(told) == {"accuracy", "accuracy_error", "loss", "loss_error"}
            assert told["accuracy_error"] > 0
            assert set(record["sites"]) == set(CLIENTS)
            for site, own in record["sites"].items():  # who has fewer rows is off by more
                assert own["loss_error"] > told["loss_error"], site
    assert first.rounds[0]["federated"] != second.rounds[0]["federated"]


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_with_next_to_no_noise_the_figures_are_those_of_the_model(executor: str) -> None:
    """Or they would be figures of something else."""
    metrics = MetricsPrivacy(noise_multiplier=1e-4, loss=50.0, evaluations=ROUNDS)
    record = with_figures(RowPrivacy(clip=0.5, noise_multiplier=1.0), metrics)
    given = {**settings(), "privacy": Privacy(record=record, metrics=metrics)}
    made = run(executor=executor, **given)
    found = made.rounds[-1]["federated"]
    trainer = given.get("trainer") or job().trainer
    whole = np.append(made.parameters["weight"], made.parameters["intercept"])
    exact = merge_all(trainer.evaluate(whole, rows) for rows in TESTS.values())
    for name in ("accuracy", "loss"):
        assert found[f"{name}_error"] < 1e-3
        assert found[name] == pytest.approx(exact[name].value, abs=5e-3)


def test_under_masks_the_sum_has_the_noise_of_all_clients() -> None:
    made = run(**settings(aggregation="masked", noise_multiplier=6.0))
    record = made.rounds[-1]
    told = record["federated"]
    assert record["sites"] is None
    assert set(told) == {"accuracy", "accuracy_error", "loss", "loss_error"}
    plain = run(**settings(noise_multiplier=6.0)).rounds[-1]["federated"]
    # As large as without masks: each site adds all of its noise, for it trusts nobody with its rows.
    assert 0.5 < told["accuracy_error"] / plain["accuracy_error"] < 2.0


def test_in_python_figures_that_are_in_no_account_are_refused() -> None:
    privacy = Privacy(record=RowPrivacy(noise_multiplier=1.0), metrics=MetricsPrivacy())
    with pytest.raises(JobConflict) as caught:
        run(**{**by_row(), "privacy": privacy, "federated": True})
    assert "privacy.metrics" in {fault.place for fault in caught.value.faults}


def test_no_figure_is_exact_by_chance() -> None:
    made = run(**settings(noise_multiplier=6.0))
    weights = [record["federated"]["accuracy"] for record in made.rounds]
    assert len(set(np.round(weights, 9))) == len(weights)
