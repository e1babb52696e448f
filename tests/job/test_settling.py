"""What ``auto`` means: for each job and number of sites one thing, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.algorithms import FedAvg, FedBuff
from atoll.job import deployed
from atoll.job.declared import Privacy
from atoll.job.load import parse_job
from atoll.job.settling import applied, settle
from atoll.runtime.cohort import Cohort
from atoll.runtime.schedule import Asynchronous, Synchronous

AUTO = Privacy("auto")


@dataclass(frozen=True)
class Median:
    """A rule that looks at single updates."""

    additive: bool = False


def spec(**tables: Any) -> Any:
    return parse_job(
        {
            "name": "toy",
            "data": {"source": "sites/*.csv", "target": "y"},
            "model": {"kind": "logistic"},
            **tables,
        }
    )


@pytest.mark.parametrize(
    ("privacy", "schedule", "algorithm", "sites", "said"),
    [
        (AUTO, Synchronous(), FedAvg(), 5, "masked: 5 sites, and nothing in the job is against it"),
        (AUTO, Synchronous(), FedAvg(), 4, "plain: 4 sites, masks hide little below 5"),
        (AUTO, Synchronous(), FedAvg(), 1, "plain: 1 site, masks hide little below 5"),
        (AUTO, Synchronous(), Median(), 9, "plain: Median needs single updates"),
        (AUTO, Asynchronous(5), FedBuff(), 9, "plain: rounds.max_staleness is not set"),
        (AUTO, Asynchronous(5, 0, 25), FedBuff(), 9, "plain: updates of 25 versions' age"),
        (AUTO, Asynchronous(4, 0, 24), FedBuff(), 9, "plain: buffers of 4 updates"),
        (AUTO, Asynchronous(5, 0, 24), FedBuff(), 9, "masked: 9 sites"),
        (AUTO, Asynchronous(5, 0, 24), FedBuff(exponent=1.0), 9, "plain: updates of 24"),
        (AUTO, Synchronous(Cohort("uniform", 4)), FedAvg(), 9, "plain: cohorts of 4 sites"),
        (AUTO, Synchronous(Cohort("uniform", 5)), FedAvg(), 9, "masked"),
        (AUTO, Synchronous(Cohort("poisson", rate=0.9)), FedAvg(), 9, "plain: a cohort drawn by"),
        (AUTO, Synchronous(quorum=3), FedAvg(), 6, "plain: rounds.quorum is 3, and a masked sum"),
        (AUTO, Synchronous(quorum=0.9), FedAvg(), 6, "masked"),
        (replace(AUTO, max_norm=1.0), Synchronous(), FedAvg(), 9, "plain: privacy.max_norm"),
        (Privacy("masked"), Synchronous(), Median(), 2, "masked: the job says so"),
        (Privacy("plain"), Synchronous(), FedAvg(), 50, "plain: the job says so"),
    ],
)
def test_what_is_settled_and_why(
    privacy: Privacy, schedule: Any, algorithm: Any, sites: int, said: str
) -> None:
    assert str(settle(privacy, schedule, algorithm, sites)).startswith(said)


@given(st.sampled_from(["plain", "quantised", "masked", "encrypted"]), st.integers(0, 100))
def test_what_the_job_says_is_never_overruled(aggregation: Any, sites: int) -> None:
    privacy = Privacy(aggregation, bound=3.0)
    found = settle(privacy, Synchronous(), FedAvg(), sites)
    assert found.kind == aggregation
    assert applied(privacy, found) is privacy
    assert applied(privacy, found, masks=False) is privacy


def test_a_simulation_adds_up_the_integers_that_sites_would_send() -> None:
    found = settle(AUTO, Synchronous(), FedAvg(), 6)
    there, here = applied(AUTO, found), applied(AUTO, found, masks=False)
    assert (there.aggregation, here.aggregation) == ("masked", "quantised")
    assert replace(there, aggregation="quantised") == here


def test_auto_masks_in_ranges_that_nothing_useful_leaves_and_keeps_what_the_job_says() -> None:
    found = settle(AUTO, Synchronous(), FedAvg(), 6)
    assert (applied(AUTO, found).bits, applied(AUTO, found).bound) == (64, 2.0**18)
    own = applied(replace(AUTO, bound=2.0, cap=10), found)
    assert (own.bound, own.cap) == (2.0, 10)
    clipped = applied(replace(AUTO, clip=0.5), found)  # which is the bound, then
    assert clipped.bound == Privacy().bound


def test_a_job_without_a_word_on_privacy_keeps_its_hash_and_is_auto() -> None:
    bare = spec()
    assert bare.privacy.aggregation == "auto"
    assert "privacy" not in bare.definition()
    assert bare.hash() == spec(privacy={"aggregation": "auto"}).hash()
    assert bare.hash() != spec(privacy={"aggregation": "plain"}).hash()


def test_the_same_is_settled_of_a_file_as_of_its_objects() -> None:
    assert deployed.settled_of(spec(), 5).masked
    assert not deployed.settled_of(spec(), 4).masked
    assert not deployed.settled_of(spec(privacy={"aggregation": "plain"}), 5).masked
    quorum = spec(rounds={"quorum": 2})
    assert "rounds.quorum" in deployed.settled_of(quorum, 5).why
