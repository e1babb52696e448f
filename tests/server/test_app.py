"""What the routes answer: joining, members, polling, jobs and results."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from atoll.core.errors import StorageError
from atoll.job.load import read_spec
from atoll.job.package import spec_digest, spec_to_plain
from atoll.server.service import Poll, Readable
from atoll.server.web.api import INLINE
from atoll.server.web.limits import Limits, origin
from atoll.wire.frames import Allowed, Blob, decode, encode
from atoll.wire.identity import Identity
from atoll.wire.messages import BlobRef, RoundsReply, SubmitBody, TaskBody
from atoll.wire.news import NEWS, opened
from atoll.wire.signatures import sign_request
from atoll.wire.submissions import Submission

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


def test_without_its_store_the_server_is_alive_and_tells_strangers_nothing_of_it(
    bench, ulm, monkeypatch
):
    secret = bench.secret("east")

    def away(*arguments, **more):
        raise StorageError("the store postgresql://atoll@db.internal/x cannot be used: no route")

    for name in ("members", "join"):
        monkeypatch.setattr(type(bench.store), name, away)
    bench.later(5.0)  # the members have to be read anew
    assert bench.send("GET", "/v1/health").json == {"status": "ok"}
    assert bench.send("GET", "/v1/ready").json == {"status": "not ready"}
    for heard in (
        bench.send("GET", "/v1/federation"),
        bench.ask(ulm, "GET", "/v1/poll"),
        join(bench, secret),
    ):
        assert (heard.status, heard.code) == (507, "storage.unwritable")
        assert b"db.internal" not in heard.body
        assert b"atoll doctor --server" in heard.body


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


async def waits(bench):
    """Until one question waits for news, however long the machine takes to come so far."""
    async with asyncio.timeout(30):
        while bench.premises.meters.waiting != 1:
            await asyncio.sleep(0.005)


@pytest.fixture(params=["at once", "in a thread"])
def telling(request, bench):
    """Has the service tell news: on the event loop, or where it may wait for a lock or the disk."""

    def tell(poll):
        bench.service.poll = poll
        bench.service.glance = poll if request.param == "at once" else lambda site, have: None

    return tell


def test_a_poll_answers_at_once_when_there_are_tasks(bench, ulm, telling):
    telling(lambda site, have: Poll([task()], []))
    body, _ = polled(bench.ask(ulm, "GET", "/v1/poll", "have=&wait=25"))
    assert ([t["id"] for t in body["tasks"]], body["epoch"]) == (["r-1.train.1.ulm"], bench.epoch)


def test_a_poll_names_what_the_site_has_however_it_is_called(bench, ulm, telling):
    seen = []
    telling(lambda site, have: seen.append((site, set(have))) or Poll([], [*have]))
    names = ["r-1.train.1.a, b", "r-1.train.1.zürich & co=1"]
    query = "have=" + ",".join(quote(name, safe="") for name in names) + "&wait=0.5"
    body, _ = polled(bench.ask(ulm, "GET", "/v1/poll", query))
    assert seen == [("ulm", set(names))]
    assert set(body["gone"]) == set(names)


def test_a_poll_without_news_waits_for_the_bell_and_not_a_moment_longer(bench, ulm, telling):
    found = []
    telling(lambda site, have: Poll(list(found), []))

    async def scenario():
        headers = bench.signed(ulm, "GET", "/v1/poll", "wait=20")
        poll = asyncio.ensure_future(bench.sent("GET", "/v1/poll", "wait=20", b"", headers))
        await waits(bench)
        bench.service.on_change(["bern"])  # not for this site
        await asyncio.sleep(0.05)
        assert not poll.done()
        found.append(task())
        threading.Thread(target=bench.service.on_change, args=(["ulm"],)).start()
        return await asyncio.wait_for(poll, 10)  # half of what it would wait for

    heard = bench.loop.run_until_complete(scenario())
    assert len(polled(heard)[0]["tasks"]) == 1


def test_a_poll_without_news_ends_after_the_time_that_was_asked_for(bench, ulm):
    began = time.monotonic()
    body, _ = polled(bench.ask(ulm, "GET", "/v1/poll", "wait=0.2"))
    assert (body["tasks"], body["gone"]) == ([], [])
    assert 0.2 <= time.monotonic() - began < 10  # the server would wait for longer


def test_a_poll_without_news_ends_when_the_server_stops(bench, ulm):
    async def scenario():
        headers = bench.signed(ulm, "GET", "/v1/poll", "wait=20")
        poll = asyncio.ensure_future(bench.sent("GET", "/v1/poll", "wait=20", b"", headers))
        await waits(bench)
        bench.bell.close()
        return await asyncio.wait_for(poll, 10)

    assert bench.loop.run_until_complete(scenario()).status == 200


def test_a_poll_whose_sender_has_gone_is_not_kept(bench, ulm):
    async def scenario():
        gone = asyncio.Event()
        headers = bench.signed(ulm, "GET", "/v1/poll", "wait=20")
        poll = asyncio.ensure_future(
            bench.sent("GET", "/v1/poll", "wait=20", b"", headers, gone=gone)
        )
        await waits(bench)
        gone.set()
        await asyncio.wait_for(poll, 10)

    bench.loop.run_until_complete(scenario())
    assert bench.premises.meters.waiting == 0


def test_a_key_that_is_revoked_while_it_waits_is_told_nothing(bench, ulm):
    bench.service.glance = lambda site, have: Poll([], [])  # at once: who waits has looked

    async def scenario():
        headers = bench.signed(ulm, "GET", "/v1/poll", "wait=20")
        poll = asyncio.ensure_future(bench.sent("GET", "/v1/poll", "wait=20", b"", headers))
        await waits(bench)
        bench.store.set_member("ulm", "revoked")
        bench.later(2.0)
        bench.service.poll = bench.service.glance = lambda site, have: Poll([task()], [])
        bench.service.on_change(["ulm"])
        return await asyncio.wait_for(poll, 10)

    heard = bench.loop.run_until_complete(scenario())
    assert (heard.status, heard.code) == (403, "auth.forbidden")


def test_small_blobs_come_with_the_tasks_that_name_them(bench, ulm, telling):
    small, large = b"plan" * 10, bytes(INLINE + 1)
    raws = {hashlib.sha256(raw).hexdigest(): raw for raw in (small, large)}
    refs = [BlobRef(sha256=sha, size=len(raw)) for sha, raw in raws.items()]
    asked = task().model_copy(update={"plan": refs[0], "broadcast": refs[1]})
    telling(lambda site, have: Poll([asked, asked], []))
    bench.service.blob = lambda site, sha: Readable(
        len(raws[sha]), lambda start, stop: raws[sha][start:stop]
    )
    _, arrays = polled(bench.ask(ulm, "GET", "/v1/poll"))
    assert {sha: array.tobytes() for sha, array in arrays.items()} == {refs[0].sha256: small}


def test_the_longest_blob_comes_first_where_that_is_asked_for(bench, ulm, telling):
    raws = {hashlib.sha256(raw).hexdigest(): raw for raw in (b"plan", b"model" * 9000)}
    refs = [BlobRef(sha256=sha, size=len(raw)) for sha, raw in raws.items()]
    asked = task().model_copy(update={"plan": refs[0], "broadcast": refs[1]})
    telling(lambda site, have: Poll([asked], []))
    bench.service.blob = lambda site, sha: Readable(
        len(raws[sha]), lambda start, stop: raws[sha][start:stop]
    )
    heard = bench.ask(
        ulm, "GET", "/v1/poll", "first=1"
    )  # which checks that what it signed is the body
    assert heard.headers["content-type"] == NEWS
    assert heard.body.startswith(raws[refs[1].sha256])
    body, blobs = opened(heard.body)
    assert {sha: blob.tobytes() for sha, blob in blobs.items()} == raws
    assert [mine["id"] for mine in body["tasks"]] == [asked.id]
    heard = bench.ask(ulm, "GET", "/v1/poll", "first=1")  # the site keeps them, or asks for them
    assert (opened(heard.body)[1], opened(heard.body)[0]["tasks"]) == ({}, body["tasks"])


@pytest.mark.parametrize("wait", ["x", "-1", "nan", "1&wait=2", ""])
def test_a_wait_that_is_no_time_is_refused(bench, ulm, wait):
    assert bench.ask(ulm, "GET", "/v1/poll", f"wait={wait}").code == "wire.invalid"


def test_a_slow_step_of_the_service_does_not_delay_a_poll(bench, ulm):
    begun, over, ended = threading.Event(), threading.Event(), []

    def slow():
        with bench.service._stepping:
            begun.set()
            over.wait(10)
            ended.append(time.monotonic())

    thread = threading.Thread(target=slow)
    thread.start()
    assert begun.wait(10)
    assert bench.ask(ulm, "GET", "/v1/poll").status == 200
    assert not ended
    over.set()
    thread.join()


# Jobs and what sites do for them -------------------------------------------------------------------


def submission(by, spec, *sites):
    """A job as a researcher hands it in."""
    told = FEDERATION, by.name, spec_digest(spec), {}, sites, secrets.token_hex(16)
    signed = Submission(*told).signed(by.key)
    return (
        SubmitBody(spec=spec_to_plain(spec), job_hash=spec.hash(), signed=signed)
        .model_dump_json()
        .encode()
    )


@pytest.fixture
def run(bench, ulm, ada):
    """A run in its first call: both sites are asked for a survey."""
    bench.admit("bern")
    heard = bench.ask(ada, "POST", "/v1/jobs", body=submission(ada, read_spec(HEART)))
    assert heard.status == 200, heard.json
    bench.service.step()
    return heard.json["id"]


def test_a_submitted_job_is_listed_and_shown(bench, ada, run):
    listed = bench.ask(ada, "GET", "/v1/jobs").json["jobs"]
    assert [(j["id"], j["by"], j["sites"]) for j in listed] == [(run, "ada", ["bern", "ulm"])]
    shown = bench.ask(ada, "GET", f"/v1/jobs/{run}").json
    assert shown.pop("aggregation").startswith("plain: 2 sites")
    assert shown == {k: v for k, v in listed[0].items() if k != "aggregation"}
    assert bench.ask(ada, "GET", "/v1/jobs/heart-99").code == "state.missing"


def test_faults_of_a_job_come_together(bench, ada, run):
    body = submission(ada, read_spec(HEART, ["clock.dropout=0.1"]), "nowhere")
    heard = bench.ask(ada, "POST", "/v1/jobs", body=body)
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


def test_a_result_that_asks_for_news_is_told_them_with_its_receipt(bench, ulm, run):
    [mine] = polled(bench.ask(ulm, "GET", "/v1/poll"))[0]["tasks"]
    path = f"/v1/results/{quote(mine['id'], safe='')}"
    frame = encode({"task": mine["id"], "status": "failed", "reason": "the disk is full"})
    stranger = "other.survey.0.ulm"
    began = time.monotonic()
    heard = bench.ask(ulm, "POST", path, f"have={mine['id']},{stranger}&wait=20", frame)
    assert time.monotonic() - began < 15  # what it does not know it can tell at once
    body, _ = polled(heard)
    sha256 = Blob.of(frame).sha256
    assert body["receipt"] == {"task": mine["id"], "sha256": sha256, "again": False}
    assert (body["news"]["gone"], body["news"]["epoch"]) == ([stranger], bench.epoch)


def test_a_receipt_waits_for_news_no_longer_than_was_asked(bench, ulm, run):
    [mine] = polled(bench.ask(ulm, "GET", "/v1/poll"))[0]["tasks"]
    path = f"/v1/results/{quote(mine['id'], safe='')}"
    frame = encode({"task": mine["id"], "status": "failed", "reason": "the disk is full"})
    heard = bench.ask(ulm, "POST", path, f"have={mine['id']}&wait=0.1", frame)
    body, _ = polled(heard)
    assert (body["news"]["tasks"], body["news"]["gone"]) == ([], [])
    rows = bench.store.contributions(run)
    assert [row.task for row in rows] == [mine["id"]]


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
        await waits(bench)
        cancel = f"/v1/jobs/{run}/cancel"
        heard = await bench.sent("POST", cancel, headers=bench.signed(ada, "POST", cancel))
        assert heard.status == 200
        await asyncio.to_thread(bench.service.step)
        return await asyncio.wait_for(watch, 10)

    heard = bench.loop.run_until_complete(scenario())
    found = RoundsReply.model_validate_json(heard.body)
    assert (found.ended, found.status) == (True, "cancelled")
    assert bench.ask(ada, "POST", f"/v1/jobs/{run}/cancel").code == "state.conflict"
