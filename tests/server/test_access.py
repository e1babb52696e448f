"""Which researcher may read which run: every route that names one, for everybody who might ask."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.server.web.api import ROUTES
from atoll.server.web.routes import Answer

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "store"))

from store_rows import round_row, run_row
from web_bench import Bench

RUN, MISSING = "heart-0a1b2c", "heart-9f8e7d"
OF_A_RUN = [route for route in ROUTES if "{id}" in route.path]
MODEL = b"weights of nobody else's business"


def founded(folder, **more) -> Bench:
    """Ada has a run that has ended, and shares it with Cleo; Bob is a researcher too."""
    bench = Bench(folder, **more)
    for name in ("ada", "bob", "cleo"):
        bench.admit(name, "researcher")
    bench.admit("ulm")
    row = run_row(RUN, by="ada", status="completed", sites=("ulm",))
    bench.store.add_run(bench.epoch, row)
    bench.store.commit_round(bench.epoch, replace(round_row(1, run=RUN), record={"round": 1}))
    bench.store.share(bench.epoch, RUN, "cleo", bench.time)
    (folder / "runs" / RUN).mkdir(parents=True)
    (folder / "runs" / RUN / "model.safetensors").write_bytes(MODEL)
    return bench


@pytest.fixture
def bench(tmp_path):
    made = founded(tmp_path, runs="own")
    yield made
    made.close()


def asked(bench, name, method, path, query="", body=b""):
    return bench.ask(bench.members[name], method, path, query, body)


def named(name: str) -> bytes:
    return json.dumps({"name": name}).encode()


def path_of(route, run=RUN):
    return route.path.replace("{id}", run).replace("{name}", "model.safetensors")


# Every route, every identity -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["open", "own"])
def counted(request, tmp_path_factory):
    """Handlers that only count: what is refused has met none."""
    calls: list[str] = []

    async def handler(api, asked):
        calls.append(asked.name)
        return Answer(b'"through"')

    routes = tuple(replace(route, handler=handler) for route in ROUTES)
    made = founded(tmp_path_factory.mktemp("access"), runs=request.param, routes=routes)
    yield made, calls, request.param
    made.close()


@pytest.mark.parametrize("route", OF_A_RUN, ids=lambda r: r.name)
@pytest.mark.parametrize("name", ["ada", "bob", "cleo", "ulm"])
@pytest.mark.parametrize("run", [RUN, MISSING])
def test_each_route_of_a_run_lets_through_whom_the_table_names(counted, route, name, run):
    bench, calls, runs = counted
    before = len(calls)
    heard = asked(bench, name, route.method, path_of(route, run))
    reads = runs == "open" or (name in ("ada", "cleo") and run == RUN)
    if name == "ulm":
        expected = "auth.forbidden"
    elif route.whose == "reader":
        expected = "" if reads else "state.missing"
    elif run == MISSING or not reads:
        expected = "state.missing"
    else:
        expected = "" if name == "ada" else "auth.forbidden"
    assert len(calls) == before + (not expected)
    assert (heard.status == 200) == (not expected)
    assert not expected or heard.code == expected


@pytest.mark.parametrize("route", OF_A_RUN, ids=lambda r: r.name)
def test_a_run_of_another_s_and_one_that_is_not_there_are_told_in_the_same_words(bench, route):
    told = {}
    for run in (RUN, MISSING):
        heard = asked(bench, "bob", route.method, path_of(route, run), body=b"")
        headers = {n for n in heard.headers if "signature" not in n}
        told[run] = heard.status, heard.body.replace(run.encode(), b"RUN"), headers
    assert told[RUN] == told[MISSING]
    assert told[RUN][0] == 404


def test_a_refusal_costs_no_body(bench):
    member = bench.members["bob"]
    path = f"/v1/jobs/{RUN}/share"
    headers = bench.signed(member, "POST", path, "", b"x" * 100)
    heard = bench.send("POST", path, headers=headers, declared=100, pieces=[b"x" * 100])
    assert heard.code == "state.missing"


# What is read, by whom -------------------------------------------------------------------------------


def test_a_researcher_lists_and_reads_their_own_runs_and_those_shared_with_them(bench):
    bench.store.add_run(bench.epoch, run_row("bobs-1", by="bob"))
    listed = {
        name: [job["id"] for job in asked(bench, name, "GET", "/v1/jobs").json["jobs"]]
        for name in ("ada", "bob", "cleo")
    }
    assert listed == {"ada": [RUN], "bob": ["bobs-1"], "cleo": [RUN]}
    for name in ("ada", "cleo"):
        shown = asked(bench, name, "GET", f"/v1/jobs/{RUN}").json
        assert (shown["readers"], shown["open"]) == (["cleo"], False)
        assert asked(bench, name, "GET", f"/v1/jobs/{RUN}/rounds").json["rounds"] == [{"round": 1}]
        files = asked(bench, name, "GET", f"/v1/jobs/{RUN}/files").json["files"]
        assert list(files) == ["model.safetensors"]
        heard = asked(bench, name, "GET", f"/v1/jobs/{RUN}/files/model.safetensors")
        assert heard.body == MODEL


def test_open_runs_are_read_by_every_researcher_and_cancelled_by_their_own(tmp_path):
    bench = founded(tmp_path)
    assert [job["id"] for job in asked(bench, "bob", "GET", "/v1/jobs").json["jobs"]] == [RUN]
    assert asked(bench, "bob", "GET", f"/v1/jobs/{RUN}").json["open"] is True
    assert asked(bench, "bob", "GET", f"/v1/jobs/{RUN}/files/model.safetensors").body == MODEL
    assert asked(bench, "bob", "POST", f"/v1/jobs/{RUN}/cancel").code == "auth.forbidden"
    assert asked(bench, "bob", "GET", f"/v1/jobs/{MISSING}").code == "state.missing"
    assert not [e for e in bench.store.events() if e.kind == "refused"]
    bench.close()


def test_a_part_of_a_file_is_refused_as_the_whole_is(bench):
    path = f"/v1/jobs/{RUN}/files/model.safetensors"
    for name, status in (("cleo", 206), ("bob", 404)):
        headers = bench.signed(bench.members[name], "GET", path) | {"range": "bytes=0-3"}
        heard = bench.send("GET", path, headers=headers)
        assert (heard.status, heard.body == MODEL[:4]) == (status, name == "cleo")
        assert "etag" not in heard.headers


# Sharing ---------------------------------------------------------------------------------------------


def test_sharing_and_taking_back_count_at_once_and_stand_in_the_log(bench):
    one, path = f"/v1/jobs/{RUN}", f"/v1/jobs/{RUN}/files/model.safetensors"
    assert asked(bench, "bob", "GET", path).status == 404
    shared = asked(bench, "ada", "POST", f"{one}/share", body=named("bob"))
    assert shared.json["readers"] == ["bob", "cleo"]
    assert asked(bench, "bob", "GET", path).body == MODEL
    assert asked(bench, "bob", "POST", f"{one}/share", body=named("ada")).code == "auth.forbidden"
    back = asked(bench, "ada", "POST", f"{one}/unshare", body=named("bob"))
    assert back.json["readers"] == ["cleo"]
    assert asked(bench, "bob", "GET", path).status == 404
    assert asked(bench, "bob", "GET", "/v1/jobs").json["jobs"] == []
    kinds = [(e.kind, e.text) for e in bench.store.events(RUN)]
    assert kinds == [
        ("shared", "with cleo"),
        ("refused", f"bob asked for run {RUN!r}, which it may not read: {FILE}"),
        ("shared", "with bob"),
        ("unshared", "with bob"),
        ("refused", f"bob asked for run {RUN!r}, which it may not read: {FILE}"),
    ]


FILE = "GET /v1/jobs/{id}/files/{name}"


@pytest.mark.parametrize(
    ("name", "code"),
    [("ulm", "state.missing"), ("nobody", "state.missing"), ("ada", "state.conflict")],
)
def test_a_run_is_shared_with_another_researcher_of_the_federation(bench, name, code):
    heard = asked(bench, "ada", "POST", f"/v1/jobs/{RUN}/share", body=named(name))
    assert heard.status in (404, 409)
    assert heard.json["remedy"]
    assert bench.store.readers(RUN) == ("cleo",)
    heard = asked(bench, "ada", "POST", f"/v1/jobs/{RUN}/unshare", body=named(name))
    assert heard.code == "state.missing"


def test_one_who_was_revoked_reads_nothing_and_may_be_taken_off_the_list(bench):
    bench.store.set_member("cleo", "revoked")
    bench.later(2.0)
    assert asked(bench, "cleo", "GET", f"/v1/jobs/{RUN}").code == "auth.forbidden"
    assert asked(bench, "ada", "POST", f"/v1/jobs/{RUN}/share", body=named("cleo")).status == 404
    heard = asked(bench, "ada", "POST", f"/v1/jobs/{RUN}/unshare", body=named("cleo"))
    assert heard.json["readers"] == []


def test_who_waits_for_rounds_is_told_that_the_run_is_not_theirs_any_more(bench):
    bench.store.add_run(bench.epoch, run_row("going-1", by="ada"))
    bench.store.share(bench.epoch, "going-1", "cleo", bench.time)
    ada, cleo = bench.members["ada"], bench.members["cleo"]
    path, query = "/v1/jobs/going-1/rounds", "after=0&wait=20"
    back, body = "/v1/jobs/going-1/unshare", named("cleo")

    async def both():
        asking = bench.sent("GET", path, query, headers=bench.signed(cleo, "GET", path, query))
        waiting = asyncio.ensure_future(asking)
        await asyncio.sleep(0.3)
        assert not waiting.done()
        headers = bench.signed(ada, "POST", back, "", body)
        done = await bench.sent("POST", back, "", body, headers)
        return done, await asyncio.wait_for(waiting, 15)

    done, heard = bench.loop.run_until_complete(both())
    assert (done.status, heard.code) == (200, "state.missing")


def test_refusals_beyond_a_measure_are_counted_in_the_next_line(bench):
    for number in range(80):
        assert asked(bench, "bob", "GET", f"/v1/jobs/guess-{number}").status == 404
    lines = [e for e in bench.store.events() if e.kind == "refused"]
    assert len(lines) == 50
    bench.later(10.0)
    asked(bench, "bob", "GET", f"/v1/jobs/{RUN}")
    last = bench.store.events()[-1]
    assert last.text.endswith("and 30 times before that")
    assert (last.run, lines[0].run) == (RUN, "")


# Bytes by their digest -------------------------------------------------------------------------------


def put(bench, name, raw, *, size=None, offset=0, piece=None, digest=None):
    sha256 = digest or hashlib.sha256(raw).hexdigest()
    piece = raw[offset:] if piece is None else piece
    query = f"size={len(raw) if size is None else size}&offset={offset}"
    return asked(bench, name, "PUT", f"/v1/uploads/{sha256}", query, piece)


def received(bench, name, raw):
    sha256 = hashlib.sha256(raw).hexdigest()
    return asked(bench, name, "GET", f"/v1/uploads/{sha256}").json["received"]


def test_a_digest_does_not_tell_whether_another_has_sent_the_bytes(bench):
    raw, other = b"ada's start" * 9, b"no one's!!!" * 9
    assert put(bench, "ada", raw).json == {"received": len(raw)}
    assert (received(bench, "ada", raw), received(bench, "bob", raw)) == (len(raw), 0)

    assert len(raw) == len(other)

    def told(raw):
        """All that Bob hears who knows a digest and a size."""
        heard = [received(bench, "bob", raw)]
        heard += [put(bench, "bob", raw, piece=b"").body, put(bench, "bob", raw, offset=5).body]
        heard += [put(bench, "bob", raw, offset=len(raw), piece=b"").body]
        heard += [put(bench, "bob", raw, piece=raw[:7]).body, received(bench, "bob", raw)]
        heard += [put(bench, "bob", raw, offset=7, piece=b"?" * (len(raw) - 7)).body]
        heard += [received(bench, "bob", raw)]
        digest = hashlib.sha256(raw).hexdigest()[:12].encode()
        return [h.replace(digest, b"D") if isinstance(h, bytes) else h for h in heard]

    assert told(raw) == told(other)


def both(raw: bytes, tell) -> None:
    """What is told of bytes that Ada has sent, and of as many that nobody has, is the same."""
    told = {}
    for content in (raw, bytes(255 - byte for byte in raw)):
        digest = hashlib.sha256(content).hexdigest()[:12].encode()
        heard = [h.body.replace(digest, b"D") if h.status != 200 else h.body for h in tell(content)]
        told[content] = heard
    first, second = told.values()
    assert first == second


def look(bench, name, raw):
    return asked(bench, name, "GET", f"/v1/uploads/{hashlib.sha256(raw).hexdigest()}")


def test_a_full_limit_does_not_tell_whether_another_has_sent_the_bytes(tmp_path):
    bench, raw = founded(tmp_path, runs="own", uploads=2 << 20), b"ada's start"
    put(bench, "ada", raw)
    for number in range(2):
        assert put(bench, "bob", b"%d" % number).status == 200

    def tell(content):
        yield put(bench, "bob", content, piece=content[:3])
        yield look(bench, "bob", content)
        yield put(bench, "bob", content)
        yield look(bench, "bob", content)

    both(raw, tell)
    assert put(bench, "bob", raw).code == "wire.toolarge"
    bench.close()


def test_nor_does_a_limit_that_another_s_upload_or_job_would_empty(tmp_path):
    bench, raw = founded(tmp_path, runs="own", uploads=2 << 20), b"ada's start"
    ref = {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
    both(raw, lambda content: [put(bench, "bob", content, piece=content[:3])])
    put(bench, "ada", raw)
    bench.service._unused.used("ada", [ref["sha256"]])  # as her job does
    bench.later(2.0)
    bench.service.step()
    assert put(bench, "bob", b"a third").code == "wire.toolarge"
    bench.close()


def test_nor_what_is_left_of_an_upload_when_its_time_is_over(tmp_path):
    bench, raw = founded(tmp_path, runs="own", uploads_kept=3600.0), b"ada's start"
    other = bytes(255 - byte for byte in raw)
    for content in (raw, other):
        put(bench, "bob", content, piece=content[:3])
    bench.later(1800.0)
    put(bench, "ada", raw)
    bench.later(1801.0)
    bench.service.step()
    assert bench.service._office.blobs.has(hashlib.sha256(raw).hexdigest())

    def tell(content):
        yield look(bench, "bob", content)
        yield put(bench, "bob", content, offset=3)
        yield put(bench, "bob", content, piece=content[:2])

    both(raw, tell)
    bench.close()


def test_nor_what_comes_after_a_mistake(bench):
    raw = b"ada's start"
    put(bench, "ada", raw)

    def tell(content):
        yield put(bench, "bob", content, piece=b"???")
        yield put(bench, "bob", content, offset=3)
        yield look(bench, "bob", content)
        yield put(bench, "bob", content, piece=content[:2])
        yield put(bench, "bob", content, offset=2)
        yield look(bench, "bob", content)

    both(raw, tell)
    assert put(bench, "bob", raw).json == {"received": len(raw)}


def test_bytes_stay_as_long_as_they_count_for_somebody(tmp_path):
    bench, raw = founded(tmp_path, runs="own", uploads_kept=3600.0), b"the same code file"
    sha256 = hashlib.sha256(raw).hexdigest()
    put(bench, "ada", raw)
    bench.later(1800.0)
    put(bench, "bob", raw)
    bench.later(1801.0)
    bench.service.step()
    assert (received(bench, "ada", raw), received(bench, "bob", raw)) == (0, len(raw))
    assert bench.service._office.blobs.has(sha256)
    bench.later(1801.0)
    bench.service.step()
    assert not bench.service._office.blobs.has(sha256)
    assert bench.store.uploads() == ()
    bench.close()


def test_who_sends_all_of_it_has_it_whoever_sent_it_before(bench):
    raw = b"the same code file" * 5
    put(bench, "ada", raw)
    assert put(bench, "bob", raw, piece=raw[:20]).json == {"received": 20}
    assert put(bench, "bob", raw, offset=20).json == {"received": len(raw)}
    assert received(bench, "bob", raw) == len(raw)


def submitted(bench, name, ref):
    spec = {"name": "copy", "model": {"start": "0" * 64}}
    signed = {"nonce": "0" * 32, "key": "0" * 64, "signature": "0" * 128, "sites": ["ulm"]}
    body = {"spec": spec, "job_hash": "0" * 64, "signed": signed, "initial": ref}
    return asked(bench, name, "POST", "/v1/jobs", body=json.dumps(body).encode())


def test_a_job_cannot_begin_at_bytes_that_its_researcher_has_not_sent(bench):
    raw, absent = b"ada's model", b"nobody's bytes"
    put(bench, "ada", raw)
    told = []
    for content in (raw, absent):
        ref = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        heard = submitted(bench, "bob", ref)
        assert (heard.status, "is not here" in heard.body.decode()) == (422, True)
        told.append(heard.body)
    assert told[0] == told[1]
    ref = {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
    assert "is not here" not in submitted(bench, "ada", ref).body.decode()


def test_no_researcher_reads_a_blob_by_its_digest_in_any_way(bench):
    sha256 = hashlib.sha256(MODEL).hexdigest()
    for name in ("ada", "bob", "cleo"):
        heard = asked(bench, name, "GET", f"/v1/blobs/{sha256}")
        assert heard.code == "auth.forbidden"
    assert asked(bench, "ulm", "GET", f"/v1/blobs/{sha256}").code == "state.missing"


def test_ids_of_one_s_own_runs_count_nobody_else_s(bench):
    from types import SimpleNamespace

    from atoll.server.submission import _name

    office = bench.service._office
    ids = {_name(office, SimpleNamespace(name="my heart")) for _ in range(20)}
    assert len(ids) == 20
    assert all(i.startswith("my-heart-") and len(i) == len("my-heart-") + 12 for i in ids)
