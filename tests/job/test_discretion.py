"""The rule on small counts in a job: no bit of a model depends on it, and a simulation keeps it where asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from apart_sites import deployment

import atoll
from atoll.core.errors import JobError, PolicyError
from atoll.core.metrics import BinnedAUC, Confusion, Count, Mean, RankedScores, Regression
from atoll.data.readers import read_table, sites_from_column
from atoll.data.telling import SUPPRESSED, Telling
from atoll.job import deployed
from atoll.job.between import discretion_of
from atoll.job.discretion import OPEN, Discretion
from atoll.job.from_file import job_from_spec
from atoll.job.load import read_spec
from atoll.job.schema import PrivacySpec

HEART = Path(__file__).parents[2] / "examples" / "heart"
SHORT = ["evaluation.compare=false", "rounds.count=3"]
ASKED = ["privacy.counts.minimum=11"]


def simulated(spec, folder=HEART):
    return atoll.simulate(job_from_spec(spec, folder), executor="serial")


def hospitals(spec):
    tables = sites_from_column(read_table(HEART / spec.data.source), spec.data.site_column)
    return dict(tables)


@pytest.fixture(scope="module")
def plain():
    """The heart job, without a rule."""
    return simulated(read_spec(HEART / "job.toml", SHORT))


def test_a_deployment_under_the_usual_rule_has_the_bits_of_the_simulation(tmp_path, plain):
    spec = read_spec(HEART / "job.toml", SHORT)
    rule = discretion_of(spec, 4, 11)
    assert not rule.masked
    there = deployment(spec, tmp_path, hospitals(spec), rule)
    assert there.model_hash() == plain.model_hash


def test_a_simulation_that_asks_for_the_rule_has_the_same_bits_and_other_cards(plain):
    asked = simulated(read_spec(HEART / "job.toml", [*SHORT, *ASKED]))
    assert asked.model_hash == plain.model_hash
    cards = {
        run: {card["site"]: card["classes"] for card in run.manifest["cards"]}
        for run in (plain, asked)
    }
    small = {"no": 8, "yes": 115}  # Switzerland has eight healthy patients
    assert cards[plain]["switzerland"] == small
    assert cards[asked]["switzerland"] == dict.fromkeys(small, SUPPRESSED)
    assert cards[asked]["cleveland"] == cards[plain]["cleveland"]


def test_a_simulation_and_a_deployment_of_such_a_job_tell_the_same(tmp_path):
    spec = read_spec(HEART / "job.toml", [*SHORT, *ASKED])
    there = deployment(spec, tmp_path, hospitals(spec), discretion_of(spec, 4))
    run = simulated(spec)
    assert there.model_hash() == run.model_hash
    assert there.job.hash() == run.manifest["job_hash"]
    told = [there.answers[site]["card"] for site in sorted(there.answers)]
    assert told == sorted(run.manifest["cards"], key=lambda card: card["site"])


def test_the_hash_of_a_job_that_asks_for_nothing_is_what_it_was():
    masked = PrivacySpec(aggregation="masked")
    spec = read_spec(HEART / "job.toml", SHORT).model_copy(update={"privacy": masked})
    assert "counts" not in spec.definition()["privacy"]
    asked = read_spec(HEART / "job.toml", [*SHORT, *ASKED])
    assert asked.definition()["privacy"]["counts"] == {"minimum": 11, "person": ""}


def test_a_small_site_of_a_simulation_is_refused_by_name(spec_of, folder):
    spec = spec_of(privacy={"counts": {"minimum": 11}, "aggregation": "plain"})
    with pytest.raises(PolicyError, match="fewer than 11 persons") as caught:
        simulated(spec, folder)
    assert caught.value.site == "east"


def test_clients_that_are_dealt_out_have_no_persons(spec_of, folder):
    dealt = {"kind": "iid", "clients": 2}
    data = {"source": "rows.csv", "target": "sick", "partition": dealt, "drop": ["site"]}
    text = {"data": data, "privacy": {"counts": {"minimum": 2}}}
    spec = spec_of(**{**text, "data": {**data, "site_column": ""}})
    with pytest.raises(JobError, match=r"privacy.counts"):
        simulated(spec, folder)


def test_a_job_makes_a_site_s_rule_stricter_and_never_weaker(spec_of):
    spec = spec_of(privacy={"counts": {"minimum": 20, "person": "patient"}})
    assert discretion_of(spec, 3, 11).minimum == 20
    assert discretion_of(spec, 3, 30).minimum == 30
    assert discretion_of(spec, 3, 30).person == "patient"
    assert discretion_of(spec, 3, 30, "name").person == "name"


def test_where_sums_are_masked_small_sites_are_welcome_unless_their_rows_are_counted():
    few, ten = Telling(11), np.arange(10)
    Discretion(11, masked=True).admit(few, ten, "a")
    assert not Discretion(11, masked=True).silent(few, ten)
    with pytest.raises(PolicyError):
        Discretion(11, masked=True, counted=True).admit(few, ten, "a")


def test_without_a_rule_nobody_is_refused():
    OPEN.admit(Telling(), np.arange(1), "a")
    assert not OPEN.silent(Telling(), np.arange(1))


STRICT = Discretion(11, strict=True)
LABELS = np.array([0, 1] * 30)
SCORES = np.linspace(0, 1, 60)


@pytest.mark.parametrize(
    "metric",
    [
        Count(3),
        Mean.of(0.1, 30),  # three of thirty
        Mean.of(0.9, 30),
        Mean.of(2.5, 4),
        Regression.of(np.arange(5.0), np.arange(5.0)),
        Confusion(((30, 3), (0, 30))),
        BinnedAUC.of(LABELS, SCORES),
    ],
)
def test_a_strict_rule_keeps_figures_with_few_persons_in_them(metric):
    exact = Mean(3, 30) if metric == Mean.of(0.1, 30) else metric
    exact = Mean(27, 30) if metric == Mean.of(0.9, 30) else exact
    assert STRICT.figures({"it": exact}, Telling(11)) == {}
    assert Discretion(11).figures({"it": exact}, Telling(11)) == {"it": exact}
    assert Discretion(11, strict=True, masked=True).figures({"it": exact}, Telling(11))


@pytest.mark.parametrize(
    "metric",
    [
        Count(0),
        Count(11),
        Mean.of(0.25, 60),
        Mean.of(1.234, 60),
        Regression.of(np.arange(60.0), np.arange(60.0)),
        Confusion(((30, 0), (11, 19))),
        BinnedAUC.of(LABELS, SCORES, bins=1),
    ],
)
def test_a_strict_rule_lets_other_figures_pass(metric):
    assert STRICT.figures({"it": metric}, Telling(11)) == {"it": metric}


def test_figures_count_rows_of_the_busiest_person_as_one():
    visits = Telling(11, np.repeat(np.arange(20), 3))
    assert STRICT.figures({"it": Count(30)}, visits) == {}
    assert STRICT.figures({"it": Count(31)}, visits) == {"it": Count(31)}


def test_the_survey_of_a_site_is_asked_for_persons_and_not_for_rows(spec_of, folder):
    table = dict(sites_from_column(read_table(folder / "rows.csv"), "site"))["east"]
    spec = spec_of()
    deployed.survey(spec, "east", table, Discretion(8))
    with pytest.raises(PolicyError):
        deployed.survey(spec, "east", table, Discretion(8, "sex"))


def test_exact_scores_of_rows_have_a_gate_of_their_own():
    assert STRICT.figures({"it": RankedScores((0.1,), (0.2,))}, Telling(11))
