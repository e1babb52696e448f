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


def looked(near: Near, path: Path, most: int = 100) -> Seen:
    seen = near.look(path, most)
    assert seen is not None
    return seen


def test_what_was_looked_at_is_what_is_named_and_taken_once(tmp_path: Path) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    path.write_bytes(b"checked")
    seen = looked(near, path)
    assert seen == Seen(path, b"checked", whole=True)
    path.write_bytes(b"another")  # job code may still hold the file
    blob = near.name(seen)
    assert blob == Blob.of(b"checked")
    assert near.take(blob) == b"checked"
    assert near.take(blob) is None


def test_a_file_that_nobody_looked_at_is_read(tmp_path: Path) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    path.write_bytes(b"one")
    near.name(looked(near, path))
    path.write_bytes(b"two")
    assert near.name(path) == Blob.of(b"two")
    assert near.take(Blob.of(b"two")) is None  # it was not kept in memory
    assert near.take(Blob.of(b"one")) == b"one"


def test_results_of_several_runs_at_once_stay_as_they_were_checked(tmp_path: Path) -> None:
    near, paths = Near(RealDisk()), [tmp_path / name / "1.result" for name in ("a", "b")]
    all_seen = []
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(b"checked " + path.parent.name.encode())
        all_seen.append(looked(near, path))
    for path, seen in zip(paths, all_seen, strict=True):
        path.write_bytes(b"another")
        assert near.name(seen) == Blob.of(seen.raw)
    assert near.take(Blob.of(all_seen[0].raw)) is None  # the last one's are there
    assert near.take(Blob.of(all_seen[1].raw)) == b"checked b"


def test_long_results_and_missing_ones_are_not_kept(tmp_path: Path) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    assert near.look(path, 100) is None
    path.write_bytes(bytes(101))
    seen = looked(near, path)
    assert seen == Seen(path, bytes(101), whole=False)
    assert near.name(seen) == Blob.of(bytes(101))
    assert near.take(Blob.of(bytes(101))) is None


def test_of_a_long_result_that_is_named_which_was_checked(tmp_path: Path) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    values = {"w": np.zeros(1 << 19)}

    def write(examples: int) -> bytes:
        write_frame(path, {"task": "t", "status": "done", "examples": examples}, values)
        return path.read_bytes()

    other, raw = write(3), write(7)
    assert len(raw) > 1 << 22
    seen = looked(near, path, 1 << 20)
    assert not seen.whole
    write(3)
    assert read_result(str(path), "t", seen).examples == 7
    with pytest.raises(WireError, match="was changed after it had been checked"):
        near.name(seen)

    write(7)
    assert near.name(seen) == Blob.of(raw)
    assert other != raw
