"""Long bodies on a real server: by threads, by the loop, and handed to and fro between the two."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
import time
from dataclasses import replace

import pytest
from test_serving import MANY, Live

from atoll.core.errors import Unreachable
from atoll.server.rounds.results import Readable
from atoll.server.service import Service
from atoll.server.web import lanes, serving
from atoll.server.web.lanes import LONG, PIECE, Lane, Lanes, pour
from atoll.wire.frames import Blob
from atoll.wire.messages import MembersReply, UploadReply
from atoll.wire.signatures import sign_request

SIZE = 6 * LONG + 12_345
RAW = hashlib.shake_256(b"a model").digest(SIZE)
BLOB = Blob.of(RAW)


def limits(threads: int):
    return replace(MANY, lanes=threads, lanes_each=min(2, threads))


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with Live(tmp_path_factory.mktemp("lanes") / "server", limits(4)) as made:
        yield made


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    with Live(tmp_path_factory.mktemp("loop") / "server", limits(0)) as made:
        yield made


@pytest.fixture(params=["threads", "loop"])
def either(request, live, without):
    """A server with threads for long bodies, and one without any."""
    return live if request.param == "threads" else without


@pytest.fixture
def count():
    """Numbers for names: each test has members of its own."""
    return time.monotonic_ns()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(RAW)
    return path


@pytest.fixture
def shown(monkeypatch):
    """Every blob that is asked for is the one of this test."""
    monkeypatch.setattr(
        Service, "blob", lambda self, name, sha: Readable(SIZE, lambda a, b: RAW[a:b])
    )


def request(channel, method: str, path: str, query: str, digest: bytes, size: int = 0) -> bytes:
    """The head of a signed request."""
    with channel._lock:
        channel._sequence += 1
    signed = sign_request(
        channel._identity,
        method=method,
        path=path,
        query=query,
        body_digest=digest,
        federation=channel._federation,
        epoch=channel.epoch,
        sequence=channel._sequence,
        created=int(time.time()),
    )
    lines = [f"{method} {path}{'?' + query if query else ''} HTTP/1.1", "host: x"]
    lines += [f"{name}: {value}" for name, value in signed.items()]
    lines += [f"content-length: {size}"] if size else []
    return "\r\n".join([*lines, "", ""]).encode()


def put(channel, blob: Blob = BLOB) -> bytes:
    """The head of an upload of all bytes at once."""
    path, query = f"/v1/uploads/{blob.sha256}", f"job=new&size={blob.size}&offset=0"
    return request(channel, "PUT", path, query, bytes.fromhex(blob.sha256), blob.size)


def researcher(live, count):
    channel = live.join(f"ada-{count}", "researcher")
    channel.call("GET", "/v1/federation")
    return channel


def received(channel, blob: Blob = BLOB) -> int:
    return channel.json("GET", f"/v1/uploads/{blob.sha256}", None, UploadReply).received


def answer(speaker) -> tuple[int, bytes]:
    """Status and body of one answer."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = speaker.recv(65_536)
        assert piece, raw
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < size:
        body += speaker.recv(65_536)
    return int(head.split()[1]), body


def forget(live, blob: Blob = BLOB) -> None:
    (live.path / "blobs" / blob.sha256).unlink(missing_ok=True)


def test_a_long_upload_arrives_and_its_connection_goes_on(either, count, source):
    with researcher(either, count) as channel:
        channel.upload(BLOB, source, "")
        assert received(channel) == SIZE
        assert (either.path / "blobs" / BLOB.sha256).read_bytes() == RAW
        channel.json("GET", "/v1/federation", None, MembersReply)
        assert len(channel._idle) == 1  # one connection did it all
    forget(either)


