"""What one client does in one round: local work, the local rule, and what comes back.

A local rule (decision D3) is data, not code. Everything FedProx, SCAFFOLD, FedDyn, Ditto and their
kin change in local training is the affine correction ::

    g(w)  ->  g(w) + mu * (w - anchor) + shift

so one record serves NumPy, torch and every fast executor alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast

from atoll.core.errors import Fault, JobError, raise_faults, suggest
from atoll.core.layout import Array

__all__ = ["Fit", "LocalRule", "LocalWork", "Optimizer", "Schedule"]


@dataclass(frozen=True)
class Optimizer:
    """The local optimiser.

    Args:
        name: ``sgd``, ``adam``, ``adamw``, ``adagrad``, ``rmsprop`` … (what the trainer offers).
        lr: learning rate, eta_l.
        momentum: heavy-ball coefficient of SGD in [0, 1).
        nesterov: Nesterov's form of momentum.
        weight_decay: L2 coefficient added to the gradient (decoupled for ``adamw``).
        betas: decay rates of Adam's first and second moment.
        eps: Adam's denominator offset.

    Raises:
        JobError: a learning rate below 0, or none.
    """

    name: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Refuse what would climb instead of descend."""
        lr: Any = self.lr
        if isinstance(lr, str) or not lr >= 0:
            fault = Fault("local.lr", f"{lr!r} is no learning rate", "give a number above 0")
            raise JobError("the optimiser", faults=[fault])


@dataclass(frozen=True)
class Schedule:
    """How the local learning rate changes over rounds and local epochs.

    ``lr(t) = lr * gamma ** (t // every)`` for ``step``; half a cosine from ``lr`` to ``lr * floor``
    over ``every`` units for ``cosine``; ``t`` counts rounds or local epochs, as ``unit`` says.
    """

    kind: Literal["constant", "step", "cosine"] = "constant"
    gamma: float = 0.1
    every: int = 1
    floor: float = 0.0
    unit: Literal["round", "epoch"] = "round"

    def __post_init__(self) -> None:
        """Refuse words that are not known; they would be taken for another."""
        known = (("kind", ("constant", "step", "cosine")), ("unit", ("round", "epoch")))
        faults = [
            Fault(f"local.schedule.{name}", f"unknown {word!r}", suggest(str(word), words))
            for name, words in known
            if (word := getattr(self, name)) not in words
        ]
        raise_faults(JobError, "the learning-rate schedule", faults)


@dataclass(frozen=True)
class LocalWork:
    """How much a client trains: ``epochs`` passes, or exactly ``steps`` when given.

    Args:
        epochs: passes over the client's examples; may be fractional (rounded up to whole steps).
        steps: number of optimiser steps; overrides ``epochs``.
        batch_size: examples per step; 0 means all of them (full batch).
        optimizer: the local optimiser.
        schedule: the learning-rate schedule.
        clip_norm: L2 bound on each step's gradient; 0 for none.
        drop_last: leave out a last batch that is not full.

    Raises:
        JobError: no work at all, a number that is none, or an optimiser or schedule that is a word.
    """

    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 32
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    clip_norm: float = 0.0
    drop_last: bool = False

    def __post_init__(self) -> None:
        """Refuse work that is none."""
        faults, made = list[Fault](), cast(Any, self.optimizer)
        if not isinstance(made, Optimizer):
            remedy = "give atoll.Optimizer('adam', lr=0.001)"
            faults.append(Fault("local.optimizer", f"{made!r:.60} is no Optimizer", remedy))
        if not isinstance(cast(Any, self.schedule), Schedule):
            remedy = "give Schedule('cosine', every=100), of atoll.core.local"
            faults.append(Fault("local.schedule", f"{self.schedule!r:.60} is no Schedule", remedy))
        for name in ("epochs", "steps", "batch_size", "clip_norm"):
            value = getattr(self, name)
            if isinstance(value, str) or (value is None and name != "steps"):
                faults.append(Fault(f"local.{name}", f"{value!r:.60} is no number"))
            elif name == "epochs" and self.steps is None and not value > 0:
                faults.append(Fault("local.epochs", f"{value!r} is not above 0"))
            elif name in ("batch_size", "clip_norm") and not value >= 0:
                faults.append(Fault(f"local.{name}", f"{value!r} is below 0"))
        raise_faults(JobError, "the local work", faults)


@dataclass(frozen=True, eq=False)
class LocalRule:
    """The correction ``g + mu * (w - anchor) + shift`` on the shared region.

    Args:
        mu: proximal coefficient; 0 leaves ``anchor`` unread.
        anchor: point the proximal term pulls to, ``(shared size,)``.
        shift: constant added to every gradient, ``(shared size,)``, or None.

    A term that is absent costs nothing and changes no bit.
    """

    mu: float = 0.0
    anchor: Array | None = None
    shift: Array | None = None

    @property
    def trivial(self) -> bool:
        """Whether training is left as it is."""
        return self.mu == 0.0 and self.shift is None

    def correct(self, gradient: Any, weights: Any, anchor: Any, shift: Any) -> None:
        """Correct ``gradient`` in place; all four are flat arrays (or tensors) over one region.

        Works on anything with in-place ``+=`` and arithmetic: NumPy arrays, torch tensors, and
        stacks of either with clients on the leading axis.
        """
        if self.mu != 0.0:
            gradient += self.mu * (weights - anchor)
        if shift is not None:
            gradient += shift


@dataclass(frozen=True, eq=False)
class Fit:
    """What local training returns.

    Args:
        parameters: the trained full vector, ``(layout.size,)``.
        steps: optimiser steps taken, K (the paper's tau_i).
        lr_sum: sum of the learning rates over the steps, K * eta_l when constant.
        examples: rows the client holds, n_k.
        loss: mean training loss over the steps.
    """

    parameters: Array
    steps: int
    lr_sum: float
    examples: int
    loss: float
