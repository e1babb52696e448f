"""Columns that never vary, also those whose mean is rounded: no analysis makes a result of rounding."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from atoll import stats
from atoll.core.errors import DataError

sys.path.insert(0, str(Path(__file__).parent))

from clinics import frame

VALUES = [60.0, 0.1, 60.3, 1e9 + 0.1]


@pytest.fixture(params=VALUES)
def asked(request):
    rows = frame()
    rows["level"] = request.param
    return stats.Federation.of(rows, site="clinic", rule=stats.Disclosure(1))


def test_its_spread_is_nothing(asked):
    told = stats.describe(asked, ["level"], quantiles=())
    assert told["sd"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda a: stats.t_test(a, "level", "arm"), "constant in both groups"),
        (lambda a: stats.t_test(a, "level", "arm", equal_variances=True), "constant in both"),
        (lambda a: stats.anova(a, "level", "arm"), "does not vary inside the groups"),
        (lambda a: stats.principal_components(a, ["age", "level"]), "'level' is constant"),
        (lambda a: stats.MixedModel("level", ["age"]).fit(a), "'level' is the same in all rows"),
        (lambda a: stats.LinearRegression("level", ["age"]).fit(a), "'level' is the same in all"),
    ],
)
def test_what_it_cannot_answer_is_refused(asked, ask, message):
    with pytest.raises(DataError, match=message):
        ask(asked)


def test_it_has_no_correlation(asked):
    found = stats.correlation(asked, ["age", "level"])
    assert np.isnan(found.loc["level"]).all()
    assert found.loc["age", "age"] == 1


def test_a_group_that_never_varies_is_compared_with_one_that_does():
    rows = frame()
    rows.loc[rows["arm"] == "x", "age"] = 60.3
    asked = stats.Federation.of(rows, site="clinic", rule=stats.Disclosure(1))
    other = rows.loc[rows["arm"] == "y", "age"]
    found = stats.t_test(asked, "age", "arm")
    error = other.std() / np.sqrt(len(other))
    assert found.statistic == pytest.approx((60.3 - other.mean()) / error)
