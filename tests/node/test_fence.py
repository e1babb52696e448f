"""A node's memory of the server's newest epoch: it outlives the process, and the machine's power."""

from __future__ import annotations

from pathlib import Path
from random import Random

import fake_federation as ff
import pytest

from atoll.core.errors import FenceError, StorageError
from atoll.node.fence import Fence
from atoll.node.home import Federation, Home
from atoll.wire.disk import RealDisk
from atoll.wire.lossy_disk import LossyDisk
from atoll.wire.messages import PollReply

PATH = Path("/home/epoch.json")


def lossy() -> LossyDisk:
    disk = LossyDisk()
    disk.make_folder(PATH.parent)
    return disk


def test_a_node_that_was_started_again_refuses_a_replaced_server(tmp_path: Path) -> None:
    server = ff.FakeServer(epoch=2)
    solo = ff.Solo(server, tmp_path)
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1))):
        server.result(solo.train().id)
    server.epoch = 1
    with ff.Running(ff.node_at(tmp_path, "east", server)) as again:
        stale = solo.train()
        ff.eventually(lambda: "it was replaced" in again._trouble)
        assert stale.id not in again._have()
        server.epoch = 2
        assert server.result(stale.id)[0].status == "done"


def test_a_server_from_a_backup_that_comes_to_the_same_epoch_is_another_start(
    tmp_path: Path,
) -> None:
    disk = lossy()
    Fence(PATH, disk).follow(3)  # of a server that does not say
    Fence(PATH, disk).follow(3, "a" * 16)
    again = Fence(PATH, disk)
    again.follow(3, "a" * 16)
    again.follow(3)
    with pytest.raises(FenceError, match="put back from a backup") as caught:
        again.follow(3, "b" * 16)
    assert "restored FOLDER --seen 3" in caught.value.remedy
    again.follow(4, "c" * 16)
    with pytest.raises(FenceError, match="another start"):
        Fence(PATH, disk).follow(4, "b" * 16)


def test_a_node_does_nothing_for_another_start_of_the_same_epoch(tmp_path: Path) -> None:
    server = ff.FakeServer(epoch=2)
    server.start = "a" * 16
    solo = ff.Solo(server, tmp_path)
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1))):
        server.result(solo.train().id)
    server.start = "b" * 16
    with ff.Running(ff.node_at(tmp_path, "east", server)) as again:
        stale = solo.train()
        ff.eventually(lambda: "put back from a backup" in again._trouble)
        assert stale.id not in again._have()
        home = again._site.home
        ff.eventually(lambda: home.read(home.state).get("code") == FenceError.code)
        server.start = "a" * 16
        ff.eventually(lambda: home.read(home.state).get("code") == "")


def test_an_epoch_is_durable_before_it_is_followed() -> None:
    disk = lossy()
    fence = Fence(PATH, disk)
    fence.follow(3)
    disk.crash(Random(0))
    again = Fence(PATH, disk)
    assert again.epoch == 3
    with pytest.raises(FenceError, match="epoch 2 answers, though epoch 3"):
        again.follow(2)
    again.follow(3)
    again.follow(4)
    assert Fence(PATH, disk).epoch == 4


def test_an_epoch_that_a_killed_process_had_not_synced_is_durable_once_it_is_read() -> None:
    disk = lossy()

    def killed(operation: str, path: Path) -> None:
        if operation == "fsync_folder":
            raise KeyboardInterrupt

    Fence(PATH, disk).follow(2)
    disk.before = killed
    with pytest.raises(KeyboardInterrupt):
        Fence(PATH, disk).follow(3)
    disk.before = lambda operation, path: None
    for number in range(20):
        seen = Fence(PATH, disk).epoch
        disk.crash(Random(number))
        assert Fence(PATH, disk).epoch == seen


def test_an_epoch_that_cannot_be_written_down_is_not_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = lossy()
    fence = Fence(PATH, disk)
    fence.follow(1)

    def full(*given: object) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", full)
        with pytest.raises(StorageError, match="no space"):
            fence.follow(2)
        fence.follow(1)
    assert (fence.epoch, Fence(PATH, disk).epoch) == (1, 1)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"epoch": "2"}', '{"epoch": -1}', "2"])
def test_a_damaged_record_is_told_not_taken_for_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "epoch.json"
    path.write_text(text)
    with pytest.raises(StorageError, match="is damaged"):
        Fence(path, RealDisk())


def test_joining_begins_with_no_epoch(tmp_path: Path) -> None:
    home = Home(tmp_path)
    Fence(home.epoch, RealDisk()).follow(9)
    home.join(Federation("f", "east", "localhost:1", "ab", "cd", 0.0))
    assert Fence(home.epoch, RealDisk()).epoch == 0


def test_a_server_is_told_which_start_was_seen_last() -> None:
    disk = lossy()
    fence = Fence(PATH, disk)
    assert fence.seen == ""
    fence.follow(3)
    assert fence.seen == "3"
    fence.follow(4, "a" * 16)
    assert Fence(PATH, disk).seen == "4-" + "a" * 16
    assert fence.told(4, "a" * 16)
    assert not fence.told(4, "b" * 16)
    assert not fence.told(5, "a" * 16)


def test_a_new_start_is_followed_by_a_question_and_never_from_the_answer_to_a_result(
    tmp_path: Path,
) -> None:
    """Only with a question is it told which start was seen before, and may find that it was put back."""
    server = ff.FakeServer()
    solo = ff.Solo(server, tmp_path)
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1))) as agent:
        server.result(solo.train().id)
        agent._take_from_result(agent._takes, PollReply(tasks=[], gone=[], epoch=2), {})
        assert agent._fence.epoch == 1
        server.epoch = 2
        server.result(solo.train().id)
        ff.eventually(lambda: agent._fence.epoch == 2)
