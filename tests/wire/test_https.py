"""The channel: signed both ways, numbered, and clear about whatever goes wrong."""

import hashlib
import json
import socket
import threading
import time

import pytest

from atoll.core.errors import (
    AuthError,
    Busy,
    Equivocation,
    NotFound,
    TooLarge,
    Unreachable,
    WireError,
)
from atoll.wire.dialing import Pin
from atoll.wire.https import Channel, Reply
from atoll.wire.identity import Identity
from atoll.wire.messages import ReceiptBody, UploadReply
from atoll.wire.signatures import Window, sign_response

HASH = "ab" * 32


def test_a_call_is_signed_answered_and_checked(fake, channel):
    fake.answer = lambda asked: (201, b"pong", {"X-More": "1"})
    reply = channel.call(
        "POST", "/v1/results/a%20b", query="x=1&y=%2C", body=b"ping", kind="text/plain"
    )
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body, reply.headers["x-more"]) == (201, b"pong", "1")
    (asked,) = fake.seen
    assert (asked.method, asked.path, asked.query, asked.body) == (
        "POST", "/v1/results/a%20b", "x=1&y=%2C", b"ping",
    )  # fmt: skip
    assert {k.lower(): v for k, v in asked.headers.items()}["content-type"] == "text/plain"
    assert channel.epoch == 3


def test_a_digest_that_is_known_is_not_taken_again_and_nothing_else_is_signed(fake, channel):
    told = hashlib.sha256(b"ping").digest()
    channel.call("POST", "/v1/x", body=b"ping", digest=told)
    channel.call("POST", "/v1/x", body=b"ping")
    known, taken = ({k.lower(): v for k, v in asked.headers.items()} for asked in fake.seen)
    assert known["content-digest"] == taken["content-digest"]
    with pytest.raises(Unreachable):  # the double hangs up on other bytes than those signed
        channel.call("POST", "/v1/x", body=b"pong", digest=told)


def test_one_connection_serves_many_calls_and_the_epoch_is_asked_for_once(fake, channel):
    for _ in range(5):
        channel.call("GET", "/v1/poll")
    assert fake.connections == 1
    assert fake.window.highest == 5
    assert len(fake.seen) == 5


def test_messages_go_both_ways(fake, channel):
    fake.answer = lambda asked: (
        200,
        b'{"task":"t","sha256":"' + HASH.encode() + b'","again":true}',
        {},
    )
    found = channel.json("POST", "/v1/x", UploadReply(received=7), ReceiptBody)
    assert found == ReceiptBody(task="t", sha256=HASH, again=True)
    assert json.loads(fake.seen[0].body) == {"received": 7}
    with pytest.raises(WireError, match="no valid UploadReply"):
        channel.json("GET", "/v1/x", None, UploadReply)


def test_a_server_that_started_anew_is_followed_once_it_says_so(fake, channel):
    channel.call("GET", "/v1/a")
    fake.epoch, fake.window = 9, Window()
    channel.call("GET", "/v1/b")
    assert channel.epoch == 9
    assert [asked.path for asked in fake.seen] == ["/v1/a", "/v1/b"]


def test_a_program_that_starts_anew_goes_on_after_the_highest_number(fake, channel, tls, keys):
    for _ in range(20):
        channel.call("GET", "/v1/a")
    with Channel(fake.address, Pin(tls[2], keys[0].public_bytes), keys[1], "f", proxy="") as second:
        second.call("GET", "/v1/b")
        channel.call("GET", "/v1/c")  # its number 21 was used by the other one
        second.call("GET", "/v1/d")
    assert [asked.path[-1] for asked in fake.seen[20:]] == ["b", "c", "d"]


