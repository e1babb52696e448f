"""What a masked round is, agreed on by everybody before anything is sent.

The *context* is one hash over all of it. It stands in every signature, key and sealed share, so two
sites that were told different things (another model, clip, cohort or threshold) can not work
together, and nothing of one round or attempt has any meaning in another.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from atoll.core.errors import Fault
from atoll.core.layout import Array
from atoll.privacy.secagg.canonical import digest, pack

__all__ = ["Lane", "Member", "Occasion", "Terms", "model_digest", "rule_text", "usual_threshold"]


@dataclass(frozen=True)
class Occasion:
    """Which round of what.

    Args:
        federation: its name.
        job: the job's hash.
        round: number of the round.
        attempt: which try of the round, from 0; every try has fresh keys.
        model: hash of the global model that the round starts from.
    """

    federation: str
    job: str
    round: int
    attempt: int
    model: str

    @property
    def name(self) -> tuple[str, str, int]:
        """What all attempts share: a site's share release happens once for this."""
        return self.federation, self.job, self.round


@dataclass(frozen=True)
class Member:
    """One site of the cohort: its name and its raw Ed25519 public key (32 bytes)."""

    name: str
    key: bytes


@dataclass(frozen=True)
class Lane:
    """One named vector inside the masked input.

    Args:
        name: of the vector.
        length: number of values.
        bound: each site's values lie in ``[-bound, bound]``.
        bits: of the ring in which they are added, 32 or 64.
        step: the grid, for values that are whole multiples of it (counts: 1); None takes the finest
            grid that cannot overflow, with stochastic rounding.
        excess: what happens to a value beyond the bound: ``clip`` it, or ``refuse`` the input.
    """

    name: str
    length: int
    bound: float = 1.0
    bits: Literal[32, 64] = 32
    step: float | None = None
    excess: Literal["clip", "refuse"] = "clip"

    def levels(self, sites: int) -> int:
        """Largest integer one site may send: ``sites`` of them stay below half the ring.

        >>> Lane("w", 1).levels(100) == (2**31 - 1) // 100
        True
        """
        if self.step is not None:
            return round(self.bound / self.step)
        limit = self.limit(sites)
        return limit >> (spare := max(0, limit.bit_length() - 53)) << spare  # exact in a float64

    def limit(self, sites: int) -> int:
        """Largest integer for which a sum over ``sites`` cannot wrap around."""
        return int((2 ** (self.bits - 1) - 1) // sites)

    def scale(self, sites: int) -> float:
        """Integers per unit of value."""
        return 1.0 / self.step if self.step is not None else self.levels(sites) / self.bound

    def faults(self, sites: int) -> list[str]:
        """What is wrong with the lane in a cohort of ``sites``."""
        found = []
        if self.length < 1:
            found.append(f"has {self.length} values")
        if self.bits not in (32, 64):
            found.append(f"has a ring of {self.bits} bits")
        positive = [x for x in (self.bound, self.step) if x is not None]
        if not all(math.isfinite(x) and x > 0 for x in positive):
            found.append(f"has bound {self.bound} and step {self.step}, both must be above 0")
        elif not found and not 0 < self.levels(sites) <= self.limit(sites):
            found.append(f"may overflow: {self.levels(sites)} levels x {sites} sites")
        if self.excess not in ("clip", "refuse"):
            found.append(f"has excess={self.excess!r}")
        return found


def model_digest(vectors: Mapping[str, Array]) -> str:
    """The hash of what a round starts from, in hex: names, kinds, shapes and values.

    It is the same in every run and attempt that starts from the same values.
    """
    whole = hashlib.sha256()
    for name in sorted(vectors):
        vector = np.ascontiguousarray(vectors[name])
        whole.update(pack("vector", name, vector.dtype.str, tuple(vector.shape), vector.nbytes))
        whole.update(vector.reshape(-1).view(np.uint8).data)
    return whole.hexdigest()


def rule_text(section: Mapping[str, Any]) -> str:
    """What a job says of its privacy, in one form, for :attr:`Terms.weight_rule`.

    >>> rule_text({"b": 1, "a": 0.5})
    '{"a":0.5,"b":1}'
    """
    return json.dumps(section, sort_keys=True, separators=(",", ":"))


def usual_threshold(sites: int) -> int:
    """The threshold for ``sites``, two thirds and one.

    >>> usual_threshold(5), usual_threshold(30)
    (4, 21)
    """
    return 2 * sites // 3 + 1


@dataclass(frozen=True)
class Terms:
    """All that a masked round is; see :meth:`faults` before using terms from elsewhere.

    Args:
        occasion: which round of what.
        cohort: the invited, sorted by name. A site's index is its position, counted from 1.
        threshold: how many sites must stay, and how many shares open a secret.
        lanes: the vectors of the input, in order.
        expiry: moment (Unix seconds) after which nobody takes part any more.
        degree: neighbours of each site, an even number; 0 for everybody.
        weight_rule: how weights are made, as declared by the job; bound, not read.
        work: what all sites are told to do beside the model, hashed; bound, not read.
    """

    occasion: Occasion
    cohort: tuple[Member, ...]
    threshold: int
    lanes: tuple[Lane, ...]
    expiry: float
    degree: int = 0
    weight_rule: str = ""
    work: str = ""

    @cached_property
    def context(self) -> bytes:
        """The hash that binds it all, 32 bytes."""
        at = self.occasion
        return digest(
            "atoll secagg 1",
            (at.federation, at.job, at.round, at.attempt, at.model),
            tuple((member.name, member.key) for member in self.cohort),
            (self.threshold, self.degree, float(self.expiry)),
            tuple(
                (
                    lane.name,
                    lane.length,
                    float(lane.bound),
                    lane.bits,
                    "" if lane.step is None else float(lane.step),
                    lane.excess,
                )
                for lane in self.lanes
            ),
            (self.weight_rule, self.work),
        )

    @property
    def sites(self) -> int:
        """Size of the cohort."""
        return len(self.cohort)

    def index(self, name: str) -> int:
        """The index of the site called ``name``; 0 if it is not in the cohort."""
        return next((i for i, m in enumerate(self.cohort, 1) if m.name == name), 0)

    def member(self, index: int) -> Member | None:
        """The site with this index, if there is one."""
        return self.cohort[index - 1] if 1 <= index <= len(self.cohort) else None

    def opening(self, present: int) -> int:
        """How many shares open a secret, when ``present`` sites share among themselves."""
        return usual_threshold(self.degree + 1) if self.sparse(present) else self.threshold

    def sparse(self, present: int) -> bool:
        """Whether ``present`` sites are more than one site's neighbourhood."""
        return self.degree > 0 and self.degree + 1 < present

    def faults(self) -> list[Fault]:
        """Everything that no round may be, whatever a site's policy says."""
        found = []
        names = [member.name for member in self.cohort]
        if names != sorted(names):
            found.append(Fault("cohort", "is not sorted by name"))
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice or len({member.key for member in self.cohort}) < len(names):
            found.append(Fault("cohort", f"holds a site or a key twice {twice}"))
        if self.sites < 3:
            found.append(Fault("cohort", f"has {self.sites} sites", "masking needs 3 at least"))
        if not self.sites // 2 < self.threshold <= self.sites:
            found.append(Fault("threshold", f"is {self.threshold} for {self.sites} sites"))
        if self.degree % 2 or self.degree < 0:
            found.append(Fault("degree", f"is {self.degree}", "give an even number, or 0"))
        if not self.lanes or len({lane.name for lane in self.lanes}) < len(self.lanes):
            found.append(Fault("lanes", "are missing, or two have one name"))
        if not math.isfinite(self.expiry):
            found.append(Fault("expiry", f"is {self.expiry}"))
        for lane in self.lanes if self.sites else ():
            found += [Fault(f"lane {lane.name}", text) for text in lane.faults(self.sites)]
        return found
