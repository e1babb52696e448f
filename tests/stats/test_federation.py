"""The face for statisticians: tables in, frames out, the same numbers on any executor."""

import json

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from atoll import stats
from atoll.algorithms.statistics.moments import Moments
from atoll.core.errors import AtollError, DataError, Forbidden
from atoll.data.table import Table
from atoll.stats import Disclosure, Federation

ONE = Disclosure(minimum=1)


def test_tables_come_as_one_frame_as_frames_by_site_or_as_tables(frame):
    whole = stats.describe(Federation.of(frame, site="clinic"), ["age"])
    parts = {name: part.drop(columns="clinic") for name, part in frame.groupby("clinic")}
    tables = {n: Table.of({c: p[c].tolist() for c in p}) for n, p in parts.items()}
    for given in (parts, tables):
        pd.testing.assert_frame_equal(stats.describe(Federation.of(given), ["age"]), whole)
    assert whole.loc["age", "mean"] == pytest.approx(frame["age"].mean(), rel=1e-13)
    assert whole.loc["age", "0.5"] == pytest.approx(frame["age"].median(), rel=1e-8)


def test_files_are_given_by_their_paths(frame, tmp_path):
    whole = stats.describe(Federation.of(frame, site="clinic"), ["age"])
    frame.to_csv(tmp_path / "all.csv", index=False)
    paths = {}
    for name, part in frame.groupby("clinic"):
        paths[name] = tmp_path / f"{name}.csv"
        part.drop(columns="clinic").to_csv(paths[name], index=False)
    one = Federation.of(str(tmp_path / "all.csv"), site="clinic")
    for given in (one, Federation.of(paths)):
        pd.testing.assert_frame_equal(stats.describe(given, ["age"]), whole)
    with pytest.raises(DataError, match="no such file"):
        Federation.of({"a": tmp_path / "gone.csv"})
    with pytest.raises(DataError, match="a int is no table"):
        Federation.of(7, site="clinic")


def test_a_column_that_is_there_twice_is_called_so(frame):
    with pytest.raises(DataError, match="column 'age' appears twice"):
        Federation.of(pd.concat([frame, frame[["age"]]], axis=1), site="clinic")


