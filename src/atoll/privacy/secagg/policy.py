"""What a site agrees to before it takes part, whatever the server says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atoll.core.errors import Fault
from atoll.privacy.secagg.keys import signed_by
from atoll.privacy.secagg.messages import Invitation
from atoll.privacy.secagg.terms import Lane, Terms

__all__ = ["BLAMES", "Approved", "Policy"]

BLAMES = "blames"
"""With this word a site begins when it gives up because of another: ``blames NAME: why``."""


@dataclass(frozen=True)
class Policy:
    """A site's standing rules for masked rounds.

    Args:
        federation: the one it belongs to.
        server: raw public key of the server.
        pinned: raw public key of each site, by name; not from the server alone.
        smallest: fewest sites in a cohort; 3 at least counts.
        share: the threshold is above this part of the cohort; one half at least counts.
        apart: sums on one model whose cohorts differ in fewer sites than this are refused.
        neighbours: fewest neighbours in a sparse graph.
    """

    federation: str
    server: bytes
    pinned: Mapping[str, bytes]
    smallest: int = 5
    share: float = 0.5
    apart: int = 3
    neighbours: int = 20

    def floor(self, sites: int) -> int:
        """The lowest threshold for a cohort of ``sites``.

        >>> Policy("f", b"", {}).floor(6)
        4
        """
        return int(sites * max(self.share, 0.5)) + 1


@dataclass(frozen=True)
class Approved:
    """What this site knows of the round from elsewhere: from the job it approved, and its own model.

    Args:
        job: the job's hash.
        model: hash of the global model as it arrived here.
        lanes: the vectors, with their bounds.
        weight_rule: of the job.
        work: what this site was told to do beside the model.
    """

    job: str
    model: str
    lanes: tuple[Lane, ...]
    weight_rule: str = ""
    work: str = ""

    def differs(self, terms: Terms) -> list[Fault]:
        """Where ``terms`` say something else."""
        pairs = {
            "job": (self.job, terms.occasion.job),
            "model": (self.model, terms.occasion.model),
            "lanes": (self.lanes, terms.lanes),
            "weight rule": (self.weight_rule, terms.weight_rule),
            "work": (self.work, terms.work),
        }
        return [
            Fault(name, f"is {theirs!r}, approved was {ours!r}")
            for name, (ours, theirs) in pairs.items()
            if ours != theirs
        ]


def objections(
    policy: Policy, approved: Approved, invitation: Invitation, name: str, now: float
) -> list[Fault]:
    """Everything for which the site called ``name`` refuses ``invitation``, at once."""
    terms = invitation.terms
    found = terms.faults()
    if found:  # nothing else has a meaning then
        return found
    if not signed_by(policy.server, invitation.signature, invitation.signed()):
        found.append(Fault("signature", "is not the server's"))
    found += approved.differs(terms)
    if terms.occasion.federation != policy.federation:
        found.append(Fault("federation", f"is {terms.occasion.federation!r}"))
    if now >= terms.expiry:
        found.append(Fault("expiry", f"was {now - terms.expiry:g} s ago"))
    if not terms.index(name):
        found.append(Fault("cohort", f"does not hold {name}"))
    if terms.sites < policy.smallest:
        found.append(Fault("cohort", f"has {terms.sites} sites", f"at least {policy.smallest}"))
    if terms.threshold < policy.floor(terms.sites):
        low = f"is {terms.threshold} of {terms.sites}"
        found.append(Fault("threshold", low, f"at least {policy.floor(terms.sites)}"))
    if terms.sparse(terms.sites) and terms.degree < policy.neighbours:
        found.append(Fault("degree", f"is {terms.degree}", f"at least {policy.neighbours}"))
    found += [
        Fault(f"cohort: {member.name}", "has another key than the pinned one")
        for member in terms.cohort
        if policy.pinned.get(member.name) != member.key
    ]
    return found
