"""DP-SGD for any ``torch.nn.Module`` whose rows do not mix; the steps are those of :mod:`atoll.models.private`.

How row gradients are summed is chosen once for a module (:mod:`atoll.models.torch.private_rows`), from
shapes alone. What stands against privacy is refused with all its faults before the first step
(:mod:`atoll.models.torch.private_check`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from atoll.core.errors import Fault, JobConflict, JobError, MissingExtra, raise_faults, suggest
from atoll.core.layout import Array, Layout
from atoll.core.local import Fit, LocalRule, LocalWork, Optimizer
from atoll.core.metrics import Metrics
from atoll.core.seeds import Seed
from atoll.models.batches import plan
from atoll.models.private import Randomness, RecordPrivacy, Releases, pieces, releases, steps
from atoll.models.scores import check_labels

try:
    import torch
    from torch import Tensor, nn

    from atoll.models.torch.adapter import LOSSES, OPTIMIZERS, TorchTrainer
    from atoll.models.torch.batch import Batch
    from atoll.models.torch.fit import alone, generator
    from atoll.models.torch.flat import Bench, starts_with_group_norm
    from atoll.models.torch.private_check import choose, faults, made_up, mixes
    from atoll.models.torch.private_rows import Rows
    from atoll.models.torch.rows import per_row
except ImportError as missing:  # pragma: no cover - depends on the installation
    raise MissingExtra(
        "torch is not installed", remedy="pip install 'atoll[torch]', or use a linear model"
    ) from missing

__all__ = ["PrivateTorchTrainer"]

_SCALED = 2.0**-60
"""Units closer to 0 than this, or further from it than its inverse, are not used: float32 would lose digits."""

_BUILT = ("_draws", "_benches", "_ways")


@dataclass(frozen=True, eq=False)
class _Way:
    """A bench, how rows are summed on it, and why not by layers if not."""

    bench: Bench
    rows: Rows
    reason: str


@dataclass(frozen=True, eq=False)
class PrivateTorchTrainer:
    """A module whose training hides single rows.

    Two things that other trainers tell are not told here, because they would cost privacy of their own:
    the training loss (NaN), and a gradient without noise. :meth:`evaluate` is as it was: whoever
    releases its metrics must account for them.

    Args:
        trainer: the module, its loss and its personal part (which is trained privately too).
        privacy: bound and noise.
        randomness: makes a source of sampling and noise, once in each process.
    """

    trainer: TorchTrainer
    privacy: RecordPrivacy
    randomness: Callable[[], Randomness] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse arithmetic whose norms cannot be trusted.

        Raises:
            JobConflict: reduced precision.
        """
        if self.trainer.precision != "float32":
            raise JobConflict(
                f"precision {self.trainer.precision!r} with bounds on row gradients",
                remedy="leave out model.precision",
            )

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs: it draws from a source of its own."""
        return {k: v for k, v in self.__dict__.items() if k not in _BUILT}

    @cached_property
    def _draws(self) -> Randomness:
        return self.randomness()

    @cached_property
    def _ways(self) -> dict[Any, _Way]:
        return {}

    @property
    def layout(self) -> Layout:
        """Layout of the model."""
        return self.trainer.layout

    @property
    def corrects(self) -> bool:
        """True: local rules are applied, after the noise."""
        return True

    @property
    def optimizers(self) -> Collection[str]:
        """Names of the local optimisers that there are."""
        return OPTIMIZERS

    def initial(self, seed: Seed) -> Array:
        """As without privacy."""
        return self.trainer.initial(seed)

    def module_with(self, parameters: Array) -> nn.Module:
        """A new module holding ``parameters``."""
        return self.trainer.module_with(parameters)

    def state_dict_from(self, parameters: Array) -> dict[str, Any]:
        """The ``state_dict`` of :meth:`module_with`."""
        return self.trainer.state_dict_from(parameters)

    def releases(self, rows: int, work: LocalWork) -> Releases:
        """What one :meth:`fit` on ``rows`` rows costs."""
        return releases(self.privacy, rows, work)

    def faults(self, data: Any) -> list[Fault]:
        """All that stands against training this module privately on rows shaped like these."""
        with alone(Seed(0)), torch.no_grad():
            bench = self._bench(data, last=False)
            return self._faults(bench, *self._probe(Batch(data, bench, self._targets(data), 1)))

    def explain(self, work: LocalWork, data: Any, *, sums: bool = True) -> str:
        """How row gradients are summed, and why not layer by layer."""
        with alone(Seed(0)), torch.no_grad():
            way = self._way(data)
        return f"private, by row: {way.reason}" if way.reason else "private, by layer"

    def fit(
        self,
        parameters: Array,
        data: Any,
        *,
        work: LocalWork,
        rule: LocalRule,
        seed: Seed,
        round: int,
    ) -> Fit:
        """Train from ``parameters`` with clipped and noised steps; the loss in the result is NaN.

        Raises:
            DataError: as without privacy.
            JobConflict: ``work`` clips batches as well, or the module stands against privacy.
        """
        self.layout.check(parameters, what="parameters")
        cut = plan(len(data), work)
        with alone(seed), torch.no_grad():
            way = self._way(data)
            bench = way.bench
            bench.load(parameters)
            bench.module.train()
            batch, taken = self._batch(data, way)
            correct, move = _correction(rule, bench), _mover(work.optimizer, bench)
            augment = self._augmented(seed)
            rates = list[float]()
            unit = self._unit(bench)
            # Plain SGD divides its rate instead of the gradient: one pass less.
            whole = rule.trivial and _is_plain(work.optimizer)
            divisor = cut.size / unit
            for lr in steps(len(data), work, round):
                chosen = self._draws.chosen(len(data), cut.size / len(data))
                if not len(chosen):
                    bench.gradient.zero_()
                for i, own in enumerate(pieces(chosen, taken)):
                    x, y = batch.take(own)
                    way.rows.add(augment(x), y, self.privacy.clip, fresh=not i, unit=unit)
                self._noise(bench, unit, 1.0 if whole else divisor)
                correct()
                move(lr / divisor if whole else lr)
                rates.append(lr)
            return Fit(bench.vector(), len(rates), sum(rates), len(data), math.nan)

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        """The mean of all rows' clipped gradients with noise (one release, no sampling), and NaN.

        Raises:
            DataError, JobConflict: as :meth:`fit`.
        """
        self.layout.check(parameters, what="parameters")
        plan(len(data), LocalWork())
        with alone(Seed(0)), torch.no_grad():
            bench = self._summed_up(parameters, data, np.arange(len(data)))
            self._noise(bench, 1.0, len(data))
            return bench.slope(), math.nan

    def clipped_sum(self, parameters: Array, data: Any, chosen: Array) -> Array:
        """Sum of the clipped gradients of the rows ``chosen``, ``(layout.size,)``: not protected.

        Raises:
            DataError, JobConflict: as :meth:`fit`.
        """
        with alone(Seed(0)), torch.no_grad():
            return self._summed_up(parameters, data, chosen).slope()

    def evaluate(self, parameters: Array, data: Any) -> Metrics:
        """As without privacy: not protected."""
        return self.trainer.evaluate(parameters, data)

    def per_row(self, parameters: Array, data: Any) -> dict[str, Array]:
        """Likewise, row by row; for who adds noise to their sums."""
        return per_row(self.trainer, parameters, data)

    def _summed_up(self, parameters: Array, data: Any, chosen: Array) -> Bench:
        way = self._way(data)
        way.bench.load(parameters)
        way.bench.module.eval()
        way.bench.gradient.zero_()
        batch, taken = self._batch(data, way)
        for own in pieces(chosen, taken):
            way.rows.add(*batch.take(own), self.privacy.clip)
        return way.bench

    def _batch(self, data: Any, way: _Way) -> tuple[Batch, int]:
        taken = min(self.privacy.micro_batch or way.rows.largest, len(data))
        return Batch(data, way.bench, self._targets(data), taken), taken

    def _unit(self, bench: Bench) -> float:
        """What sums are counted in until they have their noise; as a power of two it changes no digit."""
        cell = self._draws.cell(
            len(bench.gradient), self.privacy.bound, self.privacy.noise_multiplier
        )
        return cell if _SCALED < cell < 1 / _SCALED else 1.0

    def _noise(self, bench: Bench, unit: float, divisor: float) -> None:
        p = self.privacy
        total = bench.gradient.numpy()
        noisy = self._draws.noised(total, p.bound / unit, p.noise_multiplier, total)
        if divisor != 1 or noisy is not total:
            torch.div(torch.from_numpy(noisy), divisor, out=bench.gradient)

    def _way(self, data: Any) -> _Way:
        """The way for rows of this shape, checked and chosen on made-up rows and initial weights."""
        shape = np.shape(data.features)[1:], np.asarray(data.targets).shape[1:]
        key = (*shape, str(data.features.dtype))
        if key not in self._ways:
            try:
                self._ways[key] = self._chosen(data, self._takes_channels_last)
            except RuntimeError as error:
                if "view size is not compatible" not in str(error):
                    raise
                self._ways[key] = self._chosen(data, last=False)
        return self._ways[key]

    def _chosen(self, data: Any, last: bool) -> _Way:
        bench = self._bench(data, last)
        x, y = self._probe(Batch(data, bench, self._targets(data), 1))
        found = self._faults(bench, x, y)
        raise_faults(JobConflict, "this module cannot be trained with record-level privacy", found)
        rows, reason = choose(bench, self._total, x, y, self.trainer.loss)
        return _Way(bench, rows, reason)

    def _faults(self, bench: Bench, x: Tensor, y: Tensor) -> list[Fault]:
        augment = self.trainer.augment
        found = [] if augment is None else [*mixes(augment, x)]
        return found + faults(bench, self._loss, self._summed, x, y)

    def _bench(self, data: Any, last: bool) -> Bench:
        start = self.trainer.initial(Seed(0))
        bench = Bench(self.trainer.module_with(start), self.layout, last)
        bench.load(start)
        return bench

    @property
    def _takes_channels_last(self) -> bool:
        wanted = self.trainer.channels_last
        module = self.trainer.module_with(self.trainer.initial(Seed(0)))
        images = any(isinstance(part, nn.Conv2d) for part in module.modules())
        return (images if wanted is None else wanted) and not starts_with_group_norm(module)

    def _probe(self, batch: Batch) -> tuple[Tensor, Tensor]:
        x = made_up(tuple(batch.shape), batch.dtype)
        return x, made_up(tuple(batch.y.shape[1:]), batch.y.dtype)

    @property
    def _loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        loss = self.trainer.loss
        return LOSSES[loss] if isinstance(loss, str) else loss

    @property
    def _summed(self) -> bool:
        return self.trainer.loss == "nll_sum"

    def _total(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Sum over rows of each row's loss."""
        loss = self._loss(module(x), y)
        return loss if self._summed else loss * len(x)

    def _targets(self, data: Any) -> torch.dtype | None:
        trainer = self.trainer
        if trainer.task == "regression" or trainer.loss == "bce":
            return None
        labels = np.asarray(data.targets)
        if trainer.classes is not None:
            check_labels(labels, trainer.classes)
        elif len(labels) and labels.min() < 0:  # torch may ignore it: others would weigh more
            check_labels(labels, int(labels.max()) + 1)
        return torch.int64

    def _augmented(self, seed: Seed) -> Callable[[Tensor], Tensor]:
        augment = self.trainer.augment
        if augment is None:
            return lambda x: x
        noise = generator(seed / "augment")
        return lambda x: augment(x, noise)


