"""Broken jobs: each tells the place, the value and the next step, ends with its documented status and
leaves nothing half-written behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

SITES = ("east", "north", "south")

Change = Callable[[Any], None]
"""What is done to the small job (see ``conftest.py``) after it was written."""


def cell(at: str, number: int, **changes: str) -> Change:
    return lambda small: small.cell(at, number, **changes)


def file(name: str, content: str | bytes) -> Change:
    return lambda small: small.file(name, content)


def files(**changes: Callable[[dict[str, str]], dict[str, str] | None]) -> Change:
    return lambda small: small.files(**changes)


def idx(content: bytes) -> Change:
    def write(small: Any) -> None:
        for part in ("train", "t10k"):
            small.file(f"idx/{part}-images-idx3-ubyte", content)
            small.file(f"idx/{part}-labels-idx1-ubyte", content)

    return write


@dataclass(frozen=True)
class Broken:
    """One broken job and what it must say."""

    name: str
    status: int
    says: Sequence[str]
    edits: Mapping[str, str | None] = field(default_factory=dict)
    change: Change = lambda small: None
    flags: Sequence[str] = ()


FOLDER = {"data.source": '"sites"', "data.site_column": None}
ONE = {
    "data.source": '"fcube"',
    "data.site_column": None,
    "data.target": None,
    "data.classes": None,
    "data.columns.age.range": None,
    "data.columns.age.unit": None,
    "data.columns.sex.type": None,
    "data.columns.sex.categories": None,
}
FIT = {
    "model.kind": '"function"',
    "model.fit": '"own.py:fit"',
    "model.evaluate": '"own.py:score"',
    "model.initial": '"own.py:start"',
}
OWN_FIT = """
import numpy as np
start = {"w": np.zeros(4)}
def fit(parameters, data, context):
    return parameters, None
def score(parameters, data):
    return {"loss": 1.0}
