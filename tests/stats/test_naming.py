"""Tables and pages call things by their names, and say what is left out of them."""

import numpy as np
import pandas as pd
import pytest

from atoll import stats
from atoll.core.errors import DataError
from atoll.job.inquiries import tables, tests
from atoll.stats import Disclosure, Federation

ONE = Disclosure(minimum=1)


@pytest.fixture
def odd():
    """Columns and categories that are called as tables call theirs."""
    rng = np.random.default_rng(2)
    heads = ["column", "component", "share", "rows", "count"]
    data = pd.DataFrame({name: rng.integers(0, 9, 60) for name in heads})
    data["clinic"] = ["a", "b"] * 30
    data["kind"] = rng.choice(["aml", "all", "variable"], 60)
    return data


def test_no_head_of_a_table_hides_a_column_or_a_category_of_that_name(odd):
    federation = Federation.of(odd, site="clinic", rule=ONE)
    table = stats.table_one(federation, "kind", ["rows"])
    assert list(table.columns) == ["all", "aml", "variable"]
    assert list(table.index) == ["rows, mean (sd)"]
    odd["high"] = odd["rows"] > 4
    crossed = stats.cross_table(Federation.of(odd, site="clinic", rule=ONE), "high", "kind")
    assert list(crossed.columns) == ["all", "aml", "variable", "all_"]
    assert crossed.loc["all_"].tolist() == [*odd["kind"].value_counts().sort_index(), 60]
    names = ["column", "share", "component"]
    found = stats.correlation(federation, names)
    pd.testing.assert_frame_equal(found, odd[names].corr(), check_names=False)
    components = stats.principal_components(federation, names)
    assert list(components.columns) == ["variance", "share_", *names]
    assert components["share_"].sum() == pytest.approx(1)
    clusters = stats.KMeans(["rows", "share"], 2).fit(federation).table
    assert clusters["rows_"].sum() == 60
    assert clusters["rows"].between(0, 8).all()
    mixed = stats.GaussianMixture(["rows", "share"], 2).fit(federation).table
    assert mixed["share_"].sum() == pytest.approx(1)
    frequent = stats.frequent(federation, "count", 1)
    assert dict(frequent.to_numpy().tolist()) == odd["count"].value_counts().to_dict()


def test_a_page_draws_no_ratio_beyond_all_numbers_and_calls_nothing_suppressed_that_is_not(
    frame, tmp_path
):
    """A feature in a small unit has coefficients whose exponentials leave float64."""
    frame["weight"] = 1e-9 * frame["age"]
    federation = Federation.of(frame, site="clinic")
    small = stats.LogisticRegression("sick", ["weight", "sex"]).fit(federation)
    assert small.table.loc["weight", "coef"] > 1e6
    ridge = stats.LogisticRegression("sick", ["age"], penalty=(0.1, 0.0)).fit(federation)
    test = federation.ask(tests.Anova("age", "grade"))
    path = stats.write_page(tmp_path / "page.html", "odd", {"a": small, "b": ridge, "c": test})
    page = path.read_text()
    assert "<title>sex=m: " in page
    assert "<title>weight: " not in page
    assert "suppressed" not in page


def test_a_page_of_a_large_table_shows_the_first_of_it_and_says_where_all_is(tmp_path):
    rng = np.random.default_rng(0)
    wide = pd.DataFrame(rng.normal(size=(300, 150)), columns=[f"gene{i}" for i in range(150)])
    federation = Federation.of(wide.assign(site=["a", "b"] * 150), site="site", rule=ONE)
    found = {
        "pairs": federation.ask(tables.Correlation()),
        "model": stats.LinearRegression("gene0", wide.columns[1:].tolist()).fit(federation),
    }
    page = stats.write_page(tmp_path / "page.html", "wide", found).read_text()
    assert "Shown are the first 100 of 151 columns; a run&#x27;s folder has all of them" in page
    assert "Drawn are the first 100 of 149 coefficients." in page
    assert page.count("<td>gene149</td>") == 2  # a line in each of the tables
    assert "<th>gene99</th>" not in page
    assert "<th>gene98</th>" in page


