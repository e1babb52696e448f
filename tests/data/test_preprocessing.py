import json
import math

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from atoll.core.errors import DataError
from atoll.data.preprocessing import CategoryRule, Plan, Preprocessor, column_sums, finish
from atoll.data.schema import Column, Schema
from atoll.data.table import Table

SCHEMA = Schema(
    (
        Column("age", "number"),
        Column("visits", "integer", range=(0, 5)),
        Column("smoker", "boolean"),
        Column("cp", "category", categories=("none", "mild", "bad")),
    ),
    "y",
    classes=("no", "yes"),
)
TABLE = SCHEMA.read(
    "s",
    Table.of(
        {
            "age": [40, 60, None, 50],
            "visits": [1, 1, 3, None],
            "smoker": [True, True, None, False],
            "cp": ["mild", None, "mild", "none"],
            "y": ["no", "yes", "yes", "no"],
        }
    ),
)


def fit(plan, schema=SCHEMA, table=TABLE):
    assert plan.faults(schema) == []
    return finish(column_sums(table, plan, schema), plan, schema)


def columns(plan, schema=SCHEMA, table=TABLE):
    fitted = fit(plan, schema, table)
    features = fitted.apply(table).features
    assert features.shape == (len(table), len(fitted.feature_names))
    return {name: features[:, i].tolist() for i, name in enumerate(fitted.feature_names)}


def test_the_default_imputes_means_standardises_and_encodes_one_hot():
    got = columns(Plan(dtype="float64"))
    unit = math.sqrt(50)  # ages 40, 60, 50, 50: mean 50, variance 200 / 4
    assert got["age"] == pytest.approx([-10 / unit, 10 / unit, 0, 0])
    assert got["smoker"] == pytest.approx([1, 1, 2 / 3, 0])
    assert got["cp=none"] == [0, 0, 0, 1]
    assert got["cp=mild"] == [1, 1, 1, 0]
    assert got["cp=bad"] == [0, 0, 0, 0]


def test_moments_are_those_of_scikit_learn_after_imputation():
    rng = np.random.default_rng(3)
    x = rng.lognormal(3, 2, 200)
    x[rng.random(200) < 0.2] = np.nan
    schema = Schema((Column("x"),), "y", "regression")
    table = Table.of({"x": x, "y": np.zeros(200)})
    for impute, theirs in (
        ("mean", SimpleImputer()),
        ("constant", SimpleImputer(strategy="constant", fill_value=7)),
    ):
        got = columns(Plan(impute=impute, fill=7.0, dtype="float64"), schema, table)["x"]
        want = StandardScaler().fit_transform(theirs.fit_transform(x[:, None]))[:, 0]
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_the_most_frequent_value_is_imputed_and_ties_go_to_the_first():
    got = columns(Plan(impute="most_frequent", scale="none"), _without_age(), TABLE)
    assert got["visits"] == [1, 1, 3, 1]
    assert got["smoker"] == [1, 1, 1, 0]
    tied = TABLE.take(np.array([0, 2]))
    assert columns(Plan(impute="most_frequent", scale="none"), _without_age(), tied)["visits"] == [
        1,
        3,
    ]
    empty = TABLE.take(np.array([3]))
    assert columns(Plan(impute="most_frequent", scale="none"), _without_age(), empty)["visits"] == [
        0
    ]


def _without_age():
    return Schema(SCHEMA.columns[1:], "y", classes=SCHEMA.classes)


def test_a_constant_is_imputed_and_a_missing_category_has_no_column_set():
    got = columns(Plan(impute="constant", fill=-1.0, scale="none"))
    assert got["age"] == [40, 60, -1, 50]
    assert [got[f"cp={c}"][1] for c in ("none", "mild", "bad")] == [0, 0, 0]


def test_without_imputation_numbers_stay_missing_and_moments_use_what_is_there():
    got = columns(Plan(impute="none", dtype="float64"))
    unit = math.sqrt(200 / 3)
    np.testing.assert_allclose(got["age"], [-10 / unit, 10 / unit, np.nan, 0])


def test_ordinal_codes_follow_the_declared_order():
    assert columns(Plan(encode="ordinal"))["cp"] == [1, 1, 1, 0]
    np.testing.assert_array_equal(
        columns(Plan(encode="ordinal", impute="none"))["cp"], [1, np.nan, 1, 0]
    )
    assert columns(Plan(encode="ordinal", impute="constant", fill=9))["cp"] == [1, 9, 1, 0]


def test_minmax_uses_the_declared_range():
    got = columns(Plan(scale="minmax"), _without_age())
    assert got["visits"] == pytest.approx([0.2, 0.2, 0.6, 1 / 3])


def test_missing_cells_can_be_told_to_the_model():
    got = columns(Plan(indicate_missing=True))
    assert got["age is missing"] == [0, 0, 1, 0]
    assert got["cp is missing"] == [0, 1, 0, 0]
    assert len(got) == 4 + 2 + 4


def test_a_constant_column_is_centred_and_left_unscaled():
    schema = Schema((Column("x"),), "y", "regression")
    table = Table.of({"x": [0.1] * 3, "y": [1.0, 2, 3]})
    assert columns(Plan(), schema, table)["x"] == [0, 0, 0]


def test_a_column_without_values_becomes_zero():
    table = SCHEMA.read("s", Table({**TABLE.columns, "age": np.full(4, np.nan)}))
    assert columns(Plan(), SCHEMA, table)["age"] == [0, 0, 0, 0]


def test_a_huge_offset_costs_no_precision():
    schema = Schema((Column("x"),), "y", "regression")
    table = Table.of({"x": [1e12 + 1, 1e12 + 2, 1e12 + 3], "y": [0, 0, 0]})
    got = columns(Plan(dtype="float64"), schema, table)["x"]
    np.testing.assert_allclose(got, np.array([-1, 0, 1]) / math.sqrt(2 / 3), rtol=1e-12)


