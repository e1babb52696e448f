"""What the routes make of bytes: ranges, bodies, limits, and errors in one form."""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from atoll.core.errors import StorageError
from atoll.server.service import Readable
from atoll.server.web.api import CHUNK, INLINE
from atoll.server.web.limits import Limits
from atoll.wire.frames import Allowed, Blob
from atoll.wire.messages import BlobRef, TaskBody

sys.path.insert(0, str(Path(__file__).parent))

from web_bench import Bench

HEART = Path(__file__).parents[2] / "examples" / "heart" / "job.toml"
BLOBS = Allowed(dtypes=("uint8",), most_arrays=10, most_bytes=1 << 23)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def ulm(bench):
    return bench.admit("ulm")


@pytest.fixture
def ada(bench):
    return bench.admit("ada", "researcher")


def task(name="r-1.train.1.ulm", **more):
    run, kind, number, client = name.split(".")
    plan = BlobRef(sha256="0" * 64, size=2 * INLINE)
    return TaskBody(
        id=name, run=run, kind=kind, number=int(number), client=client, plan=plan, **more
    )


# Ranges --------------------------------------------------------------------------------------------


RAW = bytes(range(256)) * 8192  # 2 MiB: several pieces


def ranged(bench, ulm, wanted=None):
    bench.service.blob = lambda name, sha: Readable(len(RAW), lambda a, b: RAW[a:b])
    path = f"/v1/blobs/{'a' * 64}"
    headers = bench.signed(ulm, "GET", path)
    return bench.send("GET", path, headers=headers | ({"range": wanted} if wanted else {}))


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, len(RAW)),
        ("bytes=100-1500000", 100, 1_500_001),
        (f"bytes=10-{len(RAW) + 50}", 10, len(RAW)),
        (f"bytes={len(RAW) - 1}-", len(RAW) - 1, len(RAW)),
    ],
)
def test_a_part_of_a_blob_is_sent_where_one_is_asked_for(bench, ulm, wanted, start, stop):
    heard = ranged(bench, ulm, wanted)
    assert (heard.status, heard.body) == (206, RAW[start:stop])
    assert heard.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(RAW)}"
    assert heard.headers["content-length"] == str(stop - start)


def test_a_whole_blob_is_sent_where_no_range_is_asked_for(bench, ulm):
    heard = ranged(bench, ulm)
    assert (heard.status, heard.body, heard.headers["accept-ranges"]) == (200, RAW, "bytes")


@pytest.mark.parametrize(
    "wanted", ["bytes=5-2", "bytes=99999999-", "bytes=-5", "bytes=0-1,3-4", "x"]
)
def test_a_range_that_does_not_lie_within_the_blob_is_refused(bench, ulm, wanted):
    assert ranged(bench, ulm, wanted).code == "wire.invalid"


def test_a_blob_that_ends_early_ends_the_connection_and_is_not_completed(bench, ulm):
    class Guest:
        dropped = 0
        prove = staticmethod(lambda member: None)

        def drop(self):
            self.dropped += 1

    bench.service.blob = lambda name, sha: Readable(1 << 20, lambda a, b: b"short")
    guest, path = Guest(), f"/v1/blobs/{'a' * 64}"
    heard = bench.send("GET", path, headers=bench.signed(ulm, "GET", path), guest=guest)
    assert (heard.body, guest.dropped) == (b"", 1)


# Bodies --------------------------------------------------------------------------------------------


def pieces(raw, size=65_536):
    return [raw[i : i + size] for i in range(0, len(raw), size)]


def upload(bench, member, raw, **more):
    query, path = f"job=new&size={len(raw)}&offset=0", f"/v1/uploads/{Blob.of(raw).sha256}"
    headers = bench.signed(member, "PUT", path, query, raw)
    return bench.send("PUT", path, query, raw, headers, **more)


