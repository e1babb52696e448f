"""What a run's committed rounds have cost, and whether another one may begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from atoll.privacy.dp.accounting import epsilon
from atoll.privacy.dp.events import Event, Gaussian, MatrixGaussian, Neighbouring, Unit, to_plain

__all__ = ["RunAccount"]

_MOST = 1_000_000


@dataclass(frozen=True, eq=False)
class RunAccount:
    """The privacy account of one run.

    Args:
        event: what one committed round costs; a whole run's where noise is correlated over rounds.
        delta: at which epsilon is stated.
        unit: whose presence is hidden.
        neighbouring: which datasets are compared.
        target: epsilon that is never passed; 0 for none.
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
    delta: float
    unit: Unit
    neighbouring: Neighbouring = "add_or_remove"
    target: float = 0.0
    planned: int = 0
    outside: Sequence[str] = ()
    method: Literal["best", "rdp"] = "best"
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
        if rounds not in self._known:
            self._known[rounds] = epsilon(
                self.events(rounds), self.delta, self.neighbouring, self.method
            )
        return self._known[rounds]

    @cached_property
    def _known(self) -> dict[int, float]:
        return {}

    @cached_property
    def most(self) -> int:
        """Rounds that the target leaves room for."""
        if isinstance(self.event, MatrixGaussian):
            kept = not self.target or self.epsilon(1) <= self.target
            return self.event.rounds if kept else 0
        if not self.target:
            return _MOST
        low, high = 0, max(1, self.planned)
        while self.epsilon(high) <= self.target:
            low, high = high, high + 1 if high == self.planned else 2 * high
            if high > _MOST:
                return _MOST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.epsilon(middle) <= self.target else (low, middle)
        return low

    def spent(self, rounds: int) -> Mapping[str, Any]:
        """The statement after so many committed rounds, ready for JSON."""
        return {
            "epsilon": self.epsilon(rounds),
            "delta": self.delta,
            "unit": self.unit,
            "neighbouring": self.neighbouring,
            "target": self.target or None,
            "rounds": rounds,
            "events": [to_plain(event) for event in self.events(rounds)],
            "outside": list(self.outside),
            **self._of_figures(rounds),
        }

    def _of_figures(self, rounds: int) -> Mapping[str, Any]:
        """What part of that the figures have: their own epsilon, were there nothing else."""
        if self.figures is None or not rounds:
            return {}
        count = -(-rounds // self.every)
        alone = epsilon(
            [replace(self.figures, count=count)], self.delta, self.neighbouring, self.method
        )
        z = self.figures.noise_multiplier
        return {"figures": {"epsilon": alone, "evaluations": count, "noise_multiplier": z}}

    def over(self, rounds: int) -> str:
        """Why no further round may begin after so many; empty while one may."""
        if rounds < self.most:
            return ""
        if self.target:
            return (
                f"another round would pass epsilon {self.target:g}: {self.epsilon(rounds):.3f} is "
                f"spent in {rounds} rounds"
            )
        return f"the noise of all {self.most} planned rounds is used up"
