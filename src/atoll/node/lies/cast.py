"""Six sites in a folder, with the rules of this site, and the key of a server that they believe.

What :mod:`atoll.node.lies.stage` and :mod:`atoll.node.lies.encrypted_stage` play with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from atoll.job.load import parse_job
from atoll.job.package import spec_to_plain
from atoll.node.home import Home
from atoll.node.link import Link
from atoll.node.peers import Peers, Trust
from atoll.node.pledges import Pledges
from atoll.node.settings import Settings
from atoll.node.site import Site
from atoll.node.spool import Spool
from atoll.privacy.secagg.messages import Invitation
from atoll.privacy.secagg.terms import Member, Terms, rule_text
from atoll.wire.frames import Blob, encode
from atoll.wire.identity import Identity
from atoll.wire.messages import BlobRef

__all__ = ["FEDERATION", "LENGTH", "NOW", "RUN", "SITES", "Cast", "remember", "vectors_of"]

SITES = tuple(f"site-{number}" for number in range(1, 7))
NOW = 1_700_000_000.0
LENGTH = 40
"""Values of the model."""
FEDERATION, RUN = "rehearsal", "lies"
_JOB: dict[str, Any] = {
    "name": "lies",
    "data": {"source": "sites/*.csv", "target": "y"},
    "model": {"kind": "logistic"},
}


def vectors_of(version: float) -> dict[str, Any]:
    """The model of a version."""
    return {"parameters": np.full(LENGTH, float(version), np.float32)}


def remember(site: Site, task: str, value: float, run: str = RUN) -> None:
    """Have a site keep a memory of its own after a task."""
    own = {"control": np.full(LENGTH, value, np.float32)}
    frame, memory = encode({"task": task}), encode({"task": task}, own)
    site.spool.finish(run, task, frame, memory=memory, trained=True)


@dataclass(eq=False)
class Cast:
    """Six sites and their server.

    Args:
        folder: an empty one.
        settings: of this site.
        aggregation: of the job.
        tables: further tables of it.

    Attributes:
        members: the sites with their keys.
        spec: the job, in plain form.
        rule: what it says of privacy.
        hash: of it.
    """

    folder: Path
    settings: Settings
    aggregation: str
    tables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._key = Identity.create(self.folder / "server.pem")
        self._keys = {name: Identity.create(self.folder / f"{name}.pem") for name in SITES}
        self.members = tuple(Member(name, key.public_bytes) for name, key in self._keys.items())
        job = parse_job({**_JOB, "privacy": {"aggregation": self.aggregation}, **self.tables})
        self.spec, self.hash = spec_to_plain(job), job.hash()
        self.rule = rule_text(self.spec["privacy"])

    def node(self, name: str) -> Site:
        """A site as its node finds it on the disk when it starts."""
        home, key = Home(self.folder / name), self._keys[name]
        home.make()
        peers = Peers(home.peers)
        peers.pin({m.name: hashlib.sha256(m.key).hexdigest() for m in self.members})
        trust = Trust(FEDERATION, self._key.public_bytes, key, Pledges(home.pledges, key), peers)
        link, cache = cast(Link, SimpleNamespace()), cast(Any, SimpleNamespace())
        spool = Spool(home.spool)
        return Site(home, name, self.settings, link, spool, cache, lambda: 0.0, trust)

    def plan(self, run: str = RUN, **changes: Any) -> BlobRef:
        """The plan of a run, as a blob that :meth:`find` finds."""
        told = {"run": run, "spec": self.spec, "sites": list(SITES), "schema": None}
        return self.file({**told, **changes}, {})

    def file(self, body: Mapping[str, Any], arrays: Mapping[str, Any]) -> BlobRef:
        """A frame as a blob."""
        raw = encode(body, arrays)
        blob = Blob.of(raw)
        (self.folder / blob.sha256).write_bytes(raw)
        return BlobRef.of(blob)

    def find(self, blob: Blob) -> Path:
        """Where a blob lies."""
        return self.folder / blob.sha256

    def sign(self, raw: bytes) -> bytes:
        """The server's good signature."""
        return self._key.sign(raw)

    def invitation(self, terms: Terms) -> Invitation:
        """``terms``, signed by the server."""
        bare = Invitation(terms)
        return replace(bare, signature=self.sign(bare.signed()))
