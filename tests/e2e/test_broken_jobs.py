"""Broken jobs: each tells the place, the value and the next step, ends with its documented status and
leaves nothing half-written behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from atoll.cli.main import main

BASE = {
    "name": '"small"',
    "data.source": '"rows.csv"',
    "data.site_column": '"site"',
    "data.target": '"sick"',
    "data.classes": '["no", "yes"]',
    "data.columns.age.range": "[18, 110]",
    "data.columns.age.unit": '"years"',
    "data.columns.sex.type": '"category"',
    "data.columns.sex.categories": '["f", "m"]',
    "model.kind": '"logistic"',
    "local.lr": "0.1",
    "algorithm.name": '"fedavg"',
    "rounds.count": "2",
    "evaluation.compare": "false",
}
HEADER = ("site", "age", "dose", "sex", "sick")
SITES = ("east", "north", "south")


def rows() -> list[dict[str, str]]:
    """Three sites of eight people; the first of each is row 1 at its site."""
    return [
        {
            "site": site,
            "age": str(30 + 5 * i),
            "dose": f"{i % 3}.5",
            "sex": "fm"[i % 2],
            "sick": ("no", "yes")[(i // 2) % 2],
        }
        for site in SITES
        for i in range(8)
    ]


def text_of(table: Sequence[Mapping[str, str]], columns: Sequence[str] = HEADER) -> str:
    return "\n".join([",".join(columns), *(",".join(r[c] for c in columns) for r in table)]) + "\n"


def written(folder: Path, edits: Mapping[str, str | None]) -> Path:
    """The base job with some keys replaced (None: removed) and its table, on disk."""
    settings = {k: v for k, v in {**BASE, **edits}.items() if v is not None}
    tables: dict[str, list[str]] = {"": []}
    for key, value in settings.items():
        table, _, last = key.rpartition(".")
        tables.setdefault(table, []).append(f"{last} = {value}")
    lines = [
        line for table, body in tables.items() for line in ([f"[{table}]"] if table else []) + body
    ]
    (folder / "rows.csv").write_text(text_of(rows()))
    job = folder / "job.toml"
    job.write_text("\n".join(lines) + "\n")
    return job


def cell(at: str, number: int, **changes: str) -> Callable[[Path], None]:
    """Change one row, counted from 1 at its site."""

    def change(folder: Path) -> None:
        table = rows()
        table[SITES.index(at) * 8 + number - 1].update(changes)
        (folder / "rows.csv").write_text(text_of(table))

    return change


def file(name: str, content: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def files_of_sites(
    **changes: tuple[tuple[str, ...], list[dict[str, str]]],
) -> Callable[[Path], None]:
    """One file per site in ``sites/``; some with other columns or rows."""

    def write(folder: Path) -> None:
        (folder / "sites").mkdir()
        for site in SITES:
            own = [r for r in rows() if r["site"] == site]
            columns, table = changes.get(site, (HEADER[1:], own))
            (folder / "sites" / f"{site}.csv").write_text(text_of(table, columns))

    return write


@dataclass(frozen=True)
class Broken:
    """One broken job and what it must say."""

    name: str
    status: int
    says: Sequence[str]
    edits: Mapping[str, str | None] = field(default_factory=dict)
    change: Callable[[Path], None] = lambda folder: None
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
    Broken("above range", 2, ["clock.dropout", "less than or equal to 1", "1.5"],
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
    Broken("sync key in async mode", 2, ["rounds.deadline", "asynchronous", "remove it"],
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

HALF = [{**r, "sick": "no"} for r in rows() if r["site"] == "east"]

FAULTS_OF_DATA = [
    Broken("column missing at one site", 3,
           ["site 'north'", "column 'dose'", "is missing"], {**FOLDER, "data.columns.dose.range": "[0, 9]"},
           files_of_sites(north=(("age", "sex", "sick"), rows()[:8]))),
    Broken("column misspelt at one site", 3, ["site 'north'", "column 'dose'", "did you mean 'dosis'?"],
           FOLDER, files_of_sites(
               north=(("age", "dosis", "sex", "sick"), [{**r, "dosis": "1"} for r in rows()[:8]]))),
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
           files_of_sites(north=(HEADER[1:], []))),
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
    Broken("three classes by logistic", 2, ["model.kind", "3 classes", "'multinomial'"],
           {"data.classes": '["no", "yes", "maybe"]'}, cell("north", 1, sick="maybe")),
    Broken("source missing", 3, ["gone.csv", "no such file", "check the path"],
           {"data.source": '"gone.csv"'}),
    Broken("unknown format", 3, ["rows.xlsx", "'.xlsx'", ".csv"], {"data.source": '"rows.xlsx"'}),
    Broken("no files", 3, ["no table at", "sites/*.csv"], {**FOLDER, "data.source": '"sites/*.csv"'}),
    Broken("empty csv", 3, ["rows.csv", "cannot be read"], {}, file("rows.csv", "")),
    Broken("binary csv", 3, ["rows.csv", "cannot be read"], {}, file("rows.csv", bytes(range(256)))),
    Broken("parquet that is none", 3, ["rows.parquet", "cannot be read"],
           {"data.source": '"rows.parquet"'}, file("rows.parquet", b"PAR0 nothing")),
    Broken("npz that is none", 3, ["rows.npz", "cannot be read"],
           {"data.source": '"rows.npz"'}, file("rows.npz", b"PK\x03\x04 nothing")),
    Broken("images that are none", 3, ["train-images-idx3-ubyte", "bad magic"],
           {**ONE, "data.source": '"fashion_mnist"', "data.options.folder": '"idx"',
            "data.partition.clients": "2", "model.kind": '"multinomial"'},
           lambda folder: [file(f"idx/{n}", b"not an image")(folder) for n in (
               "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte",
               "t10k-labels-idx1-ubyte")] and None),
    Broken("trace without its column", 3, ["times.csv", "no column seconds", "client,seconds"],
           {"clock.delay.kind": '"trace"', "clock.delay.trace": '"times.csv"'},
           file("times.csv", "client,second\neast,1\n")),
    Broken("trace with a word", 3, ["times.csv", "line 2", "'soon'"],
           {"clock.delay.kind": '"trace"', "clock.delay.trace": '"times.csv"'},
           file("times.csv", "client,seconds\neast,soon\n")),
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


@pytest.fixture(autouse=True)
def _forget_own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job brings another ``own.py``; in life each has a process of its own."""
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    sys.modules.pop("own", None)


