"""A few clients trained one after the other, their changes added up where they arise.

What is done with a trained model beside training it (it is copied, the start is subtracted, it is
looked through for values that are not finite and added exactly) takes a large model as long as some of
its steps. Where an algorithm wants no more than the sum of a group's changes, and a client takes few
steps, the changes are added up in the model's own memory and only their sum goes that way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from atoll.core.contracts import Lane, Together
from atoll.core.errors import JobConflict
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalWork
from atoll.core.seeds import Seed
from atoll.models.batches import plan
from atoll.models.torch.fit import Walk, alone
from atoll.models.torch.flat import Bench, finite

__all__ = ["add_up", "clients_to_a_sum"]

_GROUP = 5
"""Clients to a sum: more save little, and who is free has less to take over."""
_SUMS = 16
"""Sums of a round at least: small rounds are for many workers too."""
_LARGE = 50_000
"""Values of a model from which on it pays."""
_FEW = 32
"""Steps of a client up to which it pays."""


def clients_to_a_sum(layout: Layout, work: LocalWork, rows: int, clients: int | None = None) -> int:
    """How many clients share a sum; 1 where that saves nothing to speak of.

    Args:
        layout: of the model.
        work: the local work.
        rows: most rows of a client.
        clients: in the round; None for very many.
    """
    if layout.size < _LARGE or rows < 1 or layout.shared.stop < layout.size:
        return 1
    if plan(rows, work).steps > _FEW:
        return 1
    return _GROUP if clients is None else max(1, min(_GROUP, clients // _SUMS))


def add_up(
    bench: Bench, parameters: Array, lanes: Sequence[Lane], walk: Callable[[Lane], Walk]
) -> Together:
    """Train every lane from ``parameters`` and add up the changes, in the order of the lanes.

    Args:
        bench: the module on flat buffers.
        parameters: where all start, ``(layout.size,)``.
        lanes: the clients.
        walk: trains what the bench holds on a lane's rows.

    Raises:
        JobConflict: the sum is not finite; whose fault it is shows where they are trained one by one.
    """
    start = bench.arranged(parameters, slice(0, len(parameters)))
    total, steps, losses = torch.empty_like(bench.flat), list[int](), list[float]()
    with alone(Seed(0)), torch.no_grad():
        for number, lane in enumerate(lanes):
            torch.default_generator.manual_seed(lane.seed.integer())
            bench.load(parameters)
            done = walk(lane)
            bench.collect()
            change = bench.flat.sub_(start)
            if number:
                total.add_(change, alpha=lane.weight)
            else:
                torch.mul(change, lane.weight, out=total)
            steps.append(len(done.rates))
            losses.append(done.losses / steps[-1] if steps[-1] else float("nan"))
    if not finite(total):
        raise JobConflict("the sum of the changes is not finite")
    return Together(bench.handed(total), steps, losses)
