"""A server as a process: one port, TLS 1.3 and nothing else, until a signal ends it.

uvicorn's protocol speaks HTTP on connections that :mod:`atoll.server.web.connections` lets in; everything
that answers is :class:`~atoll.server.web.app.App`. The service works in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from atoll.core.errors import FenceError, StateError
from atoll.runtime.allocator import keep_freed_memory
from atoll.server.admin import another_port, split_listen
from atoll.server.blobs.near import NearBlobs
from atoll.server.blobs.opening import open_blobs
from atoll.server.home import Charter, ServerHome
from atoll.server.service import Service
from atoll.server.settings import Runs, Settings
from atoll.server.steps import Steps, steady
from atoll.server.store.contract import Store
from atoll.server.store.opening import open_store
from atoll.server.web.access import Access
from atoll.server.web.api import ROUTES, Api, Federation
from atoll.server.web.app import App, House
from atoll.server.web.bell import Bell
from atoll.server.web.connections import Doorman, Guest, Speaker
from atoll.server.web.gate import Gate, Roster
from atoll.server.web.lanes import Lanes
from atoll.server.web.limits import Limits
from atoll.server.web.metrics_page import Gauge, Meters
from atoll.server.web.routes import Route, Table
from atoll.wire.certificates import server_context
from atoll.wire.identity import Identity, read_secret
from atoll.wire.trouble import cramped

__all__ = ["Premises", "Running", "build_app", "serve"]

log = logging.getLogger("atoll.server")

_GRACE = 10.0
_THREADS = 16


@dataclass(frozen=True)
class Running:
    """A server that accepts connections.

    Args:
        port: of the listening socket.
        stop: ends it with an exit status; from any thread.
    """

    port: int
    stop: Callable[[int], None]


def _nobody(running: Running) -> None:
    """Nobody is to be told."""


@dataclass(frozen=True, eq=False)
class Premises:
    """What a server is made of.

    Args:
        federation: its id.
        identity: the key that signs answers.
        store: rows.
        service: does the work; started.
        incoming: folder for long bodies.
        token: of the page of metrics.
        limits: see there.
        now: seconds since 1970.
        meters: counts.
        drawn: what this start has drawn.
        runs: who may read them.
    """

    federation: str
    identity: Identity
    store: Store
    service: Service
    incoming: Path
    token: bytes = b""
    limits: Limits = field(default_factory=Limits)
    now: Callable[[], float] = time.time
    meters: Meters = field(default_factory=Meters)
    drawn: str = ""
    runs: Runs = "open"


def build_app(
    premises: Premises,
    threads: Executor,
    disk: Executor,
    bell: Bell,
    *,
    gauges: Callable[[], tuple[Gauge, ...]] = tuple,
    trouble: Callable[[], str] = str,
    routes: Iterable[Route] = ROUTES,
    lanes: Lanes | None = None,
) -> App:
    """The HTTP application of a server.

    Args:
        premises: what it is made of.
        threads: where short calls of the service run.
        disk: where those run that wait for a disk.
        bell: rings when there is news.
        gauges: further values for the page of metrics.
        trouble: why it is not ready; empty when it is.
        routes: the table of routes.
        lanes: threads for long bodies; None where the loop does all.
    """
    limits, now, identity = premises.limits, premises.now, premises.identity
    roster = Roster(premises.store, limits.roster_seconds, now)
    gate = Gate(premises.federation, premises.service.epoch, roster, limits, now)
    gate.token = premises.token
    gate.start = premises.drawn or gate.start
    service = premises.service
    access = Access(premises.store, premises.runs, lambda: service.epoch, service.now)
    service.on_forgotten = access.proofs.forget
    api = Api(
        service=premises.service,
        gate=gate,
        bell=bell,
        threads=threads,
        disk=disk,
        roster=roster,
        limits=limits,
        federation=Federation(premises.federation, identity.public_bytes),
        meters=premises.meters,
        gauges=lambda: (*_members(roster), *gauges()),
        ready=trouble,
        access=access,
    )
    house = House(
        identity, gate, roster, limits, premises.incoming, disk, now, premises.meters, lanes, access
    )
    return App(house, Table(routes), api)


def serve(
    home: ServerHome,
    *,
    settings: Settings | None = None,
    limits: Limits | None = None,
    ready: Callable[[Running], None] = _nobody,
) -> int:
    """Run the server in ``home`` until SIGTERM or SIGHUP (status 0), or SIGINT (130).

    Args:
        home: the folder.
        settings: times and sizes of the service.
        limits: of connections and requests.
        ready: called when connections are accepted.

    Raises:
        NotFound: there is no server in the folder.
        StorageError: another one runs there, or something cannot be read.
        FenceError: another server holds the store, or has taken it over.
        StateError: the port is taken.
    """
    charter = home.charter()
    with home.locked(), contextlib.ExitStack() as stack:
        shutil.rmtree(home.incoming, ignore_errors=True)
        store = open_store(home.store_url(charter))
        stack.callback(store.close)
        blobs = NearBlobs(store, open_blobs(charter.blobs, home.blobs))
        holder = f"process {os.getpid()} on {socket.gethostname()} in {home.path.absolute()}"
        chosen = replace(settings or Settings(), holder=holder, runs=charter.runs)
        identity = Identity.load(home.identity)
        seal = charter.federation, identity.sign
        clocks = {"now": steady(), "date": time.time}
        service = Service(store, blobs, home.path, **clocks, settings=chosen, seal=seal)
        drawn = secrets.token_hex(8)
        epoch = service.start(drawn)
        log.info("federation %s, epoch %d", charter.federation, epoch)
        premises = Premises(
            federation=charter.federation,
            identity=identity,
            store=store,
            service=service,
            incoming=home.incoming,
            token=read_secret(home.token).strip(),
            limits=limits or Limits(),
            drawn=drawn,
            runs=chosen.runs,
        )
        context = server_context(home.certificate(charter), home.key(charter))
        listener = stack.enter_context(_listening(home, charter))
        process = _Process(premises, context, listener)
        stack.callback(home.tell, None)

        def up(running: Running) -> None:
            home.tell(_state(charter, epoch, running))
            log.info("listening on %s, port %d", charter.listen, running.port)
            ready(running)

        return asyncio.run(process.run(up))


def _state(charter: Charter, epoch: int, running: Running) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "epoch": epoch,
        "listen": charter.listen,
        "port": running.port,
        "since": time.time(),
    }


class _Process:
    """The event loop's side of a server.

    Args:
        premises: what the server is made of.
        context: of TLS.
        listener: bound.
    """

    def __init__(
        self, premises: Premises, context: ssl.SSLContext, listener: socket.socket
    ) -> None:
        self._premises, self._context, self._listener = premises, context, listener
        self._end: asyncio.Future[int] | None = None
        self._fenced: FenceError | None = None
        self._state = ServerState()

    async def run(self, up: Callable[[Running], None]) -> int:
        """Serve until something ends it; returns the exit status."""
        premises, limits = self._premises, self._premises.limits
        loop = asyncio.get_running_loop()
        self._end = loop.create_future()
        _raise_descriptor_limit(limits.knocking + limits.strangers + 64 * limits.connections + 256)
        keep_freed_memory()
        with (
            ThreadPoolExecutor(_THREADS, "atoll-call") as threads,
            ThreadPoolExecutor(_THREADS, "atoll-disk") as disk,
            contextlib.closing(Lanes(limits.lanes, limits.lanes_each)) as lanes,
        ):
            bell = Bell(loop)
            steps = Steps(premises.service, premises.service.now, self._lost)
            premises.service.on_change = bell.ring
            premises.service.on_work = steps.wake
            doorman = Doorman(self._context, limits)
            app = build_app(
                premises,
                threads,
                disk,
                bell,
                gauges=lambda: _standing(premises, _trouble(premises, steps), steps, doorman),
                trouble=lambda: _trouble(premises, steps),
                lanes=lanes,
            )
            doorman.make = self._speaker(app)
            steps.start()
            with self._signals(loop):
                accepting = asyncio.create_task(doorman.serve(self._listener))
                gc.collect()
                gc.freeze()  # what is here now stays: later collections need not look at it again
                up(Running(self._listener.getsockname()[1], self._stop_from_outside))
                status = await self._end
                log.info("stopping")
                accepting.cancel()
                self._listener.close()
                await self._wind_down(bell, doorman)
            await loop.run_in_executor(None, steps.stop)
        if self._fenced is not None:
            raise self._fenced
        return status

    def _speaker(self, app: App) -> Callable[[Guest], Speaker]:
        config = Config(
            app,
            loop="asyncio",
            http=Speaker,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
        )
        config.load()
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        limits, state = self._premises.limits, self._state
        return lambda guest: Speaker(guest, limits, config=config, server_state=state, app_state={})

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        wanted = {signal.SIGTERM: 0, signal.SIGINT: 130}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            wanted[signal.SIGHUP] = 0  # the terminal was closed
        handled = []
        try:
            for number, status in wanted.items():
                with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread
                    loop.add_signal_handler(number, self._stop, status)
                    handled.append(number)
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    def _stop(self, status: int) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(status)

    def _stop_from_outside(self, status: int) -> None:
        if self._end is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                self._end.get_loop().call_soon_threadsafe(self._stop, status)

    def _lost(self, error: FenceError) -> None:
        """Another server has the store; from the thread of steps."""
        self._fenced = error
        self._stop_from_outside(error.exit_status)

    async def _wind_down(self, bell: Bell, doorman: Doorman) -> None:
        """Answer what is under way, then close."""
        bell.close()
        doorman.close()
        for speaker in list(self._state.connections):
            speaker.shutdown()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=_GRACE)
        for task in list(self._state.tasks):
            task.cancel()
        await doorman.abort()


@contextlib.contextmanager
def _listening(home: ServerHome, charter: Charter) -> Iterator[socket.socket]:
    listen = charter.listen
    host, port = split_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise StateError(
                f"{listen} cannot be listened on: {error.strerror}",
                remedy=f"is another server running there? Else: {another_port(home, charter)}",
            ) from error
        listener.listen(512)
        listener.setblocking(False)
        yield listener


def _raise_descriptor_limit(wanted: int) -> None:
    """Each connection is an open file to the system."""
    import resource  # does not exist everywhere

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _members(roster: Roster) -> tuple[Gauge, ...]:
    found: dict[Any, float] = {}
    for member in roster.all():
        key = (("role", member.role), ("status", member.status))
        found[key] = found.get(key, 0.0) + 1
    return (Gauge("atoll_members", "Keys by role and standing.", found),)


def _trouble(premises: Premises, steps: Steps) -> str:
    """Why the server cannot work; runs that wait for a full disk are none of its thread's troubles."""
    return steps.trouble or cramped(premises.incoming.parent)


def _standing(premises: Premises, why: str, steps: Steps, doorman: Doorman) -> tuple[Gauge, ...]:
    runs: dict[Any, float] = {}
    for job in premises.service.jobs():
        key = (("status", job.status),)
        runs[key] = runs.get(key, 0.0) + 1
    found: dict[Any, float] = {(("stage", k),): float(v) for k, v in doorman.open.items()}
    trouble = float(bool(why))
    strange = float(premises.service.epochs.strange)
    return (
        Gauge("atoll_epoch", "Starts of this server so far.", {(): premises.service.epoch}),
        Gauge("atoll_strange_starts", "Sites that saw a start not known here.", {(): strange}),
        Gauge("atoll_runs", "Runs by status.", runs),
        Gauge("atoll_connections", "Open connections by how far they came.", found),
        Gauge("atoll_steps", "Steps of the service's thread.", {(): steps.count}),
        Gauge("atoll_step_seconds", "Seconds spent in them.", {(): steps.seconds}),
        Gauge("atoll_trouble", "1 while the service cannot work.", {(): trouble}),
    )
