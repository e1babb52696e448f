"""``[data]`` and ``[preprocessing]`` become a federation."""

from __future__ import annotations

import numpy as np
import pytest

from atoll.core.errors import DataError, JobError
from atoll.data.idx import FASHION_MNIST
from atoll.job.datasets import load_islands
from atoll.job.load import parse_job

SITES = ["east", "north", "south"]
RAW = {"preprocessing": {"scale": "none", "impute": "none"}}


def rows_of(islands):
    return {c: len(d) for c, d in islands.train.items()}


def test_sites_by_column(folder, spec_of):
    islands = load_islands(spec_of(), folder, 0)
    assert rows_of(islands) == dict.fromkeys(SITES, 6)  # a quarter of 8 is held out
    assert {c: len(d) for c, d in islands.held_out.items()} == dict.fromkeys(SITES, 2)
    assert (islands.features, islands.classes, islands.central) == (4, 2, None)
    assert [c["site"] for c in islands.cards] == SITES
    assert islands.cards[0]["labels"] == {"no": 4, "yes": 4}


def test_sites_by_file_equal_sites_by_column(folder, spec_of):
    head, *lines = (folder / "rows.csv").read_text().splitlines()
    (folder / "sites").mkdir()
    for site in SITES:
        own = [line.partition(",")[2] for line in (head, *lines) if line.startswith((site, "site"))]
        (folder / "sites" / f"{site}.csv").write_text("\n".join(own) + "\n")
    one = load_islands(spec_of(), folder, 3)
    two = load_islands(spec_of(data={"source": "sites", "site_column": ""}), folder, 3)
    for site in SITES:
        assert np.array_equal(one.train[site].features, two.train[site].features)
        assert np.array_equal(one.held_out[site].targets, two.held_out[site].targets)


def test_no_test_rows_when_none_are_asked_for(folder, spec_of):
    islands = load_islands(spec_of(data={"test_fraction": 0.0}), folder, 0)
    assert rows_of(islands) == dict.fromkeys(SITES, 8)
    assert islands.held_out == {}


def test_central_test_set_is_all_held_out_rows(folder, spec_of):
    islands = load_islands(spec_of(data={"central_test": True}), folder, 0)
    assert len(islands.central) == 6
    joined = np.concatenate([islands.held_out[s].features for s in SITES])
    assert np.array_equal(islands.central.features, joined)


def test_stratified_split_keeps_the_share_of_classes(folder, spec_of):
    islands = load_islands(spec_of(data={"stratify": True, "test_fraction": 0.5}), folder, 0)
    assert [np.bincount(d.targets).tolist() for d in islands.held_out.values()] == [[2, 2]] * 3


def test_seed_draws_another_split(folder, spec_of):
    one, same, other = (load_islands(spec_of(**RAW), folder, seed) for seed in (0, 0, 1))
    assert np.array_equal(one.train["east"].features, same.train["east"].features)
    assert not np.array_equal(one.train["east"].features, other.train["east"].features)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ({"features": ["age"]}, 1),
        ({"drop": ["sex", "dose"]}, 1),
        ({"features": ["age", "sex"]}, 3),
        ({"columns": {"dose": {"type": "number"}}, "features": ["age"]}, 2),
    ],
    ids=["listed", "dropped", "one-hot", "declared too"],
)
def test_features_are_what_the_job_names(folder, spec_of, data, names):
    assert load_islands(spec_of(data=data), folder, 0).features == names


def test_declared_codes_are_missing_values(folder, spec_of):
    data = {"columns": {"age": {"missing": [30, 35]}}, "features": ["age"], "test_fraction": 0.0}
    islands = load_islands(spec_of(data=data, preprocessing={"indicate_missing": True}), folder, 0)
    assert islands.features == 2
    assert islands.cards[0]["missing"] == {"age": 2}


def test_federated_preprocessing_is_one_fit_over_all_sites(folder, spec_of):
    data = {"features": ["age"], "test_fraction": 0.0}
    table = (folder / "rows.csv").read_text().replace("east,", "east,1")  # 130 to 165
    (folder / "rows.csv").write_text(table)
    together = load_islands(spec_of(data=data), folder, 0)
    joined = np.concatenate([together.train[s].features for s in SITES])
    assert abs(joined.mean()) < 1e-12
    assert abs(joined.std() - 1) < 1e-12
    assert together.train["east"].features.mean() > 1
    apart = load_islands(spec_of(data=data, preprocessing={"mode": "site"}), folder, 0)
    for site in SITES:
        assert abs(apart.train[site].features.mean()) < 1e-12


