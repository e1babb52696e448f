"""What a site's rule and its query log refuse, whatever a job or a server says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruled_sites import RuledWorld

from atoll.data.table import Table
from atoll.job.load import parse_job
from atoll.node.policy.examining import would_answer

SITES = ("east", "north", "south")


def tables(rows: int = 40) -> dict[str, Table]:
    rng = np.random.default_rng(3)
    found = {}
    for site in SITES:
        sex = np.array(["f", "m"], object)[np.arange(rows) % 2]
        found[site] = Table(
            {
                "age": np.round(rng.normal(60, 9, rows)),
                "dose": rng.gamma(2.0, 1.5, rows),
                "sex": sex,
                "patient": np.floor(np.arange(rows) / 2),
            }
        )
    return found


def job(*analyses: Any, **more: Any) -> Any:
    asked = analyses or ({"kind": "correlation", "columns": ["age", "dose"]},)
    raw = {
        "data": {"source": "rows.csv"},
        "statistics": {"analyses": list(asked), **more},
        "privacy": {"aggregation": "plain"},
    }
    return parse_job(raw, folder=Path())


@pytest.fixture
def world(tmp_path: Path) -> RuledWorld:
    return RuledWorld(tmp_path, tables())


def lines(world: RuledWorld, site: str) -> list[Any]:
    path = world.sites[site].log
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_study_is_answered_and_noted_at_every_site(world: RuledWorld) -> None:
    row = world.asked(job())
    assert row.status == "completed", row.reason
    assert [len(lines(world, site)) for site in SITES] == [1, 1, 1]
    world.asked(job())
    assert [len(lines(world, site)) for site in SITES] == [1, 1, 1]  # the same set of persons


def test_a_difference_of_two_submitted_jobs_is_refused_by_name(world: RuledWorld) -> None:
    assert world.asked(job()).status == "completed"
    oldest = float(np.sort(world.sites["north"].table["age"])[-5])
    row = world.asked(job(where={"age": {"below": oldest}}))
    assert row.status == "failed"
    assert "north" in row.reason
    assert "would isolate fewer than 11 persons" in row.reason
    assert [len(lines(world, site)) for site in SITES] == [1, 1, 1]  # all agree before any notes


def test_the_log_outlives_the_process_and_a_torn_line(world: RuledWorld) -> None:
    assert world.asked(job()).status == "completed"
    log = world.sites["north"].log
    with log.open("ab") as file:
        file.write(b'{"columns": ["age"], "per')  # killed in the middle of a line
    world.kill()
    fewer = {"least": float(np.sort(world.sites["north"].table["age"])[4])}
    assert "isolate" in world.asked(job(where={"age": fewer})).reason
    assert world.asked(job({"kind": "correlation", "columns": ["dose", "patient"]})).status == (
        "completed"
    )
    assert len(lines(world, "north")) == 2  # the torn line is gone, and nothing before it


def test_the_strictest_site_sets_the_minimum(world: RuledWorld, tmp_path: Path) -> None:
    world.sites["south"].govern(minimum=15, small="clear")
    row = world.asked(job(minimum=2))
    assert row.status == "completed", row.reason
    found = json.loads((tmp_path / "runs" / row.id / "results.json").read_text())
    assert found["rule"]["minimum"] == 15
    assert found["notes"] == ["the minimum is 15 persons, as south wants it"]


@pytest.mark.parametrize(
    ("weaker", "reason"),
    [
        ({"minimum": 1}, "1 persons where this site wants 11"),
        ({"extremes": True}, "smallest and largest values do not leave this site"),
        ({"masked": True}, "said to be masked, and they are not"),
    ],
)
def test_a_server_cannot_weaken_a_rule_that_all_agreed_on(
    world: RuledWorld, weaker: Any, reason: str
) -> None:
    def doctor(agreed: Any) -> Any:
        return replace(agreed, book=replace(agreed.book, rule=replace(agreed.book.rule, **weaker)))

    world.sites["east"].doctor = doctor
    row = world.asked(job(minimum=1, extremes=True))
    assert row.status == "failed"
    assert reason in row.reason
    assert lines(world, "east") == []


def test_a_site_with_too_few_persons_does_not_answer(world: RuledWorld) -> None:
    world.sites["north"].govern(minimum=25, person="patient")  # 40 rows of 20 persons
    row = world.asked(job(person="patient"))
    assert row.status == "failed"
    assert "north: fewer than 25 persons" in row.reason
    assert "20" not in row.reason


def test_sites_that_count_other_persons_are_told_apart(world: RuledWorld) -> None:
    world.sites["north"].govern(person="patient")
    assert "sites count persons by '', 'patient'" in world.asked(job()).reason
    row = world.asked(job(person="patient"))
    assert row.status == "completed", row.reason


def test_columns_that_the_rule_does_not_name_are_not_read(
    world: RuledWorld, tmp_path: Path
) -> None:
    world.sites["east"].govern(columns=("age", "sex"), small="clear")
    row = world.asked(job())
    assert "column 'dose': may not be used for statistics at this site" in row.reason
    every = world.asked(job({"kind": "describe", "quantiles": []}))
    found = json.loads((tmp_path / "runs" / every.id / "results.json").read_text())
    assert [line["column"] for line in found["analyses"][0]["table"]] == ["age"]


def test_small_cells_leave_under_masks_only(world: RuledWorld) -> None:
    bins = {"kind": "histogram", "column": "age", "edges": [45.0, 60.0]}
    row = world.asked(job(bins))
    assert row.status == "failed"
    assert "would leave in the clear" in row.reason
    assert "set privacy.aggregation = 'masked'" in row.reason
    for site in world.sites.values():
        site.govern(small="clear")
    assert world.asked(job(bins)).status == "completed"


def test_quantiles_tell_single_values_and_leave_under_masks_only(world: RuledWorld) -> None:
    row = world.asked(job({"kind": "describe", "columns": ["dose"]}))
    assert "counts between cut points that come ever closer" in row.reason
    row = world.asked(job({"kind": "describe", "columns": ["dose"], "quantiles": []}))
    assert row.status == "completed", row.reason


def test_a_file_that_has_changed_wants_a_review(world: RuledWorld) -> None:
    assert world.asked(job()).status == "completed"
    site = world.sites["south"]
    data = site.home / "data" / "rows.csv"
    data.write_text(data.read_text().replace("f,0.0", "m,0.0", 1))
    row = world.asked(job())
    assert "the site's rows have changed since column" in row.reason
    kept = site.register.review("rows")
    assert kept is not None
    assert kept.exists()
    assert world.asked(job()).status == "completed"


def test_names_of_rare_categories_do_not_leave(tmp_path: Path) -> None:
    rows = tables()
    rows["east"].columns["sex"][:3] = "unlisted"
    world = RuledWorld(tmp_path, rows)
    asked = {"kind": "cross_table", "row": "sex", "column": "sex"}
    row = world.asked(job(asked))
    assert "a category of column 'sex' has fewer than 11 persons here" in row.reason
    assert "unlisted" not in row.reason


def test_the_doctor_tells_a_site_whether_it_would_answer(world: RuledWorld) -> None:
    site = world.sites["east"]
    told = list(would_answer(job(), "east", site.register.get("rows")))
    assert [finding.state for finding in told] == ["ok", "ok"]
    assert not site.log.exists()
    site.govern(columns=("age",))
    (refused,) = would_answer(job(), "east", site.register.get("rows"))
    assert refused.state == "fault"
    assert "column 'dose'" in refused.text
