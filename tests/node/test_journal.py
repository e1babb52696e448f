"""What a journal takes survives any crash; a file that is not as it was written is refused, the line named."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
from journals import KEY, OTHER_KEY, Crash, crash_at, touched

from atoll.core.errors import AuthError, StorageError
from atoll.node.journal import Head, Journal, read_journal
from atoll.wire.disk import RealDisk
from atoll.wire.lossy_disk import LossyDisk

PLACE = Path("/node/book.jsonl")
HEAD = Path("/node/book.jsonl.head")


def written(path: Path, count: int, what: str = "spent") -> Journal:
    journal = Journal(path, KEY)
    for number in range(len(journal.lines), count):
        journal.append({what: number})
    return journal


def test_lines_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    first = written(path, 3)
    again = Journal(path, KEY)
    assert again.lines == ({"spent": 0}, {"spent": 1}, {"spent": 2}) == first.lines
    assert again.head == first.head
    again.append({"spent": 3})
    assert len(read_journal(path, KEY.public_bytes).bodies) == 4


def test_reading_changes_nothing_and_needs_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    assert read_journal(path, KEY.public_bytes).bodies == ()
    assert list(tmp_path.iterdir()) == []
    written(path, 2)
    with path.open("ab") as file:
        file.write(b'{"before":"ab')
    before = path.read_bytes()
    assert read_journal(path, KEY.public_bytes).torn
    assert path.read_bytes() == before


def test_whatever_is_done_to_the_file_is_found_and_the_line_named(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    written(path, 5)
    raw = path.read_bytes()
    seen = 0
    for what, line, changed in touched(raw):
        path.write_bytes(changed)
        with pytest.raises(StorageError) as caught:
            Journal(path, KEY)
        named = re.search(r"line (\d+)", caught.value.message)
        assert named is not None, what
        assert int(named[1]) == line, (what, caught.value.message)
        assert path.read_bytes() == changed  # left as found, for whoever looks into it
        seen += 1
    assert seen > 100
    path.write_bytes(raw)
    assert len(Journal(path, KEY).lines) == 5


def test_an_older_copy_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    for count in range(4):
        (tmp_path / f"copy {count}").write_bytes(path.read_bytes() if path.exists() else b"")
        written(path, count + 1)
    for count in range(4):
        path.write_bytes((tmp_path / f"copy {count}").read_bytes())
        with pytest.raises(StorageError, match=rf"line {count + 1}: is missing"):
            Journal(path, KEY)
    path.unlink()
    with pytest.raises(StorageError, match="line 1: is missing"):
        Journal(path, KEY)


def test_another_file_of_the_same_length_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "book.jsonl", tmp_path / "other" / "book.jsonl"
    written(path, 3)
    written(other, 4, "less")
    path.write_bytes(other.read_bytes())  # well formed, and a line longer
    with pytest.raises(StorageError, match="line 3: is not the one that was written"):
        Journal(path, KEY)


def test_a_head_that_is_gone_or_not_the_site_s_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.jsonl"
    head = tmp_path / "book.jsonl.head"
    written(path, 2)
    raw = head.read_bytes()
    for damage in (b"", raw[:-3], raw.replace(b"2.", b"1.", 1), b"\xff" + raw):
        head.write_bytes(damage)
        with pytest.raises(StorageError, match=r"book\.jsonl\.head is damaged"):
            Journal(path, KEY)
    head.write_bytes(raw)
    with pytest.raises(StorageError, match="not written with this site's key"):
        Journal(path, OTHER_KEY)
    head.unlink()
    with pytest.raises(StorageError, match=r"book\.jsonl\.head is missing"):
        Journal(path, KEY)


def test_a_folder_put_back_as_a_whole_is_found_by_a_head_seen_elsewhere(tmp_path: Path) -> None:
    path, head = tmp_path / "book.jsonl", tmp_path / "book.jsonl.head"
    old = written(path, 2)
    copy = path.read_bytes(), head.read_bytes()
    early, seen = old.head, written(path, 4).head
    assert written(path, 5).objection(seen) == ""
    path.write_bytes(copy[0])
    head.write_bytes(copy[1])
    back = Journal(path, KEY)
    assert back.objection(early) == ""
    assert "line 4 was seen" in back.objection(seen)
    for number in range(3):  # a fork: another history of the same length and longer
        back.append({"other": number})
    assert "line 4 of" in back.objection(seen)
    assert "replaced" in back.objection(seen)
    forged = Head(9, seen.digest, seen.signature)
    assert back.objection(forged) == ""  # nobody but the site can say what it wrote


def test_a_head_travels_as_text() -> None:
    journal = Journal(PLACE, KEY, LossyDisk())
    journal.append({"a": 1})
    head = Head.parse(str(journal.head))
    assert head == journal.head
    head.check("book.jsonl", KEY.public_bytes)
    for name, key in (("other.jsonl", KEY), ("book.jsonl", OTHER_KEY)):
        with pytest.raises(AuthError):
            head.check(name, key.public_bytes)
    for text in ("", "1", "1.2.3", "01" + str(head), "x" * 5000):
        with pytest.raises(AuthError):
            Head.parse(text)


def work(journal: Journal, told: list[int]) -> None:
    """Five lines; ``told`` are those of which somebody was told."""
    for number in range(len(journal.lines), 5):
        journal.append({"n": number}, anchor=number % 2 == 0)
        told.append(number)


def operations() -> int:
    count = 0

    def before(operation: str, path: Path) -> None:
        nonlocal count
        count += 1

    work(Journal(PLACE, KEY, LossyDisk(before)), [])
    return count


@pytest.mark.parametrize("power", [False, True], ids=["program", "power"])
def test_after_a_crash_at_any_operation_every_line_is_there_of_which_somebody_was_told(
    power: bool,
) -> None:
    total = operations()
    assert total > 30
    for number in range(1, total + 1):
        for seed in range(6 if power else 1):
            disk, told = crash_at(number), list[int]()
            with pytest.raises(Crash):
                work(Journal(PLACE, KEY, disk), told)
            if power:
                disk.crash(Random(seed) if seed else None)
            after = Journal(PLACE, KEY, disk)
            found = [body["n"] for body in after.lines]
            assert found[: len(told)] == told
            assert len(found) <= len(told) + 1  # at most one more than anybody knows of
            work(after, told)
            assert [b["n"] for b in Journal(PLACE, KEY, disk).lines] == [0, 1, 2, 3, 4]


def test_what_the_disk_refused_is_written_at_the_next_try(tmp_path: Path) -> None:
    class Full(RealDisk):
        refused = ""

        def fsync(self, path: Path) -> None:
            if self.refused and path.name.endswith(self.refused):
                raise StorageError("no space left on device")
            super().fsync(path)

    for refused in ("book.jsonl", ".partial"):  # the line, or its head
        disk, path = Full(), tmp_path / refused / "book.jsonl"
        journal = Journal(path, KEY, disk)
        journal.append({"n": 0})
        disk.refused = refused
        with pytest.raises(StorageError, match="no space"):
            journal.append({"n": 1})
        before = Journal(path, KEY)  # what another start finds at this moment
        assert len(before.lines) in (1, 2)
        disk.refused = ""
        journal.secure()
        journal.append({"n": 2})
        after = Journal(path, KEY)
        assert after.head == journal.head
        assert (
            [body["n"] for body in after.lines] == [0, 2] if refused == "book.jsonl" else [0, 1, 2]
        )
