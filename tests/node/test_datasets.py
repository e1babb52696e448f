"""Datasets are registered by name, with what their columns are and which values mean 'not known'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import DataError, NotFound
from atoll.node.datasets import Dataset, Datasets, digest_of, open_examples, open_table
from atoll.node.rules import Rule

TABLE = "age,sex,chol\n63,f,0\n?,m,250\n41,f,204\n"


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "heart.csv"
    path.write_text(TABLE)
    return path


@pytest.fixture
def register(tmp_path: Path) -> Datasets:
    return Datasets(tmp_path / "node" / "datasets.toml")


def test_a_dataset_is_found_again_with_its_columns(register: Datasets, csv: Path) -> None:
    made = register.add("heart", csv)
    assert made.columns == {"age": "text", "sex": "text", "chol": "number"}
    assert register.get("heart") == made
    assert register.all() == {"heart": made}


def test_missing_codes_are_taken_out_of_one_column_or_all(register: Datasets, csv: Path) -> None:
    made = register.add("heart", csv, ["?", "chol=0"])
    assert made.columns == {"age": "number", "sex": "text", "chol": "number"}
    table = open_table(made)
    assert np.isnan(table["age"]).tolist() == [False, True, False]
    assert np.isnan(table["chol"]).tolist() == [True, False, False]
    assert table["sex"].tolist() == ["f", "m", "f"]


def test_without_codes_a_table_is_as_it_is_read_anywhere(register: Datasets, csv: Path) -> None:
    assert open_table(register.add("heart", csv))["age"].tolist() == ["63", "?", "41"]


@pytest.mark.parametrize(
    ("name", "path", "missing", "words"),
    [
        ("heart", "none.csv", [], "no such file"),
        ("heart", "none.npz", [], "no such file"),
        ("he art", "heart.csv", [], "cannot be a dataset's name"),
        ("../heart", "heart.csv", [], "cannot be a dataset's name"),
        ("heart", "heart.csv", ["cholesterol=0"], "no column 'cholesterol'"),
        ("heart", "empty.csv", [], "has no rows"),
        ("heart", "heart.txt", [], "unknown format"),
    ],
)
def test_what_cannot_be_registered_is_refused_with_the_reason(
    register: Datasets, csv: Path, name: str, path: str, missing: list[str], words: str
) -> None:
    (csv.parent / "empty.csv").write_text("a,b\n")
    (csv.parent / "heart.txt").write_text("a,b\n")
    with pytest.raises(DataError, match=words):
        register.add(name, csv.parent / path, missing)
    assert register.all() == {}


def test_an_unknown_name_comes_with_the_remedy(register: Datasets) -> None:
    with pytest.raises(NotFound, match="atoll node data add lungs PATH"):
        register.get("lungs")


def test_removing_forgets_the_name_and_leaves_the_file(register: Datasets, csv: Path) -> None:
    register.add("heart", csv)
    with pytest.raises(NotFound, match="did you mean 'heart'"):
        register.remove("hearts")
    register.remove("heart")
    assert register.all() == {}
    assert csv.exists()


def test_a_column_that_is_gone_or_has_become_text_is_noticed(register: Datasets, csv: Path) -> None:
    made = register.add("heart", csv)
    csv.write_text("age,chol\n63,high\n")
    with pytest.raises(DataError) as caught:
        open_table(made)
    assert [f.place for f in caught.value.faults] == ["column 'sex'", "column 'chol'"]


def test_a_file_edited_by_hand_is_checked(register: Datasets, tmp_path: Path) -> None:
    register.path.parent.mkdir()
    register.path.write_text('[a]\nroad = "x"\n[b]\npath = "y"\nmissing = "?"\n')
    with pytest.raises(DataError) as caught:
        register.all()
    assert [f.place for f in caught.value.faults] == ["a.road", "a.path", "b.missing"]
    register.path.write_text("[a")
    with pytest.raises(DataError, match="not valid TOML"):
        register.all()


def test_arrays_are_registered_as_such(register: Datasets, tmp_path: Path) -> None:
    np.savez(tmp_path / "scans.npz", features=np.zeros((4, 2, 2)), targets=np.arange(4))
    made = register.add("scans", tmp_path / "scans.npz")
    assert made.columns == {"features": "array", "targets": "array"}
    assert open_examples(made).features.shape == (4, 2, 2)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.just("number")))
def test_any_column_name_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, columns: dict[str, str]
) -> None:
    register = Datasets(tmp_path_factory.mktemp("node") / "datasets.toml")
    log = str(register.queries("heart"))
    made = Dataset("heart", '/srv/"odd"\\name.csv', ("?", 'a="b"'), columns, queries=log)
    register._write({"heart": made})
    assert register.all() == {"heart": made}


def test_a_digest_is_that_of_the_file(csv: Path) -> None:
    before = digest_of(str(csv))
    csv.write_text(TABLE.replace("63", "64"))
    assert digest_of(str(csv)) != before
    with pytest.raises(DataError, match="cannot be read"):
        digest_of(str(csv.parent / "none.csv"))


def test_a_rule_stays_with_its_dataset_and_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "heart.csv"
    file.write_text("age,patient\n60,1\n61,2\n")
    register = Datasets(tmp_path / "datasets.toml")
    register.add("heart", file)
    rule = Rule(minimum=20, person="patient", columns=("age",), small="clear")
    register.govern("heart", rule)
    assert Datasets(tmp_path / "datasets.toml").get("heart").rule == rule
    assert register.add("heart", file).rule == rule  # registered anew
    with pytest.raises(DataError, match="column 'agee'"):
        register.govern("heart", Rule(columns=("agee",)))
    text = (tmp_path / "datasets.toml").read_text()
    broken = text.replace("minimum = 20", 'minimum = "20"').replace('"clear"', '"open"')
    (tmp_path / "datasets.toml").write_text(broken)
    with pytest.raises(DataError) as caught:
        register.all()
    assert [fault.place for fault in caught.value.faults] == [
        "heart.statistics.minimum",
        "heart.statistics.small",
    ]
