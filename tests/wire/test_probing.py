"""The way to a server: each step that can fail, with its remedy, and those behind it told as not seen."""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from dataclasses import replace

import pytest

from atoll.wire.certificates import create_certificate
from atoll.wire.dialing import Pin
from atoll.wire.identity import Identity
from atoll.wire.probing import Target, certificate_life, probe
from atoll.wire.signatures import sign_response

DAY = 86_400.0


@pytest.fixture
def answers(fake):
    """What the server answers by path; health, readiness and members are well."""
    member = {"name": "ulm", "role": "site", "status": "active"}
    found = {
        "/v1/health": (200, {"status": "ok"}),
        "/v1/ready": (200, {"status": "ready"}),
        "/v1/federation": (
            200,
            {
                "federation": "f",
                "server": fake.key.fingerprint,
                "members": [{**member, "fingerprint": fake.member.fingerprint}],
            },
        ),
    }

    def answer(asked):
        status, body = found[asked.path]
        return status, json.dumps(body).encode(), {}

    fake.answer = answer
    return found


@pytest.fixture
def target(fake, tls, keys, answers):
    pin = Pin(tls[2], keys[0].public_bytes)
    return Target(fake.address, pin, keys[1], "f", "ulm", proxy="")


def seen(target, **more):
    """All findings by check; the last of each."""
    return {f.check: f for f in probe(target, timeout=20.0, **more)}


def the_fault(found):
    (one,) = [f for f in found.values() if f.state == "fault"]
    return one


def test_a_way_without_trouble_is_told_step_by_step(target):
    found = list(probe(target))
    assert [f.check for f in found] == [
        "proxy",
        "name",
        "connection",
        "tls",
        "certificate",
        "server",
        "clock",
        "membership",
    ]
    assert {f.state for f in found} == {"ok"}
    by = {f.check: f.text for f in found}
    assert by["tls"].startswith("TLSv1.3")
    assert by["membership"] == "accepted as ulm, one of 1 active members"


def test_a_name_that_nobody_knows(target):
    found = seen(replace(target, address="no-such-host.invalid:443"))
    one = the_fault(found)
    assert (one.check, one.status) == ("name", 7)
    assert "getent hosts no-such-host.invalid" in one.remedy
    assert "atoll node server --address HOST:PORT" in one.remedy
    assert found["tls"].state == found["membership"].state == "unknown"
    assert found["membership"].text == "not looked at: the way ends at 'name'"


def test_a_port_where_nobody_listens(target):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it
        found = seen(replace(target, address=f"127.0.0.1:{taken.getsockname()[1]}"))
    one = the_fault(found)
    assert (one.check, one.status) == ("connection", 7)
    assert "refuses connections" in one.text
    assert "is it started there?" in one.remedy
    assert "atoll node server --address HOST:PORT" in one.remedy


