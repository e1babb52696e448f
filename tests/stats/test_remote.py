"""Institutions asked like a federation of tables: each question a job, each answer what the simulation has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import atoll
from atoll import stats
from atoll.connection import Connection
from atoll.core.errors import JobError, StateError
from atoll.job.from_file import job_from_spec


class Here(Connection):
    """A connection whose jobs are simulated on the spot."""

    def __init__(self, folder: Path, status: str = "completed") -> None:
        self.folder, self.status, self.specs = folder, status, []

    def submit(self, job, *, settings=(), sites=(), folder=None):
        data = job.data.model_copy(update={"site_column": "site"})
        spec = job.model_copy(update={"data": data})
        self.specs.append((spec, tuple(sites)))
        run = f"run-{len(self.specs)}"
        atoll.simulate(job_from_spec(spec, self.folder), out=self.folder / run)
        return run

    def wait(self, run, *, patience=600.0):
        return SimpleNamespace(status=self.status, reason="east does not answer")

    def result(self, run, folder):
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for file in (self.folder / run).glob("*.json"):
            (target / file.name).write_bytes(file.read_bytes())
        return target


@pytest.fixture
def rows(tmp_path):
    frame = pd.DataFrame(
        {
            "site": ["east", "west"] * 60,
            "age": [40 + i * i % 31 for i in range(120)],
            "sex": ["f" if i % 5 < 2 else "m" for i in range(120)],
        }
    )
    frame["sick"] = (frame["age"] + [i * 7 % 19 for i in range(120)] > 62).astype(int)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    return frame


def test_answers_are_those_of_a_federation_of_tables(tmp_path, rows):
    here = Here(tmp_path)
    deployed = stats.connect(here, source="rows.csv", complete=["age"], sites=["east", "west"])
    federation = stats.Federation.of(rows, site="site")
    pd.testing.assert_frame_equal(
        stats.describe(deployed, ["age"]), stats.describe(federation, ["age"]), check_dtype=False
    )
    model = stats.LogisticRegression("sick", ["age", "sex"], intercept="site")
    pd.testing.assert_frame_equal(model.fit(deployed).table, model.fit(federation).table)
    axis = stats.Axis(horizon=80)
    for ask in (
        stats.KaplanMeier("age", "sick", axis, by="sex").fit,
        stats.CoxRegression("age", "sick", ["sex"], axis).fit,
        stats.KMeans(["age", "sick"], 2, seed=3).fit,
        stats.GaussianMixture(["age"], 2).fit,
        stats.Standardisation(["age"]).fit,
        stats.ComBat(["age"], ["sex"]).fit,
        lambda whom: SimpleNamespace(table=stats.principal_components(whom, ["age", "sick"])),
    ):
        pd.testing.assert_frame_equal(ask(deployed).table, ask(federation).table)
    assert model.fit(deployed).summary() == model.fit(federation).summary()
    assert model.fit(deployed).title == "Logistic regression of sick over sites"
    assert [(spec.name, sites) for spec, sites in here.specs] == [
        (f"statistics-{kind}", ("east", "west"))
        for kind in (
            "describe",
            "logistic",
            "kaplan-meier",
            "cox",
            "k-means",
            "gaussian-mixture",
            "standardise",
            "combat",
            "principal-components",
            "logistic",
            "logistic",
        )
    ]


def test_tests_of_institutions_give_what_they_give_over_tables(tmp_path, rows):
    deployed = stats.connect(Here(tmp_path), source="rows.csv", complete=["age"])
    federation = stats.Federation.of(rows, site="site")
    for ask in (
        lambda whom: stats.t_test(whom, "age", "sex"),
        lambda whom: stats.anova(whom, "age", "sex"),
        lambda whom: stats.chi_squared(whom, "sick", "sex"),
        lambda whom: stats.fisher(whom, "sick", "sex"),
        lambda whom: stats.mann_whitney(whom, "age", "sex", bins=64),
        lambda whom: stats.log_rank(whom, "age", "sick", "sex", stats.Axis(horizon=80)),
    ):
        there, here = ask(deployed), ask(federation)
        assert type(there) is type(here)
        for name, value in vars(here).items():
            np.testing.assert_equal(getattr(there, name), value)


def test_what_institutions_told_goes_on_a_page(tmp_path, rows):
    deployed = stats.connect(Here(tmp_path), source="rows.csv", complete=["age"])
    told = stats.LogisticRegression("sick", ["age", "sex"]).fit(deployed)
    page = stats.write_page(tmp_path / "page.html", "Told", {"Risk": told}).read_text()
    assert "sex=m" in page
    assert f"aic {told.facts()['aic']:.5g}" in page


@pytest.mark.parametrize("kept", [None, "kept"])
def test_notes_of_the_whole_run_come_back_with_what_is_found(tmp_path, rows, kept):
    rows["seen"] = np.where(rows["age"] > 55, "2024-01-01 00:00:00", "2024-01-02 00:00:00")
    rows.loc[rows["site"] == "east", "seen"] += "+01:00"
    rows.to_csv(tmp_path / "rows.csv", index=False)
    folder = kept and tmp_path / kept
    deployed = stats.connect(Here(tmp_path), source="rows.csv", complete=["age"], folder=folder)
    federation = stats.Federation.of(rows, site="site")
    asked = stats.LinearRegression("age", ["seen"])
    (note,) = asked.fit(federation).notes[-1:]
    assert "+01:00 at east; no zone at west" in note
    assert asked.fit(deployed).notes == asked.fit(federation).notes
    assert asked.fit(deployed).folder == (folder and folder / "run-2")
    assert stats.read_results(tmp_path / "run-1").notes == (note,)


def test_a_run_that_did_not_complete_says_why(tmp_path, rows):
    deployed = stats.connect(Here(tmp_path, "failed"), source="rows.csv")
    with pytest.raises(StateError, match="run-1 failed: east does not answer"):
        stats.describe(deployed, ["age"])


def test_what_is_for_simulations_or_no_option_is_refused(tmp_path, rows):
    deployed = stats.connect(Here(tmp_path), source="rows.csv")
    with pytest.raises(JobError, match="'executor' is for simulations"):
        stats.LogisticRegression("sick", ["age"]).fit(deployed, executor="processes")
    with pytest.raises(JobError, match="1 fault"):
        stats.describe(stats.connect(Here(tmp_path), source="rows.csv", minimum=0), ["age"])