def test_two_programs_with_one_key_do_not_hinder_each_other(fake, channel, tls, keys):
    pin, failures = Pin(tls[2], keys[0].public_bytes), []

    def work(own):
        try:
            for _ in range(25):
                own.call("GET", "/v1/a")
        except Exception as error:
            failures.append(error)

    with Channel(fake.address, pin, keys[1], "f", proxy="") as second:
        threads = [threading.Thread(target=work, args=(own,)) for own in (channel, second) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(fake.seen) == 100


def test_a_server_that_is_never_content_is_given_up(fake, channel):
    fake.window.accept = lambda sequence: False
    with pytest.raises(Unreachable, match="refused 6 numbers"):
        channel.call("GET", "/v1/a")


def test_many_threads_share_a_channel(fake, channel):
    failures = []

    def work():
        try:
            for _ in range(10):
                channel.call("POST", "/v1/a", body=b"x")
        except Exception as error:
            failures.append(error)

    channel.call("GET", "/v1/a")
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(fake.seen) == 61
    assert fake.connections <= 7


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "state.missing", NotFound),
        (409, "wire.equivocation", Equivocation),
        (413, "wire.toolarge", TooLarge),
        (401, "auth.refused", AuthError),
        (429, "wire.busy", Busy),
        (429, "newer.code", Unreachable),
        (503, "newer.code", Unreachable),
    ],
)
def test_a_problem_comes_back_as_the_error_it_was(fake, channel, status, code, kind):
    body = {"code": code, "message": "no such thing", "remedy": "look again", "site": "a"}
    fake.answer = lambda asked: (status, json.dumps(body).encode(), {})
    with pytest.raises(kind, match="no such thing") as caught:
        channel.call("GET", "/v1/a")
    assert type(caught.value) is kind
    assert (caught.value.remedy, caught.value.site) == ("look again", "a")
    fake.answer = lambda asked: (200, b"", {})
    assert channel.call("GET", "/v1/a").status == 200
    assert fake.connections == 1


def test_a_problem_in_another_form_still_tells_its_status(fake, channel):
    fake.answer = lambda asked: (404, b"<html>", {})
    with pytest.raises(NotFound, match="answered 404"):
        channel.call("GET", "/v1/a")


def test_a_redirect_is_not_followed(fake, channel):
    fake.answer = lambda asked: (302, b"", {"location": "https://elsewhere/"})
    with pytest.raises(WireError, match="302, which is not followed"):
        channel.call("GET", "/v1/a")


def signed_by_another(key, **what):
    return sign_response(Identity.fresh(), **what)


def another_status(key, **what):
    return sign_response(key, **{**what, "status": 204})


def another_body(key, **what):
    return sign_response(key, **{**what, "body_digest": bytes(32)})


def another_request(key, **what):
    return sign_response(key, **{**what, "answers": bytes(64)})


def another_number(key, **what):
    return sign_response(key, **{**what, "sequence": what["sequence"] - 1})


@pytest.mark.parametrize(
    ("sign", "told"),
    [
        (None, "without the server's signature"),
        (signed_by_another, "another key"),
        (another_status, "signature is wrong"),
        (another_body, "is not the one it signed"),
        (another_request, "another request"),
        (another_number, "another request"),
    ],
)
def test_an_answer_that_is_not_the_server_s_is_refused(fake, channel, sign, told):
    channel.call("GET", "/v1/a")
    fake.sign = sign
    with pytest.raises(AuthError, match=told):
        channel.call("GET", "/v1/a")


def test_nobody_but_the_server_makes_a_member_count_on(fake, channel):
    channel.call("GET", "/v1/a")
    fake.epoch, fake.sign = 99, signed_by_another
    with pytest.raises(AuthError):
        channel.call("GET", "/v1/a")
    assert channel.epoch == 3


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_gateway_that_cannot_reach_the_server_is_worth_another_try(fake, channel, status):
    fake.sign, fake.epoch = None, 0
    fake.answer = lambda asked: (status, b"<html>Bad gateway</html>", {})
    with pytest.raises(Unreachable, match=f"answered {status}"):
        channel.call("GET", "/v1/a")


def test_a_newcomer_does_not_know_the_server_s_key_yet(fake, tls, keys):
    fake.sign, fake.epoch = None, 0
    with Channel(fake.address, Pin(tls[2]), keys[1], "f", proxy="") as newcomer:
        assert newcomer.call("POST", "/v1/join", body=b"{}").body == b"{}"


def test_another_certificate_is_refused_before_a_byte_is_sent(fake, keys):
    with (
        Channel(
            fake.address, Pin(bytes(32), keys[0].public_bytes), keys[1], "f", proxy=""
        ) as wrong,
        pytest.raises(AuthError, match="showed another certificate"),
    ):
        wrong.call("POST", "/v1/a", body=b"secret")
    assert not fake.seen


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"\x00\x01\x02 what\r\n\r\n", WireError),
        (b"HTTP/1.1 two hundred\r\n\r\n", WireError),
        (b"SSH-2.0-OpenSSH_9.6\r\n", WireError),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500 + b"\r\n", WireError),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000 + b"\r\n\r\n", WireError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", TooLarge),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", Unreachable),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", Unreachable),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", Unreachable),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", AuthError),
        (b"", Unreachable),
    ],
)
def test_garbage_for_an_answer_is_told_clearly(fake, channel, raw, kind):
    channel.call("GET", "/v1/a")

    def before(handler, length):
        handler.wfile.write(raw)
        handler.hang_up()
        return True

    fake.before = before
    with pytest.raises(kind) as caught:
        channel.call("GET", "/v1/a")
    assert type(caught.value) is kind
    fake.before = None
    assert channel.call("GET", "/v1/a").status == 200


