"""Bodies that are opened where they are to lie, and senders who hang up, over a real connection."""

from __future__ import annotations

import hashlib
import logging
import os
import ssl
import time

import pytest
from test_serving import Live

from atoll.server.home import ServerHome
from atoll.wire.identity import Identity
from atoll.wire.signatures import read_request, sign_request, signature_in, verify

BODY = os.urandom(300_000)
PATH = "/v1/results/run.train.0.dribs"


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with Live(tmp_path_factory.mktemp("live") / "server") as made:
        yield made


class Speaking:
    """A site that says byte by byte what it likes."""

    def __init__(self, live: Live, name: str) -> None:
        self.channel = live.join(name)
        self.channel.call("GET", "/v1/federation")  # learns the epoch
        self.line = live.tls()
        self.line.settimeout(20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.line.close()
        self.channel.close()

    def head(self, method: str, path: str, query: str, signed: bytes, size: int) -> bytes:
        """A signed request's head; ``signed`` is the body that it is signed for."""
        own = self.channel
        own._sequence += 1
        headers = sign_request(
            own._identity,
            method=method,
            path=path,
            query=query,
            body_digest=hashlib.sha256(signed).digest(),
            federation=own._federation,
            epoch=own._epoch,
            sequence=own._sequence,
            created=int(time.time()),
        )
        lines = [f"{method} {path}?{query} HTTP/1.1", "host: x", f"content-length: {size}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()

    def answer(self) -> bytes:
        found = b""
        while b"\r\n\r\n" not in found:
            piece = self.line.recv(4096)
            assert piece, "the server has hung up"
            found += piece
        head, _, rest = found.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(rest) < size:
            rest += self.line.recv(4096)
        assert len(rest) == size
        return head + b"\r\n\r\n" + rest


@pytest.mark.parametrize("first", [0, 1, 40_000, 200_000, len(BODY) - 1, len(BODY)])
def test_a_body_that_comes_in_parts_is_the_one_that_was_signed_and_another_request_may_follow(
    live, first
):
    with Speaking(live, f"dribs-{first}") as site:
        for _ in range(2):
            site.line.sendall(site.head("POST", PATH, "ledger=", BODY, len(BODY)) + BODY[:first])
            time.sleep(0.1)
            for at in range(first, len(BODY), 90_001):
                site.line.sendall(BODY[at : at + 90_001])
                time.sleep(0.01)
            found = site.answer()
            assert found.startswith(b"HTTP/1.1 404"), found
            assert b"has no task" in found


def test_a_long_body_that_is_not_the_one_that_was_signed_is_refused(live):
    with Speaking(live, "liar") as site:
        head = site.head("POST", PATH, "ledger=", BODY, len(BODY))
        site.line.sendall(head + BODY[:-1] + bytes([BODY[-1] ^ 1]))
        found = site.answer()
        assert found.startswith(b"HTTP/1.1 401")
        assert b"not the one that was signed" in found


def test_a_second_request_at_the_end_of_a_body_is_answered_or_ends_the_connection(live):
    """What comes behind a body is never taken for a part of it."""
    with Speaking(live, "hasty") as site:
        head = site.head("POST", PATH, "ledger=", BODY, len(BODY))
        site.line.sendall(head)
        time.sleep(0.1)
        site.line.sendall(BODY + b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n")
        found = b""
        try:
            while len(found) < 12 and (piece := site.line.recv(4096)):
                found += piece
        except (ssl.SSLError, ConnectionError):
            return
        assert not found or found.startswith(b"HTTP/1.1 404"), found


def test_a_sender_who_hangs_up_in_the_middle_of_a_body_is_forgotten(live, caplog):
    with caplog.at_level(logging.WARNING), Speaking(live, "gone") as site:
        for _ in range(70):  # more than one member may have requests under way
            site.line.sendall(site.head("POST", PATH, "ledger=", BODY, len(BODY)) + BODY[:120_000])
            site.line.close()
            site.line = live.tls()
        until, found = time.monotonic() + 30, b"HTTP/1.1 429"
        while found.startswith(b"HTTP/1.1 429") and time.monotonic() < until:
            time.sleep(0.1)  # until it is noticed that all the others have hung up
            site.line.close()
            site.line = live.tls()
            site.line.sendall(site.head("POST", PATH, "ledger=", BODY, len(BODY)) + BODY)
            found = site.answer()
        assert found.startswith(b"HTTP/1.1 404"), found
    assert not caplog.records


def test_nobody_waits_for_news_of_a_sender_who_has_hung_up(live):
    token = ServerHome(live.path).token.read_text().strip()

    def waiting() -> float:
        with live.tls() as line:
            line.settimeout(20)
            line.sendall(
                b"GET /v1/metrics HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
                + token.encode()
                + b"\r\nconnection: close\r\n\r\n"
            )
            found = b""
            while piece := line.recv(65_536):
                found += piece
        return float(found.partition(b"\natoll_waiting ")[2].split()[0])

    def reaches(number: float) -> bool:
        until = time.monotonic() + 10
        while waiting() != number and time.monotonic() < until:
            time.sleep(0.02)
        return waiting() == number

    with Speaking(live, "patient") as site:
        site.line.sendall(site.head("GET", "/v1/poll", "have=&wait=25", b"", 0))
        assert reaches(1)
        site.line.close()
        assert reaches(0)


def test_the_signature_among_the_headers_is_the_one_that_was_made():
    key = Identity.fresh()
    about = {"method": "GET", "path": "/v1/poll", "query": "a=1"}
    facts = {"federation": "f", "epoch": 1, "sequence": 2, "created": 3}
    headers = sign_request(key, **about, body_digest=hashlib.sha256(b"").digest(), **facts)
    claim = read_request(*about.values(), headers)
    verify(claim, key.public_bytes)
    assert signature_in(headers) == claim.signature