def test_a_site_s_log_lies_in_the_folder_of_logs(frame, tmp_path):
    names = {"a": "north", "b": "Zürich Süd", "c": "../out"}
    odd = frame.assign(clinic=frame["clinic"].map(names))
    stats.describe(Federation.of(odd, site="clinic"), ["age"])  # without logs any name will do
    with pytest.raises(DataError, match=r"named after the site '\.\./out'"):
        Federation.of(odd, site="clinic", logs=tmp_path / "logs")
    even = odd.assign(clinic=odd["clinic"].str.replace("../", ""))
    stats.describe(Federation.of(even, site="clinic", logs=tmp_path / "logs"), ["age"])
    found = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert [n for n in found if n.endswith(".jsonl")] == [
        "Zürich Süd.jsonl",
        "north.jsonl",
        "out.jsonl",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_a_logistic_regression_is_statsmodels_s_on_the_pooled_rows(frame):
    federation = Federation.of(frame, site="clinic")
    fit = stats.LogisticRegression("sick", ["age", "sex", "grade"]).fit(federation)
    design = pd.get_dummies(frame[["age", "sex", "grade"]], drop_first=True, dtype=float)
    theirs = sm.Logit(frame["sick"], sm.add_constant(design)).fit(disp=0)
    names = ["intercept", "age", "sex=m", "grade=II", "grade=III"]
    assert fit.table.index.tolist() == names
    assert fit.table["coef"].to_numpy() == pytest.approx(theirs.params.to_numpy(), rel=1e-8)
    assert fit.table["std err"].to_numpy() == pytest.approx(theirs.bse.to_numpy(), rel=1e-6)
    assert fit.facts()["log likelihood"] == pytest.approx(theirs.llf, rel=1e-9)
    assert "sex=m" in fit.summary()


@pytest.mark.parametrize(
    "model",
    [
        stats.LinearRegression("age", ["sex", "sick"], intercept="site"),
        stats.PoissonRegression("sick", ["age"], covariance="site"),
        stats.MultinomialRegression("grade", ["age", "sex"]),
    ],
    ids=["linear", "poisson", "multinomial"],
)
def test_models_fit_with_the_manners_of_scikit_learn(frame, model):
    fit = model.fit(Federation.of(frame, site="clinic"))
    assert np.isfinite(fit.table[["coef", "std err"]].to_numpy()).all()
    assert type(model).__name__.split("Regression")[0].lower() in fit.title.lower()


def test_a_run_folder_keeps_the_rounds_and_changes_no_bit(frame, tmp_path):
    federation = Federation.of(frame, site="clinic")
    model = stats.LogisticRegression("sick", ["age", "sex"])
    plain = model.fit(federation)
    for executor in ("serial", "processes"):
        out = tmp_path / executor
        kept = model.fit(federation, out=out, executor=executor, workers=2, name="risk")
        assert kept.result.table.values.tobytes() == plain.result.table.values.tobytes()
        assert json.loads((out / "manifest.json").read_text())["name"] == "risk"
        assert (out / "metrics.jsonl").stat().st_size > 0
        assert (out / "report.html").is_file()


def test_table_one_reads_like_that_of_a_paper(frame):
    table = stats.table_one(Federation.of(frame, site="clinic"), "sick")
    ill = frame[frame["sick"] == 1]
    assert table.loc["age, mean (sd)", "1"] == f"{ill['age'].mean():.4g} ({ill['age'].std():.3g})"
    men = (ill["sex"] == "m").sum()
    assert table.loc["  m", "1"] == f"{men} ({100 * men / len(ill):.1f})"


@pytest.mark.parametrize("by", ["", "sex"])
def test_what_few_have_is_told_by_no_mean(frame, by):
    """The mean of a 0/1 column and the number of its rows tell how many ones there are, and in which group."""
    frame = frame.assign(rare=(np.arange(len(frame)) < 3).astype(float), none=0.0)

    def asked() -> Federation:
        return Federation.of(frame, site="clinic")

    table = stats.table_one(asked(), by, ["rare"])
    assert "rare, mean (sd)" not in table.index
    cells = table.iloc[1:3].to_numpy().ravel()
    assert (cells == "suppressed").sum() >= 2
    assert not {"1", "2", "3"} & {str(cell).split(" ")[0] for cell in cells}
    table = stats.table_one(asked(), by, ["none"])
    assert (table.iloc[-1] == "0 (0.0)").all()  # zeros are shown

    lines = stats.describe(asked(), ["rare", "none"], quantiles=())
    assert lines.loc["rare", "count"] == len(frame)
    assert lines.loc["rare", ["mean", "sd"]].isna().all()
    assert lines.loc["none", "mean"] == 0
    for test in (stats.t_test, stats.anova):
        with pytest.raises(Forbidden, match="few persons have one of the two values of 'rare'"):
            test(asked(), "rare", "sex")
    free = Federation.of(frame, site="clinic", rule=stats.Disclosure(minimum=1))
    assert stats.t_test(free, "rare", "sex").p > 0


def test_a_mean_of_zeros_and_ones_is_told_where_many_have_either(frame):
    federation = Federation.of(frame, site="clinic")
    assert stats.describe(federation, ["sick"]).loc["sick", "mean"] == pytest.approx(
        frame["sick"].mean()
    )
    assert 0 <= stats.t_test(federation, "sick", "sex").p <= 1
    table = stats.table_one(federation, columns=["sick"])
    ill = int(frame["sick"].sum())
    assert table.loc["  1", "all"] == f"{ill} ({100 * ill / len(frame):.1f})"


def test_tests_correlations_and_tables_answer(frame):
    federation = Federation.of(frame, site="clinic")
    assert 0 <= stats.chi_squared(federation, "sex", "sick").p <= 1
    assert stats.correlation(federation, ["age", "sick"]).loc["age", "sick"] == pytest.approx(
        frame["age"].corr(frame["sick"])
    )
    crossed = stats.cross_table(federation, "sex", "grade")
    assert crossed.loc["all", "all"] == 400
    assert stats.histogram(federation, "age", [50, 60, 70])["count"].sum() == 400


def test_selections_are_by_category_number_and_range(frame):
    federation = Federation.of(frame, site="clinic", rule=Disclosure(1))
    found = stats.describe(federation.where(sex="m", age=(55, 65)), ["age"])
    chosen = frame[(frame["sex"] == "m") & (frame["age"] >= 55) & (frame["age"] < 65)]
    assert found.loc["age", "count"] == len(chosen)
    assert stats.describe(federation.where(sick=1), ["age"])["count"].iloc[0] == frame["sick"].sum()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda f: stats.describe(f, ["agee"]), "no column 'agee'"),
        (lambda f: stats.describe(f, ["sex"]), "'sex' holds categories"),
        (lambda f: stats.t_test(f, "age", "age"), "'age' holds numbers"),
        (lambda f: f.where(sex="x"), "no category 'x'"),
        (lambda f: f.where(sex=(0, 1)), "'sex' has no category"),
        (lambda f: f.where(age="old"), "'age' holds numbers, and 'old' is none"),
        (lambda f: f.where(age=(None, "70")), "'age' holds numbers, and '70' is none"),
        (lambda f: stats.describe(f.where(age=(500, None)), ["age"]), "no site has a row left"),
        (lambda f: Federation.of({}), "no rows"),
        (lambda f: stats.LogisticRegression("sick", ["sexx"]).fit(f), "no column 'sexx'"),
    ],
)
def test_what_cannot_be_answered_says_why(frame, ask, message):
    with pytest.raises(DataError, match=message):
        ask(Federation.of(frame, site="clinic"))


