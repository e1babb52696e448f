"""Events in words, and columns that no analysis can read: what counts as what is said, or refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atoll import stats
from atoll.core.errors import DataError
from atoll.job.inquiries.survival import LogRank

sys.path.insert(0, str(Path(__file__).parent))

from clinics import AXIS, frame

NOTE = "the event is state = living: of two categories the second one in order"


@pytest.fixture
def told():
    """The clinics' frame with the state in words, and days as dates and as differences of dates."""
    rows = frame()
    rows["state"] = np.where(rows["dead"] == 1, "deceased", "living")
    rows["spread"] = pd.to_timedelta(rows["days"], "D")
    rows["until"] = pd.Timestamp("2024-01-01") + rows["spread"]
    return rows


def federation(rows):
    return stats.Federation.of(rows, site="clinic", rule=stats.Disclosure(1))


ASKED = [
    stats.CoxRegression("days", "state", ["age"], AXIS),
    stats.KaplanMeier("days", "state", AXIS, by="arm"),
    stats.LogisticRegression("state", ["age"]),
    stats.GradientBoosting("state", ["age"], trees=2),
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: type(asked).__name__)
def test_an_event_in_words_is_named(told, asked):
    assert NOTE in asked.fit(federation(told)).notes


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: type(asked).__name__)
@pytest.mark.parametrize("words", [["deceased", "living", "lost"], ["living"]])
def test_an_event_has_two_categories(told, asked, words):
    told["state"] = np.resize(words, len(told))
    with pytest.raises(DataError, match=f"has {len(words)} categories .*and an event has two"):
        asked.fit(federation(told))


def test_the_log_rank_test_names_the_event_too(told):
    test = stats.log_rank(federation(told), "days", "state", "arm", AXIS)
    assert test.notes == (NOTE,)
    inquiry = LogRank("days", "state", "arm", AXIS)
    assert federation(told).ask(inquiry).notes == (NOTE,)


def test_an_event_of_zeros_and_ones_needs_no_word(told):
    fit = stats.CoxRegression("days", "dead", ["age"], AXIS).fit(federation(told))
    assert fit.notes == ()


def test_trees_say_that_they_took_an_outcome_for_a_number(told):
    told["code"] = told["dead"] + 1  # as in R
    fit = stats.GradientBoosting("code", ["age"], trees=2).fit(federation(told))
    assert "code is explained as a number (squared loss): not all are 0 or 1" in fit.notes
    asked = stats.GradientBoosting("code", ["age"], "squared", trees=2)
    assert not any("squared" in note for note in asked.fit(federation(told)).notes)


@pytest.mark.parametrize("column", ["until", "spread"])
def test_a_time_of_dates_is_refused_with_what_to_give(told, column):
    with pytest.raises(DataError, match=f"{column!r} holds dates") as caught:
        stats.CoxRegression(column, "dead", ["age"], AXIS).fit(federation(told))
    assert "days since a date" in caught.value.remedy


def test_notes_speak_of_groups_and_categories_by_name(told):
    told.loc[told["arm"] == "x", "dead"] = 0
    told["twin"] = told["arm"]
    curves = stats.KaplanMeier("days", "dead", AXIS, by="arm").fit(federation(told))
    assert "arm=x: all censored, so survival is 1 as far as it was observed" in curves.notes
    fit = stats.LinearRegression("dose", ["arm", "twin"]).fit(federation(told))
    assert fit.notes == ("column 'twin=y' is left out: it is a combination of arm=y",)
