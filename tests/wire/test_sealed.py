"""TLS through memory: whatever the sizes, the same bytes arrive, and a pause or an end is told."""

import socket
import ssl
import threading

import pytest

from atoll.wire.certificates import client_context, create_certificate, server_context
from atoll.wire.sealed import Sealed, room


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    create_certificate(folder / "c.pem", folder / "k.pem", ["localhost"], now=1.8e9)
    return server_context(folder / "c.pem", folder / "k.pem")


@pytest.fixture
def ends(context):
    """Both ends of one connection, after the handshake."""
    left, right = socket.socketpair()
    server, client = Sealed(left, context), Sealed(right, client_context(), "localhost")
    greeting = threading.Thread(target=server.greet, args=(10,))
    greeting.start()
    client.greet(10)
    greeting.join()
    yield server, client
    server.close()
    client.close()


def read_exactly(sealed, size):
    found = bytearray(size)
    view, got = memoryview(found), 0
    while got < size and (more := sealed.receive(view[got:], 10)):
        got += more
    return bytes(found[:got])


@pytest.mark.parametrize("size", [1, 16_384, 16_385, 5_000_001])
def test_bytes_of_any_number_arrive(ends, size):
    server, client = ends
    raw = bytes(range(256)) * (size // 256 + 1)
    sending = threading.Thread(target=server.send, args=(memoryview(raw)[:size], 10))
    sending.start()
    assert read_exactly(client, size) == raw[:size]
    sending.join()
    assert server.unsent == 0
    assert client.unread == 0


def test_both_ways_in_turns(ends):
    server, client = ends
    for number in range(5):
        client.send(b"ask %d" % number, 10)
        assert read_exactly(server, 5) == b"ask %d" % number
        server.send(b"tell", 10)
        assert read_exactly(client, 4) == b"tell"


def test_who_says_nothing_is_waited_for_so_long_and_heard_afterwards(ends):
    server, client = ends
    with pytest.raises(TimeoutError):
        client.receive(room("test", 100), 0.05)
    server.send(b"late", 10)
    assert read_exactly(client, 4) == b"late"


def test_what_nobody_takes_is_kept_and_sent_later(ends):
    server, client = ends
    raw = bytes(8 << 20)
    server.write(raw)
    with pytest.raises(TimeoutError):
        server.drain(0.05)
    assert server.unsent
    assert not server.flush()
    sending = threading.Thread(target=server.drain, args=(10,))
    sending.start()
    assert read_exactly(client, len(raw)) == raw
    sending.join()


def test_nothing_waits_where_nothing_is_to_be_had(ends):
    _, client = ends
    with pytest.raises(BlockingIOError):
        client.fill()
    assert client.read(room("test", 100)) == 0
    assert not client.ended


@pytest.mark.parametrize("politely", [True, False])
def test_an_end_is_told(ends, politely):
    server, client = ends
    server.send(b"last words", 10)
    if politely:
        server.finish()
        server.flush()
    server.close()
    assert read_exactly(client, 100) == b"last words"
    assert client.ended
    assert client.receive(room("test", 100), 10) == 0


def test_a_byte_that_was_changed_on_the_way_is_found(ends):
    server, client = ends
    server.write(b"a model")
    sealed = bytearray(server._out.read())
    sealed[-1] ^= 1
    server.sock.setblocking(True)
    server.sock.sendall(sealed)
    with pytest.raises(ssl.SSLError):
        client.receive(room("test", 100), 10)


def test_one_thread_s_room_is_no_other_s():
    other = []
    thread = threading.Thread(target=lambda: other.append(room("test", 100)))
    thread.start()
    thread.join()
    assert room("test", 100) is room("test", 100)
    assert other[0] is not room("test", 100)
