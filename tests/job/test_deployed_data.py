"""However rows lie at sites, each gets what a simulation gives it; and what is wrong is told alike."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from apart_sites import islands_apart, sent
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.aggregation.exact import Fold
from atoll.algorithms.preprocessing import fit_preprocessor, fitted_at, site_sums
from atoll.core.errors import AtollError, DataError, JobError, WireError
from atoll.core.seeds import Seed
from atoll.data.preprocessing import Plan
from atoll.data.schema import check_sites, infer_schema
from atoll.data.table import Table
from atoll.job import deployed, sites
from atoll.job.load import parse_job

NUMBERS = st.one_of(st.none(), st.integers(-3, 3), st.floats(-1e6, 1e6, width=32))
FLAGS = st.sampled_from([0, 1, True, False, None])
TEXT = st.sampled_from(["a", "b ", "nan", "7", "", None])
MIXED = st.one_of(NUMBERS, TEXT)
CELLS = [NUMBERS, st.integers(0, 3), FLAGS, TEXT, MIXED, st.just(None)]
SOUND = [st.integers(-3, 3), st.floats(-1e6, 1e6, width=32), FLAGS, TEXT, NUMBERS]
TARGETS = [
    st.sampled_from(["no", "yes"]),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from([0, "yes"]),
    st.sampled_from(["no", None]),
    st.just(1),
]
DECLARED = [
    {},
    {"b": {"type": "category"}},
    {"b": {"type": "category", "categories": ["a", "b", "7"]}},
    {"a": {"type": "number", "range": [-2, 2], "missing": [3]}, "c": {"type": "boolean"}},
    {"y": {"type": "boolean"}},
    {"y": {"type": "category", "missing": ["2", "?"]}, "d": {"type": "integer"}},
]


def rows_of(draw, kinds, n):
    return Table.of({name: draw(st.lists(kind, min_size=n, max_size=n)) for name, kind in kinds})


@st.composite
def federations(draw, *, sound=False):
    """Up to four tables: cut from one, or each with columns of its own."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    count = draw(st.integers(1, 4))
    rows = draw(st.lists(st.integers(int(sound), 6), min_size=count, max_size=count))
    kinds = {name: draw(st.sampled_from(SOUND if sound else CELLS)) for name in names}
    kinds["y"] = draw(st.sampled_from(TARGETS[: 3 if sound else None]))
    if draw(st.booleans()):
        whole = rows_of(draw, kinds.items(), sum(rows))
        ends = np.cumsum([0, *rows])
        cut = [whole.take(np.arange(a, b)) for a, b in pairwise(ends)]
        return {f"s{i}": table for i, table in enumerate(cut)}
    made = {}
    for i, n in enumerate(rows):
        own = dict(kinds)
        if not sound:
            own = {name: kind for name, kind in kinds.items() if draw(st.integers(0, 5))}
            if not draw(st.integers(0, 3)):
                own = {name: draw(st.sampled_from(CELLS)) for name in own}
        made[f"s{i}"] = rows_of(draw, own.items(), n)
    return made


def jobs(*, sound=False):
    """Jobs about such tables; ``sound`` ones ask for nothing that many of them lack."""

    def one(usual, *others):
        return st.sampled_from([usual, usual] if sound else [usual, *others])

    data = {
        "source": st.just("x.csv"),
        "target": st.just("y"),
        "task": one("classification", "regression"),
        "columns": one({}, *DECLARED),
        "classes": one([], ["no", "yes"], ["0", "1", "2"]),
        "features": one([], ["a", "b"]),
        "drop": one([], ["c"]),
        "test_fraction": st.sampled_from([0.0, 0.4]),
        "stratify": st.booleans(),
    }
    preprocessing = {
        "mode": st.sampled_from(["federated", "site"]),
        "impute": st.sampled_from(["mean", "constant"]),
        "indicate_missing": st.booleans(),
    }
    return st.fixed_dictionaries(
        {
            "data": st.fixed_dictionaries(data),
            "preprocessing": st.fixed_dictionaries(preprocessing),
            "seed": st.integers(0, 3),
        }
    )


def together(spec, tables, monkeypatch):
    """What a simulation makes of the same tables."""
    monkeypatch.setattr(sites, "site_tables", lambda data, folder, stream: dict(tables))
    return sites.tabular_islands(spec, None, Seed(spec.seed) / "data", lambda names: [])


def same(one, other):
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()
    )


