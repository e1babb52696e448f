"""What one signed request to a real server costs on the loopback interface.

Run ``python -m benchmarks.roundtrip [requests]``. The server is a process of its own, with TLS, SQLite
and everything a deployment has; the client is the nodes' own channel. In turn with it, so that noise
meets both alike, a floor is measured: the same client library asks a server that only answers, over
the same kind of TLS, one thread a connection, no signatures.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from atoll.server import admin
from atoll.server.admin import Founding
from atoll.wire.certificates import client_context, server_context
from atoll.wire.codes import read_code
from atoll.wire.https import Channel, Pin
from atoll.wire.identity import Identity
from atoll.wire.messages import JoinBody, JoinReply

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 300\r\n\r\n" + bytes(300)


def free_port() -> int:
    """One that nobody uses at the moment."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(home: Path) -> Iterator[None]:
    """A real one."""
    admin.found(home, Founding(address=f"127.0.0.1:{free_port()}"), time.time())
    code = "import sys; from atoll.cli.main import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "server", "start", str(home)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stderr is not None:
            process.stderr.readline()
        yield
    finally:
        process.terminate()
        process.wait(20)


def member(home: Path, name: str) -> Channel:
    """A new site's way to the server."""
    code = read_code(admin.invite(home, name, "site", 1.0, time.time()))
    identity = Identity.fresh()
    body = JoinBody(secret=code.secret.hex(), key=identity.public_bytes.hex())
    with Channel(code.address, Pin(code.certificate), identity, "join", proxy="") as channel:
        reply = channel.json("POST", "/v1/join", body, JoinReply)
    pin = Pin(code.certificate, bytes.fromhex(reply.server_key))
    return Channel(code.address, pin, identity, reply.federation, proxy="")


def answer(listener: socket.socket, context: ssl.SSLContext) -> None:
    """The floor: reads a request's headers, writes the same answer every time."""
    with contextlib.suppress(OSError):
        plain, _ = listener.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain, server_side=True) as speaker:
            seen = b""
            while piece := speaker.recv(65_536):
                seen += piece
                while b"\r\n\r\n" in seen:
                    seen = seen.partition(b"\r\n\r\n")[2]
                    speaker.sendall(ANSWER)


@contextlib.contextmanager
def floor(home: Path) -> Iterator[Callable[[], None]]:
    """Asks the server that only answers; it runs in a process of its own too."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.roundtrip import stand;"
        "stand(Path(sys.argv[1]), int(sys.argv[2]))"
    )
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", code, str(home), str(port)])
    try:
        for _ in range(200):
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                plain = socket.create_connection(("127.0.0.1", port))
                break
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.sock = client_context().wrap_socket(plain, server_hostname="localhost")

        def ask() -> None:
            connection.request("GET", "/v1/federation", headers={"x": "y" * 600})
            connection.getresponse().read()

        yield ask
        connection.close()
    finally:
        process.terminate()
        process.wait(20)


def stand(home: Path, port: int) -> None:
    """The process of the floor."""
    context = server_context(home / "tls" / "cert.pem", home / "tls" / "key.pem")
    with socket.create_server(("127.0.0.1", port)) as listener:
        answer(listener, context)


def taken(act: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def line(name: str, times: list[float]) -> str:
    """A row of the table: median and 99th percentile."""
    ordered = sorted(t * 1e3 for t in times)
    last = ordered[int(len(ordered) * 0.99)]
    return f"{name:<40} {statistics.median(ordered):7.2f} ms {last:9.2f} ms"


def main(arguments: list[str]) -> None:
    """Measure and print."""
    requests = int(arguments[0]) if arguments else 500
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "server"
        with server(home), member(home, "site") as channel, floor(home) as bare:
            steps: dict[str, Callable[[], object]] = {
                "floor: TLS and http.client alone": bare,
                "signed, answered from memory": lambda: channel.call("GET", "/v1/federation"),
                "poll without news": lambda: channel.call("GET", "/v1/poll"),
            }
            times: dict[str, list[float]] = {name: [] for name in steps}
            for step in steps.values():
                for _ in range(30):
                    step()
            for _ in range(requests):
                for name, step in steps.items():
                    times[name].append(taken(step))
            print(f"{'one round trip':<40} {'median':>10} {'99 %':>12}")
            for name, found in times.items():
                print(line(name, found))

            def anew() -> None:
                channel.close()
                channel.call("GET", "/v1/federation")

            print(line("with a new connection", [taken(anew) for _ in range(50)]))


if __name__ == "__main__":
    main(sys.argv[1:])
