"""What a node's ledger counts for a round, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from fake_federation import job_tables

from atoll.job.load import parse_job
from atoll.node.policy.pricing import Facts, price
from atoll.privacy.dp.events import Gaussian, from_plain, to_plain
from atoll.runtime.schedule import Turns


def events(**client: Any) -> Any:
    job = job_tables(
        privacy={"clip": 1.0, "client": {"noise_multiplier": 2.0, **client}},
        rounds={"count": 100, "cohort": "poisson", "rate": 0.1},
        evaluation={"federated": False},
    )
    (cost,) = price(parse_job(job), Facts(values=50, cohort=6))
    return cost.events


def test_a_site_that_is_asked_pays_for_it_however_seldom_the_job_says_that_it_is() -> None:
    """A server that asks it in all hundred rounds would have to be counted a tenth of them only, by the job."""
    assert events(amplified=True) == events() == (to_plain(Gaussian(2.0)),)


@pytest.mark.parametrize(
    ("rounds", "turns"),
    [
        ({"count": 9}, Turns(9, 9, 1)),
        ({"count": 9, "cohort": "uniform", "size": 2, "separation": 4}, Turns(9, 3, 4)),
        ({"count": 9, "mode": "async", "buffer": 3}, None),
    ],
)
def test_a_job_is_held_to_the_rounds_it_plans_where_these_are_rounds_of_all(
    rounds: Any, turns: Turns | None
) -> None:
    name = "fedbuff" if "mode" in rounds else "fedavg"
    job = job_tables(
        privacy={"clip": 1.0, "client": {"noise_multiplier": 2.0}},
        rounds=rounds,
        algorithm={"name": name, "weights": "uniform"},
        evaluation={"federated": False},
    )
    (cost,) = price(parse_job(job), Facts())
    assert cost.turns == turns


@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
def test_noise_in_shares_likewise(mechanism: str) -> None:
    (event,) = events(where="sites", mechanism=mechanism, amplified=True)
    assert getattr(from_plain(event), "sampling", 1.0) == 1.0
    assert (event,) == events(where="sites", mechanism=mechanism)
