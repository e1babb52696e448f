"""A run whose sites are apart ends in the bits of its simulation."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from apart_sites import deployment, islands_apart, sent

import atoll
from atoll.core.contracts import Examples
from atoll.core.errors import (
    DataError,
    JobConflict,
    JobError,
    LayoutError,
    WireError,
)
from atoll.data.readers import read_table, sites_from_column
from atoll.data.table import Table
from atoll.job import deployed
from atoll.job.from_file import job_from_spec
from atoll.job.load import parse_job, read_spec
from atoll.job.package import pack, unpack
from atoll.report.folder import plain

HEART = Path(__file__).parents[2] / "examples" / "heart"


def simulated(spec, folder):
    return atoll.simulate(job_from_spec(spec, folder), executor="serial")


def tables_in(folder, spec):
    """The tables of the sites, each in its own file as a site would have it."""
    sites = sites_from_column(read_table(folder / spec.data.source), spec.data.site_column)
    lines = (folder / spec.data.source).read_text(encoding="utf-8").splitlines()
    at = lines[0].split(",").index(spec.data.site_column)
    for site in sites:
        own = [line for line in lines[1:] if line.split(",")[at] == site]
        text = "\n".join([lines[0], *own])
        (folder / f"{site}.own.csv").write_text(text + "\n", encoding="utf-8")
    return {site: read_table(folder / f"{site}.own.csv") for site in sites}


def test_heart_at_four_hospitals_is_the_simulation_to_the_bit(tmp_path):
    (tmp_path / "heart.csv").write_bytes((HEART / "heart.csv").read_bytes())
    spec = read_spec(HEART / "job.toml", ["evaluation.compare=false"])
    run = simulated(spec, HEART)
    there = deployment(spec, tmp_path, tables_in(tmp_path, spec))
    progress, records = there.run()
    assert progress.state.parameters.tobytes() == run.vector.tobytes()
    assert there.model_hash() == run.model_hash
    assert there.job.hash() == run.manifest["job_hash"]
    assert (progress.best.round, progress.best.value) == (
        run.progress.best.round,
        run.progress.best.value,
    )
    for mine, theirs in zip(records, run.rounds, strict=True):
        for key in ("version", "invited", "contributed", "missing", "sites", "model_hash"):
            assert plain(mine)[key] == theirs[key], key
    islands = there.job.islands(0)
    assert list(islands.cards) == sent(run.manifest["cards"])
    assert [len(rows) for rows in islands.train.values()] == [151, 147, 61, 100]


LINEAR = {"local": {"batch_size": 4, "lr": 0.1}}
JOBS = {
    "sampled": {"rounds": {"cohort": "uniform", "size": 2}},
    "scaffold": {"algorithm": {"name": "scaffold"}},
    "fednova": {"algorithm": {"name": "fednova"}, "local": {"batch_size": 3, "momentum": 0.5}},
    "given weights": {"algorithm": {"weights": {"east": 1.0, "north": 2.5, "south": 0.5}}},
    "personal": {"model": {"personal": ["intercept"]}},
    "every site for itself": {"preprocessing": {"mode": "site", "impute": "constant"}},
    "multinomial in single precision": {"model": {"kind": "multinomial", "dtype": "float32"}},
    "stopped early": {"stop": {"metric": "federated.loss", "patience": 1, "min_delta": 10.0}},
    "regression": {
        "data": {"target": "dose", "task": "regression"},
        "model": {"kind": "linear"},
        "preprocessing": {"scale_target": True, "indicate_missing": True},
    },
    "mlp": {"model": {"kind": "mlp", "options": {"hidden": [3]}}},
    "mlp in groups": {"model": {"kind": "mlp", "path": "algebra"}},
    "mlp in lanes": {"model": {"kind": "mlp", "lanes": 2}},
    "mlp with a head of its own": {"model": {"kind": "mlp", "personal": ["3.*"]}},
}


@pytest.mark.parametrize("tables", JOBS.values(), ids=JOBS.keys())
def test_a_deployed_run_is_the_simulation_to_the_bit(folder, spec_of, tables):
    if tables.get("model", {}).get("kind") == "mlp":
        pytest.importorskip("torch")
    spec = spec_of(**{**LINEAR, "rounds": {"count": 4}, "evaluation": {"compare": False}, **tables})
    there = deployment(spec, folder, tables_in(folder, spec))
    assert there.model_hash() == simulated(spec, folder).model_hash
    assert there.parts.trainer.explain(there.job.local, None) == there.answers["east"]["way"]


def test_personal_entries_start_whole_and_only_the_shared_region_travels(folder, spec_of):
    spec = spec_of(model={"personal": ["intercept"]})
    there = deployment(spec, folder, tables_in(folder, spec))
    layout = there.parts.trainer.layout
    assert (layout.size, layout.shared) == (5, slice(0, 4))
    assert there.parts.trainer.initial(there.parts.seed).shape == (5,)
    assert there.run()[0].state.parameters.shape == (4,)


OWN = """
from nets.layers import slope
from steps import WIDTH