"""

# fmt: off
FAULTS_OF_KEYS = [
    Broken("unknown table", 2, ["locl: unknown key (did you mean 'local'?)"], {"locl.lr": "1.0"}),
    Broken(
        "misspelt key", 2, ["local.learning_rat", "unknown key"], {"local.learning_rat": "0.1"}
    ),
    Broken("near miss", 2, ["rounds.cout", "did you mean 'count'?"], {"rounds.cout": "3"}),
    Broken(
        "nested key",
        2,
        ["local.schedule.gama: unknown key (did you mean 'gamma'?)"],
        {"local.schedule.gama": "0.5"},
    ),
    Broken(
        "column key",
        2,
        ["data.columns.age.rnage: unknown key (did you mean 'range'?)"],
        {"data.columns.age.rnage": "[0, 1]"},
    ),
    Broken(
        "partition key",
        2,
        ["data.partition.client: unknown key (did you mean 'clients'?)"],
        {"data.partition.client": "3"},
    ),
    Broken("text for number", 2, ["local.lr", "valid number", "'0.1'"], {"local.lr": '"0.1"'}),
    Broken("number for text", 2, ["data.target", "valid string", "3"], {"data.target": "3"}),
    Broken("not a flag", 2, ["evaluation.central", "boolean", "1"], {"evaluation.central": "1"}),
    Broken("value for table", 2, ["clock", "got 3"], {"clock": "3", "name": '"x"'}),
    Broken("below range", 2, ["local.lr", "greater than 0", "got -0.1"], {"local.lr": "-0.1"}),
    Broken("above range", 2, ["clock.dropout", "less than 1", "1.5"],
           {"clock.dropout": "1.5"}),
    Broken("not finite", 2, ["local.lr", "finite number"], {"local.lr": "inf"}),
    Broken("unknown word", 2, ["rounds.mode", "'asynch'", "did you mean 'async'?"],
           {"rounds.mode": '"asynch"'}),
    Broken("bad name", 2, ["name:", "'../up'", "letters, digits"], {"name": '"../up"'}),
    Broken("no source", 2, ["data.source: this key is required"], {"data.source": None}),
    Broken("weights of a wrong kind", 2, ["algorithm.weights", "'exmples'", "'examples'"],
           {"algorithm.weights": '"exmples"'}),
    Broken("metric without a place", 2, ["stop.metric", "'auc'", "federated.NAME"],
           {"stop.metric": '"auc"'}),
]

FAULTS_OF_NAMES = [
    Broken("unknown algorithm", 2, ["algorithm.name", "'fedavgg'", "did you mean 'fedavg'?"],
           {"algorithm.name": '"fedavgg"'}),
    Broken("unknown option", 2, ["algorithm.momentun", "did you mean 'momentum'?"],
           {"algorithm.name": '"fedavgm"', "algorithm.momentun": "0.5"}),
    Broken("option out of range", 2, ["algorithm.momentum", "1.5", "[0, 1)"],
           {"algorithm.name": '"fedavgm"', "algorithm.momentum": "1.5"}),
    Broken("option of a wrong type", 2, ["algorithm.mu", "valid number", "'much'"],
           {"algorithm.name": '"fedprox"', "algorithm.mu": '"much"'}),
    Broken("unknown model", 2, ["model.kind", "'logistc'", "did you mean 'logistic'?"],
           {"model.kind": '"logistc"'}),
    Broken("unknown option of the model", 2, ["model.options.intercpt", "did you mean 'intercept'?"],
           {"model.options.intercpt": "true"}),
    Broken("unknown option of the network", 2, ["model.options.hiden", "did you mean 'hidden'?"],
           {"model.kind": '"mlp"', "model.options.hiden": "[3]"}),
    Broken("unknown loss", 2, ["model.loss", "'crossentropy'", "did you mean 'cross_entropy'?"],
           {"model.kind": '"mlp"', "model.loss": '"crossentropy"'}),
    Broken("unknown option of the source", 2, ["data.options.row", "did you mean 'rows'?"],
           {**ONE, "data.options.row": "9"}),
    Broken("option of the source out of range", 2, ["data.options.rows", "greater than or equal to 1"],
           {**ONE, "data.options.rows": "0"}),
    Broken("metric that is never computed", 2, ["stop.metric", "'acuracy'", "federated.accuracy"],
           {"stop.metric": '"federated.acuracy"'}),
    Broken("model file missing", 2, ["model.fit", "no file", "gone.py", "relative to the job file"],
           {**FIT, "model.fit": '"gone.py:fit"'}, file("own.py", OWN_FIT)),
    Broken("name missing in file", 2, ["model.fit", "own.py has no 'fitt'", "did you mean 'fit'?"],
           {**FIT, "model.fit": '"own.py:fitt"'}, file("own.py", OWN_FIT)),
    Broken("file that raises", 2, ["model.fit", "own.py cannot be imported", "ZeroDivisionError"],
           FIT, file("own.py", "1 / 0\n")),
    Broken("no colon", 2, ["model.fit", "'own.py'", "file.py:name"],
           {**FIT, "model.fit": '"own.py"'}, file("own.py", OWN_FIT)),
    Broken("start that raises", 2, ["model.initial", "KeyError"], FIT,
           file("own.py", OWN_FIT + "def start(rng):\n    return {}['w']\n")),
    Broken("torch without a factory", 2, ["model.factory", "needs it", "file.py:name"],
           {"model.kind": '"torch"'}),
]

CONFLICTS = [
    Broken("cohort too large", 2, ["rounds", "cohort of 7", "3 clients"],
           {"rounds.cohort": '"uniform"', "rounds.size": "7"}),
    Broken("quorum too large", 2, ["rounds", "quorum 5", "3 clients"], {"rounds.quorum": "5"}),
    Broken("cohort without size", 2, ["rounds.size", "set rounds.size"],
           {"rounds.cohort": '"uniform"'}),
    Broken("async key in sync mode", 2, ["rounds.buffer", "rounds.mode = 'async'"],
           {"rounds.buffer": "2"}),
    Broken("sync key in async mode", 2, ["rounds.deadline", "'async'", "remove it"],
           {"rounds.mode": '"async"', "rounds.deadline": "3.0"}),
    Broken("classes by a linear model", 2, ["model.kind", "'linear'", "use kind 'logistic'"],
           {"model.kind": '"linear"'}),
    Broken("feddyn by examples", 2, ["algorithm", "FedDyn", "'examples'", 'weights = "uniform"'],
           {"algorithm.name": '"feddyn"'}),
    Broken("scaffold around a fit function", 2, ["model.fit", "scaffold", "corrects = true"],
           {**FIT, "algorithm.name": '"scaffold"'}, file("own.py", OWN_FIT)),
    Broken("weight missing", 2, ["algorithm.weights", "no weight for client 'south'", "lambda_i"],
           {"algorithm.weights.east": "1.0", "algorithm.weights.north": "1.0"}),
    Broken("weight of a stranger", 2, ["'nrth' is not a client", "did you mean 'north'?"],
           {f"algorithm.weights.{s}": "1.0" for s in (*SITES, "nrth")}),
    Broken("negative weight", 2, ["algorithm.weights.east", "greater than or equal to 0", "-1"],
           {f"algorithm.weights.{s}": "-1.0" for s in SITES}),
    Broken("patience without a metric", 2, ["stop.metric", "'federated.loss'"],
           {"stop.patience": "2"}),
    Broken("watching what is switched off", 2, ["stop.metric", "evaluation.federated = true"],
           {"stop.metric": '"federated.loss"', "evaluation.federated": "false"}),
    Broken("watching without a test set", 2, ["stop.metric", "data.central_test = true"],
           {"stop.metric": '"central.loss"'}),
    Broken("never evaluated", 2, ["evaluation.every", "'federated.loss'", "1 or more"],
           {"stop.metric": '"federated.loss"', "evaluation.every": "0"}),
    Broken("partition of sites", 2, ["data.partition", "data.site_column", "remove one"],
           {"data.partition.clients": "3"}),
    Broken("target dropped", 2, ["data.drop", "'sick' is the target"], {"data.drop": '["sick"]'}),
    Broken("no target", 2, ["data.target", "name the column"], {"data.target": None}),
    Broken("key of another model", 2, ["model.factory", "no meaning", "torch"],
           {"model.factory": '"own.py:net"'}),
]

FAULTS_OF_DATA = [
    Broken("column missing at one site", 3,
           ["site 'north'", "column 'dose'", "is missing"], {**FOLDER, "data.columns.dose.range": "[0, 9]"},
           files(north=lambda r: {k: v for k, v in r.items() if k != "dose"})),
    Broken("column misspelt at one site", 3, ["site 'north'", "column 'dose'", "did you mean 'dosis'?"],
           FOLDER, files(north=lambda r: {k.replace("dose", "dosis"): v for k, v in r.items()})),
    Broken("out of the declared range", 3, ["site 'south', column 'age'", "430", "[18, 110] years",
           "in row 2"], {}, cell("south", 2, age="430")),
    Broken("text for a number", 3, ["site 'east', column 'age'", "'old'", "not a number", "in row 3"], {},
           cell("east", 3, age="old")),
    Broken("broken whole number", 3, ["site 'east', column 'dose'", "whole number", "row 1"],
           {"data.columns.dose.type": '"integer"'}),
    Broken("unknown category", 3, ["site 'north', column 'sex'", "'x'", "in row 8"], {},
           cell("north", 8, sex="x")),
    Broken("unknown class", 3, ["site 'north', column 'sick'", "'maybe'", "row 1"], {},
           cell("north", 1, sick="maybe")),
    Broken("target empty", 3, ["site 'south', column 'sick'", "missing in row 4"], {},
           cell("south", 4, sick="")),
    Broken("site without rows", 3, ["site 'north'", "has no rows", "leave the site out"], FOLDER,
           files(north=lambda r: None)),
    Broken("row without a site", 3, ["site column 'site'", "row 9"], {}, cell("north", 1, site="")),
    Broken("no such target", 3, ["data.target", "'sik'", "did you mean 'sick'?"],
           {"data.target": '"sik"'}),
    Broken("no such site column", 3, ["data.site_column", "'sit'", "did you mean 'site'?"],
           {"data.site_column": '"sit"'}),
    Broken("no such feature", 3, ["data.features", "'ages'", "did you mean 'age'?"],
           {"data.features": '["ages"]'}),
    Broken("regression on names", 2, ["data.task", "'no' at 'east'", "'classification'"],
           {"data.task": '"regression"', "data.classes": None, "model.kind": '"linear"'}),
    Broken("classification of a quantity", 2, ["data.task", "'dose' is 0.5", "'regression'"],
           {"data.target": '"dose"', "data.classes": None}),
    Broken("three classes by logistic", 2, ["model.kind", "3 classes: ", "'multinomial'", "data.classes"],
           {"data.classes": '["no", "yes", "maybe"]'}, cell("north", 1, sick="maybe")),
    Broken("source missing", 3, ["gone.csv", "no such file", "check the path"],
           {"data.source": '"gone.csv"'}),
    Broken("unknown format", 3, ["rows.xlsx", "'.xlsx'", ".csv"], {"data.source": '"rows.xlsx"'}),
    Broken("no files", 3, ["no table at", "sites/*.csv"], {**FOLDER, "data.source": '"sites/*.csv"'}),
    Broken("empty csv", 3, ["rows.csv", "is empty", "leave it out"], {}, file("rows.csv", "")),
    Broken("binary csv", 3, ["rows.csv", "is not UTF-8 text"], {}, file("rows.csv", bytes(range(256)))),
    Broken("parquet that is none", 3, ["rows.parquet", "cannot be read"],
           {"data.source": '"rows.parquet"'}, file("rows.parquet", b"PAR0 nothing")),
    Broken("npz that is none", 3, ["rows.npz", "cannot be read"],
           {"data.source": '"rows.npz"'}, file("rows.npz", b"PK\x03\x04 nothing")),
    Broken("images that are none", 3, ["train-images-idx3-ubyte", "bad magic"],
           {**ONE, "data.source": '"fashion_mnist"', "data.options.folder": '"idx"',
            "data.partition.clients": "2", "model.kind": '"multinomial"'},
           idx(b"not an image")),
    Broken("trace without its column", 3, ["times.csv", "no column seconds", "client,seconds"],
           {"clock.delay.kind": '"trace"', "clock.delay.trace": '"times.csv"'},
           file("times.csv", "client,second\neast,1\n")),
    Broken("trace with a word", 3, ["times.csv", "line 2", "'soon'"],
           {"clock.delay.kind": '"trace"', "clock.delay.trace": '"times.csv"'},
           file("times.csv", "client,seconds\neast,soon\n")),
    Broken("trace that is no text", 3, ["times.csv", "cannot be read", "check the file"],
           {"clock.delay.kind": '"trace"', "clock.delay.trace": '"times.csv"'},
           file("times.csv", bytes(range(128, 200)))),
    Broken("one class declared", 2, ["data, classes", "['no']", "two or more"],
           {"data.classes": '["no"]'}),
    Broken("categories of a number", 2, ["data, column 'age'", "set type = 'category'"],
           {"data.columns.age.categories": '["young"]'}),
    Broken("personal entry unknown", 2, ["model: personal pattern 'wieght'", "did you mean 'weight'?"],
           {"model.personal": '["wieght"]'}),
    Broken("half a range", 2, ["data.columns.age.range", "too few values"],
           {"data.columns.age.range": "[18]"}),
    Broken("trace without a client", 2, ["clock.delay.trace", "'south'"],
           {"clock.delay.kind": '"trace"', "clock.delay.trace": '"times.csv"'},
           file("times.csv", "client,seconds\neast,1\nnorth,1\n")),
    Broken("trace without a file", 2, ["clock.delay.trace", "needs a file"],
           {"clock.delay.kind": '"trace"'}),
]

COMMAND_LINE = [
    Broken("setting without a value", 2, ["--set 'local.lr'", "table.key=value"], flags=["--set", "local.lr"]),
    Broken("setting below a value", 2, ["'seed' is a value"], {"seed": "1"},
           flags=["--set", "seed.x=1"]),
    Broken("setting unknown", 2, ["local.lrr", "did you mean 'lr'?"], flags=["--set", "local.lrr=1"]),
    Broken("executor unknown", 2, ["executor.name", "'process'", "did you mean 'processes'?"],
           flags=["--executor", "process"]),
    Broken("seed below 0", 2, ["--seed", "atoll run"], flags=["--seed", "-1"]),
    Broken("resume and overwrite", 2, ["--resume", "--overwrite", "exclude"],
           flags=["--resume", "--overwrite"]),
    Broken("unknown flag", 2, ["--colour"], flags=["--colour"]),
]

# fmt: on
TABLE = [*FAULTS_OF_KEYS, *FAULTS_OF_NAMES, *CONFLICTS, *FAULTS_OF_DATA, *COMMAND_LINE]


@pytest.mark.parametrize("broken", TABLE, ids=lambda b: b.name.replace(" ", "-"))
def test_broken_job_says_where_what_and_what_next(
    broken: Broken, small: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    if broken.edits.get("model.kind") in ('"mlp"', '"torch"'):
        pytest.importorskip("torch")
    small.write(broken.edits)
    broken.change(small)
    before = sorted(small.folder.rglob("*"))
    status = small.run(*broken.flags)
    out, err = capsys.readouterr()
    flat = " ".join(err.split())
    assert status == broken.status, err
    assert out == ""
    assert "Traceback" not in err
    assert [part for part in broken.says if part not in flat] == [], err
    assert sorted(small.folder.rglob("*")) == before


def test_table_is_long_enough_and_names_each_case_once() -> None:
    names = [b.name for b in TABLE]
    assert len(names) >= 30
    assert len(set(names)) == len(names)
