"""Many clients' models as the rows of one matrix, trained side by side.

Every lane of a stack holds one client: its parameters, its optimiser's slots, its own batches. A step
moves all lanes at once (``torch.func.vmap`` over the module); a lane whose client is done takes the next
one, as in a server's batch queue, and at the end the stack shrinks, so that clients of unequal length
waste nothing.

A batch shorter than the longest one is filled up with repeats of its first row, which count 0. Everything
that differs from step to step (rows, their counts, rates) lies in tables on the device, so a step reads
nothing from the host.

On a CUDA device transfers are pinned and the step is captured as a CUDA graph. Only the CPU path has been
tested.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from atoll.core.contracts import Lane
from atoll.core.errors import LayoutError
from atoll.core.layout import Array, Layout
from atoll.core.local import LocalRule, Optimizer
from atoll.models.batches import batches, learning_rate, plan
from atoll.models.torch.flat import restored, tensor_over
from atoll.models.torch.moves import MOVES, Numbers

__all__ = ["ROW_LOSSES", "Client", "Kind", "Stack", "Trained"]

_ALIGN = 16
"""Lanes start at multiples of 64 bytes: matrix kernels read aligned rows faster."""


def _aligned(output: Tensor, target: Tensor) -> Tensor:
    if output.numel() != target.numel():
        raise LayoutError(
            f"the model gives {tuple(output.shape)} for targets of {tuple(target.shape)}",
            remedy="give it one output per target, or use loss cross_entropy",
        )
    return output.reshape(target.shape)


def _entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, reduction="none")


def _bce(output: Tensor, target: Tensor) -> Tensor:
    z = _aligned(output, target)
    return functional.binary_cross_entropy_with_logits(z, target.to(z.dtype), reduction="none")


def _mse(output: Tensor, target: Tensor) -> Tensor:
    z = _aligned(output, target)
    return functional.mse_loss(z, target.to(z.dtype), reduction="none")


def _l1(output: Tensor, target: Tensor) -> Tensor:
    z = _aligned(output, target)
    return functional.l1_loss(z, target.to(z.dtype), reduction="none")


ROW_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": _entropy,
    "nll_sum": _entropy,
    "bce": _bce,
    "mse": _mse,
    "l1": _l1,
}
"""The losses of :data:`atoll.models.torch.losses.LOSSES` before they are averaged (summed for ``nll_sum``)."""


@dataclass(frozen=True)
class Kind:
    """What the clients of one stack have in common.

    Args:
        optimizer: the local optimiser.
        clip_norm: L2 bound on each step's gradient; 0 for none.
        mu: the local rule's proximal coefficient.
        shifted: whether the local rule has a shift.
        features: shape of one row and its dtype.
        targets: shape of one target and its dtype.
    """

    optimizer: Optimizer
    clip_norm: float
    mu: float
    shifted: bool
    features: tuple[tuple[int, ...], torch.dtype]
    targets: tuple[tuple[int, ...], torch.dtype]

    @classmethod
    def of(cls, lane: Lane, x: Tensor, y: Tensor) -> Kind:
        """The kind of a client with these rows."""
        work, rule = lane.work, lane.rule
        return cls(
            work.optimizer,
            work.clip_norm,
            rule.mu,
            rule.shift is not None,
            (tuple(x.shape[1:]), x.dtype),
            (tuple(y.shape[1:]), y.dtype),
        )


@dataclass(frozen=True, eq=False)
class Client:
    """One client, ready to be put into a lane.

    Args:
        parameters: where it starts, ``(d,)``.
        rule: its local rule.
        x, y: its rows, in the dtypes of its :class:`Kind`.
        order: row numbers of each step, ``(steps, size)``; short batches repeat their first row.
        counts: rows that count in each step, ``(steps,)``.
        rates: learning rate of each step, ``(steps,)``.
    """

    parameters: Array
    rule: LocalRule
    x: Tensor
    y: Tensor
    order: Array
    counts: Array
    rates: Array

    @classmethod
    def of(cls, parameters: Array, lane: Lane, x: Tensor, y: Tensor, round: int) -> Client:
        """Cut a client's rows into the batches that it would see alone."""
        cut = plan(len(x), lane.work)
        order = np.zeros((cut.steps, cut.size), np.int64)
        counts, rates = np.zeros(cut.steps, np.int64), np.zeros(cut.steps)
        for step, (epoch, index) in enumerate(batches(len(x), lane.work, lane.seed)):
            order[step] = index[0]
            order[step, : len(index)] = index
            counts[step] = len(index)
            rates[step] = learning_rate(lane.work, round=round, epoch=epoch)
        return cls(parameters, lane.rule, x, y, order, counts, rates)