def test_a_category_that_is_not_declared_is_named_with_its_site(frame):
    with pytest.raises(DataError, match="column 'grade': holds a category") as caught:
        Federation.of(frame, site="clinic", levels={"grade": ["I", "II"]})
    assert caught.value.site == "a"


def test_a_federation_s_book_tells_numbers_categories_and_columns_of_0_and_1(frame):
    frame["late"] = np.where(frame.index < 300, 0.0, 2.0)  # not binary, but only further down
    frame.loc[5, "sick"] = np.nan
    book = Federation.of(frame, site="clinic").book
    assert book.numeric() == ("age", "sick", "late")
    assert book.binary == {"sick"}
    assert book.groups("sick") == ("0", "1")
    assert book.categories(["age", "grade"]) == {"grade": (0.0, 1.0, 2.0)}


def test_text_of_many_values_is_no_column(frame):
    frame["name"] = [f"patient {i}" for i in range(len(frame))]
    assert "name" not in Federation.of(frame, site="clinic").columns


def test_a_site_that_fails_is_named(frame):
    frame["ratio"] = np.where(
        (frame["clinic"] == "b") & (frame.index < 20), np.inf, 1.0 * frame.index
    )
    with pytest.raises(AtollError, match=r"b failed: column 'ratio' holds an infinite value"):
        Federation.of(frame, site="clinic").solve(Moments(("ratio",)))


