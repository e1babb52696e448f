"""A real server on the loopback interface: TLS, sockets, signals, floods, and a second server."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from free_ports import free_port

from atoll.connection import connect
from atoll.core.errors import (
    AuthError,
    FenceError,
    Forbidden,
    StateError,
    StorageError,
    Unreachable,
)
from atoll.server import admin
from atoll.server.admin import Founding
from atoll.server.home import ServerHome
from atoll.server.service import Service
from atoll.server.web.limits import Limits
from atoll.server.web.serving import serve
from atoll.wire.certificates import client_context
from atoll.wire.codes import read_code
from atoll.wire.https import Channel, Pin
from atoll.wire.identity import Identity
from atoll.wire.messages import JoinBody, JoinReply, MembersReply

MANY = Limits(strange=100_000, joins=1000)
QUICK = replace(MANY, header_seconds=1.0, handshake_seconds=1.0)


class Live:
    """A server in a thread of this process."""

    def __init__(self, path: Path, limits: Limits = MANY, **founding) -> None:
        self.path, self.limits = path, limits
        self.port = free_port()
        if not (path / "server.json").exists():
            admin.found(path, Founding(address=f"127.0.0.1:{self.port}", **founding), time.time())
        self.port = int(ServerHome(path).charter().address.rpartition(":")[2])
        self.running, self.error, self.status = None, None, None
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            self.status = serve(ServerHome(self.path), limits=self.limits, ready=self._up)
        except Exception as error:  # seen by the test
            self.error = error
        finally:
            self.up.set()

    def _up(self, running):
        self.running = running
        self.up.set()

    def __enter__(self):
        self.up = threading.Event()
        self.thread.start()
        assert self.up.wait(30)
        if self.error is not None:
            raise self.error
        return self

    def __exit__(self, *_):
        if self.running is not None:
            self.running.stop(0)
        self.thread.join(30)
        assert not self.thread.is_alive()

    def join(self, name: str, role: str = "site") -> Channel:
        """A member's channel."""
        code = read_code(admin.invite(self.path, name, role, 1.0, time.time()))
        identity = Identity.fresh()
        body = JoinBody(secret=code.secret.hex(), key=identity.public_bytes.hex())
        with Channel(code.address, Pin(code.certificate), identity, "join", proxy="") as channel:
            reply = channel.json("POST", "/v1/join", body, JoinReply)
        pin = Pin(code.certificate, bytes.fromhex(reply.server_key))
        return Channel(code.address, pin, identity, reply.federation, proxy="")

    def service_wakes(self) -> None:
        """Give the service something to do: a site leaves."""
        with contextlib.suppress(Exception), self.join("restless") as channel:
            channel.call("POST", "/v1/leave")

    def plain(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def tls(self) -> ssl.SSLSocket:
        return client_context().wrap_socket(self.plain(), server_hostname="localhost")


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with Live(tmp_path_factory.mktemp("live") / "server") as made:
        yield made


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    with Live(tmp_path_factory.mktemp("quick") / "server", QUICK) as made:
        yield made


def health(speaker: ssl.SSLSocket) -> bytes:
    speaker.sendall(b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n")
    return speaker.recv(4096)


def read_all(speaker: socket.socket) -> bytes:
    """Everything until the other side closes, whichever way it does."""
    found = b""
    with contextlib.suppress(OSError):
        while piece := speaker.recv(65_536):
            found += piece
    return found


# One request after another ------------------------------------------------------------------------


def test_a_member_asks_over_a_connection_that_is_kept(live):
    with live.join("ulm") as channel:
        for _ in range(3):
            found = channel.json("GET", "/v1/federation", None, MembersReply)
        assert "ulm" in {member.name for member in found.members}
        assert channel.epoch == 1


def test_a_signed_round_trip_takes_few_milliseconds(live):
    with live.join("fast") as channel:
        channel.call("GET", "/v1/federation")
        seconds, work = _times(channel, 100)
    assert sorted(seconds)[5] < 0.02  # far above what it takes; the others may have been disturbed
    assert work < 0.02


def test_who_was_revoked_is_refused_by_the_running_server(live):
    with live.join("thief") as channel:
        channel.call("GET", "/v1/federation")
        admin.revoke(live.path, "thief", time.time())
        with pytest.raises(Forbidden, match="revoked"):  # the server looks at its list every second
            any(channel.call("GET", "/v1/federation") and time.sleep(0.1) for _ in range(300))


def test_the_server_names_no_software_and_no_date(live):
    with live.tls() as speaker:
        head = health(speaker).lower()
    assert head.startswith(b"http/1.1 200")
    assert b"server:" not in head
    assert b"date:" not in head


def test_tls_1_2_and_plain_http_are_not_spoken(live):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, OSError)), live.plain() as plain:
        context.wrap_socket(plain, server_hostname="localhost")
    with live.plain() as plain:
        plain.sendall(b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"HTTP" not in read_all(plain)
    with live.tls() as speaker:
        assert speaker.version() == "TLSv1.3"


def test_another_server_s_certificate_is_not_trusted(live, tmp_path):
    with live.join("wary") as channel:
        other = Channel(
            channel.address, Pin(bytes(32), bytes(32)), Identity.fresh(), "f-1", proxy=""
        )
        with pytest.raises(AuthError, match="another certificate"):
            other.call("GET", "/v1/federation")


# What strangers can cost --------------------------------------------------------------------------


def closed_within(speaker: socket.socket, seconds: float) -> None:
    """Wait until the other side closes; fails when it does not."""
    began = time.monotonic()
    speaker.settimeout(seconds)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while speaker.recv(65_536):
            pass
    assert time.monotonic() - began < seconds


def test_who_says_nothing_is_hung_up_on(quick):
    for dial in (quick.plain, quick.tls):
        began = time.monotonic()
        with dial() as silent:
            closed_within(silent, 20)
        assert time.monotonic() - began > 0.5


def test_half_a_handshake_is_given_up(quick):
    with quick.plain() as slow:
        slow.sendall(b"\x16\x03\x01")
        closed_within(slow, 20)


def given_up(speaker: ssl.SSLSocket, piece: bytes) -> None:
    """Send a piece again and again until the other side hangs up; fails when it does not."""
    speaker.settimeout(0.2)
    until = time.monotonic() + 30
    with contextlib.suppress(OSError):
        while time.monotonic() < until:
            speaker.sendall(piece)
            with contextlib.suppress(TimeoutError):
                if not speaker.recv(100):
                    break
    assert time.monotonic() < until


def test_headers_that_trickle_in_are_given_up(quick):
    with quick.tls() as slow:
        slow.sendall(b"GET /v1/health HTTP/1.1\r\n")
        given_up(slow, b"x: y\r\n")


def test_empty_lines_in_place_of_a_request_are_given_up(quick):
    with quick.tls() as slow:
        assert b"200" in health(slow)
        given_up(slow, b"\r\n")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/health HTTP/1.1\r\n" + b"x: " + b"y" * 40_000,
        b"GET /v1/health HTTP/1.1\r\n" + b"x: y\r\n" * 8000,
        b"GET /v1/health?" + b"a" * 40_000,
        b"GET /v1/health HTTP/1.1\r\nx: " + b"y" * 17_000 + b"\r\n\r\n",
    ],
)
def test_headers_without_end_are_refused(live, head):
    with live.tls() as flood:
        with contextlib.suppress(OSError):
            flood.sendall(head)
        answer = read_all(flood)
    assert answer == b"" or answer.split()[1] in (b"431", b"400")
    assert b"200 OK" not in answer


