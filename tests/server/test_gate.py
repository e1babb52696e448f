"""Every route, asked by everybody who might: exactly those may use it whom the table names.

The cases are made from the application's own table of routes, so that a new route is covered by being
there. The handlers are replaced by one that counts, so "refused" means: nothing behind the gate ran.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.server.web.api import ROUTES, Api
from atoll.server.web.limits import Buckets, Limits
from atoll.server.web.routes import Answer, Route, Table
from atoll.wire.identity import Identity

sys.path.insert(0, str(Path(__file__).parent))

sys.path.insert(0, str(Path(__file__).parent / "store"))

from store_rows import run_row
from web_bench import Bench, Member

MEMBERS = {"site", "researcher"}
SIGNED = [route for route in ROUTES if set(route.roles) & MEMBERS]
FREE = Limits(strange=10_000, joins=10_000)


class Counting:
    """The real table with handlers that only count."""

    def __init__(self):
        self.calls = 0
        self.routes = tuple(replace(route, handler=self) for route in ROUTES)

    async def __call__(self, api, asked):
        self.calls += 1
        return Answer(b'"through"')


@pytest.fixture(scope="module")
def counting():
    return Counting()


@pytest.fixture(scope="module")
def bench(tmp_path_factory, counting):
    made = Bench(tmp_path_factory.mktemp("gate"), routes=counting.routes, limits=FREE)
    for name, role in [("ulm", "site"), ("bern", "site"), ("ada", "researcher")]:
        made.admit(name, role)
    for name, role, status in [
        ("thief", "site", "revoked"),
        ("gone", "site", "left"),
        ("crook", "researcher", "revoked"),
    ]:
        made.admit(name, role)
        made.store.set_member(name, status)
    made.store.add_run(made.epoch, run_row("x", by="ada"))
    made.later(2.0)
    yield made
    made.close()


def path_of(route: Route) -> str:
    return re.sub(r"\{sha256\}", "a" * 64, re.sub(r"\{(id|task|name)\}", "x", route.path))


def right_one(bench, route) -> Member:
    return bench.members["ulm" if "site" in route.roles else "ada"]


def ids(route):
    return route.name


# Who asks, and how -------------------------------------------------------------------------------


def nobody(bench, route, path):
    return {}


def garbage(bench, route, path):
    signed = bench.signed(right_one(bench, route), route.method, path)
    return signed | {"signature": f"atoll=:{'A' * 86}==:"}


def nonsense(bench, route, path):
    return {"signature": "x", "signature-input": "y"}


def stranger(bench, route, path):
    return bench.signed(Member("nobody"), route.method, path)


def forger(bench, route, path):
    """Signs with a key of its own and names a member's."""
    member = right_one(bench, route)
    mine = bench.signed(member, route.method, path, key=Identity.fresh())
    theirs = bench.signed(member, route.method, path)
    return mine | {"signature-input": theirs["signature-input"]}


def revoked(bench, route, path):
    return bench.signed(
        bench.members["thief" if "site" in route.roles else "crook"], route.method, path
    )


def left(bench, route, path):
    return bench.signed(bench.members["gone"], route.method, path)


def old(bench, route, path):
    member = right_one(bench, route)
    return bench.signed(member, route.method, path, created=int(bench.time) - 302)


def early(bench, route, path):
    member = right_one(bench, route)
    return bench.signed(member, route.method, path, created=int(bench.time) + 302)


def other_federation(bench, route, path):
    return bench.signed(right_one(bench, route), route.method, path, federation="lungs-99")


def epoch_before(bench, route, path):
    return bench.signed(right_one(bench, route), route.method, path, epoch=bench.epoch - 1)


def epoch_after(bench, route, path):
    return bench.signed(right_one(bench, route), route.method, path, epoch=bench.epoch + 1)


def replayed(bench, route, path):
    headers = bench.signed(right_one(bench, route), route.method, path)
    assert bench.send(route.method, path, headers=headers).status == 200
    return headers