def attempt(make):
    """What ``make`` gives, or the error it raises."""
    try:
        return make()
    except AtollError as error:
        return error


@pytest.mark.parametrize("sound", [True, False])
def test_any_rows_at_any_sites_become_what_a_simulation_makes_of_them(sound):
    seen = {True: 0, False: 0}

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(federations(sound=sound), jobs(sound=sound))
    def check(tables, job):
        spec = parse_job(job)
        with pytest.MonkeyPatch.context() as patch:
            expected = attempt(lambda: together(spec, tables, patch))
        found = attempt(lambda: islands_apart(spec, tables))
        refused = isinstance(expected, AtollError)
        seen[refused] += 1
        if refused:
            assert type(found) is type(expected)
            assert found.message == expected.message
            assert found.faults == tuple(fault.apart() for fault in expected.faults)
        else:
            agrees(found, expected)

    check()
    assert seen[not sound] > 70


def agrees(found, expected):
    for site, own in found.items():
        assert same(own.train[site].features, expected.train[site].features)
        assert same(own.train[site].targets, expected.train[site].targets)
        assert (site in own.held_out) == (site in expected.held_out)
        if site in own.held_out:
            assert same(own.held_out[site].features, expected.held_out[site].features)
            assert same(own.held_out[site].targets, expected.held_out[site].targets)
        assert (own.features, own.classes) == (expected.features, expected.classes)
    assert [own.cards[0] for own in found.values()] == list(expected.cards)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    federations(), st.sampled_from(["", "classification"]), st.sampled_from(["site", "federated"])
)
def test_a_guessed_schema_is_that_of_the_pooled_rows(tables, task, mode):
    """Where each column is text everywhere or nowhere, rows may lie anywhere."""
    try:
        schema = infer_schema(tables, "y", task)
        typed, _ = check_sites(schema, tables)
        plan = Plan(mode=mode)
        fitted = fit_preprocessor(typed, plan, schema)
    except AtollError:
        return
    names = {name for table in tables.values() for name in table.names}
    if all(set(table.names) == names for table in tables.values()):
        pooled = Table.of(
            {n: [c for t in tables.values() for c in t[n].tolist()] for n in schema_names(tables)}
        )
        assert infer_schema({"all": pooled}, "y", task) == schema
    fold = Fold()
    for table in typed.values():
        fold.add(site_sums(table, plan, schema))
    sums = fold.aggregate().sums
    assert {s: fitted_at(t, sums, plan, schema) for s, t in typed.items()} == fitted


def schema_names(tables):
    return next(iter(tables.values())).names


SPEC = parse_job(
    {
        "data": {
            "source": "x.csv",
            "target": "sick",
            "columns": {
                "age": {"type": "number", "range": [0, 120], "unit": "years"},
                "ward": {"type": "category", "categories": ["east", "west"]},
            },
        }
    }
)


def table(**changed):
    columns = {
        "age": [40, 50, 60],
        "ward": ["east", "west", None],
        "dose": [1.5, 2.0, 2.5],
        "name": ["p", "q", "p"],
        "sick": ["no", "yes", "no"],
    }
    return Table.of({k: v for k, v in {**columns, **changed}.items() if v is not None})


BROKEN = {
    "fine": table(),
    "no ward": table(ward=None),
    "no dose": table(dose=None),
    "words": table(age=["forty", 50, 60]),
    "old": table(age=[40, 50, 130]),
    "elsewhere": table(ward=["north", "east", "west"]),
    "unlabelled": table(sick=["no", None, "yes"]),
    "endless": table(dose=[1.0, float("inf"), 2.0]),
    "void": table().take(np.array([], np.int64)),
    "one class": table(sick=["no", "no", "no"]),
}
FAULTS = [
    "site 'elsewhere', column 'ward': unknown category 'north' in row 1 (known: east, west)",
    "site 'endless', column 'dose': inf is not a number in row 2"
    " (correct it, or add it to the column's missing codes)",
    "site 'no dose', column 'dose': is missing (known: age, name, sick, ward)",
    "site 'no ward', column 'ward': is missing (known: age, dose, name, sick)",
    "site 'old', column 'age': 130 is outside [0, 120] years in row 3"
    " (correct it, declare it missing, or widen the range)",
    "site 'unlabelled', column 'sick': the target is missing in row 2"
    " (remove these rows: they can neither train nor test)",
    "site 'void': has no rows (leave the site out or fill its file)",
    "site 'words', column 'age': 'forty' is not a number in row 1"
    " (correct it, or add it to the column's missing codes)",
]