@pytest.mark.parametrize("room", [0, CHUNK])
def test_a_long_body_waits_in_a_file_where_there_is_takes_nothing_and_leaves_nothing(
    tmp_path, room
):
    bench = Bench(tmp_path, limits=Limits(room=room))
    ada, seen, real = bench.admit("ada", "researcher"), [], bench.service.upload_chunk

    def watched(*arguments):
        waiting = tmp_path / "incoming"
        seen.append([p.stat().st_size for p in waiting.iterdir()] if waiting.exists() else [])
        return real(*arguments)

    bench.service.upload_chunk = watched
    for number in range(3):
        raw = np.random.default_rng(number).bytes(CHUNK)
        assert upload(bench, ada, raw, pieces=pieces(raw)).json == {"received": len(raw)}
    assert seen == ([[]] * 3 if room else [[CHUNK]] * 3)
    assert list((tmp_path / "incoming").glob("*")) == []
    assert bench.app._room.left == room
    bench.close()


def test_a_longer_upload_is_taken_while_it_comes_and_goes_on_where_it_was_cut(bench, ada, tmp_path):
    raw = np.random.default_rng(2).bytes(3 * CHUNK + 7)
    path = f"/v1/uploads/{Blob.of(raw).sha256}"

    def put(offset, sent):
        query = f"job=new&size={len(raw)}&offset={offset}"
        headers = bench.signed(ada, "PUT", path, query, raw[offset:])
        return bench.send("PUT", path, query, raw[offset:], headers, pieces=pieces(sent))

    cut = 2 * CHUNK + 100_000
    assert put(0, raw[:cut]).code == "wire.invalid"  # the line was cut
    held = bench.ask(ada, "GET", path).json["received"]
    assert cut - (1 << 20) - 65_536 <= held <= cut
    assert put(held, raw[held:]).json == {"received": len(raw)}
    assert bench.service._office.blobs.view(Blob.of(raw).sha256) == raw
    assert list((tmp_path / "incoming").glob("*")) == []


def test_whether_an_upload_is_wanted_is_asked_with_each_chunk_and_with_its_end(bench, ada):
    raw = np.random.default_rng(5).bytes(3 * CHUNK + 7)
    seen, real = [], bench.service.upload_chunk

    def watched(name, sha256, size, offset, data, task):
        seen.append((offset, offset + len(data)))
        return real(name, sha256, size, offset, data, task)

    bench.service.upload_chunk = watched
    assert upload(bench, ada, raw, pieces=pieces(raw)).json == {"received": len(raw)}
    assert seen[0][0] == 0
    assert seen[-1][1] == len(raw)
    starts = [start for start, _ in seen]
    assert max(b - a for a, b in pairwise(starts)) < CHUNK + (2 << 20)
    assert len(seen) <= 5


def test_a_longer_upload_of_other_bytes_than_its_name_says_is_refused_and_forgotten(bench, ada):
    raw = bytes(2 * CHUNK)
    other = raw[:-1] + b"x"
    path, query = f"/v1/uploads/{Blob.of(raw).sha256}", f"job=new&size={len(raw)}&offset=0"
    headers = bench.signed(ada, "PUT", path, query, raw)
    heard = bench.send("PUT", path, query, raw, headers, pieces=pieces(other))
    assert heard.code in ("wire.invalid", "wire.unreachable")
    assert bench.ask(ada, "GET", path).json == {"received": 0}
    headers = bench.signed(ada, "PUT", path, query, other)
    waiting = pieces(other)
    heard = bench.send("PUT", path, query, other, headers, pieces=waiting)
    assert heard.code == "auth.refused"  # what was signed cannot be what its name says


def test_a_longer_upload_than_its_job_may_have_is_not_read(bench, ada):
    size = 1 << 36
    path, query = f"/v1/uploads/{'a' * 64}", f"job=new&size={size}&offset=0"
    headers = bench.signed(ada, "PUT", path, query, body_digest=bytes.fromhex("a" * 64))
    taken = []

    class Endless(list):
        def pop(self, place):
            taken.append(1)
            return bytes(65_536)

    heard = bench.send("PUT", path, query, b"", headers, declared=size, pieces=Endless([1, 2]))
    assert (heard.status, heard.code) == (413, "wire.toolarge")
    assert len(taken) < 100


