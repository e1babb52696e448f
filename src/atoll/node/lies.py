"""A server that lies to this node's code: fourteen lies, and what comes of each.

Six sites are made in a folder, with keys of their own and the rules of this site's ``node.toml``. Each is the
code that a node runs: tasks and answers are frames, the book of rounds is on the disk. The server holds the
key that all sites believe and shows each of them what it likes. No site may release a share, or two sums, or
answer in clear what it adds up under masks only.

:data:`LIES` names them; :func:`told` tells one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from atoll.core.errors import AtollError
from atoll.job.load import parse_job
from atoll.job.package import spec_to_plain
from atoll.job.summed import SUBJECTS, Subject
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
from atoll.privacy.secagg.keys import Pair
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

__all__ = ["LIES", "Told", "told"]

_SITES = tuple(f"site-{number}" for number in range(1, 7))
_ALL = tuple(range(1, len(_SITES) + 1))
_NOW = 1_700_000_000.0
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


@dataclass(frozen=True)
class Told:
    """What came of a lie.

    Args:
        lie: its name.
        released: sites that released shares when they should not have, or would answer in clear.
        refused: what each site said to it, by name.
    """

    lie: str
    released: tuple[str, ...]
    refused: Mapping[str, str]

    @property
    def withstood(self) -> bool:
        """Whether nothing was released and every site gave up."""
        return not self.released and len(self.refused) == len(_SITES)


def _honest(index: int, message: Message) -> Message:
    return message


@dataclass(eq=False)
class _Stage:
    """Six sites in a folder, and a server that they believe.

    Args:
        folder: an empty one.
        settings: of this site.

    Attributes:
        heard: what the server was shown, by site.
        released: who released shares.
        refused: why sites gave up.
    """

    folder: Path
    settings: Settings
    heard: dict[str, list[FromSite]] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._key = Identity.create(self.folder / "server.pem")
        self._attempt: dict[str, int] = {}
        keys = {name: Identity.create(self.folder / f"{name}.pem") for name in _SITES}
        self.members = tuple(Member(name, key.public_bytes) for name, key in keys.items())
        self.spec = spec_to_plain(parse_job(_JOB))
        self.rule = rule_text(self.spec["privacy"])
        self.job = f"{parse_job(_JOB).hash()}/{_RUN}"
        run = {"run": _RUN, "spec": self.spec, "sites": list(_SITES), "schema": None}
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
        return Masked(_RUN, site, lambda: _NOW)

    def _file(self, body: Mapping[str, Any], arrays: Mapping[str, Any]) -> BlobRef:
        raw = encode(body, arrays)
        blob = Blob.of(raw)
        (self.folder / blob.sha256).write_bytes(raw)
        return BlobRef.of(blob)

    def _find(self, blob: Blob) -> Path:
        return self.folder / blob.sha256

    def terms(self, number: int = 0, **changes: Any) -> Terms:
        """An honest round's."""
        model = {"parameters": np.full(_LENGTH, float(number), np.float32)}
        attempt = changes.pop("attempt", 0)
        at = Occasion(_FEDERATION, self.job, number, attempt, model_digest(model))
        lanes = (Lane("delta", _LENGTH, 1000.0, 32, 1.0, "refuse"),)
        usual = usual_threshold(len(_SITES))
        honest = Terms(at, self.members, usual, lanes, _NOW + 60, weight_rule=self.rule)
        return replace(honest, **changes)

    def invitation(self, terms: Terms) -> Invitation:
        """``terms``, with the server's good signature."""
        bare = Invitation(terms)
        return replace(bare, signature=self._key.sign(bare.signed()))

    def show(
        self, name: str, message: Message, number: int = 0, model: float = -1.0
    ) -> list[FromSite]:
        """Give a site a message as its node gets it; what it says."""
        kind, at = _KINDS[type(message)], getattr(message, "terms", None)
        attempt = at.occasion.attempt if at else self._attempt.get(name, 0)
        self._attempt[name] = attempt
        value = float(number) if model < 0 else model
        start = {"parameters": np.full(_LENGTH, value, np.float32)}
        said = np.frombuffer(written(message), np.uint8)
        body = TaskBody(
            id=f"{_RUN}.{kind}.{number}-{attempt}.{name}-{len(self.heard.get(name, ()))}",
            run=_RUN,
            kind=kind,  # type: ignore[arg-type]  # checked by the schema
            number=number,
            client=name,
            plan=self.plan,
            broadcast=self._file({"run": _RUN}, start),
            said=self._file({"kind": kind}, {"said": said}),
        )
        site = self.sites[name]
        try:
            if kind == "train":
                self._work(site, body)
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

    def _work(self, site: Masked, body: TaskBody) -> None:
        """What the worker process does."""
        path = self.folder / f"{body.client}-{body.number}.result"
        done = ResultBody(task=body.id, status="done").model_dump()
        path.write_bytes(encode(done, {"delta": np.arange(_LENGTH, dtype=np.int32)}))
        order = SimpleNamespace(
            task=body, plan=str(self._find(self.plan.blob)), result=str(path), keep=""
        )
        report = SimpleNamespace(kept=False, digest="")
        site.keep(cast(Order, order), cast(Report, report))

    def ask(self, name: str, kind: Subject, sites: Sequence[str] = _SITES) -> None:
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

    def play(self, lie: Lie = _honest, number: int = 0, terms: Terms | None = None) -> Server:
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


# The lies -------------------------------------------------------------------------------------------


def _both_lists(stage: _Stage) -> None:
    """A site is alive when pledges are made and dead when shares are asked for."""

    def lie(index: int, message: Message) -> Message:
        return replace(message, members=_ALL[:5]) if isinstance(message, Opening) else message

    stage.play(lie)