@dataclass(frozen=True, eq=False)
class Trained:
    """What became of one client: its vector, ``(d,)``, and its mean loss over the steps."""

    parameters: Array
    loss: float


class Stack:
    """Lanes of one kind on one device.

    Args:
        module: the module; it is put in training mode and on the device.
        layout: its layout.
        loss: a name of :data:`ROW_LOSSES`.
        kind: what all clients have in common.
        device: where to compute.

    ``gradient`` is that of the last step, ``(lanes, trained values)``; plain SGD does without it.
    """

    def __init__(
        self, module: nn.Module, layout: Layout, loss: str, kind: Kind, device: torch.device
    ) -> None:
        self.layout, self.kind, self.device = layout, kind, device
        self._module = module.to(device).train()
        self._rows, self._summed = ROW_LOSSES[loss], loss == "nll_sum"
        self._dtype: torch.dtype = getattr(torch, layout.dtype)
        o = kind.optimizer
        self._plain = o.name == "sgd" and not (o.momentum or o.weight_decay)
        self._plain = self._plain and not (kind.clip_norm or kind.mu or kind.shifted)
        self._losses = vmap(self._loss, in_dims=0, randomness="error")
        self._shape = (0, 0, 0, 0)

    def _loss(
        self, leaves: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor, w: Tensor
    ) -> Tensor:
        """One lane's loss of a batch; ``w`` ``(size,)`` says what each row counts."""
        output = functional_call(self._module, {**leaves, **fixed}, (x,))
        rows = self._rows(output, y)
        if rows.dim() > 1:  # several targets a row
            rows = rows.flatten(1)
            rows = rows.sum(1) if self._summed else rows.mean(1)
        return (rows * w).sum()

    def train(self, clients: Sequence[Client], width: int) -> list[Trained]:
        """Train all clients, ``width`` at a time, in their order."""
        with torch.no_grad(), _exact(self.device):
            self._reserve(clients, min(width, len(clients)))
            return self._queue(deque(enumerate(clients)), len(clients))

    def _queue(self, waiting: deque[tuple[int, Client]], count: int) -> list[Trained]:
        done: dict[int, Trained] = {}
        here = list[tuple[int, Client]]()
        left = list[int]()

        def enter(lane: int) -> None:
            number, client = waiting.popleft()
            here[lane : lane + 1] = [(number, client)]
            left[lane : lane + 1] = [len(client.rates)]
            self._load(lane, client)

        while waiting and len(here) < self._shape[0]:
            enter(len(here))
        while here:
            steps = min(left)
            for _ in range(steps):
                self._step(len(here))
            left[:] = [n - steps for n in left]
            for lane in reversed(range(len(here))):
                if left[lane]:
                    continue
                number, client = here[lane]
                done[number] = self._unload(lane, len(client.rates))
                if waiting:
                    enter(lane)
                else:  # the last lane moves up
                    self._copy(len(here) - 1, lane)
                    here[lane], left[lane] = here[-1], left[-1]
                    here.pop()
                    left.pop()
        return [done[number] for number in range(count)]

    def _reserve(self, clients: Sequence[Client], width: int) -> None:
        """Make the buffers, unless those of the last group serve.

        The batch size must be this group's own: on one that other groups had grown, results would
        depend on who came before.
        """
        size = max(c.order.shape[1] for c in clients)
        rows, steps = max(len(c.x) for c in clients), max(len(c.rates) for c in clients)
        held = self._shape
        if held[:2] == (width, size) and held[2] >= rows and held[3] >= steps:
            return
        self._shape = (width, size, rows, max(steps, 1))
        self._graph: Any = None
        self._views: dict[int, _Views] = {}
        self._allocate(*self._shape)

    def _allocate(self, width: int, size: int, rows: int, steps: int) -> None:
        layout, kind = self.layout, self.kind
        trained = layout.trainable.stop - layout.trainable.start
        pulled = layout.shared_trainable.stop - layout.shared_trainable.start

        def zeros(*shape: int, dtype: torch.dtype = self._dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        pitch = -(-layout.size // _ALIGN) * _ALIGN
        self._flat = zeros(width, pitch)[:, : layout.size]
        self._weights = self._flat[:, layout.trainable]
        self.gradient = zeros(width, trained)
        self._slots = [zeros(width, trained) for _ in range(MOVES[kind.optimizer.name][1])]
        self._anchor = zeros(width, pulled) if kind.mu else None
        self._shift = zeros(width, pulled) if kind.shifted else None
        self._total = zeros(width, dtype=torch.float64)
        # the tables: lane i's step t is row i * steps + t
        self._order = zeros(width, steps, size, dtype=torch.int64)
        self._counts = zeros(width, steps, size)
        self._numbers = zeros(width, steps, 4)
        self._at = torch.arange(width, device=self.device) * steps
        self._x = zeros(width, rows, *kind.features[0], dtype=kind.features[1])
        self._y = zeros(width, rows, *kind.targets[0], dtype=kind.targets[1])

    def _load(self, lane: int, client: Client) -> None:
        """Put a client into a lane."""
        _, _, rows, steps = self._shape
        n, size = client.order.shape
        self._put(self._flat[lane], tensor_over(client.parameters))
        for _, view, dtype in self._fixed(lane + 1):
            if dtype != self._dtype:  # a mean of whole numbers need not be one
                view[lane].copy_(restored(view[lane], dtype))
        for slot in self._slots:
            slot[lane].zero_()
        part = self.layout.shared_trainable
        if self._anchor is not None and client.rule.anchor is not None:
            self._put(self._anchor[lane], tensor_over(client.rule.anchor[part]))
        if self._shift is not None and client.rule.shift is not None:
            self._put(self._shift[lane], tensor_over(client.rule.shift[part]))
        self._total[lane] = 0.0
        self._put(self._x[lane, : len(client.x)], client.x)
        self._put(self._y[lane, : len(client.y)], client.y)
        order = np.repeat(client.order[:, :1], self._order.shape[2], axis=1)
        order[:, :size] = client.order
        counts = (np.arange(order.shape[1]) < client.counts[:, None]).astype(np.float64)
        if not self._summed:
            counts /= client.counts[:, None]
        shares = 1.0 / client.counts if self._summed else np.ones(n)
        numbers = Numbers.table(self.kind.optimizer, client.rates, shares)
        self._put(self._order[lane, :n], torch.from_numpy(order + lane * rows))
        self._put(self._counts[lane, :n], torch.from_numpy(counts).to(self._dtype))
        self._put(self._numbers[lane, :n], torch.from_numpy(numbers).to(self._dtype))
        self._at[lane] = lane * steps

    def _put(self, into: Tensor, values: Tensor) -> None:
        if self.device.type == "cuda":  # the allocator keeps pinned memory until the copy is done
            into.copy_(values.pin_memory(), non_blocking=True)
        else:
            into.copy_(values)

    def _unload(self, lane: int, steps: int) -> Trained:
        vector = self._flat[lane].cpu().numpy().copy()
        return Trained(vector, self._total[lane].item() / steps if steps else float("nan"))

    def _copy(self, source: int, lane: int) -> None:
        """Move a client to another lane."""
        if source == lane:
            return
        _, _, rows, steps = self._shape
        pulls = [t for t in (self._anchor, self._shift) if t is not None]
        tables = [self._counts, self._numbers, self._x, self._y]
        for t in (self._flat, self._total, *self._slots, *pulls, *tables):
            t[lane].copy_(t[source])
        self._order[lane].copy_(self._order[source] + (lane - source) * rows)
        self._at[lane] = self._at[source] + (lane - source) * steps

    def _step(self, lanes: int) -> None:
        if self.device.type != "cuda" or lanes < self._shape[0]:
            self._advance(lanes)
            return
        if self._graph is None:
            self._graph = self._capture(lanes)
        if self._graph:
            self._graph.replay()
        else:
            self._advance(lanes)

    def _advance(self, lanes: int) -> None:
        """One step of the first ``lanes`` lanes."""
        at, size = self._at[:lanes], self._shape[1]
        order = self._order.flatten(0, 1).index_select(0, at).flatten()
        x, y = (
            t.flatten(0, 1).index_select(0, order).view(lanes, size, *t.shape[2:])
            for t in (self._x, self._y)
        )
        counts = self._counts.flatten(0, 1).index_select(0, at)
        numbers = Numbers(self._numbers.flatten(0, 1).index_select(0, at))
        losses, slopes = self._differentiate(lanes, x, y, counts)
        self._total[:lanes] += losses * numbers.share[:, 0]
        at += 1
        views = self._views[lanes]
        if self._plain:  # no need of the gradient as one matrix
            for leaf, slope in zip(views.leaves.values(), slopes, strict=True):
                if slope is not None:
                    rate = numbers.rate.view(lanes, *[1] * (slope.dim() - 1))
                    leaf.detach().addcmul_(slope, rate)
            return
        for into, slope in zip(views.slopes, slopes, strict=True):
            if slope is None:
                into.zero_()
            else:
                into.copy_(slope)
        gradient, weights = self.gradient[:lanes], self._weights[:lanes]
        if self.kind.clip_norm:
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient.mul_((self.kind.clip_norm / (norm + 1e-6)).clamp_(max=1.0))
        self._correct(lanes)
        move = MOVES[self.kind.optimizer.name][0]
        move(self.kind.optimizer, weights, gradient, [s[:lanes] for s in self._slots], numbers)

    def _differentiate(
        self, lanes: int, x: Tensor, y: Tensor, counts: Tensor
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """The losses of the first lanes on a batch each, ``(lanes,)``, and the leaves' gradients."""
        if lanes not in self._views:
            self._views[lanes] = _Views(self, lanes)
        views = self._views[lanes]
        fixed = {name: restored(view, dtype) for name, view, dtype in views.fixed}
        with torch.enable_grad():
            losses = self._losses(views.leaves, fixed, x, y, counts)
            found: Sequence[Tensor | None] = [None] * len(views.slopes)
            if losses.requires_grad:  # lanes do not meet: the sum's gradient is that of each
                found = torch.autograd.grad(
                    losses.sum(), list(views.leaves.values()), allow_unused=True
                )
        return losses.detach(), found

    def _correct(self, lanes: int) -> None:
        if self._anchor is None and self._shift is None:
            return
        part, start = self.layout.shared_trainable, self.layout.trainable.start
        own = slice(part.start - start, part.stop - start)
        anchor, shift = (None if t is None else t[:lanes] for t in (self._anchor, self._shift))
        rule = LocalRule(self.kind.mu)
        rule.correct(self.gradient[:lanes, own], self._weights[:lanes, own], anchor, shift)

    def _fixed(self, lanes: int) -> list[tuple[str, Tensor, torch.dtype]]:
        """What is not trained, in every lane, and its own dtype."""
        return [
            (e.name, self._entry(self._flat[:lanes], at, e.shape), getattr(torch, e.dtype))
            for e, at in zip(self.layout.entries, self.layout.offsets, strict=False)
            if not e.trainable
        ]

    @staticmethod
    def _entry(rows: Tensor, at: int, shape: tuple[int, ...]) -> Tensor:
        return rows[:, at : at + int(np.prod(shape))].view(len(rows), *shape)

    def _capture(self, lanes: int) -> Any:
        """The step as a CUDA graph; False where it cannot be captured.

        The steps that warm it up must not count: what they change is put back. All buffers stay where
        they are, so the graph serves every client that comes into these lanes.
        """
        state = [self._flat, self._total, self._at, *self._slots]
        kept = [t.clone() for t in state]
        graph: Any = torch.cuda.CUDAGraph()
        try:
            side: Any = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # torch's
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                self._advance(lanes)
            torch.cuda.current_stream(self.device).wait_stream(side)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._advance(lanes)
        except RuntimeError:  # an operation that waits for the host cannot be captured
            graph = False
        for t, value in zip(state, kept, strict=True):
            t.copy_(value)
        return graph


class _Views:
    """The entries of the first lanes: leaves of autograd over the stack, and their slopes."""

    def __init__(self, stack: Stack, lanes: int) -> None:
        layout = stack.layout
        self.fixed = stack._fixed(lanes)
        self.leaves: dict[str, Tensor] = {}
        self.slopes: list[Tensor] = []
        for e, at in zip(layout.entries, layout.offsets, strict=False):
            if e.trainable:
                weights = stack._entry(stack._flat[:lanes], at, e.shape)
                self.leaves[e.name] = weights.detach().requires_grad_()
                start = at - layout.trainable.start
                self.slopes.append(stack._entry(stack.gradient[:lanes], start, e.shape))


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """On a CUDA device: full precision and the same kernels every time."""
    if device.type != "cuda":
        yield
        return
    with (
        torch.cuda.device(device),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        yield
