"""What one client does in one round: local work, the local rule, and what comes back.

A local rule (decision D3) is data, not code. Everything FedProx, SCAFFOLD, FedDyn, Ditto and their
kin change in local training is the affine correction ::

    g(w)  ->  g(w) + mu * (w - anchor) + shift

so one record serves NumPy, torch and every fast executor alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from atoll.core.errors import Fault
from atoll.core.layout import Array
from atoll.core.ranges import check, inside

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
        JobError: with every option out of range.
    """

    name: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        betas: Any = self.betas
        two = isinstance(betas, tuple | list) and len(betas) == 2
        wrong = f"{betas!r:.60} are not two numbers in [0, 1)"
        decays = two and all(inside(beta, "[0, 1)") for beta in betas)
        check(
            self,
            "local",
            also=() if decays else [Fault("local.betas", wrong, "give two, such as (0.9, 0.999)")],
            names={"name": "optimizer"},
            name="text",
            lr="[0, inf)",
            momentum="[0, 1)",
            nesterov="bool",
            weight_decay="[0, inf)",
            eps="(0, inf)",
        )


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
        """Refuse words that are not known, which would be taken for another, and options out of range."""
        check(
            self,
            "local.schedule",
            kind=("constant", "step", "cosine"),
            gamma="(0, inf)",
            every="whole [1, inf)",
            floor="[0, inf)",
            unit=("round", "epoch"),
        )


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
        JobError: with every option out of range: no work at all, an optimiser or schedule that is a word.
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
        check(
            self,
            "local",
            optional=("steps",),
            epochs="(0, inf)",
            steps="whole [1, inf)",
            batch_size="whole [0, inf)",
            optimizer=Optimizer,
            schedule=Schedule,
            clip_norm="[0, inf)",
            drop_last="bool",
        )


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