def start(rng):
    return {"w": rng.normal(size=WIDTH)}

def fit(parameters, data, context):
    w = parameters["w"]
    for _ in range(int(context.epochs)):
        w = w - context.lr * slope(w, data, context.rng)
    return {"w": w}, {"loss": float(w @ w)}

def score(parameters, data):
    return {"loss": float(((data.features @ parameters["w"] - data.targets) ** 2).mean())}
"""


def test_a_function_model_runs_from_its_package(folder, spec_of, tmp_path_factory):
    (folder / "mine.py").write_text(OWN)
    (folder / "steps.py").write_text("WIDTH = 4\n")
    (folder / "nets").mkdir()
    (folder / "nets" / "__init__.py").write_text("from . import layers\n")
    (folder / "nets" / "layers.py").write_text(
        "from .noise import draw\n"
        "def slope(w, data, rng):\n"
        "    x = data.features\n"
        "    return x.T @ (x @ w - data.targets) / len(x) + draw(rng, len(w))\n"
    )
    (folder / "nets" / "noise.py").write_text(
        "def draw(rng, n):\n    return rng.normal(size=n) / 100\n"
    )
    model = {
        "kind": "function", "fit": "mine.py:fit", "evaluate": "mine.py:score",
        "initial": "mine.py:start",
    }  # fmt: skip
    spec = spec_of(model=model, rounds={"count": 3}, evaluation={"compare": False})
    there = tmp_path_factory.mktemp("site")
    unpack(pack(spec, folder), there)
    expected = simulated(spec, folder).model_hash
    for name in ("mine", "steps", "nets", "nets.layers", "nets.noise"):
        assert Path(sys.modules.pop(name).__file__).is_relative_to(folder)
    sys.path.remove(str(folder))
    assert deployment(spec, there, tables_in(folder, spec)).model_hash() == expected
    assert Path(sys.modules["nets.noise"].__file__).is_relative_to(there)


def images(tmp_path, **changed):
    rng = np.random.default_rng(0)
    sites = {
        site: {"features": rng.normal(size=(n, 3, 3)).astype("f4"), "targets": np.arange(n) % 3}
        for site, n in {"a": 9, "a-b": 14, "b": 6}.items()
    }
    sites["b"] |= changed
    for site, arrays in sites.items():
        np.savez(tmp_path / f"{site}.npz", **arrays)
    return {site: Examples(**arrays) for site, arrays in sites.items()}


ARRAYS = {
    "data": {"source": "*.npz", "test_fraction": 0.3, "stratify": True},
    "model": {"kind": "multinomial"},
    "evaluation": {"compare": False},
    "rounds": {"count": 3, "cohort": "uniform", "size": 2},
}


def test_sites_with_arrays_are_the_simulation_to_the_bit(tmp_path):
    rows = images(tmp_path)
    spec = parse_job(ARRAYS, folder=tmp_path)
    there = deployment(spec, tmp_path, rows)
    run = simulated(spec, tmp_path)
    assert there.model_hash() == run.model_hash
    assert list(there.parts.clients) == [c["site"] for c in run.manifest["cards"]]
    assert there.parts.trainer.layout.size == 9 * 3 + 3


def test_each_site_with_arrays_draws_a_split_of_its_own(tmp_path):
    images(tmp_path)
    spec = parse_job({**ARRAYS, "data": {"source": "*.npz", "test_fraction": 0.5}})
    rows = Examples(np.arange(40.0)[:, None], np.arange(40) % 3)
    islands = islands_apart(spec, {"a": rows, "b": rows})
    held = {site: set(own.held_out[site].features[:, 0]) for site, own in islands.items()}
    assert len(held["a"]) == len(held["b"]) == 20
    assert held["a"] != held["b"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"features": np.zeros((6, 4, 3), "f4")}, "rows have shape [4, 3], but [3, 3] at 'a'"),
        ({"targets": np.arange(6) - 1}, "a target is below 0"),
        ({"targets": np.arange(6) / 2}, "targets are no whole numbers"),
        ({"targets": np.zeros((6, 2))}, "targets are not one number a row"),
        ({"features": np.zeros((0, 3, 3), "f4"), "targets": np.zeros(0, int)}, "has no rows"),
    ],
)
def test_arrays_that_do_not_fit_are_faults_of_their_site(tmp_path, changed, told):
    rows = images(tmp_path, **changed)
    spec = parse_job(ARRAYS, folder=tmp_path)
    surveys = {site: sent(deployed.survey(spec, site, e)) for site, e in rows.items()}
    with pytest.raises(DataError) as caught:
        deployed.agree(spec, surveys)
    assert [(f.place, told in f.message) for f in caught.value.faults] == [("site 'b'", True)]
    with pytest.raises(DataError, match=r"site 'b'"):
        simulated(spec, tmp_path)


def test_the_server_s_half_needs_no_torch_and_no_code_of_the_job(folder, spec_of, tmp_path):
    pytest.importorskip("torch")
    spec = spec_of(model={"kind": "mlp", "options": {"hidden": [3]}})
    there = deployment(spec, folder, tables_in(folder, spec))
    import json

    from atoll.job.package import spec_to_plain

    told = {"spec": spec_to_plain(spec), "answers": dict(there.answers)}
    (tmp_path / "told.json").write_text(json.dumps(told))
    np.save(tmp_path / "initial.npy", deployed.initial_vector(there.sites["east"]))
    code = (
        "import json, sys, numpy as np\n"
        "from atoll.job import deployed\n"
        "from atoll.job.package import spec_from_plain\n"
        f"told = json.load(open({str(tmp_path / 'told.json')!r}))\n"
        "spec = spec_from_plain(told['spec'])\n"
        "assert deployed.deployable(spec) == []\n"
        "layout = deployed.layout_from_plain(told['answers']['east']['layout'])\n"
        f"initial = np.load({str(tmp_path / 'initial.npy')!r})\n"
        "job, parts = deployed.coordinator(spec, layout, initial, told['answers'])\n"
        "job.algorithm.init(parts.trainer.initial(parts.seed), layout, len(parts.clients))\n"
        "print(job.hash(), sorted({'torch', 'pandas', 'ray'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == [spec.hash(), "[]\n"]


def coordinated(there, spec, layout=None, initial=None, **answers):
    """The server's half, with something changed."""
    return deployed.coordinator(
        spec,
        layout or there.parts.trainer.layout,
        there.parts.trainer.start if initial is None else initial,
        {**there.answers, **answers},
    )