def test_a_long_download_arrives_and_its_connection_goes_on(either, count, shown, tmp_path):
    with either.join(f"ulm-{count}") as channel:
        channel.download(BLOB, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == RAW
        channel.json("GET", "/v1/federation", None, MembersReply)
        assert len(channel._idle) == 1


def test_long_bodies_are_the_work_of_threads(live, count, source, shown, tmp_path, monkeypatch):
    moved = []
    pour, send = lanes.pour, lanes.send

    def poured(*arguments):
        found = pour(*arguments)
        moved.append(("in", found[0]))
        return found

    def sent(sealed, read, start, stop):
        at = send(sealed, read, start, stop)
        moved.append(("out", at - start))
        return at

    monkeypatch.setattr(lanes, "pour", poured)
    monkeypatch.setattr(lanes, "send", sent)
    with researcher(live, count) as channel:
        channel.upload(BLOB, source, "")
    with live.join(f"ulm-{count}") as channel:
        channel.download(BLOB, tmp_path / "got")
    for way in ("in", "out"):
        assert sum(size for found, size in moved if found == way) > SIZE - LONG
    forget(live)


def test_an_upload_that_was_cut_goes_on_where_it_was(either, count, source):
    with researcher(either, count) as channel:
        with either.tls() as speaker:
            speaker.sendall(put(channel) + RAW[: 3 * LONG])
            until = time.monotonic() + 30
            while received(channel) < LONG and time.monotonic() < until:
                time.sleep(0.02)
        held = received(channel)
        assert LONG <= held <= 3 * LONG
        channel.upload(BLOB, source, "")
        assert received(channel) == SIZE
    forget(either)


def test_a_connection_is_given_back_when_its_thread_has_ended_however_often_it_is_cancelled():
    ended, begun, order = threading.Event(), threading.Event(), list[str]()

    class Lent:
        def lend(self, rest):
            return self

        def cut(self):
            order.append("cut")

        def give_back(self, received, sent):
            order.append("given back")

    def read(start, stop):
        begun.set()
        ended.wait(30)
        order.append("ended")
        return b""

    async def cancelled_twice():
        lane = Lane(threads, Lent(), "ulm")
        task = asyncio.create_task(lane.send(read, 0, 1))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.05)
        ended.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    threads = Lanes(1, 1)
    asyncio.run(cancelled_twice())
    threads.close()
    assert order == ["cut", "ended", "given back"]
    assert not threads.busy