@pytest.mark.parametrize(
    "head",
    [
        b"\x00\xff\xfe garbage\r\n\r\n",
        b"GET /v1/health HTTP/9.9\r\n\r\n",
        b"POST /v1/join HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/poll HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    ],
)
def test_what_is_no_request_of_ours_is_refused_and_the_server_goes_on(live, head):
    with live.tls() as odd:
        odd.sendall(head)
        answer = read_all(odd)
    assert not answer.startswith(b"HTTP/1.1 2")
    with live.tls() as speaker:
        assert b"200 OK" in health(speaker)


def test_a_bomb_is_not_read(live):
    """Declared small and sending much; declared huge: both cost the server nothing."""
    before = _memory()
    for head in [
        b"POST /v1/join HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n",
        b"POST /v1/join HTTP/1.1\r\nhost: x\r\ncontent-length: 10000000000\r\n\r\n",
        b"PUT /v1/uploads/"
        + b"a" * 64
        + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 4194304\r\n\r\n",
    ]:
        sent = 0
        with live.tls() as bomb:
            bomb.settimeout(5)
            with contextlib.suppress(OSError):
                bomb.sendall(head)
                while sent < 64 << 20:
                    bomb.sendall(bytes(1 << 16))
                    sent += 1 << 16
        assert sent < 32 << 20
    assert _memory() - before < 32 << 20


def _memory() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_member_is_served_while_hundreds_of_connections_are_held_open(tmp_path):
    """500 open sockets, some silent, some in half a handshake, some in half a request."""
    quiet = Limits(header_seconds=30.0, handshake_seconds=30.0, strange=100_000, strangers=64)
    with Live(tmp_path / "server", quiet) as live, live.join("ulm") as channel:
        channel.call("GET", "/v1/federation")
        _, alone = _times(channel, 40)
        before = _memory()
        with contextlib.ExitStack() as stack:
            for number in range(500):
                sock = stack.enter_context(contextlib.closing(live.plain()))
                with contextlib.suppress(OSError):
                    if number % 3 == 1:
                        sock.sendall(b"\x16\x03\x01\x02\x00")
                    if number % 3 == 2 and number < 300:
                        tls = client_context().wrap_socket(sock, server_hostname="x")
                        stack.enter_context(contextlib.closing(tls))
                        tls.sendall(b"GET /v1/health HTTP/1.1\r\n")
            seconds, flooded = _times(channel, 40)
            grown = _memory() - before
            with live.join("newcomer") as fresh:  # and somebody new gets in
                fresh.call("GET", "/v1/federation")
        assert grown < 64 << 20
        assert flooded < 3 * alone + 0.01
        assert sorted(seconds)[20] < 1.0


def _times(channel, count: int) -> tuple[list[float], float]:
    """Seconds of so many calls, and the processor time of one, at both ends."""
    seconds, busy = [], time.process_time()
    for _ in range(count):
        began = time.perf_counter()
        channel.call("GET", "/v1/federation")
        seconds.append(time.perf_counter() - began)
    return seconds, (time.process_time() - busy) / count


# One server, and one only -------------------------------------------------------------------------


def test_a_second_server_in_the_same_folder_is_refused(live):
    with pytest.raises(StorageError, match="another server runs"):
        serve(ServerHome(live.path))


def test_a_second_server_on_the_same_store_is_refused(live, tmp_path):
    other = tmp_path / "other"
    charter = ServerHome(live.path).charter()
    store, listen = ServerHome(live.path).store_url(charter), f"127.0.0.1:{free_port()}"
    admin.found(other, Founding(address=listen), time.time())
    ServerHome(other).write(replace(ServerHome(other).charter(), store=store))
    with pytest.raises(FenceError, match=f"process {os.getpid()}"):
        serve(ServerHome(other))
    with live.join("still there") as channel:
        channel.call("GET", "/v1/federation")


def test_a_server_that_is_fenced_off_stops_and_says_so(tmp_path, monkeypatch):
    with Live(tmp_path / "server") as live:
        monkeypatch.setattr(Service, "step", _fenced)
        live.service_wakes()
        live.thread.join(30)
        assert isinstance(live.error, FenceError)
    assert ServerHome(live.path).running() is None


def _fenced(self):
    raise FenceError("another server took over")


def test_a_taken_port_is_told_and_the_store_is_let_go(tmp_path):
    with contextlib.closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        admin.found(tmp_path / "s", Founding(address=taken), time.time())
        with pytest.raises(StateError, match="cannot be listened on"):
            serve(ServerHome(tmp_path / "s"))
    with Live(tmp_path / "s") as live, live.join("ulm") as channel:
        channel.call("GET", "/v1/federation")


def test_after_a_restart_nothing_recorded_before_is_accepted_and_members_go_on(tmp_path):
    with Live(tmp_path / "server") as live:
        channel = live.join("ulm")
        channel.call("GET", "/v1/federation")
        assert channel.epoch == 1
        assert ServerHome(live.path).running()["port"] == live.port
    assert ServerHome(live.path).running() is None
    with pytest.raises(Unreachable):
        channel.call("GET", "/v1/federation")
    with Live(tmp_path / "server"):
        channel.call("GET", "/v1/federation")
        assert channel.epoch == 2
        channel.close()


# As a process -------------------------------------------------------------------------------------


COMMAND = [sys.executable, "-m", "atoll"]
START = """
import sys
from atoll.cli.main import main
status = main(["server", "start", sys.argv[1]])
print(sorted(m for m in sys.modules if m.split(".")[0] in {"torch", "pickle5", "ray", "pandas"}))
sys.exit(status)
"""


def start(home: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stderr.readline()
    assert "listening on port" in line, line + process.stderr.read()
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_server_after_what_is_under_way(tmp_path, number, status):
    admin.found(tmp_path / "s", Founding(address=f"127.0.0.1:{free_port()}"), time.time())
    process = start(tmp_path / "s")
    code = admin.invite(tmp_path / "s", "ada", "researcher", 1.0, time.time())
    with connect(tmp_path / "ada", code=code, proxy="") as federation:
        assert federation.jobs() == ()
        answers = []
        asking = threading.Thread(target=lambda: answers.append(_poll(tmp_path / "s")))
        asking.start()
        until = time.monotonic() + 30
        while _waiting(tmp_path / "s") != 1:
            assert time.monotonic() < until
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
        asking.join(30)
    assert (process.returncode, time.monotonic() - began < 20) == (status, True)
    assert answers == [200]  # an open question is answered, not cut
    assert out.strip() == "[]"  # neither torch nor anything like it was ever imported
    assert not (tmp_path / "s" / "running.json").exists()


def _waiting(home: Path) -> int:
    """How many questions wait for news at a running server, as its page of metrics has it."""
    place = ServerHome(home)
    port, token = place.running()["port"], place.token.read_text().strip()
    lines = ["GET /v1/metrics HTTP/1.1", "host: x", f"authorization: Bearer {token}"]
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    with client_context().wrap_socket(plain, server_hostname="localhost") as speaker:
        speaker.sendall("\r\n".join([*lines, "connection: close", "", ""]).encode())
        page = read_all(speaker).decode()
    return int(float(page.split("\natoll_waiting ")[1].split()[0]))


def _poll(home: Path) -> int:
    code = read_code(admin.invite(home, "ulm", "site", 1.0, time.time()))
    identity = Identity.fresh()
    body = JoinBody(secret=code.secret.hex(), key=identity.public_bytes.hex())
    with Channel(code.address, Pin(code.certificate), identity, "join", proxy="") as channel:
        reply = channel.json("POST", "/v1/join", body, JoinReply)
    pin = Pin(code.certificate, bytes.fromhex(reply.server_key))
    with Channel(code.address, pin, identity, reply.federation, proxy="") as channel:
        return channel.call("GET", "/v1/poll", query="wait=30").status


def test_a_killed_server_leaves_nothing_in_the_way_of_the_next(tmp_path):
    admin.found(tmp_path / "s", Founding(address=f"127.0.0.1:{free_port()}"), time.time())
    process = start(tmp_path / "s")
    (tmp_path / "s" / "incoming").mkdir(exist_ok=True)
    (tmp_path / "s" / "incoming" / "half.body").write_bytes(b"x")
    process.kill()
    process.communicate()
    assert ServerHome(tmp_path / "s").running() is None
    process = start(tmp_path / "s")
    assert not (tmp_path / "s" / "incoming").exists()
    state = json.loads((tmp_path / "s" / "running.json").read_text())
    assert (state["pid"], state["epoch"]) == (process.pid, 2)
    process.terminate()
    process.communicate(timeout=20)


def test_a_given_certificate_is_the_one_that_codes_pin(tmp_path, live):
    mine = Founding(
        address=f"127.0.0.1:{free_port()}",
        certificate=live.path / "tls" / "cert.pem",
        key=live.path / "tls" / "key.pem",
    )
    admin.found(tmp_path / "s", mine, time.time())
    code = read_code(admin.invite(tmp_path / "s", "ulm", "site", 1.0, time.time()))
    pem = (live.path / "tls" / "cert.pem").read_text()
    assert code.certificate == hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()
