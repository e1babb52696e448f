"""Six sites in a folder, and a server that they believe: the stage of :mod:`atoll.node.lies.told`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from atoll.core.errors import AtollError
from atoll.job.buffered import Starts
from atoll.job.summed import Subject, lanes_told, work_mark
from atoll.node.lies.cast import FEDERATION, LENGTH, NOW, RUN, SITES, Cast, vectors_of
from atoll.node.orders import Order, Report
from atoll.node.settings import Settings
from atoll.node.sums.masking import Masked
from atoll.privacy.secagg import server as machine
from atoll.privacy.secagg.codec import read, written
from atoll.privacy.secagg.messages import (
    Commitment,
    Deal,
    Dealt,
    FromServer,
    FromSite,
    Invitation,
    Opening,
    Pledge,
    Release,
    Roster,
    Survivors,
    Vector,
)
from atoll.privacy.secagg.server import Server
from atoll.privacy.secagg.terms import Lane, Occasion, Terms, model_digest, usual_threshold
from atoll.wire.frames import Allowed, decode, encode
from atoll.wire.messages import BlobRef, ResultBody, TaskBody

__all__ = ["Lie", "Message", "Stage", "digest_of", "honest"]

_ANY = Allowed(most_arrays=100, most_bytes=1 << 24)
_KINDS: Mapping[type, str] = {
    Invitation: "commit",
    Roster: "share",
    Dealt: "train",
    Survivors: "pledge",
    Opening: "release",
}
_ANSWERS: Mapping[str, type[FromSite]] = {
    "commit": Commitment,
    "share": Deal,
    "train": Vector,
    "pledge": Pledge,
    "release": Release,
}
LANES = (Lane("delta", LENGTH, 1000.0, 32, 1.0, "refuse"),)
"""Of the job."""
Message = Invitation | FromServer
Lie = Callable[[int, Message], Message | None]
"""Gets a site's index and the honest message to it; gives the one that it is shown, None for none."""


def honest(index: int, message: Message) -> Message:
    """The message as it is."""
    return message


def digest_of(version: float) -> str:
    """Its digest."""
    return model_digest(vectors_of(version))