def test_a_firewall_that_swallows_everything(target, monkeypatch):
    def silent(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    one = the_fault(seen(target))
    assert one.check == "connection"
    assert f"have outbound TCP to {target.address} allowed" in one.remedy


def test_another_certificate_than_the_pinned_one(target):
    pin = Pin(bytes(32), target.pin.server_key)
    one = the_fault(seen(replace(target, pin=pin)))
    assert (one.check, one.status) == ("tls", 8)
    assert "showed another certificate" in one.text
    assert f"have {target.address} excepted" in one.remedy


def test_a_port_that_speaks_no_tls(target):
    with socket.create_server(("127.0.0.1", 0)) as plain:
        plain.settimeout(5)
        address = f"127.0.0.1:{plain.getsockname()[1]}"
        steps = probe(replace(target, address=address), timeout=0.5)
        found = {f.check: f for f in steps}
    one = the_fault(found)
    assert (one.check, one.status) == ("tls", 7)


def test_a_proxy_is_named_without_its_login(target, proxy):
    proxy.login = "Basic dWxtOnNlY3JldA=="
    found = seen(replace(target, proxy=f"http://ulm:secret@{proxy.address}"))
    assert found["membership"].state == "ok"
    assert found["proxy"].text == f"through {proxy.address}, with a login"
    assert "the proxy looks up" in found["name"].text
    assert not any("secret" in f.text + f.remedy for f in found.values())


def test_a_proxy_that_wants_a_login(target, proxy):
    proxy.login = "Basic dWxtOnNlY3JldA=="
    one = the_fault(seen(replace(target, proxy=f"http://{proxy.address}")))
    assert one.check == "proxy"
    assert "http://user:password@host:port" in one.remedy


def test_a_proxy_that_does_not_let_the_server_through(target, proxy):
    proxy.answer = b"HTTP/1.1 403 Forbidden\r\n\r\n"
    one = the_fault(seen(replace(target, proxy=f"http://{proxy.address}")))
    assert one.check == "proxy"
    assert f"ask for {target.address} to be allowed" in one.remedy


def test_a_proxy_s_address_that_is_none(target):
    one = the_fault(seen(replace(target, proxy="socks5://p:1080")))
    assert (one.check, one.status) == ("proxy", 7)


@pytest.mark.parametrize(
    ("ahead", "state"), [(0.0, "ok"), (-20.0, "ok"), (90.0, "warning"), (-400.0, "fault")]
)
def test_the_clock_is_held_against_the_server_s_signature(target, fake, ahead, state):
    def signed(key, *, created, **rest):
        return sign_response(key, created=round(created - ahead), **rest)

    fake.sign = signed
    found = seen(target)
    assert found["clock"].state == state
    if state in ("warning", "fault"):
        told = re.search(r"(\d+) s (ahead of|behind)", found["clock"].text)
        assert abs(int(told[1]) - abs(ahead)) <= 2
        assert told[2] == ("ahead of" if ahead > 0 else "behind")
        assert "NTP" in found["clock"].remedy
    if state == "fault":
        assert found["clock"].status == 8
        assert found["membership"].state == "unknown"


def test_a_server_that_cannot_work_is_a_warning(target, answers):
    answers["/v1/ready"] = 503, {"status": "not ready"}
    found = seen(target)
    assert found["server"].state == "warning"
    assert "tell its operator" in found["server"].remedy
    assert found["membership"].state == "ok"


def test_answers_by_another_key_than_the_server_s(target):
    pin = Pin(target.pin.certificate, Identity.fresh().public_bytes)
    one = the_fault(seen(replace(target, pin=pin)))
    assert (one.check, one.status) == ("server", 8)


def test_a_key_that_was_revoked(target, answers):
    problem = {"code": "auth.forbidden", "message": "the key of ulm was revoked", "remedy": "ask"}
    answers["/v1/federation"] = 403, problem
    one = the_fault(seen(target))
    assert (one.check, one.text, one.remedy) == ("membership", problem["message"], "ask")
    assert one.status == 8


def test_a_key_that_the_server_knows_by_another_name(target):
    one = the_fault(seen(replace(target, name="bern")))
    assert one.check == "membership"
    assert "knows this key as ulm, this folder as bern" in one.text


@pytest.mark.parametrize(
    ("days", "state", "words"),
    [(400, "ok", "valid until"), (10, "warning", "will go on"), (-1, "warning", "go on")],
)
def test_a_certificate_that_expires_is_told_in_time(tmp_path, days, state, words):
    now = time.time()
    create_certificate(
        tmp_path / "c.pem", tmp_path / "k.pem", ["localhost"], now=now - 100 * DAY, days=500
    )
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "c.pem").read_text())
    found = certificate_life("certificate", der, now + (399 - days) * DAY)
    assert found.state == state
    assert words in found.text + found.remedy


def test_what_is_no_certificate_is_a_fault():
    assert certificate_life("certificate", b"none", 0.0).state == "fault"


def test_an_address_that_is_none_is_a_finding(target):
    one = the_fault(seen(replace(target, address="nonsense")))
    assert (one.check, one.status, one.remedy) == ("name", 7, "write host:port")


def test_what_answers_nothing_comes_with_a_next_step(target):
    with socket.create_server(("127.0.0.1", 0)) as plain:
        silent = f"127.0.0.1:{plain.getsockname()[1]}"
        found = {f.check: f for f in probe(replace(target, address=silent), timeout=0.5)}
        assert "does another program listen there?" in the_fault(found).remedy
    other = Pin(target.pin.certificate, Identity.fresh().public_bytes)
    one = the_fault(seen(replace(target, pin=other)))
    assert (one.check, one.status) == ("server", 8)
    assert "ask the server's operator" in one.remedy
