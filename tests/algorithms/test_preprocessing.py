from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.aggregation.exact import Fold
from atoll.algorithms.preprocessing import FitPreprocessor, fit_preprocessor
from atoll.core.contracts import Task, Weighting, Work
from atoll.core.errors import DataError, JobError
from atoll.core.layout import Layout
from atoll.core.local import LocalWork
from atoll.core.seeds import Seed
from atoll.data.preprocessing import Plan
from atoll.data.schema import Column, Schema
from atoll.data.table import Table
from atoll.runtime.client import Parts
from atoll.runtime.serial import SerialExecutor

SCHEMA = Schema(
    (
        Column("x"),
        Column("k", "integer", range=(0, 9)),
        Column("b", "boolean"),
        Column("g", "category", categories=("p", "q", "r")),
    ),
    "y",
    "regression",
)
PLANS = [
    Plan(scale_target=True),
    Plan(impute="constant", fill=3.0, indicate_missing=True),
    Plan(impute="none", encode="ordinal"),
]


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.lognormal(0, 4, n)
    x[rng.random(n) < 0.2] = np.nan
    b = rng.choice([0.0, 1.0, np.nan], n)
    g = rng.choice(np.array(["p", "q", None], object), n)
    return Table(
        {"x": x, "k": rng.integers(0, 9, n) * 1.0, "b": b, "g": g, "y": rng.normal(size=n)}
    )


def cut(table, bounds):
    edges = [0, *bounds, len(table)]
    return {f"s{i}": table.take(np.arange(a, b)) for i, (a, b) in enumerate(pairwise(edges))}


@settings(max_examples=30, deadline=None)
@given(
    bounds=st.lists(st.integers(0, 40), max_size=5).map(sorted),
    plan=st.sampled_from(PLANS),
    order=st.randoms(use_true_random=False),
)
def test_the_fit_over_sites_is_the_pooled_fit_bit_for_bit(bounds, plan, order):
    table = rows(40)
    shuffled = list(range(40))
    order.shuffle(shuffled)
    pooled = fit_preprocessor({"all": table}, plan, SCHEMA)["all"]
    spread = fit_preprocessor(cut(table.take(np.array(shuffled)), bounds), plan, SCHEMA)
    assert spread["s0"] == pooled


def test_the_fit_agrees_with_numpy_on_the_pooled_rows():
    table = rows(500, seed=4)
    rule = fit_preprocessor(cut(table, [100, 350]), Plan(impute="none"), SCHEMA)["s1"].rules[0]
    known = table["x"][~np.isnan(table["x"])]
    assert rule.shift == pytest.approx(known.mean(), rel=1e-12)
    assert rule.scale == pytest.approx(known.std(), rel=1e-12)


def test_every_site_gets_the_same_preprocessor_or_its_own():
    sites = cut(rows(40), [20])
    shared = fit_preprocessor(sites, Plan(), SCHEMA)
    assert shared["s0"] is shared["s1"]
    own = fit_preprocessor(sites, Plan(mode="site"), SCHEMA)
    assert own["s0"] != own["s1"]
    assert own["s1"] == fit_preprocessor({"s1": sites["s1"]}, Plan(), SCHEMA)["s1"]
    assert own["s0"].feature_names == own["s1"].feature_names


def test_a_plan_that_does_not_fit_is_refused_with_its_columns():
    with pytest.raises(JobError, match="column 'x': minmax needs a declared range"):
        fit_preprocessor({"a": rows(5)}, Plan(scale="minmax"), SCHEMA)


def work(site, data):
    return Work(
        client=site,
        weight=float(len(data)),
        trainer=None,
        data=data,
        local=LocalWork(),
        seed=Seed(0),
        round=0,
    )


def test_as_an_algorithm_it_fits_in_one_round():
    sites = cut(rows(40), [5, 20])
    algorithm = FitPreprocessor(Plan(), SCHEMA)
    assert algorithm.faults(Weighting(), LocalWork()) == []
    assert not algorithm.needs_correction
    start = algorithm.init(np.zeros(0, np.float32), Layout.of([]), len(sites))
    message = algorithm.broadcast(start)
    fold = Fold()
    for site, table in reversed(sites.items()):
        update, memory = algorithm.client(message, {}, work(site, table))
        assert (update.weight, update.examples, dict(memory)) == (1.0, len(table), {})
        fold.add(update)
    state = algorithm.server(start, fold.aggregate())
    assert (start.round, state.round) == (0, 1)
    assert not start.slots
    assert algorithm.result(state) == fit_preprocessor(sites, Plan(), SCHEMA)["s0"]


def test_a_site_without_a_typed_table_is_named():
    algorithm = FitPreprocessor(Plan(), SCHEMA)
    state = algorithm.init(np.zeros(0, np.float32), Layout.of([]), 1)
    with pytest.raises(DataError, match="at oslo: preprocessing is fitted on tables"):
        algorithm.client(algorithm.broadcast(state), {}, work("oslo", [1, 2]))


def test_faults_of_the_plan_are_those_of_the_algorithm():
    (fault,) = FitPreprocessor(Plan(scale="minmax"), SCHEMA).faults(Weighting(), LocalWork())
    assert fault.startswith("column 'x': minmax needs a declared range")


def test_an_executor_runs_it_like_any_other_algorithm():
    sites = cut(rows(40), [5, 20])
    algorithm = FitPreprocessor(Plan(), SCHEMA)
    state = algorithm.init(np.zeros(0, np.float32), Layout.of([]), len(sites))
    executor = SerialExecutor(Parts(algorithm, None, sites, Seed(0)))
    tasks = [Task(site, 0) for site in sites]
    aggregate, outcomes, memories = executor.run(tasks, {0: algorithm.broadcast(state)}, {})
    executor.close()
    assert [o.status for o in outcomes] == ["contributed"] * 3
    assert not memories
    fitted = algorithm.result(algorithm.server(state, aggregate))
    assert fitted == fit_preprocessor({"pooled": rows(40)}, Plan(), SCHEMA)["pooled"]


def test_columns_without_categories_or_numbers_add_up_too():
    for name, cells in (("x", [1.0, 3.0]), ("g", ["p", "q"])):
        column = Column("x") if name == "x" else Column("g", "category", categories=("p", "q"))
        schema = Schema((column,), "y", "regression")
        table = Table.of({name: cells, "y": [0, 1]})
        fitted = fit_preprocessor({"a": table, "b": table}, Plan(), schema)["a"]
        assert fitted.apply(table).features.tolist() == (
            [[-1], [1]] if name == "x" else [[1, 0], [0, 1]]
        )


def test_a_number_too_large_to_be_summed_is_named_with_its_site():
    sites = {"a": rows(3), "b": rows(3)}
    sites["b"] = Table({**sites["b"].columns, "x": np.array([1.0, -1e300, 2.0])})
    with pytest.raises(DataError, match="column 'x': value -1e\\+300 cannot be summed") as caught:
        fit_preprocessor(sites, Plan(), SCHEMA)
    assert caught.value.site == "b"
    assert "1e" not in caught.value.faults[0].withheld
