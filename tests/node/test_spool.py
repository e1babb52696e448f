"""What the spool takes survives any crash in the same bytes; what is damaged is refused, not used."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.core.errors import StorageError
from atoll.node.spool import Spool
from atoll.wire.disk import RealDisk
from atoll.wire.frames import Blob, encode
from atoll.wire.lossy_disk import LossyDisk
from atoll.wire.messages import ResultBody

PLACE = Path("/node/spool")


def result(task: str, value: float = 1.0) -> bytes:
    return encode(ResultBody(task=task, status="done").model_dump(), {"delta": np.full(3, value)})


def memory(task: str, value: float = 1.0) -> bytes:
    return encode({"task": task}, {"control": np.full(3, value)})


class Crash(Exception):
    """The program ends here."""


def crash_at(number: int) -> LossyDisk:
    """A disk whose ``number``-th operation never happens."""
    done = 0

    def before(operation: str, path: Path) -> None:
        nonlocal done
        done += 1
        if done == number:
            raise Crash

    return LossyDisk(before)


def test_a_result_is_there_after_a_restart_in_the_same_bytes(tmp_path: Path) -> None:
    first = Spool(tmp_path)
    held = first.finish("r1", "r1.train.0.a", result("r1.train.0.a"))
    (again,) = Spool(tmp_path).results
    assert again == held
    assert Spool(tmp_path).read(again) == result("r1.train.0.a")
    assert held.blob == Blob.of(result("r1.train.0.a"))


def test_a_file_of_the_worker_is_moved_in(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_bytes(result("r1.train.0.a"))
    held = Spool(tmp_path / "spool").finish("r1", "r1.train.0.a", made)
    assert not made.exists()
    assert held.path.read_bytes() == result("r1.train.0.a")


def test_the_first_result_of_a_task_stays(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    first = spool.finish("r1", "r1.train.0.a", result("r1.train.0.a", 1.0))
    assert spool.finish("r1", "r1.train.0.a", result("r1.train.0.a", 2.0)) == first
    assert spool.read(first) == result("r1.train.0.a", 1.0)


def test_a_settled_result_is_gone_and_its_memory_stays(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.finish("r1", "t0", result("t0"), memory=memory("t0"), trained=True)
    spool.settle("r1", "t0")
    for now in (spool, Spool(tmp_path)):
        assert now.results == ()
        path = now.memory("r1", "t0")
        assert path is not None
        assert path.read_bytes() == memory("t0")


def test_only_the_committed_memory_and_pending_ones_are_kept(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for task in ("t0", "t1", "t2"):
        spool.finish("r1", task, result(task), memory=memory(task), trained=True)
        spool.settle("r1", task)
    spool.keep_memory("r1", "t1", {"t2"})
    assert spool.memory("r1", "t1") is not None
    assert spool.memory("r1", "t2") is not None
    with pytest.raises(StorageError, match="t0"):
        spool.memory("r1", "t0")


def test_an_old_message_costs_no_memory(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.finish("r1", "t5", result("t5"), memory=memory("t5"), trained=True)
    spool.keep_memory("r1", "t4", set())
    assert spool.memory("r1", "t5") is not None


def test_a_client_that_returns_no_memory_keeps_the_one_it_had(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.finish("r1", "t0", result("t0"), memory=memory("t0"), trained=True)
    spool.finish("r1", "t1", result("t1"), before="t0", trained=True)
    spool.settle("r1", "t0")
    spool.keep_memory("r1", "t1", set())
    for now in (spool, Spool(tmp_path)):
        path = now.memory("r1", "t1")
        assert path is not None
        assert path.read_bytes() == memory("t1")  # the same values under the new name


def test_a_memory_that_the_disk_does_not_remove_goes_another_time() -> None:
    refused = False

    def before(operation: str, path: Path) -> None:
        if refused and operation == "remove":
            raise StorageError("input/output error")

    disk = LossyDisk(before)
    spool = Spool(PLACE, disk)
    for number in (1, 2):
        spool.finish(
            "r1", f"t{number}", result(f"t{number}"), memory=memory(f"t{number}"), trained=True
        )
    refused = True
    spool.keep_memory("r1", "t2", set())
    assert spool.memory("r1", "t1") is not None
    refused = False
    spool.keep_memory("r1", "t2", set())
    assert [name for name in disk.names(PLACE / "r1") if name.endswith(".memory")] == [
        spool.memory("r1", "t2").name
    ]


def test_a_run_without_memories_needs_none_and_a_lost_one_is_told(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.finish("plain", "t0", result("t0"), trained=True)
    assert spool.memory("plain", "t0") is None
    assert spool.memory("plain", "") is None
    with pytest.raises(StorageError, match="not at this site any more"):
        spool.memory("unheard of", "t7")


def test_a_damaged_result_is_refused_with_its_name(tmp_path: Path) -> None:
    held = Spool(tmp_path).finish("r1", "t0", result("t0"))
    raw = held.path.read_bytes()
    for damage in (raw[:-1], raw[:-8] + bytes(8), b"", raw + b"\0"):
        held.path.write_bytes(damage)
        with pytest.raises(StorageError, match="damaged") as caught:
            Spool(tmp_path)
        assert str(held.path) in str(caught.value)
        assert caught.value.remedy


def test_a_result_under_another_task_s_name_is_refused(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    a, b = (spool.finish("r1", t, result(t)) for t in ("t0", "t1"))
    shutil.copy(a.path, b.path)
    with pytest.raises(StorageError, match="damaged"):
        Spool(tmp_path)


def test_a_run_s_folder_without_its_record_is_refused(tmp_path: Path) -> None:
    held = Spool(tmp_path).finish("r1", "t0", result("t0"))
    (held.path.parent / "run.json").unlink()
    with pytest.raises(StorageError, match=r"run\.json"):
        Spool(tmp_path)


def test_it_says_when_it_is_full(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most=len(result("t0")) + 1)
    spool.finish("r1", "t0", result("t0"))
    assert not spool.full
    spool.finish("r1", "t1", result("t1"))
    assert spool.full
    assert Spool(tmp_path, most=1).full
    spool.settle("r1", "t0")
    spool.settle("r1", "t1")
    assert spool.used == 0


def test_an_ended_run_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.begin("r1", "a" * 64)
    spool.finish("r1", "t0", result("t0"), memory=memory("t0"), trained=True)
    spool.end("r1")
    assert (spool.runs, spool.used) == ((), 0)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert Spool(tmp_path).runs == ()


def test_the_dataset_s_digest_is_known_after_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.digest("r1") == ""
    spool.begin("r1", "a" * 64)
    assert Spool(tmp_path).digest("r1") == "a" * 64


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_any_run_and_task_may_have_any_name(name: str) -> None:
    disk = LossyDisk()
    spool = Spool(PLACE, disk)
    raw = encode({"task": name})
    held = spool.finish(name, name, raw)
    assert held.path.parent.parent == PLACE
    assert Spool(PLACE, disk).result(name, name) == held


def work(spool: Spool) -> list[str]:
    """Two rounds with memory; the tasks whose results were handed over for good, as they are."""
    done = []
    spool.begin("r1", "a" * 64)
    for number in range(2):
        task, before = f"t{number}", f"t{number - 1}" if number else ""
        spool.finish(
            "r1",
            task,
            result(task, number),
            memory=memory(task, number),
            before=before,
            trained=True,
        )
        done.append(task)
        if before:
            spool.settle("r1", before)
            spool.keep_memory("r1", before, {task})
    return done


def operations() -> int:
    """How many disk operations :func:`work` takes."""
    count = 0

    def before(operation: str, path: Path) -> None:
        nonlocal count
        count += 1

    work(Spool(PLACE, LossyDisk(before)))
    return count


@pytest.mark.parametrize("power", [False, True], ids=["program", "power"])
def test_after_a_crash_at_any_operation_everything_handed_over_is_there(power: bool) -> None:
    total = operations()
    assert total > 30
    for number in range(1, total + 1):
        disk = crash_at(number)
        done: list[str] = []
        try:
            spool = Spool(PLACE, disk)
            done = work(spool)
        except Crash:
            pass
        if power:
            disk.crash(Random(number))
        after = Spool(PLACE, disk)  # it opens: nothing half-written counts as damage
        for held in after.results:
            value = int(held.task[1:])
            assert after.read(held) == result(held.task, value)
            # A result that is there has its memory.
            path = after.memory("r1", held.task)
            assert path is not None
            assert disk.read(path) == memory(held.task, value)
        if done:
            assert after.result("r1", "t1") is not None
        assert work(after) == ["t0", "t1"]
        assert after.result("r1", "t1") is not None


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    class Full(RealDisk):
        full = False

        def fsync(self, path: Path) -> None:
            if self.full:
                raise StorageError("no space left on device")
            super().fsync(path)

    disk = Full()
    spool = Spool(tmp_path, disk)
    held = spool.finish("r1", "t0", result("t0"), wait=False)
    disk.full = True
    with pytest.raises(StorageError, match="no space"):
        spool.finish("r1", "t1", result("t1"))
    with pytest.raises(StorageError, match="no space"):
        spool.write_through(held)
    disk.full = False
    assert spool.results == (held,)
    assert spool.finish("r1", "t1", result("t1")).task == "t1"
    assert len(Spool(tmp_path).results) == 2


def test_a_long_result_without_memory_may_be_written_through_later() -> None:
    syncs: list[Path] = []
    disk = LossyDisk(lambda operation, path: syncs.append(path) if "fsync" in operation else None)
    spool = Spool(PLACE, disk)
    spool.begin("r1", "a" * 64)
    syncs.clear()
    held = spool.finish("r1", "t0", result("t0"), trained=True, wait=False)
    assert [path.name for path in syncs] == [".taking-1", "r1"]  # run.json: clients keep no memory
    syncs.clear()
    spool.finish("r1", "t1", result("t1"), trained=True, wait=False)
    assert not syncs
    assert Spool(PLACE, disk).result("r1", "t0") == held  # killed, but the machine ran on
    disk.crash()
    assert len(Spool(PLACE, disk).results) == 2  # who took them up made them durable
    assert Spool(PLACE, disk).memory("r1", "t0") is None


def test_a_result_with_a_memory_is_never_left_for_later() -> None:
    disk = LossyDisk()
    Spool(PLACE, disk).finish(
        "r1", "t0", result("t0"), memory=memory("t0"), trained=True, wait=False
    )
    disk.crash()
    assert [held.path.suffix for held in Spool(PLACE, disk).results] == [".result"]


def test_what_a_power_failure_left_of_a_result_that_was_not_written_through_is_removed() -> None:
    left = set()
    for number in range(30):
        disk = LossyDisk()
        spool = Spool(PLACE, disk)
        spool.begin("r1", "a" * 64)
        spool.finish("r1", "t0", result("t0"), wait=False)
        disk.crash(Random(number))
        after = Spool(PLACE, disk)
        left.add(len(after.results))
        assert all(after.read(held) == result("t0") for held in after.results)
        after.finish("r1", "t0", result("t0"))
        assert len(Spool(PLACE, disk).results) == 1
    assert left == {0, 1}


def test_what_was_written_through_survives_a_power_failure() -> None:
    for number in range(12):
        disk = LossyDisk()
        spool = Spool(PLACE, disk)
        held = spool.finish("r1", "t0", result("t0"), wait=False)
        spool.write_through(held)
        disk.crash(Random(number))
        after = Spool(PLACE, disk)
        assert [after.read(held) for held in after.results] == [result("t0")]
        after.settle("r1", "t0")
        assert after.used == 0


@pytest.mark.parametrize("refused", [1, 2, 3])
def test_what_was_moved_when_the_disk_failed_is_finished_at_the_next_try(
    tmp_path: Path, refused: int
) -> None:
    class Failing(RealDisk):
        syncs = 0

        def fsync_folder(self, folder: Path) -> None:
            super().fsync_folder(folder)
            self.syncs += 1
            if self.syncs == refused:  # of run.json, the memory, the result
                raise StorageError("input/output error")

    made, keep = tmp_path / "made", tmp_path / "keep"
    made.write_bytes(result("t0"))
    keep.write_bytes(memory("t0"))
    place = tmp_path / "spool"
    place.mkdir()
    spool = Spool(place, Failing())
    given = {"memory": keep, "trained": True}
    with pytest.raises(StorageError, match="input/output"):
        spool.finish("r1", "t0", made, **given)
    # What the worker wrote may be in the spool already; the node then reports a failure of its own.
    frame = made if made.exists() else result("t0", 2.0)
    held = spool.finish("r1", "t0", frame, **given)
    assert spool.read(held) == result("t0")
    (again,) = Spool(place).results
    assert again == held
    assert Spool(place).memory("r1", "t0") is not None


@pytest.mark.parametrize("operation", ["fsync", "fsync_folder"])
def test_what_a_killed_process_had_not_synced_is_durable_once_it_is_taken_up(
    operation: str,
) -> None:
    for number in range(20):
        disk = LossyDisk()
        spool = Spool(PLACE, disk)
        spool.begin("r1", "ab" * 32)

        def killed(asked: str, path: Path) -> None:
            if asked == operation:
                raise Crash

        disk.before = killed
        with pytest.raises(Crash):
            spool.finish("r1", "t0", result("t0"))
        disk.before = lambda asked, path: None
        assert len(Spool(PLACE, disk).results) == 1  # and may be sent now
        disk.crash(Random(number))
        after = Spool(PLACE, disk)
        assert [after.read(held) for held in after.results] == [result("t0")]


@pytest.mark.parametrize("operation", ["fsync", "fsync_folder", "rename"])
def test_a_result_whose_disk_failed_is_finished_at_the_next_try(operation: str) -> None:
    disk = LossyDisk()
    spool = Spool(PLACE, disk)
    spool.begin("r1", "ab" * 32)
    left = 2 if operation == "rename" else 1  # the first gives it its digest's name

    def failing(asked: str, path: Path) -> None:
        nonlocal left
        left -= asked == operation
        if asked == operation and left == 0:
            raise OSError(5, "Input/output error")

    disk.before = failing
    with pytest.raises(StorageError, match="Input/output error"):
        spool.finish("r1", "t0", result("t0"))
    assert spool.results == ()
    spool.finish("r1", "t0", result("t0", 2.0))  # who tries again has the first bytes no more
    disk.crash()
    (held,) = Spool(PLACE, disk).results
    assert (held.path.suffix in (".result", ".fresh"), spool.read(held)) == (True, result("t0"))


def test_nothing_is_left_of_what_was_moved_and_given_up(tmp_path: Path) -> None:
    class Failing(RealDisk):
        broken = False

        def fsync_folder(self, folder: Path) -> None:
            if self.broken:
                raise StorageError("input/output error")
            super().fsync_folder(folder)

    disk = Failing()
    spool = Spool(tmp_path, disk)
    spool.begin("r1", "ab" * 32)
    disk.broken = True
    with pytest.raises(StorageError):
        spool.finish("r1", "t0", result("t0"), memory=memory("t0"), trained=True)
    disk.broken = False
    spool.end("r1")
    assert Spool(tmp_path).runs == ()


def test_a_memory_of_a_try_without_result_makes_way_for_that_of_the_next() -> None:
    disk, writes = LossyDisk(), []

    def full(operation: str, path: Path) -> None:
        writes.extend([path] if operation == "write" else [])
        if len(writes) == 3:  # after run.json and the memory
            raise OSError(28, "No space left on device")

    disk.before = full
    with pytest.raises(StorageError):
        Spool(PLACE, disk).finish("r1", "t0", result("t0"), memory=memory("t0", 1.0), trained=True)
    disk.before = lambda operation, path: None
    spool = Spool(PLACE, disk)  # killed, started again, trained again: not to the same bits
    spool.finish("r1", "t0", result("t0"), memory=memory("t0", 2.0), trained=True)
    kept = Spool(PLACE, disk).memory("r1", "t0")
    assert kept is not None
    assert disk.read(kept) == memory("t0", 2.0)
