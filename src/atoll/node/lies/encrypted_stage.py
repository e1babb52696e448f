"""Six sites in a folder, and a server that they believe: where :mod:`atoll.node.lies.of_ciphers` are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from atoll.core.errors import AtollError
from atoll.core.layout import Array
from atoll.job.summed import Subject, job_name, lanes_told, model_mark, work_mark
from atoll.node.lies.cast import FEDERATION, LENGTH, NOW, RUN, SITES, Cast, vectors_of
from atoll.node.orders import Order, Report
from atoll.node.site import Site
from atoll.node.sums.encrypting import KEY_STEPS, Encrypted
from atoll.privacy.he.contexts import PublicContext
from atoll.privacy.he.parameters import Parameters
from atoll.privacy.he.rounds import Included, cut, joined, key_lane
from atoll.privacy.he.sealed import Sealed, SealedSum
from atoll.privacy.secagg.codec import written
from atoll.privacy.secagg.terms import Lane, Occasion, Terms, model_digest, usual_threshold
from atoll.wire.frames import Allowed, decode, encode
from atoll.wire.messages import BlobRef, ResultBody, TaskBody

__all__ = ["LANES", "Ask", "EncryptedStage", "Lie", "Round", "honest"]

_ANY = Allowed(most_arrays=100, most_bytes=1 << 24)
LANES = (Lane("delta", LENGTH, 1000.0, 32, 1.0, "refuse"),)


@dataclass(frozen=True, eq=False)
class Ask:
    """What the server says to one site in one step.

    Args:
        kind: of the step.
        terms: that come with it.
        plan: likewise.
        arrays: likewise, beside the terms.
        about: what the round adds up.
        model: version of the model that comes with it.
        scale: how much the update is to count.
        name: how the task is called beyond what it is; a server may use a name again.
    """

    kind: str
    terms: Terms
    plan: BlobRef
    arrays: Mapping[str, Array] = field(default_factory=dict)
    about: Subject = "train"
    model: float = 0.0
    scale: float = 1.0
    name: str = ""


Lie = Callable[[str, Ask], Ask | None]
"""Gets a site's name and the honest message to it; gives the one that it is shown, None for none."""


def honest(name: str, ask: Ask) -> Ask:
    """The message as it is."""
    return ask


@dataclass(eq=False)
class Round:
    """What the server has of a round.

    Args:
        sent: each site's ciphertext, its hash and its tag.
        included: whose ciphertexts were to be in the sum.
        opening: what was sent to be opened, in honesty.
    """

    sent: dict[str, Mapping[str, Array]] = field(default_factory=dict)
    included: Included = field(default_factory=lambda: Included(()))
    opening: Mapping[str, Array] = field(default_factory=dict)

    def sealed(self, name: str, public: PublicContext) -> Sealed:
        """One site's ciphertext."""
        return cut(self.sent[name], LANES, public.parameters)


