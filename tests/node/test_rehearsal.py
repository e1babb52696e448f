"""A dataset held against a job in counts, and a real worker that prepares the job before any run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import fake_federation as ff
import pytest

from atoll.job.load import parse_job
from atoll.job.package import Package
from atoll.node.datasets import Dataset, Datasets
from atoll.node.home import Home
from atoll.node.room import sandbox
from atoll.node.room.rehearsal import contract, rehearse
from atoll.node.settings import Settings
from atoll.wire.findings import Finding

COLUMNS = {
    "a": {"type": "number", "unit": "mg/dl", "range": [0, 10]},
    "n": {"type": "integer"},
    "c": {"type": "category", "categories": ["x", "y"]},
}
HEAD = "a,n,c,sick\n"
ROWS = "1,1,x,0\n2,2,y,1\n3,3,x,0\n4,4,y,1\n"


def registered(folder: Path, text: str, name: str = "t") -> Dataset:
    path = folder / f"{name}.csv"
    path.write_text(text)
    return Datasets(folder / "datasets.toml").add(name, path)


def spec_of(columns: dict[str, Any] | None = None, **data: Any) -> Any:
    given = {
        "source": "t.csv",
        "target": "sick",
        "columns": COLUMNS if columns is None else columns,
        "classes": ["0", "1"],
    }
    return parse_job({"name": "toy", "data": {**given, **data}, "model": {"kind": "logistic"}})


def told(folder: Path, text: str, columns: Any = None, **data: Any) -> list[Finding]:
    return list(contract(spec_of(columns, **data), registered(folder, text)))


def test_a_dataset_that_keeps_the_contract_is_told_with_its_rows(tmp_path: Path) -> None:
    (found,) = told(tmp_path, HEAD + ROWS)
    assert (found.state, found.text) == ("ok", "t: 4 rows, 3 declared columns kept")


@pytest.mark.parametrize(
    ("text", "words", "remedy"),
    [
        ("a,n,sick\n1,1,0\n2,2,1\n", "column 'c' is missing", "register it again"),
        ("a,n,c\n1,1,x\n", "column 'sick' is missing", "register it again"),
        (HEAD + ROWS + "77.125,1,x,0\n", "1 of 5 cells are outside [0, 10] mg/dl", "the unit?"),
        (HEAD + ROWS + "1,1.5,x,0\n", "column 'n': 1 of 5 cells are not whole numbers", "correct"),
        (HEAD + ROWS + "abc,1,x,0\n", "column 'a': 1 of 5 cells are not numbers", "--missing"),
        (HEAD + ROWS + "1,1,zzz,0\n", "1 of 5 cells are in no declared category", "declare"),
        (HEAD + ROWS + "1,1,x,7\n", "1 of 5 rows are of no declared class", "data.classes"),
        (HEAD + ROWS + "1,1,x,\n", "1 of 5 rows have none", "leave those rows out"),
        (HEAD + ",1,x,0\n,2,y,1\n", "column 'a': no cell has a value", "dropped"),
    ],
)
def test_what_does_not_fit_is_counted_and_never_shown(
    tmp_path: Path, text: str, words: str, remedy: str
) -> None:
    found = told(tmp_path, text)
    faults = [f for f in found if f.state == "fault"]
    assert len(faults) == 1, found
    assert words in faults[0].text
    assert remedy in faults[0].remedy
    assert faults[0].status == 3
    for value in ("77.125", "abc", "zzz"):
        assert not any(value in f.text + f.remedy for f in found)


def test_rows_of_two_sites_in_one_file_are_a_fault(tmp_path: Path) -> None:
    text = "site,a,n,c,sick\nulm,1,1,x,0\nbern,2,2,y,1\n"
    (fault,) = [f for f in told(tmp_path, text, site_column="site") if f.state == "fault"]
    assert "names 2 sites" in fault.text
    assert "one site only" in fault.remedy


def test_columns_that_nobody_declared_are_a_warning(tmp_path: Path) -> None:
    found = told(tmp_path, HEAD + ROWS, columns={"a": COLUMNS["a"]})
    warning = next(f for f in found if f.state == "warning")
    assert "2 columns are read and not declared: n, c" in warning.text


def test_a_column_that_numbers_the_rows_is_a_warning_without_a_value(tmp_path: Path) -> None:
    rows = "".join(f"{i % 9},{7_000_321 + 977 * i},x,{i % 2}\n" for i in range(30))
    head = "a,patient_id,c,sick\n"
    columns = {name: COLUMNS[name] for name in "ac"}
    guess, found = [f for f in told(tmp_path, head + rows, columns=columns) if f.state == "warning"]
    assert "not declared: patient_id" in guess.text
    assert "'patient_id' holds another whole number in every row" in found.text
    assert "data.drop" in found.remedy
    assert "7000321" not in str(found)


def test_one_class_alone_is_a_warning(tmp_path: Path) -> None:
    found = told(tmp_path, HEAD + "1,1,x,0\n2,2,y,0\n")
    (warning,) = [f for f in found if f.state == "warning"]
    assert "all rows are of one class" in warning.text


def test_a_file_that_changed_since_it_was_registered_is_a_fault(tmp_path: Path) -> None:
    dataset = registered(tmp_path, HEAD + ROWS)
    Path(dataset.path).write_text("a,n,sick\n1,1,0\n")
    (fault,) = contract(spec_of(), dataset)
    assert fault.state == "fault"
    assert "is gone since the dataset was registered" in fault.text


# The worker ---------------------------------------------------------------------------------------


def rehearsed(
    folder: Path,
    files: dict[str, bytes] | None = None,
    settings: Settings | None = None,
    home: Home | None = None,
    **over: Any,
) -> list[Finding]:
    dataset = registered(folder, ff.table_text(1), "sites")
    spec = parse_job(ff.job_tables(**over))
    scratch = folder / "scratch"
    scratch.mkdir()
    chosen = settings or Settings(limits=ff.LIMITS)
    package = Package(spec, files or {})
    return list(rehearse(package, "east", dataset, chosen, scratch, home))


def test_a_worker_prepares_the_job_and_says_how_large_the_model_is(tmp_path: Path) -> None:
    first, memory = rehearsed(tmp_path)
    assert first.state == memory.state == "ok"
    assert "42 rows to train on, 18 held out, a model of 3 numbers (24 B)" in first.text
    assert "of the 4 GiB a worker may use" in memory.text
    assert not (tmp_path / "scratch" / "worker").exists()


def test_code_of_the_job_that_breaks_is_told_by_file_and_line(tmp_path: Path) -> None:
    code = b"def build():\n    raise ValueError('a secret cell')\n"
    model = {"kind": "torch", "factory": "net.py:build"}
    found = rehearsed(
        tmp_path, {"net.py": code}, model=model, algorithm={"name": "fedavg"}, local={"lr": 0.1}
    )
    (fault,) = found
    assert (fault.state, fault.status) == ("fault", 4)
    assert "net.py:2 in build" in fault.text
    assert "secret" not in fault.text


def test_a_worker_that_may_use_too_little_memory_says_so(tmp_path: Path) -> None:
    limits = ff.LIMITS.model_copy(update={"memory": 0.05})
    found = rehearsed(tmp_path, settings=Settings(limits=limits))
    assert any(f.state == "fault" for f in found)
    assert any("node.toml" in f.remedy or "worker" in f.text for f in found)


def test_a_job_whose_classes_this_site_alone_does_not_have_cannot_be_rehearsed(
    tmp_path: Path,
) -> None:
    dataset = registered(tmp_path, "a,b,sick\n" + "1,2,no\n2,1,no\n" * 9, "sites")
    (tmp_path / "scratch").mkdir()
    package = Package(parse_job(ff.job_tables()))
    settings = Settings(limits=ff.LIMITS)
    (found,) = rehearse(package, "east", dataset, settings, tmp_path / "scratch")
    assert found.state == "unknown"
    assert "with this site alone" in found.text


LOOKS = b"""
import os
def build():
    raise NameError(" ".join(sorted(os.listdir(os.environ["LOOK"]))))
