"""System calls that job code may not make: a filter of the kernel's, :manpage:`seccomp(2)`, on Linux.

Computing needs few of the kernel's some four hundred calls. Those that are refused here look into other
processes, change what there is to be seen, load code into the kernel, or hold memory that no limit counts;
many of them have been a way out of a sandbox. What they need is mostly forbidden in a room anyway: this is
the second lock on that door, and the only one where no room can be made.

A call that a library can do without is answered as by a kernel that does not have it, so that the library
takes its other way; any other one is "not permitted". The filter goes on to all that the process starts,
and nobody can take it off.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import sys
from collections.abc import Iterator
from functools import cache

__all__ = ["forbid", "trouble"]

_FORBIDDEN = {  # by their numbers on x86-64 and on 64-bit Arm
    # other processes, and what they hold
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # what there is to be seen
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # the kernel itself
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "lookup_dcookie": (212, 18),
    # memory that is in no process, and outlives whoever made it
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
}
_UNKNOWN = {
    # memory behind a number that can be sent to oneself, and is in no process then
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # makes calls that no filter sees
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # says what it is to do where no filter sees it; libraries go on with clone
    "clone3": (435, 435),
}
_CLONE, _SOCKET, _PRCTL, _FCNTL = (56, 220), (41, 198), (157, 167), (72, 25)
_ROOMS = 0x7E020000
"""A new namespace of any kind, among the flags of ``clone``."""
_FAMILIES = (1, 2, 10, 16)
"""Unix, IPv4, IPv6, netlink. A room has a network of its own for these; not for others, such as a way to the
host of a virtual machine (vsock)."""
_LOOKED_INTO = 4
"""``PR_SET_DUMPABLE``: who takes it back cannot be measured by the node."""
_LEASES = (1024, 1040)
"""``F_SETLEASE`` and, from Linux 6.19 on, ``F_SETDELEG``, for folders too: whoever opens the file then, or
changes the folder, the node too, waits for the holder to let go, up to 45 s."""

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_FILTER, _NO_NEW_RIGHTS = 22, 38
_NUMBER, _MACHINE, _FIRST, _SECOND = 0, 4, 16, 24  # where they lie in what a filter is shown
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_OTHER_TABLE = 0x40000000
"""Numbers from here on are calls of x86-64 with short pointers."""


class _Line(ctypes.Structure):
    """One step: what to do, how many to pass over where it holds and where not, and a value."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("yes", ctypes.c_uint8),
        ("no", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("lines", ctypes.POINTER(_Line)))


@cache
def trouble() -> str:
    """Why no calls can be forbidden on this machine; empty where they can."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return f"{platform.system()} on {platform.machine()} has no such filter here"
    try:
        _prctl(_FILTER, 2, None)
    except OSError as error:  # as it must, without a filter; a kernel that knows none says so first
        if error.errno != errno.EFAULT:
            return f"the kernel filters no calls: {error.strerror}"
    return ""


def forbid() -> None:
    """Forbid the calling thread, and all that it starts, what job code may not do; for good.

    Raises:
        OSError: the kernel does not.
    """
    lines = list(_lines(*_MACHINES[platform.machine()]))
    program = _Program(len(lines), (_Line * len(lines))(*lines))
    _prctl(_NO_NEW_RIGHTS, 1, 0, 0, 0)  # or it would need an administrator's
    _prctl(_FILTER, 2, ctypes.byref(program))


def _prctl(*arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    wide = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    if libc.prctl(*wide) < 0:
        raise OSError(ctypes.get_errno(), "prctl: " + errno.errorcode.get(ctypes.get_errno(), "?"))


def _lines(column: int, machine: int) -> Iterator[_Line]:
    """The filter, step by step."""
    yield _Line(_LOAD, 0, 0, _MACHINE)
    yield _Line(_EQUAL, 1, 0, machine)
    yield _refuse(errno.ENOSYS)  # a program for another processor has other numbers
    yield _Line(_LOAD, 0, 0, _NUMBER)
    yield _Line(_AT_LEAST, 0, 1, _OTHER_TABLE)
    yield _refuse(errno.ENOSYS)
    for calls, answer in ((_FORBIDDEN, errno.EPERM), (_UNKNOWN, errno.ENOSYS)):
        for numbers in calls.values():
            yield _Line(_EQUAL, 0, 1, numbers[column])
            yield _refuse(answer)
    yield from _if(_CLONE[column], [_Line(_ANY_BIT, 0, 1, _ROOMS), _refuse(errno.EPERM)])
    yield from _if(_PRCTL[column], [_Line(_EQUAL, 0, 1, _LOOKED_INTO), _refuse(errno.EPERM)])
    leases = [step for one in _LEASES for step in (_Line(_EQUAL, 0, 1, one), _refuse(errno.EPERM))]
    yield from _if(_FCNTL[column], leases, _SECOND)
    known = [_Line(_EQUAL, len(_FAMILIES) - at, 0, one) for at, one in enumerate(_FAMILIES)]
    yield from _if(_SOCKET[column], [*known, _refuse(errno.EAFNOSUPPORT)])
    yield _Line(_ANSWER, 0, 0, _ALLOW)


def _if(number: int, lines: list[_Line], argument: int = _FIRST) -> Iterator[_Line]:
    """What is looked at in an argument of one call; what comes after the lines is that it is allowed."""
    yield _Line(_EQUAL, 0, len(lines) + 2, number)
    yield _Line(_LOAD, 0, 0, argument)
    yield from lines
    yield _Line(_ANSWER, 0, 0, _ALLOW)


def _refuse(number: int) -> _Line:
    return _Line(_ANSWER, 0, 0, _REFUSE | number)