def too_old_a_number(bench, route, path):
    member = right_one(bench, route)
    member.sequence += 2000
    headers = bench.signed(member, route.method, path)
    assert bench.send(route.method, path, headers=headers).status == 200
    return bench.signed(member, route.method, path, sequence=member.sequence - 1500)


def number_zero(bench, route, path):
    return bench.signed(right_one(bench, route), route.method, path, sequence=0)


def other_method(bench, route, path):
    other = "GET" if route.method != "GET" else "POST"
    return bench.signed(right_one(bench, route), other, path)


def other_path(bench, route, path):
    return bench.signed(right_one(bench, route), route.method, f"{path}x")


def other_query(bench, route, path):
    return bench.signed(right_one(bench, route), route.method, path, "after=1")


def other_body(bench, route, path):
    return bench.signed(right_one(bench, route), route.method, path, body=b"something else")


def another_number(bench, route, path):
    headers = bench.signed(right_one(bench, route), route.method, path)
    return headers | {"atoll-sequence": "123456"}


def headers_twice(bench, route, path):
    headers = bench.signed(right_one(bench, route), route.method, path)
    return [*headers.items(), ("atoll-epoch", headers["atoll-epoch"])]


def part_missing(bench, route, path):
    headers = bench.signed(right_one(bench, route), route.method, path)
    del headers["content-digest"]
    return headers


def token_holder(bench, route, path):
    return {"authorization": "Bearer open sesame"}


LIARS = {
    nobody: "auth.refused",
    garbage: "auth.refused",
    nonsense: "auth.refused",
    stranger: "auth.refused",
    forger: "auth.refused",
    revoked: "auth.forbidden",
    left: "auth.forbidden",
    old: "auth.refused",
    early: "auth.refused",
    other_federation: "auth.refused",
    epoch_before: "wire.epoch",
    epoch_after: "wire.epoch",
    replayed: "wire.epoch",
    too_old_a_number: "wire.epoch",
    number_zero: "wire.epoch",
    other_method: "auth.refused",
    other_path: "auth.refused",
    other_query: "auth.refused",
    other_body: "auth.refused",
    another_number: "auth.refused",
    headers_twice: "auth.refused",
    part_missing: "auth.refused",
    token_holder: "auth.refused",
}


@pytest.mark.parametrize("route", SIGNED, ids=ids)
@pytest.mark.parametrize("liar", LIARS, ids=lambda f: f.__name__)
def test_who_is_not_known_for_certain_is_refused_everywhere(bench, counting, route, liar):
    path = path_of(route)
    headers = liar(bench, route, path)
    before = counting.calls
    heard = bench.send(route.method, path, headers=headers)
    assert (heard.code, counting.calls) == (LIARS[liar], before)
    assert heard.status in (401, 403, 409)
    assert heard.json["message"]


@pytest.mark.parametrize("route", ROUTES, ids=ids)
@pytest.mark.parametrize("name", ["ulm", "ada"])
def test_each_role_may_use_its_own_routes_and_no_others(bench, counting, route, name):
    role = "site" if name == "ulm" else "researcher"
    member, path = bench.members[name], path_of(route)
    before = counting.calls
    heard = bench.ask(member, route.method, path)
    allowed = role in route.roles or set(route.roles) & {"open", "newcomer"}
    assert counting.calls == before + bool(allowed)
    if allowed:
        assert (heard.status, heard.body) == (200, b'"through"')
    elif "bearer" in route.roles:
        assert heard.code == "auth.refused"
    else:
        assert heard.code == "auth.forbidden"
        assert route.name in heard.json["message"]


