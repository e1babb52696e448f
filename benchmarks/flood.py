"""What strangers can cost a real server: 10,000 connections, half requests, bodies that do not end.

Run ``python -m benchmarks.flood [connections]``. Told are the server's memory and a member's round trip
before, while connections are opened, and while all that can be held are held.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from atoll.server.home import ServerHome
from atoll.wire.certificates import client_context
from benchmarks.roundtrip import member, server, taken

BOMBS = {
    "declares 10 bytes": b"POST /v1/join HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n",
    "declares 10 GB": b"POST /v1/join HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n",
    "never ends its header": b"GET /v1/health HTTP/1.1\r\nx: ",
}


def memory(pid: int) -> float:
    """MB that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def bomb(port: int, head: bytes) -> int:
    """Send without end; returns the bytes that the server's machine took."""
    sent = 0
    with contextlib.suppress(OSError):
        plain = socket.create_connection(("127.0.0.1", port), timeout=5)
        with client_context().wrap_socket(plain, server_hostname="x") as speaker:
            speaker.sendall(head)
            while sent < 1 << 30:
                speaker.sendall(bytes(1 << 16))
                sent += 1 << 16
    return sent


def crowd(port: int, number: int, now_and_then: Callable[[], None]) -> list[socket.socket]:
    """Connections of which a third is silent, a third in half a handshake, a third in half a request."""
    held: list[socket.socket] = []
    for i in range(number):
        sock = socket.socket()
        sock.settimeout(5)
        with contextlib.suppress(OSError):
            sock.connect(("127.0.0.1", port))
            if i % 3 == 1:
                sock.sendall(b"\x16\x03\x01\x02\x00")
            elif i % 3 == 2 and i < 1500:
                sock = client_context().wrap_socket(sock, server_hostname="x")
                sock.sendall(b"GET /v1/health HTTP/1.1\r\n")
        held.append(sock)
        if i % 50 == 0:
            now_and_then()
    return held


def main(arguments: list[str]) -> None:
    """Measure and print."""
    number = int(arguments[0]) if arguments else 10_000
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(number + 200, hard), hard))
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "server"
        with server(home), member(home, "site") as channel:
            running = ServerHome(home).running() or {}
            pid, port = int(running["pid"]), int(running["port"])

            def ask() -> float:
                return taken(lambda: channel.call("GET", "/v1/federation"))

            def tell(what: str, times: list[float]) -> None:
                middle = statistics.median(times) * 1e3
                print(f"{what:<44} {memory(pid):6.0f} MB  round trip {middle:6.2f} ms")

            for _ in range(50):
                ask()
            tell("before", [ask() for _ in range(300)])
            for name, head in BOMBS.items():
                print(f"a stranger that {name}: {bomb(port, head) / 1e6:.1f} MB taken")
            tell("after these", [ask() for _ in range(300)])
            times: list[float] = []
            began = time.monotonic()
            held = crowd(port, number, lambda: times.append(ask()))
            tell(f"{number} connections in {time.monotonic() - began:.1f} s", times)
            tell("while they are held", [ask() for _ in range(300)])
            began = time.monotonic()
            with member(home, "newcomer") as fresh:
                fresh.call("GET", "/v1/federation")
            print(f"a newcomer joins and asks in {(time.monotonic() - began) * 1e3:.0f} ms")
            for sock in held:
                sock.close()


if __name__ == "__main__":
    main(sys.argv[1:])
