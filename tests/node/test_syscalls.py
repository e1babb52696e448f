"""Calls of the kernel that job code may not make: each attack succeeds without the filter."""

from __future__ import annotations

import errno
import json
import platform
import subprocess
import sys

import pytest

from atoll.node.room import syscalls

pytestmark = pytest.mark.skipif(bool(syscalls.trouble()), reason=syscalls.trouble() or "none")

START = """
import ctypes, errno, fcntl, json, mmap, os, socket, struct, subprocess, sys, tempfile, threading
import numpy as np
from atoll.node.room import syscalls
if sys.argv[1] == "shut":
    syscalls.forbid()
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    found = libc.syscall(ctypes.c_long(number), *(wide or [ctypes.c_long(0)] * 6))
    return "done" if found >= 0 else errno.errorcode[ctypes.get_errno()]
def reach(act):
    try:
        return repr(act())
    except OSError as error:
        return errno.errorcode[error.errno]
found = {}
"""
COLUMN = 0 if platform.machine() == "x86_64" else 1


def run(code: str, *, shut: bool) -> dict[str, str]:
    command = [sys.executable, "-c", START + code + "\nprint(json.dumps(found))"]
    done = subprocess.run([*command, "shut" if shut else "open"], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def number(name: str) -> int:
    return {**syscalls._FORBIDDEN, **syscalls._UNKNOWN}[name][COLUMN]


ATTACKS = f"""
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
theirs, mine = ctypes.create_string_buffer(b"theirs", 7), ctypes.create_string_buffer(7)
child = os.fork()
if not child:
    import time
    time.sleep(30)
    os._exit(0)
there, here = Part(ctypes.addressof(theirs), 7), Part(ctypes.addressof(mine), 7)
reading = [child, ctypes.byref(here), 1, ctypes.byref(there), 1, 0]
found["reads another's memory"] = call({number("process_vm_readv")}, *reading)
found["traces another"] = call({number("ptrace")}, 0x4206, child, 0, 0)
os.kill(child, 9)
found["memory behind a number"] = call({number("memfd_create")}, b"x", 0)
found["memory without a process"] = call({number("shmget")}, 0, 1 << 20, 0o1600)
found["queues of the kernel"] = call({number("msgget")}, 0, 0o1600)
found["a namespace"] = call({number("unshare")}, 0x10000000)
numbers = [{syscalls._CLONE[COLUMN]}, 0x10000011, 0, 0, 0, 0]
made = libc.syscall(*map(ctypes.c_long, numbers))
if made == 0:
    os._exit(0)
found["a namespace by clone"] = "done" if made > 0 else errno.errorcode[ctypes.get_errno()]
found["another address"] = reach(lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) and 1)
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "file")
    open(path, "w").close()
    with open(path) as file:
        lease = lambda: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        found["keeps others from opening"] = reach(lambda: lease() == 0 and 1)
    with open(path) as file:
        read = struct.pack("IHH", 0, fcntl.F_RDLCK, 0)
        found["is asked before others write"] = reach(lambda: fcntl.fcntl(file, 1024 + 16, read) and 1)
found["hides what it holds"] = "done" if libc.prctl(4, 0, 0, 0, 0) == 0 else "EPERM"
"""


def test_attacks_that_succeed_without_it_do_not_with_it() -> None:
    before, after = run(ATTACKS, shut=False), run(ATTACKS, shut=True)
    works = {name for name, said in before.items() if said in ("done", "1")}
    assert len(works) >= 8, before  # of eleven; a container may forbid some, a kernel not have one
    assert set(after.values()) <= {"EPERM", "ENOSYS", "EAFNOSUPPORT"}, after


def test_every_call_on_the_list_is_refused() -> None:
    lists = (syscalls._FORBIDDEN, "EPERM"), (syscalls._UNKNOWN, "ENOSYS")
    told = {
        name: (numbers[COLUMN], said) for calls, said in lists for name, numbers in calls.items()
    }
    code = "".join(f"found[{name!r}] = call({at})\n" for name, (at, _) in told.items())
    assert run(code, shut=True) == {name: said for name, (_, said) in told.items()}


COMPUTES = """
import sqlite3, tempfile, multiprocessing
import multiprocessing.shared_memory as shared
def double(n):
    return 2 * n
found["import"] = repr(__import__("decimal").Decimal(3))
found["numbers"] = repr(float(np.linalg.det(np.eye(3))))
found["program"] = repr(subprocess.run(["/bin/echo", "7"], capture_output=True).stdout)
with multiprocessing.get_context("fork").Pool(2) as pool:
    found["pool"] = repr(pool.map(double, [1, 2]))
block = shared.SharedMemory(create=True, size=1 << 16)
block.buf[0] = 7
found["shared"] = repr(block.buf[0])
block.close()
block.unlink()
found["map"] = repr(mmap.mmap(-1, 1 << 16).write(b"7"))
thread = threading.Thread(target=found.update, args=({"thread": "1"},))
thread.start()
thread.join()
found["call back"] = repr(ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(double)(4))
found["pair"] = repr(bool(socket.socketpair()))
with tempfile.TemporaryFile() as file:
    found["file"] = repr(file.write(b"7"))
found["store"] = repr(sqlite3.connect(":memory:").execute("select 7").fetchone())
"""


def test_whatever_computing_needs_works_behind_it() -> None:
    assert run(COMPUTES, shut=True) == run(COMPUTES, shut=False)


def test_it_goes_on_to_other_programs() -> None:
    code = f"""
told = "import ctypes; print(ctypes.CDLL(None).syscall({number("add_key")}, 0, 0, 0, 0, 0))"
inner = told.replace("print", "e = ctypes.get_errno; print").replace("None)", "None, use_errno=True)")
inner = inner + "; print(e())"
made = subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True).stdout
found["program"] = made.split()[-1]
"""
    assert run(code, shut=True)["program"] == str(errno.EPERM)
    assert run(code, shut=False)["program"] != str(errno.EPERM)


def test_without_a_filter_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(syscalls, "_prctl", without)
    syscalls.trouble.cache_clear()
    try:
        assert "filters no calls" in syscalls.trouble()
        monkeypatch.setattr(platform, "machine", lambda: "s390x")
        syscalls.trouble.cache_clear()
        assert "s390x" in syscalls.trouble()
    finally:
        syscalls.trouble.cache_clear()
