"""What stands at the server for a model and for data that are elsewhere: sizes, and no code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atoll.core.errors import JobConflict
from atoll.core.layout import Array, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Metrics
from atoll.core.seeds import Seed

__all__ = ["Rows", "Standing"]


@dataclass(frozen=True)
class Rows:
    """So many rows of a site, which are there and not here.

    Args:
        count: how many; 1 where that is not known.
        told: whether it is known here.

    >>> len(Rows(303))
    303
    """

    count: int
    told: bool = True

    def __len__(self) -> int:
        """How many."""
        return self.count


@dataclass(frozen=True, eq=False)
class Standing:
    """A trainer that knows the model's layout and where it starts; only sites train and evaluate.

    Args:
        layout: of the model.
        start: its initial vector, ``(layout.size,)``, personal region included.
        way: which way local training takes at a site, in words.
    """

    layout: Layout
    start: Array
    way: str = ""

    def __post_init__(self) -> None:
        """Check the vector.

        Raises:
            LayoutError: it does not fit the layout.
        """
        self.layout.check(self.start, what="initial parameters")

    @property
    def corrects(self) -> bool:
        """True: the sites have checked that their trainers apply local rules where it matters."""
        return True

    def initial(self, seed: Seed) -> Array:
        """The vector the sites agreed on, whatever the seed."""
        return self.start.copy()

    def explain(self, work: LocalWork, data: Any, *, sums: bool = True) -> str:
        """Which way training takes, as a site told."""
        return self.way

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
        """Never here.

        Raises:
            JobConflict: always.
        """
        raise _elsewhere("train")

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        """Never here.

        Raises:
            JobConflict: always.
        """
        raise _elsewhere("compute gradients")

    def evaluate(self, parameters: Array, data: Any) -> Metrics:
        """Never here.

        Raises:
            JobConflict: always.
        """
        raise _elsewhere("evaluate")


def _elsewhere(what: str) -> JobConflict:
    return JobConflict(f"only sites {what}: the server has no data and no model code")
