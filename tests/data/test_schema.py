import numpy as np
import pytest

from atoll.core.errors import DataError, JobError
from atoll.data.schema import Column, Schema, check_sites, complete_schema, infer_schema
from atoll.data.table import Table

SCHEMA = Schema(
    (
        Column("age", "integer", unit="years", range=(18, 99)),
        Column("chol", "number", unit="mg/dl", missing=(0, "?")),
        Column("smoker", "boolean"),
        Column("cp", "category", categories=("none", "typical")),
    ),
    target="disease",
    classes=("no", "yes"),
)


def rows(**changed):
    table = {
        "age": [40, 50],
        "chol": [200, 0],
        "smoker": ["yes", "False"],
        "cp": ["typical", None],
        "disease": ["no", "yes"],
    }
    return Table.of({**table, **changed})


def faults_of(*sites, schema=SCHEMA):
    with pytest.raises(DataError) as caught:
        check_sites(schema, dict(sites))
    return [str(fault) for fault in caught.value.faults]


def test_cells_are_read_as_declared():
    table = SCHEMA.read("a", rows())
    assert table.names == ("age", "chol", "smoker", "cp", "disease")
    np.testing.assert_array_equal(table["chol"], [200, np.nan])
    assert table["smoker"].tolist() == [1.0, 0.0]
    assert table["cp"].tolist() == ["typical", None]


def test_a_missing_code_may_be_text_in_a_column_of_numbers():
    table = SCHEMA.read("a", rows(chol=["?", " 210.5 "]))
    np.testing.assert_array_equal(table["chol"], [np.nan, 210.5])


def test_figures_joined_by_underscores_are_no_number():
    """Python reads 2_5 as 25: codes became quantities without a word."""
    sites = {"a": Table.of({"code": ["2_5", "1_000", "30"] * 4, "y": [1, 2, 3] * 4})}
    guessed = {
        column.name: column.type for column in infer_schema(sites, "y", "regression").columns
    }
    assert guessed["code"] == "category"
    with pytest.raises(DataError, match="'2_5' is not a number in row 1 and 7 more"):
        check_sites(Schema((Column("code"), Column("y")), "y", "regression"), sites)


def test_a_missing_code_is_not_out_of_range():
    schema = Schema((Column("x", "number", range=(1, 9), missing=(-9,)),), "y", "regression")
    table = schema.read("a", Table.of({"x": [-9, 5], "y": [1, 2]}))
    np.testing.assert_array_equal(table["x"], [np.nan, 5])


def test_categories_may_be_written_as_numbers():
    schema = Schema((Column("cp", "category", categories=("1", "2")),), "y", "regression")
    table = schema.read("a", Table.of({"cp": [1, None, 2.0], "y": [1, 2, 3]}))
    assert table["cp"].tolist() == ["1", None, "2"]


def test_reading_a_typed_table_again_changes_nothing():
    once = SCHEMA.read("a", rows())
    twice = SCHEMA.read("a", once)
    for name in once.names:
        np.testing.assert_array_equal(once[name], twice[name])