def surveys_of(spec, tables):
    return {site: sent(deployed.survey(spec, site, t)) for site, t in tables.items()}


def test_every_fault_of_every_site_is_told_at_once_with_site_and_column(monkeypatch):
    with pytest.raises(DataError) as caught:
        deployed.agree(SPEC, surveys_of(SPEC, BROKEN))
    with pytest.raises(DataError) as there:
        together(SPEC, dict(sorted(BROKEN.items())), monkeypatch)
    assert [str(fault) for fault in there.value.faults] == FAULTS
    assert caught.value.faults == tuple(fault.apart() for fault in there.value.faults)
    told = str(caught.value)
    assert "site 'words', column 'age': 1 cell is not a number" in told
    assert "forty" not in told


def test_a_site_with_one_class_takes_part_and_is_noted():
    tables = {"a": table(), "b": BROKEN["one class"]}
    islands = islands_apart(SPEC, tables)
    assert set(islands["b"].train["b"].targets.tolist()) == {0}
    assert islands["b"].notes == ("site 'b': a single class, 'no', in 3 rows",)


def test_one_class_everywhere_is_refused():
    tables = {"a": BROKEN["one class"], "b": BROKEN["one class"]}
    with pytest.raises(DataError, match="1 class over all sites"):
        deployed.agree(SPEC, surveys_of(SPEC, tables))


def test_text_at_one_site_and_numbers_at_another_are_told_where_the_numbers_are():
    tables = {"a": table(name=[1, 2, 3]), "b": table(), "c": table(name=[None, None, None])}
    with pytest.raises(DataError) as caught:
        deployed.agree(SPEC, surveys_of(SPEC, tables))
    assert [str(fault) for fault in caught.value.faults] == [
        "site 'a', column 'name': holds numbers, but text at 'b'"
        " (declare the column with its type, or leave it out)"
    ]


def test_declared_as_a_category_the_same_column_holds_the_names_of_all():
    data = SPEC.data.model_copy(
        update={"columns": {"name": type(SPEC.data.columns["age"])(type="category")}}
    )
    spec = SPEC.model_copy(update={"data": data})
    tables = {"a": table(name=[1, 2, 3]), "b": table()}
    schema = deployed.agree(spec, surveys_of(spec, tables))
    column = next(c for c in schema.columns if c.name == "name")
    assert column.categories == ("1", "2", "3", "p", "q")


@pytest.mark.parametrize(
    ("task", "sick", "told"),
    [
        ("regression", ["no", "yes", "no"], "a regression needs numbers; 'sick' is text at 'a'"),
        (
            "classification",
            [0.5, 1, 2],
            "a classification needs classes; 'sick' has fractions at 'a'",
        ),
    ],
)
def test_a_target_that_contradicts_the_task_is_told_once(task, sick, told):
    spec = parse_job({"data": {"source": "x.csv", "target": "sick", "task": task}})
    tables = {"a": table(sick=sick), "b": table(sick=sick)}
    with pytest.raises(JobError) as caught:
        deployed.agree(spec, surveys_of(spec, tables))
    assert [(f.place, f.message) for f in caught.value.faults] == [("data.task", told)]


def test_columns_that_the_job_names_and_nobody_has_are_told():
    spec = parse_job({"data": {"source": "x.csv", "target": "sick", "drop": ["doze"]}})
    with pytest.raises(DataError, match=r"data\.drop: no column 'doze' \(did you mean 'dose'"):
        deployed.agree(spec, surveys_of(spec, {"a": table()}))
    spec = parse_job({"data": {"source": "x.csv", "target": "sck"}})
    with pytest.raises(DataError, match=r"no site has the column 'sck' \(did you mean 'sick'"):
        deployed.agree(spec, surveys_of(spec, {"a": table()}))


def test_preprocessing_that_does_not_fit_is_told_before_anything_is_added_up():
    raw = {"data": {"source": "x.csv", "target": "sick"}, "preprocessing": {"scale": "minmax"}}
    spec = parse_job(raw)
    with pytest.raises(JobError, match="column 'dose': minmax needs a declared range"):
        deployed.agree(spec, surveys_of(spec, {"a": table()}))


