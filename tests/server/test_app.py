"""What the routes answer: joining, polling, results, uploads, ranges, and errors in one form."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from atoll.core.errors import StorageError
from atoll.job.load import read_spec
from atoll.job.package import spec_to_plain
from atoll.server.api import CHUNK, INLINE
from atoll.server.limits import Limits, origin
from atoll.server.service import Poll, Readable
from atoll.wire.frames import Allowed, Blob, decode, encode
from atoll.wire.identity import Identity
from atoll.wire.messages import BlobRef, RoundsReply, TaskBody
from atoll.wire.signatures import sign_request

sys.path.insert(0, str(Path(__file__).parent))

from web_bench import FEDERATION, Bench, Member

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


# Joining -------------------------------------------------------------------------------------------


def join(bench, secret, key=None, *, signer=None, name=None, **changes):
    key = key or Identity.fresh()
    body = {"secret": secret.hex(), "key": key.public_bytes.hex(), "name": name}
    raw = json.dumps(body).encode()
    facts = {
        "method": "POST",
        "path": "/v1/join",
        "query": "",
        "body_digest": hashlib.sha256(raw).digest(),
        "federation": "join",
        "epoch": 0,
        "sequence": 1,
        "created": int(bench.time),
    }
    headers = sign_request(signer or key, **facts | changes)
    return bench.send("POST", "/v1/join", body=raw, headers=headers)


def test_a_code_lets_one_key_in_and_tells_it_who_it_is(bench):
    key = Identity.fresh()
    heard = join(bench, bench.secret("ulm"), key)
    assert heard.json == {
        "federation": FEDERATION,
        "name": "ulm",
        "role": "site",
        "server_key": bench.identity.public_bytes.hex(),
        "epoch": bench.epoch,
    }
    assert bench.ask(Member("ulm", key), "GET", "/v1/federation").status == 200  # known at once


def test_a_lost_answer_to_joining_can_be_asked_for_again_by_the_same_key_alone(bench):
    key, secret = Identity.fresh(), bench.secret("ulm")
    assert join(bench, secret, key).json == join(bench, secret, key).json
    assert join(bench, secret).code == "auth.refused"
    assert len(bench.store.members()) == 1


def test_a_wrong_or_expired_secret_lets_nobody_in(bench):
    secret = bench.secret("ulm", seconds=5.0)
    assert join(bench, bytes(16)).code == "auth.refused"
    bench.later(6.0)
    assert join(bench, secret).code == "auth.refused"
    assert bench.store.members() == ()


def test_who_joins_must_hold_the_key_that_is_to_be_pinned(bench):
    secret, victim = bench.secret("ulm"), Identity.fresh()
    assert join(bench, secret, victim, signer=Identity.fresh()).code == "auth.refused"
    assert join(bench, secret, victim, body_digest=bytes(32)).code == "auth.refused"
    assert join(bench, secret, victim, created=int(bench.time) - 1000).code == "auth.refused"
    assert bench.store.members() == ()


def test_guessing_codes_is_slowed_down_per_address(tmp_path):
    bench = Bench(tmp_path, limits=Limits(joins=3, joins_per_second=0.1))
    secret = bench.secret("ulm")
    assert [join(bench, bytes([n]) * 16).status for n in range(5)] == [401, 401, 401, 429, 429]
    assert join(bench, secret).status == 429
    bench.later(11.0)
    assert join(bench, secret).status == 200
    bench.close()


def test_places_are_addresses_or_networks():
    assert origin("2001:db8:1:2:3:4:5:6") == origin("2001:db8:1:2::1") == "2001:db8:1:2::"
    assert origin("::ffff:192.0.2.1") == "192.0.2.1"
    assert origin("somewhere") == "somewhere"


# Members -------------------------------------------------------------------------------------------


def test_members_see_each_other_s_fingerprints_and_the_server_s(bench, ulm, ada):
    heard = bench.ask(ada, "GET", "/v1/federation").json
    shown = {m["name"]: (m["role"], m["fingerprint"], m["status"]) for m in heard["members"]}
    assert shown == {
        "ulm": ("site", ulm.key.fingerprint, "active"),
        "ada": ("researcher", ada.key.fingerprint, "active"),
    }
    assert heard["server"] == bench.identity.fingerprint


def test_who_leaves_is_refused_from_then_on(bench, ulm):
    assert bench.ask(ulm, "POST", "/v1/leave").status == 200
    assert bench.ask(ulm, "GET", "/v1/poll").code == "auth.forbidden"


# Polling -------------------------------------------------------------------------------------------


def polled(heard):
    return decode(heard.body, BLOBS)


def test_a_poll_answers_at_once_when_there_are_tasks(bench, ulm):
    bench.service.poll = lambda site, have: Poll([task()], [])
    body, _ = polled(bench.ask(ulm, "GET", "/v1/poll", "have=&wait=25"))
    assert ([t["id"] for t in body["tasks"]], body["epoch"]) == (["r-1.train.1.ulm"], bench.epoch)


def test_a_poll_names_what_the_site_has_however_it_is_called(bench, ulm):
    seen = []
    bench.service.poll = lambda site, have: seen.append((site, set(have))) or Poll([], [*have])
    names = ["r-1.train.1.a, b", "r-1.train.1.zürich & co=1"]
    query = "have=" + ",".join(quote(name, safe="") for name in names) + "&wait=0.5"
    body, _ = polled(bench.ask(ulm, "GET", "/v1/poll", query))
    assert seen == [("ulm", set(names))]
    assert set(body["gone"]) == set(names)


def test_a_poll_without_news_waits_for_the_bell_and_not_a_moment_longer(bench, ulm):
    found = []
    bench.service.poll = lambda site, have: Poll(list(found), [])

    async def scenario():
        headers = bench.signed(ulm, "GET", "/v1/poll", "wait=20")
        poll = asyncio.ensure_future(bench.sent("GET", "/v1/poll", "wait=20", b"", headers))
        await asyncio.sleep(0.1)
        bench.service.on_change(["bern"])  # not for this site
        await asyncio.sleep(0.05)
        assert not poll.done()
        found.append(task())
        began = time.monotonic()
        threading.Thread(target=bench.service.on_change, args=(["ulm"],)).start()
        heard = await poll
        return heard, time.monotonic() - began

    heard, seconds = bench.loop.run_until_complete(scenario())
    assert len(polled(heard)[0]["tasks"]) == 1
    assert seconds < 0.5


def test_a_poll_without_news_ends_after_the_time_that_was_asked_for(bench, ulm):
    began = time.monotonic()
    body, _ = polled(bench.ask(ulm, "GET", "/v1/poll", "wait=0.2"))
    assert (body["tasks"], body["gone"]) == ([], [])
    assert 0.2 <= time.monotonic() - began < 2


def test_a_poll_without_news_ends_when_the_server_stops(bench, ulm):
    async def scenario():
        headers = bench.signed(ulm, "GET", "/v1/poll", "wait=20")
        poll = asyncio.ensure_future(bench.sent("GET", "/v1/poll", "wait=20", b"", headers))
        await asyncio.sleep(0.05)
        bench.bell.close()
        return await asyncio.wait_for(poll, 5)

    assert bench.loop.run_until_complete(scenario()).status == 200


def test_a_poll_whose_sender_has_gone_is_not_kept(bench, ulm):
    async def scenario():
        gone = asyncio.Event()
        headers = bench.signed(ulm, "GET", "/v1/poll", "wait=20")
        poll = asyncio.ensure_future(
            bench.sent("GET", "/v1/poll", "wait=20", b"", headers, gone=gone)
        )
        await asyncio.sleep(0.05)
        assert bench.premises.meters.waiting == 1
        gone.set()
        await asyncio.wait_for(poll, 5)

    bench.loop.run_until_complete(scenario())
    assert bench.premises.meters.waiting == 0


def test_a_key_that_is_revoked_while_it_waits_is_told_nothing(bench, ulm):
    async def scenario():
        headers = bench.signed(ulm, "GET", "/v1/poll", "wait=20")
        poll = asyncio.ensure_future(bench.sent("GET", "/v1/poll", "wait=20", b"", headers))
        await asyncio.sleep(0.05)
        bench.store.set_member("ulm", "revoked")
        bench.later(2.0)
        bench.service.poll = lambda site, have: Poll([task()], [])
        bench.service.on_change(["ulm"])
        return await asyncio.wait_for(poll, 5)

    heard = bench.loop.run_until_complete(scenario())
    assert (heard.status, heard.code) == (403, "auth.forbidden")


def test_small_blobs_come_with_the_tasks_that_name_them(bench, ulm):
    small, large = b"plan" * 10, bytes(INLINE + 1)
    raws = {hashlib.sha256(raw).hexdigest(): raw for raw in (small, large)}
    refs = [BlobRef(sha256=sha, size=len(raw)) for sha, raw in raws.items()]
    asked = task().model_copy(update={"plan": refs[0], "broadcast": refs[1]})
    bench.service.poll = lambda site, have: Poll([asked, asked], [])
    bench.service.blob = lambda site, sha: Readable(
        len(raws[sha]), lambda start, stop: raws[sha][start:stop]
    )
    _, arrays = polled(bench.ask(ulm, "GET", "/v1/poll"))
    assert {sha: array.tobytes() for sha, array in arrays.items()} == {refs[0].sha256: small}


@pytest.mark.parametrize("wait", ["x", "-1", "nan", "1&wait=2", ""])
def test_a_wait_that_is_no_time_is_refused(bench, ulm, wait):
    assert bench.ask(ulm, "GET", "/v1/poll", f"wait={wait}").code == "wire.invalid"


def test_a_slow_step_of_the_service_does_not_delay_a_poll(bench, ulm):
    def slow():
        with bench.service._stepping:
            time.sleep(1.5)

    thread = threading.Thread(target=slow)
    thread.start()
    began = time.monotonic()
    assert bench.ask(ulm, "GET", "/v1/poll").status == 200
    assert time.monotonic() - began < 0.75
    thread.join()


# Jobs and what sites do for them -------------------------------------------------------------------


@pytest.fixture
def run(bench, ulm, ada):
    """A run in its first call: both sites are asked for a survey."""
    bench.admit("bern")
    spec = read_spec(HEART)
    body = {"spec": spec_to_plain(spec), "job_hash": spec.hash()}
    heard = bench.ask(ada, "POST", "/v1/jobs", body=json.dumps(body).encode())
    assert heard.status == 200, heard.json
    bench.service.step()
    return heard.json["id"]


def test_a_submitted_job_is_listed_and_shown(bench, ada, run):
    listed = bench.ask(ada, "GET", "/v1/jobs").json["jobs"]
    assert [(j["id"], j["by"], j["sites"]) for j in listed] == [(run, "ada", ["bern", "ulm"])]
    assert bench.ask(ada, "GET", f"/v1/jobs/{run}").json == listed[0]
    assert bench.ask(ada, "GET", "/v1/jobs/heart-99").code == "state.missing"


def test_faults_of_a_job_come_together(bench, ada, run):
    spec = read_spec(HEART, ["clock.dropout=0.1"])
    body = {"spec": spec_to_plain(spec), "job_hash": spec.hash(), "sites": ["nowhere"]}
    heard = bench.ask(ada, "POST", "/v1/jobs", body=json.dumps(body).encode())
    assert (heard.status, heard.code) == (422, "job.invalid")
    assert {f["place"] for f in heard.json["faults"]} >= {"clock.dropout", "sites"}


def test_a_site_sees_its_own_task_and_cannot_answer_another_s(bench, ulm, run):
    body, arrays = polled(bench.ask(ulm, "GET", "/v1/poll", "wait=5"))
    [mine] = body["tasks"]
    assert (mine["client"], mine["kind"]) == ("ulm", "survey")
    assert mine["plan"]["sha256"] in arrays
    theirs = mine["id"].replace("ulm", "bern")
    frame = encode({"task": theirs, "status": "failed", "reason": "no"})
    path = f"/v1/results/{quote(theirs, safe='')}"
    assert bench.ask(ulm, "POST", path, body=frame).status == 404
    query = f"task={quote(theirs)}&size=4&offset=0"
    digest = hashlib.sha256(b"evil").hexdigest()
    assert bench.ask(ulm, "PUT", f"/v1/uploads/{digest}", query, b"evil").status == 404


def test_a_result_is_acknowledged_once_more_in_the_same_bytes_and_another_is_an_alarm(
    bench, ulm, run
):
    [mine] = polled(bench.ask(ulm, "GET", "/v1/poll"))[0]["tasks"]
    path = f"/v1/results/{quote(mine['id'], safe='')}"
    frame = encode({"task": mine["id"], "status": "failed", "reason": "the disk is full"})
    first = bench.ask(ulm, "POST", path, body=frame)
    assert first.json == {"task": mine["id"], "sha256": Blob.of(frame).sha256, "again": False}
    assert bench.ask(ulm, "POST", path, body=frame).json == first.json | {"again": True}
    other = encode({"task": mine["id"], "status": "failed", "reason": "no, it is not"})
    heard = bench.ask(ulm, "POST", path, body=other)
    assert (heard.status, heard.code) == (409, "wire.equivocation")


def test_a_long_result_is_uploaded_and_then_named(bench, ulm, run):
    [mine] = polled(bench.ask(ulm, "GET", "/v1/poll"))[0]["tasks"]
    frame = encode({"task": mine["id"], "status": "failed", "reason": "x" * 3000})
    blob = Blob.of(frame)
    query = f"task={quote(mine['id'])}&size={blob.size}&offset="
    target = f"/v1/uploads/{blob.sha256}"
    assert bench.ask(ulm, "GET", target).json == {"received": 0}
    assert bench.ask(ulm, "PUT", target, f"{query}0", frame[:1000]).json == {"received": 1000}
    assert bench.ask(ulm, "GET", target).json == {"received": 1000}
    assert bench.ask(ulm, "PUT", target, f"{query}2000", frame[2000:]).status == 503
    heard = bench.ask(ulm, "PUT", target, f"{query}1000", frame[1000:])
    assert heard.json == {"received": blob.size}
    raw = json.dumps({"blob": {"sha256": blob.sha256, "size": blob.size}}).encode()
    headers = bench.signed(ulm, "POST", f"/v1/results/{quote(mine['id'])}", body=raw)
    headers["content-type"] = "application/json"
    heard = bench.send("POST", f"/v1/results/{quote(mine['id'])}", body=raw, headers=headers)
    assert heard.json["sha256"] == blob.sha256


def test_blobs_are_shown_to_the_sites_whose_tasks_name_them(bench, ulm, run):
    [mine] = polled(bench.ask(ulm, "GET", "/v1/poll"))[0]["tasks"]
    plan = mine["plan"]
    heard = bench.ask(ulm, "GET", f"/v1/blobs/{plan['sha256']}")
    assert hashlib.sha256(heard.body).hexdigest() == plan["sha256"]
    assert bench.ask(bench.admit("late"), "GET", f"/v1/blobs/{plan['sha256']}").status == 404
    assert bench.ask(ulm, "GET", f"/v1/blobs/{'e' * 64}").status == 404
    assert bench.ask(ulm, "GET", "/v1/blobs/..%2Fidentity.pem").status == 404


def test_a_run_s_end_wakes_who_watches_it(bench, ada, run):
    async def scenario():
        path, query = f"/v1/jobs/{run}/rounds", "after=0&wait=20"
        headers = bench.signed(ada, "GET", path, query)
        watch = asyncio.ensure_future(bench.sent("GET", path, query, b"", headers))
        await asyncio.sleep(0.05)
        cancel = f"/v1/jobs/{run}/cancel"
        heard = await bench.sent("POST", cancel, headers=bench.signed(ada, "POST", cancel))
        assert heard.status == 200
        await asyncio.to_thread(bench.service.step)
        return await asyncio.wait_for(watch, 5)

    heard = bench.loop.run_until_complete(scenario())
    found = RoundsReply.model_validate_json(heard.body)
    assert (found.ended, found.status) == (True, "cancelled")
    assert bench.ask(ada, "POST", f"/v1/jobs/{run}/cancel").code == "state.conflict"


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
def test_a_long_body_waits_in_a_file_where_there_is_no_room_and_leaves_nothing(tmp_path, room):
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
    assert 0.2 <= time.monotonic() - began < 3
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
        await asyncio.sleep(0.2)
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

    bench.service.poll = broken
    heard = bench.ask(ulm, "GET", "/v1/poll")
    assert (heard.status, heard.code) == (500, "error")
    assert b"hunter2" not in heard.body
    assert "hunter2" in caplog.text


def test_errors_have_one_form_with_remedy_site_and_faults(bench, ulm):
    def full(site, have):
        raise StorageError("no space left", remedy="free some", site="ulm")

    bench.service.poll = full
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