@dataclass(eq=False)
class EncryptedStage:
    """Six sites in a folder, and a server that they believe.

    Args:
        cast: the sites, and the server's good key.
        run: the run's name.

    Attributes:
        nodes: the sites' nodes.
        released: who opened a sum; a lie that is found out ends before that.
        opened: what they said that it is.
        refused: why sites gave up.
        plan: what each site is told of the run; its terms follow from this and the next two.
        scale: how much each site's update is to count.
        model: version of the model that each site starts from.
        kept: after which task each site's memory is the one to start from.
        at: the latest round.
        dealt: whether the first site has dealt the key.
        public: its public half, then.
    """

    cast: Cast
    run: str = RUN
    released: list[str] = field(default_factory=list)
    opened: dict[str, Array] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    scale: Callable[[str], float] = lambda name: 1.0
    model: Callable[[str], float] = lambda name: 0.0
    kept: Callable[[str], str] = lambda name: ""

    def __post_init__(self) -> None:
        plan = self.cast.plan(self.run)
        self.plan: Callable[[str], BlobRef] = lambda name: plan
        self.at, self.dealt = Round(), False
        self.sites: dict[str, Encrypted] = {}
        self.nodes: dict[str, Site] = {}
        for name in SITES:
            self.restart(name)

    def restart(self, name: str) -> None:
        """The node is started anew, with what its disk holds."""
        self.nodes[name] = self.cast.node(name)
        self.sites[name] = Encrypted(self.run, self.nodes[name], lambda: NOW)

    # What is said -------------------------------------------------------------------------------

    def terms(
        self, site: str, number: int = 0, about: Subject | str = "train", **changes: Any
    ) -> Terms:
        """An honest round's, or with ``about="key"`` the key's, as one site is told."""
        key = about == "key"
        digest = "" if key else model_mark(about, model_digest(vectors_of(self.model(site))))
        at = Occasion(FEDERATION, job_name(self.cast.hash, self.run, about), number, 0, digest)
        lanes = (key_lane(len(SITES)),) if key else LANES
        usual, rule = usual_threshold(len(SITES)), self.cast.rule
        bare = Ask("greet" if key else "train", cast(Any, None), self.plan(site))
        task = self._task(site, replace(bare, scale=1.0 if key else self.scale(site)), number)
        honest = Terms(
            at,
            self.cast.members,
            usual,
            lanes,
            NOW + 60,
            weight_rule=rule,
            work=work_mark(task),
        )
        return replace(honest, **changes)

    def _task(self, name: str, ask: Ask, number: int) -> TaskBody:
        about = "key" if ask.kind in KEY_STEPS else ask.about
        return TaskBody(
            id=f"{self.run}.{ask.kind}-{about}.{number}{ask.name}.{name}",
            run=self.run,
            kind=ask.kind,  # type: ignore[arg-type]  # checked by the schema
            number=number,
            client=name,
            plan=ask.plan,
            about=ask.about,
            version=0 if about == "key" else number,
            scale=ask.scale,
            kept="" if about == "key" else self.kept(name),
        )

    def task(self, name: str, ask: Ask) -> TaskBody:
        """A message to a site as its node gets it."""
        invitation = np.frombuffer(written(self.cast.invitation(ask.terms)), np.uint8)
        said = self.cast.file({"kind": ask.kind}, {"invitation": invitation, **ask.arrays})
        model = self.cast.file({"run": self.run}, vectors_of(ask.model))
        more = {} if ask.kind in KEY_STEPS else {"broadcast": model}
        return self._task(name, ask, ask.terms.occasion.round).model_copy(
            update={"said": said, **more}
        )

    def show(self, name: str, ask: Ask | None) -> Mapping[str, Array] | None:
        """Give a site a message as its node gets it; what it says, None where it says nothing."""
        if ask is None:
            return None
        body, site = self.task(name, ask), self.sites[name]
        try:
            held = site.held(body, self.cast.find)
            if held is None:
                self.work(name, body)
                held = site.held(body, self.cast.find)
        except AtollError as error:
            self.refused.setdefault(name, "; ".join(map(str, error.faults)) or error.message)
            return None
        if held is None:
            return None
        arrays = decode(self.nodes[name].spool.read(held), _ANY)[1]
        if ask.kind == "open":
            self.released.append(name)
            self.opened[name] = np.array(arrays["delta"])
        return arrays

    def work(self, name: str, body: TaskBody) -> None:
        """What the worker process does."""
        path = self.cast.folder / f"{body.id}.result"
        told = {"lanes": lanes_told(LANES)}
        done = ResultBody(task=body.id, status="done", answer=told).model_dump()
        path.write_bytes(encode(done, {"delta": self.integers(name, body.scale)}))
        order = SimpleNamespace(
            task=body, plan=str(self.cast.find(body.plan.blob)), result=str(path), keep=""
        )
        report = SimpleNamespace(kept=False, digest="")
        self.sites[name].keep(cast(Order, order), cast(Report, report))

    def integers(self, name: str, scale: float = 1.0) -> Array:
        """A site's update."""
        whole = np.arange(LENGTH) + 10 * SITES.index(name)
        found: Array = np.rint(whole * scale).astype(np.int32)
        return found

    # What is played -----------------------------------------------------------------------------

    def agree(self, lie: Lie = honest) -> None:
        """The steps of the key, every message to a site passing through ``lie``."""

        def ask(kind: str, name: str, arrays: Mapping[str, Array]) -> Mapping[str, Array] | None:
            said = Ask(kind, self.terms(name, about="key"), self.plan(name), arrays)
            return self.show(name, lie(name, said))

        said = [found for name in SITES if (found := ask("greet", name, {})) is not None]
        if len(said) < len(SITES):
            return
        greeted = {
            "channels": np.concatenate([one["channel"] for one in said]),
            "signatures": np.concatenate([one["signature"] for one in said]),
        }
        dealt = ask("deal", SITES[0], greeted)
        self.dealt = dealt is not None
        if dealt is None:
            for name in SITES[1:]:
                ask("take", name, greeted)
            return
        self.public = PublicContext(Parameters.exact(len(SITES)), dealt["public"].tobytes())
        parcel = {"sealed": dealt["sealed"], "wraps": dealt["wraps"], "dealt": dealt["signature"]}
        for name in SITES:
            ask("take", name, greeted | parcel)

    def round(self, lie: Lie = honest, number: int = 0) -> Round:
        """A round in which every message to a site passes through ``lie``; the sum is shown to all."""
        found = self.at = Round()

        def ask(kind: str, name: str, arrays: Mapping[str, Array]) -> Mapping[str, Array] | None:
            said = Ask(
                kind,
                self.terms(name, number),
                self.plan(name),
                arrays,
                model=self.model(name),
                scale=self.scale(name),
            )
            return self.show(name, lie(name, said))

        for name in SITES:
            if (arrays := ask("train", name, {})) is not None:
                found.sent[name] = arrays
        if not found.sent:
            return found
        entries = [(SITES.index(n) + 1, a["root"].tobytes()) for n, a in found.sent.items()]
        found.included = Included(tuple(entries))
        told = found.included.arrays()
        pledges = {n: said["signature"] for n in SITES if (said := ask("pledge", n, told))}
        total = SealedSum.of(self.public, [found.sealed(n, self.public) for n in found.sent])
        found.opening = {
            **told,
            "pledgers": np.array([SITES.index(n) + 1 for n in pledges], np.int64),
            "pledges": np.concatenate([*pledges.values(), np.zeros(0, np.uint8)]),
            "tags": np.concatenate([arrays["tag"] for arrays in found.sent.values()]),
            **joined(total),
        }
        for name in SITES:
            ask("open", name, found.opening)
        return found
