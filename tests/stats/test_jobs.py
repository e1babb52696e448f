"""A job file of statistics on one machine: the tables, the page, the numbers of atoll.stats, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import atoll
from atoll import stats
from atoll.cli.main import main
from atoll.core.errors import AtollError, Forbidden, JobError, StateError
from atoll.job.load import parse_job

EXAMPLE = Path(__file__).parents[2] / "examples" / "statistics" / "job.toml"


def written(folder, text, rows):
    pd.DataFrame(rows).to_csv(folder / "rows.csv", index=False)
    path = folder / "job.toml"
    path.write_text('[data]\nsource = "rows.csv"\nsite_column = "site"\n' + text)
    return path


def rows(count=40):
    return {
        "site": ["east", "south"] * count,
        "age": [40 + i % 37 for i in range(2 * count)],
        "dose": [i % 7 / 2 for i in range(2 * count)],
        "sex": ["f" if i % 4 < 2 else "m" for i in range(2 * count)],
        "days": [1 + i % 50 for i in range(2 * count)],
        "died": [int(i % 3 > 0) for i in range(2 * count)],
    }


EVERY = """
[[statistics.analyses]]
kind = "describe"
columns = ["age", "dose"]
[[statistics.analyses]]
kind = "table_one"
by = "sex"
columns = ["age", "dose"]
[[statistics.analyses]]
kind = "histogram"
column = "age"
edges = [50.0, 60.0]
[[statistics.analyses]]
kind = "cross_table"
row = "sex"
column = "died"
[[statistics.analyses]]
kind = "correlation"
columns = ["age", "dose"]
[[statistics.analyses]]
kind = "t_test"
column = "age"
by = "sex"
[[statistics.analyses]]
kind = "mann_whitney"
column = "age"
by = "sex"
whole = true
[[statistics.analyses]]
kind = "linear"
outcome = "dose"
features = ["age", "sex"]
[[statistics.analyses]]
kind = "kaplan_meier"
time = "days"
event = "died"
horizon = 50
by = "sex"
[[statistics.analyses]]
kind = "log_rank"
time = "days"
event = "died"
horizon = 50
by = "sex"
[[statistics.analyses]]
kind = "cox"
time = "days"
event = "died"
horizon = 50
features = ["age", "sex"]
"""
"""Every row of :func:`rows` has every value: all analyses are about the same persons."""


def test_the_example_runs_as_it_stands(tmp_path, capsys):
    assert main(["run", str(EXAMPLE), "--out", str(tmp_path / "run")]) == 0
    assert "results.json" in capsys.readouterr().out
    found = stats.read_results(tmp_path / "run")
    assert list(found) == ["table_one", "who-is-ill"]
    assert {"coef", "std err", "p"} <= set(found["who-is-ill"].table.columns)
    assert "odds ratio" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "odds ratio" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_job_finds_what_the_functions_find(tmp_path, executor):
    job = atoll.load_job(written(tmp_path, EVERY, rows()))
    run = atoll.simulate(job, executor=executor, workers=2, out=tmp_path / "run")
    federation = stats.Federation.of(pd.DataFrame(rows()), site="site")
    axis = stats.Axis(horizon=50)
    found = run.findings
    pd.testing.assert_frame_equal(
        stats.describe(federation, ["age", "dose"]),
        pd.DataFrame(found["describe"].records()).set_index("column"),
    )
    assert found["t_test"].result == stats.t_test(federation, "age", "sex")
    fit = stats.CoxRegression("days", "died", ["age", "sex"], axis).fit(federation)
    pd.testing.assert_frame_equal(fit.table, found["cox"].table)
    curves = stats.KaplanMeier("days", "died", axis, by="sex").fit(federation)
    pd.testing.assert_frame_equal(curves.table, found["kaplan_meier"].table)
    told = stats.read_results(tmp_path / "run")
    assert set(told) == set(found)
    assert told["linear"].table["coef"].tolist() == found["linear"].table["coef"].tolist()
    read = pd.read_csv(tmp_path / "run" / "tables" / "cox.csv")
    assert read["coef"].tolist() == fit.table["coef"].tolist()


def test_one_analysis_that_may_not_be_shown_does_not_hide_the_others(tmp_path):
    few = {**rows(), "died": [int(i < 8) for i in range(80)]}
    text = """
