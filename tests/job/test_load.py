"""Reading job files: overrides, defaults, canonical form, strict types."""

from __future__ import annotations

import hashlib
import json

import pytest

from atoll.core.errors import JobConflict, JobError
from atoll.job import load_job
from atoll.job.definition import definition_hash
from atoll.job.load import parse_job, read_spec

SMALLEST = {"data": {"source": "synthetic"}}


def test_canonical_form_is_sorted_compact_json():
    text = '{"a":[1,2.5],"b":{"c":"é","d":null}}'
    given = {"b": {"d": None, "c": "é"}, "a": [1, 2.5]}
    assert definition_hash(given) == hashlib.sha256(text.encode()).hexdigest()


def test_hash_of_the_smallest_job_is_known():
    # Changes when a key or a default does: a breaking change for signed and resumed jobs.
    spec = parse_job(SMALLEST)
    assert spec.hash() == "87723ca4aa4b0e348647816b270dc171a602f3b579697389cacdaec0a93c7f33"


def test_order_and_spelling_of_numbers_do_not_change_the_hash(job_file):
    one = read_spec(job_file("[local]\nlr = 1\nepochs = 2\n[rounds]\ncount = 3\n"))
    two = read_spec(job_file("[rounds]\ncount = 3\n[local]\nepochs = 2.0\nlr = 1.0\n"))
    assert one.hash() == two.hash()


def test_stated_defaults_do_not_change_the_hash(job_file):
    for stated in ("[local]\nbatch_size = 32\n", "[rounds]\nseparation = 1\n"):
        assert read_spec(job_file()).hash() == read_spec(job_file(stated)).hash()


@pytest.mark.parametrize(
    "text", ["[executor]\nname = 'processes'\nworkers = 3\n", "[checkpoint]\nevery = 7\n"]
)
def test_executor_and_checkpoint_are_not_part_of_what_a_job_is(job_file, text):
    assert read_spec(job_file()).hash() == read_spec(job_file(text)).hash()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "local.lr=0.02", "data.test_fraction=0.5", "algorithm.weights=uniform",
     "rounds.count=11", "clock.dropout=0.1", "preprocessing.mode=site"],
)  # fmt: skip
def test_everything_else_changes_the_hash(job_file, override):
    assert read_spec(job_file()).hash() != read_spec(job_file(), [override]).hash()


def test_built_job_and_file_have_the_same_hash(job_file):
    path = job_file()
    assert load_job(path).hash() == read_spec(path).hash()


@pytest.mark.parametrize(
    ("override", "table", "key", "value"),
    [
        ("local.lr=0.5", "local", "lr", 0.5),
        ("local.optimizer=adam", "local", "optimizer", "adam"),
        ("local.optimizer='adam'", "local", "optimizer", "adam"),
        (" local.batch_size = 8", "local", "batch_size", 8),
        ("data.drop=['age']", "data", "drop", ("age",)),
        ("algorithm.weights={east=1, north=2, south=1}", "algorithm", "weights",
         {"east": 1.0, "north": 2.0, "south": 1.0}),
        ("evaluation.compare=false", "evaluation", "compare", False),
    ],
)  # fmt: skip
def test_override_replaces_a_value(job_file, override, table, key, value):
    spec = read_spec(job_file("[local]\nlr = 0.1\n"), [override])
    assert getattr(getattr(spec, table), key) == value


def test_override_makes_nested_tables_and_the_last_one_wins(job_file):
    spec = read_spec(
        job_file(), ["local.schedule.kind=step", "local.schedule.every=2", "local.schedule.every=3"]
    )
    assert (spec.local.schedule.kind, spec.local.schedule.every) == ("step", 3)


@pytest.mark.parametrize("text", ["local.lr", "=3", "local.=3", ".lr=3"])
def test_override_of_another_form_is_refused(job_file, text):
    with pytest.raises(JobError, match=r"table\.key=value") as caught:
        read_spec(job_file(), [text])
    assert caught.value.remedy


def test_override_cannot_smuggle_in_further_keys(job_file):
    with pytest.raises(JobError, match="valid integer"):
        read_spec(job_file(), ["seed=1\nname='x'"])