@pytest.mark.parametrize("broken", TABLE, ids=lambda b: b.name.replace(" ", "-"))
def test_broken_job_says_where_what_and_what_next(
    broken: Broken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = written(tmp_path, broken.edits)
    broken.change(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status = main(["run", str(job), "--out", str(tmp_path / "out"), *broken.flags])
    out, err = capsys.readouterr()
    flat = " ".join(err.split())
    assert status == broken.status, err
    assert out == ""
    assert "Traceback" not in err
    assert [part for part in broken.says if part not in flat] == [], err
    assert sorted(tmp_path.rglob("*")) == before


def test_table_is_long_enough_and_names_each_case_once() -> None:
    names = [b.name for b in TABLE]
    assert len(names) >= 30
    assert len(set(names)) == len(names)


def run(job: Path, *flags: str) -> int:
    return main(["run", str(job), "--out", str(job.parent / "out"), "--quiet", *flags])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_base_job_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(written(tmp_path, {})) == 0
    assert "completed, 2 rounds" in capsys.readouterr().out


def test_faults_of_job_data_and_federation_come_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = {
        "locl.lr": "1.0",
        "checkpoint.every": "-1",
        "local.batch_size": '"all"',
        "algorithm.name": '"fedprx"',
        "rounds.cohort": '"uniform"',
        "rounds.size": "9",
        "clock.delay.kind": '"trace"',
        "model.kind": '"logistik"',
    }
    job = written(tmp_path, edits)
    table = rows()
    table[0]["age"], table[23]["sex"] = "7", "z"
    (tmp_path / "rows.csv").write_text(text_of(table))
    assert run(job) == 2
    err = capsys.readouterr().err
    for part in (
        "locl: unknown key",
        "checkpoint.every",
        "local.batch_size",
        "'fedprx'",
        "cohort of 9",
        "clock.delay.trace",
        "site 'east', column 'age': 7 is outside",
        "site 'south', column 'sex': unknown category 'z'",
    ):
        assert part in err, f"{part!r} not in\n{err}"
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_faults_of_all_sites_and_a_cohort_too_large_come_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = written(tmp_path, {"rounds.cohort": '"uniform"', "rounds.size": "9"})
    table = rows()
    for number in (0, 8, 16):
        table[number]["age"] = "7"
    (tmp_path / "rows.csv").write_text(text_of(table))
    assert run(job) == 2
    err = capsys.readouterr().err
    assert "4 faults" in err
    assert all(f"site {site!r}, column 'age': 7 is outside" in err for site in SITES)
    assert "cohort of 9 from a federation of 3" in err


def test_faulty_table_produces_no_echoes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # With rounds.mode unread, buffer would seem to stand in a synchronous job.
    assert run(written(tmp_path, {"rounds.mode": '"asink"', "rounds.buffer": "2"})) == 2
    assert "1 fault" in capsys.readouterr().err


def test_single_class_site_is_allowed_and_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = written(tmp_path, FOLDER)
    files_of_sites(east=(HEADER[1:], HALF))(tmp_path)
    assert run(job) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert any("site 'east': a single class, 'no'" in note for note in manifest["notes"])
    assert "a single class" in (tmp_path / "out" / "report.html").read_text()


def test_toml_error_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.toml"
    job.write_text("name = 'x'\n[data\n")
    assert run(job) == 2
    err = capsys.readouterr().err
    assert "job.toml is not valid TOML" in err
    assert "line 2" in err


def test_missing_and_unreadable_job_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "gone.toml") == 2
    assert "gone.toml cannot be read: No such file" in capsys.readouterr().err
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe4'\n")
    assert run(tmp_path / "latin.toml") == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_earlier_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = written(tmp_path, {})
    assert run(job) == 0
    before = snapshot(tmp_path / "out")
    capsys.readouterr()
    assert run(job) == 5
    err = capsys.readouterr().err
    assert "holds an earlier run" in err
    assert "--resume" in err
    assert "--overwrite" in err
    assert snapshot(tmp_path / "out") == before
    assert run(job, "--overwrite") == 0


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume"]])
def test_foreign_folder_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    job = written(tmp_path, {})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("do not lose me")
    assert run(job, *flags) == 5
    err = capsys.readouterr().err
    assert "holds something else than a run: thesis.doc" in err
    assert "name a new or empty folder" in err
    assert snapshot(tmp_path / "out") == {"thesis.doc": b"do not lose me"}


def test_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = written(tmp_path, {})
    (tmp_path / "out").write_text("a file is in the way")
    assert run(job) == 5
    err = capsys.readouterr().err
    assert str(tmp_path / "out") in err
    assert "next:" in err
    assert (tmp_path / "out").read_text() == "a file is in the way"


def test_checkpoint_of_another_job_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = written(tmp_path, {})
    assert run(job) == 0
    before = snapshot(tmp_path / "out")
    assert run(job, "--resume", "--set", "local.lr=0.2") == 5
    err = capsys.readouterr().err
    assert "checkpoint" in err
    assert "another job" in err
    assert snapshot(tmp_path / "out") == before


def test_checkpoint_of_other_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = written(tmp_path, {"rounds.count": "2"})
    assert run(job) == 0
    (tmp_path / "out" / "manifest.json").unlink()
    cell("east", 1, age="31")(tmp_path)
    assert run(job, "--resume") == 5
    assert "another data set" in capsys.readouterr().err


def test_updates_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = OWN_FIT.replace(
        "return parameters, None", "return {'w': parameters['w'] + np.inf}, None"
    )
    job = written(tmp_path, {**FIT, "rounds.max_aborts": "2", "rounds.count": "5"})
    file("own.py", start)(tmp_path)
    assert main(["run", str(job), "--out", str(tmp_path / "out")]) == 4
    err = capsys.readouterr().err
    assert "2 rounds in a row could not commit" in err
    assert "without east, north, south" in err
    assert "Traceback" not in err
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    missing = [json.loads(line)["missing"] for line in lines]
    assert len(missing) == 2
    for record in missing:
        assert set(record) == set(SITES)
        assert all(reason.startswith("refused: ") for reason in record.values())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["status"].startswith("failed: 2 rounds in a row")


def test_learning_rate_without_measure_ends_with_a_quorum_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = {
        "model.kind": '"linear"',
        "data.task": '"regression"',
        "data.target": '"dose"',
        "data.classes": None,
        "local.lr": "1e30",
        "local.epochs": "20.0",
        "rounds.count": "40",
    }
    assert run(written(tmp_path, edits)) == 4
    err = capsys.readouterr().err
    assert "could not commit" in err
    assert "next:" in err


def test_fit_that_raises_names_client_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = written(tmp_path, FIT)
    file("own.py", OWN_FIT.replace("return parameters, None", "return 1 / 0"))(tmp_path)
    assert run(job) == 4
    err = capsys.readouterr().err
    assert "at east" in err
    assert "own.py" in err
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("edits", "status", "part"),
    [
        ({"local.lrr": "1.0"}, 2, "did you mean 'lr'?"),
        ({"data.source": '"gone.csv"'}, 3, "no such file"),
        ({}, 0, ""),
    ],
    ids=["key", "data", "sound"],
)
def test_installed_command_gives_the_same_status(
    tmp_path: Path, edits: Mapping[str, str], status: int, part: str
) -> None:
    job = written(tmp_path, edits)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from atoll.cli.main import app; app()",
            "run",
            str(job),
            "--out",
            str(tmp_path / "out"),
            "--quiet",
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out").exists() == (status == 0)
    assert bool(done.stdout) == (status == 0)


def test_images_need_a_partition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "x.npz", features=np.zeros((6, 2)), targets=np.arange(6) % 2)
    job = written(tmp_path, {**ONE, "data.source": '"x.npz"'})
    assert run(job) == 2
    assert "data.partition: is required" in capsys.readouterr().err