def _correction(rule: LocalRule, bench: Bench) -> Callable[[], None]:
    """The local rule on the part of the gradient that is both shared and trained."""
    if rule.trivial:
        return lambda: None
    part, begin = bench.layout.shared_trainable, bench.layout.trainable.start
    own = slice(part.start - begin, part.stop - begin)
    pulls: Mapping[str, Tensor | None] = {
        name: None if vector is None else bench.arranged(vector, part)
        for name, vector in (("anchor", rule.anchor), ("shift", rule.shift))
    }
    gradient, weights = bench.gradient[own], bench.weights[own]
    return lambda: rule.correct(gradient, weights, pulls["anchor"], pulls["shift"])


def _is_plain(optimizer: Optimizer) -> bool:
    """Whether a step only takes the gradient off."""
    o = optimizer
    return o.name == "sgd" and not (o.momentum or o.weight_decay)


def _plain(bench: Bench, lr: float) -> None:
    bench.weights.add_(bench.gradient, alpha=-lr)


def _mover(optimizer: Optimizer, bench: Bench) -> Callable[[float], None]:
    """``move(lr)``: one step of the flat weights along the flat gradient."""
    if optimizer.name not in OPTIMIZERS:
        raise JobError(
            f"unknown local optimiser {optimizer.name!r}",
            remedy=suggest(optimizer.name, OPTIMIZERS),
        )
    kind, names = OPTIMIZERS[optimizer.name]
    if _is_plain(optimizer):
        return partial(_plain, bench)
    flat = nn.Parameter(bench.weights)
    flat.grad = bench.gradient
    own = {name: getattr(optimizer, name) for name in names}
    inner = getattr(torch.optim, kind)([flat], lr=optimizer.lr, **own)

    def move(lr: float) -> None:
        inner.param_groups[0]["lr"] = lr
        inner.step()

    return move
