"""After a storm: the server is put back from a backup, and started; what must not be done then.

A copy of what the store knows of its starts is made at some moment of the storm, and put back when all is over.
Its server, started once or several times, must ask nothing of a site that saw a later start than the copy
knows, and must tell its operator; of a site that did not it may ask as ever. It is not looked at what becomes
of runs: those of the copy are lost.
"""

from __future__ import annotations

import shutil
from random import Random
from typing import TYPE_CHECKING, Any

from storm.checks import Checks

from atoll.server.epochs import PUT_BACK
from atoll.server.store.memory import MemoryDatabase

if TYPE_CHECKING:
    from storm.network import Request
    from storm.servers import Server
    from storm.world import World

__all__ = ["after", "before"]

SHARE = 0.15
"""Of all seeds, those whose server is put back."""
LISTENING = 120.0
"""Virtual seconds in which every site asks."""


class _Lost(Checks):
    """What is looked at in place of all else.

    Args:
        world: whose server was put back.
        sites: those that saw a start which is lost.
    """

    def __init__(self, world: World, sites: set[str]) -> None:
        super().__init__(world)
        self._sites = sites

    def watch(self, server: Server) -> None:
        """See what a server offers."""
        poll = server.service.poll

        def polled(site: str, have: Any) -> Any:
            found = poll(site, have)
            lost = site in self._sites and bool(found.tasks or found.gone)
            self.ensure(not lost, "G5", f"{site} is told news of a server that has lost some")
            return found

        server.service.poll = polled

    def handled(
        self, server: Server, request: Request, raw: bytes | None, error: Any, before: str
    ) -> None:
        """A request was answered."""
        delivers = request.path.startswith("/v1/results/") and request.site in self._sites
        taken = delivers and raw is not None
        self.ensure(not taken, "G5", f"{request.site} has an answer taken that may be a lost run's")

    def written(self, server: Server, name: str) -> None:
        """Not looked at."""

    def started(self, server: Server, epoch: int) -> None:
        """Not looked at."""

    def refused(self, server: Server) -> None:
        """Not looked at."""

    def fell(self, server: Server) -> None:
        """Not looked at."""

    def worked(self, node: Any, task: str) -> None:
        """Not looked at."""

    def about_to(self, server: Server, request: Request) -> str:
        """Not looked at."""
        return ""

    def acknowledged(self, node: Any, receipt: Any) -> None:
        """Not looked at."""

    def told(self, node: Any, path: str, error: BaseException) -> None:
        """Not looked at."""

    def step(self) -> None:
        """Not looked at."""

    def history(self) -> None:
        """Who has said so."""
        said = {e.site for e in self.world.database.events if e.kind == PUT_BACK}
        self.ensure(said == self._sites, "G5", f"{sorted(self._sites)} saw more, {said} say so")


def before(world: World, seed: int) -> Random | None:
    """Have the copy made, where this seed's server is going to be put back."""
    random = Random(f"put back {seed}")
    if random.random() >= SHARE:
        return None
    world.kernel.at(random.uniform(0.5, world.weather.calm), lambda: _copy(world))
    return random


def _copy(world: World) -> None:
    database = world.database
    world.backup = MemoryDatabase(lease=database.lease, starts=dict(database.starts))


def after(world: World, random: Random) -> None:
    """Put the copy back, start it, and see who is asked for what."""
    if random.random() < 0.5:  # one more start that the copy does not know
        _end_servers(world)
        _until_up(world)
        world.kernel.run(lambda: False, world.kernel.now + LISTENING)
    if world.checks.violations:
        return
    _end_servers(world)
    copy, members = world.backup, dict(world.database.members)
    copy.members, known = members, copy.lease.epoch
    nodes = [n for n in world.nodes.values() if n.agent and n.process and not n.process.dead]
    sites = {n.name for n in nodes if n.agent._fence.epoch > known}
    world.count("server put back from a backup")
    world.database, world.checks = copy, _Lost(world, sites)
    shutil.rmtree(world.folder / "server", ignore_errors=True)
    for _ in range(random.randint(0, 6)):
        _until_up(world)
        _end_servers(world)
    _until_up(world)
    for name in world.specs:
        world._submit(name)
    world.kernel.run(lambda: bool(world.checks.violations), world.kernel.now + LISTENING)
    if not world.checks.violations:
        world.checks.history()


def _end_servers(world: World) -> None:
    for server in world.servers:
        if not server.process.dead:
            world.die(server.process, False)
    world._after()


def _until_up(world: World) -> None:
    world.kernel.run(lambda: any(s.up for s in world.servers), world.kernel.now + 60.0)
