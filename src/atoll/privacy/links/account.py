"""What a run's committed rounds have cost, and whether another one may begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from atoll.privacy.dp.accounting import Method, epsilon
from atoll.privacy.dp.calibration import Goal
from atoll.privacy.dp.events import Event, Gaussian, MatrixGaussian, Neighbouring, Unit, to_plain

__all__ = ["RunAccount"]

_MOST = 1_000_000


@dataclass(frozen=True, eq=False)
class RunAccount:
    """The privacy account of one run.

    Args:
        event: what one committed round costs; a whole run's where noise is correlated over rounds.
        goal: what is never passed; its delta is that at which epsilon is stated.
        unit: whose presence is hidden.
        neighbouring: which datasets are compared.
        planned: rounds that the noise was calibrated for.
        outside: what is released besides, and not counted.
        method: of accounting; ``rdp`` is an upper bound that costs milliseconds.
        attempts: whether aborted rounds cost as committed ones do: what clients themselves
            released is released.
        separation: rounds from one invitation of a client to the next, at least. Above 1 aborted rounds
            must count, for they are among those that a client rests.
        figures: what one evaluation of held-out rows costs beside that; None where it costs nothing.
        every: rounds from one evaluation to the next; there is one more at the end.
    """

    event: Event
    goal: Goal
    unit: Unit
    neighbouring: Neighbouring = "add_or_remove"
    planned: int = 0
    outside: Sequence[str] = ()
    method: Method = "best"
    attempts: bool = False
    separation: int = 1
    figures: Gaussian | None = None
    every: int = 1

    def events(self, rounds: int) -> list[Event]:
        """All that was released of one unit in so many counted rounds."""
        if not rounds:
            return []
        if isinstance(self.event, MatrixGaussian):
            return [self.event]
        found: list[Event] = [
            replace(self.event, count=self.event.count * -(-rounds // self.separation))
        ]
        if self.figures is not None:
            found.append(replace(self.figures, count=-(-rounds // self.every)))
        return found

    def epsilon(self, rounds: int) -> float:
        """Epsilon after so many committed rounds."""
        return self._cost(replace(self.goal, found=0.0), rounds)

    def permitted(self, rounds: int) -> float:
        """Most of the members that an attack finds after so many, at the false positive rate of the goal."""
        goal = replace(self.goal, found=self.goal.found or 1.0)
        return goal.fpr + self._cost(goal, rounds)

    def _cost(self, goal: Goal, rounds: int) -> float:
        if (goal, rounds) not in self._known:
            found = goal.spent(self.events(rounds), self.neighbouring, self.method)
            self._known[goal, rounds] = found
        return self._known[goal, rounds]

    @cached_property
    def _known(self) -> dict[tuple[Goal, int], float]:
        return {}

    def _kept(self, rounds: int) -> bool:
        return not self.goal or self._cost(self.goal, rounds) <= self.goal.most

    @cached_property
    def most(self) -> int:
        """Rounds that the goal leaves room for."""
        if isinstance(self.event, MatrixGaussian):
            return self.event.rounds if self._kept(1) else 0
        if not self.goal:
            return _MOST
        low, high = 0, max(1, self.planned)
        while self._kept(high):
            low, high = high, high + 1 if high == self.planned else 2 * high
            if high > _MOST:
                return _MOST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._kept(middle) else (low, middle)
        return low

    def spent(self, rounds: int) -> Mapping[str, Any]:
        """The statement after so many committed rounds, ready for JSON."""
        return {
            "epsilon": self.epsilon(rounds),
            "delta": self.goal.delta,
            "unit": self.unit,
            "neighbouring": self.neighbouring,
            "target": self.goal.epsilon or None,
            "rounds": rounds,
            "events": [to_plain(event) for event in self.events(rounds)],
            "outside": list(self.outside),
            **self._of_attacks(rounds),
            **self._of_figures(rounds),
        }

    def _of_attacks(self, rounds: int) -> Mapping[str, Any]:
        """What an attack may find by now, where the job says how much it may find."""
        if not self.goal.found:
            return {}
        found, target, fpr = self.permitted(rounds), self.goal.found, self.goal.fpr
        return {"attack": {"found": found, "fpr": fpr, "target": target}}

    def _of_figures(self, rounds: int) -> Mapping[str, Any]:
        """What part of that the figures have: their own epsilon, were there nothing else."""
        if self.figures is None or not rounds:
            return {}
        count = -(-rounds // self.every)
        alone = epsilon(
            [replace(self.figures, count=count)], self.goal.delta, self.neighbouring, self.method
        )
        z = self.figures.noise_multiplier
        return {"figures": {"epsilon": alone, "evaluations": count, "noise_multiplier": z}}

    def over(self, rounds: int) -> str:
        """Why no further round may begin after so many; empty while one may."""
        if rounds < self.most:
            return ""
        if not self.goal:
            return f"the noise of all {self.most} planned rounds is used up"
        spent = f"{self.epsilon(rounds):.3f}"
        if self.goal.found:
            spent = f"{100 * self.permitted(rounds):.2f} %"
        return f"another round would pass {self.goal}: {spent} is spent in {rounds} rounds"
