"""A site's audit log: what it took survives any crash, nothing in it changes unnoticed, and it may grow."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from journals import KEY, OTHER_KEY, Crash, crash_at, touched

from atoll.core.errors import AuthError, StorageError
from atoll.node.audit.log import AuditLog
from atoll.node.audit.reading import Checked, check, entries
from atoll.node.journal import START, keep_head
from atoll.wire.disk import Disk, RealDisk
from atoll.wire.lossy_disk import LossyDisk

PLACE = Path("/node/audit")
NAMES = ("a", "b", "c", "d", "e", "f", "g")
MOST = 5  # lines of a file: some of them are the file's own


def opened(folder: Path, disk: Disk | None = None, most: int = MOST) -> AuditLog:
    return AuditLog(folder, KEY, disk, most=most, now=lambda: 1.7e9)


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def write(log: AuditLog, name: str, run: str = "r1") -> None:
    task = f"{run}.train.{name}"
    body = {"what": "answer", "run": run, "task": task, "answer": sha(name)}
    log.answer(task, sha(name), body)


def secured(log: AuditLog, name: str, run: str = "r1") -> bool:
    return log.secured(f"{run}.train.{name}", sha(name))


def answers(folder: Path, disk: Disk | None = None) -> list[str]:
    found = entries(folder, KEY.public_bytes, lambda e: e["what"] == "answer", disk=disk)
    return [entry["task"].rpartition(".")[2] for entry in found]


def checked(folder: Path, disk: Disk | None = None, **more: Any) -> Checked:
    return check(folder, KEY.public_bytes, disk=disk, **more)


def work(log: AuditLog, told: list[str]) -> None:
    """Answers as a node has them; ``told`` are those that may leave."""
    log.joined({"federation": "f", "site": "east"})
    log.register({"sites": {"path": "/east.csv", "columns": {"a": "number"}, "rule": {}}})
    for name in NAMES:
        log.run("r1", {"job": "ab", "by": "ana"})
        if not secured(log, name):
            write(log, name)
        if name == "c":
            log.anchor()
        assert secured(log, name)
        told.append(name)
    log.left()


def test_answers_are_there_once_however_often_they_are_written(tmp_path: Path) -> None:
    log = opened(tmp_path / "audit")
    work(log, [])
    for again, names in ((log, NAMES), (opened(tmp_path / "audit"), NAMES[-3:])):
        for name in names:  # those that may have been on their way
            write(again, name)
        assert all(secured(again, name) for name in NAMES)
        assert not secured(again, "h")
    assert answers(tmp_path / "audit") == list(NAMES)
    found = checked(tmp_path / "audit")
    assert (found.files, found.behind) == (3, 0)
    assert sorted(p.name for p in (tmp_path / "audit").iterdir()) == sorted(
        name for n in (1, 2, 3) for name in (f"audit-{n:06}.jsonl", f"audit-{n:06}.jsonl.head")
    )


def test_an_answer_of_long_ago_is_found_in_its_file(tmp_path: Path) -> None:
    log = opened(tmp_path / "audit")
    work(log, [])
    log.end("r1")  # forgotten by heart
    assert secured(log, "a")
    assert not secured(log, "a", "r2")  # the same bytes, of another task


def test_other_lines_are_written_when_something_has_changed(tmp_path: Path) -> None:
    folder, east = tmp_path / "audit", {"federation": "f", "site": "east"}
    data: dict[str, Any] = {"x": {"path": "/x", "columns": {}, "rule": {"minimum": 11}}}
    for _ in range(3):
        log = opened(folder)
        log.joined(east)
        log.register(data)
    for name in NAMES:  # the state goes along from file to file
        write(log, name)
    log = opened(folder)
    log.joined(east)
    log.register({"x": {**data["x"], "rule": {"minimum": 3}}})
    log.register({})
    log.left()
    log.joined(east)
    found = [e for e in entries(folder, KEY.public_bytes) if e["what"] in _OTHER]
    told = [(e["what"], e.get("change", "")) for e in found]
    assert told == [
        ("joined", ""),
        ("dataset", "registered"),
        ("dataset", "changed"),
        ("dataset", "removed"),
        ("left", ""),
        ("joined", ""),
    ]
    assert found[2]["rule"] == {"minimum": 3}


_OTHER = ("joined", "left", "dataset")


def test_what_was_decided_of_a_job_is_written_when_it_changes_over_files_and_starts(
    tmp_path: Path,
) -> None:
    said = [
        ("a", True, "eva", 1.5, ""),
        ("b", False, "eva", 2.5, "no vote"),
        ("a", False, "bo", 3.5, ""),
    ]
    for name in NAMES:  # over several files; each is opened anew
        log = opened(tmp_path / "audit")
        for one in said[:2] * 2:
            log.decided(*one)
        write(log, name)
    log.decided(*said[2])
    found = list(entries(tmp_path / "audit", KEY.public_bytes, lambda e: e["what"] == "approval"))
    keys = ("request", "decision", "by", "decided", "reason")
    assert [tuple(e[key] for key in keys) for e in found] == [
        (name, "approved" if yes else "denied", by, at, why) for name, yes, by, at, why in said
    ]
    assert checked(tmp_path / "audit").files > 1


def operations() -> int:
    count = 0

    def before(operation: str, path: Path) -> None:
        nonlocal count
        count += 1

    work(opened(PLACE, LossyDisk(before)), [])
    return count


@pytest.mark.parametrize("power", [False, True], ids=["program", "power"])
def test_after_a_crash_at_any_operation_everything_that_may_have_left_is_there_once(
    power: bool,
) -> None:
    total = operations()
    assert total > 100
    for number in range(1, total + 1):
        for seed in range(5 if power else 1):
            disk, told = crash_at(number), list[str]()
            with pytest.raises(Crash):
                work(opened(PLACE, disk), told)
            if power:
                disk.crash(Random(seed) if seed else None)
            before = answers(PLACE, disk)  # a steward may look before the node is started
            after = opened(PLACE, disk)
            assert answers(PLACE, disk) == before
            assert before == list(NAMES[: len(before)])
            assert len(told) <= len(before) <= len(told) + 1
            work(after, [])
            assert answers(PLACE, disk) == list(NAMES)
            checked(PLACE, disk)


def damaged(folder: Path, path: Path, raw: bytes) -> str:
    """What reader and node say of a log with other bytes in a file; both must name the same line."""
    kept = path.read_bytes()
    path.write_bytes(raw)
    try:
        with pytest.raises(StorageError) as caught:
            checked(folder)
        return caught.value.message
    finally:
        path.write_bytes(kept)


def test_whatever_is_done_to_a_file_is_found_and_the_line_named(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    work(opened(folder), [])
    files = sorted(folder.glob("*.jsonl"))
    seen = 0
    for path in files:
        for what, line, changed in touched(path.read_bytes()):
            told = damaged(folder, path, changed)
            named = re.search(r"line (\d+)", told)
            assert named is not None, what
            assert (path.name in told, int(named[1])) == (True, line), (path.name, what, told)
            seen += 1
    assert seen > 500
    assert checked(folder).lines


@given(st.data())
def test_no_bytes_in_place_of_others_are_taken_for_the_log(data: Any) -> None:
    disk = LossyDisk()
    work(opened(PLACE, disk), [])
    numbers = st.sampled_from([n for n in disk.names(PLACE) if n.endswith(".jsonl")])
    path = PLACE / data.draw(numbers)
    raw = disk.read(path)
    start = data.draw(st.integers(0, len(raw) - 1))
    stop = data.draw(st.integers(start, len(raw)))
    other = data.draw(st.one_of(st.binary(max_size=40), st.just(raw[stop : stop + 200])))
    changed = raw[:start] + other + raw[stop:]
    rest = changed[len(raw) :]
    if changed.startswith(raw) and (b"\0" in rest or b"\n" not in rest):
        return  # the same, or a torn line behind the last: nobody was told of it
    disk.write(path, [changed])
    with pytest.raises(StorageError, match=r"line \d+"):
        checked(PLACE, disk)


def test_a_file_that_is_gone_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    work(opened(folder), [])
    for path in sorted(folder.glob("*.jsonl")):
        head = path.with_name(f"{path.name}.head")
        kept = path.read_bytes(), head.read_bytes()
        path.unlink()
        head.unlink()
        with pytest.raises(StorageError, match=rf"{path.name}, line 1: the file is missing"):
            checked(folder)
        path.write_bytes(kept[0])
        with pytest.raises(StorageError, match=r"\.head is missing"):
            checked(folder)
        head.write_bytes(kept[1])
    last = sorted(folder.glob("*.jsonl"))[-1]
    last.unlink()
    last.with_name(f"{last.name}.head").unlink()
    with pytest.raises(StorageError, match=rf"{last.name}, line 1: the file is missing"):
        opened(folder)  # the node does not begin another one in its place
    last.touch()
    keep_head(RealDisk(), last, KEY, 0, START)  # as it was when it began
    for look in (checked, opened):
        with pytest.raises(StorageError, match=rf"{last.name}, line 1: the file is missing"):
            look(folder)


def test_a_file_of_another_history_of_the_same_site_is_found(tmp_path: Path) -> None:
    """As from a copy of the folder that a second node has worked with: each file is good by itself."""
    folder, other = tmp_path / "audit", tmp_path / "other"
    for place, first in ((folder, "a"), (other, "z")):
        log = opened(place)
        for name in (first, *NAMES[1:]):
            write(log, name)
        log.anchor()
    for name in ("audit-000002.jsonl", "audit-000002.jsonl.head"):
        (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(
        StorageError, match=r"audit-000001\.jsonl, line 5: is not what audit-000002"
    ):
        checked(folder)
    with pytest.raises(StorageError, match="line 5: is not what"):
        opened(folder)


def test_a_head_of_another_file_or_key_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    work(opened(folder), [])
    heads = sorted(folder.glob("*.head"))
    raw = heads[1].read_bytes()
    for other in (heads[0].read_bytes(), raw.replace(b"6.", b"5.", 1), b"", raw[:-9]):
        heads[1].write_bytes(other)
        with pytest.raises(StorageError, match=r"audit-000002\.jsonl\.head is damaged"):
            checked(folder)
    heads[1].write_bytes(raw)
    with pytest.raises(StorageError, match="not written with this site's key"):
        check(folder, OTHER_KEY.public_bytes)


def test_a_folder_put_back_as_a_whole_is_found_by_a_head_that_was_kept(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    log = opened(folder)
    write(log, "a")
    log.anchor()
    early = checked(folder).head
    copy = {path: path.read_bytes() for path in folder.iterdir()}
    for name in NAMES[1:3]:
        write(log, name)
    log.anchor()
    near = checked(folder).head
    for name in NAMES[3:]:
        write(log, name)
    log.anchor()
    late = checked(folder).head
    for head in (early, near, late, f"  {late}\n"):
        assert checked(folder, seen=head).head == late
    for path in folder.iterdir():
        path.unlink()
    for path, raw in copy.items():
        path.write_bytes(raw)
    assert checked(folder, seen=early).head == early  # by itself it is a log like any other
    with pytest.raises(StorageError, match=r"line 4 was seen elsewhere: an old copy was put back"):
        checked(folder, seen=near)
    with pytest.raises(StorageError, match=r"audit-000002.*seen elsewhere, and the file is not"):
        checked(folder, seen=late)
    again = opened(folder)
    for name in "xyz":  # another history, as long
        write(again, name)
    again.anchor()
    with pytest.raises(StorageError, match=r"line 4 of .* is another than was seen elsewhere"):
        checked(folder, seen=near)
    other = near[:-100] + ("0" if near[-100] != "0" else "1") + near[-99:]
    for false in ("1", near.replace("1:", "2:", 1), other):
        with pytest.raises(AuthError):
            checked(folder, seen=false)


def test_files_that_were_taken_to_another_place_are_not_missed_when_one_says_so(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "audit"
    work(opened(folder), [])
    for path in [*folder.glob("audit-000001*"), *folder.glob("audit-000002*")]:
        path.unlink()
    with pytest.raises(StorageError, match=r"audit-000001\.jsonl, line 1: the file is missing"):
        checked(folder)
    assert checked(folder, first=3).files == 1
    write(opened(folder), "z")  # a node goes on
    assert checked(folder, first=3).lines


class Failing(RealDisk):
    """A disk that takes nothing for a while."""

    refuses = ""

    def append(self, path: Path, offset: int, data: Any) -> None:
        if self.refuses == "append":
            super().append(path, offset, bytes(data)[:7])
            raise StorageError("no space left on device")
        super().append(path, offset, data)

    def fsync(self, path: Path) -> None:
        if self.refuses == "fsync" and path.suffix == ".jsonl":
            raise StorageError("input/output error")
        super().fsync(path)


@pytest.mark.parametrize("refuses", ["append", "fsync"])
def test_what_the_disk_refused_is_not_told_to_be_there_and_comes_with_the_next_try(
    tmp_path: Path, refuses: str
) -> None:
    disk, folder = Failing(), tmp_path / "audit"
    log = opened(folder, disk, 100)
    write(log, "a")
    assert secured(log, "a")
    disk.refuses = refuses

    def both(name: str) -> None:
        write(log, name)
        secured(log, name)

    for name in "bcb":
        with pytest.raises(StorageError):
            both(name)
    assert answers(folder)[:1] == ["a"]
    disk.refuses = ""
    for name in "bcd":
        write(log, name)
        assert secured(log, name)
    assert sorted(answers(folder)) == ["a", "b", "c", "d"]
    assert checked(folder).lines == 5


def test_a_rare_line_that_the_disk_may_not_have_is_waited_for_by_the_next_try_and_not_written_twice(
    tmp_path: Path,
) -> None:
    disk, folder = Failing(), tmp_path / "audit"
    log, told = opened(folder, disk, 100), {"sites": {"path": "/east.csv"}}
    disk.refuses = "fsync"
    for _ in range(2):
        with pytest.raises(StorageError):
            log.register(told)
    disk.refuses = ""
    log.register(told)
    found = [e["what"] for e in entries(folder, KEY.public_bytes)]
    assert found == ["begins", "dataset"]
    assert checked(folder).lines == 2


def test_lines_that_a_failed_sync_may_have_lost_are_written_again() -> None:
    """After a failed sync the system says that all is well, and the bytes are on no disk."""
    failing = False

    def before(operation: str, path: Path) -> None:
        if failing and operation == "fsync" and path.suffix == ".jsonl":
            file = disk._files[path]
            lost.append(file)
            raise OSError(5, "Input/output error")

    lost: list[Any] = []
    disk = LossyDisk(before)
    log = opened(PLACE, disk, 100)
    write(log, "a")
    failing = True
    with pytest.raises(StorageError):
        secured(log, "a")
    failing = False
    for file in lost:
        file.data = file.data[: len(file.synced)] + bytes(len(file.data) - len(file.synced))
    assert secured(log, "a")
    disk.crash()
    assert answers(PLACE, disk) == ["a"]


def test_zeros_in_place_of_lines_are_a_power_failure_only_where_nobody_was_told_of_them(
    tmp_path: Path,
) -> None:
    """A disk may have got the end of what was written at once, and not its middle."""
    folder = tmp_path / "audit"
    log = opened(folder, None, 100)
    for name in "abcd":
        write(log, name)
        if name == "b":
            log.anchor()
    path = folder / "audit-000001.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    zeros = [bytes(len(line) - 1) + b"\n" for line in whole]
    path.write_bytes(b"".join([*whole[:3], zeros[3], whole[4]]))
    assert answers(folder) == ["a", "b"]
    assert opened(folder, None, 100)
    path.write_bytes(b"".join([*whole[:2], zeros[2], *whole[3:]]))
    with pytest.raises(StorageError, match="line 3: is missing"):
        checked(folder)


def test_threads_write_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    log = opened(folder, None, 20)

    def lines(run: str) -> None:
        for number in range(40):
            write(log, f"{run}{number}", run)
            assert secured(log, f"{run}{number}", run)

    threads = [threading.Thread(target=lines, args=(f"r{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = answers(folder)
    assert sorted(found) == sorted(f"r{n}{k}" for n in range(4) for k in range(40))
    log.anchor()
    assert checked(folder).behind == 0
