"""A connection to one server: directly or through a proxy, TLS 1.3, its certificate pinned.

A site's firewall often lets nothing out but HTTP through a proxy. ``CONNECT`` (RFC 9110 section 9.3.6)
makes the proxy pass on bytes; TLS goes through it from end to end, so a proxy sees the server's address
and nothing else.
"""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from atoll.core.errors import Unreachable, WireError
from atoll.wire.certificates import secure
from atoll.wire.codes import split_address
from atoll.wire.sealed import SealedSocket

__all__ = ["Line", "Pin", "Proxy", "dial", "find_proxy"]

_MOST_ANSWER = 16 << 10

_STATUS = re.compile(r"HTTP/1\.1 ([2-5]\d\d)(?<!204)(?<!304) ([ -~]*)", re.ASCII)
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+): *([!-~](?:[ -~]*[!-~])?)", re.ASCII)
_SIZE = re.compile(r"[0-9]{1,15}", re.ASCII)
_WITH_BODY = ("PATCH", "POST", "PUT")
"""Methods whose requests tell the length of a body, also of none."""
_OWN = 2
"""Ends of lines within what every request begins with."""


@dataclass(frozen=True)
class Pin:
    """How a server is known for certain.

    Args:
        certificate: SHA-256 of its TLS certificate, 32 bytes.
        server_key: its public Ed25519 key, 32 bytes, which signs every answer; None while joining,
            when the answer is what tells the key.
    """

    certificate: bytes
    server_key: bytes | None = None


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy; ``credentials`` are for Basic authentication, empty for none."""

    host: str
    port: int
    credentials: str = field(default="", repr=False)


def find_proxy(host: str, given: str | None) -> Proxy | None:
    """The proxy on the way to ``host``.

    Args:
        host: the server's name.
        given: ``http://[user:password@]proxy:port``; empty for none; None: as the environment says
            (``HTTPS_PROXY``, ``NO_PROXY``).

    Raises:
        WireError: it is no such address.
    """
    if given is None:
        given = "" if proxy_bypass(host) else getproxies_environment().get("https", "")
    if not given:
        return None
    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
        port = parts.port or 80
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme != "http" or not parts.hostname:
        raise WireError(  # the address itself may hold a password: it is not shown
            "the proxy's address is not http://[user:password@]host:port",
            remedy="correct HTTPS_PROXY, or the proxy given to this command",
        )
    credentials = ""
    if parts.username is not None:
        plain = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        credentials = base64.b64encode(plain.encode()).decode()
    return Proxy(parts.hostname, port, credentials)


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "the name is not known"
    return error.strerror or str(error)


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _tunnel(plain: socket.socket, address: str, proxy: Proxy, deadline: float) -> None:
    """Ask the proxy to pass on what follows.

    Raises:
        Unreachable: it does not.
        WireError: its answer is not HTTP.
    """
    login = f"Proxy-Authorization: Basic {proxy.credentials}\r\n" if proxy.credentials else ""
    plain.sendall(f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{login}\r\n".encode("ascii"))
    answer = b""
    where = f"the proxy {proxy.host}:{proxy.port}"
    while b"\r\n\r\n" not in answer:
        plain.settimeout(_left(deadline))
        piece = plain.recv(4096)
        answer += piece
        if not piece or len(answer) > _MOST_ANSWER:
            raise WireError(f"{where} does not answer as an HTTP proxy does")
    line = re.match(rb"HTTP/1\.[01] (\d{3})(?: ([ -~]*))?\r\n", answer)
    # A refusal may explain itself; what comes after a yes would be the server's, which waits to be asked.
    welcome = line is not None and line[1].startswith(b"2")
    if line is None or (welcome and not answer.endswith(b"\r\n\r\n")):
        raise WireError(f"{where} does not answer as an HTTP proxy does")
    if line[1] in (b"401", b"407"):  # tinyproxy says the first
        raise Unreachable(
            f"{where} wants a user and a password, or others than given",
            remedy="write them in its address: http://user:password@host:port",
        )
    if not welcome:
        said = f"{line[1].decode()} {(line[2] or b'').decode()[:100]}".strip()
        raise Unreachable(
            f"{where} does not connect to {address}: {said}",
            remedy=f"ask for {address} to be allowed there",
        )


def dial(
    address: str, pin: Pin, proxy: Proxy | None, context: ssl.SSLContext, timeout: float
) -> Line:
    """Connect.

    Args:
        address: of the server, ``host:port``.
        pin: how it is known.
        proxy: on the way; None for none.
        context: from :func:`~atoll.wire.certificates.client_context`.
        timeout: seconds until the connection must stand, TLS included.

    Raises:
        Unreachable: it cannot be reached, or does not speak TLS 1.3.
        AuthError: another certificate.
    """
    host, port = split_address(address)
    deadline = time.monotonic() + timeout
    first = (host, port) if proxy is None else (proxy.host, proxy.port)
    step = address if proxy is None else f"the proxy {proxy.host}:{proxy.port}"
    try:
        plain = socket.create_connection(first, timeout)
    except OSError as error:
        raise Unreachable(
            f"{step} cannot be reached: {_reason(error)}",
            remedy="check the address, the network and the firewall (outbound connections only)",
        ) from error
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy is not None:
            plain.settimeout(_left(deadline))
            _tunnel(plain, address, proxy, deadline)
        plain.settimeout(_left(deadline))
        return Line(host, port, secure(plain, host, pin.certificate, context))
    except ssl.SSLError as error:
        plain.close()
        raise Unreachable(
            f"{address} does not speak TLS 1.3: {error.reason or 'the connection broke'}",
            remedy="check the port; a proxy must pass on TLS unopened",
        ) from error
    except OSError as error:
        plain.close()
        raise Unreachable(f"{step}: {_reason(error)}") from error
    except BaseException:
        plain.close()
        raise


_NO_FIELDS = http.client.HTTPMessage()
"""In place of those that the library has not read."""


class _Response(http.client.HTTPResponse):
    """An answer whose head is read at once where it is as our servers write it.

    The library hands every head to its reader of e-mail, which takes longer than all else that is done with a
    short answer. What is in any way unusual is left to that.
    """

    _fields: list[tuple[str, str]] | None = None

    def getheaders(self) -> list[tuple[str, str]]:
        """Names and values, in the order in which they came."""
        return super().getheaders() if self._fields is None else self._fields

    def begin(self) -> None:
        """Read status and headers."""
        head, end, _ = self.fp.peek().partition(b"\r\n\r\n")
        if not end or not self._plain(head.decode("latin-1").split("\r\n")):
            super().begin()
            return
        self.fp.read(len(head) + len(end))

    def _plain(self, lines: list[str]) -> bool:
        """Take a head over; False, and nothing has happened, where it is not of the usual kind."""
        first, known = _STATUS.fullmatch(lines[0]), dict[str, str]()
        fields: list[tuple[str, str]] = []
        for found in map(_FIELD.fullmatch, lines[1:]):
            if found is None or (name := found[1].lower()) in known:
                return False
            known[name] = found[2]
            fields.append((found[1], found[2]))
        size = known.get("content-length", "")
        if first is None or not _SIZE.fullmatch(size) or "transfer-encoding" in known:
            return False
        self.code = self.status = int(first[1])
        self.reason, self.version = first[2].strip(), 11
        self.headers = self.msg = _NO_FIELDS
        self._fields = fields
        self.chunked, self.length = False, int(size)
        self.will_close = "close" in known.get("connection", "").lower()
        return True


class Line(http.client.HTTPConnection):
    """HTTP/1.1 on a connection that stands; it never connects anew by itself, least of all in clear.

    Args:
        host: the server's.
        port: the server's.
        connected: to it.
    """

    auto_open = 0
    response_class = _Response

    def __init__(self, host: str, port: int, connected: SealedSocket) -> None:
        super().__init__(host, port)
        name = f"[{host}]" if ":" in host else host
        self._to = f"Host: {name}:{port}\r\nAccept-Encoding: identity"
        self.sock: Any = connected  # http.client expects a socket, and is given what it uses of one
        self._given: http.client.HTTPResponse | None = None

    def close(self) -> None:
        """Close the connection, also for whoever reads an answer."""
        super().close()
        given, self._given = self._given, None
        if given is not None:
            given.close()

    @property
    def quiet(self) -> bool:
        """Whether an idle connection is still open: a closed one has something to read, its end."""
        try:
            return self.sock is not None and bool(self.sock.quiet)
        except (OSError, ValueError):
            return False

    def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | memoryview,
        timeout: float,
    ) -> http.client.HTTPResponse:
        """Send a request and read the head of its answer.

        Raises:
            OSError: the connection broke, or nothing came for ``timeout`` seconds.
            http.client.HTTPException: the answer is not HTTP.
        """
        self.sock.settimeout(timeout)
        try:
            # A timeout holds for each piece and not for the whole, which may be long and the line slow.
            self.sock.sendall(self._head(method, target, headers, len(body)))
            if body:
                self.sock.sendall(body)
            self.sock.push()
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError) as broken:
            # Who refuses a body may answer and hang up before all of it was sent.
            try:
                return self._early()
            except (OSError, http.client.HTTPException):
                raise broken from None
        return self._answer(method)

    def _head(self, method: str, target: str, headers: Mapping[str, str], size: int) -> bytes:
        """A request's line and headers; the library's way to them takes longer than to seal and send them.

        Raises:
            ValueError: a word that would not be one line of its own.
        """
        sized = {"content-length": str(size)} if size or method in _WITH_BODY else {}
        lines = [f"{name}: {value}" for name, value in {**headers, **sized}.items()]
        text = "\r\n".join((f"{method} {target} HTTP/1.1", self._to, *lines))
        if text.count("\n") != len(lines) + _OWN or text.count("\r") != len(lines) + _OWN:
            raise ValueError(f"no request can have such a header: {text!r:.200}")
        return text.encode("latin-1") + b"\r\n\r\n"

    def _answer(self, method: str) -> http.client.HTTPResponse:
        self._given = response = self.response_class(self.sock, method=method)
        try:
            response.begin()
        except BaseException:
            response.close()
            raise
        return response

    def _early(self) -> http.client.HTTPResponse:
        response = self.response_class(self.sock, method="POST")
        response.begin()
        response.will_close = True
        return response
