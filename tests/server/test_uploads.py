"""How much researchers may leave on the server's disk that no job refers to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import played_sites as played
import pytest

from atoll.core.errors import TooLarge
from atoll.server.uploads import Uploads
from atoll.wire.frames import Blob
from atoll.wire.messages import BlobRef

MIB = 1 << 20


def named(text: str, size: int = MIB) -> Blob:
    return Blob(hashlib.sha256(text.encode()).hexdigest(), size)


def test_uploads_that_no_job_refers_to_are_counted_together() -> None:
    uploads = Uploads(3 * MIB, 3600.0)
    uploads.expect("ann", named("a", 2 * MIB), 0.0)
    uploads.expect("ann", named("a", 2 * MIB), 1.0)  # its next part
    with pytest.raises(TooLarge, match="ann has uploaded") as caught:
        uploads.expect("ann", named("b", 2 * MIB), 2.0)
    assert "after 1 h" in caught.value.remedy
    uploads.expect("bea", named("b", 2 * MIB), 2.0)  # another's are another's
    uploads.used([named("a").sha256])
    uploads.expect("ann", named("b", 2 * MIB), 3.0)


def test_small_ones_count_too_and_none_counts_for_less_than_it_said_first() -> None:
    uploads = Uploads(3 * MIB, 3600.0)
    for name in "abc":
        uploads.expect("ann", named(name, 1), 0.0)
    with pytest.raises(TooLarge):
        uploads.expect("ann", named("d", 1), 0.0)
    uploads = Uploads(3 * MIB, 3600.0)
    uploads.expect("ann", named("a", 3 * MIB), 0.0)
    uploads.expect("ann", named("a", 1), 0.0)
    with pytest.raises(TooLarge):
        uploads.expect("ann", named("b", 1), 0.0)


def uploaded(world: played.World, raw: bytes) -> str:
    sha256 = hashlib.sha256(raw).hexdigest()
    world.service.upload_chunk(played.RESEARCHER, sha256, len(raw), 0, raw, "")
    return sha256


def test_a_researcher_at_the_limit_is_told_so_until_a_job_refers_to_it(
    make_world: Callable[..., played.World],
) -> None:
    world = make_world(uploads=2 * MIB)
    first = uploaded(world, b"def initial(): ...")
    uploaded(world, b"another")
    with pytest.raises(TooLarge, match="that no job refers to"):
        uploaded(world, b"a third")
    uploaded(world, b"another")  # is here already
    spec = played.heart_spec("rounds.count=1")
    world.submit(spec, files={"own.py": BlobRef(sha256=first, size=18)})
    uploaded(world, b"a third")


def test_what_no_job_refers_to_is_deleted_after_a_day_and_nothing_else(
    make_world: Callable[..., played.World],
) -> None:
    world = make_world(uploads_kept=3600.0)
    left, used = uploaded(world, b"left behind"), uploaded(world, b"def initial(): ...")
    plan = world.submit(
        played.heart_spec("rounds.count=1"), files={"own.py": BlobRef(sha256=used, size=18)}
    )
    world.service.step()
    (row,) = world.store.runs()
    assert row.id == plan
    half = hashlib.sha256(b"half of it").hexdigest()
    world.service.upload_chunk(played.RESEARCHER, half, 10, 0, b"half", "")
    world.time += 3601.0
    world.service.step()
    assert not world.blobs.has(left)
    assert world.blobs.has(used)
    assert world.blobs.received(half, played.RESEARCHER) == 0


def test_bytes_that_a_run_has_too_stay(make_world: Callable[..., played.World]) -> None:
    """Whoever knew what a run keeps could else have it deleted by uploading the same first."""
    world = make_world(uploads_kept=10.0)
    world.submit(played.heart_spec("rounds.count=1"))
    world.service.step()
    (row,) = world.store.runs()
    world.service._unused.expect(played.RESEARCHER, Blob(row.plan, 1), world.time)
    world.time += 11.0
    world.service.step()
    assert world.blobs.has(row.plan)
