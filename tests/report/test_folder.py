from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from atoll.core.errors import StorageError
from atoll.report.folder import RunFolder, plain, read_model, write_model


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_new_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "b")
    assert run.path.is_dir()
    assert not run.used
    assert names(run.path) == []


def test_events_alone_are_no_earlier_run(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    run = RunFolder(tmp_path)
    assert not run.used
    run.append({"round": 1})
    assert run.used


def test_an_earlier_run_is_accepted_and_told(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_manifest({"atoll": "0.1.0"})
    (tmp_path / "my notes.txt").write_text("kept")
    assert RunFolder(tmp_path).used


def test_a_run_that_died_before_its_manifest_is_accepted(tmp_path: Path) -> None:
    RunFolder(tmp_path).append({"round": 1})
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / ".manifest.json.tmp").write_text("{")
    assert RunFolder(tmp_path).read_rounds() == [{"round": 1}]


@pytest.mark.parametrize(
    ("name", "content"), [("thesis.docx", "x"), ("manifest.json", '{"name": "a web app"}')]
)
def test_foreign_content_is_refused_and_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(StorageError, match=name) as caught:
        RunFolder(tmp_path)
    assert "empty folder" in str(caught.value)
    assert names(tmp_path) == [name]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot create"):
        RunFolder(tmp_path / "file")
    with pytest.raises(StorageError, match="cannot create"):
        RunFolder(tmp_path / "file" / "below")


def test_an_unwritable_folder_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(StorageError, match=r"cannot write into .*Permission denied"):
        RunFolder(tmp_path)


def test_opening_needs_a_run_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no run in"):
        RunFolder.open(tmp_path / "nowhere")
    assert names(tmp_path) == []
    RunFolder(tmp_path).append({"round": 1})
    assert RunFolder.open(tmp_path).read_rounds() == [{"round": 1}]


def test_clearing_removes_what_a_run_leaves_and_nothing_of_anybody_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append({"round": 1})
    run.write_manifest({"atoll": "0.1.0"})
    run.write_audit({"models": 4})
    for name in ("checkpoint", "tables", "models"):
        (tmp_path / name).mkdir()
    for name in ("best.safetensors", "results.json", "my notes.txt"):
        (tmp_path / name).write_text("x")
    run.clear()
    assert names(tmp_path) == ["my notes.txt"]
    (tmp_path / "tables").mkdir()  # of somebody else: no results are beside it
    run.clear()
    assert names(tmp_path) == ["my notes.txt", "tables"]


def test_the_manifest_comes_back_with_nan_as_null(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_manifest() == {}
    run.write_manifest(
        {"atoll": "1", "value": math.nan, "sd": np.float32(0.5), "sites": ("ä", "b")}
    )
    assert "NaN" not in run.manifest.read_text()
    assert run.read_manifest() == {"atoll": "1", "value": None, "sd": 0.5, "sites": ["ä", "b"]}
    assert names(tmp_path) == ["manifest.json"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_scrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run = RunFolder(tmp_path)
    run.write_manifest({"atoll": "old"})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if moment == "fsync" else (Path, "replace")), full)
    with pytest.raises(StorageError, match="No space left"):
        run.write_manifest({"atoll": "new"})
    assert run.read_manifest() == {"atoll": "old"}
    assert names(tmp_path) == ["manifest.json"]


def test_what_has_no_json_form_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(TypeError, match="object has no JSON form"):
        run.append({"round": 1, "model": object()})
    assert names(tmp_path) == []


def test_records_come_back_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_rounds() == []
    for number in (1, 2, 3):
        run.append({"round": number, "train": {"loss": math.inf if number == 2 else 0.5}})
    run.sync()
    assert [r["train"]["loss"] for r in run.read_rounds()] == [0.5, None, 0.5]
    assert len(run.metrics.read_text().splitlines()) == 3


def test_a_line_torn_anywhere_is_cut_and_the_run_goes_on(tmp_path: Path) -> None:
    whole = b'{"round": 1}\n{"round": 2, "site": "\xc3\xa4"}\n'
    for cut in range(13, len(whole)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "metrics.jsonl").write_bytes(whole[:cut])
        run = RunFolder(folder)
        assert [r["round"] for r in run.read_rounds()] == [1]
        run.append({"round": 2, "again": True})
        assert run.read_rounds() == [{"round": 1}, {"round": 2, "again": True}]


def test_truncation_keeps_the_rounds_up_to_the_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number in range(1, 6):
        run.append({"round": number})
    with run.metrics.open("ab") as file:
        file.write(b'{"rou')
    (tmp_path / ".manifest.json.tmp").write_text("{")
    assert run.truncate(3) == 3
    assert names(tmp_path) == ["metrics.jsonl"]
    run.append({"round": 4})
    assert [r["round"] for r in run.read_rounds()] == [1, 2, 3, 4]
    assert run.truncate(0) == 0
    assert run.read_rounds() == []


def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n{"rou\n{"round": 3}\n')
    with pytest.raises(StorageError, match="line 2 of"):
        RunFolder(tmp_path).read_rounds()


def test_a_damaged_manifest_is_an_error(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.manifest.write_text("[1, 2]")
    with pytest.raises(StorageError, match="not a JSON object"):
        run.read_manifest()


def test_an_append_that_fails_half_way_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path)
    run.append({"round": 1})
    before = run.metrics.read_bytes()
    real, calls = os.write, []

    def half(descriptor: int, content: bytes) -> int:
        calls.append(len(content))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, bytes(content[:5]))

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(StorageError, match="cannot append"):
        run.append({"round": 2})
    assert len(calls) == 2
    assert run.metrics.read_bytes() == before


def test_plain_knows_numpy_sets_and_paths() -> None:
    found = plain({1: np.arange(3), "s": {"b", "a"}, "p": Path("x"), "b": np.bool_(True)})
    assert found == {"1": [0, 1, 2], "s": ["a", "b"], "p": "x", "b": True}
    assert plain(np.array([1.0, np.nan])) == [1.0, None]


TENSORS = {
    "odd": np.array([0.1, -0.0, np.nan, np.inf, 1e-45], np.float32),
    "double": np.array([[1 / 3, 2.0]]),
    "half": np.array([0.1], np.float16),
    "whole": np.array([-(2**62)], np.int64),
    "flags": np.array([True, False]),
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


def test_a_model_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.safetensors", TENSORS, {"job": "abc", "note": "ä"})
    tensors, metadata = read_model(path)
    assert metadata == {"job": "abc", "note": "ä"}
    assert set(tensors) == set(TENSORS)
    for name, array in TENSORS.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        assert tensors[name].tobytes() == array.tobytes()
    assert names(tmp_path) == ["model.safetensors"]


def test_other_byte_orders_keep_their_values(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors", {"w": np.array([1.5, 2.5], ">f4")})
    assert read_model(path)[0]["w"].tolist() == [1.5, 2.5]


def test_the_same_model_is_the_same_file_in_any_process(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np; from atoll.report.folder import write_model;"
        "write_model(sys.argv[1], {'w': np.ones(3)}, {k: k for k in 'abcdefgh'})"
    )
    files = [tmp_path / name for name in ("one", "two")]
    for file in files:
        subprocess.run([sys.executable, "-c", script, str(file)], check=True)
    assert files[0].read_bytes() == files[1].read_bytes()
    header = files[0].read_bytes()[8:]
    assert json.loads(header[: header.index(b"}}") + 2].decode())["__metadata__"]["h"] == "h"


def test_a_damaged_model_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(StorageError, match="cannot read"):
        read_model(path)
    path.write_bytes(b"not a model")
    with pytest.raises(StorageError, match="is not a model file"):
        read_model(path)
