"""Through a proxy: TLS from end to end, and the proxy's refusal in plain words."""

import base64
import http.client
import io
import threading

import pytest

from atoll.core.errors import AuthError, Unreachable, WireError
from atoll.wire.dialing import Line, Pin, Proxy, find_proxy
from atoll.wire.https import Channel

LOGIN = "Basic " + base64.b64encode(b"site a:p@ss:w\xc3\xb6rd").decode()


@pytest.fixture
def through(fake, tls, keys):
    made = []

    def connect(proxy, pin=tls[2]):
        given = Pin(pin, keys[0].public_bytes)
        made.append(Channel(fake.address, given, keys[1], "f", proxy=proxy, connect_timeout=5))
        return made[-1]

    yield connect
    for channel in made:
        channel.close()


def test_a_channel_goes_through_a_proxy(fake, proxy, through):
    channel = through(f"http://{proxy.address}")
    fake.answer = lambda asked: (200, b"pong" * 100_000, {})
    for _ in range(3):
        assert channel.call("POST", "/v1/a", body=b"x" * 300_000).body == b"pong" * 100_000
    assert proxy.asked == [f"CONNECT {fake.address} HTTP/1.1"]


def test_a_channel_logs_in_at_the_proxy(fake, proxy, through):
    proxy.login = LOGIN
    channel = through(f"http://site%20a:p%40ss:w%C3%B6rd@{proxy.address}")
    assert channel.call("GET", "/v1/a").status == 200
    assert len(fake.seen) == 1


@pytest.mark.parametrize("login", ["", "site%20a:wrong@"])
def test_a_proxy_that_wants_another_login_is_told_so(proxy, through, login):
    proxy.login = LOGIN
    with pytest.raises(Unreachable, match="wants a user and a password") as caught:
        through(f"http://{login}{proxy.address}").call("GET", "/v1/a")
    assert "http://user:password@host:port" in caught.value.remedy
    assert "wrong" not in str(caught.value)


def test_a_proxy_that_takes_itself_for_a_server_wants_a_login_too(proxy, through):
    proxy.answer = b"HTTP/1.1 401 Unauthorized\r\n\r\n<html></html>"
    with pytest.raises(Unreachable, match="wants a user and a password"):
        through(proxy.address).call("GET", "/v1/a")


@pytest.mark.parametrize("page", [b"", b"<html>ask the help desk</html>"])
def test_a_proxy_that_does_not_allow_the_server_is_told_so(fake, proxy, through, page):
    proxy.answer = b"HTTP/1.1 403 Forbidden by policy\r\nContent-Length: 0\r\n\r\n" + page
    with pytest.raises(
        Unreachable, match=r"does not connect to .*: 403 Forbidden by policy"
    ) as caught:
        through(proxy.address).call("GET", "/v1/a")
    assert fake.address in caught.value.remedy


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SOCKS\x05\x00",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nfurther",
        b"x" * 20_000,
    ],
)
def test_what_is_no_proxy_is_told_so(proxy, through, answer):
    proxy.answer = answer
    with pytest.raises(WireError, match="does not answer as an HTTP proxy"):
        through(proxy.address).call("GET", "/v1/a")


def test_a_proxy_that_opens_tls_is_found_by_the_pin(fake, proxy, through):
    with pytest.raises(AuthError, match="showed another certificate"):
        through(proxy.address, pin=bytes(32)).call("GET", "/v1/a")
    assert not fake.seen


def test_a_proxy_that_is_not_there_is_told_by_its_address(through):
    with pytest.raises(Unreachable, match=r"the proxy 127\.0\.0\.1:1 cannot be reached"):
        through("http://127.0.0.1:1").call("GET", "/v1/a")


def test_a_proxy_that_hangs_is_left_after_the_timeout(fake, proxy, tls, keys):
    release = threading.Event()
    proxy.serve = lambda client: (release.wait(60), client.close())
    with (
        Channel(
            fake.address, Pin(tls[2]), keys[1], "f", proxy=proxy.address, connect_timeout=0.3
        ) as c,
        pytest.raises(Unreachable, match=r"the proxy .*: no answer in time"),
    ):
        c.call("GET", "/v1/a")
    release.set()