@pytest.mark.parametrize("size", [1000, 600_000])
def test_a_body_that_is_more_less_or_other_than_declared_changes_nothing(
    bench, ada, size, tmp_path
):
    raw = bytes(size)
    other = bytes(size - 1) + b"x"
    for sent, code in [
        (raw + b"more", "wire.toolarge"),
        (raw[:-1], "wire.invalid"),
        (other, "auth.refused"),
    ]:
        heard = upload(bench, ada, raw, pieces=pieces(sent))
        assert heard.code == code
        assert bench.ask(ada, "GET", f"/v1/uploads/{Blob.of(raw).sha256}").json == {"received": 0}
    assert list((tmp_path / "incoming").glob("*")) == []


def test_a_sender_that_is_too_slow_or_gone_is_given_up(tmp_path):
    bench = Bench(tmp_path, limits=Limits(body_seconds=0.2, slowest=1e9))
    ada = bench.admit("ada", "researcher")

    class Never:
        """Nothing more comes."""

        def __bool__(self):
            return True

        def pop(self, place):
            return b""

    raw = bytes(500_000)
    query, path = f"job=new&size={len(raw)}&offset=0", f"/v1/uploads/{Blob.of(raw).sha256}"

    async def scenario(gone):
        headers = bench.signed(ada, "PUT", path, query, raw)
        return await bench.sent("PUT", path, query, raw, headers, pieces=[], gone=gone)

    began = time.monotonic()
    heard = bench.loop.run_until_complete(scenario(asyncio.Event()))
    assert (heard.status, heard.code) == (503, "wire.unreachable")
    assert 0.2 <= time.monotonic() - began < 20
    gone = asyncio.Event()
    gone.set()
    assert bench.loop.run_until_complete(scenario(gone)).code == "wire.unreachable"
    assert list((tmp_path / "incoming").glob("*")) == []
    bench.close()


@pytest.mark.parametrize(
    "headers",
    [
        [("content-length", "5"), ("content-length", "5")],
        [("content-length", "+5")],
        [("content-length", "5 ")],
        [("content-length", "\u0665")],
        [("content-length", "9" * 20)],
        [("transfer-encoding", "chunked")],
        [("range", "bytes=0-"), ("range", "bytes=1-")],
    ],
)
def test_ambiguous_headers_are_refused(bench, headers):
    heard = bench.loop.run_until_complete(_raw(bench, headers))
    assert heard.status in (400, 413)


async def _raw(bench, headers):
    sent = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/v1/health",
        "raw_path": b"/v1/health",
        "query_string": b"",
        "headers": [(n.encode(), v.encode("utf-8")) for n, v in headers],
        "client": None,
    }

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await bench.app(scope, receive, send)

    class Heard:
        status = sent[0]["status"]

    return Heard


@pytest.mark.parametrize("query", ["size=1&size=2", "size=x&offset=0", "offset=0", "%ff=1", "size"])
def test_a_malformed_query_is_refused(bench, ada, query):
    path = f"/v1/uploads/{'a' * 64}"
    assert bench.ask(ada, "PUT", path, query, b"x").code == "wire.invalid"


# Limits and errors ---------------------------------------------------------------------------------


def test_one_member_cannot_take_all_threads_and_others_go_on(tmp_path):
    bench = Bench(tmp_path, limits=Limits(requests=4))
    ulm, bern = bench.admit("ulm"), bench.admit("bern")

    async def scenario():
        def poll(member):
            headers = bench.signed(member, "GET", "/v1/poll", "wait=20")
            return asyncio.ensure_future(bench.sent("GET", "/v1/poll", "wait=20", b"", headers))

        mine = [poll(ulm) for _ in range(6)]
        theirs = poll(bern)
        async with asyncio.timeout(15):  # less than the questions wait for
            while bench.premises.meters.waiting != 5 or sum(p.done() for p in mine) != 2:
                await asyncio.sleep(0.01)
        early = [p.result() for p in [*mine, theirs] if p.done()]
        bench.bell.close()
        return early, await asyncio.gather(*mine, theirs)

    early, all_ = bench.loop.run_until_complete(scenario())
    assert [heard.code for heard in early] == ["wire.busy"] * 2
    assert sorted(heard.status for heard in all_) == [200] * 5 + [429] * 2
    assert bench.ask(ulm, "GET", "/v1/poll").status == 200
    bench.close()


