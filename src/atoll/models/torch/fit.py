"""One client's local training on a :class:`~atoll.models.torch.flat.Bench`, step by step.

Two ways lead through the same steps. The *general* one runs the module under autograd. The *compiled*
one replays what it recorded of it (:mod:`atoll.models.torch.tape`): under plain SGD the step is fused
into the products that make the gradient, the local rule and weight decay being one operation on the flat
weights before it; under heavy-ball momentum those products go into the velocity. Other optimisers get the
flat gradient and go on as in the general way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from atoll.core.errors import JobError, suggest
from atoll.core.layout import Array
from atoll.core.local import LocalRule, LocalWork, Optimizer
from atoll.core.seeds import Seed
from atoll.models.alone import alone
from atoll.models.torch.adaptive import single_pass
from atoll.models.torch.batch import Batch, face, rated
from atoll.models.torch.flat import Bench
from atoll.models.torch.record import Forward, Tape, Untraceable, record
from atoll.models.torch.rewrite import rewritten, scored
from atoll.models.torch.tape import Program

__all__ = ["OPTIMIZERS", "Steps", "Walk", "alone", "generator", "recurs"]

OPTIMIZERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sgd": ("SGD", ("momentum", "nesterov", "weight_decay")),
    "adam": ("Adam", ("betas", "eps", "weight_decay")),
    "adamw": ("AdamW", ("betas", "eps", "weight_decay")),
    "nadam": ("NAdam", ("betas", "eps", "weight_decay")),
    "radam": ("RAdam", ("betas", "eps", "weight_decay")),
    "adagrad": ("Adagrad", ("eps", "weight_decay")),
    "rmsprop": ("RMSprop", ("momentum", "eps", "weight_decay")),
}
"""Local optimisers by name: the class in ``torch.optim`` and what is passed on to it."""

_SMALL = 16
"""Rows of a batch up to which all sizes are compiled."""

_KEPT = 64
"""Compiled steps that are kept, one for each shape of batch; all go when there are more."""


_Fused = Literal["", "weights", "velocity"]
"""What the products that make a gradient are added to, if there is no gradient to be had."""


@dataclass(frozen=True, eq=False)
class Walk:
    """What a training walked through.

    Args:
        losses: sum over steps of the batch's mean loss.
        rates: the learning rate of each step.
    """

    losses: float
    rates: list[float]


class Steps:
    """The training steps of one bench.

    Args:
        bench: the module on flat buffers.
        forward: the loss of a batch.
        loss: handed to ``forward``.
        start: parameters to try a replay with, ``(layout.size,)``.
        compiled: whether to replay steps that can be replayed.
        summed: whether the loss is a sum over the batch's rows.
    """

    def __init__(
        self,
        bench: Bench,
        forward: Forward,
        loss: Any,
        start: Array,
        *,
        compiled: bool,
        summed: bool,
    ) -> None:
        self.bench, self.forward, self.loss = bench, forward, loss
        self.start, self.summed = start, summed
        self.reason = "" if compiled else "it was not asked for"
        """Why the latest step was not replayed; empty where it was."""
        self._programs: dict[Any, _Step] = {}
        self._refused: dict[Any, str] = {}
        if compiled and bench.copied:
            self.reason = "some parameters have a dtype of their own"
        self._never = bool(self.reason)

    @np.errstate(all="ignore")  # values that are not finite are looked for where training ends
    def walk(
        self,
        batch: Batch,
        work: LocalWork,
        rule: LocalRule,
        seed: Seed,
        *,
        round: int,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> Walk:
        """Train the loaded parameters on a client's rows."""
        bench = self.bench
        fused = _linear(work)
        correct = _correction(rule, bench)
        o = work.optimizer
        heavy = _Heavy(o, bench, correct) if o.name == "sgd" and o.momentum else None
        settle = None if heavy or not fused else _settled(rule, o, bench)
        move = _optimizer(o, bench, heavy)
        total, rates = 0.0, list[float]()
        # By rows: the shapes of a client's batches differ in nothing else.
        known = dict[int, _Step | None]()
        if not fused:
            bench.gradient.zero_()  # a replayed step does not write where there is no gradient
        for lr, index in rated(batch.rows, work, seed, round):
            rows = len(index)
            given = None if augment is None else self._augmented(batch, index, augment)
            if given is not None or rows not in known:
                known[rows] = self._step(batch, index, given, fused) if recurs(rows, work) else None
            step = known[rows]
            if step is None:
                loss = self._differentiate(*(given or batch.take(index)))
            else:
                step.load(batch, index, given)
                loss = step.program.run()
            total += loss / rows if self.summed else loss
            rates.append(lr)
            if step is None or not fused:
                if work.clip_norm:
                    norm = torch.linalg.vector_norm(bench.gradient)
                    bench.gradient.mul_((work.clip_norm / (norm + 1e-6)).clamp_(max=1.0))
                correct(bench.gradient)
                move(lr)
                bench.push()
            elif heavy is not None:
                heavy.replayed(step.program, lr)
            else:
                if settle is not None:
                    settle(lr)
                step.program.update(-lr)
        return Walk(total, rates)

    def _differentiate(self, x: Tensor, y: Tensor) -> float:
        """Autograd's gradient of a batch, and its loss."""
        self.bench.gradient.zero_()
        with torch.enable_grad():
            loss = self.forward(self.bench.module, self.loss, self.bench.formatted(x), y)
            self.bench.backward(loss)
        return loss.item()

    def _augmented(
        self, batch: Batch, index: Array, augment: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        x, y = batch.take(index)
        return augment(x), y

    def _step(
        self, batch: Batch, index: Array, given: tuple[Tensor, Tensor] | None, fused: _Fused
    ) -> _Step | None:
        """The compiled step for batches of this shape; None where it turned out not to exist.

        That one shape cannot be replayed says nothing of others: which of them comes first depends
        on who works on which client, and must not show.
        """
        if self._never:
            return None
        shape, dtype = batch.shape, batch.dtype
        if given is not None:
            shape, dtype = given[0].shape[1:], given[0].dtype
        key = (
            len(index),
            shape,
            dtype,
            batch.target_shape,
            batch.targets,
            batch.classes > 0,
            fused,
        )
        self.reason = self._refused.get(key, "")
        if self.reason:
            return None
        if key not in self._programs:
            if len(self._programs) >= _KEPT:
                self._programs.clear()
            try:
                features = torch.empty((len(index), *shape), dtype=dtype)
                self._programs[key] = self._compile(batch, len(index), features, fused)
            except Untraceable as found:
                self.reason = self._refused[key] = str(found)
                return None
        step = self._programs[key]
        # A label beyond the classes is autograd's to refuse.
        return step if step.hot is None or batch.classes <= step.hot.shape[1] else None

    def _compile(self, batch: Batch, rows: int, plain: Tensor, fused: _Fused) -> _Step:
        """Record a step on a made-up batch and hold its first replay against autograd.

        Whether a step can be replayed must not depend on anybody's data or progress, so it starts from
        the initial weights; weights, buffers and random state are as before afterwards.
        """
        bench, state = self.bench, torch.get_rng_state()
        kept = bench.snapshot()
        torch.default_generator.manual_seed(1)  # nor on what dropout draws
        x = bench.formatted(plain)
        y = torch.empty((rows, *batch.target_shape), dtype=batch.targets)
        draw = torch.Generator().manual_seed(1)
        for made_up in (x, y):
            made_up.normal_(generator=draw) if made_up.is_floating_point() else made_up.zero_()
        bench.load(self.start)
        try:
            tape = record(self.forward, bench.module, self.loss, bench.trained, (x, y))
            try:
                moved = bench.velocity if fused == "velocity" else (bench.weights, bench.views)
                head = scored(tape) if batch.classes else None
                shorter = rewritten(tape if head is None else head.tape)
                program = Program(shorter, moved[1], bench.slopes, fused=bool(fused))
                step = _Step(program, x, y, plain, None if head is None else head.hot)
                _hold(program, tape, *(moved if fused else (None, bench.slopes)))
            except RuntimeError as error:  # an operation that works otherwise without autograd
                raise Untraceable(f"a replayed step fails: {error}") from error
        finally:
            bench.restore(kept)
            torch.set_rng_state(state)
        return step


@np.errstate(all="ignore")
def _hold(program: Program, tape: Tape, moved: Tensor | None, got: Sequence[Tensor]) -> None:
    """Hold a program's first run against autograd's; what it changes outside the bench is put back.

    Args:
        program: to be held.
        tape: what it was made of.
        moved: the flat vector that its updates go to; None where it writes the gradient.
        got: where the gradients then are.

    Raises:
        Untraceable: they differ.
    """
    wanted = [None if g is None else g.clone() for g in tape.gradients]
    kept = [(real, real.clone()) for real, _ in tape.after]
    try:
        program.run()
        if moved is not None:
            moved.zero_()
            program.update(1.0)
        same = [torch.zeros_like(a) if b is None else b for a, b in zip(got, wanted, strict=True)]
        # Relative to the largest value of all: a bias before a normalisation has nothing but rounding.
        size = max((float(g.abs().max()) for g in same if g.numel()), default=0.0)
        near = all(map(partial(_near, size=size), got, same))
        state = [_near(real, value) for real, value in tape.after]
        loss = _near(program.value(), tape.loss)
        if not (near and loss and all(state)):
            raise Untraceable("a replayed step differs from autograd's")
        if not torch.equal(torch.get_rng_state(), tape.random):
            raise Untraceable("a replayed step draws other random numbers")
    finally:
        for real, value in kept:
            if not torch.equal(real, value):
                real.copy_(value)


def _near(a: Tensor, b: Tensor, size: float = 1.0) -> bool:
    if not b.is_floating_point() and not b.is_complex():
        return torch.equal(a, b)
    near = 1e-10 if b.dtype in (torch.float64, torch.complex128) else 1e-4
    return torch.allclose(a, b, rtol=near, atol=near * size, equal_nan=True)


class _Step:
    """A program and the buffers it reads its batch from.

    Args:
        program: of batches of one shape.
        x: features as the module takes them.
        y: targets.
        plain: memory for features as they are given, which may be that of ``x``.
        hot: where the program wants a 1 at each row's label, ``(rows, classes)``.
    """

    def __init__(
        self, program: Program, x: Tensor, y: Tensor, plain: Tensor, hot: Tensor | None
    ) -> None:
        self.program, self.x, self.y = program, x, y
        self.hot = None if hot is None else hot.numpy()
        into = face(plain), face(y)
        same = plain.data_ptr() == x.data_ptr()
        self._faces = None if into[0] is None or into[1] is None or not same else (into[0], into[1])
        self._labels, self._rows = into[1], None
        if self.hot is not None:
            self._rows = np.eye(self.hot.shape[1], dtype=self.hot.dtype)
        self._pick()

    def load(self, batch: Batch, index: Array, given: tuple[Tensor, Tensor] | None) -> None:
        """Put in the rows ``index``, or ``given`` in their place."""
        if given is None and self._faces is not None and batch.faces is not None:
            for rows, into in zip(batch.faces, self._faces, strict=True):
                rows.take(index, 0, into, "clip")  # any other mode would go through a buffer
        else:
            x, y = given or batch.take(index)
            self.x.copy_(x)
            self.y.copy_(y)
        self._pick()

    def _pick(self) -> None:
        if self._rows is not None and self._labels is not None:
            self._rows.take(self._labels, 0, self.hot, "clip")


def generator(seed: Seed) -> torch.Generator:
    """A torch generator at ``seed``."""
    return torch.Generator().manual_seed(seed.integer())


def recurs(rows: int, work: LocalWork) -> bool:
    """Whether batches of this size come often enough to pay for a recording.

    Full batches do, and small ones of which there are few sizes; a rule that counted how often a size has
    come would have other workers go other ways.
    """
    return rows == work.batch_size or rows <= _SMALL


def _linear(work: LocalWork) -> _Fused:
    """What a step moves by a sum of something linear in the weights and the gradient, if anything."""
    o = work.optimizer
    if o.name != "sgd" or work.clip_norm or (o.nesterov and o.momentum):
        return ""
    return "velocity" if o.momentum else "weights"


def _pulls(rule: LocalRule, bench: Bench) -> tuple[slice, Tensor | None, Tensor | None]:
    """Where a rule acts in the trainable region, its anchor and its shift, in the bench's order."""
    part = bench.layout.shared_trainable
    start = bench.layout.trainable.start
    anchor, shift = (
        None if a is None else bench.arranged(a, part) for a in (rule.anchor, rule.shift)
    )
    return slice(part.start - start, part.stop - start), anchor, shift


def _correction(rule: LocalRule, bench: Bench) -> Callable[[Tensor], None]:
    """The local rule on the region of a gradient that is both shared and trained."""
    if rule.trivial:
        return lambda gradient: None
    own, anchor, shift = _pulls(rule, bench)
    weights = bench.weights[own]
    return lambda gradient: rule.correct(gradient[own], weights, anchor, shift)


def _settled(rule: LocalRule, optimizer: Optimizer, bench: Bench) -> Callable[[float], None] | None:
    """What a plain SGD step does beside the gradient: ``w -= lr (decay w + mu (w - anchor) + shift)``."""
    decay = optimizer.weight_decay
    if rule.trivial and not decay:
        return None
    own, anchor, shift = _pulls(rule, bench)
    weights, pull = bench.weights[own], decay + rule.mu
    others = [part for part in (bench.weights[: own.start], bench.weights[own.stop :]) if len(part)]
    target = _target(rule.mu, pull, anchor, shift) if pull else None

    def settle(lr: float) -> None:
        # Each of these rounds once. Scaling by 1 - lr decay would be off by the same share each time.
        if target is not None:
            weights.lerp_(target, lr * pull)
        elif pull:
            weights.sub_(weights, alpha=lr * pull)
        elif shift is not None:
            weights.add_(shift, alpha=-lr)
        if decay:
            for part in others:
                part.sub_(part, alpha=lr * decay)

    return settle


def _target(mu: float, pull: float, anchor: Tensor | None, shift: Tensor | None) -> Tensor | None:
    """Where decay, anchor and shift pull to together: ``(mu anchor - shift) / pull``; None for 0."""
    if anchor is None or not mu:
        return None if shift is None else shift / -pull
    if shift is None:
        return anchor if mu == pull else anchor * (mu / pull)
    return torch.add(anchor * (mu / pull), shift, alpha=-1.0 / pull)


def _optimizer(optimizer: Optimizer, bench: Bench, heavy: _Heavy | None) -> Callable[[float], None]:
    """``move(lr)``: one step of the flat weights along the flat gradient."""
    if optimizer.name not in OPTIMIZERS:
        raise JobError(
            f"unknown local optimiser {optimizer.name!r}",
            remedy=suggest(optimizer.name, OPTIMIZERS),
        )
    if optimizer.name == "sgd":
        return partial(_sgd, optimizer, bench.weights, bench.gradient, heavy)
    if (quick := single_pass(optimizer, bench)) is not None:
        return quick
    kind, names = OPTIMIZERS[optimizer.name]
    flat = nn.Parameter(bench.weights)
    flat.grad = bench.gradient
    own = {name: getattr(optimizer, name) for name in names}
    inner = getattr(torch.optim, kind)([flat], lr=optimizer.lr, **own)

    def move(lr: float) -> None:
        inner.param_groups[0]["lr"] = lr
        inner.step()

    return move


def _sgd(o: Optimizer, weights: Tensor, gradient: Tensor, heavy: _Heavy | None, lr: float) -> None:
    """SGD as torch.optim writes it, without its overhead per step and per client."""
    if o.weight_decay:
        gradient.add_(weights, alpha=o.weight_decay)
    weights.add_(gradient if heavy is None else heavy.along(gradient), alpha=-lr)


class _Heavy:
    """The velocity of one client's steps, ``v <- momentum v + gradient``, which starts with a gradient."""

    def __init__(self, optimizer: Optimizer, bench: Bench, correct: Callable[..., None]) -> None:
        self.optimizer, self.weights, self.correct = optimizer, bench.weights, correct
        self.flat = bench.velocity[0]
        self._started = False

    def along(self, gradient: Tensor) -> Tensor:
        """The direction of the next step, which may take the gradient's place."""
        o = self.optimizer
        if self._started:
            torch.add(gradient, self.flat, alpha=o.momentum, out=self.flat)
        else:
            self.flat.copy_(gradient)
        self._started = True
        return gradient.add_(self.flat, alpha=o.momentum) if o.nesterov else self.flat

    def replayed(self, program: Program, lr: float) -> None:
        """A step whose gradient goes into the velocity where it is made."""
        o = self.optimizer
        program.update(1.0, o.momentum if self._started else 0.0)
        self._started = True
        if o.weight_decay:
            self.flat.add_(self.weights, alpha=o.weight_decay)
        self.correct(self.flat)
        self.weights.add_(self.flat, alpha=-lr)