[[statistics.analyses]]
kind = "log_rank"
time = "days"
event = "died"
horizon = 50
by = "sex"
[[statistics.analyses]]
kind = "t_test"
column = "age"
by = "sex"
"""
    run = atoll.simulate(atoll.load_job(written(tmp_path, text, few)), out=tmp_path / "run")
    told = json.loads((tmp_path / "run" / "results.json").read_text())["analyses"]
    assert "a group has fewer than 11 events" in told[0]["refused"]
    assert told[1]["table"][0]["test"]
    assert "Not shown" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(Forbidden, match="log_rank"):
        _ = run.findings


def test_a_run_that_was_cut_off_goes_on_to_the_same_results(tmp_path):
    path = written(tmp_path, EVERY, rows())
    atoll.simulate(atoll.load_job(path), out=tmp_path / "whole")

    def cut(record):
        if record["round"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atoll.simulate(atoll.load_job(path), out=tmp_path / "cut", observers=[cut])
    atoll.simulate(atoll.load_job(path), out=tmp_path / "cut", resume=True)
    whole, again = ((tmp_path / name / "results.json").read_bytes() for name in ("whole", "cut"))
    assert again == whole


def test_a_site_with_few_persons_is_refused_by_name(tmp_path):
    few = rows()
    few["site"] = ["east"] * 70 + ["south"] * 10
    text = '[[statistics.analyses]]\nkind = "correlation"\ncolumns = ["age", "dose"]\n'
    with pytest.raises(Forbidden, match="at south: fewer than 11 persons"):
        atoll.simulate(atoll.load_job(written(tmp_path, text, few)))


def test_two_analyses_of_one_job_that_isolate_somebody_are_refused(tmp_path):
    some = rows()
    some["dose"][:5] = [None] * 5
    text = """
[[statistics.analyses]]
kind = "correlation"
columns = ["age", "days"]
[[statistics.analyses]]
kind = "correlation"
name = "with-dose"
columns = ["age", "dose"]
"""
    path = written(tmp_path, text, some)
    with pytest.raises(Forbidden, match="isolate fewer than 11"):
        atoll.simulate(atoll.load_job(path))
    run = atoll.simulate(atoll.load_job(path, ["statistics.complete=['dose']"]))
    assert run.status == "completed"


def test_all_faults_of_a_section_are_told_at_once():
    raw = {
        "data": {"source": "rows.csv", "target": "sick"},
        "rounds": {"count": 3},
        "privacy": {"clip": 1.0},
        "statistics": {
            "where": {"age": {"from": 3}},
            "analyses": [
                {"kind": "t_tst", "column": "age", "by": "sex"},
                {"kind": "histogram", "column": "age", "edges": [3.0, 1.0]},
                {"kind": "kaplan_meier", "time": "days", "event": "died"},
                {"kind": "describe", "columns": "age"},
                {"kind": "describe"},
            ],
        },
    }
    with pytest.raises(JobError) as caught:
        parse_job(raw, folder=Path())
    told = {fault.place: fault for fault in caught.value.faults}
    assert set(told) == {
        "data.target",
        "rounds.count",
        "privacy.clip",
        "statistics.where.age",
        "statistics.analyses.0.kind",
        "statistics.analyses.1",
        "statistics.analyses.2",
        "statistics.analyses.3.columns",
        "statistics.analyses.4.name",
    }
    assert told["statistics.analyses.0.kind"].remedy == "did you mean 't_test'?"
    assert "both must be positive" in told["statistics.analyses.2"].message


def test_analyses_that_do_not_fit_the_columns_are_all_named(tmp_path):
    text = """
[[statistics.analyses]]
kind = "t_test"
column = "age"
by = "dose"
[[statistics.analyses]]
kind = "histogram"
column = "sex"
edges = [1.0]
"""
    with pytest.raises(AtollError) as caught:
        atoll.simulate(atoll.load_job(written(tmp_path, text, rows())))
    places = [fault.place for fault in caught.value.faults]
    assert places == ["analysis 't_test'", "analysis 'histogram'"]


def test_a_folder_of_a_model_holds_no_results(tmp_path):
    with pytest.raises(StateError, match="no results of statistics"):
        stats.read_results(tmp_path)
