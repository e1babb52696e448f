"""Standardisation and ComBat over sites against scikit-learn and neuroCombat on the pooled rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.harmonise import Standardise
from atoll.algorithms.statistics.harmonise_combat import ComBat, site_effects
from atoll.algorithms.statistics.together import released_by
from atoll.core.errors import DataError, Forbidden, JobError
from atoll.data.disclosure import Disclosure

OPEN = Disclosure(minimum=1)
FEATURES = [f"y{g}" for g in range(5)]


def machines():
    """Sixty rows at three machines of different shift and scale."""
    i = np.arange(60)
    site, age, sex = i % 3, 20.0 + (i * 7) % 41, (i // 3) % 2 * 1.0
    columns = {"age": age, "sex": sex}
    for g in range(5):
        noise = np.sin(i * (g + 1.3)) * (1 + 0.3 * site)
        columns[f"y{g}"] = noise + 0.05 * age * (g + 1) + 0.4 * sex + site * (0.5 + 0.2 * g)
    return {f"m{s}": {n: c[site == s] for n, c in columns.items()} for s in range(3)}


def pooled(sites, name):
    return np.concatenate([s[name] for s in sites.values()])


def test_harmonised_rows_are_neurocombats():
    """neuroCombat 0.2.12 on the pooled rows; rows 0, 1, 2 and 59 are the first of each and the last."""
    sites = machines()
    shared = solve(ComBat(FEATURES, ["age", "sex"]), sites)
    done = {s: shared.apply(c) for s, c in sites.items()}
    expected = np.array(
        [
            [1.64460700022794, 3.083954579001527, 2.730154412558581, 3.133221001713435],
            [2.761478692983567, 4.360252217377292, 2.699581606023006, 2.611021243228879],
            [3.857594203235557, 4.782474000240899, 6.448499189178291, 4.521193508699495],
            [5.065354416043151, 5.397379311665537, 8.841141692245191, 7.163987658251878],
            [6.027089565259971, 7.041435761866256, 8.843355131037232, 6.109305763936207],
        ]
    )
    ours = np.array(
        [
            [done["m0"][n][0], done["m1"][n][0], done["m2"][n][0], done["m2"][n][-1]]
            for n in FEATURES
        ]
    )
    # Both stop where nothing moves by 1e-4 any more, but not after the same step.
    np.testing.assert_allclose(ours, expected, atol=2e-4)
    variances = [0.861699562805281, 0.855704094344269, 0.802028769862812]
    np.testing.assert_allclose(shared.deviations[:3] ** 2, variances, rtol=1e-12)


def test_effects_are_least_squares_with_an_intercept_for_each_site():
    sites = machines()
    shared = solve(ComBat(FEATURES, ["age", "sex"]), sites)
    where = np.repeat(np.arange(3), 20)
    x = np.column_stack(
        [where == s for s in range(3)] + [pooled(sites, "age"), pooled(sites, "sex")]
    )
    y = np.column_stack([pooled(sites, n) for n in FEATURES])
    fit, squares, *_ = np.linalg.lstsq(x.astype(float), y)
    np.testing.assert_allclose(shared.effects, fit[3:], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(shared.intercepts, fit[:3].mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(shared.deviations**2, squares / 60, rtol=1e-10)


def test_harmonising_removes_shift_and_scale_of_sites_and_keeps_effects():
    sites = machines()
    shared = solve(ComBat(FEATURES, ["age", "sex"], tolerance=1e-12), sites)
    done = [shared.apply(c) | {n: c[n] for n in ("age", "sex")} for c in sites.values()]

    def gap(tables):
        left = [t["y4"] - shared.effects[0, 4] * t["age"] for t in tables]
        return np.ptp([r.mean() for r in left])

    assert gap(done) < 0.1 * gap(list(sites.values()))
    again = solve(ComBat(FEATURES, ["age", "sex"]), dict(zip("abc", done, strict=True)))
    np.testing.assert_allclose(again.effects[0], shared.effects[0], atol=0.02)


def test_the_shrunken_effects_of_a_site_solve_their_equations():
    sites = machines()
    shared = solve(ComBat(FEATURES, tolerance=1e-14), sites)
    y = np.stack([sites["m1"][n] for n in FEATURES])
    alike = (y - shared.intercepts[:, None]) / shared.deviations[:, None]
    shift, stretch = site_effects(alike, 1e-14)
    own, n = alike.mean(axis=1), 20
    between, centre = own.var(ddof=1), own.mean()
    # equation for gamma* of Johnson et al. 2007
    np.testing.assert_allclose(
        shift, (n * between * own + stretch * centre) / (n * between + stretch), rtol=1e-10
    )
    assert np.ptp(shift) < np.ptp(own)


def test_permuting_sites_gives_the_same_bits_and_missing_rows_stay_missing():
    sites = machines()
    sites["m1"]["y2"][3] = np.nan
    shared = solve(ComBat(FEATURES, ["age"]), sites)
    renamed = dict(zip(["z", "a", "k"], sites.values(), strict=True))
    assert solve(ComBat(FEATURES, ["age"]), renamed).effects.tobytes() == shared.effects.tobytes()
    done = shared.apply(sites["m1"])
    assert np.isnan(done["y0"]).tolist() == [i == 3 for i in range(20)]
    assert "1 rows with missing values are left out" in shared.notes


def test_sites_and_columns_that_cannot_be_harmonised_are_told():
    sites = machines()
    sites["single"] = {n: c[:1] for n, c in sites["m0"].items()}
    for columns in sites.values():
        columns["same"] = columns["age"] * 2
    shared = solve(ComBat(FEATURES, ["age", "same"]), sites)
    assert any("'same' is left out" in note for note in shared.notes)
    with pytest.raises(DataError, match="no shift and scale of their own"):
        shared.apply(sites["single"])
    for columns in sites.values():
        columns["y0"] = np.full(len(columns["age"]), 3.0)
    with pytest.raises(DataError, match="'y0' is constant within each site"):
        solve(ComBat(FEATURES), sites)
    with pytest.raises(JobError, match="none is a covariate"):
        ComBat(["a"], ["a"])
    only = solve(ComBat(FEATURES[1:]), {"only": sites["m0"]})
    assert "there is one site only" in only.notes[-1]


def test_standardisation_is_scikit_learns():
    scaler = pytest.importorskip("sklearn.preprocessing").StandardScaler()
    sites = machines()
    shared = solve(Standardise(["age", "y0", "y3"]), sites)
    table = np.column_stack([pooled(sites, n) for n in ("age", "y0", "y3")])
    expected = scaler.fit_transform(table)
    done = [shared.apply(c) for c in sites.values()]
    ours = np.column_stack([np.concatenate([d[n] for d in done]) for n in ("age", "y0", "y3")])
    np.testing.assert_allclose(ours, expected, atol=1e-13)
    np.testing.assert_allclose(
        solve(Standardise(["y0"], ddof=1), sites).deviations, table[:, 1].std(ddof=1), rtol=1e-13
    )


@given(st.lists(st.integers(0, 3), min_size=40, max_size=40))
@settings(max_examples=20, deadline=None)
def test_any_split_gives_the_same_scale(where):
    column = 1e6 + np.random.default_rng(0).normal(size=40)
    sites = {str(i): {"x": column[np.array(where) == i]} for i in range(4)}
    many, one = solve(Standardise(["x"]), sites), solve(Standardise(["x"]), {"all": {"x": column}})
    np.testing.assert_allclose(many.deviations, one.deviations, rtol=1e-10)
    np.testing.assert_allclose(many.means, one.means, rtol=1e-15)


def test_constant_and_empty_columns_are_told():
    sites = {"a": {"x": np.full(3, 0.1)}, "b": {"x": np.array([0.1, np.nan])}}
    result = solve(Standardise(["x"], rule=OPEN), sites)
    assert result.notes == ("column 'x' is constant",)
    assert result.apply(sites["b"])["x"][0] == pytest.approx(0, abs=1e-15)
    with pytest.raises(DataError, match="'x' is empty at all sites"):
        solve(Standardise(["x"], rule=OPEN), {"a": {"x": np.full(2, np.nan)}})
    with pytest.raises(DataError, match="infinite value") as caught:
        solve(Standardise(["x"]), sites | {"c": {"x": np.array([np.inf])}})
    assert caught.value.site == "c"


def test_standardising_needs_the_minimum_of_persons_with_a_value():
    few = np.full(30, np.nan)
    few[:10] = np.arange(10.0)
    with pytest.raises(Forbidden, match="fewer than 11 persons have a value in column 'x'"):
        solve(Standardise(["x"]), {"a": {"x": few}})
    few[10:15] = (
        3.0  # fifteen values; but of how many of thirty rows is not told of columns nearly full
    )
    assert solve(Standardise(["x"]), {"a": {"x": few}}).counts.tolist() == [15]
    nearly = np.arange(30.0)
    nearly[0] = np.nan
    assert np.isnan(solve(Standardise(["x"]), {"a": {"x": nearly}}).counts).all()


def test_each_column_is_released_for_the_rows_in_which_it_has_a_value():
    data = {"u": np.arange(4.0), "v": np.array([1.0, np.nan, 2.0, 3.0])}
    found = released_by(Standardise(["u", "v"]), data)
    assert [(one.columns, one.rows.sum()) for one in found] == [(("u",), 4), (("v",), 3)]


def test_sites_tell_the_shift_and_scale_with_which_they_harmonise():
    sites = machines()
    shared = solve(ComBat(FEATURES, ["age"], told=True), sites)
    quiet = solve(ComBat(FEATURES, ["age"]), sites)
    assert quiet.shifts.shape == (0, 5)
    assert quiet.effects.tobytes() == shared.effects.tobytes()
    for i, data in enumerate(sites.values()):
        done = shared.apply(data)
        for g, name in enumerate(FEATURES):
            expected = shared.intercepts[g] + shared.effects[0, g] * data["age"]
            by_hand = (data[name] - expected - shared.shifts[i, g]) / shared.stretches[i, g]
            np.testing.assert_allclose(done[name], by_hand + expected, rtol=1e-12)


def test_a_site_of_few_persons_keeps_its_shift_to_itself():
    sites = machines()
    sites["m1"]["y0"][:12] = np.nan  # eight complete rows of twenty
    shared = solve(ComBat(FEATURES, told=True), sites)
    assert np.isnan(shared.shifts).all(axis=1).tolist() == [False, True, False]
    assert np.isnan(shared.stretches[1]).all()
    assert "1 sites have too few complete rows" in shared.notes[-1]
    for columns in sites.values():
        columns["who"] = np.arange(20.0) // 2  # ten persons with two rows each
    rule = Disclosure(person="who")
    assert np.isnan(solve(ComBat(FEATURES, told=True, rule=rule), sites).shifts).all()


def test_a_column_constant_at_one_site_is_shifted_and_not_stretched():
    sites = machines()
    sites["m1"]["y0"] = np.full(20, 7.0)
    for features in (["y0"], FEATURES):
        done = solve(ComBat(features), sites).apply(sites["m1"])["y0"]
        assert np.isfinite(done).all()
        assert np.ptp(done) == 0
