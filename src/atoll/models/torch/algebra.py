"""Many clients' training as a few large products, without forming their first layers.

Under plain SGD a dense layer's local weights are its first weights and a sum of outer products,
``W_t = a_t W_0 + D_t^T X``: one row of D for each row of the client's data X. So its outputs are
``X W_t^T = a_t X W_0^T + (X X^T) D_t``: one product with the shared ``W_0`` for the whole group, a small
Gram matrix for each client, and no weights of its own. What the group's clients changed in sum is one
more product, ``sum_i w_i D_i^T X_i``. A weight decay and a proximal term towards the starting
point only scale ``a`` and ``D``. Later layers are small and are held for each client, side by side.

This is the same arithmetic as client by client, in another order: equal up to rounding. It pays
where a client has few rows against the layer's width; :func:`atoll.models.torch.chain.pays` says
whether, from shapes alone.

A control variate c_i that is itself a mean gradient on the client's rows (SCAFFOLD's option II) is
kept in the same form, ``c_i = E_i^T X_i`` on the first layer: ``X_i c_i^T`` is then a product with the Gram
matrix, and a memory is as small as the layer is narrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from atoll.core.contracts import Controlled, Lane, Together
from atoll.core.errors import JobConflict
from atoll.core.layout import Array, Layout
from atoll.models.group_steps import GroupSteps, earlier_rows, group_steps
from atoll.models.torch.arrays import large_product
from atoll.models.torch.chain import Chain, Rooms, Setting
from atoll.models.torch.flat import finite, tensor_over

__all__ = ["LOSSES", "dense", "train_controlled", "train_together"]

LOSSES = ("cross_entropy", "nll_sum", "bce", "mse")
"""Losses whose gradient is written out here."""
_LABELLED = LOSSES[:2]
"""Those of class labels."""


def _scores(z: Array, y: Array, scale: Array, out: Array) -> Array:
    """Of a softmax, per row the cross-entropy ``(k, b)``; its gradient times ``scale`` goes to ``out``."""
    # Over columns whole vectors of rows are taken at a time, which ten classes would not fill.
    logp = z.reshape(-1, z.shape[2]).T.copy()
    logp -= np.maximum.reduce(logp, 0)
    p = np.exp(logp)
    total = np.add.reduce(p, 0)
    p /= total
    label = y.reshape(-1) * logp.shape[1] + np.arange(logp.shape[1])  # in the memory of either
    each = np.log(total) - logp.take(label)
    p.reshape(-1)[label] -= 1.0
    np.multiply(p.T.reshape(z.shape), scale[..., None], out=out)
    return np.asarray(each.reshape(y.shape))


def _gaps(loss: str, z: Tensor, y: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    """The same for losses of real targets, which are means over the outputs of a row."""
    target = y.reshape(z.shape).to(z.dtype)
    if loss == "mse":
        gap = z - target
        torch.mul(gap, scale.unsqueeze(2) * (2.0 / z.shape[2]), out=out)
        return gap.square().mean(2)
    each = nn.functional.binary_cross_entropy_with_logits(z, target, reduction="none")
    torch.mul(torch.sigmoid(z) - target, scale.unsqueeze(2) / z.shape[2], out=out)
    return each.mean(2)


@contextmanager
def _silently() -> Iterator[None]:
    """No autograd, and no warnings: values that are not finite are looked for where training ends."""
    with torch.inference_mode(), np.errstate(all="ignore"):
        yield


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
    with _silently(), setting.scratch.lent() as rooms:
        group = _Group(setting, rooms, parameters, lanes)
        steps = group_steps(lanes, round, summed=setting.loss == "nll_sum")
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
    with _silently(), setting.scratch.lent() as rooms:
        group = _Group(setting, rooms, parameters, lanes)
        steps = group_steps(lanes, round, summed=setting.loss == "nll_sum")
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


def _together(group: _Group, steps: GroupSteps, losses: Array) -> Together:
    change = group.change()
    counts = np.count_nonzero(steps.share[:, :, 0], axis=0).tolist()
    if not np.isfinite(losses).all() or not finite(change):
        raise JobConflict("a loss or a change is not finite")
    means = [s / n if n else float("nan") for s, n in zip(losses.tolist(), counts, strict=True)]
    return Together(np.asarray(change.numpy()), counts, means)


def _linear(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> None:
    """``x w^T + b``."""
    large_product(x, w.t(), out)
    if b is not None:
        out.add_(b)


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


class _Bench(NamedTuple):
    """What a step makes in one layer, ``(k, b, out)`` each: outputs, scaled slopes, and both as arrays."""

    z: Tensor
    slope: Tensor
    z_array: Array
    slope_array: Array


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
        self.moving = [
            (w.numpy(), None if b is None else b.numpy())
            for w, b in zip(self.weights, self.biases, strict=True)
        ]
        self.alpha = torch.ones(k, 1, 1, dtype=torch.float64)
        self.weight = torch.tensor([lane.weight for lane in lanes], dtype=self.dtype)
        self.pull: _Control | None = None

    def later(self) -> list[Tensor]:
        """Weights and biases behind the first layer, of all clients, in the order of the chain."""
        pairs = zip(self.weights, self.biases, strict=True)
        return [t for pair in pairs for t in pair if t is not None]

    def gather(self, steps: GroupSteps, *, whole: bool = False) -> None:
        """Rows and targets in visiting order, products with the shared weights and with each other.

        A step reads products with rows of the steps before it: less than half of each Gram matrix. It is
        made ``whole`` where that is asked for, or where rows are visited more than once.
        """
        k, n = len(self.lanes), max(len(order) for order in steps.order)
        first = self.chain.layers[0]
        self.x = self.rooms.take("x", (k, n, first.inputs), self.dtype)
        shape = np.shape(self.lanes[0].data.targets)[1:]  # type: ignore[attr-defined]  # Examples
        self.y = self.rooms.take("y", (k, n, *shape), self.targets).zero_()
        self.gram = self.rooms.take("gram", (k, n, n), self.dtype)
        every = [(slice(0, n), slice(0, n))]
        blocks = every if whole or steps.at is not None else earlier_rows(n, steps.width)
        held = (t.numpy() for t in (self.x, self.y, self.gram))
        for x, y, gram, lane, order in zip(*held, self.lanes, steps.order, strict=True):
            x[len(order) :] = 0  # whatever the group before has left there
            self._rows(lane, order, x[: len(order)], y[: len(order)])
            for rows, before in blocks:  # while the client's rows are near the processor
                np.matmul(x[rows], x[before].T, out=gram[rows, before])
        w, b = self.start[0]
        if b is not None:
            self.gram.add_(1.0)
        labels = self.y.numpy()
        if (
            self.loss in _LABELLED
            and not 0 <= labels.min() <= labels.max() < self.chain.layers[-1].out
        ):
            raise JobConflict("a label is none of the classes")
        flat = self.x.view(k * n, -1)
        self.z0 = self.rooms.take("z0", (k, n, first.out), self.dtype)
        _linear(flat, w, b, self.z0.view(k * n, -1))
        self.d = self.rooms.take("d", (k, n, first.out), self.dtype).zero_()

    def _rows(self, lane: Lane, order: Array, x: Array, y: Array) -> None:
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
            if given.dtype == into.dtype and given.flags.c_contiguous:
                given.take(order, 0, into, "clip")  # any other mode would go through a buffer
            else:
                torch.from_numpy(into).copy_(tensor_over(given)[torch.from_numpy(order)])

    def control(self, plus: Array, steps: GroupSteps) -> None:
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
        moved.baddbmm_(self.gram, own, beta=-1)
        path = torch.zeros(k, 1, 1, dtype=self.dtype)
        self.pull = _Control(flat, own, moved, later, path)

    def means(self, steps: GroupSteps) -> tuple[Tensor, list[dict[str, Array]]]:
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
        large_product(scaled.t(), self.x.view(-1, first.inputs), into)
        if first.bias is not None:
            torch.sum(scaled, 0, out=out[first.bias])

    def walk(self, steps: GroupSteps, mu: float, decay: float) -> Array:
        """All local steps; the sum of the batch losses of each client, ``(k,)``.

        What a step makes lies where the step before had it, and arrays are cut by NumPy: of so little
        arithmetic the views and calls of torch are half.
        """
        share = steps.share.astype(self.layout.dtype)
        rates = torch.from_numpy(steps.lr).to(self.dtype)
        scale = share * -rates.numpy()[:, :, None]
        told = np.zeros_like(share)
        lane = np.arange(len(self.lanes))[:, None]
        once = steps.at is None  # then nothing has been there yet
        z0, d, gram, y = (t.numpy() for t in (self.z0, self.d, self.gram, self.y))
        benches = dict[int, list[_Bench]]()  # by rows of a step: the last one may have fewer
        for t in range(len(share)):
            if steps.at is None:
                a = t * steps.width
                here: Any = (slice(None), slice(a, a + steps.width))
                before, part = d[:, :a], gram[:, a : a + steps.width, :a]
            else:
                here, before = (lane, steps.at[t]), d
                part = gram[here]
            first = z0[here]
            n = first.shape[1]
            bench = benches.get(n) or benches.setdefault(n, self._benches(n))
            self._outputs(first, here, part if t else None, before, bool(mu or decay), bench[0])
            told[t, :, :n] = self._back(bench, y[here], scale[t, :, :n], rates[t], mu, decay)
            if once:
                d[here] = bench[0].slope_array
            else:
                self.d.index_put_(
                    tuple(map(torch.from_numpy, here)), bench[0].slope, accumulate=True
                )
        losses = (told * share).sum(2)
        if self.loss == "nll_sum":  # summed over rows to train on, but reported per row
            losses /= np.maximum(share.sum(2), 1.0)
        return np.asarray(losses.astype(np.float64).sum(0))

    def _benches(self, rows: int) -> list[_Bench]:
        """Memory for the values of steps of so many rows, layer by layer."""
        made = []
        for i, d in enumerate(self.chain.layers):
            shape = (len(self.lanes), rows, d.out)
            z, slope = (
                self.rooms.take(f"{what} {i}", shape, self.dtype) for what in ("z", "slope")
            )
            made.append(_Bench(z, slope, z.numpy(), slope.numpy()))
        return made

    def _outputs(
        self,
        first: Array,
        here: Any,
        part: Array | None,
        before: Array,
        scaled: bool,
        bench: _Bench,
    ) -> None:
        """The first layer's outputs: ``first`` at the rows ``here``, moved by the steps ``before``."""
        if scaled:
            first = first * self.alpha.to(self.dtype).numpy()
        z = bench.z_array
        if part is None:
            z[...] = first
        else:
            np.matmul(part, before, out=z)
            z += first
        if self.pull is not None:
            z += (self.pull.path * self.pull.moved[here]).numpy()

    def _back(
        self,
        bench: Sequence[_Bench],
        y: Array,
        scale: Array,
        rate: Tensor,
        mu: float,
        decay: float,
    ) -> Array:
        """Later layers forward, backward and moved; the losses. The first bench gets scaled slopes."""
        values = list[Tensor]()
        for i, (d, own) in enumerate(zip(self.chain.layers, bench, strict=True)):
            if i:
                w, b = self.moving[i - 1]
                np.matmul(values[-1].numpy(), w.transpose(0, 2, 1), out=own.z_array)
                if b is not None:
                    np.add(own.z_array, b[:, None], out=own.z_array)
            values.append(own.z if d.activation is None else d.activation.forward(own.z))
        losses = self._losses(values[-1].numpy(), y, scale, bench[-1].slope_array)
        for i in range(len(bench) - 2, -1, -1):
            own, activation = bench[i], self.chain.layers[i].activation
            np.matmul(bench[i + 1].slope_array, self.moving[i][0], out=own.slope_array)
            if activation is not None:
                made = activation.backward(own.slope, own.z, values[i])
                if made is not own.slope:
                    own.slope.copy_(made)
        if mu or decay:
            self._shrink(rate, mu, decay)
        for (w, b), behind, value in zip(self.moving, bench[1:], values, strict=False):
            s, step = behind.slope_array, self.rooms.take("step", w.shape, self.dtype).numpy()
            np.matmul(s.transpose(0, 2, 1), value.numpy(), out=step)
            np.add(w, step, out=w)
            if b is not None:
                np.add(b, np.add.reduce(s, 1), out=b)
        if self.pull is not None:
            for t, gap in zip(self.later(), self.pull.later, strict=True):
                t.sub_(rate.view(-1, *[1] * (t.dim() - 1)) * gap)
            self.pull.path += rate.view(-1, 1, 1)
        return losses

    def _losses(self, z: Array, y: Array, scale: Array, out: Array) -> Array:
        """Per row the loss ``(k, b)``, summed over rows where it is a sum; its scaled gradient to ``out``."""
        if self.loss in _LABELLED:
            return _scores(z, y, scale, out)
        return np.asarray(_gaps(self.loss, *map(torch.from_numpy, (z, y, scale, out))).numpy())

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
