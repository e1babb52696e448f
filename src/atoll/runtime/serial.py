"""The serial executor: one task after another, in order. It is the definition of correct (D7)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from atoll.aggregation.exact import Fold
from atoll.core.contracts import Outcome, Task
from atoll.core.metrics import Metrics
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory
from atoll.runtime.client import Parts, added_up, evaluate_client
from atoll.runtime.groups import fold_group, groups
from atoll.runtime.threads import Threads

__all__ = ["SerialExecutor"]


class SerialExecutor:
    """Runs every task in this process.

    Linear-algebra threads are held at one, so that sums inside a product are formed in the same
    order as in a worker process.

    Args:
        parts: what is fixed for the run.

    Attributes:
        timings: seconds of the last :meth:`run`: ``train`` (all tasks together) and ``fold`` (rounding
            the sums).
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.timings: Mapping[str, float] = {}
        self._threads = Threads()

    def run(
        self,
        tasks: Sequence[Task],
        broadcasts: Mapping[int, Broadcast],
        memories: Mapping[ClientId, Memory],
    ) -> tuple[Aggregate, Sequence[Outcome], Mapping[ClientId, Memory]]:
        """See :class:`~atoll.core.contracts.Executor`."""
        fold = Fold(len(tasks))
        outcomes: dict[ClientId, Outcome] = {}
        changed: dict[ClientId, Memory] = {}
        with self._threads.one():
            for group in groups(self._parts, tasks):
                broadcast = broadcasts[group[0].version]
                for outcome, kept in fold_group(self._parts, group, broadcast, memories, fold):
                    outcomes[outcome.client] = outcome
                    if kept is not None:
                        changed[outcome.client] = kept
        began = time.perf_counter()
        aggregate = added_up(self._parts, [fold])
        seconds = time.perf_counter() - began
        self.timings = {"train": sum(o.seconds for o in outcomes.values()), "fold": seconds}
        return aggregate, [outcomes[task.client] for task in tasks], changed

    def evaluate(
        self,
        parameters: Broadcast,
        clients: Sequence[ClientId],
        memories: Mapping[ClientId, Memory],
    ) -> Mapping[ClientId, Metrics]:
        """See :class:`~atoll.core.contracts.Executor`."""
        with self._threads.one():
            return {
                c: evaluate_client(self._parts, parameters.parameters, c, memories.get(c, {}))
                for c in clients
            }

    def close(self) -> None:
        """Nothing to release."""