@pytest.fixture
def ready(folder, spec_of):
    spec = spec_of()
    return deployment(spec, folder, tables_in(folder, spec)), spec


def test_sites_that_start_elsewhere_are_all_named(ready):
    there, spec = ready
    other = {site: {**there.answers[site], "initial": "0" * 64} for site in ("east", "south")}
    with pytest.raises(DataError) as caught:
        coordinated(there, spec, **other)
    assert [str(f) for f in caught.value.faults] == [
        f"site {site!r}: starts from another initial vector"
        " (compare versions of Python, NumPy and torch)"
        for site in ("east", "south")
    ]


def test_a_site_with_another_layout_is_named(ready):
    there, spec = ready
    wide = {**there.answers["north"]["layout"]}
    wide["entries"] = [["weight", [9], "float64", True, False, []]]
    with pytest.raises(DataError, match=r"site 'north': has built a model of another layout"):
        coordinated(there, spec, north={**there.answers["north"], "layout": wide})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rows": 0}, "rows"),
        ({"rows": True}, "rows"),
        ({"initial": "x"}, "initial"),
        ({"more": 1}, "more"),
        ({"layout": {"dtype": "float64"}}, "its layout is none"),
    ],
)
def test_an_answer_of_another_form_is_refused_by_the_name_of_its_site(ready, changed, told):
    there, spec = ready
    with pytest.raises(WireError, match=told) as caught:
        coordinated(there, spec, south={**there.answers["south"], **changed})
    assert caught.value.site == "south"


