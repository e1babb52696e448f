"""What members leave on the server's disk that nothing refers to: how much, for how long, over restarts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import played_sites as played
import pytest

from atoll.core.errors import TooLarge, WireError
from atoll.server.blobs.folder import FolderBlobs
from atoll.server.office import Office
from atoll.server.settings import Settings
from atoll.server.store.contract import Invite
from atoll.server.store.memory import MemoryStore
from atoll.server.uploads import Uploads
from atoll.wire.frames import Blob
from atoll.wire.lossy_disk import LossyDisk
from atoll.wire.messages import BlobRef

MIB = 1 << 20


def named(text: str, size: int = MIB) -> Blob:
    return Blob(hashlib.sha256(text.encode()).hexdigest(), size)


def counted() -> Uploads:
    store, blobs = MemoryStore(), FolderBlobs(Path("/blobs"), LossyDisk())
    settings = Settings(uploads=3 * MIB, uploads_kept=3600.0)
    office = Office(store, blobs, Path("/none"), lambda: 0.0, settings)
    office.epoch = store.acquire("server", 0.0)
    return Uploads(office)


def test_uploads_that_no_job_refers_to_are_counted_together() -> None:
    uploads = counted()
    uploads.expect("ann", named("a", 2 * MIB))
    uploads.expect("ann", named("a", 2 * MIB))  # its next part
    with pytest.raises(TooLarge, match="ann has uploaded") as caught:
        uploads.expect("ann", named("b", 2 * MIB))
    assert "after 1 h" in caught.value.remedy
    uploads.expect("bea", named("b", 2 * MIB))  # another's are another's
    uploads.used("bea", [named("a").sha256])  # a job of another's changes nothing
    with pytest.raises(TooLarge):
        uploads.expect("ann", named("b", 2 * MIB))
    uploads.used("ann", [named("a").sha256])
    uploads.expect("ann", named("b", 2 * MIB))


def test_small_ones_count_too_and_none_counts_for_less_than_it_said_first() -> None:
    uploads = counted()
    for name in "abc":
        uploads.expect("ann", named(name, 1))
    with pytest.raises(TooLarge):
        uploads.expect("ann", named("d", 1))
    uploads = counted()
    uploads.expect("ann", named("a", 3 * MIB))
    uploads.expect("ann", named("a", 1))
    with pytest.raises(TooLarge):
        uploads.expect("ann", named("b", 1))


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
    world.service._unused.expect(played.RESEARCHER, Blob(row.plan, 1))
    world.time += 11.0
    world.service.step()
    assert world.blobs.has(row.plan)


def test_what_another_s_job_refers_to_still_counts_after_a_restart(
    make_world: Callable[..., played.World],
) -> None:
    world = make_world(uploads=2 * MIB)
    world.store.add_invite(Invite("f" * 64, "bea", "researcher", world.time + 1))
    world.store.join("f" * 64, "bea", b"b" * 32, world.time)
    code = uploaded(world, b"def initial(): ...")
    world.service.upload_chunk("bea", code, 18, 0, b"def initial(): ...", "")
    world.service.upload_chunk("bea", hashlib.sha256(b"more").hexdigest(), 4, 0, b"more", "")
    world.submit(
        played.heart_spec("rounds.count=1"), files={"own.py": BlobRef(sha256=code, size=18)}
    )
    world.kill()
    world.time += 2.0
    world.service.step()
    assert {row.owner for row in world.store.uploads()} == {"bea"}
    with pytest.raises(TooLarge):
        world.service.upload_chunk("bea", hashlib.sha256(b"3").hexdigest(), 1, 0, b"3", "")


def begun(world: played.World, raw: bytes, name: str = played.RESEARCHER, task: str = "") -> str:
    """Upload half of it."""
    sha256, half = hashlib.sha256(raw).hexdigest(), len(raw) // 2
    world.service.upload_chunk(name, sha256, len(raw), 0, raw[:half], task)
    return sha256


def files(world: played.World) -> int:
    """How many uploads under way lie on the disk."""
    return len(world.disk.names(Path("/blobs/uploads")))


def test_an_upload_goes_on_after_a_restart_where_it_was_and_still_counts(
    make_world: Callable[..., played.World],
) -> None:
    world = make_world(uploads=4 * MIB)
    raw = bytes(3 * MIB)
    sha256 = begun(world, raw)
    world.kill()
    world.service.step()
    at = world.service.upload_received(played.RESEARCHER, sha256)
    assert at == len(raw) // 2
    with pytest.raises(TooLarge, match="that no job refers to"):
        begun(world, b"x" * 2 * MIB)  # with the 3 MiB that the first will have
    held = world.service.upload_chunk(played.RESEARCHER, sha256, len(raw), at, raw[at:], "")
    assert held == len(raw)
    assert world.blobs.has(sha256)
    world.kill()
    with pytest.raises(TooLarge, match="that no job refers to"):
        begun(world, b"x" * 2 * MIB)


def test_what_was_left_before_a_restart_is_deleted_after_its_time(
    make_world: Callable[..., played.World],
) -> None:
    world = make_world(uploads_kept=3600.0)
    half, left = begun(world, b"half of it"), uploaded(world, b"left")
    used = uploaded(world, b"def initial(): ...")
    spec = played.heart_spec("rounds.count=1")
    world.submit(spec, files={"own.py": BlobRef(sha256=used, size=18)})
    for _ in range(3):  # no start begins to count anew
        world.time += 1000.0
        world.kill()
        world.time += 2.0
        world.service.step()
        assert world.blobs.has(left)
        assert files(world) == 1
    world.time += 601.0
    world.kill()
    world.time += 2.0
    world.service.step()
    assert not world.blobs.has(left)
    assert world.blobs.received(half, played.RESEARCHER) == files(world) == 0
    assert world.blobs.has(used)
    assert world.store.uploads() == ()


def test_uploads_of_one_who_is_no_member_any_more_are_removed(
    make_world: Callable[..., played.World],
) -> None:
    for restarted in (False, True):
        world = make_world()
        half, whole = begun(world, b"half of it"), uploaded(world, b"left behind")
        world.store.set_member(played.RESEARCHER, "revoked")
        if restarted:
            world.kill()
        world.time += 2.0
        world.service.step()
        assert not world.blobs.has(whole)
        assert world.blobs.received(half, played.RESEARCHER) == files(world) == 0
        assert world.store.uploads() == ()


def at_train(make_world: Callable[..., played.World]) -> tuple[played.World, str, str]:
    """A run whose sites are asked to train: the world, the run and the task of one of them."""
    world = make_world()
    run = world.submit(played.heart_spec("rounds.count=1"))
    world.reach("train")
    (task,) = world.service.poll("hungary", ()).tasks
    return world, run, task.id


@pytest.mark.parametrize("restarted", [False, True])
def test_a_site_s_upload_goes_on_as_long_as_its_task_is_open_and_goes_with_it(
    make_world: Callable[..., played.World], restarted: bool
) -> None:
    world, run, task = at_train(make_world)
    sha256 = begun(world, b"a part of it", "hungary", task)
    if restarted:
        world.kill()
        world.reach("train")
    world.time += 2.0
    world.service.step()
    assert world.service.upload_received("hungary", sha256) == 6
    world.run()
    assert world.store.run(run).status == "completed"
    world.time += 2.0
    world.service.step()
    assert files(world) == 0
    assert world.service.upload_received("hungary", sha256) == 0
    world.service.step()
    assert world.store.uploads() == ()


@pytest.mark.parametrize("restarted", [False, True])
def test_uploads_of_a_site_that_was_revoked_or_whose_run_was_cancelled_are_removed(
    make_world: Callable[..., played.World], restarted: bool
) -> None:
    for revoked in (True, False):
        world, run, task = at_train(make_world)
        begun(world, b"a part of it", "hungary", task)
        if restarted:
            world.kill()
        if revoked:
            world.store.set_member("hungary", "revoked")
        else:
            world.service.cancel(run, played.RESEARCHER)
            world.service.step()
        world.time += 2.0
        world.service.step()
        assert files(world) == 0


def test_starts_that_follow_each_other_do_not_keep_a_site_s_upload_for_ever(
    make_world: Callable[..., played.World],
) -> None:
    world = make_world(uploads_kept=3600.0)
    world.submit(played.heart_spec("rounds.count=1"))
    world.reach("train")
    (task,) = world.service.poll("hungary", ()).tasks
    begun(world, b"a part of it", "hungary", task.id)
    for _ in range(5):
        assert files(world) == 1
        world.kill()  # the run waits for sites that do not come; nothing else happens to the upload
        world.time += 1000.0
    world.service._unused.clear(world.service._board, world.service._members)
    assert files(world) == 0


def test_a_site_cannot_fill_the_disk_with_answers_to_one_task(
    make_world: Callable[..., played.World],
) -> None:
    world, _, task = at_train(make_world)
    begins = [begun(world, b"answer %d" % n, "hungary", task) for n in range(20)]
    assert files(world) == 4
    assert world.service.upload_received("hungary", begins[-1]) == 4


def test_an_answer_that_is_refused_takes_no_bytes_from_a_job_that_refers_to_the_same(
    make_world: Callable[..., played.World],
) -> None:
    """Whoever knew what a job is going to bring could else have it deleted by uploading the same first."""
    world, _, task = at_train(make_world)
    raw = b"def initial(): ..."
    blob = Blob(hashlib.sha256(raw).hexdigest(), len(raw))
    world.service.upload_chunk("hungary", blob.sha256, blob.size, 0, raw, task)
    world.submit(
        played.heart_spec("rounds.count=1"),
        files={"own.py": BlobRef(sha256=uploaded(world, raw), size=blob.size)},
    )
    with pytest.raises(WireError):
        world.service.deliver_uploaded("hungary", task, blob)
    assert world.blobs.has(blob.sha256)
