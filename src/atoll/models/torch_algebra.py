"""Many clients' training as a few large products, without forming their first layers.

Under plain SGD a dense layer's local weights are its first weights and a sum of outer products,
``W_t = a_t W_0 + D_t^T X``: one row of D for each row of the client's data X. So its outputs are
``X W_t^T = a_t X W_0^T + (X X^T) D_t``: one product with the shared ``W_0`` for the whole group, a small
Gram matrix for each client, and no weights of its own. What the group's clients changed in sum is one
more product, ``sum_i w_i D_i^T X_i``. A weight decay and a proximal term towards the starting
point only scale ``a`` and ``D``. Later layers are small and are held for each client, side by side.

This is the same arithmetic as client by client, in another order: equal up to rounding. It pays
where a client has few rows against the layer's width; :func:`atoll.models.torch_chain.pays` says
whether, from shapes alone.

A control variate c_i that is itself a mean gradient on the client's rows (SCAFFOLD's option II) is
kept in the same form, ``c_i = E_i^T X_i`` on the first layer: ``X_i c_i^T`` is then a product with the Gram
matrix, and a memory is as small as the layer is narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atoll.core.contracts import Controlled, Lane, Together
from atoll.core.errors import JobConflict
from atoll.core.layout import Array, Layout
from atoll.models.batches import learning_rate, passes
from atoll.models.torch_chain import Chain, Rooms, Setting
from atoll.models.torch_flat import finite, tensor_over

__all__ = ["LOSSES", "dense", "train_controlled", "train_together"]

LOSSES = ("cross_entropy", "nll_sum", "bce", "mse")
"""Losses whose gradient is written out here."""


def _slopes(loss: str, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the loss ``(k, b)`` and its gradient ``(k, b, out)``, of a loss that is summed over rows."""
    if loss in ("cross_entropy", "nll_sum"):
        # Over columns a softmax takes whole vectors of rows at a time: a tenth of the time for ten classes.
        logp = torch.log_softmax(z.reshape(-1, z.shape[2]).t().contiguous(), 0)
        index = y.reshape(1, -1)
        each = logp.gather(0, index).neg_().view(y.shape)
        slope = logp.exp_().scatter_add_(0, index, torch.full_like(index, -1, dtype=z.dtype))
        return each, slope.t().view(z.shape)
    target = y.reshape(z.shape).to(z.dtype)
    if loss == "mse":
        gap = z - target
        return gap.square().mean(2), gap * (2.0 / z.shape[2])
    each = nn.functional.binary_cross_entropy_with_logits(z, target, reduction="none")
    return each.mean(2), (torch.sigmoid(z) - target) / z.shape[2]


@dataclass(eq=False)
class _Steps:
    """Which rows each client visits in each step, how long the step is, and its learning rate.

    ``at`` ``(steps, k, b)`` are positions among a client's rows in the order of its first epoch, None
    where step t visits the positions from ``t * width`` on at every client. ``share`` ``(steps, k, b)`` is
    what a row counts in its batch's loss, 0 beyond the batch; ``lr`` ``(steps, k)`` is 0 at who is done.
    """

    order: list[Array]
    at: Array | None
    share: Array
    lr: Array
    width: int


_Pass = tuple[int, Array, int]
"""(local epoch, rows in order, batch size)."""