"""


@pytest.mark.parametrize("way", ["auto", "off"])
def test_the_rehearsal_s_worker_is_in_a_room_like_a_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if sandbox.trouble():
        pytest.skip(sandbox.trouble())
    home = Home(tmp_path / "home")
    home.make()
    (home.path / "identity.pem").write_text("the key")
    (tmp_path / "data").mkdir()
    dataset = registered(tmp_path / "data", ff.table_text(1), "sites")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("LOOK", str(home.path))
    limits = ff.LIMITS.model_copy(update={"sandbox": way})
    model = {"kind": "torch", "factory": "net.py:build"}
    spec = parse_job(ff.job_tables(model=model, algorithm={"name": "fedavg"}, local={"lr": 0.1}))
    found = rehearse(
        Package(spec, {"net.py": LOOKS}),
        "east",
        dataset,
        Settings(limits=limits, pass_on=("LOOK",)),
        tmp_path / "scratch",
        home,
    )
    (fault,) = found
    assert ("identity.pem" in fault.text) is (way == "off"), fault
    assert "net.py:4 in build" in fault.text


def test_in_a_room_too_the_job_is_prepared_and_its_memory_is_known(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.make()
    first, memory = rehearsed(tmp_path, home=home)
    assert first.state == memory.state == "ok"
    needed = re.search(r"about ([\d.]+) MiB of", memory.text)
    assert needed is not None, memory
    assert float(needed[1]) > 20  # a Python with numpy, not whoever watches it