def test_an_answer_without_end_is_cut_off(fake, channel, monkeypatch):
    monkeypatch.setattr("atoll.wire.https._MOST_REPLY", 1 << 20)

    def before(handler, length):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(100):
            handler.wfile.write(b"10000\r\n" + b"a" * 65_536 + b"\r\n")
        return True

    fake.before = before
    with pytest.raises(TooLarge, match="more than 1048576 bytes"):
        channel.call("GET", "/v1/a")


def test_a_server_that_does_not_answer_is_left_after_the_timeout(fake, channel):
    channel.call("GET", "/v1/a")
    release = threading.Event()
    fake.before = lambda handler, length: release.wait(60)
    began = time.monotonic()
    with pytest.raises(Unreachable, match=r"sent nothing for 0\.2 s"):
        channel.call("GET", "/v1/a", timeout=0.2)
    assert time.monotonic() - began < 20
    release.set()


def test_who_refuses_a_long_body_and_hangs_up_is_heard(fake, channel):
    channel.call("GET", "/v1/a")

    def before(handler, length):
        handler.wfile.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        handler.rfile.read(
            100_000
        )  # some of it, so that there is something to read at the other end
        handler.hang_up()
        return True

    fake.before = before
    with pytest.raises(Unreachable):
        channel.call("POST", "/v1/a", body=bytes(20 << 20), timeout=5)


def test_a_connection_that_was_closed_while_idle_is_replaced_silently(fake, channel):
    def before(handler, length):
        handler.close_connection = True
        return False

    channel.call("GET", "/v1/a")
    fake.before = before
    for _ in range(3):
        channel.call("POST", "/v1/a", body=b"x")
        while channel._idle[-1].quiet:
            time.sleep(0.005)
    assert len(fake.seen) == 4
    assert fake.connections == 3  # the first lasted for three requests: epoch, GET, POST


@pytest.mark.parametrize("missing", ["port", "name"])
def test_a_server_that_is_not_there_is_told_by_its_address(tls, keys, missing):
    with socket.socket() as taken:  # nobody listens there, and nobody else is given it meanwhile
        taken.bind(("127.0.0.1", 0))
        port = f"127.0.0.1:{taken.getsockname()[1]}"
        address = port if missing == "port" else "no-such-host.invalid:8443"
        with (
            Channel(address, Pin(tls[2]), keys[1], "f", proxy="", connect_timeout=2) as channel,
            pytest.raises(Unreachable, match=rf"{address} cannot be reached: ") as caught,
        ):
            channel.call("GET", "/v1/a")
    assert "firewall" in caught.value.remedy


@pytest.fixture
def plain_server():
    """Accepts one connection and says a few bytes, in clear."""
    server = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve():
        client, _ = server.accept()
        with client:
            client.recv(10)
            if serve.says:
                client.sendall(serve.says)
            done.wait(60)

    serve.says = b""
    serve.address = f"127.0.0.1:{server.getsockname()[1]}"
    thread = threading.Thread(target=serve)
    thread.start()
    yield serve
    done.set()
    thread.join()
    server.close()


def test_a_server_without_tls_is_told_so(plain_server, tls, keys):
    plain_server.says = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with (
        Channel(plain_server.address, Pin(tls[2]), keys[1], "f", proxy="") as channel,
        pytest.raises(Unreachable, match=r"does not speak TLS 1\.3"),
    ):
        channel.call("GET", "/v1/a")


def test_a_server_that_never_finishes_its_handshake_is_left_after_the_timeout(
    plain_server, tls, keys
):
    began = time.monotonic()
    with (
        Channel(
            plain_server.address, Pin(tls[2]), keys[1], "f", proxy="", connect_timeout=0.3
        ) as c,
        pytest.raises(Unreachable, match="no answer in time"),
    ):
        c.call("GET", "/v1/a")
    assert time.monotonic() - began < 20


def test_a_malformed_address_is_refused_at_once(tls, keys):
    with pytest.raises(WireError, match="write host:port"):
        Channel("https://host", Pin(tls[2]), keys[1], "f")


def test_a_request_that_cannot_be_signed_is_not_sent(fake, channel):
    with pytest.raises(AuthError, match="path"):
        channel.call("GET", "/v1/a b")
    assert not fake.connections
