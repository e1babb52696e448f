"""The executor of encrypted rounds in one process: real keys, real ciphertexts.

The sites' half seals each update under the public key and opens the sum; the server's half adds up, with a
type of key that cannot open anything. What a key that all sites share protects against, and what not, says
the ``label`` of :class:`~atoll.privacy.he.opening.SharedKey`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from atoll.core.chain import COHORT
from atoll.core.contracts import Outcome, Task
from atoll.core.errors import JobError, UpdateRefused
from atoll.core.metrics import Metrics
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory, Update
from atoll.privacy.he.contexts import PublicContext, SecretContext, new_key
from atoll.privacy.he.opening import Opening, SharedKey
from atoll.privacy.he.parameters import Parameters
from atoll.privacy.he.sealed import Sealed, SealedSum, seal
from atoll.privacy.he.whole import packed, unpacked
from atoll.privacy.secagg.terms import Lane
from atoll.runtime.client import Parts, fold_task
from atoll.runtime.serial import SerialExecutor
from atoll.runtime.threads import Threads

__all__ = ["EncryptedExecutor"]


class EncryptedExecutor:
    """Runs every task in this process and adds up ciphertexts.

    Args:
        parts: what is fixed for the run; its chain quantises and encrypts.

    Attributes:
        timings: seconds of the last :meth:`run`: ``train`` (all tasks, encryption included) and
            ``fold`` (adding and opening).
        sent: bytes of one site's ciphertexts in the last round.

    Raises:
        JobError: the chain does not encrypt.
        MissingExtra: TenSEAL is not installed.
    """

    def __init__(self, parts: Parts) -> None:
        self._quantise = parts.chain.find("quantise")
        if self._quantise is None or parts.chain.find("encrypt") is None:
            raise JobError("this job does not encrypt", remedy="use the serial executor")
        self._parts = parts
        self._parameters = Parameters.exact(max(2, parts.chain.cohort))
        secret = SecretContext(self._parameters, new_key(self._parameters))
        self._opening: Opening = SharedKey(secret)  # at the sites
        self._public = secret.public()  # at the server
        self._evaluator = SerialExecutor(parts)
        self._threads = Threads()
        self.timings: Mapping[str, float] = {}
        self.sent = 0

    def run(
        self,
        tasks: Sequence[Task],
        broadcasts: Mapping[int, Broadcast],
        memories: Mapping[ClientId, Memory],
    ) -> tuple[Aggregate, Sequence[Outcome], Mapping[ClientId, Memory]]:
        """See :class:`~atoll.core.contracts.Executor`."""
        began = time.perf_counter()
        outcomes, changed = list[Outcome](), dict[ClientId, Memory]()
        letters = list[Sealed]()
        lanes: tuple[Lane, ...] = ()
        shapes: Mapping[str, tuple[int, ...]] = {}
        with self._threads.one():
            for task in tasks:
                broadcast = broadcasts[task.version]
                lanes = self._quantise.integer_lanes(int(broadcast.vectors[COHORT][0]))
                site = _SealingSite(self._public, lanes)
                memory = memories.get(task.client, {})
                outcome, kept = fold_task(self._parts, task, broadcast, memory, site)
                outcomes.append(outcome)
                if outcome.status == "contributed":
                    letters.append(site.letter)
                    shapes = site.shapes
                    if kept is not None:
                        changed[task.client] = kept
        trained = time.perf_counter()
        aggregate = self._opened(letters, lanes, shapes)
        self.sent = letters[0].size if letters else 0
        self.timings = {"train": trained - began, "fold": time.perf_counter() - trained}
        return aggregate, outcomes, changed

    def _opened(
        self,
        letters: Sequence[Sealed],
        lanes: Sequence[Lane],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> Aggregate:
        if not letters:
            return Aggregate({}, 0.0, 0.0, 0, 0)
        total = SealedSum.of(self._public, letters)  # all the server does
        parts = [self._opening.part(total) for _ in range(self._opening.needed)]
        slots = self._opening.joined(total, parts)
        found = unpacked(lanes, slots, self._parameters, len(letters))
        sums = {name: words.reshape(shapes[name]) for name, words in sorted(found.items())}
        count = float(len(letters))
        return Aggregate(sums, count, count, len(letters), 0)

    def evaluate(
        self,
        parameters: Broadcast,
        clients: Sequence[ClientId],
        memories: Mapping[ClientId, Memory],
    ) -> Mapping[ClientId, Metrics]:
        """See :class:`~atoll.core.contracts.Executor`."""
        return self._evaluator.evaluate(parameters, clients, memories)

    def close(self) -> None:
        """Nothing to release."""


class _SealingSite:
    """Takes the one update of its site and seals it where a fold would add it up."""

    def __init__(self, public: PublicContext, lanes: Sequence[Lane]) -> None:
        self._public, self._lanes = public, lanes
        self.letter = Sealed(0, ())
        self.shapes: Mapping[str, tuple[int, ...]] = {}

    def add(self, update: Update, scale: float = 1.0) -> None:
        """Seal ``update``.

        Raises:
            UpdateRefused: it is not what the lanes declare.
        """
        if missing := {lane.name for lane in self._lanes} ^ set(update.vectors):
            raise UpdateRefused(f"vector {sorted(missing)[0]!r} is missing or not declared")
        self.shapes = {name: vector.shape for name, vector in update.vectors.items()}
        slots = packed(self._lanes, update.vectors, self._public.parameters)
        self.letter = seal(self._public, slots)

    def add_sum(self, group: Aggregate) -> None:
        """Refuse: a sum formed before is no single update."""
        raise UpdateRefused("encrypted aggregation takes single updates")
