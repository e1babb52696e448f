"""Six sites in a folder, and a server that they believe: the stage on which :mod:`atoll.node.lies` are told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from atoll.core.errors import AtollError
from atoll.job.buffered import Starts
from atoll.job.load import parse_job
from atoll.job.package import spec_to_plain
from atoll.job.summed import Subject
from atoll.node.home import Home
from atoll.node.link import Link
from atoll.node.masking import Masked
from atoll.node.orders import Order, Report
from atoll.node.peers import Peers, Trust
from atoll.node.pledges import Pledges
from atoll.node.settings import Settings
from atoll.node.site import Site
from atoll.node.spool import Spool
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
from atoll.privacy.secagg.terms import (
    Lane,
    Member,
    Occasion,
    Terms,
    model_digest,
    rule_text,
    usual_threshold,
)
from atoll.wire.frames import Allowed, Blob, decode, encode
from atoll.wire.identity import Identity
from atoll.wire.messages import BlobRef, ResultBody, TaskBody

__all__ = ["NOW", "SITES", "Lie", "Message", "Stage", "digest_of", "honest", "vectors_of"]

SITES = tuple(f"site-{number}" for number in range(1, 7))
NOW = 1_700_000_000.0
_LENGTH = 40
_FEDERATION, _RUN = "rehearsal", "lies"
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
_JOB: dict[str, Any] = {
    "name": "lies",
    "data": {"source": "sites/*.csv", "target": "y"},
    "model": {"kind": "logistic"},
    "privacy": {"aggregation": "masked"},
}

Message = Invitation | FromServer
Lie = Callable[[int, Message], Message | None]
"""Gets a site's index and the honest message to it; gives the one that it is shown, None for none."""


def honest(index: int, message: Message) -> Message:
    """The message as it is."""
    return message


def vectors_of(version: float) -> dict[str, Any]:
    """The model of a version."""
    return {"parameters": np.full(_LENGTH, float(version), np.float32)}


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
    """

    folder: Path
    settings: Settings
    tables: Mapping[str, Any] = field(default_factory=dict)
    heard: dict[str, list[FromSite]] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    buffer: Callable[[str], Starts] | None = None
    scale: Callable[[str], float] = lambda name: 1.0

    def __post_init__(self) -> None:
        self._key = Identity.create(self.folder / "server.pem")
        self._attempt: dict[str, int] = {}
        keys = {name: Identity.create(self.folder / f"{name}.pem") for name in SITES}
        self.members = tuple(Member(name, key.public_bytes) for name, key in keys.items())
        job = parse_job({**_JOB, **self.tables})
        self.spec = spec_to_plain(job)
        self.rule = rule_text(self.spec["privacy"])
        self.job = f"{job.hash()}/{_RUN}"
        run = {"run": _RUN, "spec": self.spec, "sites": list(SITES), "schema": None}
        self.plan = self._file(run, {})
        self._books: dict[str, Pledges] = {}
        self.sites = {name: self._site(name, key) for name, key in keys.items()}

    def _site(self, name: str, key: Identity) -> Masked:
        home = Home(self.folder / name)
        home.make()
        peers = Peers(home.peers)
        peers.pin({m.name: hashlib.sha256(m.key).hexdigest() for m in self.members})
        self._books[name] = Pledges(home.pledges, key)
        trust = Trust(_FEDERATION, self._key.public_bytes, key, self._books[name], peers)
        link, cache = cast(Link, SimpleNamespace()), cast(Any, SimpleNamespace())
        spool = Spool(home.spool)
        site = Site(home, name, self.settings, link, spool, cache, lambda: 0.0, trust)
        return Masked(_RUN, site, lambda: NOW)

    def _file(self, body: Mapping[str, Any], arrays: Mapping[str, Any]) -> BlobRef:
        raw = encode(body, arrays)
        blob = Blob.of(raw)
        (self.folder / blob.sha256).write_bytes(raw)
        return BlobRef.of(blob)

    def _find(self, blob: Blob) -> Path:
        return self.folder / blob.sha256

    def terms(self, number: int = 0, **changes: Any) -> Terms:
        """An honest round's."""
        attempt = changes.pop("attempt", 0)
        model = digest_of(number) if self.buffer is None else self.buffer(SITES[0]).mark
        at = Occasion(_FEDERATION, self.job, number, attempt, model)
        lanes = (Lane("delta", _LENGTH, 1000.0, 32, 1.0, "refuse"),)
        usual = usual_threshold(len(SITES))
        honest = Terms(at, self.members, usual, lanes, NOW + 60, weight_rule=self.rule)
        return replace(honest, **changes)

    def invitation(self, terms: Terms) -> Invitation:
        """``terms``, with the server's good signature."""
        bare = Invitation(terms)
        return replace(bare, signature=self._key.sign(bare.signed()))

    def task(self, name: str, message: Message, number: int = 0, model: float = -1.0) -> TaskBody:
        """A message to a site as its node gets it, with the model of a version."""
        kind, at = _KINDS[type(message)], getattr(message, "terms", None)
        attempt = at.occasion.attempt if at else self._attempt.get(name, 0)
        self._attempt[name] = attempt
        shown = None if self.buffer is None else self.buffer(name)
        version = number if shown is None else shown.sites.get(name, 0)
        start = vectors_of(version if model < 0 else model)
        told = {} if shown is None else {"starts": shown.to_plain()}
        said = np.frombuffer(written(message), np.uint8)
        return TaskBody(
            id=f"{_RUN}.{kind}.{number}-{attempt}.{name}-{len(self.heard.get(name, ()))}",
            run=_RUN,
            kind=kind,  # type: ignore[arg-type]  # checked by the schema
            number=number,
            client=name,
            plan=self.plan,
            broadcast=self._file({"run": _RUN}, start),
            said=self._file({"kind": kind, **told}, {"said": said}),
            version=version,
            scale=self.scale(name),
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
            frame = site.answer(body, self._find)
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
        done = ResultBody(task=body.id, status="done").model_dump()
        path.write_bytes(encode(done, {"delta": np.arange(_LENGTH, dtype=np.int32)}))
        order = SimpleNamespace(
            task=body, plan=str(self._find(self.plan.blob)), result=str(path), keep=""
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
        spec = {**self.spec, "privacy": {**self.spec["privacy"], "aggregation": "auto"}}
        plan = {"run": _RUN, "spec": spec, "sites": list(sites), "schema": None}
        body = TaskBody(
            id=f"{_RUN}.{kind}.0.{name}",
            run=_RUN,
            kind=kind,
            number=0,
            client=name,
            plan=self._file(plan, {}),
            about=kind,
        )
        site = self.sites[name]
        try:
            if site.concerns(body, self._find):
                site.answer(body, self._find)
            self.released.append(name)
        except AtollError as error:
            self.refused[name] = error.message

    def play(self, lie: Lie = honest, number: int = 0, terms: Terms | None = None) -> Server:
        """Play a round in which every message to a site passes through ``lie``."""
        at = terms or self.terms(number)
        server, effects = Server.start(at, self._key.sign)
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