def test_class_names_keep_their_declared_order(folder, spec_of):
    islands = load_islands(
        spec_of(data={"classes": ["yes", "no"], "test_fraction": 0.0}), folder, 0
    )
    assert islands.train["east"].targets.tolist() == [1, 1, 0, 0, 1, 1, 0, 0]


def test_one_table_is_dealt_out(folder, spec_of):
    data = {"site_column": "", "drop": ["site"], "partition": {"clients": 4}, "test_fraction": 0.0}
    assert sorted(rows_of(load_islands(spec_of(data=data), folder, 0)).values()) == [6, 6, 6, 6]


def test_rotation_of_a_table_is_refused(folder, spec_of):
    data = {"site_column": "", "partition": {"kind": "rotation"}}
    with pytest.raises(JobError, match=r"data\.partition\.kind: 'rotation' is for arrays"):
        load_islands(spec_of(data=data), folder, 0)


def test_arrays_of_an_npz_are_dealt_out(tmp_path):
    features = np.arange(48, dtype=np.float32).reshape(12, 4)
    np.savez(tmp_path / "x.npz", features=features, targets=np.arange(12) % 3)
    spec = parse_job(
        {"data": {"source": "x.npz", "partition": {"clients": 3}, "test_fraction": 0.25},
         "model": {"kind": "multinomial"}}, folder=tmp_path
    )  # fmt: skip
    islands = load_islands(spec, tmp_path, 0)
    assert rows_of(islands) == {"client-0000": 3, "client-0001": 3, "client-0002": 3}
    assert (islands.features, islands.classes) == (4, 3)


def dealt(folder, targets, kind="iid", task="classification"):
    np.savez(folder / "x.npz", features=np.arange(48.0).reshape(12, 4), targets=targets)
    data = {"source": "x.npz", "task": task, "partition": {"kind": kind, "clients": 2}}
    return load_islands(parse_job({"data": data, "model": {"kind": "mlp"}}), folder, 0)


def test_labels_of_images_may_be_bytes(tmp_path):
    islands = dealt(tmp_path, (np.arange(12) % 3).astype(np.uint8))
    assert islands.classes == 3
    assert (
        sum(sum(card["labels"].values()) for card in islands.cards) == 8
    )  # two of each six are held out


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (np.arange(12) % 2 - 1, "a target is -1"),
        (np.arange(12) / 2, "no whole numbers"),
        (np.arange(12) * 100_000, "a target is 1.1e"),
    ],
)
def test_targets_of_arrays_that_are_dealt_out_are_classes(tmp_path, targets, told):
    with pytest.raises(DataError, match=told):
        dealt(tmp_path, targets)


