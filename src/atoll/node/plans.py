"""A run's plan as the node's own process reads it: the job, who takes part, and whether that takes masks.

The worker reads the same file for itself. Here it decides what may leave the site in clear: a node settles
``aggregation = "auto"`` from the job and the list of sites, and does not ask the server what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from atoll.core.errors import WireError
from atoll.job.deployed import settled_of
from atoll.job.package import spec_from_plain
from atoll.job.schema import JobSpec
from atoll.job.settling import FEWEST, Settled
from atoll.wire.frames import Allowed, open_frame
from atoll.wire.messages import SignedBody, read_body

__all__ = ["Plan", "read_plan", "sites_in"]

_ANY = Allowed(most_arrays=10_000, most_bytes=1 << 46)
_MOST_SITES = 100_000


@dataclass(frozen=True, eq=False)
class Plan:
    """What the node must know of a run.

    Args:
        spec: the job.
        privacy: its section on privacy, as it came.
        by: who submitted it, as the server says.
        sites: who takes part, as the server says.
        signed: the researcher's signature, unchecked; None where there is none.
    """

    spec: JobSpec
    privacy: Mapping[str, Any]
    by: str
    sites: tuple[str, ...]
    signed: SignedBody | None = None

    @cached_property
    def job(self) -> str:
        """The job's hash."""
        return self.spec.hash()

    @cached_property
    def settled(self) -> Settled:
        """Whether updates are masked, and why."""
        return settled_of(self.spec, len(self.sites) or FEWEST)

    @property
    def auto(self) -> bool:
        """Whether the job leaves that open."""
        return self.spec.privacy.aggregation == "auto"


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        AtollError: it holds no job.
        WireError: its list of sites is none.
    """
    body, _ = open_frame(path, _ANY)
    raw = body.get("spec") or {}
    spec = spec_from_plain(raw)
    by, signed = str(body.get("by", ""))[:200], body.get("signed")
    return Plan(
        spec,
        raw.get("privacy") or {},
        by,
        sites_in(body),
        read_body(SignedBody, signed) if signed else None,
    )


def sites_in(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The sites of a run, from its plan; a plan that names none is taken for one of many.

    Raises:
        WireError: they are no list of names.
    """
    raw = body.get("sites", [])
    named = isinstance(raw, list) and len(raw) <= _MOST_SITES
    if not named or not all(isinstance(name, str) for name in raw):
        raise WireError("a plan's sites are no list of names", remedy="update node or server")
    return tuple(sorted(set(raw)))
