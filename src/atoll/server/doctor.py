"""``atoll doctor --server``: what could keep a server from working, and what to do about it.

It looks and does not touch: a running server goes on, a database is not brought up to date. One line for
each thing; where something cannot be looked at, the line says so.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from atoll.core.errors import (
    AtollError,
    AuthError,
    FenceError,
    JobError,
    MissingExtra,
    StateError,
    StorageError,
)
from atoll.job.deployed import deployable, left_out
from atoll.job.load import read_spec
from atoll.server.admin import another_port, split_listen
from atoll.server.blobs.opening import open_blobs
from atoll.server.epochs import PUT_BACK, put_back
from atoll.server.home import Charter, ServerHome
from atoll.server.rounds.engine import ENDED
from atoll.server.store.contract import RESTORED
from atoll.wire.certificates import certificate_fingerprint, client_context, secure, server_context
from atoll.wire.codes import split_address
from atoll.wire.findings import (
    Finding,
    fault,
    faults_of,
    ok,
    owners,
    private_file,
    private_folder,
    room,
    together,
    trusted_file,
    unknown,
    user,
    warning,
    writing,
)
from atoll.wire.identity import Identity, spoken
from atoll.wire.probing import certificate_life

if TYPE_CHECKING:
    from atoll.server.store.looking import Look

__all__ = ["examine"]

_LIBRARIES = ("alembic", "cryptography", "httptools", "sqlalchemy", "uvicorn")
_LEAST_ROOM = 1 << 30
_COPIES = 3
"""Of the largest blob, beside one for each site: model, checkpoint, and the one before."""
_SILENT = 600.0
"""Seconds without an answer in a run that is open, after which a site is worth a telephone call."""


@dataclass(frozen=True, eq=False)
class _Place:
    """A server that is looked at."""

    home: ServerHome
    charter: Charter
    running: dict[str, object] | None
    now: float
    timeout: float


def examine(
    path: Path,
    *,
    job: Path | None = None,
    now: Callable[[], float] = time.time,
    timeout: float = 5.0,
) -> Iterator[Finding]:
    """Look at the server in the folder ``path``.

    Args:
        path: the folder.
        job: a job file that the federation is to run; None for none.
        now: seconds since 1970.
        timeout: seconds for connections.
    """
    home = ServerHome(path)
    try:
        charter = home.charter()
    except AtollError as error:
        yield from faults_of("folder", error)
        return
    yield ok("folder", f"{charter.federation}, {charter.name!r}, for members at {charter.address}")
    yield user("user", path)
    try:
        running = home.running()
    except AtollError as error:
        yield from faults_of("lock", error)
        running = None
    place = _Place(home, charter, running, now(), timeout)
    yield from together("files", _files(place), "keys and certificate are the owner's alone")
    yield from _certificate(place)
    libraries = list(_libraries(charter))
    yield from libraries
    look = None
    if libraries[0].state == "ok":
        look = yield from _store(place)
    else:
        yield unknown("store", "not looked at: the libraries come first")
    yield from _blobs(place)
    yield room("disk", path, _needed(place, look), "for rounds under way")
    yield from _port(place, look)
    yield _address(place)
    if look is not None:
        yield from _members(look, place.now)
    if job is not None:
        yield from _job(job)


def _files(place: _Place) -> Iterator[Finding]:
    home, charter = place.home, place.charter
    yield private_folder("files", home.path)
    yield owners("files", home.path)
    for path in (home.identity, home.key(charter), home.token):
        yield private_file("files", path)
    yield trusted_file("files", home.certificate(charter))
    secret = "@" in charter.store  # the database's password
    yield (private_file if secret else trusted_file)("files", home.charter_file)


def _certificate(place: _Place) -> Iterator[Finding]:
    home, charter = place.home, place.charter
    path = home.certificate(charter)
    try:
        pin = certificate_fingerprint(path)
        server_context(path, home.key(charter))
        der = ssl.PEM_cert_to_DER_cert(_first(path.read_text("ascii", "replace")))
        Identity.load(home.identity)
    except AtollError as error:
        yield from faults_of("certificate", error)
        return
    life = certificate_life("certificate", der, place.now)
    shown = f"{spoken(pin.hex()[:16])} …: {life.text}"
    if life.state == "ok":
        yield ok("certificate", shown)
    elif life.state == "warning":
        remedy = (
            f"{life.remedy}. For another one: atoll server change {quote(str(home.path))} --renew; "
            "that takes its fingerprint, and no new codes for all members"
        )
        yield warning("certificate", shown, remedy)
    else:
        yield life


def _first(pem: str) -> str:
    end = "-----END CERTIFICATE-----"
    return pem[pem.index("-----BEGIN CERTIFICATE-----") :].split(end, 1)[0] + end


def _libraries(charter: Charter) -> Iterator[Finding]:
    wanted = dict.fromkeys(_LIBRARIES, "server")
    if charter.store.startswith("postgres"):
        wanted["psycopg"] = "postgres"
    if charter.blobs.startswith("s3"):
        wanted["obstore"] = "s3"
    missing = {n: extra for n, extra in wanted.items() if importlib.util.find_spec(n) is None}
    for name, extra in missing.items():
        remedy = f"pip install 'atoll[{extra}]'"
        yield fault("libraries", f"{name} is not installed", remedy, MissingExtra)
    if not missing:
        yield ok("libraries", f"{', '.join(wanted)} are here")


# Store and blobs ----------------------------------------------------------------------------------


def _store(place: _Place) -> Generator[Finding, None, Look | None]:
    """The database; returns the look at it, None where there was none."""
    from atoll.server.store.looking import look_at  # needs what the server needs

    home, charter = place.home, place.charter
    try:
        look = look_at(home.store_url(charter), ENDED, (PUT_BACK, RESTORED))
    except AtollError as error:
        yield from faults_of("store", error)
        for check in ("lock", "starts"):
            yield unknown(check, "not looked at: the store comes first")
        return None
    if not look.shape:
        remedy = f"atoll server start {quote(str(home.path))} makes its tables; check the URL first"
        yield fault("store", f"{look.place} holds no federation", remedy, StorageError)
        return None
    if not look.up_to_date:
        text = f"{look.place} has the shape {look.shape}; this version works with {look.newest}"
        remedy = (
            "older: copy it, then the next start brings it up to date; newer: install that Atoll"
        )
        yield warning("store", text, remedy)
    else:
        yield ok("store", f"{look.place}, at the newest migration ({look.shape})")
    yield _lock(place, look)
    yield _starts(look)
    if look.lease is not None and look.lease.since > place.now + 60:
        text = "the last start of the server lies in the future: the clock was set back"
        yield fault("clock", text, "set this machine's clock, for example with NTP", AuthError)
    return look


def _starts(look: Look) -> Finding:
    """Whether sites saw starts of this server that its store has lost."""
    text, remedy = put_back(look.told, look.lease.epoch if look.lease is not None else 0)
    if text:
        return fault("starts", text, remedy, FenceError)
    return ok("starts", "no site says that it saw a start that is not known here")


def _lock(place: _Place, look: Look) -> Finding:
    running = place.running
    holder = look.lease.holder if look.lease is not None else "another server"
    if look.held and running is None:
        remedy = "one store is for one server: stop that one, or give this one a store of its own"
        return fault(
            "lock", f"the store is held by {holder}, which is not here", remedy, FenceError
        )
    if look.held:
        return ok("lock", f"held by the server that runs here ({holder})")
    if running is not None:
        text = "a server runs here and does not hold the store"
        return fault("lock", text, "restart it", FenceError)
    remedy = f"atoll server start {quote(str(place.home.path))}"
    return warning("lock", "free: no server runs on this store", remedy)


def _blobs(place: _Place) -> Iterator[Finding]:
    home, charter = place.home, place.charter
    folder = home.blobs if home.blobs.is_dir() else home.path
    yield writing("blobs", folder)
    if not charter.blobs:
        return
    began = time.perf_counter()
    try:
        open_blobs(charter.blobs, home.blobs)
    except AtollError as error:
        yield from faults_of("object store", error)
        return
    took = (time.perf_counter() - began) * 1000
    where = charter.blobs.partition("?")[0]
    yield ok("object store", f"{where}: written, read and deleted in {took:.0f} ms")


def _needed(place: _Place, look: Look | None) -> float:
    """Bytes that rounds may need: of the largest blob so far, one a site and some more."""
    largest = 0
    with suppress(OSError):
        largest = max(
            (entry.stat().st_size for entry in os.scandir(place.home.blobs) if entry.is_file()),
            default=0,
        )
    sites = len(look.sites or ()) if look is not None else 0
    return max(_LEAST_ROOM, largest * (sites + _COPIES))


# Being reached ------------------------------------------------------------------------------------


def _port(place: _Place, look: Look | None) -> Iterator[Finding]:
    listen = place.charter.listen
    running = place.running
    try:
        host, port = split_listen(listen)
    except AtollError as error:
        yield from faults_of("port", error)
        return
    if running is None:
        yield _free(host, port, place)
        yield unknown("answer", "not looked at: no server runs here")
        return
    number, bound = running.get("port", port), running.get("listen", listen)
    if bound != listen:
        text = f"the server that runs listens on {bound}; {listen} counts from its next start"
        yield warning("port", text, "restart the server")
    else:
        yield ok("port", f"{listen} is this server's, process {running.get('pid', '?')}")
    yield _answer(place, host, int(number) if isinstance(number, int | str) else port)


def _free(host: str, port: int, place: _Place) -> Finding:
    listen, other = place.charter.listen, another_port(place.home, place.charter)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except PermissionError:
        remedy = f"take a port from 1024 on ({other}), or let systemd give the right"
        return fault("port", f"{listen}: ports below 1024 are root's", remedy, StateError)
    except OSError as error:
        remedy = (
            f"end what listens there (ss -ltnp 'sport = :{port}'), or take another port: {other}"
        )
        return fault("port", f"{listen} is taken: {error.strerror}", remedy, StateError)
    return ok("port", f"{listen} is free")


def _answer(place: _Place, host: str, port: int) -> Finding:
    """Whether the server speaks TLS with its own certificate, asked from this machine."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    pin = certificate_fingerprint(place.home.certificate(place.charter))
    remedy = "look into its log; if it hangs, restart it"
    try:
        plain = socket.create_connection((here, port), place.timeout)
        with secure(plain, here, pin, client_context()) as line:
            line.sendall(b"GET /v1/ready HTTP/1.1\r\nhost: doctor\r\nconnection: close\r\n\r\n")
            said = line.recv(4096)
    except AuthError as error:
        text = f"it shows another certificate than the folder's: {error.message}"
        return fault("answer", text, "restart the server", AuthError)
    except OSError as error:
        text = f"port {port} does not answer: {error.strerror or error}"
        return fault("answer", text, remedy, StateError)
    if b" 200 " not in said[:16]:
        why = "the lines above, or its log, say why; it goes on by itself once that is mended"
        return fault("answer", "it answers that it is not ready", why, StateError)
    return ok("answer", f"TLS 1.3 on port {port}, with its own certificate, and ready")


