"""A job file of statistics on one machine: the tables, the page, the numbers of atoll.stats, clear refusals."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pandas as pd
import pytest

import atoll
from atoll import stats
from atoll.cli.main import main
from atoll.core.errors import AtollError, DataError, Forbidden, JobError, StateError
from atoll.job.load import parse_job
from atoll.report.folder import RunFolder
from atoll.simulation.audit import audit_job

EXAMPLE = Path(__file__).parents[2] / "examples" / "statistics" / "job.toml"


SURVIVAL = {"time": "days", "event": "died", "horizon": 50}
NUMBERS = {"columns": ["age", "dose"]}
BY_SEX = {"column": "age", "by": "sex"}

EVERY = {
    "describe": NUMBERS,
    "table_one": {"by": "sex", **NUMBERS},
    "histogram": {"column": "age", "edges": [50.0, 60.0]},
    "cross_table": {"row": "sex", "column": "died"},
    "correlation": NUMBERS,
    "t_test": BY_SEX,
    "mann_whitney": {**BY_SEX, "whole": True},
    "linear": {"outcome": "dose", "features": ["age", "sex"]},
    "kaplan_meier": {**SURVIVAL, "by": "sex"},
    "log_rank": {**SURVIVAL, "by": "sex"},
    "cox": {**SURVIVAL, "features": ["age", "sex"]},
}
"""Options by kind. Every row of :func:`rows` has every value: all are about the same persons."""


def rows(count=40):
    return {
        "site": ["east", "south"] * count,
        "age": [40 + i % 37 for i in range(2 * count)],
        "dose": [i % 7 / 2 for i in range(2 * count)],
        "sex": ["f" if i % 4 < 2 else "m" for i in range(2 * count)],
        "days": [1 + i % 50 for i in range(2 * count)],
        "died": [int(i % 3 > 0) for i in range(2 * count)],
    }


@pytest.fixture
def job(tmp_path):
    """Makes a job of a table and of analyses: options by kind, which is their name too."""

    def make(analyses, table=None, settings=()):
        pd.DataFrame(table or rows()).to_csv(tmp_path / "rows.csv", index=False)
        lines = ["[data]", 'source = "rows.csv"', 'site_column = "site"']
        for kind, options in analyses.items():
            lines.append("[[statistics.analyses]]")
            given = {"kind": kind, **options}
            lines += [f"{key} = {json.dumps(value)}" for key, value in given.items()]
        path = tmp_path / "job.toml"
        path.write_text("\n".join(lines))
        return atoll.load_job(path, settings)

    return make


def test_the_example_runs_as_it_stands(tmp_path, capsys):
    assert main(["run", str(EXAMPLE), "--out", str(tmp_path / "run")]) == 0
    assert "results.json" in capsys.readouterr().out
    found = stats.read_results(tmp_path / "run")
    assert list(found) == ["table_one", "who-is-ill", "trees"]
    assert {"coef", "std err", "p"} <= set(found["who-is-ill"].table.columns)
    assert "odds ratio" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "odds ratio" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_job_finds_what_the_functions_find(job, tmp_path, executor):
    found = atoll.simulate(job(EVERY), executor=executor, workers=2, out=tmp_path / "run").findings
    federation = stats.Federation.of(pd.DataFrame(rows()), site="site")
    axis = stats.Axis(horizon=50)
    asked = {
        "describe": stats.describe(federation, ["age", "dose"]),
        "cox": stats.CoxRegression("days", "died", ["age", "sex"], axis).fit(federation).table,
        "kaplan_meier": stats.KaplanMeier("days", "died", axis, by="sex").fit(federation).table,
    }
    for kind, table in asked.items():
        pd.testing.assert_frame_equal(found[kind].table, table)
    assert found["t_test"].result == stats.t_test(federation, "age", "sex")


def test_what_a_run_writes_is_what_it_found(job, tmp_path):
    found = atoll.simulate(job(EVERY), out=tmp_path / "run").findings
    told = stats.read_results(tmp_path / "run")
    assert list(told) == list(found) == list(EVERY)
    for kind in ("linear", "kaplan_meier", "cross_table"):
        pd.testing.assert_frame_equal(told[kind].table, found[kind].table)
    read = pd.read_csv(tmp_path / "run" / "tables" / "cox.csv")
    assert read["coef"].tolist() == found["cox"].table["coef"].tolist()


def test_notes_of_the_whole_run_are_told_from_the_run_as_from_its_folder(job, tmp_path):
    days = [f"2024-01-0{1 + i // 2 % 2}" + " 10:00Z" * (i % 2) for i in range(80)]
    asked = {"table_one": {"columns": ["age", "seen"]}}
    run = atoll.simulate(job(asked, {**rows(), "seen": days}), out=tmp_path / "run")
    (note,) = run.findings.notes
    assert "(no zone at east; Z at south)" in note
    assert stats.read_results(tmp_path / "run").notes == (note,)
    assert run.manifest["notes"] == [note]
    assert "no zone at east; Z at south" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_kept_in_memory_is_written_as_one_that_had_a_folder(job, tmp_path, capsys):
    options = {"outcome": "died", "features": ["age"], "trees": 2}
    asked = {"gradient_boosting": options, "describe": NUMBERS}
    run = atoll.simulate(job(asked), out=tmp_path / "run")
    run.report(tmp_path / "copy")
    for name in ("results.json", "report.html", "tables/describe.csv"):
        assert (tmp_path / "copy" / name).read_text() == (tmp_path / "run" / name).read_text()
    assert [p.name for p in (tmp_path / "copy" / "models").iterdir()] == ["gradient_boosting.json"]
    atoll.simulate(job({"describe": NUMBERS}), out=tmp_path / "copy", overwrite=True)
    assert not (tmp_path / "copy" / "models").exists()
    (tmp_path / "run" / "report.html").unlink()
    assert main(["report", str(tmp_path / "run")]) == 5
    assert "--resume" in capsys.readouterr().err
    again = job(asked)
    atoll.simulate(again, out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "report.html").is_file()


def test_one_analysis_that_may_not_be_shown_does_not_hide_the_others(job, tmp_path):
    few = {**rows(), "died": [int(i < 8) for i in range(80)]}
    asked = {kind: EVERY[kind] for kind in ("log_rank", "t_test")}
    run = atoll.simulate(job(asked, few), out=tmp_path / "run")
    told = json.loads((tmp_path / "run" / "results.json").read_text())["analyses"]
    assert "a group has fewer than 11 events" in told[0]["refused"]
    assert told[1]["table"][0]["test"]
    assert "Not shown" in (tmp_path / "run" / "report.html").read_text()
    for found in (run.findings, stats.read_results(tmp_path / "run")):
        assert list(found) == ["t_test"]
        assert found["t_test"].table["test"].tolist()
        assert found.get("log_rank") is None
        assert list(found.refused) == ["log_rank"]
        with pytest.raises(Forbidden, match="'log_rank' is not shown: a group has fewer") as caught:
            _ = found["log_rank"]
        assert caught.value.remedy == found.refused["log_rank"].remedy
        with pytest.raises(KeyError, match="cox"):
            _ = found["cox"]


def test_an_analysis_that_refuses_its_rows_says_so_from_the_folder_as_from_the_run(job, tmp_path):
    asked = {"linear": {"outcome": "dose", "features": ["age"]}, "describe": NUMBERS}
    run = atoll.simulate(job(asked, {**rows(), "dose": [0.1] * 80}), out=tmp_path / "run")
    for found in (run.findings, stats.read_results(tmp_path / "run")):
        assert list(found) == ["describe"]
        error = found.refused["linear"]
        assert type(error) is DataError
        assert error.remedy == run.findings.refused["linear"].remedy
        assert error.message == run.findings.refused["linear"].message


def test_the_terminal_names_what_is_refused_with_the_reason(job, tmp_path, capsys):
    few = {**rows(), "died": [int(i < 8) for i in range(80)], "dose": [0.1] * 80}
    job({kind: EVERY[kind] for kind in ("log_rank", "t_test", "linear")}, few)
    asked = ["run", str(tmp_path / "job.toml"), "--out", str(tmp_path / "run"), "--quiet"]
    assert main(asked) == 0
    out = capsys.readouterr().out
    error = stats.read_results(tmp_path / "run").refused["log_rank"]
    line = "refused    analysis 'log_rank' is not shown: a group has fewer than 11 events"
    assert f"{line}\n             next: {error.remedy}\n" in out
    assert "refused    analysis 'linear' is not shown: outcome 'dose' is the same" in out
    assert out.count("refused ") == 2
    assert main([*asked, "--resume", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["refused"]
    assert list(told) == ["log_rank", "linear"]
    assert told["log_rank"] == {
        "code": Forbidden.code,
        "message": error.message,
        "remedy": error.remedy,
    }


@pytest.mark.parametrize(
    ("asked", "status"), [("log_rank", Forbidden.exit_status), ("linear", DataError.exit_status)]
)
def test_a_run_that_may_show_nothing_ends_with_the_status_of_the_refusal(
    job, tmp_path, capsys, asked, status
):
    few = {**rows(), "died": [int(i < 8) for i in range(80)], "dose": [0.1] * 80}
    job({asked: EVERY[asked]}, few)
    run = ["run", str(tmp_path / "job.toml"), "--out", str(tmp_path / "run"), "--quiet"]
    assert main(run) == status
    assert f"analysis {asked!r} is not shown" in capsys.readouterr().out
    assert main([*run, "--resume"]) == status
    capsys.readouterr()


def test_a_run_that_shows_all_refuses_nothing(job, tmp_path, capsys):
    job({"describe": NUMBERS})
    run = ["run", str(tmp_path / "job.toml"), "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == {}
    assert main([*run, "--resume"]) == 0
    assert "refused" not in capsys.readouterr().out


def test_results_of_earlier_versions_name_no_kind_of_refusal(tmp_path):
    old = {"analyses": [{"name": "cox", "refused": "too few persons\n  next: ask for less"}]}
    (tmp_path / "results.json").write_text(json.dumps(old))
    with pytest.raises(Forbidden) as caught:
        _ = stats.read_results(tmp_path)["cox"]
    assert caught.value.message == "analysis 'cox' is not shown: too few persons"
    assert caught.value.remedy == "ask for less"


def test_a_run_that_was_cut_off_goes_on_to_the_same_results(job, tmp_path):
    atoll.simulate(job(EVERY), out=tmp_path / "whole")

    def cut(record):
        if record["round"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atoll.simulate(job(EVERY), out=tmp_path / "cut", observers=[cut])
    atoll.simulate(job(EVERY), out=tmp_path / "cut", resume=True)
    whole, again = ((tmp_path / name / "results.json").read_bytes() for name in ("whole", "cut"))
    assert again == whole


def test_ctrl_c_ends_a_run_of_statistics_in_order_and_it_goes_on(
    job, tmp_path, capsys, monkeypatch
):
    atoll.simulate(job(EVERY), out=tmp_path / "whole")
    again = ["run", str(tmp_path / "job.toml"), "--out", str(tmp_path / "cut"), "--quiet"]

    def heard(self, record, written=RunFolder.append):
        written(self, record)
        if record["round"] == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", heard)
        assert main(again) == 130
    told = capsys.readouterr()
    assert "status     interrupted, 3 rounds" in told.out
    assert "results" not in told.out
    assert told.err.endswith("interrupted; continue with the same command and --resume\n")
    assert "interrupted" in (tmp_path / "cut" / "report.html").read_text()
    assert main([*again, "--resume"]) == 0
    for name in ("results.json", "report.html"):
        assert (tmp_path / "cut" / name).read_text().replace("cut", "whole") == (
            tmp_path / "whole" / name
        ).read_text()


def test_statistics_have_no_model_to_attack(job):
    with pytest.raises(JobError, match="statistics train none"):
        audit_job(job(EVERY))


def test_what_has_not_ended_has_found_nothing(job, tmp_path):
    run = atoll.simulate(
        job(EVERY), out=tmp_path / "run", observers=[lambda _: signal.raise_signal(signal.SIGINT)]
    )
    assert run.status == "interrupted"
    with pytest.raises(StateError, match="has not finished after 1 rounds"):
        _ = run.findings
    assert run.report(tmp_path / "elsewhere").is_file()


def test_a_site_with_few_persons_is_refused_by_name(job):
    few = {**rows(), "site": ["east"] * 70 + ["south"] * 10}
    with pytest.raises(Forbidden, match="at south: fewer than 11 persons"):
        atoll.simulate(job({"correlation": NUMBERS}, few))


def test_a_declared_column_that_a_site_does_not_have_is_named_with_the_nearest(job):
    """Misspelt, it declared its codes for missing values of nothing, and they were counted as values."""
    made = job({"describe": {}}, settings=["data.columns.Age.missing=[40]"])
    with pytest.raises(DataError) as caught:
        atoll.simulate(made, out=None)
    faults = caught.value.faults
    assert [f.place for f in faults] == ["site 'east', column 'Age'", "site 'south', column 'Age'"]
    assert "'age'" in faults[0].remedy


def test_a_median_that_is_not_reached_is_not_called_suppressed(job, tmp_path):
    table = {**rows(), "died": [int(i % 9 == 0) for i in range(80)]}
    made = job({"kaplan_meier": SURVIVAL}, table, ["statistics.minimum=1"])
    run = atoll.simulate(made, out=tmp_path / "run")
    (note,) = run.findings["kaplan_meier"].notes
    assert note == "the median is not reached, as more than half stay: all"
    told = stats.read_results(tmp_path / "run")["kaplan_meier"]
    page = stats.write_page(tmp_path / "page.html", "told", {"curve": told}).read_text()
    assert "median of all -." in page
    assert "suppressed" not in page


def test_categories_that_are_declared_twice_are_refused(job):
    with pytest.raises(JobError, match=r"data.columns.sex.categories: hold one twice"):
        job({"table_one": {}}, settings=["data.columns.sex.categories=['f', 'm', 'f']"])


def test_two_analyses_of_one_job_that_isolate_somebody_are_refused(job):
    some = rows()
    some["dose"][:5] = [None] * 5
    asked = {"correlation": {"columns": ["age", "days"]}, "principal_components": NUMBERS}
    with pytest.raises(Forbidden, match="isolate fewer than 11"):
        atoll.simulate(job(asked, some))
    run = atoll.simulate(job(asked, some, ["statistics.complete=['dose']"]))
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


def test_analyses_that_do_not_fit_the_columns_are_all_named(job):
    asked = {
        "t_test": {"column": "age", "by": "dose"},
        "histogram": {"column": "sex", "edges": [1.0]},
    }
    with pytest.raises(AtollError) as caught:
        atoll.simulate(job(asked))
    places = [fault.place for fault in caught.value.faults]
    assert places == ["analysis 't_test'", "analysis 'histogram'"]


def test_a_folder_of_a_model_holds_no_results(tmp_path):
    with pytest.raises(StateError, match="no results of statistics"):
        stats.read_results(tmp_path)
