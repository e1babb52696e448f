"""Survival analyses over sites against statsmodels on the pooled rows, and against lifelines' numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.survival import KaplanMeier
from atoll.algorithms.statistics.survival_axis import Axis
from atoll.algorithms.statistics.survival_logrank import LogRank
from atoll.core.errors import DataError, JobError

DURATION = "statsmodels.duration.survfunc"
WEEKS = Axis(52)


def split(columns, sites, seed=0):
    where = np.random.default_rng(seed).integers(0, sites, len(columns["week"]))
    return {f"site-{i}": {n: c[where == i] for n, c in columns.items()} for i in range(sites)}


def by(columns, name):
    values = columns[name]
    return {f"{v:g}": {n: c[values == v] for n, c in columns.items()} for v in np.unique(values)}


@pytest.fixture(scope="module")
def rossi():
    path = Path(__file__).parents[2] / "data" / "statistics" / "rossi.csv"
    table = np.genfromtxt(path, delimiter=",", names=True)
    columns = {n: table[n].astype(float) for n in table.dtype.names}
    return columns | {"inst": np.random.default_rng(0).integers(0, 5, len(table)).astype(float)}


def hand():
    """Five rows: events at 1 and 3, two censored at 2, one at 3."""
    return {
        "week": np.array([1.0, 2, 2, 3, 3]),
        "event": np.array([1.0, 0, 0, 1, 0]),
        "group": np.array([0.0, 0, 1, 1, 1]),
    }


def test_five_rows_by_hand():
    columns = hand()
    sites = {
        "a": {n: c[:2] for n, c in columns.items()},
        "b": {n: c[2:] for n, c in columns.items()},
    }
    curve = solve(KaplanMeier("week", "event", Axis(3)), sites).curves[0]
    assert curve.times.tolist() == [1, 2, 3]
    assert curve.at_risk.tolist() == [5, 4, 2]
    assert curve.events.tolist() == [1, 0, 1]
    assert curve.censored.tolist() == [0, 2, 1]
    np.testing.assert_allclose(curve.survival, [0.8, 0.8, 0.4])
    np.testing.assert_allclose(curve.standard_errors[0], 0.8 * np.sqrt(1 / (5 * 4)))
    np.testing.assert_allclose(curve.cumulative_hazard, [0.2, 0.2, 0.7])
    assert curve.median == 3
    assert [curve.at(t) for t in (0.5, 2.5, 3)] == pytest.approx([1, 0.8, 0.4])
    assert np.isnan(curve.at(4))


def test_curves_of_groups_are_statsmodels(rossi):
    oracle = pytest.importorskip(DURATION).SurvfuncRight
    model = KaplanMeier("week", "arrest", WEEKS, group="fin", levels=(0, 1))
    for curve in solve(model, split(rossi, 4)).curves:
        mine = rossi["fin"] == curve.group
        pooled = oracle(rossi["week"][mine], rossi["arrest"][mine])
        some = curve.events > 0
        np.testing.assert_allclose(curve.survival[some], pooled.surv_prob, rtol=1e-13)
        np.testing.assert_allclose(curve.standard_errors[some], pooled.surv_prob_se, rtol=1e-13)


def test_bands_and_hazard_are_lifelines(rossi):
    curve = solve(KaplanMeier("week", "arrest", WEEKS), split(rossi, 3)).curves[0]
    some = np.isin(curve.times, [1, 20, 52])
    # lifelines 0.30.3, KaplanMeierFitter and NelsonAalenFitter(nelson_aalen_smoothing=False)
    np.testing.assert_allclose(curve.survival[some], [0.997685, 0.907407, 0.736111], atol=1e-6)
    np.testing.assert_allclose(curve.lower[some], [0.983683, 0.875922, 0.691860], atol=1e-6)
    np.testing.assert_allclose(curve.upper[some], [0.999674, 0.931217, 0.775063], atol=1e-6)
    hazard = [0.002314814814815, 0.096835691398491, 0.305127533720402]
    np.testing.assert_allclose(curve.cumulative_hazard[some], hazard, rtol=1e-12)
    plain = solve(KaplanMeier("week", "arrest", WEEKS, band="plain"), split(rossi, 3)).curves[0]
    np.testing.assert_allclose(
        plain.upper[some],
        np.minimum(curve.survival + 1.959963984540054 * curve.standard_errors, 1)[some],
    )


def test_late_entries_are_at_risk_only_afterwards():
    columns = hand() | {"entry": np.array([0.0, 0, 0, 1, 2])}
    curve = solve(KaplanMeier("week", "event", Axis(3), entry="entry"), {"a": columns}).curves[0]
    assert curve.at_risk.tolist() == [3, 3, 2]
    np.testing.assert_allclose(curve.survival, [2 / 3, 2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("weight", "name"), [("log-rank", None), ("gehan", "gb"), ("tarone-ware", "tw")]
)
@pytest.mark.parametrize("strata", ["none", "inst", "site"])
def test_log_rank_is_statsmodels(rossi, weight, name, strata):
    oracle = pytest.importorskip(DURATION).survdiff
    model = LogRank(
        "week",
        "arrest",
        "race",
        (0, 1),
        WEEKS,
        strata=strata,
        strata_levels=range(5) if strata == "inst" else (),
        weight=weight,
    )
    result = solve(model, by(rossi, "inst") if strata == "site" else split(rossi, 4))
    statistic, p = oracle(
        rossi["week"],
        rossi["arrest"],
        rossi["race"],
        weight_type=name,
        strata=rossi["inst"] if strata != "none" else None,
    )
    assert result.statistic == pytest.approx(statistic, rel=1e-11)
    assert result.p_value == pytest.approx(p, rel=1e-9)
    assert result.observed.sum() == pytest.approx(result.expected.sum())


def test_log_rank_of_five_groups_and_of_lifelines(rossi):
    oracle = pytest.importorskip(DURATION).survdiff
    model = LogRank("week", "arrest", "inst", range(5), WEEKS)
    result = solve(model, split(rossi, 3))
    statistic, p = oracle(rossi["week"], rossi["arrest"], rossi["inst"])
    assert (result.statistic, result.p_value) == pytest.approx((statistic, p), rel=1e-10)
    assert result.df == 4
    aid = solve(LogRank("week", "arrest", "fin", (0, 1), WEEKS), split(rossi, 3))
    assert aid.statistic == pytest.approx(3.8375695765490505, rel=1e-12)  # lifelines 0.30.3
    assert aid.p_value == pytest.approx(0.050116117409005755, rel=1e-9)


@given(st.integers(1, 7), st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_any_split_gives_the_same_bits(rossi, sites, seed):
    one, many = ({"all": rossi}, split(rossi, sites, seed))
    km = KaplanMeier("week", "arrest", WEEKS, group="fin", levels=(0, 1))
    for a, b in zip(solve(km, one).curves, solve(km, many).curves, strict=True):
        assert a.survival.tobytes() == b.survival.tobytes()
        assert a.lower.tobytes() == b.lower.tobytes()
    test = LogRank("week", "arrest", "fin", (0, 1), WEEKS)
    assert solve(test, one).statistic == solve(test, many).statistic


def test_a_coarser_axis_is_told(rossi):
    result = solve(KaplanMeier("week", "arrest", Axis(52, resolution=4)), {"all": rossi})
    off = int((rossi["week"] % 4 != 0).sum())
    assert f"{off} times are not on the axis and were rounded" in result.notes
    given_times = solve(KaplanMeier("week", "arrest", Axis(times=(26, 52))), {"all": rossi}).curves[
        0
    ]
    first = (rossi["week"] <= 26) & (rossi["arrest"] == 1)
    assert given_times.events.tolist()[0] == first.sum()


def test_a_group_without_events_or_rows_is_told():
    columns = hand()
    columns["event"] = np.where(columns["group"] == 0, columns["event"], 0.0)
    model = KaplanMeier("week", "event", Axis(3), group="group", levels=(0, 1, 2))
    result = solve(model, {"a": columns})
    assert "group 1: all censored, so survival is 1 as far as it was observed" in result.notes
    assert "group 2: no rows at any site" in result.notes
    assert (result.curves[1].survival == 1).all()
    test = LogRank("week", "event", "group", (0, 1), Axis(3))
    with pytest.raises(DataError, match="no event at any site"):
        solve(test, {"a": columns | {"event": np.zeros(5)}})
    with pytest.raises(DataError, match="fewer than two groups"):
        solve(test, {"a": columns | {"group": np.zeros(5)}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"week": np.array([1.0, 2, 2, 3, 9])}, r"week: holds 9, beyond the axis' end 3"),
        ({"week": np.array([1.0, -2, 2, 3, 3])}, "week: holds a negative or infinite time"),
        ({"event": np.array([1.0, 2, 0, 1, 0])}, "event: holds 2"),
        ({"group": np.array([1.0, 2, 0, 1, 0])}, "group: holds 2, which is not among its levels"),
        ({"entry": np.array([0.0, 2, 0, 1, 0])}, "entry: holds an entry that is not before"),
    ],
)
def test_what_cannot_be_is_refused_with_site_and_column(change, message):
    model = KaplanMeier("week", "event", Axis(3), "group", (0, 1), "entry")
    good = hand() | {"entry": np.zeros(5)}
    with pytest.raises(DataError, match=message) as caught:
        solve(model, {"good": good, "odd": good | change})
    assert caught.value.site == "odd"


def test_rows_with_missing_values_are_left_out_and_counted():
    columns = hand()
    columns["week"][4] = np.nan
    result = solve(KaplanMeier("week", "event", Axis(3)), {"a": columns})
    assert (result.rows, result.excluded) == (4, 1)
    assert "1 rows with missing values are left out" in result.notes


def test_axes_and_options_that_cannot_be_are_refused():
    with pytest.raises(JobError, match="both must be positive"):
        Axis(0)
    with pytest.raises(JobError, match="must rise"):
        Axis(times=(2, 1))
    with pytest.raises(JobError, match="million"):
        Axis(1e9)
    with pytest.raises(JobError, match="needs its levels"):
        KaplanMeier("t", "e", Axis(1), group="g")
    with pytest.raises(JobError, match="two or more groups"):
        LogRank("t", "e", "g", (1,), Axis(1))


def test_the_column_travels_and_its_values_do_not():
    data = {"odd": hand() | {"week": np.array([1.0, 2, 2, 3, 731])}}
    with pytest.raises(DataError) as caught:
        solve(KaplanMeier("week", "event", Axis(3)), data)
    assert caught.value.message == "column 'week' does not fit the analysis"
    assert [f.place for f in caught.value.faults] == ["week"]
    assert "731" in str(caught.value)  # for the owner of the data