def test_the_environment_names_the_proxy_and_whom_to_reach_without(monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert find_proxy("server.example", None) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://u:p@proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost,.inside.example")
    found = find_proxy("server.example", None)
    assert found == Proxy("proxy", 3128, base64.b64encode(b"u:p").decode())
    assert find_proxy("a.inside.example", None) is None
    assert find_proxy("server.example", "") is None
    assert find_proxy("server.example", "other") == Proxy("other", 80)
    assert find_proxy("server.example", "http://[::1]:8080") == Proxy("::1", 8080)
    assert found.credentials not in repr(found)


@pytest.mark.parametrize(
    "given",
    ["socks5://secret@proxy:1", "https://secret@proxy", "http://secret@:1", "http://secret@p:x"],
)
def test_what_is_no_proxy_s_address_is_refused_and_not_repeated(given):
    with pytest.raises(WireError, match="proxy's address is not") as caught:
        find_proxy("server.example", given)
    assert "secret" not in str(caught.value)


USUAL = (
    b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\ncontent-length: 5\r\nsignature: x=:y==:\r\n\r\nhello"
)
UNUSUAL = [
    USUAL.replace(b"content-type", b"connection: close\r\nx"),
    USUAL.replace(b"content-type", b"Connection: Keep-Alive, Close\r\nx"),
    USUAL.replace(b"content-type: a/b", b"transfer-encoding: chunked").replace(
        b"hello", b"5\r\nhello\r\n0\r\n\r\n"
    ),
    USUAL.replace(b"content-type: a/b", b"Signature: again"),
    USUAL.replace(b"content-type: a/b", b"content-length: 4"),
    USUAL.replace(b"a/b", b"a/b\r\n folded"),
    USUAL.replace(b"a/b", b" \ta/b \t"),
    USUAL.replace(b"a/b", b""),
    USUAL.replace(b"a/b", "wört".encode()),
    USUAL.replace(b"a/b", b"a" * 20_000),
    USUAL.replace(b"content-length:", b"content-length :"),
    USUAL.replace(b": 5", b": -5"),
    USUAL.replace(b": 5", b": +5"),
    USUAL.replace(b": 5", b": five"),
    USUAL.replace(b"content-length: 5\r\n", b""),
    USUAL.replace(b"\r\n", b"\n"),
    USUAL.replace(b"200 OK", b"200"),
    USUAL.replace(b"200 OK", b"503 Service  Unavailable "),
    USUAL.replace(b"200 OK", b"204 No Content"),
    USUAL.replace(b"200 OK", b"304 Not Modified"),
    USUAL.replace(b"200 OK", b"20 OK"),
    USUAL.replace(b"200 OK", b"abc OK"),
    USUAL.replace(b"HTTP/1.1", b"HTTP/1.0"),
    USUAL.replace(b"HTTP/1.1", b"HTTP/2"),
    b"HTTP/1.1 100 Continue\r\n\r\n" + USUAL,
    USUAL[:40],
    USUAL[:-2],
    b"no answer at all\r\n\r\n",
    b"",
]


class Sent:
    """A socket from which these bytes come."""

    def __init__(self, raw):
        self.raw = raw

    def makefile(self, mode):
        return io.BufferedReader(io.BytesIO(self.raw))


def told(kind, raw):
    response = kind(Sent(raw), method="GET")
    try:
        response.begin()
        head = response.status, response.reason, response.version, response.getheaders()
        rest = response.length, response.chunked, response.will_close
        return *head, *rest, response.read()
    except http.client.HTTPException as error:
        return type(error)


@pytest.mark.parametrize("raw", [USUAL, *UNUSUAL])
def test_a_head_is_read_as_the_library_reads_it(raw):
    assert told(Line.response_class, raw) == told(http.client.HTTPResponse, raw)


def test_the_usual_head_does_not_take_the_long_way(monkeypatch):
    monkeypatch.setattr(http.client.HTTPResponse, "begin", None)
    assert told(Line.response_class, USUAL)[0] == 200


def test_no_word_of_a_request_becomes_a_line_of_its_own():
    line = Line("host", 1, None)
    head = line._head("POST", "/a?b=c", {"x": "y"}, 0)
    assert head == (
        b"POST /a?b=c HTTP/1.1\r\nHost: host:1\r\nAccept-Encoding: identity\r\n"
        b"x: y\r\ncontent-length: 0\r\n\r\n"
    )
    assert Line("::1", 2, None)._head("GET", "/", {}, 0).splitlines()[1] == b"Host: [::1]:2"
    for target, headers in (("/a\r\nb: c", {}), ("/", {"a\nb": "c"}), ("/", {"a": "b\rc"})):
        with pytest.raises(ValueError, match="no request"):
            line._head("GET", target, headers, 0)