def _schedule(lanes: Sequence[Lane], round: int, summed: bool) -> _Steps:
    walks = [list(passes(len(lane.data), lane.work, lane.seed)) for lane in lanes]
    counts = [sum(-(-len(rows) // size) for _, rows, size in walk) for walk in walks]
    width = max((min(size, len(rows)) for walk in walks for _, rows, size in walk), default=1)
    shape = (max(counts), len(lanes), width)
    share, lr = np.zeros(shape), np.zeros(shape[:2])
    once = all(
        len(w) <= 1 and (c <= 1 or w[0][2] == width) for w, c in zip(walks, counts, strict=True)
    )
    at = None if once else np.zeros(shape, np.int64)
    orders = [_first_order(len(lane.data), walk) for lane, walk in zip(lanes, walks, strict=True)]
    for i, (lane, walk) in enumerate(zip(lanes, walks, strict=True)):
        place = None if at is None else np.argsort(orders[i])
        t = 0
        for epoch, rows, size in walk:
            full, rest = divmod(len(rows), size)
            end = t + full
            share[t:end, i, :size] = 1.0 if summed else 1.0 / size
            if at is not None and place is not None:
                at[t:end, i, :size] = place[rows[: full * size]].reshape(full, size)
            if rest:
                share[end, i, :rest] = 1.0 if summed else 1.0 / rest
                if at is not None and place is not None:
                    at[end, i, :rest] = place[rows[full * size :]]
            lr[t : end + (rest > 0), i] = learning_rate(lane.work, round=round, epoch=epoch)
            t = end + (rest > 0)
    return _Steps(orders, at, share, lr, width)


def _first_order(rows: int, walk: Sequence[_Pass]) -> Array:
    """All row numbers, those of the first epoch in its order and first."""
    first = walk[0][1] if walk else np.zeros(0, np.int64)
    if len(first) == rows:
        return first
    rest = np.ones(rows, bool)
    rest[first] = False
    return np.concatenate([first, np.flatnonzero(rest)])


def train_together(
    setting: Setting, parameters: Array, lanes: Sequence[Lane], round: int
) -> Together:
    """Train every lane from ``parameters`` and add up what they changed.

    Args:
        setting: the network, its loss, and memory to work in.
        parameters: where all start, ``(layout.size,)``.
        lanes: the clients.
        round: version of the model, for the learning-rate schedule.

    Raises:
        JobConflict: a rule that is not linear in the starting point, or a loss that is not finite.
    """
    rule = lanes[0].rule
    anchor = parameters if rule.anchor is None or rule.mu == 0.0 else rule.anchor
    if rule.shift is not None or not (anchor is parameters or np.array_equal(anchor, parameters)):
        raise JobConflict("the local rule pulls elsewhere than to the starting point")
    with torch.inference_mode(), setting.scratch.lent() as rooms:
        group = _Group(setting, rooms, parameters, lanes)
        steps = _schedule(lanes, round, setting.loss == "nll_sum")
        group.gather(steps)
        losses = group.walk(steps, rule.mu, lanes[0].work.optimizer.weight_decay)
        return _together(group, steps, losses)


def train_controlled(
    setting: Setting, parameters: Array, lanes: Sequence[Lane], plus: Array, round: int
) -> Controlled:
    """:func:`train_together` with every gradient corrected by ``plus - own_i``.

    Args:
        setting: the network, its loss, and memory to work in.
        parameters: where all start, ``(layout.size,)``.
        lanes: the clients, each with its ``own``.
        plus: the vector added to all gradients, ``(layout.size,)``.
        round: version of the model, for the learning-rate schedule.

    Raises:
        JobConflict: weight decay, a client that takes no step, or a value that is not finite.
    """
    with torch.inference_mode(), setting.scratch.lent() as rooms:
        group = _Group(setting, rooms, parameters, lanes)
        steps = _schedule(lanes, round, setting.loss == "nll_sum")
        if lanes[0].work.optimizer.weight_decay or not steps.lr[:1].all():
            raise JobConflict("mean gradients are not told by where a client arrived")
        group.gather(steps, whole=True)
        group.control(plus, steps)
        losses = group.walk(steps, 0.0, 0.0)
        together = _together(group, steps, losses)
        change, means = group.means(steps)
    if not finite(change):
        raise JobConflict("a mean gradient is not finite")
    return Controlled(together, np.asarray(change.numpy()), means)


def dense(chain: Chain, layout: Layout, own: Mapping[str, Array], features: Array) -> Array:
    """The vector ``(layout.size,)`` that a compact one stands for at the client with ``features``."""
    first = chain.layers[0]
    rows = own["rows"]
    out = np.zeros(layout.size, layout.dtype)
    out[first.weight] = (rows.T @ features.reshape(len(features), -1)).ravel()
    if first.bias is not None:
        out[first.bias] = rows.sum(0)
    start = 0
    for part in _later(chain):
        size = part.stop - part.start
        out[part] = own["later"][start : start + size]
        start += size
    return out


def _later(chain: Chain) -> list[slice]:
    """Where the layers behind the first lie, weight and bias in turn."""
    return [part for d in chain.layers[1:] for part in (d.weight, d.bias) if part is not None]


def _together(group: _Group, steps: _Steps, losses: Array) -> Together:
    change = group.change()
    counts = np.count_nonzero(steps.share[:, :, 0], axis=0).tolist()
    if not np.isfinite(losses).all() or not finite(change):
        raise JobConflict("a loss or a change is not finite")
    means = [s / n if n else float("nan") for s, n in zip(losses.tolist(), counts, strict=True)]
    return Together(np.asarray(change.numpy()), counts, means)


def _linear(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> None:
    """``x w^T + b``."""
    if b is None:
        torch.mm(x, w.t(), out=out)
    else:
        torch.addmm(b, x, w.t(), out=out)


@dataclass(eq=False)
class _Control:
    """What a group's gradients are corrected by, ``plus - own_i``, and the path it was applied along.

    ``plus`` is the flat vector; ``own`` ``(k, n, out)`` the compact first layers in visiting order; ``moved``
    ``(k, n, out)`` how the outputs of the first layer change for each unit of ``path``; ``later`` the
    corrections of weights and biases of the layers behind; ``path`` ``(k, 1, 1)`` the sum of rates so far.
    """

    plus: Tensor
    own: Tensor
    moved: Tensor
    later: list[Tensor]
    path: Tensor


class _Group:
    """The state of a group while it trains."""

    def __init__(
        self, setting: Setting, rooms: Rooms, parameters: Array, lanes: Sequence[Lane]
    ) -> None:
        self.chain, self.layout, self.loss = setting.chain, setting.layout, setting.loss
        self.lanes, self.targets, self.rooms = lanes, setting.targets, rooms
        flat = tensor_over(parameters)
        self.dtype = flat.dtype
        self.start = [
            (flat[d.weight].view(d.out, d.inputs), None if d.bias is None else flat[d.bias])
            for d in self.chain.layers
        ]
        k = len(lanes)
        self.weights = [w.expand(k, -1, -1).contiguous() for w, _ in self.start[1:]]
        self.biases = [
            None if b is None else b.expand(k, -1).contiguous() for _, b in self.start[1:]
        ]
        self.alpha = torch.ones(k, 1, 1, dtype=torch.float64)
        self.weight = torch.tensor([lane.weight for lane in lanes], dtype=self.dtype)
        self.pull: _Control | None = None
        self.gram: Tensor | None = None
        self.parts: list[Tensor] = []

    def later(self) -> list[Tensor]:
        """Weights and biases behind the first layer, of all clients, in the order of the chain."""
        pairs = zip(self.weights, self.biases, strict=True)
        return [t for pair in pairs for t in pair if t is not None]

    def gather(self, steps: _Steps, *, whole: bool = False) -> None:
        """Rows and targets in visiting order, products with the shared weights and with each other.

        A step reads products with rows of the steps before it: less than half of each Gram matrix. It is
        made ``whole`` where that is asked for, or where rows are visited more than once.
        """
        k, n = len(self.lanes), max(len(order) for order in steps.order)
        first = self.chain.layers[0]
        self.x = self.rooms.take("x", (k, n, first.inputs), self.dtype)
        shape = np.shape(self.lanes[0].data.targets)[1:]  # type: ignore[attr-defined]  # Examples
        self.y = self.rooms.take("y", (k, n, *shape), self.targets).zero_()
        for x, y, lane, order in zip(self.x, self.y, self.lanes, steps.order, strict=True):
            if len(order) < n:
                x[len(order) :] = 0  # whatever the group before has left there
                x, y = x[: len(order)], y[: len(order)]
            self._rows(lane, order, x, y)
        w, b = self.start[0]
        flat = self.x.view(k * n, -1)
        self.z0 = self.rooms.take("z0", (k, n, first.out), self.dtype)
        _linear(flat, w, b, self.z0.view(k * n, -1))
        self.d = self.rooms.take("d", (k, n, first.out), self.dtype).zero_()
        if whole or steps.at is not None:
            self.gram = self._products("gram", self.x, self.x)
        if steps.at is None:
            cuts = [
                (a, a + steps.width) for a in range(0, len(steps.share) * steps.width, steps.width)
            ]
            self.parts = [
                self._products(f"part {a}", self.x[:, a:b], self.x[:, :a])
                if self.gram is None
                else self.gram[:, a:b, :a]
                for a, b in cuts
            ]

    def _rows(self, lane: Lane, order: Array, x: Tensor, y: Tensor) -> None:
        """One client's rows and targets."""
        features = np.asarray(lane.data.features)  # type: ignore[attr-defined]  # Examples
        targets = np.asarray(lane.data.targets)  # type: ignore[attr-defined]
        flat = features.reshape(len(features), -1)
        if flat.shape[1] != x.shape[1] or flat.dtype.kind != "f":
            raise JobConflict(
                f"rows of {flat.shape[1]} {flat.dtype} values for {x.shape[1]} inputs"
            )
        if targets.shape != (len(flat), *y.shape[1:]):
            raise JobConflict(f"targets of {targets.shape} beside others of {y.shape[1:]}")
        for given, into in ((flat, x), (targets, y)):
            held = into.numpy()
            if given.dtype == held.dtype and given.flags.c_contiguous:
                given.take(order, 0, held, "clip")  # any other mode would go through a buffer
            else:
                into.copy_(tensor_over(given)[torch.from_numpy(order)])

    def _products(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """Products of each client's rows: how much a step on row j moves the outputs at row i."""
        into = self.rooms.take(name, (len(a), a.shape[1], b.shape[1]), self.dtype)
        torch.bmm(a, b.transpose(1, 2), out=into)
        return into if self.start[0][1] is None else into.add_(1.0)

    def control(self, plus: Array, steps: _Steps) -> None:
        """Correct all gradients from now on."""
        flat, first = tensor_over(plus), self.chain.layers[0]
        k, n, _ = self.x.shape
        own = self.rooms.take("own", self.d.shape, self.dtype).zero_()
        later = [torch.zeros_like(t) for t in self.later()]
        for i, (lane, order) in enumerate(zip(self.lanes, steps.order, strict=True)):
            if not lane.own:
                continue
            own[i, : len(order)] = tensor_over(lane.own["rows"])[torch.from_numpy(order)]
            start, held = 0, tensor_over(lane.own["later"])
            for t in later:
                t[i] = held[start : start + t[i].numel()].view(t[i].shape)
                start += t[i].numel()
        for t, part in zip(later, _later(self.chain), strict=True):
            t.neg_().add_(flat[part].view(t.shape[1:]))
        c = flat[first.weight].view(first.out, first.inputs)
        rows = self.x.view(k * n, -1)
        moved = self.rooms.take("moved", self.d.shape, self.dtype)
        _linear(rows, c, None if first.bias is None else flat[first.bias], moved.view(k * n, -1))
        if self.gram is None:
            raise JobConflict("the Gram matrices were not made whole")
        moved.baddbmm_(self.gram, own, beta=-1)
        path = torch.zeros(k, 1, 1, dtype=self.dtype)
        self.pull = _Control(flat, own, moved, later, path)

    def means(self, steps: _Steps) -> tuple[Tensor, list[dict[str, Array]]]:
        """Each client's mean gradient in compact form, and the weighted sum of how they changed."""
        pull = self.pull
        if pull is None:
            raise JobConflict("no correction was set")
        out = torch.empty(self.layout.size, dtype=self.dtype)
        rows = torch.div(self.d, -pull.path, out=self.d)
        self._outer(
            out, torch.sub(rows, pull.own, out=self.rooms.take("rest", rows.shape, rows.dtype))
        )
        later = []
        starts = [t for pair in self.start[1:] for t in pair if t is not None]
        for t, t0, gap, part in zip(
            self.later(), starts, pull.later, _later(self.chain), strict=True
        ):
            path = pull.path.view(-1, *[1] * (t.dim() - 1))
            mean = (t0 - t) / path - gap  # what moved the weights, less the correction
            own = pull.plus[part].view(t0.shape) - gap
            out[part] = self.weight @ (mean - own).view(len(t), -1)
            later.append(mean.reshape(len(t), -1))
        joined = torch.cat(later, 1) if later else torch.zeros(len(rows), 0, dtype=self.dtype)
        means = []
        for i, order in enumerate(steps.order):
            natural = np.empty((len(order), rows.shape[2]), self.layout.dtype)
            natural[order] = rows[i, : len(order)].numpy()
            means.append({"rows": natural, "later": joined[i].numpy().copy()})
        return out, means

    def _outer(self, out: Tensor, rows: Tensor) -> None:
        """``sum_i weight_i rows_i^T X_i`` into the first layer's part of ``out``; ``rows`` are used up."""
        first = self.chain.layers[0]
        scaled = rows.mul_(self.weight.view(-1, 1, 1)).view(-1, first.out)
        into = out[first.weight].view(first.out, first.inputs)
        torch.mm(scaled.t(), self.x.view(-1, first.inputs), out=into)
        if first.bias is not None:
            torch.sum(scaled, 0, out=out[first.bias])

    def walk(self, steps: _Steps, mu: float, decay: float) -> Array:
        """All local steps; the sum of the batch losses of each client, ``(k,)``."""
        share = torch.from_numpy(steps.share).to(self.dtype)
        rates = torch.from_numpy(steps.lr).to(self.dtype)
        scale = share * -rates.unsqueeze(2)
        told = torch.zeros_like(share)
        lane = torch.arange(len(self.lanes)).unsqueeze(1)
        for t in range(len(share)):
            if steps.at is None:
                a = t * steps.width
                here: Any = (slice(None), slice(a, a + steps.width))
                before, part = self.d[:, :a], self.parts[t] if t else None
            else:
                here, before = (lane, torch.from_numpy(steps.at[t])), self.d
                part = None if self.gram is None else self.gram[here]
            z = self._outputs(here, part, before, bool(mu or decay))
            n = z.shape[1]
            slope, told[t, :, :n] = self._back(
                z, self.y[here], scale[t, :, :n], rates[t], mu, decay
            )
            if steps.at is None:
                self.d[here] = slope  # nothing has been there yet
            else:
                self.d.index_put_(here, slope, accumulate=True)
        losses = (told * share).sum(2)
        if self.loss == "nll_sum":  # summed over rows to train on, but reported per row
            losses /= share.sum(2).clamp_(min=1.0)
        return np.asarray(losses.to(torch.float64).sum(0).numpy())

    def _outputs(self, here: Any, part: Tensor | None, before: Tensor, scaled: bool) -> Tensor:
        """The first layer's outputs at the rows ``here``, moved by the steps ``before``; to be used up."""
        z = self.z0[here]
        if scaled:
            z = z * self.alpha.to(self.dtype)
        if part is not None:
            z = torch.baddbmm(z, part, before)
        if self.pull is not None:
            z = z + self.pull.path * self.pull.moved[here]
        return z

    def _back(
        self, z: Tensor, y: Tensor, scale: Tensor, rate: Tensor, mu: float, decay: float
    ) -> tuple[Tensor, Tensor]:
        """Later layers forward, backward and moved; the first layer's scaled slopes and the losses."""
        inputs, before = list[Tensor](), list[tuple[Tensor, Tensor]]()
        for d, w, b in zip(
            self.chain.layers, [None, *self.weights], [None, *self.biases], strict=True
        ):
            if w is not None:
                h = before[-1][1]
                inputs.append(h)
                z = (
                    torch.bmm(h, w.transpose(1, 2))
                    if b is None
                    else torch.baddbmm(b.unsqueeze(1), h, w.transpose(1, 2))
                )
            before.append((z, z if d.activation is None else d.activation.forward(z)))
        losses, slope = _slopes(self.loss, z, y)
        slope *= scale.unsqueeze(2)
        slopes = [slope]
        for i in range(len(self.weights) - 1, -1, -1):
            slope = torch.bmm(slope, self.weights[i])
            activation, (zi, hi) = self.chain.layers[i].activation, before[i]
            if activation is not None:
                slope = activation.backward(slope, zi, hi)
            slopes.insert(0, slope)
        if mu or decay:
            self._shrink(rate, mu, decay)
        for i, (h, s) in enumerate(zip(inputs, slopes[1:], strict=True)):
            self.weights[i].baddbmm_(s.transpose(1, 2), h)
            if (bias := self.biases[i]) is not None:
                bias += s.sum(1)
        if self.pull is not None:
            for t, gap in zip(self.later(), self.pull.later, strict=True):
                t.sub_(rate.view(-1, *[1] * (t.dim() - 1)) * gap)
            self.pull.path += rate.view(-1, 1, 1)
        return slopes[0], losses

    def _shrink(self, rate: Tensor, mu: float, decay: float) -> None:
        """``w <- (1 - lr (mu + decay)) w + lr mu w_0``, at every client that takes this step."""
        # 1 - lr (mu + decay), rounded, would be off by the same share in every step; this is not.
        less = (rate * (mu + decay)).view(-1, 1, 1)
        pull = (rate * mu).view(-1, 1, 1)
        self.alpha += pull - less * self.alpha
        self.d.addcmul_(self.d, less, value=-1.0)
        for w, b, (w0, b0) in zip(self.weights, self.biases, self.start[1:], strict=True):
            w.addcmul_(w, less, value=-1.0).add_(pull * w0)
            if b is not None and b0 is not None:
                b.addcmul_(b, less[:, 0], value=-1.0).add_(pull[:, 0] * b0)

    def change(self) -> Tensor:
        """``sum_i weight_i (theta_i - theta_0)``, ``(layout.size,)``; the slopes are used up."""
        out = torch.empty(self.layout.size, dtype=self.dtype)  # a chain fills all of it
        by, pull = self.weight, self.pull
        first, (w0, b0) = self.chain.layers[0], self.start[0]
        rows = self.d
        if pull is not None:  # the slopes are needed again
            room = self.rooms.take("rest", rows.shape, rows.dtype)
            rows = torch.addcmul(rows, pull.path, pull.own, out=room)
        self._outer(out, rows)
        rest = float(((self.alpha.view(-1) - 1.0) * by).sum())
        if rest:
            out[first.weight] += rest * w0.reshape(-1)
            if first.bias is not None and b0 is not None:
                out[first.bias] += rest * b0
        if pull is not None:
            along = float((pull.path.view(-1) * by).sum())
            for part in (first.weight, first.bias):
                if part is not None:
                    out[part] -= along * pull.plus[part]
        starts = [t for pair in self.start[1:] for t in pair if t is not None]
        for t, t0, part in zip(self.later(), starts, _later(self.chain), strict=True):
            out[part] = by @ (t - t0).view(len(by), -1)
        return out