def test_defaults_make_a_runnable_job():
    spec = parse_job(SMALLEST)
    assert spec.algorithm.name == "fedavg"
    assert (spec.rounds.count, spec.rounds.mode, spec.rounds.cohort) == (10, "sync", "all")
    assert (spec.local.optimizer, spec.local.lr, spec.local.batch_size) == ("sgd", 0.01, 32)
    assert (spec.executor.name, spec.checkpoint.every, spec.seed) == ("serial", 1, 0)


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ({"local": {"lr": "0.1"}}, "local.lr"),
        ({"local": {"batch_size": 2.0}}, "local.batch_size"),
        ({"rounds": {"count": True}}, "rounds.count"),
        ({"evaluation": {"central": "yes"}}, "evaluation.central"),
        ({"data": {"source": "x.csv", "drop": "age"}}, "data.drop"),
        ({"local": 3}, "local"),
        ({"local": {"betas": [0.9]}}, "local.betas"),
    ],
)
def test_types_are_not_guessed(table, place):
    with pytest.raises(JobError) as caught:
        parse_job({**SMALLEST, **table})
    assert [fault.place for fault in caught.value.faults] == [place]


def test_choice_between_words_and_a_table_speaks_of_the_one_that_was_meant():
    with pytest.raises(JobError) as words:
        parse_job({**SMALLEST, "algorithm": {"weights": "exampels"}})
    (fault,) = words.value.faults
    assert (fault.place, fault.remedy) == ("algorithm.weights", "did you mean 'examples'?")
    with pytest.raises(JobError) as table:
        parse_job({**SMALLEST, "algorithm": {"weights": {"east": -1}}})
    (fault,) = table.value.faults
    assert fault.place == "algorithm.weights.east"
    assert "got -1" in fault.message


@pytest.mark.parametrize(
    ("tables", "place", "remedy"),
    [
        ({"roundz": {}}, "roundz", "did you mean 'rounds'?"),
        ({"local": {"momentun": 0.1}}, "local.momentun", "did you mean 'momentum'?"),
        ({"clock": {"delay": {"scael": 1}}}, "clock.delay.scael", "did you mean 'scale'?"),
        ({"data": {"source": "x", "columns": {"age": {"untis": ""}}}}, "data.columns.age.untis",
         "did you mean 'unit'?"),
        ({"data": {"source": "x", "partition": {"aplha": 1}}}, "data.partition.aplha",
         "did you mean 'alpha'?"),
    ],
)  # fmt: skip
def test_unknown_key_is_named_with_the_nearest_known_one(tables, place, remedy):
    with pytest.raises(JobError) as caught:
        parse_job({**SMALLEST, **tables})
    (fault,) = caught.value.faults
    assert (fault.place, fault.message, fault.remedy) == (place, "unknown key", remedy)


def test_only_conflicts_are_told_apart_from_invalid_jobs(job_file):
    with pytest.raises(JobConflict):
        load_job(job_file("[rounds]\nbuffer = 2\n"))
    with pytest.raises(JobError) as both:
        load_job(job_file("[rounds]\nbuffer = 2\n[algorithm]\nname = 'fedavgg'\n"))
    assert type(both.value) is JobError
    assert {fault.place for fault in both.value.faults} == {"rounds.buffer", "algorithm.name"}


def test_data_are_not_read_for_a_job_without_faults(folder, job_file):
    path = job_file()
    (folder / "rows.csv").unlink()
    assert load_job(path).name == "job"


def test_dates_are_no_numbers(job_file):
    with pytest.raises(JobError, match="seed"):
        read_spec(job_file(), ["seed=2024-01-01"])


def test_byte_order_mark_is_no_fault(job_file):
    path = job_file()
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_spec(path).name == "job"


def test_canonical_form_is_plain_json(job_file):
    spec = read_spec(job_file("[data.columns.age]\nrange = [0, 120]\n"))
    definition = spec.definition()
    assert json.loads(json.dumps(definition)) == definition
    assert "executor" not in definition
    assert "checkpoint" not in definition