def test_an_initial_vector_of_another_size_is_refused(ready):
    there, spec = ready
    with pytest.raises(LayoutError, match="initial parameters"):
        coordinated(there, spec, initial=np.zeros(3))


def test_a_layout_from_elsewhere_is_checked(ready):
    there, _ = ready
    layout = there.parts.trainer.layout
    assert deployed.layout_from_plain(sent(deployed.layout_to_plain(layout))) == layout
    for wrong in ({}, {"entries": 1, "dtype": "float32"}, {"entries": [], "dtype": "int8"}):
        with pytest.raises(LayoutError):
            deployed.layout_from_plain(wrong)


def test_what_the_federation_cannot_give_is_found_when_it_agrees(folder, spec_of):
    spec = spec_of(rounds={"cohort": "uniform", "size": 9})
    tables = tables_in(folder, spec)
    surveys = {site: deployed.survey(spec, site, table) for site, table in tables.items()}
    with pytest.raises(JobError, match="a cohort of 9 from a federation of 3 clients"):
        deployed.agree(spec, surveys)


def test_the_server_trains_nothing(ready):
    standing = ready[0].parts.trainer
    start = standing.initial(None)
    start += 1
    assert not standing.start.any()
    for ask in (
        lambda: standing.fit(start, None, work=None, rule=None, seed=None, round=0),
        lambda: standing.gradient(start, None),
        lambda: standing.evaluate(start, None),
    ):
        with pytest.raises(JobConflict, match="only sites"):
            ask()


SIMULATED_ONLY = {
    "data.partition": {"data": {"partition": {}, "site_column": ""}},
    "data.source": {"data": {"source": "synthetic", "site_column": "", "target": ""}},
    "data.target": {"data": {"target": ""}},
    "clock.delay": {"clock": {"delay": {"scale": 1.0}}},
    "clock.availability": {"clock": {"availability": 0.5}},
    "clock.availability_trace": {"clock": {"availability_trace": "spans.csv"}},
    "clock.dropout": {"clock": {"dropout": 0.1}},
    "clock.partial": {"clock": {"partial": 0.1}},
    "rounds.over_selection": {"rounds": {"over_selection": 0.5, "cohort": "uniform", "size": 1}},
    "stop.virtual_seconds": {"stop": {"virtual_seconds": 3.0}},
    "model.options.exact_auc": {"model": {"options": {"exact_auc": True}}},
    "stop.metric": {"stop": {"metric": "central.loss"}},
    "executor.name": {"executor": {"name": "ray"}},
}


def raw_job(**tables):
    data = {"source": "rows.csv", "site_column": "site", "target": "sick"}
    return parse_job({**tables, "data": {**data, **tables.get("data", {})}})


@pytest.mark.parametrize("place", SIMULATED_ONLY)
def test_what_only_a_simulation_has_is_a_fault_of_a_deployment(place):
    assert [f.place for f in deployed.deployable(raw_job(**SIMULATED_ONLY[place]))] == [place]


