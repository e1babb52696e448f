"""What sites agree on before statistics: read from other machines, so cheap whatever they say."""

from __future__ import annotations

import time
from typing import Any

from atoll.data.disclosure import Disclosure
from atoll.job.study import Study

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