def test_the_public_names_are_all_there():
    assert sorted(stats.__all__) == dir(stats)
    assert all(getattr(stats, name).__doc__ for name in stats.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        stats.nothing  # noqa: B018 the access is the test


def test_a_page_has_tables_a_forest_and_curves_with_numbers_at_risk(frame, tmp_path):
    rng = np.random.default_rng(5)
    frame["days"] = rng.integers(1, 100, len(frame))
    frame["dead"] = rng.integers(0, 2, len(frame))
    federation = Federation.of(frame, site="clinic")
    axis = stats.Axis(horizon=100)
    parts = {
        "Table 1": stats.table_one(federation, "sick"),
        "Risk": stats.LogisticRegression("sick", ["age", "sex"]).fit(federation),
        "Survival": stats.KaplanMeier("days", "dead", axis, by="sex").fit(federation),
        "Ages": stats.histogram(federation, "age", [20, 50, 60, 70]),
        "Words": "Nothing more.",
    }
    page = stats.write_page(tmp_path / "deep" / "page.html", "A <study>", parts)
    text = page.read_text(encoding="utf-8")
    for piece in (
        "A &lt;study&gt;",
        "odds ratio",
        "at risk at time",
        "Nothing more.",
        "<title>Histogram",
    ):
        assert piece.casefold() in text.casefold()
    assert "http" not in text.replace("http-equiv", "")
    again = stats.write_page(tmp_path / "again.html", "A <study>", parts)
    assert again.read_bytes() == page.read_bytes()


def test_curves_step_after_so_many_exits_and_agree_with_the_full_curve(frame):
    rng = np.random.default_rng(6)
    frame["days"] = rng.integers(1, 60, len(frame))
    frame["dead"] = rng.integers(0, 2, len(frame))
    axis = stats.Axis(horizon=60)
    model = stats.KaplanMeier("days", "dead", axis)
    full = model.fit(Federation.of(frame, site="clinic", rule=Disclosure(1))).curves[0]
    shown = model.fit(Federation.of(frame, site="clinic", rule=Disclosure(30))).curves[0]
    assert len(shown.times) < len(full.times)
    assert ((shown.events + shown.censored) >= 30).all()
    for time, value in zip(shown.times, shown.survival, strict=True):
        assert value == full.survival[full.times == time][0]
    frame["rare"] = ["yes"] * 6 + ["no"] * (len(frame) - 6)
    by = stats.KaplanMeier("days", "dead", axis, by="rare")
    with pytest.raises(Forbidden, match="'yes' has fewer than 11 exits"):
        by.fit(Federation.of(frame, site="clinic"))


def test_clusters_mixtures_and_mixed_models_answer(frame):
    rng = np.random.default_rng(8)
    frame["size"] = frame["age"] + 30 * (frame["sick"] == 1) + rng.normal(0, 1, len(frame))
    federation = Federation.of(frame, site="clinic")
    clusters = stats.KMeans(["age", "size"], 2).fit(federation)
    assert clusters.sizes.sum() == 400
    assert clusters.table["rows"].tolist() == sorted(clusters.sizes, reverse=True)
    one, two = (stats.GaussianMixture(["size"], k).fit(federation) for k in (1, 2))
    assert two.table["share"].sum() == pytest.approx(1)
    assert two.facts()["bic"] < one.facts()["bic"]
    mixed = stats.MixedModel("size", ["age", "sick"]).fit(federation)
    assert mixed.table.loc["sick", "coef"] == pytest.approx(30, abs=1)
    with pytest.raises(Forbidden, match="fewer than 11"):
        stats.KMeans(["age", "size"], 60).fit(federation)


@pytest.fixture
def machines(frame):
    """Three columns that each clinic measures with a machine of its own."""
    rng = np.random.default_rng(9)
    shift = frame["clinic"].map({"a": 0.0, "b": 5.0, "c": -5.0})
    for name in ("u", "v", "w"):
        frame[name] = shift + rng.normal(0, 1, len(frame)) + 2.0 * (frame["sex"] == "m")
    return frame


def test_standardised_and_harmonised_columns_stay_at_their_sites(machines):
    federation = Federation.of(machines, site="clinic")
    z = stats.describe(stats.standardise(federation, ["u"]), ["u"]).loc["u"]
    assert (z["mean"], z["sd"]) == pytest.approx((0, 1), abs=2e-3)
    before = stats.describe(federation, ["v"]).loc["v", "sd"]
    after = stats.describe(stats.combat(federation, ["u", "v", "w"]), ["v"]).loc["v", "sd"]
    assert after < 0.4 * before


def test_the_scale_of_columns_is_told_for_every_site_to_use(machines):
    told = stats.Standardisation(["u", "v"], ddof=1).fit(Federation.of(machines, site="clinic"))
    assert told.table["mean"].tolist() == pytest.approx(machines[["u", "v"]].mean().tolist())
    assert told.table["sd"].tolist() == pytest.approx(machines[["u", "v"]].std().tolist())
    assert stats.Standardisation().fit(Federation.of(machines, site="clinic")).table.shape[0] == 5


def test_the_parameters_of_combat_are_enough_to_harmonise_a_row_by_hand(machines):
    columns = ["u", "v", "w"]
    federation = Federation.of(machines, site="clinic")
    told = stats.ComBat(columns, ["sex"]).fit(federation).table
    assert told["site"].tolist() == ["all", "a", "b", "c"] * 3
    shared, own = told.iloc[0], told.iloc[2]
    men = machines[(machines["clinic"] == "b") & (machines["sex"] == "m")]
    expected = shared["mean"] + shared["effect of sex=m"]
    by_hand = (men["u"] - expected - own["shift"]) / own["stretch"] + expected
    done = stats.combat(federation.where(), columns, ["sex"]).where(sex="m")
    site = done.sites["b"].holding.seen
    assert site["u"].tolist() == pytest.approx(by_hand.tolist(), rel=1e-12)


def test_under_masks_a_small_clinic_joins_and_nothing_is_told_of_it_alone(machines):
    machines.loc[:4, "clinic"] = "tiny"
    federation = Federation.of(machines, site="clinic", rule=Disclosure(masked=True))
    fit = stats.ComBat(["u", "v", "w"]).fit(federation)
    assert set(fit.table["site"]) == {"all", "a", "b", "c"}
    assert fit.result.rows == 400
    assert "1 sites have too few complete rows" in fit.notes[-1]
    assert stats.LinearRegression("u", ["age"]).fit(federation).facts()["rows"] == 400
    for model in (stats.LinearRegression, stats.NegativeBinomialRegression):
        with pytest.raises(Forbidden, match="fewer than 11 persons") as caught:
            model("sick", ["age"], intercept="site").fit(federation)
        assert caught.value.site == "tiny"


def test_rows_without_a_site_are_no_site_of_their_own(frame):
    frame.loc[[3, 7], "clinic"] = None
    with pytest.raises(DataError, match="'clinic' is empty in 2 rows, first in row 4"):
        Federation.of(frame, site="clinic")


def test_one_table_without_a_column_of_sites_is_refused_with_the_way_out(frame):
    for given in (frame, Table.of(frame.to_dict("list")), frame.to_dict("list")):
        with pytest.raises(DataError, match="name each row's site") as caught:
            Federation.of(given)
        assert "site=" in caught.value.remedy


def test_dates_are_text_and_not_numbers_of_nanoseconds(frame):
    frame["seen"] = pd.to_datetime("2024-01-01") + pd.to_timedelta(np.arange(len(frame)) % 3, "D")
    frame.loc[5, "seen"] = pd.NaT
    federation = Federation.of(frame, site="clinic")
    assert federation.levels["seen"] == ("2024-01-01", "2024-01-02", "2024-01-03")
    with pytest.raises(DataError):
        stats.describe(federation, ["seen"])


def test_times_of_other_zones_are_told_of_the_federation_and_of_what_reads_them(frame):
    days = pd.to_datetime("2024-01-01") + pd.to_timedelta(np.arange(len(frame)) % 3, "D")
    frame["seen"] = days.astype(str)
    zoned = frame["clinic"] == "b"
    frame.loc[zoned, "seen"] = days[zoned].tz_localize("Europe/Berlin").astype(str)
    federation = Federation.of(frame, site="clinic", rule=Disclosure(1))
    assert "(no zone at a, c; +01:00 at b)" in federation.notes["seen"]
    assert federation.where(sex="f").notes == federation.notes
    told = stats.LinearRegression("age", ["seen"]).fit(federation)
    assert federation.notes["seen"] in told.notes
    assert federation.notes["seen"] in told.summary()
    assert stats.LinearRegression("age", ["sex"]).fit(federation).notes == ()
    one = frame.assign(seen=days.astype(str))
    assert Federation.of(one, site="clinic").notes == {}


def test_a_federation_shows_its_sites_and_columns_and_no_rows(frame):
    shown = repr(Federation.of(frame, site="clinic"))
    assert shown == "<Federation of a, b, c: age, sex, grade, sick>"
