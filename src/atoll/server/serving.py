"""A server as a process: one port, TLS 1.3 and nothing else, until a signal ends it.

uvicorn's protocol speaks HTTP on connections that :mod:`atoll.server.connections` lets in; everything
that answers is :class:`~atoll.server.app.App`. The service works in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from atoll.core.errors import FenceError, StateError
from atoll.server.admin import split_listen
from atoll.server.api import ROUTES, Api, Federation
from atoll.server.app import App, House
from atoll.server.bell import Bell
from atoll.server.blobs import open_blobs
from atoll.server.connections import Doorman, Guest, Speaker
from atoll.server.gate import Gate, Roster
from atoll.server.home import Charter, ServerHome
from atoll.server.limits import Limits
from atoll.server.metrics_page import Gauge, Meters
from atoll.server.routes import Table
from atoll.server.service import Service
from atoll.server.settings import Settings
from atoll.server.steps import Steps
from atoll.server.store.contract import Store
from atoll.server.store.opening import open_store
from atoll.wire.certificates import server_context
from atoll.wire.identity import Identity, read_secret

__all__ = ["Serving", "serve"]

log = logging.getLogger("atoll.server")

_GRACE = 10.0
_THREADS = 16


@dataclass(frozen=True, eq=False)
class Serving:
    """What is made once for a process.

    Args:
        home: the folder.
        charter: who this is.
        store: rows.
        service: does the work; started.
        limits: see there.
        ready: called with the port when connections are accepted.
    """

    home: ServerHome
    charter: Charter
    store: Store
    service: Service
    limits: Limits = field(default_factory=Limits)
    ready: Callable[[int], None] = lambda port: None


def serve(
    home: ServerHome,
    *,
    settings: Settings | None = None,
    limits: Limits | None = None,
    ready: Callable[[int], None] = lambda port: None,
) -> int:
    """Run the server in ``home`` until SIGTERM (status 0) or SIGINT (130).

    Args:
        home: the folder.
        settings: times and sizes of the service.
        limits: of connections and requests.
        ready: called with the port when connections are accepted.

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
        blobs = open_blobs(charter.blobs, home.blobs)
        holder = f"process {os.getpid()} on {socket.gethostname()} in {home.path.absolute()}"
        chosen = replace(settings or Settings(), holder=holder)
        service = Service(store, blobs, home.path, now=time.time, settings=chosen)
        epoch = service.start()
        log.info("federation %s, epoch %d", charter.federation, epoch)
        serving = Serving(home, charter, store, service, limits or Limits(), ready)
        return asyncio.run(_Process(serving).run())


