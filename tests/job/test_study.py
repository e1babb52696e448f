"""What sites agree on before statistics: read from other machines, so cheap whatever they say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from atoll.core.errors import DataError
from atoll.data.disclosure import Disclosure
from atoll.job.load import parse_job
from atoll.job.study import Study, study_of

RULE = {"minimum": 11, "person": "", "extremes": False}


def told(names: list[str]) -> dict[str, Any]:
    column = {"text": False, "levels": None, "binary": False}
    return {"columns": dict.fromkeys(names, column), "rule": RULE}


def test_sites_share_the_columns_that_all_of_them_have_in_the_order_of_the_first() -> None:
    surveys = {"b": told(["sex", "age", "dose"]), "a": told(["dose", "age", "weight"])}
    assert Study({}, Disclosure(5)).agree(surveys).book.columns == ("dose", "age")


def test_as_many_columns_as_a_site_may_tell_take_no_long_time() -> None:
    names = [f"column {n}" for n in range(20_000)]
    surveys = {"a": told(names), "b": told(names[::-1])}
    began = time.process_time()
    agreed = Study({}, Disclosure(5)).agree(surveys)
    assert time.process_time() - began < 2.0
    assert agreed.book.columns == tuple(names)


def text(levels: list[str] | None) -> dict[str, Any]:
    return {"text": True, "levels": levels, "binary": False}


def test_text_at_one_site_and_numbers_at_another_names_both() -> None:
    surveys = {site: told(["age", "dose"]) for site in ("bern", "lyon", "rome")}
    surveys["lyon"]["columns"] = {**surveys["lyon"]["columns"], "age": text(["40", "n/a"])}
    with pytest.raises(DataError) as caught:
        Study({}, Disclosure(5)).agree(surveys)
    (fault,) = caught.value.faults
    assert fault.place == "column 'age'"
    assert fault.message == "is text at lyon, and numbers at bern, rome"
    assert "[data.columns.age]" in fault.remedy


@pytest.mark.parametrize("levels", [None, [f"ward {n}" for n in range(40)]])
def test_text_of_too_many_values_is_named_as_such_and_not_as_missing(levels: Any) -> None:
    asked = [{"kind": "cross_table", "row": "ward", "column": "sex"}]
    raw = {"data": {"source": "rows.csv"}, "statistics": {"analyses": asked}}
    study = study_of(parse_job(raw, folder=Path()))
    more = [f"bed {n}" for n in range(40)]
    surveys = {
        site: {"columns": {"ward": text(own), "sex": text(["f", "m"])}, "rule": RULE}
        for site, own in (("bern", levels), ("lyon", more))
    }
    with pytest.raises(DataError, match=r"column 'ward': is text with more than 50 different"):
        study.agree(surveys)


def test_times_of_other_zones_at_other_sites_are_noted_once_all_agree() -> None:
    own = {"bern": ["2024-01-01 00:00:00+01:00"], "lyon": ["2024-01-01"], "rome": ["2024-01-01"]}
    surveys = {
        site: {"columns": {"seen": text(days), "sex": text(["f", "m"])}, "rule": RULE}
        for site, days in own.items()
    }
    (note,) = Study({}, Disclosure(11)).agree(surveys).notes
    assert (
        "column 'seen' holds times of different zones (+01:00 at bern; no zone at lyon, rome)"
        in note
    )
    surveys["bern"] = surveys["lyon"]
    assert Study({}, Disclosure(11)).agree(surveys).notes == ()


def test_columns_that_not_every_site_has_are_noted() -> None:
    agreed = Study({}, Disclosure(11)).agree({"a": told(["age", "x"]), "b": told(["x", "Age"])})
    assert agreed.book.columns == ("x",)
    lost = "columns that not every site has are not read: 'age' (at a), 'Age' (at b)"
    assert agreed.notes == (lost,)


def test_zones_of_text_that_is_no_category_are_not_told() -> None:
    surveys = {
        site: {
            "columns": {"seen": text(days), "age": told(["age"])["columns"]["age"]},
            "rule": RULE,
        }
        for site, days in (("bern", ["2024-01-01 00:00:00+01:00"]), ("lyon", None))
    }
    (note,) = Study({}, Disclosure(11)).agree(surveys).notes
    assert note == "columns of text with more than 50 different values are not read: 'seen'"