def _split_survivors(stage: _Stage) -> None:
    """Two sets, each shown to some; then everybody's pledges are shown to everybody."""

    def mine(index: int) -> tuple[int, ...]:
        return (1, 2, 3, 4, 5) if index < 4 else (1, 2, 3, 4, 6)

    def lie(index: int, message: Message) -> Message | None:
        if isinstance(message, Survivors):
            return Survivors(mine(index)) if index in mine(index) else None
        return message

    stage.play(lie)
    said = [w for words in stage.heard.values() for w in words if isinstance(w, Pledge)]
    for index, name in enumerate(_SITES, 1):
        pledges = tuple(p for p in said if p.sender in mine(index))
        stage.show(name, Opening(mine(index), pledges))


def _repeated_site(stage: _Stage) -> None:
    """One site is counted twice, to reach the threshold."""
    twice = Survivors((1, *_ALL))
    stage.play(lambda i, m: twice if isinstance(m, Survivors) else m)


def _own_death(stage: _Stage) -> None:
    """Each site is told that its own input did not arrive."""

    def lie(index: int, message: Message) -> Message:
        others = tuple(i for i in _ALL if i != index)
        return Survivors(others) if isinstance(message, Survivors) else message

    stage.play(lie)


def _swapped_key(stage: _Stage) -> None:
    """The server puts itself between one site and the others."""

    def lie(index: int, message: Message) -> Message:
        if not isinstance(message, Roster):
            return message
        first, *rest = message.commitments
        return Roster((replace(first, mask=Pair(b"m" * 32).public), *rest))

    stage.play(lie)


def _invited(stage: _Stage, terms: Terms) -> None:
    for name in _SITES:
        stage.show(name, stage.invitation(terms), terms.occasion.round)


def _small_threshold(stage: _Stage) -> None:
    """Fewer sites shall be enough than the job says."""
    _invited(stage, stage.terms(threshold=4))


def _stale_terms(stage: _Stage) -> None:
    """Yesterday's invitation, with the server's good signature."""
    _invited(stage, stage.terms(expiry=_NOW - 1))


def _replayed_request(stage: _Stage) -> None:
    """The request for shares of another round, signed by everybody at that time."""
    recorded = list[Opening]()

    def record(index: int, message: Message) -> Message:
        recorded.extend([message] if isinstance(message, Opening) else [])
        return message

    stage.play(record)
    stage.released.clear()
    stage.play(lambda i, m: recorded[0] if isinstance(m, Opening) else m, number=1)


def _another_model(stage: _Stage) -> None:
    """One site starts from another model than the terms say to the others."""
    last = _SITES[-1]
    told = stage.terms()
    other = model_digest({"parameters": np.full(_LENGTH, 9.0, np.float32)})
    theirs = replace(told, occasion=replace(told.occasion, model=other))
    early = stage.show(last, stage.invitation(theirs), model=9.0)

    def lie(index: int, message: Message) -> Message | None:
        if index == len(_SITES):
            return None
        if isinstance(message, Roster):
            return Roster((*message.commitments, *cast(list[Commitment], early)))
        return message

    stage.play(lie)
    four = [cast(Commitment, stage.heard[name][0]) for name in _SITES[:-1]]
    stage.show(last, Roster((*four, *cast(list[Commitment], early))))


def _cohort_of_two(stage: _Stage) -> None:
    """One victim and one other."""
    terms = stage.terms()
    _invited(stage, replace(terms, cohort=terms.cohort[:2], threshold=2))


def _changed_bound(stage: _Stage) -> None:
    """A range so wide that one site's input fills the ring."""
    terms = stage.terms()
    _invited(stage, replace(terms, lanes=(replace(terms.lanes[0], bound=2.0**31 - 1),)))


def _second_unmask(stage: _Stage) -> None:
    """After a good round: another set in the same attempt, and another attempt."""
    stage.play()
    stage.released.clear()
    for name in _SITES:
        stage.show(name, Survivors(_ALL[:5]))
        stage.show(name, Opening(_ALL[:5], ()))
    stage.refused.clear()
    _invited(stage, stage.terms(attempt=1))


def _in_clear(stage: _Stage) -> None:
    """The protocol is left out: sites are asked for their updates and figures as they are."""
    for name in _SITES:
        for kind in SUBJECTS:
            stage.ask(name, kind)


def _fewer_sites(stage: _Stage) -> None:
    """A run that was masked goes on as one of four sites, which masks would hide little in."""
    for name in _SITES:
        stage.ask(name, "train")
    stage.refused.clear()
    for name in _SITES:
        for kind in SUBJECTS:
            stage.ask(name, kind, _SITES[:4])


LIES: Mapping[str, Callable[[_Stage], None]] = {
    "both lists": _both_lists,
    "split survivors": _split_survivors,
    "repeated site": _repeated_site,
    "own death": _own_death,
    "swapped key": _swapped_key,
    "small threshold": _small_threshold,
    "stale terms": _stale_terms,
    "replayed request": _replayed_request,
    "another model": _another_model,
    "cohort of two": _cohort_of_two,
    "changed bound": _changed_bound,
    "second unmask": _second_unmask,
    "in clear": _in_clear,
    "fewer sites": _fewer_sites,
}
"""What a server may try."""


def told(name: str, folder: Path, settings: Settings | None = None) -> Told:
    """Tell a lie to six sites with the rules of this one.

    Args:
        name: one of :data:`LIES`.
        folder: an empty one.
        settings: of this site.
    """
    stage = _Stage(folder, settings or Settings())
    LIES[name](stage)
    return Told(name, tuple(stage.released), dict(stage.refused))
