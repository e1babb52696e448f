"""The executor of masked rounds in one process: clients one after another, with real cryptography.

Each client's integers go through the protocol that a deployment runs (:mod:`atoll.privacy.secagg`), its two
state machines and all. A client whose work fails or is refused has shared keys by then: to the protocol it
is a dropout. Below the threshold no sum is opened.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from atoll.core.chain import Entropy, random_bytes
from atoll.core.contracts import Outcome, Task
from atoll.core.errors import JobError, UpdateRefused
from atoll.core.layout import Array
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory, Merged, Update
from atoll.privacy.secagg.inprocess import Guest, Identity, Round, play
from atoll.privacy.secagg.masks import Rooms
from atoll.privacy.secagg.messages import Dealt
from atoll.privacy.secagg.policy import Approved, Policy
from atoll.privacy.secagg.site import Site
from atoll.privacy.secagg.terms import Lane, Member, Occasion, Terms
from atoll.runtime.checkpoint import model_hash
from atoll.runtime.client import Parts, evaluate_client
from atoll.runtime.figures import integers_of, kinds_of, lanes_of, metrics_of
from atoll.runtime.groups import fold_group, groups
from atoll.runtime.pattern import lanes_at
from atoll.runtime.threads import Threads

__all__ = ["MaskedExecutor"]

_FEDERATION = "simulation"
_WORKERS = min(8, os.cpu_count() or 1)
"""Threads in which clients mask; integers add up to the same sum in any order."""


class MaskedExecutor:
    """Runs every task in this process and adds up under masks.

    Args:
        parts: what is fixed for the run; its chain quantises and masks.
        entropy: of keys and masks.

    Attributes:
        timings: seconds of the last :meth:`run`: ``train`` (all tasks together) and ``fold`` (the
            protocol).
        last: the last round of the protocol; None before the first.

    Raises:
        JobError: the chain does not mask.
        MissingExtra: ``cryptography`` is not installed.
    """

    def __init__(self, parts: Parts, entropy: Entropy = random_bytes) -> None:
        self._mask, self._quantise = parts.chain.find("mask"), parts.chain.find("quantise")
        if self._mask is None or self._quantise is None:
            raise JobError("this job does not mask", remedy="use the serial executor")
        self._parts, self._entropy = parts, entropy
        self._server = Identity(entropy(32))
        self._signers: dict[str, Identity] = {}
        self._threads, self._rooms = Threads(), Rooms()
        self.timings: Mapping[str, float] = {}
        self.last: Round | None = None

    def run(
        self,
        tasks: Sequence[Task],
        broadcasts: Mapping[int, Broadcast],
        memories: Mapping[ClientId, Memory],
    ) -> tuple[Aggregate, Sequence[Outcome], Mapping[ClientId, Memory]]:
        """See :class:`~atoll.core.contracts.Executor`."""
        inputs: dict[ClientId, Update] = {}
        outcomes: dict[ClientId, Outcome] = {}
        changed: dict[ClientId, Memory] = {}
        with self._threads.one():
            for group in groups(self._parts, tasks):
                taken = _Taken()
                broadcast = broadcasts[group[0].version]
                done = fold_group(self._parts, group, broadcast, memories, taken)
                came = iter(taken.updates)
                for outcome, kept in done:
                    outcomes[outcome.client] = outcome
                    if outcome.status != "contributed":
                        continue
                    inputs[outcome.client] = next(came)
                    if kept is not None:
                        changed[outcome.client] = kept
        began = time.perf_counter()
        aggregate, members, why = self._added(tasks, broadcasts, inputs)
        for client in inputs.keys() - set(members):
            changed.pop(client, None)
            outcomes[client] = replace(outcomes[client], status="dropped", examples=0, reason=why)
        seconds = time.perf_counter() - began
        self.timings = {"train": sum(o.seconds for o in outcomes.values()), "fold": seconds}
        return aggregate, [outcomes[task.client] for task in tasks], changed

    def _added(
        self,
        tasks: Sequence[Task],
        broadcasts: Mapping[int, Broadcast],
        inputs: Mapping[ClientId, Update],
    ) -> tuple[Aggregate, Sequence[ClientId], str]:
        """The sum, whose input is in it, and why there is none."""
        if why := self._mask.short(len(inputs), len(tasks)):
            return Aggregate({}, 0.0, 0.0, len(inputs), 0), (), why
        newest = max(task.version for task in tasks)
        broadcast = broadcasts[newest]
        named = sorted(tasks, key=lambda task: task.client)
        terms = self._terms(
            [task.client for task in named], lanes_at(self._parts, named[0], broadcast), broadcast
        )
        played = self.last = self._play(terms, {c: u.vectors for c, u in inputs.items()})
        if played.total is None:
            return Aggregate({}, 0.0, 0.0, 0, 0), (), f"masked aggregation: {played.failure}"
        shapes = {n: v.shape for n, v in next(iter(inputs.values())).vectors.items()}
        sums = {
            name: words.reshape(shapes[name])
            for name, words in sorted(played.total.integers().items())
        }
        count = len(played.members)
        total = Aggregate(sums, float(count), float(count), count, 0)
        return total, played.members, "dropped out of the protocol"

    def _play(self, terms: Terms, inputs: Mapping[ClientId, Mapping[str, Array]]) -> Round:
        guests = {name: self._guest(terms, name, inputs.get(name, {})) for name in _names(terms)}
        relay = _Absent(frozenset(inputs))
        return play(terms, self._server.sign, guests, relay, workers=_WORKERS)

    def _terms(
        self, names: Sequence[ClientId], lanes: tuple[Lane, ...], broadcast: Broadcast
    ) -> Terms:
        cohort = tuple(Member(name, self._signer(name).public_bytes) for name in names)
        occasion = Occasion(_FEDERATION, "", broadcast.version, 0, model_hash(broadcast.parameters))
        least = self._mask.least(len(names))
        return Terms(occasion, cohort, least, lanes, expiry=1.0, degree=self._mask.degree)

    def _guest(self, terms: Terms, name: ClientId, vectors: Mapping[str, Array]) -> Guest:
        pinned = {member.name: member.key for member in terms.cohort}
        policy = Policy(
            _FEDERATION, self._server.public_bytes, pinned, smallest=3, neighbours=terms.degree
        )
        at = terms.occasion
        return Guest(
            Site(name, self._signer(name), policy),
            Approved(at.job, at.model, terms.lanes),
            {lane: v.reshape(-1) for lane, v in vectors.items()},
            self._entropy(32),
            rounded=True,
            rooms=self._rooms,
        )

    def _signer(self, name: ClientId) -> Identity:
        if name not in self._signers:
            self._signers[name] = Identity(self._entropy(32))
        return self._signers[name]

    def evaluate(
        self,
        parameters: Broadcast,
        clients: Sequence[ClientId],
        memories: Mapping[ClientId, Memory],
    ) -> Merged:
        """Of all clients together, as integers under masks: nobody's own figures are seen."""
        with self._threads.one():
            found = {
                c: evaluate_client(self._parts, parameters.parameters, c, memories.get(c, {}))
                for c in clients
            }
        kinds = kinds_of(next(iter(found.values()), {}))
        if self._mask.short(len(found), len(found)) or not kinds:
            return Merged({}, ())
        inputs = {c: integers_of(metrics, kinds, self._entropy) for c, metrics in found.items()}
        played = self._play(self._terms(sorted(inputs), lanes_of(kinds), parameters), inputs)
        if played.total is None:
            return Merged({}, ())
        return Merged(metrics_of(kinds, played.total.integers()), tuple(played.members))

    def close(self) -> None:
        """Nothing to release."""


def _names(terms: Terms) -> list[ClientId]:
    """Who is in the cohort, in its order."""
    return [member.name for member in terms.cohort]


class _Taken:
    """Takes updates one by one where a fold would add them up."""

    def __init__(self) -> None:
        self.updates: list[Update] = []

    def add(self, update: Update, scale: float = 1.0) -> None:
        self.updates.append(update)

    def add_sum(self, group: Aggregate) -> None:
        raise UpdateRefused("masked aggregation takes single updates")


@dataclass(frozen=True)
class _Absent:
    """A relay over which those without an input hear nothing once they would have to mask it."""

    present: frozenset[ClientId]

    def __call__(self, name: str, message: Any) -> Any:
        return None if name not in self.present and isinstance(message, Dealt) else message