def test_faults_of_all_sites_are_reported_together():
    good = rows()
    found = faults_of(
        (
            "oslo",
            Table(
                {n: v for n, v in {**good.columns, "chold": good["chol"]}.items() if n != "chol"}
            ),
        ),
        ("rome", rows(age=["forty", 50.5], cp=["typcal", "none"])),
        ("bern", rows(age=[40, 120], disease=["no", None])),
        ("void", rows().take(np.array([], np.int64))),
    )
    assert found == [
        "site 'oslo', column 'chol': is missing (did you mean 'chold'?)",
        "site 'rome', column 'age': 'forty' is not a whole number in row 1 and 1 more"
        " (correct it, or add it to the column's missing codes)",
        "site 'rome', column 'cp': unknown category 'typcal' in row 1 (did you mean 'typical'?)",
        "site 'bern', column 'age': 120 is outside [18, 99] years in row 2"
        " (correct it, declare it missing, or widen the range)",
        "site 'bern', column 'disease': the target is missing in row 2"
        " (remove these rows: they can neither train nor test)",
        "site 'void': has no rows (leave the site out or fill its file)",
    ]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"smoker": ["perhaps", True]}, "'perhaps' is not true or false in row 1"),
        ({"smoker": [1, 2]}, "2 is not true or false in row 2"),
        ({"chol": [1, float("inf")]}, "inf is not a number in row 2"),
        ({"chol": ["1", "1O"]}, "'1O' is not a number in row 2"),
        ({"age": [40.5, 41]}, "40.5 is not a whole number in row 1"),
        ({"disease": ["no", "maybe"]}, "unknown category 'maybe' in row 2"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(changed, expected):
    (fault,) = faults_of(("a", rows(**changed)))
    assert expected in fault


def test_a_missing_target_column_is_a_fault():
    assert faults_of(("a", rows().without("disease")))[0].startswith(
        "site 'a', column 'disease': is missing"
    )


def test_no_sites_at_all_is_a_fault():
    assert "there are none" in faults_of()[0]


def test_a_single_class_site_is_allowed_and_noted():
    typed, notes = check_sites(SCHEMA, {"a": rows(), "b": rows(disease=["yes", "yes"])})
    assert list(typed) == ["a", "b"]
    assert notes == ("site 'b': a single class, 'yes', in 2 rows",)


def test_empty_and_undeclared_columns_are_noted():
    _, notes = check_sites(SCHEMA, {"a": rows(chol=[None, 0], extra=[1, 2])})
    assert notes == (
        "site 'a': column 'chol' has no value in any of 2 rows",
        "columns not read, as not declared or left out: extra",
    )


def test_of_thousands_of_columns_that_are_not_read_the_first_are_named():
    _, notes = check_sites(SCHEMA, {"a": rows(**{f"gene{i:04d}": [1, 2] for i in range(5000)})})
    assert notes[0].startswith(
        "columns not read, as not declared or left out: gene0000, gene0001, "
    )
    assert notes[0].endswith(", gene0049 and 4950 more")


def test_a_feature_that_never_varies_is_noted_where_several_sites_are_seen():
    def site(age, sex):
        goal = [i % 2 for i in range(15)]
        return Table.of({"age": [age] * 15, "sex": [sex] * 15, "y": goal})

    schema = Schema(
        (
            Column("age", "number"),
            Column("sex", "category", categories=("f", "m")),
            Column("y", "boolean"),
        ),
        "y",
        "classification",
        ("0", "1"),
    )
    note = "column '{}' holds the same value in every row: it tells a model nothing"
    same = {"a": site(60, "f"), "b": site(60, "f")}
    assert check_sites(schema, same)[1] == (note.format("age"), note.format("sex"))
    assert check_sites(schema, {"a": site(60, "f"), "b": site(61, "m")})[1] == ()
    assert check_sites(schema, {"a": same["a"]})[1] == ()  # what a site would tell of itself


def test_names_that_differ_in_capitals_or_spaces_are_noted():
    schema = Schema(
        (Column("sex", "category", categories=("F", "f", "m")), Column("y", "category")),
        "y",
        "classification",
        ("New York", "no", "newyork"),
    )
    sites = {"a": Table.of({"sex": ["F", "f", "m"], "y": ["New York", "no", "newyork"]})}
    assert [note.partition("only, ")[::2] for note in check_sites(schema, sites)[1]] == [
        (
            "column 'sex' has values that differ in capitals or spaces ",
            "and count as different: 'F', 'f'",
        ),
        (
            "column 'y' has values that differ in capitals or spaces ",
            "and count as different: 'New York', 'newyork'",
        ),
    ]


def test_names_that_look_alike_are_noted_with_the_codes_of_their_letters():
    """A letter with dots is one code from some systems, and two from others."""
    whole, apart = "Zürich", "Zu\u0308rich"
    schema = Schema((Column("x"),), "y", classes=("no", "yes"))
    both = {name: Table.of({"x": [1, 2], "y": ["no", "yes"]}) for name in (whole, apart, "Bern")}
    (note,) = check_sites(schema, both)[1]
    assert note.startswith(
        "sites have names that differ in capitals, spaces or the code of a letter"
    )
    assert note.endswith("count as different: 'Z\\xfcrich', 'Zu\\u0308rich'")
    town = Schema(
        (Column("town", "category", categories=(whole, apart)),), "y", classes=("no", "yes")
    )
    table = Table.of({"town": [whole, apart], "y": ["no", "yes"]})
    assert "'Z\\xfcrich', 'Zu\\u0308rich'" in check_sites(town, {"a": table})[1][0]


def test_many_sites_that_lack_something_are_one_note():
    sites = {f"s{i}": rows(chol=[None, None], disease=["no", "no"]) for i in range(9)}
    assert check_sites(SCHEMA, sites)[1] == (
        "column 'chol' has no value at 9 sites: s0, s1, s2, s3, s4 and 4 more",
        "9 of 9 sites have a single class: s0, s1, s2, s3, s4 and 4 more",
    )


def test_where_no_feature_is_left_the_columns_that_were_are_named():
    days = [f"2020-01-01 {i:02d}:00" for i in range(24)] * 3
    with pytest.raises(JobError, match=r"there is no feature; columns left out, .* any: when, why"):
        infer_schema(
            {
                "a": Table.of(
                    {
                        "when": [f"{d}:{i}" for i, d in enumerate(days)],
                        "why": [None] * 72,
                        "y": [0, 1] * 36,
                    }
                )
            },
            "y",
        )


def test_contradictory_declarations_are_reported_together():
    with pytest.raises(JobError) as caught:
        Schema(
            (
                Column("a", "numbr"),
                Column("b", "number", range=(2, 1)),
                Column("c", "category", range=(1, 2), categories=("x", "x")),
                Column("b", "integer"),
                Column("d", "number", categories=("x",)),
                Column("e", role="target"),
            ),
            "y",
            "regression",
            ("no", "yes"),
        )
    text = str(caught.value)
    assert len(caught.value.faults) == 8
    for part in (
        "did you mean 'number'?",
        "range [2, 1] is empty",
        "a category has no range",
        "twice",
    ):
        assert part in text
    assert "is declared twice" in text
    assert "a regression has no classes" in text


def test_categories_and_classes_are_completed_from_all_sites():
    schema = Schema((Column("g", "category", missing=("?",)), Column("x")), "y")
    sites = {
        "a": Table.of({"g": ["10", "?"], "x": [1, 2], "y": [0, 1]}),
        "b": Table.of({"g": ["9", "b"], "x": [1, 2], "y": [2, 1]}),
    }
    full = complete_schema(schema, sites)
    assert full.columns[0].categories == ("9", "10", "b")
    assert full.classes == ("0", "1", "2")


def test_a_target_with_one_class_everywhere_is_refused():
    with pytest.raises(DataError, match="1 class over all sites"):
        complete_schema(Schema((Column("x"),), "y"), {"a": Table.of({"x": [1], "y": [0]})})


def test_types_are_guessed_from_all_sites_together():
    sites = {
        "a": Table.of(
            {
                "n": [1, 2],
                "b": [0, 1],
                "m": [1.0, 2],
                "s": ["u", "v"],
                "e": [None, None],
                "y": [0, 1],
            }
        ),
        "b": Table.of(
            {"n": [3, 4], "b": [1, 1], "m": [1.5, 2], "s": ["u", 3], "e": [None, None], "y": [1, 0]}
        ),
    }
    schema = infer_schema(sites, "y")
    assert {c.name: c.type for c in schema.features} == {
        "n": "integer",
        "b": "boolean",
        "m": "number",
        "s": "category",
    }
    assert schema.features[3].categories == ("3", "u", "v")
    assert (schema.task, schema.classes) == ("classification", ("0", "1"))
    typed, _ = check_sites(schema, sites)
    assert typed["b"]["s"].tolist() == ["u", "3"]


def test_names_are_ignored_and_a_quantity_makes_a_regression():
    table = Table.of(
        {"name": [f"p{i}" for i in range(60)], "x": np.arange(60), "y": np.linspace(0, 1, 60)}
    )
    schema = infer_schema({"a": table}, "y")
    assert [c.name for c in schema.features] == ["x"]
    assert schema.task == "regression"


def test_many_whole_target_values_make_a_regression_unless_told():
    table = Table.of({"x": np.arange(30), "y": np.arange(30)})
    assert infer_schema({"a": table}, "y").task == "regression"
    assert len(infer_schema({"a": table}, "y", "classification").classes) == 30


def test_a_misspelt_target_gets_a_suggestion():
    with pytest.raises(DataError, match="did you mean 'disease'"):
        infer_schema({"a": rows()}, "diseases")


def numbered(**changed):
    size = 40
    table = {
        "patient_id": [70_000_001 + 977 * i for i in range(size)],
        "order": list(range(size)),
        "income": [20_000 + 977 * i for i in range(size)],
        "age": [20 + i % 30 for i in range(size)],
        "dose": [i / 8 for i in range(size)],
        "disease": ["no", "yes"] * (size // 2),
    }
    return Table.of({**table, **changed})


def identifiers(*sites):
    named = {f"site {i}": table for i, table in enumerate(sites)}
    _, notes = check_sites(infer_schema(named, "disease"), named)
    assert all("data.drop" in note for note in notes)
    return [note.split("'")[1] for note in notes]


def test_a_feature_that_numbers_the_rows_is_named():
    assert identifiers(numbered()) == ["patient_id", "order"]
    twice = numbered(patient_id=[i // 2 for i in range(40)])
    assert identifiers(numbered(), twice) == [
        "order"
    ]  # two rows of a person: it is no number of rows
    assert identifiers(numbered(order=[None, *range(39)])) == ["patient_id"]


def test_a_quantity_that_is_declared_as_one_is_not_taken_for_an_identifier():
    goal = Column("disease", "category", role="target")
    for declared in ({"unit": "1/l"}, {"range": (0, 1e9)}):
        column = Column("patient_id", "integer", **declared)
        _, notes = check_sites(Schema((column, goal), "disease"), {"a": numbered()})
        assert not [note for note in notes if "patient_id" in note]


def test_a_column_of_numbers_that_text_spoils_is_told_with_its_sites():
    """It was left out, or became a category of ages, with no word of why."""
    dose = [f"{i}.5" for i in range(80)]
    sites = {
        "a": Table.of({"age": range(40, 80), "dose": range(40), "y": [0, 1] * 20}),
        "b": Table.of({"age": [*range(39), "?"], "dose": [*dose[:39], "n.a."], "y": [0, 1] * 20}),
    }
    columns = (Column("age", "category"), Column("dose", role="ignore"), Column("y", "boolean"))
    schema = complete_schema(Schema(columns, "y", "classification", ("false", "true")), sites)
    told = [note for note in check_sites(schema, sites)[1] if "text beside them" in note]
    assert [note.split(",")[0] for note in told] == [
        "column 'age' holds numbers",
        "column 'dose' holds numbers",
    ]
    assert all("at 'b', so" in note and "type = 'number'" in note for note in told)


def test_text_that_holds_some_numbers_and_grades_are_no_spoilt_numbers():
    ward = ["1", "2a", "2b", "3"] * 10
    name = [f"room {i}" for i in range(60)]
    sites = {
        "a": Table.of({"ward": ward, "name": name[:40], "y": [0, 1] * 20}),
        "b": Table.of({"ward": ward, "name": name[20:], "y": [0, 1] * 20}),
    }
    columns = (Column("ward", "category"), Column("name", role="ignore"), Column("y", "boolean"))
    schema = complete_schema(Schema(columns, "y", "classification", ("false", "true")), sites)
    assert not [note for note in check_sites(schema, sites)[1] if "text beside them" in note]


def test_dates_that_became_categories_are_told():
    days = [f"2021-01-{day:02d}" for day in range(1, 21)]
    sites = {"a": Table.of({"seen": days, "y": [0, 1] * 10})}
    columns = (Column("seen", "category"), Column("y", "boolean"))
    schema = complete_schema(Schema(columns, "y", "classification", ("false", "true")), sites)
    assert any("'seen' holds dates" in note for note in check_sites(schema, sites)[1])


def test_times_of_other_zones_at_other_sites_are_told_with_who_writes_which():
    hours = [f"2021-01-31 {hour:02d}:00:00" for hour in range(20)]
    sites = {
        "bern": Table.of({"seen": [f"{hour}+01:00" for hour in hours], "y": [0, 1] * 10}),
        "lyon": Table.of({"seen": hours, "y": [0, 1] * 10}),
    }
    columns = (Column("seen", "category"), Column("y", "boolean"))
    schema = complete_schema(Schema(columns, "y", "classification", ("false", "true")), sites)
    (note,) = (n for n in check_sites(schema, sites)[1] if "zones" in n)
    assert "(+01:00 at bern; no zone at lyon)" in note
    (alone,) = (n for n in check_sites(schema, {"lyon": sites["lyon"]})[1] if "zones" in n)
    assert "(no zone at lyon; +01:00, no zone at all sites)" in alone
    whole = {"all": Table.of({"seen": hours, "y": [0, 1] * 10})}
    schema = complete_schema(Schema(columns, "y", "classification", ("false", "true")), whole)
    assert not any("zones" in n for n in check_sites(schema, whole)[1])


def test_declared_codes_that_begin_with_a_zero_are_found_in_a_column_read_as_numbers():
    """A CSV file's postal codes are read as numbers: no declared code was ever met."""
    codes = Column("code", "category", categories=("01067", "50667"))
    schema = Schema((codes, Column("y", "boolean")), "y", classes=("false", "true"))
    typed = schema.read("a", Table.of({"code": [1067, 50667, None], "y": [0, 1, 1]}))
    assert typed["code"].tolist() == ["01067", "50667", None]
    assert faults_of(("a", Table.of({"code": [1068, 50667], "y": [0, 1]})), schema=schema) == [
        "site 'a', column 'code': unknown category '1068' in row 1 (did you mean '01067'?)"
    ]


def test_categories_of_whole_numbers_too_long_to_be_told_apart_are_refused():
    """Two patients' numbers of 17 digits were one category."""
    schema = Schema((Column("x"), Column("ward", "category")), "y", classes=("0", "1"))
    rows = {"x": [1, 2], "ward": [12345678901234567, 12345678901234568], "y": [0, 1]}
    with pytest.raises(DataError, match="'ward': holds whole numbers too long to be told apart"):
        schema.read("a", Table.of(rows))
    assert (
        schema.read("a", Table.of({**rows, "ward": ["12345678901234567", "b"]}))["ward"][1] == "b"
    )
