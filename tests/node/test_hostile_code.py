"""Job code that means ill: each attack ends as the failure of its task, named, and the node works on."""

from __future__ import annotations

import os
import re
from pathlib import Path

import fake_federation as ff
import pytest

from atoll.core.errors import WireError
from atoll.node.room import dispatcher, sandbox
from atoll.node.room.scratch import clear, size_of, taken

CODE = """
import fcntl, gc, mmap, os, pickle, signal, time
from pathlib import Path
import numpy as np
from atoll.node.orders import Order, Report, send
from atoll.node.room.workplace import written
from atoll.wire.frames import encode

def initial(generator):
    return {"w": np.zeros(3)}

def evaluate(parameters, data):
    return {"loss": 0.0}

def find():
    orders = [o for o in gc.get_objects() if isinstance(o, Order)]
    order = max(orders, key=lambda o: o.task.number)
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            pipe = os.readlink(f"/proc/self/fd/{number}").startswith("pipe:")
            if number > 2 and pipe and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                return order, number
        except OSError:
            pass

def says(order, pipe):
    send(pipe, Report(task=order.task.id, kept=False))
    time.sleep(600)

def keeps(order, pipe, memory):
    body = written(order.task.id, "done", examples=42, weight=1.0, seconds=0.1)
    Path(order.result).write_bytes(encode(body, {"parameters": np.zeros(3)}))
    Path(order.keep).write_bytes(memory)
    send(pipe, Report(task=order.task.id, kept=True))
    time.sleep(600)

def fit(parameters, data, context):
    if parameters["w"][0]:
        order, pipe = find()
        ATTACK
    return {"w": parameters["w"] + 1}, {"loss": 0.5}
"""

FILES = "files in memory"
ATTACKS = {
    "a pipe that nobody writes": ("os.mkfifo(order.result); says(order, pipe)", "is no plain file"),
    "a link": ('os.symlink("/etc/hostname", order.result); says(order, pipe)', "is no plain file"),
    "a folder": ("os.mkdir(order.result); says(order, pipe)", "is no plain file"),
    "a file with another name": (
        'Path("mine").touch(); os.link("mine", order.result); says(order, pipe)',
        "is no plain file",
    ),
    "a file that is not whole": (
        'file = open(order.result, "wb"); says(order, pipe)',
        "wrote what is no answer: .*is not a frame",
    ),
    "a file that it has mapped": (
        'file = open(order.result, "w+b"); file.truncate(4096); held = mmap.mmap(file.fileno(), 4096); '
        "file.close(); says(order, pipe)",
        "wrote what is no answer: these bytes are not a frame",
    ),
    "a file that nobody may read": (
        "Path(order.result).touch(); os.chmod(order.result, 0); says(order, pipe)",
        "is no plain file|is not a frame",  # an administrator may
    ),
    "a file that is too long": (
        'file = open(order.result, "wb"); file.truncate(30 << 20); says(order, pipe)',
        "has 31457280 bytes, and may have 21474836",
    ),
    "no memory": (
        "Path(order.result).touch(); send(pipe, Report(task=order.task.id, kept=True)); time.sleep(600)",
        "without the memory that it speaks of",
    ),
    "a memory that is none": (
        "keeps(order, pipe, bytes(100))",
        "wrote what is no answer: these bytes are not a frame",
    ),
    "a memory of another task": (
        'keeps(order, pipe, encode({"task": "r1.train.9.west"}))',
        "wrote what is no answer: a memory that is not of its task",
    ),
    "a result of another task": (
        'Path(order.result).write_bytes(encode(written("r1.train.9.west", "done"))); says(order, pipe)',
        "wrote what is no answer: it is that of 'r1.train.9.west'",
    ),
    "nothing": ("says(order, pipe)", "without a result"),
    "words of another task": (
        'send(pipe, Report(task="r1.train.9.west", kept=False)); time.sleep(600)',
        "of a task that it was not given",
    ),
    "a message without end": (
        'os.write(pipe, (1 << 40).to_bytes(8, "little")); time.sleep(600)',
        "a message of 1099511627776 bytes",
    ),
    "a pickle": (
        "raw = pickle.dumps(print) + bytes(64); "
        'os.write(pipe, len(raw).to_bytes(8, "little") + raw); time.sleep(600)',
        "these bytes are not a frame",
    ),
    "a closed pipe": ("os.closerange(3, 64); time.sleep(600)", "closed its pipe to the node"),
    "an end in a deep place": (
        'for _ in range(3000): os.mkdir("d"); os.chdir("d")\n        os._exit(5)',
        "ended by itself with status 5|wrote more than",
    ),
    "an end of all around it": (
        "os.kill(os.getppid(), 9); os.kill(0, 9); time.sleep(600)",
        "was killed from outside",
    ),
    "a full disk": (
        "for n in range(9999): Path(str(n)).write_bytes(bytes(1 << 20)); time.sleep(0.01)",
        "wrote more than the 0.02 GiB",
    ),
    "memory that is shared": (
        "held = [mmap.mmap(-1, 1 << 26) for _ in range(20)]\n        "
        'for part in held: part.write(b"x" * (1 << 26))\n        time.sleep(600)',
        "held more than the 1 GiB of memory",
    ),
    "memory of many": (
        'for _ in range(6): os.fork() or ([b"x" * (1 << 28)], time.sleep(600))\n        '
        "time.sleep(600)",
        "held more than the 1 GiB of memory",
    ),
    FILES: (
        'file = os.open("/dev/shm/x", os.O_CREAT | os.O_RDWR); os.unlink("/dev/shm/x"); '
        "os.posix_fallocate(file, 0, 1000 << 20); time.sleep(600)",
        "held more than the 1 GiB of memory",
    ),
    "a file without a name": (
        'file = open("x", "wb"); os.unlink("x"); file.write(bytes(30 << 20)); file.flush(); '
        "time.sleep(600)",
        "wrote more than the 0.02 GiB",
    ),
    "a file in memory alone": (
        'file = open("x", "w+b"); file.truncate(30 << 20); held = mmap.mmap(file.fileno(), 30 << 20); '
        'os.unlink("x"); file.close(); held.write(b"x" * (30 << 20)); time.sleep(600)',
        "wrote more than the 0.02 GiB",
    ),
    "many processes": (
        "for _ in range(150): os.fork() or time.sleep(600)\n        time.sleep(600)",
        "ran more than the 100 processes and threads|BlockingIOError",
    ),
    "no end": (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(os.getpid(), signal.SIGSTOP)",
        "took longer than the 2 s",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_ends_as_a_failure_that_is_named_and_the_node_works_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    if attack == FILES and sandbox.trouble():
        pytest.skip(sandbox.trouble())
    code, reason = ATTACKS[attack]
    monkeypatch.setattr(ff, "OWN", CODE.replace("ATTACK", code))
    monkeypatch.setattr(dispatcher, "_START", 10.0)
    server = ff.FakeServer()
    solo = ff.Solo(server, tmp_path)
    seconds = 2.0 if attack == "no end" else 60.0
    few = {"disk": 0.02, "memory": 1.0, "processes": 100, "seconds": seconds}
    limits = ff.LIMITS.model_copy(update=few)
    node = ff.node_at(tmp_path, "east", server, ff.table_text(1), limits=limits)
    with ff.Running(node):
        body, _ = server.result(solo.train(1.0).id)
        assert body.status == "failed"
        assert re.search(reason, body.reason), body.reason
        assert str(tmp_path) not in body.reason
        assert server.result(solo.train().id)[0].status == "done"  # by another worker
    work = tmp_path / "east" / "work"  # the last worker's folder may be on its way out
    ff.eventually(lambda: not any("d" in folders for _, folders, _ in os.walk(work)))


def test_what_it_prints_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud = 'for _ in range(1600): print("x" * 65535)'
    monkeypatch.setattr(ff, "OWN", CODE.replace("ATTACK", loud))
    server = ff.FakeServer()
    solo = ff.Solo(server, tmp_path)
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1), log=1.0)):
        assert server.result(solo.train(1.0).id)[0].status == "done"
    kept = [path.stat().st_size for path in (tmp_path / "east" / "logs").iterdir()]
    assert 0 < sum(kept) <= 1 << 20


