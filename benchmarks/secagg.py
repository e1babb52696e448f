"""What masked aggregation costs: one round in one process, with real cryptography (workload S1).

Run ``python benchmarks/secagg.py [sites] [parameters] [dropouts]``; the default is S1, 16 sites and
1,000,000 parameters. Every row of the table is the median of interleaved repetitions:

Each row tells the time on the clock and the processor's time, which other work on the machine disturbs
less.

* ``round``: from the invitation to the decoded sum, all sites and the server one after the other;
* ``threads``: the same with the sites in two threads;
* ``plain``: the same inputs, rounded, hashed, checked and added in the same ring without any mask;
* ``site``: rounding and masking one site's input, as each site does by itself in a deployment;
* ``server``: folding all inputs and taking the last masks off, the part after training.

``--site SITES PARAMETERS`` measures one site's masking alone, for sizes that do not fit a whole round.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from atoll.privacy.secagg.inprocess import Guest, Relay, Round, play
from atoll.privacy.secagg.masks import MaskPlan, RingSum, Rooms, masked_chunks, place_in, root_of
from atoll.privacy.secagg.messages import Vector
from atoll.privacy.secagg.policy import Approved, Policy
from atoll.privacy.secagg.site import Site
from atoll.privacy.secagg.terms import Lane, Member, Occasion, Terms, usual_threshold


class Key:
    """A fresh Ed25519 identity."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public_bytes = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The signature of ``message``."""
        return self._key.sign(message)


class Cohort:
    """Sites with the same input, ready to play rounds."""

    def __init__(self, sites: int, size: int) -> None:
        self.server, self.keys = Key(), {f"site{i:04d}": Key() for i in range(sites)}
        self.lanes = (Lane("parameters", size), Lane("weight", 1))
        pinned = {name: key.public_bytes for name, key in self.keys.items()}
        self.policy = Policy("bench", self.server.public_bytes, pinned, smallest=3)
        self.terms = Terms(
            Occasion("bench", "job", 1, 0, "model"),
            tuple(Member(name, key.public_bytes) for name, key in self.keys.items()),
            usual_threshold(sites),
            self.lanes,
            expiry=1.0,
        )
        self.rooms = Rooms()  # as a simulation has them: they stay from round to round
        vector = np.random.default_rng(0).normal(0, 0.1, size).astype(np.float32)
        self.values = {"parameters": vector, "weight": np.ones(1)}
        self.own: dict[str, dict[str, Any]] = {}  # values of sites that have others

    def guests(self) -> dict[str, Guest]:
        """Fresh machines with fresh secrets."""
        approved = Approved("job", "model", self.lanes)
        return {
            name: Guest(
                Site(name, key, self.policy),
                approved,
                self.own.get(name, self.values),
                os.urandom(32),
                os.urandom(32),
                rooms=self.rooms,
            )
            for name, key in self.keys.items()
        }

    def round(
        self,
        gone: frozenset[str] = frozenset(),
        workers: int = 1,
        relay: Relay | None = None,
    ) -> Round:
        """One attempt, in which the sites in ``gone`` say nothing after sharing their secrets."""

        def passed(name: str, message: Any) -> Any:
            if relay is not None:
                message = relay(name, message)
            return None if name in gone and isinstance(message, Vector) else message

        result = play(self.terms, self.server.sign, self.guests(), passed, workers=workers)
        if result.total is None:
            raise SystemExit(f"the round failed: {result.failure}")
        result.total.totals()
        return result

    def plain(self) -> RingSum:
        """The same sum without masks."""
        total = RingSum(self.terms)
        for _ in self.keys:
            room = self.rooms.take(self.terms)
            bare = MaskPlan((), ())
            chunks = list(
                masked_chunks(self.terms, bare, self.values, os.urandom(32), place_in(room))
            )
            total.add(chunks, root_of(chunks))
            self.rooms.give(self.terms, room)
        total.totals()
        return total

    def masked(self) -> list[memoryview]:
        """One site's masked input: its own mask and one for every other site."""
        keys = tuple(os.urandom(32) for _ in self.keys)
        half = len(keys) // 2
        plan = MaskPlan(keys[:half], keys[half:])
        return list(masked_chunks(self.terms, plan, self.values, os.urandom(32)))


Seconds = tuple[float, float]


def timed(action: Callable[[], object]) -> Seconds:
    """Seconds of one call: on the clock, and of the processor."""
    start, busy = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - start, time.process_time() - busy


def middle(times: list[Seconds]) -> Seconds:
    """The medians."""
    return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


def rows(cohort: Cohort, dropouts: int, repeats: int = 7) -> dict[str, Seconds]:
    """Median seconds by row, repetitions interleaved."""
    gone = frozenset(sorted(cohort.keys)[:dropouts])
    chunks = cohort.masked()
    root = root_of(chunks)

    def server() -> None:
        total = RingSum(cohort.terms)
        for _ in cohort.keys:
            total.add(chunks, root)
        count = len(cohort.keys) - dropouts
        total.unmask(MaskPlan((os.urandom(32),) * (count * (1 + dropouts)), ()))

    actions: dict[str, Callable[[], object]] = {
        "round": lambda: cohort.round(gone),
        "threads": lambda: cohort.round(gone, workers=2),
        "plain": cohort.plain,
        "site": cohort.masked,
        "server": server,
    }
    taken: dict[str, list[Seconds]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            taken[name].append(timed(action))
    return {name: middle(times) for name, times in taken.items()}


def main(sites: int = 16, size: int = 1_000_000, dropouts: int = 0) -> None:
    """Print the table."""
    cohort = Cohort(sites, size)
    print(f"{sites} sites, {size:,} parameters, {dropouts} dropouts")
    for name, (clock, processor) in rows(cohort, dropouts).items():
        print(f"{name:8} {clock:8.3f} s {processor:8.3f} s of the processor")
    sent = sum(map(len, cohort.masked()))
    print(f"{'traffic':8} {sent / (4 * size):8.4f} x float32 a site")


def one_site(sites: int = 30, size: int = 10_000_000) -> None:
    """Print what masking costs one site."""
    cohort = Cohort(sites, size)
    clock, processor = middle([timed(cohort.masked) for _ in range(3)])
    print(f"masking at one of {sites} sites, {size:,} parameters: {clock:.3f} s", end=" ")
    print(f"({processor:.3f} s of the processor)")


if __name__ == "__main__":
    numbers = [int(text.replace(",", "")) for text in sys.argv[1:] if text != "--site"]
    (one_site if "--site" in sys.argv else main)(*numbers)
