"""What the sites of a buffer agree on, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.algorithms import FedBuff
from atoll.core.errors import WireError
from atoll.job.buffered import Starts, against, buffer_faults, starts_faults
from atoll.job.load import parse_job
from atoll.runtime.schedule import Asynchronous

NAMES = ("a", "b", "c", "d", "e", "f")
RULE = Asynchronous(6, 0, 4)


def of(newest: int, *versions: int) -> Starts:
    models = {version: f"{version:02}" for version in versions}
    return Starts(newest, models, dict(zip(NAMES, versions, strict=False)))


def refused(starts: Starts, rule: Asynchronous = RULE, apart: int = 3) -> list[str]:
    found = starts_faults(starts, NAMES[: len(starts.sites)], rule, FedBuff().staleness, apart)
    return [fault.place for fault in found]


def test_a_buffer_of_two_versions_with_three_sites_each_is_one() -> None:
    assert refused(of(5, 4, 4, 4, 5, 5, 5)) == []
    assert refused(of(4, 4, 4, 4, 4, 4, 4)) == []


@pytest.mark.parametrize(
    ("starts", "places"),
    [
        (of(5, 4, 4, 4, 4, 5, 5), ["models"]),
        (of(5, 3, 3, 4, 4, 5, 5), ["models"] * 3),
        (of(9, 4, 4, 4, 9, 9, 9), ["staleness"]),
        (of(3, 4, 4, 4, 3, 3, 3), ["staleness"]),
        (of(4, 4, 4, 4, 4), ["buffer"]),
        (of(4, 4, 4, 4, 4, 4), []),  # two thirds and one of six
    ],
)
def test_what_is_refused(starts: Starts, places: list[str]) -> None:
    assert refused(starts) == places


def test_a_site_may_ask_for_more_of_one_version_or_for_none() -> None:
    assert refused(of(5, 4, 4, 4, 5, 5, 5), apart=4) == ["models", "models"]
    assert refused(of(5, 4, 4, 4, 4, 4, 5), apart=1) == []


def test_weights_that_hide_nobody_are_refused_though_the_job_allows_their_age() -> None:
    old = Asynchronous(6, 0, 99)
    assert refused(of(24, 0, 0, 0, 24, 24, 24), old) == []  # (1 + 24) ** -1/2 is a fifth
    assert refused(of(25, 0, 0, 0, 25, 25, 25), old) == ["weights"]


def test_the_sites_and_versions_shown_are_those_of_the_terms() -> None:
    starts = of(4, 4, 4, 4, 4, 4, 4)
    other = replace(starts, sites={**starts.sites, "g": 4})
    assert [f.place for f in starts_faults(other, NAMES, RULE, FedBuff().staleness)] == ["buffer"]
    more = replace(starts, models={4: "04", 5: "05"})
    assert refused(more) == ["buffer"]


@given(st.integers(0, 50), st.lists(st.integers(0, 50), min_size=6, max_size=6))
def test_the_mark_is_the_same_after_the_wire_and_another_for_anything_else(
    newest: int, versions: list[int]
) -> None:
    starts = of(newest, *versions)
    assert Starts.from_plain(starts.to_plain()) == starts
    others = [
        replace(starts, newest=newest + 1),
        replace(starts, models={**starts.models, versions[0]: "ff"}),
        replace(starts, sites={**starts.sites, "a": 51}),
    ]
    assert len({starts.mark, *(other.mark for other in others)}) == 4


@pytest.mark.parametrize(
    "raw",
    [
        None,
        {},
        {"newest": "1", "models": {}, "sites": {}},
        {"newest": 1, "models": {"x": "aa"}, "sites": {}},
        {"newest": 1, "models": {"1": 5}, "sites": {}},
        {"newest": 1, "models": {"1": "aa"}, "sites": {"a": True}},
        {"newest": -1, "models": {}, "sites": {}},
        {"newest": 1, "models": [], "sites": {}},
    ],
)
def test_what_cannot_be_read_is_refused(raw: Any) -> None:
    with pytest.raises(WireError):
        Starts.from_plain(raw)


@pytest.mark.parametrize(("most", "exponent", "fine"), [(24, 0.5, True), (25, 0.5, False)])
def test_a_job_keeps_old_updates_out(most: int, exponent: float, fine: bool) -> None:
    staleness = FedBuff(exponent=exponent).staleness
    assert (not list(against(Asynchronous(6, 0, most), staleness))) is fine
    assert list(against(Asynchronous(6, 0, None), staleness))
    assert not list(against(Asynchronous(6, 0, 10_000), FedBuff(exponent=0.0).staleness))


def test_a_job_that_says_masked_is_told_what_to_set() -> None:
    def spec(**rounds: Any) -> Any:
        return parse_job(
            {
                "name": "toy",
                "data": {"source": "sites/*.csv", "target": "y"},
                "model": {"kind": "logistic"},
                "algorithm": {"name": "fedbuff"},
                "privacy": {"aggregation": "masked"},
                "rounds": {"mode": "async", "buffer": 6, **rounds},
            }
        )

    (fault,) = buffer_faults(spec())
    assert fault.place == "rounds.max_staleness"
    assert list(buffer_faults(spec(max_staleness=8))) == []
