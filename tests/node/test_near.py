"""What was checked is what is named and sent; a short result is read once for all of it."""

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
    assert seen == Seen(path, b"checked")
    path.write_bytes(b"another")  # which nobody looks at any more
    blob = near.name(seen)
    assert blob == Blob.of(b"checked")
    assert near.take(blob) == b"checked"
    assert near.take(blob) is None


def test_a_file_that_nobody_looked_at_is_read(tmp_path: Path) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    path.write_bytes(b"one")
    near.name(looked(near, path))
    path.write_bytes(b"two")
    assert near.name(Seen(path)) == Blob.of(b"two")
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
    assert seen == Seen(path)
    assert near.name(seen) == Blob.of(bytes(101))
    assert near.take(Blob.of(bytes(101))) is None


@pytest.mark.parametrize("most", [1 << 20, 1 << 30], ids=["long", "short"])
def test_a_result_of_any_length_is_read_and_named_as_it_lies(tmp_path: Path, most: int) -> None:
    near, path = Near(RealDisk()), tmp_path / "1.result"
    write_frame(path, {"task": "t", "status": "done", "examples": 7}, {"w": np.zeros(1 << 18)})
    seen = looked(near, path, most)
    assert (seen.raw is None) == (most < path.stat().st_size)
    assert read_result(seen, "t").examples == 7
    with pytest.raises(WireError, match="it is that of 't'"):
        read_result(seen, "u")
    assert near.name(seen) == Blob.of(path.read_bytes())