@pytest.mark.parametrize("route", ROUTES, ids=ids)
def test_a_body_longer_than_the_route_takes_is_refused_before_it_is_read(bench, counting, route):
    if set(route.roles) & {"open", "bearer", "newcomer"}:
        member, extra = None, {"authorization": "Bearer open sesame"}
    else:
        member, extra = right_one(bench, route), {}
    path, before = path_of(route), counting.calls
    headers = extra if member is None else bench.signed(member, route.method, path)
    if "newcomer" in route.roles:
        headers = bench.signed(Member("new"), route.method, path)
    heard = bench.send(
        route.method, path, headers=headers, declared=route.most + 1, pieces=[b"", b""]
    )
    assert (heard.code, counting.calls) == ("wire.toolarge", before)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/secrets"),
        ("GET", "/v1/health/"),
        ("GET", "//v1/health"),
        ("GET", "/V1/health"),
        ("GET", "/v1/%68ealth"),
        ("POST", "/v1/health"),
        ("HEAD", "/v1/health"),
        ("OPTIONS", "/v1/poll"),
        ("DELETE", "/v1/jobs/x"),
        ("TRACE", "/v1/jobs"),
        ("GET", "/v1/jobs/x/y"),
        ("GET", "/v1/jobs//rounds"),
        ("GET", "/v1/blobs/../jobs"),
        ("GET", "/v1/poll;x"),
    ],
)
@pytest.mark.parametrize("name", [None, "ulm", "ada"])
def test_what_is_in_no_route_does_not_exist(bench, counting, method, path, name):
    before = counting.calls
    member = bench.members[name] if name else None
    heard = bench.ask(member, method, path)
    assert (heard.status, heard.code, counting.calls) == (404, "state.missing", before)


def test_the_page_of_metrics_wants_its_token(bench, counting):
    before = counting.calls
    for headers in [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer open sesam"},
        {"authorization": "bearer open sesame"},
        {"authorization": "Basic open sesame"},
        {"authorization": "Bearer ö"},
    ]:
        assert bench.send("GET", "/v1/metrics", headers=headers).code == "auth.refused"
    assert counting.calls == before
    assert bench.send("GET", "/v1/metrics", headers=token_holder(bench, None, "")).status == 200


def test_an_empty_token_lets_nobody_in(tmp_path, counting):
    bench = Bench(tmp_path, routes=counting.routes)
    bench.app._house.gate.token = b""
    assert bench.send("GET", "/v1/metrics", headers={"authorization": "Bearer "}).status == 401
    bench.close()


# The table itself ----------------------------------------------------------------------------------


