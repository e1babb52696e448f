"""A statistic is an algorithm like any other: executors, run folders, checkpoints."""

import json

import numpy as np
import pytest
from growing import Growing

import atoll
from atoll.algorithms.statistics.analysis import solve
from atoll.algorithms.statistics.moments import Moments
from atoll.algorithms.statistics.quantiles import Quantiles
from atoll.algorithms.statistics.running import NoModel, Statistic
from atoll.core.errors import AtollError, QuorumError, StateError
from atoll.data.disclosure import Disclosure
from atoll.data.table import Table


def tables(sites):
    return {name: Table(columns) for name, columns in sites.items()}


def job(analysis, sites, rule=None, **stop):
    return atoll.Job(
        NoModel(),
        Statistic(analysis, tuple(sites), rule),
        stop=atoll.Stop(**{"rounds": 100, "max_aborts": 1, **stop}),
        schedule=atoll.Synchronous(quorum=len(sites)),
        evaluate_every=0,
        central=False,
        federated=False,
    )


def found(run):
    return run.job.algorithm.result(run.progress.state)


def bits(result):
    return {n: v.tobytes() for n, v in vars(result).items() if isinstance(v, np.ndarray)}


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_every_executor_gives_the_bits_of_the_direct_solution(sites, executor):
    analysis = Quantiles(("age", "weight"), (0.2, 0.5))
    run = atoll.simulate(job(analysis, sites), tables(sites), executor=executor, workers=2)
    assert run.status == "completed"
    assert bits(found(run)) == bits(solve(analysis, sites))


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_questions_may_change_their_shape(sites, executor):
    run = atoll.simulate(job(Growing(), sites), tables(sites), executor=executor, workers=2)
    assert found(run).shape == (9,)
    assert np.array_equal(found(run), solve(Growing(), sites))


def test_the_run_ends_when_the_analysis_does(sites):
    run = atoll.simulate(job(Moments(("age",)), sites), tables(sites))
    assert run.progress.rounds == 2


@pytest.mark.parametrize("analysis", [Quantiles(("age",)), Growing()], ids=["quantiles", "growing"])
def test_an_interrupted_run_goes_on_to_the_same_bits(sites, tmp_path, analysis):
    full = atoll.simulate(job(analysis, sites), tables(sites))
    with pytest.raises(KeyboardInterrupt):
        atoll.simulate(job(analysis, sites), tables(sites), out=tmp_path, observers=[killer(2)])
    again = atoll.simulate(job(analysis, sites), tables(sites), out=tmp_path, resume=True)
    assert again.progress.rounds == full.progress.rounds
    for name, slot in full.progress.state.slots.items():
        assert slot.shape == again.progress.state.slots[name].shape
        assert slot.tobytes() == again.progress.state.slots[name].tobytes()
    assert (tmp_path / "manifest.json").is_file()


def killer(number):
    def kill(record):
        if record["round"] == number:
            raise KeyboardInterrupt

    return kill


def test_other_data_do_not_continue_a_run(sites, tmp_path):
    analysis = Quantiles(("age",))
    with pytest.raises(KeyboardInterrupt):
        atoll.simulate(job(analysis, sites), tables(sites), out=tmp_path, observers=[killer(2)])
    sites["site-0"]["age"] = sites["site-0"]["age"] + 1
    with pytest.raises(AtollError, match="data"):
        atoll.simulate(job(analysis, sites), tables(sites), out=tmp_path, resume=True)


def test_a_site_that_cannot_answer_ends_the_run_and_is_named(sites):
    sites["site-2"]["age"] = np.full(60, np.inf)
    told = r"^a round .*not every site .*site-2 failed: column 'age' holds an infinite value"
    with pytest.raises(QuorumError, match=told):
        atoll.simulate(job(Moments(("age",)), sites), tables(sites))


def test_a_site_of_few_persons_does_not_answer_and_its_size_is_nowhere(sites, tmp_path):
    sites["site-0"] = {n: v[:10] for n, v in sites["site-0"].items()}
    rule = Disclosure(minimum=11)
    with pytest.raises(QuorumError, match=r"site-0 failed: .*fewer than 11 persons"):
        atoll.simulate(job(Moments(("age",)), sites, rule), tables(sites), out=tmp_path)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert "site-0" not in record["contributed"]


def test_a_result_is_refused_before_the_end(sites):
    run = atoll.simulate(job(Quantiles(("age",)), sites, rounds=3), tables(sites))
    with pytest.raises(StateError, match="3 rounds"):
        found(run)