class _Process:
    """The event loop's side of a server.

    Args:
        serving: what is made once.
    """

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._end: asyncio.Future[int] | None = None
        self._fenced: FenceError | None = None
        self._state = ServerState()
        self._meters = Meters()

    async def run(self) -> int:
        """Serve until something ends it; returns the exit status."""
        serving, limits = self._serving, self._serving.limits
        loop = asyncio.get_running_loop()
        self._end = loop.create_future()
        _raise_descriptor_limit(limits.knocking + limits.strangers + 64 * limits.connections + 256)
        charter, home = serving.charter, serving.home
        context = server_context(home.certificate(charter), home.key(charter))
        with (
            _listening(charter.listen) as listener,
            ThreadPoolExecutor(_THREADS, "atoll-call") as threads,
        ):
            bell = Bell(loop)
            steps = Steps(serving.service, time.time, self._lost)
            serving.service.on_change = bell.ring
            serving.service.on_work = steps.wake
            app, gauges = self._app(threads, bell, steps)
            doorman = Doorman(context, self._speaker(app), limits)
            gauges.append(lambda: _connections(doorman))
            steps.start()
            with self._signals(loop), self._announced(listener):
                accepting = asyncio.create_task(doorman.serve(listener))
                status = await self._end
                log.info("stopping")
                accepting.cancel()
                listener.close()
                await self._wind_down(bell, doorman)
            await loop.run_in_executor(None, steps.stop)
        if self._fenced is not None:
            raise self._fenced
        return status

    def _app(
        self, threads: ThreadPoolExecutor, bell: Bell, steps: Steps
    ) -> tuple[App, list[Callable[[], tuple[Gauge, ...]]]]:
        serving, limits, now = self._serving, self._serving.limits, time.time
        identity = Identity.load(serving.home.identity)
        roster = Roster(serving.store, limits.roster_seconds, time.monotonic)
        federation = Federation(serving.charter.federation, identity.public_bytes)
        gate = Gate(federation.id, serving.service.epoch, roster, limits, now)
        gate.token = read_secret(serving.home.token).strip()
        gauges: list[Callable[[], tuple[Gauge, ...]]] = [lambda: _standing(serving, roster, steps)]
        api = Api(
            service=serving.service,
            store=serving.store,
            gate=gate,
            bell=bell,
            threads=threads,
            roster=roster,
            limits=limits,
            federation=federation,
            meters=self._meters,
            now=now,
            gauges=lambda: tuple(gauge for part in gauges for gauge in part()),
            ready=lambda: steps.trouble,
        )
        house = House(
            identity, gate, roster, limits, serving.home.incoming, threads, now, self._meters
        )
        return App(house, Table(ROUTES), api), gauges

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

        def make(guest: Guest) -> Speaker:
            return Speaker(
                guest,
                self._serving.limits,
                config=config,
                server_state=self._state,
                app_state={},
            )

        return make

    @contextlib.contextmanager
    def _announced(self, listener: socket.socket) -> Iterator[None]:
        home, port = self._serving.home, int(listener.getsockname()[1])
        home.tell(
            {
                "pid": os.getpid(),
                "epoch": self._serving.service.epoch,
                "listen": self._serving.charter.listen,
                "port": port,
                "since": time.time(),
            }
        )
        gc.collect()
        gc.freeze()  # what is here now stays: later collections need not look at it again
        log.info("listening on %s, port %d", self._serving.charter.listen, port)
        self._serving.ready(port)
        try:
            yield
        finally:
            home.tell(None)

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        wanted = {signal.SIGTERM: 0, signal.SIGINT: 130}
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

    def _lost(self, error: FenceError) -> None:
        """Another server has the store; from the thread of steps."""
        self._fenced = error
        if self._end is not None:
            self._end.get_loop().call_soon_threadsafe(self._stop, error.exit_status)

    async def _wind_down(self, bell: Bell, doorman: Doorman) -> None:
        """Answer what is under way, then close."""
        bell.close()
        doorman.close()
        for speaker in list(self._state.connections):
            speaker.shutdown()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=_GRACE)
        doorman.abort()
        for task in list(self._state.tasks):
            task.cancel()


@contextlib.contextmanager
def _listening(listen: str) -> Iterator[socket.socket]:
    host, port = split_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise StateError(
                f"{listen} cannot be listened on: {error.strerror}",
                remedy="is another server running there? Change listen in server.json otherwise",
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


def _connections(doorman: Doorman) -> tuple[Gauge, ...]:
    values: dict[Any, float] = {(("stage", k),): float(v) for k, v in doorman.open.items()}
    return (Gauge("atoll_connections", "Open connections by how far they came.", values),)


def _standing(serving: Serving, roster: Roster, steps: Steps) -> tuple[Gauge, ...]:
    runs: dict[Any, float] = {}
    for job in serving.service.jobs():
        key = (("status", job.status),)
        runs[key] = runs.get(key, 0.0) + 1
    members: dict[Any, float] = {}
    for member in roster.all():
        key2 = (("role", member.role), ("status", member.status))
        members[key2] = members.get(key2, 0.0) + 1
    return (
        Gauge("atoll_epoch", "Starts of this server so far.", {(): float(serving.service.epoch)}),
        Gauge("atoll_runs", "Runs by status.", runs),
        Gauge("atoll_members", "Keys by role and standing.", members),
        Gauge("atoll_steps", "Steps of the service's thread.", {(): float(steps.count)}),
        Gauge("atoll_step_seconds", "Seconds spent in them.", {(): steps.seconds}),
        Gauge(
            "atoll_trouble", "1 while the service cannot work.", {(): float(bool(steps.trouble))}
        ),
    )
