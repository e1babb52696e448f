"""Zones of times as they are written: what differs among sites, and what does not."""

from __future__ import annotations

import pytest

from atoll.data.zones import zones_note

BERN = ["2024-01-31 08:30:00+01:00", "2024-07-31 08:30:00+02:00"]


def test_sites_of_different_zones_are_named_with_them_and_with_what_to_do() -> None:
    sites = {
        "bern": BERN,
        "oslo": BERN[::-1],
        "porto": ["2024-01-31T08:30:00Z"],
        "rome": ["2024-01-31"],
    }
    note = zones_note("seen", sites)
    assert "(+01:00, +02:00 at bern, oslo; Z at porto; no zone at rome)" in note
    assert note.startswith("column 'seen' holds times")
    assert note.endswith("write all times in one zone, or give a number, such as days since a date")


@pytest.mark.parametrize(
    ("written", "zone"),
    [
        ("2024-01-31 08:30:00.250+0530", "+0530"),
        ("2024-01-31T08:30-03", "-03"),
        ("31.01.2024 8:30 CET", "CET"),
        ("1/31/2024 8:30 PM Europe/Berlin", "Europe/Berlin"),
        ("2024-01-31 08:30:00", "no zone"),
        ("1/31/2024 8:30 PM", "no zone"),
    ],
)
def test_a_zone_is_told_as_it_is_written(written: str, zone: str) -> None:
    assert f"{zone} at lyon" in zones_note("seen", {"bern": BERN, "lyon": [written]})


@pytest.mark.parametrize("other", [[], ["unknown"], ["2024-13 +03:00", "12-34"], BERN])
def test_what_is_no_time_or_of_the_same_zone_is_not_told(other: list[str]) -> None:
    assert zones_note("seen", {"bern": BERN, "lyon": other}) == ""


def test_of_many_sites_five_are_named() -> None:
    sites = {f"s{i}": ["2024-01-31"] for i in range(7)} | {"bern": BERN}
    assert "no zone at s0, s1, s2, s3, s4, …; +01:00" in zones_note("seen", sites)
