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
        (lambda a: stats.GaussianMixture(["age", "level"], 2).fit(a), "'level' is constant"),
        (lambda a: stats.combat(a, ["age", "level"]), "'level' is constant within each site"),
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


def test_clusters_are_those_without_it_and_say_so(asked):
    found = stats.KMeans(["age", "level"], 2).fit(asked)
    plain = stats.KMeans(["age", "level"], 2, standardise=False).fit(asked)
    assert "column 'level' is constant: it tells no rows apart" in found.notes
    assert found.notes == plain.notes
    assert found.result.scale[1] == 1
    zeros = stats.Federation.of(frame().assign(level=0.0), site="clinic", rule=stats.Disclosure(1))
    exact = stats.KMeans(["age", "level"], 2).fit(zeros)
    assert found.result.inertia == pytest.approx(exact.result.inertia, rel=1e-9)
    assert found.result.iterations == exact.result.iterations
    assert stats.KMeans(["age"], 2).fit(asked).notes == ()


def test_one_scale_leaves_it_where_it_is_and_says_so(asked):
    assert stats.Standardisation(["age", "level"]).fit(asked).notes == (
        "column 'level' is constant",
    )


def test_as_a_covariate_it_explains_nothing(asked):
    with_it = stats.ComBat(["age", "dose"], ["level"]).fit(asked)
    assert "covariate 'level' is left out: others, or the sites, determine it" in with_it.notes
    assert not with_it.result.effects.any()
    without = stats.ComBat(["age", "dose"]).fit(asked).result
    assert with_it.result.deviations.tolist() == without.deviations.tolist()


@pytest.mark.parametrize("value", VALUES)
def test_a_measurement_that_is_constant_at_one_site_has_a_shift_there_and_no_scale(value):
    rows = frame()
    rows["level"] = rows["age"] / 7 + value
    rows.loc[rows["clinic"] == "b", "level"] = value
    asked = stats.Federation.of(rows, site="clinic", rule=stats.Disclosure(1))
    fit = stats.ComBat(["level"]).fit(asked)
    note = (
        "column 'level' is constant at 1 of 3 sites: it has a shift there, and no scale of its own"
    )
    assert fit.notes == (note,)
    assert fit.result.stretches[1] == 1
    made = stats.combat(asked, ["level"]).sites["b"].holding.table["level"]
    assert made == pytest.approx(np.full(len(made), fit.result.intercepts[0]), rel=1e-12)
    several = stats.ComBat(["level", "age", "dose"]).fit(asked)
    assert note in several.notes
    assert np.isfinite(several.result.stretches).all()
    assert stats.ComBat(["age", "dose"]).fit(asked).notes == ()


def test_a_group_that_never_varies_is_compared_with_one_that_does():
    rows = frame()
    rows.loc[rows["arm"] == "x", "age"] = 60.3
    asked = stats.Federation.of(rows, site="clinic", rule=stats.Disclosure(1))
    other = rows.loc[rows["arm"] == "y", "age"]
    found = stats.t_test(asked, "age", "arm")
    error = other.std() / np.sqrt(len(other))
    assert found.statistic == pytest.approx((60.3 - other.mean()) / error)
