"""What job code can reach from its room: the attacks of a hostile job, each of which succeeds without one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_federation as ff
import pytest

from atoll.node.room import rooms, sandbox, syscalls, usage
from atoll.node.room.sandbox import Room
from atoll.node.settings import Limits

pytestmark = pytest.mark.skipif(bool(sandbox.trouble()), reason=sandbox.trouble() or "none")

START = """
import ctypes, json, os, signal, socket, subprocess, sys, time
from pathlib import Path
if sys.argv[2] == "room":
    from atoll.node.room.sandbox import Room, enter
    enter(Room.model_validate_json(sys.argv[1]), 0, os.dup(1))
node, cache, rows, other, free = map(Path, sys.argv[4:9])
def reach(act):
    try:
        return repr(act())
    except Exception as error:
        return type(error).__name__
found = {}
exec(sys.argv[3])
print(json.dumps(found), flush=True)
os._exit(0)
"""


class Site:
    """A node's folder, its datasets, and a process that is in a room there."""

    def __init__(self, path: Path) -> None:
        self.path, self.work = path, path / "node" / "work" / "r1"
        self.node, self.cache = path / "node", path / "node" / "cache"
        self.rows, self.other, self.free = (path / n for n in ("rows.csv", "other.csv", "mine.txt"))
        for folder in (self.work / "room", self.cache, self.node / "ledger", self.node / "queries"):
            folder.mkdir(parents=True)
        (self.node / "identity.pem").write_text("the key")
        (self.node / "ledger" / "ledger.jsonl").write_text("what was spent")
        (self.cache / ("a" * 64)).write_text("a plan")
        self.rows.write_text("a,b\n1,2\n")
        self.other.write_text("another register")
        self.free.write_text("whatever else the user has")

    @property
    def room(self) -> Room:
        reads = [str(self.rows), str(self.cache)]
        hides = [str(self.node), str(self.other)]
        work = str(self.work)
        return Room(folder=work, base=f"{work}/room", reads=reads, hides=hides)

    def start(
        self, code: str, room: bool = True, before: tuple[str, ...] = ()
    ) -> subprocess.Popen[bytes]:
        places = (self.node, self.cache, self.rows, self.other, self.free)
        told = [self.room.model_dump_json(), "room" if room else "open", code, *map(str, places)]
        return subprocess.Popen(
            [*before, sys.executable, "-P", "-c", START, *told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.work,
            start_new_session=True,
        )

    def run(self, code: str, room: bool = True, before: tuple[str, ...] = ()) -> tuple[int, Any]:
        """Status, and what the code has found."""
        process = self.start(code, room, before)
        try:
            out, err = _all(process)
        finally:
            with_group(process)
        assert process.returncode is not None
        return process.returncode, json.loads(out) if out else err.decode()


def _all(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """Everything it says, its input still open."""
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read()
    process.wait(30)
    return out, err


def with_group(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


STEALS = """
found["key"] = reach((node / "identity.pem").read_text)
found["ledger"] = reach((node / "ledger" / "ledger.jsonl").read_text)
found["node"] = reach(lambda: sorted(os.listdir(node)))
found["other"] = reach(other.read_text)
found["free"] = reach(free.read_text)
found["home"] = reach(lambda: os.listdir(os.path.expanduser("~root") or "/root"))
"""


def test_keys_ledger_and_other_datasets_are_not_there(site: Site) -> None:
    _, found = site.run(STEALS)
    gone = ("key", "ledger", "other", "free")
    assert {found[name] for name in gone} == {"FileNotFoundError"}
    assert found["node"] == "['cache', 'work']"
    _, found = site.run(STEALS, room=False)
    assert found["key"] == "'the key'"  # the attack works where there is no room


def test_what_a_task_needs_is_there(site: Site) -> None:
    _, found = site.run(
        """
found["rows"] = reach(rows.read_text)
found["plan"] = reach((cache / ("a" * 64)).read_text)
found["own"] = reach(lambda: Path("own").write_text("mine"))
found["tmp"] = reach(lambda: Path("/tmp/own").write_text("mine"))
found["numpy"] = reach(lambda: __import__("numpy").ones(3).sum())
run = lambda: subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True).stdout
found["python"] = reach(run)
found["random"] = reach(lambda: len(os.urandom(8)) + len(open("/dev/urandom", "rb").read(8)))
"""
    )
    assert found["rows"] == repr("a,b\n1,2\n")
    assert found["plan"] == "'a plan'"
    assert found["own"] == found["tmp"] == "4"
    assert found["python"] == repr(b"7\n")
    assert found["random"] == "16"
    assert "3.0" in found["numpy"]
    assert (site.work / "own").read_text() == "mine"
    assert not Path("/tmp/own").exists()


def test_programs_are_there_though_they_lie_in_the_node_s_folder_or_in_that_of_scratch_files(
    site: Site, tmp_path: Path
) -> None:
    places = [site.node / "venv" / "lib", tmp_path / "lib"]
    for number, place in enumerate(places):
        place.mkdir(parents=True)
        (place / f"beside_{number}.py").write_text(f"VALUE = {number}")
    path = os.pathsep.join(map(str, [*places, site.node]))
    code = """
found["values"] = reach(lambda: (__import__("beside_0").VALUE, __import__("beside_1").VALUE))
found["key"] = reach((node / "identity.pem").read_text)
"""
    _, found = site.run(code, before=("env", f"PYTHONPATH={path}"))
    assert found == {"values": "(0, 1)", "key": "FileNotFoundError"}


def test_nothing_is_written_but_in_the_worker_s_own_folder(site: Site) -> None:
    """A model in the cache would serve the next run; a line in the ledger give back what was spent."""
    code = """
found["cache"] = reach(lambda: (cache / ("a" * 64)).write_text("poison"))
found["new"] = reach(lambda: (cache / "new").write_text("poison"))
found["rows"] = reach(lambda: rows.write_text("poison"))
found["node"] = reach(lambda: (node / "limits.toml").write_text("poison"))
found["library"] = reach(lambda: Path(json.__file__).with_name("poison.py").write_text("poison"))
found["link"] = reach(lambda: os.link(cache / ("a" * 64), "mine"))
"""
    _, found = site.run(code)
    assert found.pop("node") in ("OSError", "6")  # at most into memory that goes with the room
    assert set(found.values()) == {"OSError"}
    assert (site.cache / ("a" * 64)).read_text() == "a plan"
    assert not (site.node / "limits.toml").exists()


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_there_is_no_network(site: Site, listening: int) -> None:
    code = f"""
found["tcp"] = reach(lambda: socket.create_connection(("127.0.0.1", {listening}), 2))
found["udp"] = reach(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9)))
"""
    _, found = site.run(code)
    assert set(found.values()) == {"OSError"}
    _, found = site.run(code, room=False)
    assert "socket.socket" in found["tcp"]


def test_no_other_process_is_seen_or_ended(site: Site) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        code = f"""
found["seen"] = reach(lambda: sorted(int(n) for n in os.listdir("/proc") if n.isdigit()))
found["kill"] = reach(lambda: os.kill({victim.pid}, signal.SIGKILL))
"""
        _, found = site.run(code)
        assert found["kill"] == "ProcessLookupError"
        assert found["seen"] == "[1, 2]"
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.communicate()


def test_rights_over_the_room_are_gone_for_good(site: Site) -> None:
    """Whoever could make another room in it, or take a cover away, would see what is under it."""
    _, found = site.run(
        """
libc = ctypes.CDLL(None, use_errno=True)
found["room"] = libc.unshare(0x10000000)
found["cover"] = libc.umount2(str(node).encode(), 2)
found["mount"] = libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)
found["host"] = libc.chroot(b"/proc/1/root")
"""
    )
    assert found == dict.fromkeys(("room", "cover", "mount", "host"), -1)


DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3):
            os.close(number)
        while True:
            Path("alive").touch()
            time.sleep(0.02)
    os._exit(0)
os.wait()
until = time.monotonic() + 30
while not Path("alive").exists() and time.monotonic() < until:
    time.sleep(0.02)
found["alive"] = Path("alive").exists()
"""


def test_nothing_outlives_the_worker_however_it_hides(site: Site) -> None:
    status, found = site.run(DAEMON)
    assert (status, found) == (0, {"alive": True})
    _still(site.work / "alive")


def _still(path: Path) -> None:
    """Whoever touched it does so no more; the end of a room takes its time on a busy machine."""
    until, before = time.monotonic() + 30, 0
    while (now := path.stat().st_mtime_ns) != before:
        assert time.monotonic() < until
        before = now
        time.sleep(0.5)


@pytest.mark.parametrize("end", ["node", "killed"])
def test_all_end_with_the_node_and_with_whoever_watches(site: Site, end: str) -> None:
    process = site.start(DAEMON + "time.sleep(60)")
    alive = site.work / "alive"
    until = time.monotonic() + 30
    while not alive.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert alive.exists()
    if end == "node":
        assert process.stdin is not None
        process.stdin.close()
    else:
        process.kill()
    threading.Timer(20, process.kill).start()
    process.wait(30)
    _still(alive)
    with_group(process)


def test_signals_to_its_group_and_tracing_reach_nobody_outside(site: Site) -> None:
    """Whoever held or traced those that wait would live on when the node has gone."""
    status, found = site.run(
        """
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
found["group"] = reach(lambda: os.kill(0, signal.SIGUSR1))
found["trace"] = ctypes.CDLL(None).ptrace(16, 1, 0, 0)
found["files"] = reach(lambda: os.readlink("/proc/1/fd/2"))
found["memory"] = reach(lambda: open("/proc/1/mem", "rb"))
"""
    )
    assert (status, found.pop("group"), found.pop("trace")) == (0, "None", -1)
    assert set(found.values()) == {"PermissionError"}


PARENT = """
import subprocess, sys
subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True).wait()
"""


def test_all_end_with_a_node_that_is_killed_though_job_code_holds_its_pipe_open(site: Site) -> None:
    hold = """
os.open("/proc/self/fd/0", os.O_WRONLY)
"""
    process = site.start(hold + DAEMON + "time.sleep(60)", before=(sys.executable, "-c", PARENT))
    alive = site.work / "alive"
    until = time.monotonic() + 30
    while not alive.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert alive.exists()
    process.kill()
    process.wait(30)
    _still(alive)
    with_group(process)


@pytest.mark.parametrize("through", ["", "link"])
def test_what_is_hidden_is_not_shown_by_a_folder_around_it(site: Site, through: str) -> None:
    """Such as one that the site lets job code read, of which it has forgotten what lies in it."""
    shown = site.path / through if through else site.path
    if through:
        shown.symlink_to(site.path)
    room = site.room
    room = room.model_copy(update={"reads": [*room.reads, str(shown)]})
    code = (
        STEALS
        + f"""
found["around"] = reach(Path("{shown}/node/identity.pem").read_text)
found["beside"] = reach(Path("{shown}/other.csv").read_text)
found["rows"] = reach(rows.read_text)
"""
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "room", room)
        _, found = site.run(code)
    hidden = {found[name] for name in ("key", "ledger", "around", "beside")}
    assert hidden <= {"FileNotFoundError", "''"}
    assert found["rows"] == repr("a,b\n1,2\n")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("os._exit(3)", 3),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_the_end_of_the_worker_is_seen_as_it_was(site: Site, code: str, status: int) -> None:
    assert site.run(code)[0] == status


def test_a_room_that_cannot_be_made_says_why(site: Site) -> None:
    (site.work / "room").rmdir()
    status, said = site.run("")
    assert status == sandbox.NOT_MADE
    assert "no room of its own" in said


def test_a_site_that_wants_a_room_has_no_worker_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "trouble", lambda: "the kernel says no")
    assert rooms.finding(Limits(sandbox="auto")).state == "warning"
    found = rooms.finding(Limits(sandbox="on"))
    assert (found.state, found.check) == ("fault", "sandbox")
    assert "the kernel says no" in found.text
    assert rooms.finding(Limits(sandbox="off")).state == "warning"


def test_a_site_is_told_of_each_part_that_its_machine_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    auto, on = Limits(sandbox="auto"), Limits(sandbox="on")
    for part in (sandbox, syscalls, usage):
        monkeypatch.setattr(part, "trouble", lambda: "")
    whole = rooms.finding(on)
    assert (whole.state, whole.text.count("filtered")) == ("ok", 1)
    monkeypatch.setattr(usage, "trouble", lambda: "nobody counts")
    assert rooms.finding(on).state == "warning"
    assert "hold for one process alone: nobody counts" in rooms.finding(on).text
    monkeypatch.setattr(syscalls, "trouble", lambda: "the kernel filters no calls: EINVAL")
    assert [rooms.finding(limits).state for limits in (auto, on)] == ["warning", "fault"]
    assert "the kernel filters no calls: EINVAL" in rooms.finding(auto).text


@pytest.mark.skipif(os.geteuid() != 0, reason="only an administrator covers a part of /proc")
def test_under_a_service_that_covers_kernel_settings_a_room_is_made_and_holds(site: Site) -> None:
    """As ``ProtectKernelTunables=yes`` has it: no fresh list of processes can be shown then."""
    victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        code = f"""
found["kill"] = reach(lambda: os.kill({victim.pid}, signal.SIGKILL))
found["look"] = reach(lambda: open("/proc/{victim.pid}/environ", "rb").read())
found["root"] = reach(lambda: os.listdir("/proc/{victim.pid}/root"))
found["key"] = reach((node / "identity.pem").read_text)
found["self"] = reach(lambda: open("/proc/self/status").readline())
"""
        cover = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "
        _, found = site.run(code, before=("unshare", "--mount", "sh", "-c", cover + '"$@"', "sh"))
        assert found["kill"] == "ProcessLookupError"
        assert found["look"] == found["root"] == "PermissionError"
        assert found["key"] == "FileNotFoundError"
        assert "python" in found["self"]
    finally:
        victim.kill()
        victim.communicate()


SPY = (
    ff.LOOKING
    + """    raise NameError(" ".join(sorted(path.name for path in node.iterdir())))
"""
)


@pytest.mark.parametrize("way", ["auto", "off"])
def test_a_node_gives_such_a_room_to_job_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(ff, "OWN", SPY)
    server = ff.FakeServer()
    solo = ff.Solo(server, tmp_path)
    limits = ff.LIMITS.model_copy(update={"sandbox": way})
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1), limits=limits)):
        said = server.result(solo.train().id)[0].reason
    assert ("datasets.toml" in said) is (way == "off"), said
    assert ("cache" in said) is (way == "off"), said


def test_a_node_that_wants_a_room_and_has_none_takes_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "trouble", lambda: "the kernel says no")
    server = ff.FakeServer()
    solo = ff.Solo(server, tmp_path)
    limits = ff.LIMITS.model_copy(update={"sandbox": "on"})
    with ff.Running(ff.node_at(tmp_path, "east", server, ff.table_text(1), limits=limits)):
        body, _ = server.result(solo.train().id)
    assert body.status == "refused"
    assert "in a sandbox at this site, and none can be made: the kernel says no" in body.reason


def test_a_room_holds_no_more_processes_than_it_may_for_an_administrator_too(site: Site) -> None:
    if sandbox._kernel() < sandbox._COUNTED:
        pytest.skip("this kernel counts numbers of processes for the whole machine")
    before = Path("/proc/sys/kernel/pid_max").read_text()
    code = 'found["most"] = reach(Path("/proc/sys/kernel/pid_max").read_text)'
    room = site.room.model_copy(update={"processes": 64})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "room", room)
        _, found = site.run(code)
    assert found["most"] == repr(f"{64 + sandbox._RESERVED}\n")
    assert Path("/proc/sys/kernel/pid_max").read_text() == before