def test_columns_that_some_sites_spell_otherwise_or_write_as_text_are_told(frame):
    parts = {name: part.drop(columns="clinic") for name, part in frame.groupby("clinic")}
    parts["a"]["dose"] = [1.0, 2.0] * (len(parts["a"]) // 2) + [1.0] * (len(parts["a"]) % 2)
    parts["b"]["dose"] = "2"
    parts["b"].loc[parts["b"].index[0], "dose"] = "?"
    parts["c"] = parts["c"].rename(columns={"age": "Age"})
    parts["c"]["dose"] = 1.0
    federation = Federation.of(parts, rule=ONE)
    told = federation.ask(tables.Describe())
    assert "age" not in told.table.index
    assert told.notes == (
        "columns that not every site has are not read: 'age' (at a, b), 'Age' (at c)",
    )
    found = federation.ask(tables.TableOne("", ["dose"]))
    assert found.notes == (
        "column 'dose' holds numbers, and text beside them at b: each value is a category of its own",
    )
    assert federation.ask(tables.TableOne("", ["sex"])).notes == ()


def test_columns_that_are_named_twice_and_tolerances_that_are_no_share_are_refused(frame):
    federation = Federation.of(frame, site="clinic")
    with pytest.raises(DataError, match="a column is named twice: age, age"):
        stats.correlation(federation, ["age", "age"])
    with pytest.raises(DataError, match="no column beside that of the groups"):
        stats.table_one(federation, "sex", ["sex"])
    for tolerance in (-1.0, 1.0, float("nan")):
        with pytest.raises(DataError, match="a tolerance of"):
            stats.describe(federation, ["age"], tolerance=tolerance)


def test_quantiles_that_are_not_known_well_enough_say_so(frame):
    frame["clock"] = 1e9 + np.random.default_rng(0).normal(size=len(frame))
    federation = Federation.of(frame, site="clinic")
    told = federation.ask(tables.Describe(["age", "clock"]))
    (note,) = told.notes
    assert note.startswith("quantiles of 'clock' are known within 0.")
    assert "tolerance=0" in note
    exact = federation.ask(tables.Describe(["age", "clock"], tolerance=0.0))
    assert not exact.notes
    assert exact.table.loc["clock", "0.5"] == np.median(frame["clock"])
    with pytest.warns(UserWarning, match="quantiles of 'clock' are known within"):
        stats.describe(federation, ["clock"])


def test_levels_of_no_column_and_levels_named_twice_are_refused(frame):
    with pytest.raises(DataError, match=r"levels are given of 'sxe', which no site has.*\n.*'sex'"):
        Federation.of(frame, site="clinic", levels={"sxe": ["f", "m"]})
    with pytest.raises(DataError, match="levels of 'sex' hold a category twice"):
        Federation.of(frame, site="clinic", levels={"sex": ["f", "m", "f"]})


def test_categories_of_a_multinomial_regression_are_called_by_their_names(frame):
    fit = stats.MultinomialRegression("grade", ["age"]).fit(Federation.of(frame, site="clinic"))
    names = ["[II] intercept", "[II] age", "[III] intercept", "[III] age"]
    assert fit.table.index.tolist() == names
    assert "each category is compared with grade = I" in fit.notes


def test_numbers_that_one_site_s_text_keeps_from_being_read_are_told(frame):
    frame["dose"] = np.arange(len(frame)) * 1.5
    frame["dose"] = frame["dose"].astype(object)
    frame.loc[frame.index[frame["clinic"] == "b"][0], "dose"] = "unknown"
    parts = {name: part.drop(columns="clinic") for name, part in frame.groupby("clinic")}
    told = Federation.of(parts, rule=ONE).ask(tables.Describe())
    assert "dose" not in told.table.index
    (note,) = told.notes
    assert note.startswith("column 'dose' holds numbers, and text beside them at b: mend the text")
    assert Federation.of(frame, site="clinic", rule=ONE).ask(tables.Describe()).notes == (note,)
