"""The way to a server, step by step, and who is found at its end.

::

    name -> connection -> (tunnel ->) tls -> certificate -> server -> clock -> membership

Each step is one line; where one fails, those behind it are told as not looked at.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from atoll.core.errors import AtollError, AuthError, Unreachable
from atoll.wire.certificates import client_context
from atoll.wire.codes import split_address
from atoll.wire.dialing import Line, Pin, Proxy, dial, find_proxy
from atoll.wire.findings import Finding, fault, faults_of, ok, unknown, warning
from atoll.wire.https import Channel
from atoll.wire.identity import Identity
from atoll.wire.messages import MembersReply

__all__ = ["Target", "certificate_life", "probe"]

_STEPS = ("proxy", "name", "connection", "tls", "certificate", "server", "clock", "membership")
_DAY = 86_400.0
_SOON = 30 * _DAY
_SKEW = 300.0
"""Seconds by which a request's time may differ from the server's; it is refused beyond."""
_UNEASY = 30.0
_SILENT = "does another program listen there? A firewall that lets nothing through looks the same"
_MOVED = ". If the server has moved: atoll node server --address HOST:PORT"
_CREATED = re.compile(r";created=(\d{1,16})")


@dataclass(frozen=True, eq=False)
class Target:
    """A server, and who one is there.

    Args:
        address: ``host:port``.
        pin: how it is known.
        identity: one's own key.
        federation: id.
        name: one's own in the federation.
        proxy: as :class:`~atoll.wire.https.Channel` takes it.
    """

    address: str
    pin: Pin
    identity: Identity
    federation: str
    name: str
    proxy: str | None = None


def probe(
    target: Target, *, now: Callable[[], float] = time.time, timeout: float = 10.0
) -> Iterator[Finding]:
    """Go the way to the server.

    Args:
        target: where to.
        now: this machine's clock, in seconds since 1970.
        timeout: seconds for each step.
    """
    seen: set[str] = set()
    last = ""
    for finding in _way(target, now, timeout):
        seen.add(finding.check)
        last = finding.check
        yield finding
    for step in _STEPS:
        if step not in seen:
            yield unknown(step, f"not looked at: the way ends at {last!r}")


def _way(target: Target, now: Callable[[], float], timeout: float) -> Iterator[Finding]:
    try:
        host, port = split_address(target.address)
    except AtollError as error:
        yield from _faults("name", error, "")
        return
    try:
        proxy = find_proxy(host, target.proxy)
    except AtollError as error:
        yield from faults_of("proxy", error)
        return
    yield ok("proxy", _proxy_text(proxy))
    first = (host, port) if proxy is None else (proxy.host, proxy.port)
    found = _name(*first, behind=host if proxy else "")
    yield found
    if found.state == "fault":
        return
    found = _connection(first, timeout, "" if proxy else _MOVED)
    yield found
    if found.state == "fault":
        return
    try:
        line = dial(target.address, target.pin, proxy, client_context(), timeout)
    except AtollError as error:
        yield from _no_line(error, target.address, tunnel=proxy is not None)
        return
    try:
        yield ok("tls", f"{line.sock.version()}, with the certificate that this site has pinned")
        yield _certificate(line, now())
    finally:
        line.close()
    yield from _talk(target, now, timeout)


def _proxy_text(proxy: Proxy | None) -> str:
    if proxy is None:
        return "none on the way"
    login = ", with a login" if proxy.credentials else ""
    return f"through {proxy.host}:{proxy.port}{login}"


def _name(host: str, port: int, behind: str) -> Finding:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return fault(
            "name",
            f"{host} has no address: {error.strerror or error}",
            f"check the spelling, and this machine's DNS (getent hosts {host}){'' if behind else _MOVED}",
            Unreachable,
        )
    found = ", ".join(dict.fromkeys(str(entry[4][0]) for entry in entries))
    also = f"; the proxy looks up {behind} itself" if behind else ""
    return ok("name", f"{host} is {found}{also}")


def _connection(first: tuple[str, int], timeout: float, moved: str) -> Finding:
    where = f"{first[0]}:{first[1]}"
    began = time.perf_counter()
    try:
        socket.create_connection(first, timeout).close()
    except ConnectionRefusedError:
        asked = "is it started there? Is the port right? A firewall may also answer like this"
        return fault("connection", f"{where} refuses connections", asked + moved, Unreachable)
    except TimeoutError:
        remedy = f"a firewall is in the way: have outbound TCP to {where} allowed"
        text = f"{where} does not answer within {timeout:g} s"
        return fault("connection", text, remedy + moved, Unreachable)
    except OSError as error:
        text = f"{where} cannot be reached: {error.strerror or error}"
        return fault("connection", text, "check this machine's network", Unreachable)
    took = (time.perf_counter() - began) * 1000
    return ok("connection", f"{where} accepts after {took:.1f} ms")


def _no_line(error: AtollError, address: str, *, tunnel: bool) -> Iterator[Finding]:
    """Why there is no TLS: the proxy, something that opens it on the way, or the server."""
    if tunnel and error.message.startswith("the proxy"):
        yield from _faults(
            "proxy", error, "check its address and port (proxy in node.toml, HTTPS_PROXY)"
        )
        return
    if isinstance(error, AuthError):
        remedy = f"if a proxy or firewall opens TLS, have {address} excepted; else ask the server's operator"
        text = (
            f"{error.message} (expected {error.remedy.partition(';')[0].removeprefix('expected ')})"
        )
        yield fault("tls", text, remedy, AuthError)
        return
    yield from _faults("tls", error, _SILENT)


def _faults(check: str, error: AtollError, otherwise: str) -> Iterator[Finding]:
    """What an error says, with ``otherwise`` as the next step where it names none."""
    for found in faults_of(check, error):
        yield replace(found, remedy=found.remedy or otherwise)


def _certificate(line: Line, now: float) -> Finding:
    return certificate_life("certificate", line.sock.certificate(), now)


def certificate_life(check: str, der: bytes, now: float) -> Finding:
    """How long a certificate is still valid.

    Members know it by its fingerprint and do not look at its dates: nothing ends when it expires.

    Args:
        check: name of the line.
        der: the certificate.
        now: seconds since 1970.
    """
    from cryptography import x509

    try:
        ends = x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
    except ValueError as error:
        return fault(check, f"it cannot be read: {error}", "ask the server's operator", AuthError)
    day = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%d")
    if ends < now:
        remedy = "members go by its fingerprint and go on; other programs may refuse it"
        return warning(check, f"has expired on {day}", remedy)
    text = f"valid until {day}, {(ends - now) / _DAY:,.0f} days"
    if ends - now < _SOON:
        return warning(check, text, "members go by its fingerprint and will go on")
    return ok(check, text)


def _talk(target: Target, now: Callable[[], float], timeout: float) -> Iterator[Finding]:
    channel = Channel(
        target.address,
        target.pin,
        target.identity,
        target.federation,
        proxy=target.proxy,
        connect_timeout=timeout,
    )
    with channel:
        try:
            began = now()
            reply = channel.call("GET", "/v1/health", timeout=timeout)
            clock = _clock(reply.headers.get("signature-input", ""), (began + now()) / 2)
        except AtollError as error:
            yield from _faults(
                "server", error, "ask the server's operator before anything is sent there"
            )
            return
        yield _readiness(channel, timeout)
        yield clock
        if clock.state == "fault":
            return
        yield from _membership(channel, target, timeout)


def _readiness(channel: Channel, timeout: float) -> Finding:
    try:
        channel.call("GET", "/v1/ready", timeout=timeout)
    except AtollError:
        text = "answers with its own signature, but cannot work at the moment"
        return warning("server", text, "its log says why: tell its operator")
    return ok("server", "answers with its own signature, and is ready")


def _clock(signed: str, here: float) -> Finding:
    """The answer's signature says when it was made; whole seconds."""
    created = _CREATED.search(signed)
    if created is None:
        return unknown("clock", "the server does not say what time it has")
    ahead = here - (int(created[1]) + 0.5)
    side = "ahead of" if ahead > 0 else "behind"
    text = f"this machine is {abs(ahead):.0f} s {side} the server"
    remedy = (
        "set the clock of the one that is wrong, for example with NTP (timedatectl set-ntp true)"
    )
    if abs(ahead) > _SKEW:
        return fault("clock", f"{text}; beyond {_SKEW:.0f} s all is refused", remedy, AuthError)
    if abs(ahead) > _UNEASY:
        return warning("clock", f"{text}; beyond {_SKEW:.0f} s all is refused", remedy)
    return ok("clock", "within a second of the server's" if abs(ahead) < 1.5 else text)


def _membership(channel: Channel, target: Target, timeout: float) -> Iterator[Finding]:
    try:
        reply = channel.json("GET", "/v1/federation", None, MembersReply, timeout=timeout)
    except AtollError as error:
        yield from faults_of("membership", error)
        return
    mine = next(
        (m for m in reply.members if m.fingerprint == target.identity.fingerprint),
        None,
    )
    if mine is None or mine.name != target.name:
        called = "nobody" if mine is None else mine.name
        remedy = "join again with a new code, or restore federation.json"
        text = f"the server knows this key as {called}, this folder as {target.name}"
        yield fault("membership", text, remedy, AuthError)
        return
    active = sum(m.status == "active" for m in reply.members)
    yield ok("membership", f"accepted as {mine.name}, one of {active} active members")