@dataclass(eq=False)
class Stage:
    """Six sites in a folder, and a server that they believe.

    Args:
        folder: an empty one.
        settings: of this site.
        tables: further tables of the job.

    Attributes:
        heard: what the server was shown, by site.
        released: who released shares.
        refused: why sites gave up.
        buffer: what each site is told of its buffer; None in a synchronous run.
        scale: how much each site's update is to count.
        kept: after which task each site's memory is the one to start from.
        still: whether all rounds start from the model of the first.
        plan: what each site is told of the run.
        nodes: the sites' nodes.
    """

    folder: Path
    settings: Settings
    tables: Mapping[str, Any] = field(default_factory=dict)
    heard: dict[str, list[FromSite]] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    buffer: Callable[[str], Starts] | None = None
    scale: Callable[[str], float] = lambda name: 1.0
    kept: Callable[[str], str] = lambda name: ""
    still: bool = False

    def __post_init__(self) -> None:
        self.cast = Cast(self.folder, self.settings, "masked", self.tables)
        self.members = self.cast.members
        self._attempt: dict[str, int] = {}
        plan = self.cast.plan()
        self.plan: Callable[[str], BlobRef] = lambda name: plan
        self.nodes = {name: self.cast.node(name) for name in SITES}
        self.sites = {name: Masked(RUN, self.nodes[name], lambda: NOW) for name in SITES}

    def terms(self, number: int = 0, site: str = SITES[0], **changes: Any) -> Terms:
        """An honest round's, as one site is told."""
        attempt, cast = changes.pop("attempt", 0), self.cast
        start = 0 if self.still else number
        model = digest_of(start) if self.buffer is None else self.buffer(SITES[0]).mark
        at = Occasion(FEDERATION, f"{cast.hash}/{RUN}", number, attempt, model)
        work = work_mark(self._bare(site, number), buffered=self.buffer is not None)
        usual, rule = usual_threshold(len(SITES)), cast.rule
        honest = Terms(at, self.members, usual, LANES, NOW + 60, weight_rule=rule, work=work)
        return replace(honest, **changes)

    def invitation(self, terms: Terms) -> Invitation:
        """``terms``, with the server's good signature."""
        return self.cast.invitation(terms)

    def _bare(self, name: str, number: int) -> TaskBody:
        """What a site is to do in a round, without model and message."""
        return TaskBody(
            id=RUN,
            run=RUN,
            kind="train",
            number=number,
            client=name,
            plan=self.plan(name),
            version=number,
            scale=self.scale(name),
        )

    def task(self, name: str, message: Message, number: int = 0, model: float = -1.0) -> TaskBody:
        """A message to a site as its node gets it, with the model of a version."""
        kind, at = _KINDS[type(message)], getattr(message, "terms", None)
        attempt = at.occasion.attempt if at else self._attempt.get(name, 0)
        self._attempt[name] = attempt
        shown = None if self.buffer is None else self.buffer(name)
        version = number if shown is None else shown.sites.get(name, 0)
        start = vectors_of(model if model >= 0 else 0 if self.still else version)
        told = {} if shown is None else {"starts": shown.to_plain()}
        said = np.frombuffer(written(message), np.uint8)
        return TaskBody(
            id=f"{RUN}.{kind}.{number}-{attempt}.{name}-{len(self.heard.get(name, ()))}",
            run=RUN,
            kind=kind,  # type: ignore[arg-type]  # checked by the schema
            number=number,
            client=name,
            plan=self.plan(name),
            broadcast=self.cast.file({"run": RUN}, start),
            said=self.cast.file({"kind": kind, **told}, {"said": said}),
            version=version,
            scale=self.scale(name),
            kept=self.kept(name),
        )

    def show(
        self, name: str, message: Message, number: int = 0, model: float = -1.0
    ) -> list[FromSite]:
        """Give a site a message as its node gets it; what it says."""
        body, site = self.task(name, message, number, model), self.sites[name]
        kind = body.kind
        try:
            if kind == "train":
                self.work(site, body)
            frame = site.answer(body, self.cast.find)
        except AtollError as error:
            self.refused[name] = error.message
            return []
        raw = frame.read_bytes() if isinstance(frame, Path) else frame
        arrays = decode(raw, _ANY)[1]
        word = read(_ANSWERS[kind], arrays["said"].tobytes())
        self.heard.setdefault(name, []).append(word)
        if isinstance(word, Release):
            self.released.append(name)
        return [word]

    def work(self, site: Masked, body: TaskBody) -> None:
        """What the worker process does."""
        path = self.folder / f"{body.client}-{body.number}.result"
        told = {"lanes": lanes_told(LANES)}
        done = ResultBody(task=body.id, status="done", answer=told).model_dump()
        path.write_bytes(encode(done, {"delta": np.arange(LENGTH, dtype=np.int32)}))
        order = SimpleNamespace(
            task=body, plan=str(self.cast.find(body.plan.blob)), result=str(path), keep=""
        )
        report = SimpleNamespace(kept=False, digest="")
        site.keep(cast(Order, order), cast(Report, report))

    def ask(self, name: str, kind: Subject, sites: Sequence[str] = SITES) -> None:
        """Ask a site for something in clear, in a run of a job that leaves masks to the default.

        Args:
            name: of the site.
            kind: what it is asked for.
            sites: whom the plan names.
        """
        spec = {**self.cast.spec, "privacy": {**self.cast.spec["privacy"], "aggregation": "auto"}}
        plan = {"run": RUN, "spec": spec, "sites": list(sites), "schema": None}
        body = TaskBody(
            id=f"{RUN}.{kind}.0.{name}",
            run=RUN,
            kind=kind,
            number=0,
            client=name,
            plan=self.cast.file(plan, {}),
            about=kind,
        )
        site = self.sites[name]
        try:
            if site.concerns(body, self.cast.find):
                site.answer(body, self.cast.find)
            self.released.append(name)
        except AtollError as error:
            self.refused[name] = error.message

    def play(self, lie: Lie = honest, number: int = 0, terms: Terms | None = None) -> Server:
        """Play a round in which every message to a site passes through ``lie``."""
        at = terms or self.terms(number)
        server, effects = Server.start(at, self.cast.sign)
        events = list[machine.Event]()
        while True:
            for effect in effects:
                if isinstance(effect, machine.Send):
                    shown = lie(at.index(effect.to), effect.message)
                    events += [] if shown is None else self.show(effect.to, shown, number)
                elif isinstance(effect, machine.Fold):
                    events.append(machine.Folded(effect.sender))
            if server.phase in ("done", "failed"):
                return server
            server, effects = machine.step(server, events.pop(0) if events else machine.Close())
