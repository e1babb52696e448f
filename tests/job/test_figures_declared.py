"""``[privacy.metrics]``: what it takes of epsilon, and what contradicts it."""

from __future__ import annotations

from typing import Any

import pytest

from atoll.core.errors import JobConflict
from atoll.job import check
from atoll.job.declared import declared_faults
from atoll.job.figures import figures_of
from atoll.job.load import parse_job
from atoll.job.tables import privacy_of, schedule_of, weighting_of
from atoll.privacy.dp.events import Gaussian
from atoll.privacy.dp.rdp import rdp_epsilon


def spec(record: dict[str, Any] | None = None, metrics: dict[str, Any] | None = None, **more: Any):
    privacy = (
        {"record": {"epsilon": 4.0}} if record is None else {"record": record} if record else {}
    )
    if metrics is not None:
        privacy["metrics"] = metrics
    return parse_job(
        {
            "data": {"source": "sites/*.csv", "target": "y"},
            "model": {"kind": "logistic"},
            "rounds": {"count": 10},
            "privacy": privacy,
            **more,
        }
    )


def faults(job: Any) -> list[str]:
    judged = job.evaluation.federated and job.evaluation.every > 0
    found = declared_faults(privacy_of(job), schedule_of(job), weighting_of(job), judged)
    return [str(fault) for fault in found]


@pytest.mark.parametrize(("every", "planned"), [(1, 10), (4, 3), (10, 1)])
def test_all_planned_evaluations_keep_to_their_share_and_no_less(every: int, planned: int) -> None:
    job = spec(metrics={"share": 0.25}, evaluation={"every": every})
    (event,) = privacy_of(job).record.beside
    assert event.count == planned
    spent = rdp_epsilon([event], 1e-5)
    assert 0.97 < spent <= 1.0
    told = figures_of(privacy_of(job))
    assert told is not None
    assert told.event(planned) == event
    assert faults(job) == []


def test_noise_that_is_named_is_taken_as_it_is() -> None:
    job = spec({"noise_multiplier": 1.0}, {"noise_multiplier": 7.0, "loss": 2.0})
    assert privacy_of(job).record.beside == (Gaussian(7.0, 1.0, 10),)
    assert figures_of(privacy_of(job)).loss == 2.0


def test_a_job_without_the_table_is_the_job_it_was() -> None:
    assert "metrics" not in spec().definition()["privacy"]
    assert spec().hash() != spec(metrics={}).hash()


def test_a_figure_that_is_not_told_is_not_watched(tmp_path: Any) -> None:
    job = spec(metrics={}, stop={"metric": "federated.auc"})
    with pytest.raises(JobConflict) as caught:
        check._metric(job, tmp_path)
    assert "not among the figures" in str(caught.value)
    check._metric(spec(metrics={}, stop={"metric": "federated.accuracy"}), tmp_path)
    check._metric(spec(stop={"metric": "federated.auc"}), tmp_path)


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (spec(), "add [privacy.metrics] for noise on them"),
        (spec({}, {}), "the job hides no rows"),
        (spec({"epsilon": 1.0, "open_metrics": True}, {}), "tells the same figures without noise"),
        (spec(metrics={}, evaluation={"federated": False}), "the job asks for none"),
        (spec(metrics={}, evaluation={"every": 0}), "the job asks for none"),
        (spec({"noise_multiplier": 1.0}, {}), "an epsilon that the job does not name"),
    ],
)
def test_what_contradicts_it_is_told(job: Any, said: str) -> None:
    assert any(said in fault for fault in faults(job))


def test_a_share_that_no_noise_keeps_says_what_to_change() -> None:
    with pytest.raises(JobConflict, match=r"10 evaluations under \[privacy.metrics\]") as caught:
        privacy_of(spec({"epsilon": 1e-3}, {"share": 1e-9}))
    assert "privacy.metrics.share" in caught.value.remedy