def test_an_upload_in_fits_and_starts_arrives(either, count):
    """It is handed to the loop when it stops, and back to a thread when it flows."""
    with researcher(either, count) as channel, either.tls() as speaker:
        speaker.sendall(put(channel))
        for start in range(0, SIZE, 5 * LONG // 2):
            time.sleep(0.4)
            speaker.sendall(RAW[start : start + 5 * LONG // 2])
        status, body = answer(speaker)
        assert (status, json.loads(body)["received"]) == (200, SIZE)
    forget(either)


def test_a_reader_in_fits_and_starts_gets_it_all(either, count, shown):
    with either.join(f"slow-{count}") as channel:
        channel.call("GET", "/v1/federation")
        with either.tls() as speaker:
            nothing = hashlib.sha256(b"").digest()
            speaker.sendall(request(channel, "GET", f"/v1/blobs/{BLOB.sha256}", "", nothing))
            time.sleep(0.6)  # what the system takes is full by now, and the thread has gone
            found = speaker.recv(65_536)
            time.sleep(0.6)
            status, body = answer(_Before(found, speaker))
    assert status == 200
    assert body == RAW


class _Before:
    """A socket of which something was read already."""

    def __init__(self, first: bytes, speaker) -> None:
        self._first, self._speaker = first, speaker

    def recv(self, size: int) -> bytes:
        first, self._first = self._first, b""
        return first or self._speaker.recv(size)


def test_other_bytes_than_those_of_the_name_are_refused_and_can_be_sent_again(
    either, count, source
):
    with researcher(either, count) as channel:
        with either.tls() as speaker:
            speaker.sendall(put(channel) + RAW[:-1] + bytes([RAW[-1] ^ 1]))
            status, body = answer(speaker)
        assert status >= 400
        assert b"are not blob" in body
        assert received(channel) == 0
        channel.upload(BLOB, source, "")
        assert received(channel) == SIZE
    forget(either)


def test_many_at_once_are_served_whether_there_is_a_thread_for_each_or_not(
    live, count, tmp_path, shown
):
    wrong = []

    def one(number: int) -> None:
        with live.join(f"many-{count}-{number}") as channel:
            path = tmp_path / str(number)
            channel.download(BLOB, path)
            if path.read_bytes() != RAW:
                wrong.append(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(list(tmp_path.iterdir())) == 10


def test_who_stops_in_the_middle_holds_up_nobody(live, count, shown, tmp_path):
    """More senders that stop, and readers that do not read, than there are threads."""
    with contextlib.ExitStack() as stack:
        stopped = [stack.enter_context(researcher(live, f"{count}-{n}")) for n in range(6)]
        for channel in stopped:
            stack.enter_context(live.tls()).sendall(put(channel) + RAW[: 2 * LONG])
        readers = [stack.enter_context(live.join(f"r-{count}-{n}")) for n in range(6)]
        for channel in readers:
            channel.call("GET", "/v1/federation")
            nothing = hashlib.sha256(b"").digest()
            speaker = stack.enter_context(live.tls())
            speaker.sendall(request(channel, "GET", f"/v1/blobs/{BLOB.sha256}", "", nothing))
        with live.join(f"quick-{count}") as channel:
            began = time.monotonic()
            channel.download(BLOB, tmp_path / "got")
            assert time.monotonic() - began < 15  # those who stopped are given up after 20
    assert (tmp_path / "got").read_bytes() == RAW


def test_a_server_stops_while_bodies_are_under_way(tmp_path, count, shown, monkeypatch):
    monkeypatch.setattr(serving, "_GRACE", 0.5)
    with Live(tmp_path / "server", limits(4)) as live, contextlib.ExitStack() as stack:
        for number in range(2):
            channel = stack.enter_context(researcher(live, f"{count}-{number}"))
            speaker = stack.enter_context(live.tls())
            speaker.sendall(put(channel) + RAW[: 2 * LONG])
        began = time.monotonic()
        live.running.stop(0)
        live.thread.join(30)
        assert time.monotonic() - began < 15
        assert live.status == 0


class Piecemeal:
    """A connection whose bytes come as a list says; None stands for a pause."""

    def __init__(self, *pieces: bytes | None) -> None:
        self._pieces = list(pieces)

    def receive(self, into, seconds):
        piece = self._pieces.pop(0) if self._pieces else b""
        if piece is None:
            raise TimeoutError
        into[: len(piece)] = piece
        return len(piece)


def test_a_thread_hands_over_whole_pieces_and_gives_back_the_rest():
    taken = []
    line = Piecemeal(b"b" * (PIECE - 3), b"c" * 5, None)
    got, rest = pour(line, b"aaa", PIECE * 2, lambda p: taken.append(bytes(p)), 1e18)
    assert (got, rest) == (PIECE + 2, b"ccccc")
    assert taken == [b"aaa" + b"b" * (PIECE - 3)]


def test_a_sender_that_rests_leaves_little_in_memory():
    taken = []
    line = Piecemeal(b"b" * (1 << 18), None)
    got, rest = pour(line, b"a", PIECE, lambda p: taken.append(bytes(p)), 1e18)
    assert (got, rest) == (1 << 18, b"")
    assert taken == [b"a" + b"b" * (1 << 18)]


def test_what_comes_slowly_is_handed_over_now_and_then(monkeypatch):
    monkeypatch.setattr(lanes, "_SPAN", -1.0)  # a second is over at each look
    monkeypatch.setattr(lanes, "_LEAST", 0)
    taken = []
    with pytest.raises(Unreachable):
        pour(Piecemeal(b"abc", b"de"), b"", PIECE, lambda p: taken.append(bytes(p)), 1e18)
    assert taken == [b"abc", b"de"]


def test_a_sender_that_leaves_is_told_from_one_that_rests():
    with pytest.raises(Unreachable, match="has gone"):
        pour(Piecemeal(b"x"), b"", 10, bytes, 1e18)
    assert pour(Piecemeal(b"x", None), b"", 10, bytes, 1e18) == (1, b"x")


def test_a_body_that_is_late_is_given_back():
    assert pour(Piecemeal(b"x" * 9), b"", 10, bytes, 0.0) == (0, b"")


def test_threads_are_shared_out():
    found = Lanes(3, 2)
    assert [found.enter("a"), found.enter("a"), found.enter("a")] == [True, True, False]
    assert [found.enter("b"), found.enter("b")] == [True, False]
    found.leave("a")
    assert found.enter("b")
    assert found.busy == 3
    found.close()
