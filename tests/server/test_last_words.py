"""What nodes act on for good is said by the one server alone; and uploads that failed at their last step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import played_sites as played
import pytest

from atoll.core.errors import FenceError, StorageError, Unreachable
from atoll.server.blobs.folder import FolderBlobs
from atoll.server.service import Service
from atoll.server.store.memory import MemoryStore
from atoll.wire.frames import Blob

World = played.World


def replaced(world: World) -> Service:
    """The server that has lost its lock and not noticed; another has taken over."""
    old = world.service
    world.store.lose_lock()
    world.store = MemoryStore(world.database)
    world.blobs = FolderBlobs(Path("/blobs"), world.disk)
    world.service = Service(
        world.store, world.blobs, world.home, now=lambda: world.time, settings=world.settings
    )
    world.service.start()
    world.service.step()
    return old


def uploading(world: World) -> tuple[Any, bytes]:
    """A task of hungary's in training, and the answer to it."""
    world.submit(played.heart_spec("rounds.count=2"))
    world.reach("train")
    (task,) = world.service.poll("hungary", ()).tasks
    return task, world.sites["hungary"].answer(world.service, task)


def test_a_replaced_server_tells_no_site_that_anything_is_over(world: World) -> None:
    old = replaced(world)  # knows of no run
    run = world.submit(played.heart_spec("rounds.count=2"))
    world.reach("survey")
    task = f"{run}.survey.0.hungary"
    assert old.poll("hungary", ()).tasks == []
    digest = "a" * 64
    for say in (
        lambda: old.poll("hungary", (run,)),
        lambda: old.poll("hungary", (task,)),
        lambda: old.deliver("hungary", task, b"anything"),
        lambda: old.deliver_uploaded("hungary", task, Blob(digest, 5)),
        lambda: old.upload_chunk("hungary", digest, 5, 0, b"12345", task),
        lambda: old.blob("hungary", world.service.poll("hungary", ()).tasks[0].plan.sha256),
    ):
        with pytest.raises(FenceError, match="took over"):
            say()
    world.run()
    assert world.service.job(run).reason == "completed"


def test_a_replaced_server_that_waits_for_sites_ends_soon(world: World) -> None:
    world.submit(played.heart_spec("rounds.count=2"))
    world.reach("train")
    old = replaced(world)
    world.time += world.settings.members_every
    with pytest.raises(FenceError, match="took over"):
        old.step()


def test_a_replaced_server_without_runs_ends_soon_too(world: World) -> None:
    woken: list[bool] = []
    old = replaced(world)
    old.on_work = lambda: woken.append(True)
    with pytest.raises(FenceError):
        old.poll("hungary", ("some-run",))
    assert woken
    world.time += world.settings.members_every
    with pytest.raises(FenceError, match="took over"):
        old.step()


def failing(world: World, operation: str) -> None:
    """The disk refuses an operation, once."""

    def refuse(name: str, path: Path) -> None:
        if name == operation:
            world.disk.before = lambda name, path: None
            raise OSError(28, "No space left on device")

    world.disk.before = refuse


def test_an_upload_that_could_not_be_named_is_named_when_it_is_delivered(world: World) -> None:
    task, frame = uploading(world)
    blob, service = Blob.of(frame), world.service
    failing(world, "rename")
    with pytest.raises(StorageError):
        service.upload_chunk("hungary", blob.sha256, blob.size, 0, frame, task.id)
    assert service.upload_received("hungary", blob.sha256) == blob.size  # nothing is left to send
    assert not service.deliver_uploaded("hungary", task.id, blob).again
    world.run()
    assert world.service.job(task.run).reason == "completed"


def test_an_upload_whose_name_is_not_synced_is_not_there(world: World) -> None:
    task, frame = uploading(world)
    blob, service = Blob.of(frame), world.service
    failing(world, "fsync_folder")
    chunk = ("hungary", blob.sha256, blob.size, 0, frame, task.id)
    with pytest.raises(StorageError):
        service.upload_chunk(*chunk)
    assert service.upload_received("hungary", blob.sha256) == 0
    with pytest.raises(Unreachable, match="not been uploaded"):
        service.deliver_uploaded("hungary", task.id, blob)
    service.upload_chunk(*chunk)
    assert not service.deliver_uploaded("hungary", task.id, blob).again
    world.disk.crash()  # the power fails: what was acknowledged is there
    assert FolderBlobs(Path("/blobs"), world.disk).read(blob.sha256) == frame


def test_an_upload_of_which_a_power_failure_took_the_start_goes_on_from_what_is_left(
    world: World,
) -> None:
    task, frame = uploading(world)
    blob, service = Blob.of(frame), world.service
    with pytest.raises(Unreachable, match="0 bytes are held"):
        service.upload_chunk("hungary", blob.sha256, blob.size, 100, frame[100:], task.id)
    assert service.upload_received("hungary", blob.sha256) == 0


def test_an_upload_that_a_power_failure_spoiled_is_asked_for_again(world: World) -> None:
    task, frame = uploading(world)
    blob, service = Blob.of(frame), world.service
    half = len(frame) // 2
    service.upload_chunk("hungary", blob.sha256, blob.size, 0, bytes(half), task.id)  # zeros
    rest = ("hungary", blob.sha256, blob.size, half, frame[half:], task.id)
    with pytest.raises(Unreachable, match="are not blob"):
        service.upload_chunk(*rest)
    assert service.upload_received("hungary", blob.sha256) == 0
    service.upload_chunk("hungary", blob.sha256, blob.size, 0, frame, task.id)
    assert not service.deliver_uploaded("hungary", task.id, blob).again