@pytest.mark.parametrize("way", ["raise SystemExit(0)", "import os; os._exit(0)"])
def test_code_that_ends_when_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(ff, "OWN", f"{way}\n{CODE}")
    server = ff.FakeServer()
    solo = ff.Solo(server, tmp_path)
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1))):
        body, _ = server.result(solo.train().id)
    assert body.status == "failed"
    assert "SystemExit" in body.reason or "ended by itself with status 0" in body.reason


def test_no_more_runs_at_once_than_the_site_allows(tmp_path: Path) -> None:
    server = ff.FakeServer()
    first, second = (ff.Solo(server, tmp_path, run) for run in ("r1", "r2"))
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1), runs=1)):
        assert server.result(first.train().id)[0].status == "done"
        body, _ = server.result(second.train().id)
        assert body.status == "refused"
        assert "works on 1 runs at once" in body.reason
        assert server.result(first.train().id)[0].status == "done"
        server.end("r1")
        ff.eventually(lambda: server.result(second.train().id)[0].status == "done")


# A worker's folder ----------------------------------------------------------------------------------


def deep(folder: Path, levels: int) -> None:
    back = os.open(".", os.O_RDONLY)
    try:
        folder.mkdir()
        os.chdir(folder)
        for _ in range(levels):
            os.mkdir("d")
            os.chdir("d")
        Path("file").write_bytes(bytes(1 << 16))
        os.mkdir("shut", 0)
    finally:
        os.chdir(back)
        os.close(back)


@pytest.mark.parametrize("levels", [0, 10, 3000])
def test_a_folder_is_removed_however_deep_it_is(tmp_path: Path, levels: int) -> None:
    deep(tmp_path / "work", levels)
    clear(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []
    clear(tmp_path / "work")


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    deep(tmp_path / "work", 2000)
    (tmp_path / "work" / "link").symlink_to(tmp_path / "other")
    clear(tmp_path / "work")
    assert (tmp_path / "other" / "file").exists()


def test_the_size_of_a_folder_counts_names_and_depth(tmp_path: Path) -> None:
    deep(tmp_path / "work", 3)
    held = size_of(tmp_path / "work")
    assert (1 << 16) <= held < (1 << 17)
    deep(tmp_path / "deep", 3000)
    assert size_of(tmp_path / "deep") == float("inf")
    clear(tmp_path / "deep")


def test_only_a_plain_file_is_taken(tmp_path: Path) -> None:
    place = tmp_path / "aside"
    (tmp_path / "file").write_text("mine")
    assert taken(str(tmp_path / "file"), place, 4)
    assert place.read_text() == "mine"
    assert not taken(str(tmp_path / "none"), place, 4)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(WireError, match="link is no plain file"):
        taken(str(tmp_path / "link"), place, 4)


def test_what_a_link_leads_to_is_not_removed(tmp_path: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "work"
    deep(other, 3)
    (other / "kept").touch()
    link.symlink_to(other)
    clear(link)
    assert (other / "kept").exists()
    assert (other / "d" / "d" / "d" / "file").exists()
