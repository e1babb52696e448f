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

import numpy as np
import torch
from torch import Tensor, nn

from atoll.core.contracts import Controlled, Lane, Together
from atoll.core.errors import JobConflict
from atoll.core.layout import Array, Layout
from atoll.models.batches import learning_rate, passes
from atoll.models.torch_chain import Chain
from atoll.models.torch_flat import tensor_over

__all__ = ["LOSSES", "dense", "train_controlled", "train_together"]

LOSSES = ("cross_entropy", "nll_sum", "bce", "mse")
"""Losses whose gradient is written out here."""


def _slopes(loss: str, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the loss ``(k, b)`` and its gradient ``(k, b, out)``, of a loss that is summed over rows."""
    if loss in ("cross_entropy", "nll_sum"):
        logp = torch.log_softmax(z, 2)
        index = y.unsqueeze(2)
        slope = logp.exp().scatter_add_(2, index, torch.full_like(index, -1, dtype=z.dtype))
        return -logp.gather(2, index).squeeze(2), slope
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
        place = np.argsort(orders[i]) if at is not None else None
        t = 0
        for epoch, rows, size in walk:
            rate = learning_rate(lane.work, round=round, epoch=epoch)
            for start in range(0, len(rows), size):
                n = min(size, len(rows) - start)
                share[t, i, :n] = 1.0 if summed else 1.0 / n
                lr[t, i] = rate
                if at is not None and place is not None:
                    at[t, i, :n] = place[rows[start : start + n]]
                t += 1
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
    chain: Chain,
    layout: Layout,
    loss: str,
    targets: torch.dtype,
    parameters: Array,
    lanes: Sequence[Lane],
    round: int,
) -> Together:
    """Train every lane from ``parameters`` and add up what they changed.

    Args:
        chain: the network.
        layout: its layout.
        loss: a name of :data:`LOSSES`.
        targets: dtype of the targets.
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
    with torch.inference_mode():
        group = _Group(chain, layout, parameters, lanes, targets)
        steps = _schedule(lanes, round, loss == "nll_sum")
        group.gather(steps)
        losses = group.walk(steps, loss, rule.mu, lanes[0].work.optimizer.weight_decay)
        return _together(group, steps, losses)


def train_controlled(
    chain: Chain,
    layout: Layout,
    loss: str,
    targets: torch.dtype,
    parameters: Array,
    lanes: Sequence[Lane],
    plus: Array,
    round: int,
) -> Controlled:
    """:func:`train_together` with every gradient corrected by ``plus - own_i``.

    Args:
        chain: the network.
        layout: its layout.
        loss: a name of :data:`LOSSES`.
        targets: dtype of the targets.
        parameters: where all start, ``(layout.size,)``.
        lanes: the clients, each with its ``own``.
        plus: the vector added to all gradients, ``(layout.size,)``.
        round: version of the model, for the learning-rate schedule.

    Raises:
        JobConflict: weight decay, a client that takes no step, or a value that is not finite.
    """
    with torch.inference_mode():
        group = _Group(chain, layout, parameters, lanes, targets)
        steps = _schedule(lanes, round, loss == "nll_sum")
        if lanes[0].work.optimizer.weight_decay or not steps.lr[:1].all():
            raise JobConflict("mean gradients are not told by where a client arrived")
        group.gather(steps)
        group.control(plus, steps)
        losses = group.walk(steps, loss, 0.0, 0.0)
        together = _together(group, steps, losses)
        change, means = group.means(steps)
    if not np.isfinite(change).all():
        raise JobConflict("a mean gradient is not finite")
    return Controlled(together, change, means)


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
    counts = [int(np.count_nonzero(steps.share[:, i, 0])) for i in range(len(group.lanes))]
    if not np.isfinite(losses).all() or not np.isfinite(change).all():
        raise JobConflict("a loss or a change is not finite")
    means = [float(s / n) if n else float("nan") for s, n in zip(losses, counts, strict=True)]
    return Together(change, counts, means)


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
        self,
        chain: Chain,
        layout: Layout,
        parameters: Array,
        lanes: Sequence[Lane],
        targets: torch.dtype,
    ) -> None:
        self.chain, self.layout, self.lanes, self.targets = chain, layout, lanes, targets
        flat = tensor_over(parameters)
        self.dtype = flat.dtype
        self.start = [
            (flat[d.weight].view(d.out, d.inputs), None if d.bias is None else flat[d.bias])
            for d in chain.layers
        ]
        k = len(lanes)
        self.weights = [w.expand(k, -1, -1).contiguous() for w, _ in self.start[1:]]
        self.biases = [
            None if b is None else b.expand(k, -1).contiguous() for _, b in self.start[1:]
        ]
        self.alpha = torch.ones(k, 1, 1, dtype=torch.float64)
        self.weight = torch.tensor([lane.weight for lane in lanes], dtype=self.dtype)
        self.pull: _Control | None = None

    def later(self) -> list[Tensor]:
        """Weights and biases behind the first layer, of all clients, in the order of the chain."""
        pairs = zip(self.weights, self.biases, strict=True)
        return [t for pair in pairs for t in pair if t is not None]

    def gather(self, steps: _Steps) -> None:
        """Rows and targets in visiting order, products with the shared weights, Gram matrices."""
        k, n = len(self.lanes), max(len(order) for order in steps.order)
        first = self.chain.layers[0]
        self.x = torch.zeros(k, n, first.inputs, dtype=self.dtype)
        y = []
        for i, (lane, order) in enumerate(zip(self.lanes, steps.order, strict=True)):
            rows = torch.from_numpy(order)
            x = tensor_over(lane.data.features)  # type: ignore[attr-defined]  # Examples
            flat = x.reshape(len(x), -1)
            if flat.shape[1] != first.inputs or not flat.is_floating_point():
                raise JobConflict(
                    f"rows of {flat.shape[1]} {flat.dtype} values for {first.inputs} inputs"
                )
            if flat.dtype == self.dtype:
                torch.index_select(flat, 0, rows, out=self.x[i, : len(rows)])
            else:
                self.x[i, : len(rows)] = flat[rows]
            target = tensor_over(lane.data.targets).to(self.targets)[rows]  # type: ignore[attr-defined]
            y.append(target)
        self.y = torch.zeros(k, n, *y[0].shape[1:], dtype=y[0].dtype)
        for i, target in enumerate(y):
            self.y[i, : len(target)] = target
        w, b = self.start[0]
        flat = self.x.view(k * n, -1)
        z = flat.mm(w.t()) if b is None else torch.addmm(b, flat, w.t())
        self.z0 = z.view(k, n, -1)
        one = torch.full((1, 1, 1), 0.0 if b is None else 1.0, dtype=self.dtype)
        self.gram = torch.baddbmm(one, self.x, self.x.transpose(1, 2))
        self.d = torch.zeros_like(self.z0)

    def control(self, plus: Array, steps: _Steps) -> None:
        """Correct all gradients from now on."""
        flat, first = tensor_over(plus), self.chain.layers[0]
        k, n, _ = self.x.shape
        own = torch.zeros_like(self.d)
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
        z = rows.mm(c.t()) if first.bias is None else torch.addmm(flat[first.bias], rows, c.t())
        moved = torch.baddbmm(z.view(k, n, -1).neg_(), self.gram, own)
        path = torch.zeros(k, 1, 1, dtype=self.dtype)
        self.pull = _Control(flat, own, moved, later, path)

    def means(self, steps: _Steps) -> tuple[Array, list[dict[str, Array]]]:
        """Each client's mean gradient in compact form, and the weighted sum of how they changed."""
        pull = self.pull
        if pull is None:
            raise JobConflict("no correction was set")
        out = torch.zeros(self.layout.size, dtype=self.dtype)
        rows = self.d / -pull.path
        self._outer(out, rows - pull.own)
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
        return np.asarray(out.numpy()), means

    def _outer(self, out: Tensor, rows: Tensor) -> None:
        """``sum_i weight_i rows_i^T X_i`` into the first layer's part of ``out``."""
        first = self.chain.layers[0]
        scaled = (rows * self.weight.view(-1, 1, 1)).view(-1, first.out)
        into = out[first.weight].view(first.out, first.inputs)
        torch.mm(scaled.t(), self.x.view(-1, first.inputs), out=into)
        if first.bias is not None:
            out[first.bias] = scaled.sum(0)

    def walk(self, steps: _Steps, loss: str, mu: float, decay: float) -> Array:
        """All local steps; the sum of the batch losses of each client, ``(k,)``."""
        share = torch.from_numpy(steps.share).to(self.dtype)
        rates = torch.from_numpy(steps.lr).to(self.dtype)
        lane = torch.arange(len(self.lanes)).unsqueeze(1)
        total = np.zeros(len(self.lanes))
        for t in range(len(steps.share)):
            if steps.at is None:
                a = t * steps.width
                b = min(a + steps.width, self.x.shape[1])
                z, y = self.z0[:, a:b], self.y[:, a:b]
                part, before = self.gram[:, a:b, :a], self.d[:, :a]
            else:
                b, a = steps.width, 0
                index = torch.from_numpy(steps.at[t])
                z, y = self.z0[lane, index], self.y[lane, index]
                part, before = self.gram[lane, index], self.d
            if mu or decay:
                z = z * self.alpha.to(self.dtype)
            if before.shape[1]:
                z = torch.baddbmm(z, part, before)
            if self.pull is not None:
                moved = self.pull.moved
                z = z + self.pull.path * (moved[:, a:b] if steps.at is None else moved[lane, index])
            weight = share[t, :, : b - a]
            slope, losses = self._back(z, y, weight, rates[t], loss, mu, decay)
            total += losses
            if steps.at is None:
                self.d[:, a:b] += slope
            else:
                self.d.index_put_((lane, index), slope, accumulate=True)
        return total

    def _back(
        self,
        z: Tensor,
        y: Tensor,
        weight: Tensor,
        rate: Tensor,
        loss: str,
        mu: float,
        decay: float,
    ) -> tuple[Tensor, Array]:
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
        each, slope = _slopes(loss, z, y)
        told = (each * weight).sum(1)
        if loss == "nll_sum":  # summed over rows to train on, but reported per row
            told /= weight.sum(1).clamp_(min=1.0)
        losses = told.to(torch.float64).numpy()
        slope *= (weight * -rate.unsqueeze(1)).unsqueeze(2)
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

    def change(self) -> Array:
        """``sum_i weight_i (theta_i - theta_0)``, ``(layout.size,)``."""
        out = torch.zeros(self.layout.size, dtype=self.dtype)
        by, pull = self.weight, self.pull
        first, (w0, b0) = self.chain.layers[0], self.start[0]
        self._outer(out, self.d if pull is None else self.d + pull.path * pull.own)
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
        return np.asarray(out.numpy())
