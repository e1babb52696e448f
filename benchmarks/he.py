"""What encrypted aggregation costs beside plain and masked: bytes and seconds of one round.

Run ``python -m benchmarks.he [sites] [parameters]``; the default is 16 sites and 1,000,000 parameters. All
three add the same integers, in one process, and end in the same sums. Rows are medians of interleaved
repetitions:

* ``site``: what one site does with its integers: nothing, mask (keys of all peers, hashes), or encrypt;
* ``server``: adding all of them (for masked: and taking the masks off);
* ``open``: what a site does to read an encrypted sum;
* ``bytes``: what one site sends, over 4 bytes a parameter.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from atoll.aggregation.whole import WholeSum
from atoll.privacy.he.contexts import SecretContext, new_key
from atoll.privacy.he.opening import SharedKey
from atoll.privacy.he.parameters import Parameters
from atoll.privacy.he.sealed import SealedSum, seal
from atoll.privacy.he.whole import packed, unpacked
from atoll.privacy.secagg.masks import MaskPlan, RingSum, masked_chunks, root_of
from atoll.privacy.secagg.terms import Lane, Member, Occasion, Terms, usual_threshold


class Bench:
    """One round's input, three ways."""

    def __init__(self, sites: int, size: int) -> None:
        self.sites, self.size = sites, size
        levels = Lane("delta", size).levels(sites)
        self.lanes = (Lane("delta", size, float(levels), 32, 1.0, "refuse"),)
        draw = np.random.default_rng(0)
        self.values = {"delta": draw.integers(-levels, levels, size).astype(np.int32)}
        members = tuple(
            Member(f"site{i:04d}", bytes([i % 256, i // 256] * 16)) for i in range(sites)
        )
        occasion = Occasion("bench", "job", 1, 0, "model")
        self.terms = Terms(occasion, members, usual_threshold(sites), self.lanes, expiry=1.0)
        self.parameters = Parameters.exact(sites)
        secret = SecretContext(self.parameters, new_key(self.parameters))
        self.public, self.key = secret.public(), SharedKey(secret)
        self.chunks = self.masked()
        self.letters = [self.encrypted() for _ in range(sites)]  # the same input, other ciphertexts
        self.total = self.added()
        self.exact = {"delta": self.values["delta"].astype(np.int64) * sites}

    def plain(self) -> WholeSum:
        """The server's sum of integers in the clear."""
        total = WholeSum(self.size, "int32")
        for _ in range(self.sites):
            total.add(self.values["delta"])
        return total

    def masked(self) -> list[memoryview]:
        """One site's input under its own mask and one for each peer."""
        keys = tuple(os.urandom(32) for _ in range(self.sites))
        half = self.sites // 2
        chunks = list(
            masked_chunks(self.terms, MaskPlan(keys[:half], keys[half:]), self.values, None)
        )
        root_of(chunks)
        return chunks

    def unmasked(self) -> None:
        """The server's part of a masked round."""
        total, root = RingSum(self.terms), root_of(self.chunks)
        for _ in range(self.sites):
            total.add(self.chunks, root)
        total.unmask(MaskPlan((os.urandom(32),) * self.sites, ()))

    def encrypted(self) -> Any:
        """One site's ciphertexts."""
        return seal(self.public, packed(self.lanes, self.values, self.parameters))

    def added(self) -> Any:
        """The server's sum of ciphertexts."""
        return SealedSum.of(self.public, self.letters)

    def opened(self) -> None:
        """What a site does with the sum; it must be the exact one."""
        slots = self.key.joined(self.total, [self.key.part(self.total)])
        found = unpacked(self.lanes, slots, self.parameters, self.sites)
        if not np.array_equal(found["delta"], self.exact["delta"]):
            raise SystemExit("the encrypted sum is not exact")


def main(sites: int = 16, size: int = 1_000_000, repeats: int = 5) -> None:
    """Print the table."""
    bench = Bench(sites, size)
    actions: dict[str, Callable[[], object]] = {
        "plain server": bench.plain,
        "masked site": bench.masked,
        "masked server": bench.unmasked,
        "encrypted site": bench.encrypted,
        "encrypted server": bench.added,
        "encrypted open": bench.opened,
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            clock, busy = time.perf_counter(), time.process_time()
            action()
            taken[name].append((time.perf_counter() - clock, time.process_time() - busy))
    print(f"{sites} sites, {size:,} parameters, one thread, medians of {repeats}")
    print("| | seconds | of the processor |\n|---|---|---|")
    for name, times in taken.items():
        clock, busy = (statistics.median(t[k] for t in times) for k in (0, 1))
        print(f"| {name} | {clock:.3f} | {busy:.3f} |")
    plain = 4 * size
    print("| | bytes a site sends | over float32 |\n|---|---|---|")
    for name, sent in (
        ("plain", plain),
        ("masked", sum(map(len, bench.chunks))),
        ("encrypted", bench.letters[0].size),
    ):
        print(f"| {name} | {sent:,} | {sent / plain:.2f} |")
    print("the encrypted sum was exact each time")


if __name__ == "__main__":
    main(*(int(text.replace(",", "")) for text in sys.argv[1:]))
