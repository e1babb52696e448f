"""Gradient inversion by optimisation: rows whose gradient looks like the one that was seen.

The attacker knows the model and what a site sent, guesses rows, and moves the guess until the gradient
that it would give points where the seen one points. It is told the targets and the number of rows, which
only helps it.

Reference: Geiping, Bauermeister, Droege, Moeller, "Inverting Gradients - How easy is it to break privacy in
federated learning?", NeurIPS 2020, https://arxiv.org/abs/2003.14053, equation 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from atoll.core.errors import LayoutError
from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.models.torch.adapter import LOSSES, TorchTrainer

__all__ = ["Inversion", "invert_gradient"]


@dataclass(frozen=True, eq=False)
class Inversion:
    """What the attacker came to.

    Args:
        rows: its guess, ``(n, *shape)`` float32.
        distance: 1 - cosine between the guess's gradient and the seen one; 0 where it fits.
    """

    rows: Array
    distance: float


def invert_gradient(
    trainer: TorchTrainer,
    parameters: Array,
    seen: Array,
    targets: Array,
    shape: tuple[int, ...],
    *,
    seed: Seed,
    steps: int = 300,
    restarts: int = 1,
) -> Inversion:
    """Rows whose mean gradient at ``parameters`` points where ``seen`` points.

    Args:
        trainer: the model; its loss must have second derivatives.
        parameters: where the site started from, ``(layout.size,)``.
        seen: the gradient, or the change after a small step with its sign turned, ``(layout.size,)``.
        targets: of the rows, known to the attacker, ``(n,)``.
        shape: of one row.
        seed: of the first guesses.
        steps: iterations of the optimiser for each first guess.
        restarts: number of first guesses; the best result counts.

    Raises:
        LayoutError: vectors of another layout.
    """
    trainer.layout.check(parameters, what="parameters")
    module = trainer.module_with(parameters)
    names = [name for name, _ in module.named_parameters()]
    views = trainer.layout.views(np.asarray(seen, parameters.dtype))
    if missing := [name for name in names if name not in views]:
        raise LayoutError(f"no entry {missing[0]!r} in the layout")
    aim = torch.cat([torch.tensor(views[name]).reshape(-1) for name in names])
    aim = aim / aim.norm().clamp_min(1e-30)
    labels = torch.tensor(np.asarray(targets))
    loss = LOSSES[trainer.loss] if isinstance(trainer.loss, str) else trainer.loss
    attack = _Attack(loss, module, aim, labels)
    found = [
        attack.run((len(labels), *shape), (seed / attempt).generator(), steps)
        for attempt in range(restarts)
    ]
    return min(found, key=lambda inversion: inversion.distance)


@dataclass(eq=False)
class _Attack:
    """The optimisation; ``aim`` is the unit vector to point at."""

    loss: Callable[[Tensor, Tensor], Tensor]
    module: torch.nn.Module
    aim: Tensor
    labels: Tensor

    def run(self, shape: tuple[int, ...], draw: np.random.Generator, steps: int) -> Inversion:
        """One first guess, improved."""
        guess = torch.tensor(draw.normal(size=shape).astype(np.float32), requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [guess], max_iter=steps, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            optimiser.zero_grad()
            distance = self.distance(guess)
            (guess.grad,) = torch.autograd.grad(distance, guess)
            return float(distance.detach())

        optimiser.step(closure)  # type: ignore[no-untyped-call]  # torch's own annotation is missing
        final = float(self.distance(guess).detach())
        return Inversion(guess.detach().numpy().copy(), final)

    def distance(self, guess: Tensor) -> Tensor:
        """1 - cosine of the guess's gradient and the aim."""
        loss = self.loss(self.module(guess), self.labels)
        slopes = torch.autograd.grad(loss, list(self.module.parameters()), create_graph=True)
        flat = torch.cat([slope.reshape(-1) for slope in slopes])
        distance: Tensor = 1 - (flat @ self.aim) / flat.norm().clamp_min(1e-30)
        return distance