def test_all_of_it_is_told_at_once_and_what_is_left_out_is_noted(ready):
    there, spec = ready
    assert deployed.deployable(spec) == []
    many = raw_job(clock={"dropout": 0.1}, executor={"name": "ray"}, data={"partition": {}})
    assert len(deployed.deployable(many)) == 3
    with pytest.raises(JobConflict, match=r"clock\.dropout"):
        coordinated(there, many)
    notes = there.job.islands(0).notes
    assert [n.partition(":")[0] for n in notes] == ["not compared with sites alone and pooled rows"]
    central = raw_job(data={"central_test": True}, evaluation={"compare": False})
    assert [n.partition(":")[0] for n in deployed.left_out(central)] == ["no central evaluation"]


def test_a_site_without_training_rows_is_named(ready, folder):
    there, spec = ready
    own = there.islands["east"]
    none = replace(own, train={"east": Examples(np.zeros((0, 4)), np.zeros(0, np.int64))})
    with pytest.raises(JobConflict, match="no rows") as caught:
        deployed.parts_at(spec, none, folder, "east")
    assert caught.value.site == "east"


def test_a_method_that_the_model_cannot_follow_is_told_at_the_site(ready, folder):
    there, spec = ready
    (folder / "plain.py").write_text(
        "start = {'w': __import__('numpy').zeros(2)}\ndef fit(p, d, c): return p, None\n"
    )
    model = {**spec.model.model_dump(), "kind": "function", "fit": "plain.py:fit",
             "evaluate": "plain.py:fit", "initial": "plain.py:start"}  # fmt: skip
    other = raw_job(model=model, algorithm={"name": "scaffold"})
    with pytest.raises(JobConflict, match="corrects the gradient") as caught:
        deployed.parts_at(other, there.islands["east"], folder, "east")
    assert caught.value.site == "east"


def test_a_site_column_may_stay_in_the_file_and_must_name_one_site(folder, spec_of):
    spec = spec_of()
    whole = read_table(folder / "rows.csv")
    apart = sites_from_column(whole, "site")
    for with_column in tables_in(folder, spec).values():
        assert "site" in with_column.columns
    bare = islands_apart(spec, apart)["east"].train["east"]
    kept = islands_apart(spec, tables_in(folder, spec))["east"].train["east"]
    assert bare.features.tobytes() == kept.features.tobytes()
    with pytest.raises(DataError, match=r"site 'east', column 'site': names 3 sites"):
        deployed.survey(spec, "east", whole)


def test_sums_of_other_columns_are_refused(folder, spec_of):
    spec = spec_of()
    tables = tables_in(folder, spec)
    surveys = {site: deployed.survey(spec, site, table) for site, table in tables.items()}
    schema = deployed.agree(spec, surveys)
    sums = deployed.column_sums_at(spec, schema, "east", tables["east"]).vectors
    short = {**sums, "levels": sums["levels"][1:]}
    broken = {**sums, "limbs": np.full_like(sums["limbs"], np.nan)}
    for wrong in ({}, short, broken):
        with pytest.raises(DataError, match="folded column sums do not fit"):
            deployed.islands_at(spec, schema, wrong, "east", tables["east"])


def test_nothing_is_added_up_where_each_site_preprocesses_for_itself(folder, spec_of):
    spec = spec_of(preprocessing={"mode": "site"})
    tables = tables_in(folder, spec)
    surveys = {site: deployed.survey(spec, site, table) for site, table in tables.items()}
    schema = deployed.agree(spec, surveys)
    update = deployed.column_sums_at(spec, schema, "east", tables["east"])
    assert sum(vector.size for vector in update.vectors.values()) == 1
    assert update.vectors["rows"].tolist() == [0.0]


def test_rows_changed_since_the_survey_are_told_at_the_site(folder, spec_of):
    spec = spec_of()
    tables = tables_in(folder, spec)
    surveys = {site: deployed.survey(spec, site, table) for site, table in tables.items()}
    schema = deployed.agree(spec, surveys)
    other = Table({**tables["east"].columns, "sex": np.array(["x"] * 8, object)})
    with pytest.raises(DataError, match="unknown category 'x'") as caught:
        deployed.column_sums_at(spec, schema, "east", other)
    assert caught.value.site == "east"
