"""What lies between a site and a server: a CONNECT proxy, a line that breaks, a network of one's own."""

from __future__ import annotations

import base64
import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_PIECE = 1 << 16


def listening(host: str = "127.0.0.1") -> socket.socket:
    """A socket that listens on a free port."""
    made = socket.socket()
    made.bind((host, 0))
    made.listen(64)
    return made


class Passing:
    """Accepts connections and passes bytes on, each connection in a thread of its own.

    Args:
        listener: accepted from.
        target: where a connection goes: reads what it needs of it and dials; None to hang up.
        count: told how many bytes were passed towards the target; False hangs up.

    Attributes:
        passed: for whoever counts.
    """

    def __init__(
        self,
        listener: socket.socket,
        target: Callable[[socket.socket], socket.socket | None],
        count: Callable[[int], bool] = lambda size: True,
    ) -> None:
        self._listener, self._target, self._count = listener, target, count
        self._closed = False
        self.passed = 0
        self.port = listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Passing:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                if not select.select([self._listener], [], [], 0.1)[0]:
                    continue
                here, _ = self._listener.accept()
            except (OSError, ValueError):
                return
            threading.Thread(target=self._pass, args=(here,), daemon=True).start()

    def _pass(self, here: socket.socket) -> None:
        with here, contextlib.suppress(OSError):
            there = self._target(here)
            if there is None:
                return
            with there:
                while not self._closed:
                    ready, _, _ = select.select([here, there], [], [], 0.1)
                    for source in ready:
                        piece = source.recv(_PIECE)
                        if not piece:
                            return
                        if source is there:
                            here.sendall(piece)
                            continue
                        there.sendall(piece)
                        if not self._count(len(piece)):
                            return


class Proxy(Passing):
    """A CONNECT proxy that wants a password and knows where names lead.

    Args:
        listener: accepted from.
        names: local ports by the ``host:port`` that may be asked for.

    Attributes:
        asked: every ``host:port`` that was asked for.
        url: as a site writes it.
    """

    USER = "site:secret"

    def __init__(self, listener: socket.socket, names: Mapping[str, int]) -> None:
        self.asked: list[str] = []
        self._names = dict(names)
        super().__init__(listener, self._connect)
        self.url = f"http://{self.USER}@127.0.0.1:{self.port}"

    def _connect(self, here: socket.socket) -> socket.socket | None:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = here.recv(1)
            if not piece:
                return None
            head += piece
        method, address, _ = head.split(b"\r\n")[0].decode().split(" ")
        login = base64.b64encode(self.USER.encode())
        if b"Proxy-Authorization: Basic " + login not in head:
            here.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return None
        self.asked.append(address)
        if method != "CONNECT" or address not in self._names:
            here.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return None
        there = socket.create_connection(("127.0.0.1", self._names[address]))
        here.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return there


@contextlib.contextmanager
def breaking_line(listener: socket.socket, port: int, cuts: list[int]) -> Iterator[Passing]:
    """A line to a local port that breaks whenever so many bytes in all have gone up.

    Args:
        listener: its other end.
        port: where it leads.
        cuts: bytes, rising; used up from the front, and others may be added.
    """
    lock = threading.Lock()

    def dial(here: socket.socket) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port))

    def count(size: int) -> bool:
        with lock:
            line.passed += size
            broken = bool(cuts) and line.passed >= cuts[0]
            if broken:
                cuts.pop(0)
            return not broken

    line = Passing(listener, dial, count)
    with line:
        yield line


# Alone in a network -------------------------------------------------------------------------------

ALONE = [sys.executable, str(Path(__file__)), "alone"]
"""A command that runs another in a network where nothing is but a port that somebody else accepts from.

    ALONE + [path of a Unix socket, command, arguments...]

The listening socket is made inside that network and handed out through the Unix socket, so the process at
the other end of it, which is outside, is all that can be reached.
"""


def can_be_alone() -> bool:
    """Whether this machine lets us make networks."""
    made = subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False)
    return made.returncode == 0


_UNSHARE = ["unshare", "--net", "--map-root-user"]


def handed_out(path: Path) -> Callable[[], socket.socket]:
    """Wait at a Unix socket for the listening socket of a network; call the result to get it."""
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(path))
    door.listen(1)

    def take() -> socket.socket:
        door.settimeout(30)
        with door:
            visitor, _ = door.accept()
            with visitor:
                _, numbers, _, _ = socket.recv_fds(visitor, 16, 1)
        return socket.socket(fileno=numbers[0])

    return take


def _inside(path: str, command: list[str]) -> None:
    """Runs in the new network: bring up its loopback, hand out a listening socket, become the command."""
    import fcntl
    import struct

    with socket.socket() as probe:
        name = b"lo".ljust(16, b"\0")
        flags = struct.pack("16sH14x", name, 0x1 | 0x40)  # up and running
        fcntl.ioctl(probe.fileno(), 0x8914, flags)  # SIOCSIFFLAGS
    listener = listening()
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(path)
        socket.send_fds(door, [b"here"], [listener.fileno()])
    port = listener.getsockname()[1]
    listener.close()
    os.environ["HTTPS_PROXY"] = f"http://{Proxy.USER}@127.0.0.1:{port}"
    os.execvp(command[0], command)


def listening_sockets(pid: int) -> list[str]:
    """The lines of ``/proc/net/tcp`` and its like for sockets of a process that others may connect to."""
    own = set()
    for number in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            target = os.readlink(number)
            if target.startswith("socket:["):
                own.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        path = Path(f"/proc/{pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            words = line.split()
            if words[9] in own and (words[3] == "0A" or table.startswith("udp")):
                found.append(f"{table} {line}")
    return found


if __name__ == "__main__":
    if sys.argv[1] == "alone":
        os.execvp(_UNSHARE[0], [*_UNSHARE, sys.executable, __file__, "inside", *sys.argv[2:]])
    _inside(sys.argv[2], sys.argv[3:])
