"""``found`` in a job: what it means beside ``epsilon``, and what contradicts it."""

from __future__ import annotations

from typing import Any

import pytest

from atoll.core.contracts import Weighting
from atoll.core.errors import AtollError, JobConflict
from atoll.core.local import LocalWork
from atoll.job.declared import Privacy, RowPrivacy, declared_faults
from atoll.job.load import parse_job
from atoll.job.privacy import client_event
from atoll.job.record import record_event
from atoll.job.tables import privacy_of, schedule_of, weighting_of
from atoll.privacy.dp.accounting import permitted
from atoll.privacy.dp.events import Gaussian
from atoll.runtime.schedule import Asynchronous


def spec(**privacy: Any) -> Any:
    return parse_job(
        {
            "data": {"source": "sites/*.csv", "target": "y"},
            "model": {"kind": "logistic"},
            "rounds": {"count": 10},
            "algorithm": {"name": "fedavg", "weights": "uniform"},
            "evaluation": {"federated": False},
            "privacy": privacy,
        }
    )


def faults(job: Any) -> list[str]:
    judged = job.evaluation.federated and job.evaluation.every > 0
    found = declared_faults(privacy_of(job), schedule_of(job), weighting_of(job), judged)
    return [str(fault) for fault in found]


@pytest.mark.parametrize("unit", ["record", "client"])
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({}, "names no noise"),
        ({"epsilon": 3.0, "found": 0.03}, "noise has one goal"),
        ({"found": 0.01}, "is what guessing finds"),
        ({"found": 0.03, "fpr": 0.05}, "is what guessing finds, with fpr = 0.05"),
        ({"epsilon": 3.0, "fpr": 0.05}, "which the job does not name"),
        ({"found": 0.03}, ""),
        ({"found": 0.03, "fpr": 0.001, "noise_multiplier": 2.0}, ""),
    ],
)
def test_what_contradicts_it_is_told(unit: str, said: dict[str, float], told: str) -> None:
    clip = {"clip": 1.0} if unit == "client" else {}
    found = faults(spec(**{unit: said}, **clip))
    if told:
        assert [told in fault for fault in found] == [True]
    else:
        assert found == []


@pytest.mark.parametrize("found", [-0.1, 1.0])
def test_what_is_no_share_is_refused(found: float) -> None:
    with pytest.raises(AtollError, match="found"):
        spec(record={"found": found})


def test_a_job_without_it_is_the_job_it_was() -> None:
    for unit in ("record", "client"):
        said = spec(**{unit: {"epsilon": 3.0}}).definition()["privacy"][unit]
        assert not {"found", "fpr"} & set(said)
        told = spec(**{unit: {"found": 0.03}}).definition()["privacy"][unit]
        assert (told["found"], told["fpr"]) == (0.03, 0.01)


def test_a_site_trains_with_the_noise_that_keeps_it_over_all_planned_rounds() -> None:
    work = LocalWork(steps=5, batch_size=20)
    event = record_event(RowPrivacy(found=0.03), 100, work, 10)
    assert (event.sampling, event.count) == (0.2, 5)
    spent = permitted([Gaussian(event.noise_multiplier, 0.2, 50)])
    assert 0.0299 < spent <= 0.03


def test_figures_take_their_share_of_what_is_found_beyond_guessing() -> None:
    job = parse_job(
        {
            "data": {"source": "sites/*.csv", "target": "y"},
            "model": {"kind": "logistic"},
            "rounds": {"count": 10},
            "privacy": {"record": {"found": 0.05}, "metrics": {"share": 0.25}},
        }
    )
    (event,) = privacy_of(job).record.beside
    assert event.count == 10
    assert permitted([event]) == pytest.approx(0.02, abs=3e-5)
    made = record_event(privacy_of(job).record, 100, LocalWork(steps=5, batch_size=20), 10)
    whole = Gaussian(made.noise_multiplier, 0.2, 50)
    assert 0.0498 < permitted([whole, event]) <= 0.05


@pytest.mark.parametrize(
    ("client", "relation"),
    [
        ({"where": "server"}, "add_or_remove"),
        ({"where": "client"}, "replace"),
        ({"where": "server", "mechanism": "tree"}, "add_or_remove"),
    ],
)
def test_a_client_s_noise_keeps_it_in_every_mechanism(client: Any, relation: Any) -> None:
    job = spec(client={"found": 0.03, **client}, clip=1.0)
    event = client_event(privacy_of(job), schedule_of(job), 10)
    events = [event] if client.get("mechanism") else [event] * 10
    assert 0.0299 < permitted(events, 0.01, relation) <= 0.03


def test_noise_in_shares_keeps_it_by_the_bound_that_integers_have() -> None:
    client = {"found": 0.03, "where": "sites"}
    job = spec(client=client, clip=1.0, aggregation="masked")
    event = client_event(privacy_of(job), schedule_of(job), 10, 5, 100)
    assert 0.0299 < permitted([event] * 10) <= 0.03


def test_what_no_noise_keeps_is_told() -> None:
    record = RowPrivacy(found=0.03, beside=(Gaussian(1.0),))
    with pytest.raises(JobConflict, match="3 % found"):
        record_event(record, 100, LocalWork(steps=5, batch_size=20), 10)


@pytest.mark.parametrize("oldest", [0, 1, None])
def test_an_asynchronous_run_trains_once_a_step_at_most_or_is_refused(oldest: int | None) -> None:
    """Thrown away at once, an update is followed by another one of the same site in the same step."""
    late = Asynchronous(3, max_staleness=oldest)
    rows = Privacy(record=RowPrivacy(noise_multiplier=2.0))
    found = [fault.place for fault in declared_faults(rows, late, Weighting(), False)]
    assert found == (["rounds.max_staleness"] if oldest == 0 else [])