def test_no_value_of_a_number_and_no_count_leaves_with_a_survey():
    rng = np.random.default_rng(0)
    one = Table.of(
        {
            "age": rng.uniform(30, 90, 40),
            "ward": ["east", "west"] * 20,
            "dose": rng.uniform(0, 1, 40),
            "name": ["p", "q", "r", "p"] * 10,
            "essay": [f"{'long ' * 60}{i % 3}" for i in range(40)],
            "key": [f"patient {i}" for i in range(20)] * 2,
            "id": [f"id-{i % 10}-{i}" for i in range(40)],
            "sick": ["no", "yes"] * 20,
        }
    )
    many = Table.of({n: [*c.tolist()] * 2 for n, c in one.columns.items()})
    text = json.dumps(deployed.survey(SPEC, "a", one))
    assert text == json.dumps(deployed.survey(SPEC, "a", many))  # twice the rows, the same survey
    assert not [c for c in (*one["age"], *one["dose"]) if f"{c:.3f}"[:-1] in text]
    assert "long" not in text
    told = json.loads(text)
    assert told["columns"]["name"]["levels"] == ["p", "q", "r"]
    assert told["columns"]["essay"]["levels"] is None
    assert told["columns"]["id"]["levels"] is not None
    longer = Table.of({**many.columns, "id": [f"id-{i}" for i in range(80)]})
    assert deployed.survey(SPEC, "a", longer)["columns"]["id"]["levels"] is None


def test_names_of_classes_and_categories_stay_where_they_are_declared():
    data = {
        "source": "x.csv", "target": "sick", "classes": ["no", "yes"], "features": ["ward", "age"],
        "columns": {"ward": {"type": "category", "categories": ["east", "west"]},
                    "sick": {"type": "category"}},
    }  # fmt: skip
    spec = parse_job({"data": data})
    told = deployed.survey(spec, "a", table(sick=["no", "yes", "yes"]))
    assert set(told["columns"]) == {"age", "ward", "sick"}
    assert "p" not in json.dumps(told["columns"]).replace('"type"', "")
    schema = deployed.agree(spec, {"a": sent(told)})
    assert schema.classes == ("no", "yes")


def test_a_target_of_too_many_names_is_refused_at_its_site():
    spec = parse_job({"data": {"source": "x.csv", "target": "y"}})
    rows = Table.of({"x": np.arange(6000.0), "y": [f"c{i}" for i in range(6000)]})
    with pytest.raises(DataError, match=r"site 'a', column 'y': has 6,000 different values"):
        deployed.survey(spec, "a", rows)
    essay = Table.of({"x": [1, 2], "y": ["a", "b" * 300]})
    with pytest.raises(DataError, match="more than 200 letters"):
        deployed.survey(spec, "a", essay)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"names": "age"},
        {"names": ["age"], "empty": 0, "columns": {}, "cells": {}},
        {"names": ["age"], "empty": False, "columns": {}, "cells": {}, "rows": 3},
        {"names": ["a" * 2000], "empty": False, "columns": {}, "cells": {}},
        {"names": ["age"], "empty": False, "columns": {"age": {"text": True}}, "cells": {}},
    ],
)
def test_what_is_no_survey_is_refused_by_the_name_of_its_site(wrong):
    with pytest.raises(WireError, match="is no TableSurvey") as caught:
        deployed.agree(SPEC, {**surveys_of(SPEC, {"a": table()}), "bad": wrong})
    assert caught.value.site == "bad"


def test_a_schema_from_elsewhere_is_checked():
    schema = deployed.agree(SPEC, surveys_of(SPEC, {"a": table()}))
    plain = sent(deployed.schema_to_plain(schema))
    assert deployed.schema_from_plain(plain) == schema
    one = plain["columns"][0]
    for wrong in (
        {},
        {**plain, "more": 1},
        {**plain, "columns": [one, one]},
        {**plain, "columns": [{**one, "type": "code"}]},
        {**plain, "columns": [{**one, "range": [2, 1]}]},
    ):
        with pytest.raises(WireError):
            deployed.schema_from_plain(wrong)


def test_missing_codes_of_both_kinds_survive_the_way():
    raw = {"data": {"source": "x.csv", "target": "sick", "columns": {"age": {"missing": [0, "?"]}}}}
    spec = parse_job(raw)
    tables = {"a": table(age=[0, 50, 60]), "b": table(age=["?", 1, 2])}
    schema = deployed.agree(spec, surveys_of(spec, tables))
    again = deployed.schema_from_plain(sent(deployed.schema_to_plain(schema)))
    assert again == schema
    assert np.isnan(again.read("b", tables["b"])["age"]).tolist() == [True, False, False]