@pytest.mark.parametrize("kind", ["dirichlet", "classes"])
@pytest.mark.parametrize(
    ("targets", "task"),
    [(np.arange(12) // 2, "regression"), (np.eye(2)[np.arange(12) % 2], "classification")],
    ids=["amounts", "one column a class"],
)
def test_rows_without_a_class_each_are_not_dealt_out_by_class(tmp_path, kind, targets, task):
    with pytest.raises(JobError, match=f"{kind}' deals out classes"):
        dealt(tmp_path, targets, kind, task)


def test_a_central_test_set_of_arrays_that_are_dealt_out_is_what_was_held_out(tmp_path):
    np.savez(tmp_path / "x.npz", features=np.arange(48.0).reshape(12, 4), targets=np.arange(12) % 3)
    data = {"source": "x.npz", "partition": {"clients": 3}, "central_test": True}
    islands = load_islands(parse_job({"data": data}), tmp_path, 0)
    held = np.concatenate([rows.features for rows in islands.held_out.values()])
    assert islands.central is not None
    assert np.array_equal(islands.central.features, held)


@pytest.mark.parametrize("kind", ["dirichlet", "classes", "quantity", "feature_noise", "rotation"])
def test_every_partition_gives_each_row_once(tmp_path, kind):
    np.savez(tmp_path / "x.npz", features=np.ones((60, 1, 4, 4), "f4"), targets=np.arange(60) % 3)
    raw = {"source": "x.npz", "partition": {"kind": kind, "clients": 3}, "test_fraction": 0.0}
    islands = load_islands(parse_job({"data": raw}), tmp_path, 0)
    assert sum(rows_of(islands).values()) == 60


def test_synthetic_has_thirty_devices(tmp_path):
    islands = load_islands(parse_job({"data": {"source": "synthetic"}}), tmp_path, 0)
    assert (len(islands.train), islands.features, islands.classes) == (30, 60, 10)
    assert len(islands.central) == sum(len(d) for d in islands.held_out.values())


def test_cube_takes_its_options(tmp_path):
    raw = {"source": "fcube", "options": {"rows": 5, "test_rows": 7}}
    islands = load_islands(parse_job({"data": raw}), tmp_path, 0)
    assert rows_of(islands) == {f"client-000{i}": 5 for i in range(4)}
    assert (len(islands.central), islands.features, islands.classes) == (7, 3, 2)


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs the package dataset-fashion-mnist")
def test_fashion_mnist_is_dealt_out(tmp_path):
    raw = {"source": "fashion_mnist", "partition": {"clients": 100}, "options": {"normalise": True},
           "test_fraction": 0.0}  # fmt: skip
    islands = load_islands(parse_job({"data": raw}), tmp_path, 0)
    assert rows_of(islands) == {f"client-{i:04d}": 600 for i in range(100)}
    assert (islands.features, islands.classes, len(islands.central)) == (784, 10, 10_000)
    darkest = min(float(d.features.min()) for d in islands.train.values())
    assert darkest == pytest.approx(-0.1307 / 0.3081, rel=1e-6)
    assert islands.black == pytest.approx(darkest)


def test_folder_of_images_is_relative_to_the_job(tmp_path):
    raw = {"source": "fashion_mnist", "partition": {}, "options": {"folder": "here"}}
    with pytest.raises(DataError, match=str(tmp_path / "here")):
        load_islands(parse_job({"data": raw}), tmp_path, 0)


def test_regression_on_a_number(folder, spec_of):
    spec = spec_of(data={"target": "dose", "task": "regression"}, model={"kind": "linear"})
    islands = load_islands(spec, folder, 0)
    assert islands.classes == 1
    assert islands.train["east"].targets.dtype == np.float64


def test_what_the_job_asks_of_its_federation_is_told_with_the_data_s_faults(folder, spec_of):
    from atoll.core.errors import Fault

    spec = spec_of(data={"columns": {"age": {"range": [0, 50]}}})
    asked = []

    def expect(names):
        asked.append(sorted(names))
        return [Fault("rounds", "too many")]

    with pytest.raises(JobError) as caught:
        load_islands(spec, folder, 0, expect)
    assert asked == [SITES]
    assert [f.place for f in caught.value.faults] == [
        "rounds", *(f"site {s!r}, column 'age'" for s in SITES)]  # fmt: skip


def test_names_in_other_capitals_are_one_fault_for_each_site_that_writes_them(folder, spec_of):
    """Each of three sites missed the columns of both others: 24 faults."""
    for site, write in {"a": str.lower, "b": str.lower, "c": str.upper, "d": str.title}.items():
        lines = [",".join(map(write, ("age", "dose", "ill"))), "1,2,0", "2,3,1"]
        (folder / f"{site}.csv").write_text("\n".join(lines) + "\n")
    data = {"source": "[abcd].csv", "site_column": "", "target": "ill"}
    with pytest.raises(DataError) as caught:
        load_islands(spec_of(data=data), folder, 0)
    assert [fault.place for fault in caught.value.faults] == ["site 'c'", "site 'd'"]
    assert "'AGE' ('age'), 'DOSE' ('dose'), 'ILL' ('ill')" in caught.value.faults[0].message
    assert "rename" in caught.value.faults[0].remedy


def test_classes_of_whole_numbers_too_long_to_be_told_apart_are_refused(folder, spec_of):
    lines = (folder / "rows.csv").read_text().replace(",no", ",12345678901234567")
    (folder / "rows.csv").write_text(lines.replace("yes", "12345678901234568"))
    with pytest.raises(JobError, match="'sick' holds whole numbers too long to be told apart at"):
        load_islands(spec_of(), folder, 0)
