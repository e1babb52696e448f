"""What was checked is what is named and sent, whatever becomes of the file meanwhile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atoll.core.errors import WireError
from atoll.node.near import Near, Seen
from atoll.node.orders import read_result
from atoll.wire.disk import RealDisk
from atoll.wire.frames import Blob, write_frame


def test_what_was_looked_at_is_what_is_named_and_taken_once(tmp_path: Path) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    path.write_bytes(b"checked")
    assert near.look(path, 100) == Seen(b"checked", whole=True)
    path.write_bytes(b"another")  # job code may still hold the file
    blob = near.name(path)
    assert blob == Blob.of(b"checked")
    assert near.take(blob) == b"checked"
    assert near.take(blob) is None


def test_a_result_that_is_named_later_is_read_anew(tmp_path: Path) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    path.write_bytes(b"one")
    near.look(path, 100)
    near.name(path)
    path.write_bytes(b"two")
    assert near.name(path) == Blob.of(b"two")
    assert near.take(Blob.of(b"two")) is None  # it was not kept in memory


def test_another_result_s_bytes_are_not_taken_for_it(tmp_path: Path) -> None:
    near, one, two = Near(RealDisk()), tmp_path / "1.result", tmp_path / "2.result"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    near.look(one, 100)
    blob = near.name(one)
    near.look(two, 100)
    assert near.take(blob) == b"one"
    assert near.name(two) == Blob.of(b"two")
    assert near.take(Blob.of(b"two")) == b"two"


def test_results_of_several_runs_at_once_stay_as_they_were_checked(tmp_path: Path) -> None:
    near, paths = Near(RealDisk()), [tmp_path / name / "1.result" for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"checked")
        near.look(path, 100)
    for path in paths:
        path.write_bytes(b"another")
        assert near.name(path) == Blob.of(b"checked")


def test_of_each_worker_the_last_result_is_kept(tmp_path: Path) -> None:
    near = Near(RealDisk())
    for number in range(3):
        path = tmp_path / f"{number}.result"
        path.write_bytes(b"checked")
        near.look(path, 100)
    path.write_bytes(b"another")
    assert near.name(path) == Blob.of(b"checked")
    assert near.name(tmp_path / "0.result") == Blob.of(b"checked")  # read anew
    assert near.take(Blob.of(b"checked")) == b"checked"


def test_long_results_and_missing_ones_are_not_kept(tmp_path: Path) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    assert near.look(path, 100) is None
    path.write_bytes(bytes(101))
    assert near.look(path, 100) == Seen(bytes(101), whole=False)
    assert near.name(path) == Blob.of(bytes(101))
    assert near.take(Blob.of(bytes(101))) is None


def test_of_a_long_result_that_is_named_which_was_checked(tmp_path: Path) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    values = {"w": np.zeros(1 << 19)}

    def write(examples: int) -> bytes:
        write_frame(path, {"task": "t", "status": "done", "examples": examples}, values)
        return path.read_bytes()

    other, raw = write(3), write(7)
    assert len(raw) > 1 << 22
    seen = near.look(path, 1 << 20)
    assert seen is not None
    assert not seen.whole
    write(3)
    assert read_result(str(path), "t", seen).examples == 7
    with pytest.raises(WireError, match="was changed after it had been checked"):
        near.name(path)

    write(7)
    near.look(path, 1 << 20)
    assert near.name(path) == Blob.of(raw)
    assert other != raw