def test_every_handler_is_in_the_table_once_and_every_route_says_who_may_use_it():
    public = {
        member
        for name, member in inspect.getmembers(Api, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    handlers = [route.handler for route in ROUTES]
    assert set(handlers) == public
    assert len(set(handlers)) == len(handlers)
    assert len({(r.method, r.path) for r in ROUTES}) == len(ROUTES)
    assert all(r.roles and r.path.startswith("/v1/") for r in ROUTES)
    assert {r.name for r in ROUTES if "open" in r.roles} == {"GET /v1/health", "GET /v1/ready"}


def test_a_route_that_does_not_say_who_may_use_it_cannot_be_made():
    with pytest.raises(ValueError, match="who may use it"):
        Route("GET", "/v1/x", set(), Api.health)


def test_a_route_that_does_not_say_whose_run_it_may_be_cannot_be_made():
    for path, whose in [("/v1/jobs/{id}/x", None), ("/v1/x", "reader")]:
        with pytest.raises(ValueError, match="whose run"):
            Route("GET", path, {"researcher"}, Api.job, whose=whose)


def test_a_segment_is_decoded_after_the_path_was_split():
    table = Table([Route("GET", "/v1/jobs/{id}/files/{name}", {"site"}, Api.file, whose="reader")])
    route, values = table.find("GET", "/v1/jobs/heart%202/files/checkpoint%2Fstate%20a")
    assert values == {"id": "heart 2", "name": "checkpoint/state a"}
    assert route.name == "GET /v1/jobs/{id}/files/{name}"


# What the refused are told -------------------------------------------------------------------------


def test_a_refused_number_tells_epoch_and_highest_number_so_that_it_can_be_signed_anew(bench):
    member = bench.admit("new one")
    assert bench.send("GET", "/v1/poll", headers=bench.signed(member, "GET", "/v1/poll")).status
    headers = bench.signed(member, "GET", "/v1/poll", epoch=0)
    heard = bench.send("GET", "/v1/poll", headers=headers)
    assert heard.status == 409
    assert (heard.json["epoch"], heard.json["sequence"]) == (bench.epoch, 1)
    bench.check(heard, headers)


def test_clocks_may_differ_by_five_minutes_and_the_message_says_by_how_much(bench):
    member = bench.members["ulm"]
    for seconds in (-300, 299):
        made = bench.signed(member, "GET", "/v1/poll", created=int(bench.time) + seconds)
        assert bench.send("GET", "/v1/poll", headers=made).status == 200
    made = bench.signed(member, "GET", "/v1/poll", created=int(bench.time) - 412)
    heard = bench.send("GET", "/v1/poll", headers=made)
    assert "412 s behind" in heard.json["message"]
    assert "clock" in heard.json["remedy"]


def test_numbers_may_arrive_out_of_order_but_only_once(bench):
    member = bench.admit("busy one")
    made = [bench.signed(member, "GET", "/v1/poll") for _ in range(20)]
    order = [*made[10:], *made[:10]]
    assert [bench.send("GET", "/v1/poll", headers=h).status for h in order] == [200] * 20
    assert [bench.send("GET", "/v1/poll", headers=h).status for h in order] == [409] * 20


def test_a_revocation_by_another_process_is_seen_within_a_second(tmp_path, counting):
    bench = Bench(tmp_path, routes=counting.routes)
    member = bench.admit("ulm")
    assert bench.ask(member, "GET", "/v1/poll").status == 200
    bench.store.set_member("ulm", "revoked")
    bench.later(1.0)
    heard = bench.ask(member, "GET", "/v1/poll")
    assert (heard.status, "revoked" in heard.json["message"]) == (403, True)
    bench.close()


def test_strangers_are_slowed_down_and_members_at_the_same_address_are_not(tmp_path, counting):
    bench = Bench(
        tmp_path, routes=counting.routes, limits=Limits(strange=5, strange_per_second=1.0)
    )
    member = bench.admit("ulm")
    codes = [bench.send("GET", "/v1/poll", address="192.0.2.9").code for _ in range(7)]
    assert codes == ["auth.refused"] * 5 + ["wire.busy"] * 2
    assert bench.send("GET", "/v1/health", address="192.0.2.9").status == 429
    assert bench.send("GET", "/v1/health", address="192.0.2.8").status == 200
    for _ in range(20):
        assert bench.ask(member, "GET", "/v1/poll", address="192.0.2.9").status == 200
    forged = forger(bench, ROUTES[7], "/v1/poll")
    assert bench.send("GET", "/v1/poll", headers=forged, address="192.0.2.9").status == 429
    assert bench.ask(member, "GET", "/v1/poll", address="192.0.2.9").status == 200
    bench.later(3.0)
    assert bench.send("GET", "/v1/health", address="192.0.2.9").status == 200
    bench.close()


def test_a_bucket_forgets_places_and_fills_up_again():
    buckets = Buckets(rate=2.0, burst=2, most=2)
    assert [buckets.take("a", 0.0) for _ in range(3)] == [0.0, 0.0, 0.5]
    assert buckets.take("a", 0.5) == 0.0
    buckets.take("b", 0.5)
    buckets.take("c", 0.5)  # there is room for two: "a" is forgotten
    assert [buckets.take("a", 0.5) for _ in range(2)] == [0.0, 0.0]
    assert (
        buckets.take("b", -100.0) == 0.0
    )  # a clock that was set back fills nothing and breaks nothing
