"""A server small enough to read, that can misbehave in every way a test wants."""

import contextlib
import hashlib
import http.server
import json
import socket
import threading
import time
from dataclasses import dataclass, field

import pytest

from atoll.wire.certificates import create_certificate, server_context
from atoll.wire.dialing import Pin
from atoll.wire.https import Channel
from atoll.wire.identity import Identity
from atoll.wire.signatures import Window, digest_of, read_request, sign_response, verify


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: str
    headers: dict
    body: bytes


@dataclass(eq=False)
class Fake:
    """What the server knows and does; ``answer`` gives status, body and further headers."""

    key: Identity
    member: Identity
    federation: str = "f"
    epoch: int = 3
    window: Window = field(default_factory=Window)
    answer: object = lambda asked: (200, b"{}", {})
    before: object = None  # (handler, length) -> True when it has dealt with the request itself
    sign: object = sign_response
    seen: list = field(default_factory=list)
    connections: int = 0
    received: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 20

    def setup(self):
        super().setup()
        self.server.fake.connections += 1

    def log_message(self, *args):
        pass

    def hang_up(self):
        self.close_connection = True
        self.connection.close()

    def go(self):
        fake, length = self.server.fake, int(self.headers.get("content-length") or 0)
        if fake.before is not None and fake.before(self, length):
            return
        body = self.rfile.read(length)
        fake.received += len(body)
        path, _, query = self.path.partition("?")
        claim = read_request(self.command, path, query, self.headers.items())
        verify(claim, fake.member.public_bytes)
        assert claim.digest == digest_of(body)
        assert claim.federation == fake.federation
        if claim.epoch != fake.epoch or not fake.window.accept(claim.sequence):
            told = {"epoch": fake.epoch, "sequence": fake.window.highest}
            status, reply, further = (
                409,
                json.dumps({"code": "wire.epoch", "message": "", **told}),
                {},
            )
            reply = reply.encode()
        else:
            asked = Asked(self.command, path, query, dict(self.headers.items()), body)
            fake.seen.append(asked)
            status, reply, further = fake.answer(asked)
        self.send(claim, status, reply, further)

    def send(self, claim, status, body, further):
        fake = self.server.fake
        headers = {"content-length": str(len(body))} | further
        if fake.sign is not None:
            headers |= fake.sign(
                fake.key,
                status=status,
                body_digest=digest_of(body),
                sequence=claim.sequence,
                answers=claim.signature,
                created=int(time.time()),
            )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = go


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    """A certificate, its key, and its fingerprint."""
    folder = tmp_path_factory.mktemp("tls")
    pair = folder / "cert.pem", folder / "key.pem"
    return *pair, create_certificate(*pair, ["localhost", "127.0.0.1"], now=time.time())


@pytest.fixture(scope="session")
def keys():
    """The server's and the member's identity."""
    return Identity.fresh(), Identity.fresh()


@pytest.fixture
def fake(tls, keys):
    """A running server; ``fake.address`` says where."""
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = server_context(tls[0], tls[1]).wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    server.fake = Fake(*keys)
    server.fake.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.fake
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def channel(fake, tls, keys):
    """A channel to the running server."""
    with Channel(fake.address, Pin(tls[2], keys[0].public_bytes), keys[1], "f", proxy="") as made:
        yield made


class Blobs:
    """Routes of blobs and uploads, as the server has them; ``cuts`` are total bytes at which to hang up."""

    def __init__(self):
        self.blobs, self.partial, self.cuts, self.passed = {}, {}, [], 0
        self.long = 1 << 16

    def before(self, handler, length):
        """Hang up in the middle of an upload, or of a download."""
        if not self.cuts:
            return False
        if handler.command == "PUT":
            if self.passed + length > self.cuts[0]:
                got = handler.rfile.read(self.cuts[0] - self.passed)
                self.passed += len(got)
                if length > self.long:  # taken while it comes
                    self.partial[handler.path.split("?")[0].rsplit("/", 1)[1]] += got
            else:
                self.passed += length
                return False
        elif handler.command == "GET" and "range" in handler.headers:
            start = int(handler.headers["range"].split("=")[1].split("-")[0])
            raw = self.blobs[handler.path.rsplit("/", 1)[1]][start:]
            if self.passed + len(raw) <= self.cuts[0]:
                self.passed += len(raw)
                return False
            raw, whole = raw[: self.cuts[0] - self.passed], len(raw)
            self.passed += len(raw)
            handler.send_response(206)
            total = start + whole
            handler.send_header("content-range", f"bytes {start}-{total - 1}/{total}")
            handler.send_header("content-length", str(whole))
            handler.end_headers()
            handler.wfile.write(raw)
        else:
            return False
        self.cuts.pop(0)
        handler.hang_up()
        return True

    def answer(self, asked):
        sha = asked.path.rsplit("/", 1)[1]
        if asked.path.startswith("/v1/blobs/"):
            raw = self.blobs[sha]
            if "range" not in asked.headers:
                return 200, raw, {}
            start, stop = map(int, asked.headers["range"].split("=")[1].split("-"))
            piece = raw[start : stop + 1]
            return 206, piece, {"content-range": f"bytes {start}-{stop}/{len(raw)}"}
        have = self.partial.setdefault(sha, bytearray())
        if asked.method == "PUT":
            query = dict(part.split("=") for part in asked.query.split("&"))
            assert int(query["offset"]) == len(have)
            have += asked.body
            if len(have) == int(query["size"]):
                assert hashlib.sha256(have).hexdigest() == sha
                self.blobs[sha] = bytes(have)
        return 200, json.dumps({"received": len(have)}).encode(), {}


@pytest.fixture
def blobs(fake):
    """Blob routes on the running server."""
    made = Blobs()
    fake.answer, fake.before = made.answer, made.before
    return made


class Proxy(threading.Thread):
    """A CONNECT proxy; ``login`` is the Proxy-Authorization it wants, ``answer`` what it says else."""

    def __init__(self):
        super().__init__(daemon=True)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        self.login, self.answer, self.asked = None, None, []
        self.start()

    def run(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            line, *headers = head.decode().split("\r\n")
            self.asked.append(line)
            given = dict(h.split(": ", 1) for h in headers if h)
            if self.answer is not None:
                client.sendall(self.answer)
                return
            if self.login is not None and given.get("Proxy-Authorization") != self.login:
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return
            host, port = line.split()[1].split(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
                back = threading.Thread(target=self.pump, args=(server, client), daemon=True)
                back.start()
                self.pump(client, server)
                back.join()

    @staticmethod
    def pump(source, sink):
        try:
            while piece := source.recv(1 << 16):
                sink.sendall(piece)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy():
    """A running proxy."""
    made = Proxy()
    yield made
    made.server.close()