def test_an_error_of_the_server_itself_is_told_without_its_details(bench, ulm, caplog):
    def broken(site, have):
        raise RuntimeError("password=hunter2")

    bench.service.glance = broken
    heard = bench.ask(ulm, "GET", "/v1/poll")
    assert (heard.status, heard.code) == (500, "error")
    assert b"hunter2" not in heard.body
    assert "hunter2" in caplog.text


def test_errors_have_one_form_with_remedy_site_and_faults(bench, ulm):
    def full(site, have):
        raise StorageError("no space left", remedy="free some", site="ulm")

    bench.service.glance = full
    heard = bench.ask(ulm, "GET", "/v1/poll")
    assert heard.status == 507
    assert heard.headers["content-type"] == "application/problem+json"
    assert heard.json == {
        "code": "storage.unwritable",
        "message": "no space left",
        "remedy": "free some",
        "site": "ulm",
        "faults": [],
    }


def test_a_refused_stranger_s_connection_is_closed_and_a_member_s_kept(bench, ulm):
    assert bench.send("GET", "/v1/poll").headers["connection"] == "close"
    assert bench.send("GET", "/v1/health").headers.get("connection") is None
    heard = bench.ask(ulm, "GET", "/v1/jobs")
    assert (heard.status, heard.headers.get("connection")) == (403, None)


def test_a_member_s_body_is_read_to_its_end_even_where_its_number_is_refused(bench, ada):
    raw = bytes(CHUNK)
    path, query = f"/v1/uploads/{Blob.of(raw).sha256}", f"job=new&size={CHUNK}&offset=0"
    headers = bench.signed(ada, "PUT", path, query, raw, epoch=0)
    waiting = pieces(raw)
    heard = bench.send("PUT", path, query, raw, headers, pieces=waiting)
    assert (heard.status, heard.headers.get("connection")) == (409, None)
    heard = bench.send("PUT", path, query, raw, {}, pieces=pieces(raw))
    assert (heard.status, heard.headers.get("connection")) == (401, "close")


def test_health_tells_nothing_and_readiness_whether_it_can_work(bench):
    assert bench.send("GET", "/v1/health").json == {"status": "ok"}
    assert bench.send("GET", "/v1/ready").json == {"status": "ready"}
    bench.trouble = "the database at /secret/place is gone"
    heard = bench.send("GET", "/v1/ready")
    assert (heard.status, heard.json) == (503, {"status": "not ready"})


def test_the_page_of_metrics_counts_requests_refusals_bytes_and_members(bench, ulm, ada):
    bench.ask(ulm, "GET", "/v1/poll")
    bench.ask(ulm, "GET", "/v1/jobs")
    upload(bench, ada, b"12345")
    page = bench.send("GET", "/v1/metrics", headers={"authorization": "Bearer open sesame"})
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = page.body.decode().splitlines()
    for line in [
        'atoll_requests_total{route="GET /v1/poll",status="200"} 1',
        'atoll_requests_total{route="GET /v1/jobs",status="403"} 1',
        'atoll_refused_total{code="auth.forbidden"} 1',
        "atoll_received_bytes_total 5",
        'atoll_request_seconds_bucket{route="GET /v1/poll",le="+Inf"} 1',
        'atoll_request_seconds_count{route="GET /v1/poll"} 1',
        'atoll_members{role="site",status="active"} 1',
        "atoll_waiting 0",
    ]:
        assert line in lines
    named = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert {
        line.split("{")[0].split()[0] for line in lines if not line.startswith("#")
    } >= named - {"atoll_request_seconds"}
