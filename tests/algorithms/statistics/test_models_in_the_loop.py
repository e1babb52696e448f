"""Every model through the round loop, with its records and checkpoints: the bits of the direct solution."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

import numpy as np
import pytest

import atoll
from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.cluster import KMeans
from atoll.algorithms.statistics.cox import Cox
from atoll.algorithms.statistics.glm import GLM
from atoll.algorithms.statistics.glm_multinomial import Multinomial
from atoll.algorithms.statistics.glm_negative import NegativeBinomialRegression
from atoll.algorithms.statistics.harmonise import Standardise
from atoll.algorithms.statistics.harmonise_combat import ComBat
from atoll.algorithms.statistics.mixed import MixedModel
from atoll.algorithms.statistics.mixture import GaussianMixture
from atoll.algorithms.statistics.penalty import Penalty
from atoll.algorithms.statistics.running import NoModel, Statistic
from atoll.algorithms.statistics.survival import KaplanMeier
from atoll.algorithms.statistics.survival_axis import Axis
from atoll.algorithms.statistics.survival_logrank import LogRank
from atoll.data.table import Table

AXIS = Axis(30)
ANALYSES = {
    "linear": GLM("size", ["a", "b"], covariance="hc1"),
    "alone": GLM("size", []),
    "logistic": GLM("ill", ["a", "b"], family="binomial", covariance="site"),
    "sites": GLM("count", ["a"], family="poisson", intercept="site", offset="b"),
    "lasso": GLM("ill", ["a", "b"], family="binomial", penalty=Penalty(0.05, 1.0)),
    "gamma": GLM("time", ["a"], family="gamma"),
    "separated": GLM("ill", ["a", "tells"], family="binomial"),
    "negative": NegativeBinomialRegression("count", ["a"]),
    "multinomial": Multinomial("kind", [0, 1, 2], ["a", "b"]),
    "curves": KaplanMeier("time", "ill", AXIS, "kind", (0, 1, 2)),
    "log-rank": LogRank("time", "ill", "kind", (0, 1, 2), AXIS, strata="site"),
    "cox": Cox("time", "ill", ["a", "b"], AXIS),
    "cox by site": Cox("time", "ill", ["a", "b"], AXIS, strata="site"),
    "mixed": MixedModel("size", ["a"]),
    "k-means": KMeans(["a", "b"], 3, starts=2),
    "mixture": GaussianMixture(["a", "b"], 2, most=5),
    "standard": Standardise(["a", "b"]),
    "combat": ComBat(["a", "size"]),
}


def made():
    rng = np.random.default_rng(3)
    sites = {}
    for i, n in enumerate((25, 40, 35)):
        a, b = rng.normal(size=n), rng.normal(size=n)
        kind = rng.integers(0, 3, n).astype(float)
        ill = (rng.random(n) < 1 / (1 + np.exp(-a))) * 1.0
        sites[f"site-{i}"] = {
            "a": a,
            "b": b,
            "kind": kind,
            "ill": ill,
            "tells": ill * (rng.random(n) < 0.5),
            "count": rng.poisson(np.exp(0.5 * a) * rng.gamma(1, 1, n)).astype(float),
            "time": rng.integers(1, 30, n).astype(float),
            "size": 2 * a + i + rng.normal(size=n),
        }
    return sites


def job(analysis, sites):
    return atoll.Job(
        NoModel(),
        Statistic(analysis, tuple(sites)),
        stop=atoll.Stop(rounds=400, max_aborts=1),
        schedule=atoll.Synchronous(quorum=len(sites)),
        evaluate_every=0,
        central=False,
        federated=False,
    )


def bits(result):
    """All numbers of a result, nested ones as well."""
    if is_dataclass(result):
        return {f.name: bits(getattr(result, f.name)) for f in fields(result)}
    if isinstance(result, tuple):
        return [bits(part) for part in result]
    return np.asarray(result).tobytes() if isinstance(result, np.ndarray | float) else result


@pytest.mark.parametrize("name", ANALYSES)
def test_the_loop_finds_the_bits_of_the_direct_solution(name):
    sites, analysis = made(), ANALYSES[name]
    run = atoll.simulate(job(analysis, sites), {s: Table(c) for s, c in sites.items()})
    assert run.status == "completed"
    assert bits(run.job.algorithm.result(run.progress.state)) == bits(solve(analysis, sites))


@pytest.mark.parametrize("name", ["logistic", "cox", "mixed", "mixture"])
def test_a_killed_run_goes_on_to_the_same_bits(name, tmp_path):
    sites, analysis = made(), ANALYSES[name]
    tables = {s: Table(c) for s, c in sites.items()}

    def kill(record):
        if record["round"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atoll.simulate(job(analysis, sites), tables, out=tmp_path, observers=[kill])
    again = atoll.simulate(job(analysis, sites), tables, out=tmp_path, resume=True)
    assert bits(again.job.algorithm.result(again.progress.state)) == bits(solve(analysis, sites))


def test_what_leaves_a_site_has_a_shape_that_does_not_tell_how_many_rows():
    sites = made()
    for analysis in ANALYSES.values():
        state = analysis.start()
        for _ in range(4):
            question = analysis.ask(state)
            if question is None:
                break
            answers = [
                analysis.sums(question, data, site=i, sites=3)
                for i, data in enumerate(sites.values())
            ]
            few = {n: c[:3] for n, c in sites["site-0"].items()}
            other = analysis.sums(question, few, site=0, sites=3)
            shapes = {n: np.shape(v) for n, v in answers[0].items()}
            assert {n: np.shape(v) for n, v in other.items()} == shapes
            state = analysis.learn(state, {n: sum(a[n] for a in answers) for n in shapes})
