"""Atoll's rounds in one process: plain, masked with real cryptography, or encrypted; no-op training.

A round counts from a model to the next: training, and all that clients and server do about it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

import numpy as np

from atoll.aggregation.exact import Fold
from atoll.core.values import Update
from atoll.privacy.secagg.codec import written
from atoll.privacy.secagg.fixed import averages, quantised, signed_values
from atoll.privacy.secagg.messages import (
    Commitment,
    Deal,
    Dealt,
    Invitation,
    Opening,
    Pledge,
    Release,
    Roster,
    Survivors,
    Vector,
)
from atoll.privacy.secagg.terms import Lane
from benchmarks.masked.work import Given, asked, finish, trained, wrong
from benchmarks.secagg import Cohort

WORKERS = min(8, os.cpu_count() or 1)
"""Threads of a masked round, as a simulation has them."""
STEP: Mapping[type, tuple[str, int]] = {
    Invitation: ("keys", 0),
    Commitment: ("keys", 1),
    Roster: ("shares", 0),
    Deal: ("shares", 1),
    Dealt: ("train", 0),
    Vector: ("train", 1),
    Survivors: ("pledge", 0),
    Pledge: ("pledge", 1),
    Opening: ("unmask", 0),
    Release: ("unmask", 1),
}
"""Where a message belongs, and whether it goes down or up."""

Model = np.ndarray[Any, Any]


class Rounds:
    """Rounds of one way; ``sizes`` has the bytes of the last one, all clients together."""

    def __init__(self, given: Given) -> None:
        self.given, self.sizes = given, dict[str, list[float]]()

    def plain(self, model: Model) -> Model:
        """The exact mean of the updates."""
        fold = Fold(self.given.clients)
        for client in range(self.given.clients):
            fold.add(Update({"delta": trained(model, client) - model}, 1.0, 1))
        self.sizes = {"train": [4.0 * self.given.values * self.given.clients] * 2}
        return _next(model, fold.aggregate().mean("delta"))

    def masked(self, model: Model) -> Model:
        """The mean of the updates, from their sum under masks."""
        cohort = self._cohort
        for client, name in enumerate(cohort.keys):
            delta = trained(model, client) - model
            cohort.own[name] = {"parameters": delta, "weight": np.ones(1)}
        relay = self._counted if self.given.sizes else None
        self.sizes = {"train": [4.0 * self.given.values * self.given.clients, 0.0]}
        total = cohort.round(workers=WORKERS, relay=relay).total
        if total is None:
            raise SystemExit("there is no sum")
        if self.given.sizes:
            self.sizes["train"][1] += sum(4 * lane.length for lane in cohort.lanes) * len(
                cohort.keys
            )
        return _next(model, averages(total.totals(), ("parameters",))["parameters"])

    def _counted(self, name: str, message: Any) -> Any:
        step, way = STEP[type(message)]
        self.sizes.setdefault(step, [0.0, 0.0])[way] += len(written(message))
        return message

    @property
    def _cohort(self) -> Cohort:
        if not hasattr(self, "_made"):
            self._made = Cohort(self.given.clients, self.given.values)
        return self._made

    def encrypted(self, model: Model) -> Model:
        """The mean of the updates, from a sum of ciphertexts (CKKS) that a client opens."""
        from atoll.privacy.he.contexts import SecretContext, new_key
        from atoll.privacy.he.opening import SharedKey
        from atoll.privacy.he.parameters import Parameters
        from atoll.privacy.he.sealed import SealedSum, seal
        from atoll.privacy.he.whole import packed, unpacked

        clients, size = self.given.clients, self.given.values
        if not hasattr(self, "_key"):
            self._parameters = Parameters.exact(clients)
            self._secret = SecretContext(self._parameters, new_key(self._parameters))
            self._key = SharedKey(self._secret)
        lane = Lane("delta", size)
        most = float(lane.levels(clients))
        whole = (Lane("delta", size, most, 32, 1.0, "refuse"),)
        public, letters = self._secret.public(), []
        for client in range(clients):
            words = {"delta": quantised(lane, clients, trained(model, client) - model, None)}
            letters.append(seal(public, packed(whole, words, self._parameters)))
        total = SealedSum.of(public, letters)
        slots = self._key.joined(total, [self._key.part(total)])
        found = unpacked(whole, slots, self._parameters, clients)["delta"]
        sent = float(letters[0].size * clients)
        # The model, and the sum of the last round, which only clients can open.
        self.sizes = {"train": [4.0 * size * clients, sent], "open": [sent, 0.0]}
        return _next(model, signed_values(lane, clients, clients, found) / clients)


def _next(model: Model, mean: Model) -> Model:
    return np.asarray(model + mean, np.float32)


def main() -> None:
    """Entry point."""
    given = asked(__doc__, ("plain", "masked", "encrypted"))
    rounds, seconds = Rounds(given), list[float]()
    step: Callable[[Model], Model] = getattr(rounds, given.way)
    model = np.zeros(given.values, np.float32)
    for _ in range(given.rounds):
        start = time.perf_counter()
        model = step(model)
        seconds.append(time.perf_counter() - start)
    each = {name: [size / given.clients for size in both] for name, both in rounds.sizes.items()}
    finish(seconds, wrong(model, given.clients, given.rounds), each if given.sizes else {})


if __name__ == "__main__":
    main()