def test_targets_are_class_indices_in_declared_order():
    targets = fit(Plan()).apply(TABLE).targets
    assert targets.dtype == np.int64
    assert targets.tolist() == [0, 1, 1, 0]


def test_a_boolean_target_is_its_own_index():
    schema = Schema((Column("x"), Column("y", "boolean")), "y", classes=("well", "ill"))
    table = schema.read("s", Table.of({"x": [1, 2], "y": ["yes", "no"]}))
    assert fit(Plan(), schema, table).apply(table).targets.tolist() == [1, 0]


def test_a_scaled_target_is_restored_to_its_unit():
    schema = Schema((Column("x"),), "y", "regression")
    table = Table.of({"x": [1, 2, 3], "y": [100.0, 300.0, 500.0]})
    fitted = fit(Plan(scale_target=True, dtype="float64"), schema, table)
    targets = fitted.apply(table).targets
    assert targets.mean() == pytest.approx(0)
    assert targets.std() == pytest.approx(1)
    np.testing.assert_allclose(fitted.restore(targets), [100, 300, 500])
    plain = fit(Plan(), schema, table)
    assert plain.apply(table).targets.tolist() == [100, 300, 500]
    assert plain.restore(np.array([1.5])).tolist() == [1.5]


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(encode="ordinal", impute="none", indicate_missing=True, dtype="float64"),
        Plan(encode="ordinal", impute="constant", fill=0.1),
    ],
)
def test_a_preprocessor_survives_json_to_the_bit(plan):
    fitted = fit(plan)
    again = Preprocessor.from_json(fitted.to_json())
    assert again == fitted
    np.testing.assert_array_equal(again.apply(TABLE).features, fitted.apply(TABLE).features)


def test_a_scaled_target_survives_json():
    schema = Schema((Column("x"),), "y", "regression")
    fitted = fit(Plan(scale_target=True), schema, Table.of({"x": [1, 2], "y": [0.1, 0.7]}))
    assert Preprocessor.from_json(fitted.to_json()) == fitted


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"rules": [{"nam": 1}], "goal": null, "classes": []}']
)
def test_other_json_is_refused(text):
    with pytest.raises(DataError, match="not a stored preprocessor"):
        Preprocessor.from_json(text)


def test_an_unknown_category_or_class_is_named():
    odd = Table({**TABLE.columns, "cp": np.array(["mld", None, None, None], object)})
    with pytest.raises(DataError) as caught:
        fit(Plan()).apply(odd)
    assert "did you mean 'mild'?" in str(caught.value)
    odd = Table({**TABLE.columns, "y": np.array(["no", "ye", "no", "no"], object)})
    with pytest.raises(DataError, match="unknown class 'ye'"):
        fit(Plan()).apply(odd)


def test_dtype_is_as_planned():
    assert fit(Plan()).apply(TABLE).features.dtype == np.float32
    assert fit(Plan(dtype="float64")).apply(TABLE).features.dtype == np.float64


def test_rows_of_zero_length_are_preprocessed_too():
    none = TABLE.take(np.array([], np.int64))
    assert fit(Plan()).apply(none).features.shape == (0, 6)


def test_a_plan_lists_everything_that_does_not_fit():
    schema = Schema(
        (Column("a"), Column("k", "integer", range=(0, 5000)), Column("g", "category")), "y"
    )
    places = [
        f.place
        for f in Plan(impute="most_frequent", scale="minmax", scale_target=True).faults(schema)
    ]
    assert places == [
        "column 'a'",
        "column 'a'",
        "column 'k'",
        "column 'g'",
        "classes",
        "preprocessing.scale_target",
    ]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("impute", "median"),
        ("scale", "standart"),
        ("encode", "hash"),
        ("mode", "pooled"),
        ("dtype", "f4"),
    ],
)
def test_unknown_options_are_named(option, value):
    (fault,) = Plan(**{option: value}).faults(SCHEMA)
    assert fault.place == f"preprocessing.{option}"
    assert value in fault.message


def test_a_fill_must_be_finite():
    assert "finite" in Plan(fill=math.nan).faults(SCHEMA)[0].message


def test_what_a_site_sends_is_counts_and_digits():
    sums = column_sums(TABLE, Plan(), SCHEMA)
    assert sums["rows"].tolist() == [4]
    assert sums["present"].tolist() == [3, 3, 3]
    assert sums["levels"].tolist() == [1, 2, 0]
    assert all(np.all(v == np.floor(v)) and v.dtype == np.float64 for v in sums.values())
    assert json.dumps(sorted(sums)) == '["levels", "limbs", "present", "rows"]'


def test_a_category_rule_fills_with_its_level():
    rule = CategoryRule("g", ("a", "b"), onehot=True, fill="b")
    assert rule.apply(np.array(["a", None], object)).tolist() == [[1, 0], [0, 1]]


def test_values_whose_squares_are_too_small_to_count_are_scaled_by_one():
    schema = Schema((Column("x"),), "y", "regression")
    table = Table({"x": np.array([1e-60, 2e-60, 3e-60]), "y": np.zeros(3)})
    made = finish(column_sums(table, Plan(), schema), Plan(), schema)
    (rule,) = made.rules
    assert (rule.shift, rule.scale) == (pytest.approx(2e-60, rel=1e-12), 1.0)


def test_a_number_too_large_to_be_summed_is_named_with_its_column():
    table, schema = Table.of({"dose": [1.0, 1e300]}), Schema((Column("dose", "number"),), "ill")
    with pytest.raises(DataError, match="column 'dose': value 1e\\+300 cannot be summed"):
        column_sums(table, Plan(), schema)
