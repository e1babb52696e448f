"""A short result is read once: what was checked is what is named and sent."""

from __future__ import annotations

from pathlib import Path

from atoll.node.near import Near
from atoll.wire.disk import RealDisk
from atoll.wire.frames import Blob


def test_what_was_looked_at_is_what_is_named_and_taken_once(tmp_path: Path) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    path.write_bytes(b"checked")
    assert near.look(path, 100) == (True, b"checked")
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


def test_long_results_and_missing_ones_are_not_read(tmp_path: Path) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    assert near.look(path, 100) == (False, None)
    path.write_bytes(bytes(101))
    assert near.look(path, 100) == (True, None)
    assert near.name(path) == Blob.of(bytes(101))