def _address(place: _Place) -> Finding:
    """Whether members elsewhere can find the address that codes name."""
    address, home = place.charter.address, quote(str(place.home.path))
    host, port = split_address(address)
    other = f"atoll server change {home} --address HOST:PORT"
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        text = f"{host} has no address here: {error.strerror or error}"
        remedy = (
            f"sites must find it: check the DNS entry from outside; for another address: {other}"
        )
        return warning("address", text, remedy)
    found = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    if all(address.startswith("127.") or address == "::1" for address in found):
        text = f"{address} is this machine alone"
        return warning("address", text, f"for sites elsewhere: {other}, then restart the server")
    return ok("address", f"{address} is {', '.join(found)}")


def _members(look: Look, now: float) -> Iterator[Finding]:
    """Sites that should have been heard of in an open run."""
    sites, answered = look.sites or {}, look.answered or {}
    if not sites:
        yield warning("members", "there are no sites yet", "atoll server invite NAME")
        return
    quiet = set()
    for run, last in (look.open_runs or {}).items():
        for site in sorted(set(last) & set(sites)):
            if look.held and now - last[site] > _SILENT and site not in quiet:
                quiet.add(site)
                text = f"{site} has not answered in run {run} for {_ago(now - last[site])}"
                yield warning("members", text, "ask there for: atoll node status, and atoll doctor")
    never = sorted(set(sites) - set(answered) - quiet)
    also = f"; never at work so far: {', '.join(never)}" if never else ""
    yield ok("members", f"{len(sites)} active sites, {len(quiet)} silent{also}")


def _ago(seconds: float) -> str:
    for size, word in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} seconds"


def _job(path: Path) -> Iterator[Finding]:
    """Whether the job can run where sites are apart."""
    try:
        spec = read_spec(path)
    except AtollError as error:
        yield from faults_of("job", error)
        return
    faults = deployable(spec)
    for one in faults:
        yield fault("job", f"{one.place}: {one.message}", one.remedy, JobError)
    if not faults:
        notes = "".join(f"; {note}" for note in left_out(spec))
        yield ok("job", f"{spec.name} can run here{notes}")
