"""The model that a run begins at: read, named by its hash, held against a layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from atoll.core.errors import JobError, UpdateRefused, WireError
from atoll.core.layout import Entry, Layout
from atoll.job.load import parse_job
from atoll.job.start import Start, agreed, begun, misfits
from atoll.wire.frames import encode

TENSORS = {"weight": np.arange(6, dtype=np.float64).reshape(2, 3), "bias": np.float64([0.5, 1.0])}
LAYOUT = Layout.of(
    [Entry("weight", (2, 3), "float64"), Entry("bias", (2,), "float64")], dtype="float64"
)


def spec(**model: Any) -> Any:
    data = {"source": "rows.csv", "target": "sick", "classes": ["no", "yes"]}
    return parse_job({"data": data, "model": model})


def test_one_model_has_one_hash_in_whatever_file_it_lies(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", {"job": "other"})
    np.savez(tmp_path / "model.npz", **dict(reversed(TENSORS.items())))
    swapped = {name: value.astype(">f8") for name, value in TENSORS.items()}
    found = {
        Start.of(TENSORS).hash,
        Start.of(swapped).hash,
        Start.read(tmp_path).hash,
        Start.read(tmp_path / "model.npz").hash,
    }
    assert len(found) == 1
    Start.of(TENSORS).write(tmp_path / "frame")
    assert Start.sent(tmp_path / "frame", found.copy().pop()).hash in found


@pytest.mark.parametrize(
    "change",
    [
        {"bias": np.float64([0.5, 1.5])},
        {"bias": np.float32([0.5, 1.0])},
        {"bias": np.float64([[0.5, 1.0]])},
        {"more": np.zeros(0)},
    ],
)
def test_another_model_has_another_hash(change: dict[str, Any]) -> None:
    assert Start.of({**TENSORS, **change}).hash != Start.of(TENSORS).hash


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"w": [1.0, np.nan]}, "holds nan at 1"),
        ({"w": [np.inf]}, "not a finite number"),
        ({"w": ["a"]}, "does not travel"),
        ({"w": [object()]}, "does not travel"),
        ({"w": [1 + 2j]}, "does not travel"),
        ({}, "there are 0"),
    ],
)
def test_what_is_no_model_is_refused_with_its_entry(tensors: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError) as caught:
        Start.of(tensors)
    assert said in str(caught.value)


def test_files_that_hold_no_model_are_named(tmp_path: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "torn.npz").write_bytes(b"PK\3\4")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    for name in ("torn.safetensors", "torn.npz", "objects.npz", "gone.npz", "gone.safetensors"):
        with pytest.raises(JobError, match=name):
            Start.read(tmp_path / name)
    with pytest.raises(JobError, match=r"model\.safetensors"):
        Start.read(tmp_path)


def test_what_was_sent_is_held_against_the_job_s_hash(tmp_path: Path) -> None:
    start, file = Start.of(TENSORS), tmp_path / "frame"
    file.write_bytes(encode({}, {**TENSORS, "bias": np.zeros(2)}))
    with pytest.raises(JobError, match="as the job says"):
        Start.sent(file, start.hash)
    file.write_bytes(encode({}, {**TENSORS, "bias": np.float64([0, np.inf])}))
    with pytest.raises(UpdateRefused, match="not a finite number"):
        Start.sent(file, start.hash)
    file.write_bytes(b"no frame" * 9)
    with pytest.raises(WireError):
        Start.sent(file, start.hash)


def test_a_vector_is_made_by_the_layout_and_all_that_does_not_fit_is_told() -> None:
    assert Start.of(TENSORS).vector(LAYOUT).tolist() == [0, 1, 2, 3, 4, 5, 0.5, 1]
    with pytest.raises(JobError) as caught:
        Start.of({"weight": np.zeros((3, 3)), "bais": np.zeros(2)}).vector(LAYOUT)
    told = str(caught.value)
    assert "entry 'bais': is none of the model's" in told
    assert "entry 'bias': is missing" in told
    assert "has shape (3, 3), and the model's has (2, 3)" in told


def test_numbers_that_the_model_s_dtype_cannot_hold_are_refused() -> None:
    single = Layout.of([Entry("w", (1,))])
    assert Start.of({"w": np.float64([0.5])}).vector(single).dtype == np.float32
    with pytest.raises(JobError, match="cannot hold"):
        Start.of({"w": np.float64([0.1])}).vector(single)


def test_tied_entries_are_the_same_everywhere() -> None:
    tied = Layout.of([Entry("w", (1,), aliases=("v",))])
    assert Start.of({"w": np.float32([1]), "v": np.float32([1])}).vector(tied).tolist() == [1]
    with pytest.raises(JobError, match="'v'"):
        Start.of({"w": np.float32([1]), "v": np.float32([2])}).vector(tied)


def test_a_job_names_its_start_and_has_another_hash() -> None:
    job, start = spec(), Start.of(TENSORS)
    made = begun(job, start)
    assert made.model.start == start.hash
    assert made.hash() != job.hash()
    assert "start" not in job.definition()["model"]
    with pytest.raises(JobError, match="is given"):
        begun(made, Start.of({"w": [1.0]}))
    assert agreed(start.hash, start) is start
    assert agreed("", None) is None
    for digest, given in ((start.hash, None), ("", start)):
        with pytest.raises(JobError, match=r"model\.start"):
            agreed(digest, given)
    with pytest.raises(JobError, match="--from"):
        spec(start="model.safetensors")


def faults(start: dict[str, Any], **model: Any) -> list[str]:
    return [fault.place for fault in misfits(spec(**model), Path(), Start.of(start))]


def test_names_and_known_sizes_are_checked_before_any_site_is_asked() -> None:
    assert faults({"weight": np.zeros(13), "intercept": 0.0}) == []
    assert faults({"weight": np.zeros((1, 13)), "intercept": 0.0}) == ["entry 'weight'"]
    assert faults({"weight": np.zeros(13)}) == ["entry 'intercept'"]
    three = {"weight": np.zeros((3, 4)), "intercept": np.zeros(3)}
    assert faults(three, kind="multinomial") == [
        "entry 'weight'",
        "entry 'intercept'",
    ]  # two classes
