"""Several analyses in the same rounds, and analyses that read another's result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from atoll.algorithms.statistics.analysis import Analysis, Columns, Question
from atoll.algorithms.statistics.columns import complete
from atoll.core.layout import Array
from atoll.data.query_log import Released

__all__ = ["Derived", "Together", "part_of", "released_by"]

_MARK = "|"


def released_by(analysis: Analysis, data: Columns) -> Sequence[Released]:
    """The sets of rows an analysis releases sums of; complete rows where it does not say.

    An analysis whose ``intercept`` is one for each ``site`` tells of each site apart.
    """
    told = getattr(analysis, "released", None)
    if told is not None:
        found: Sequence[Released] = told(data)
        return found
    names = tuple(analysis.columns())
    apart = getattr(analysis, "intercept", "") == "site"
    return [Released(names, complete(data, names), apart=apart)]


class Derived(ABC):
    """An analysis that is a function of another's result."""

    @property
    @abstractmethod
    def inner(self) -> Analysis:
        """The other one."""

    @abstractmethod
    def read(self, state: Question) -> Any:
        """What its last state tells."""

    def columns(self) -> Sequence[str]:
        """As the other."""
        return self.inner.columns()

    def start(self) -> Question:
        """As the other."""
        return self.inner.start()

    def ask(self, state: Question) -> Question | None:
        """As the other."""
        return self.inner.ask(state)

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """As the other."""
        return self.inner.sums(question, data, site=site, sites=sites)

    def learn(self, state: Question, totals: Question) -> Question:
        """As the other."""
        return self.inner.learn(state, totals)

    def result(self, state: Question) -> Any:
        """What :meth:`read` makes of it."""
        return self.read(state)

    def released(self, data: Columns) -> Sequence[Released]:
        """As the other."""
        return released_by(self.inner, data)


@dataclass(frozen=True)
class Together:
    """Analyses that share rounds; those that finish early wait.

    Args:
        parts: analyses by name; the result is a mapping by the same names.
    """

    parts: Mapping[str, Analysis]

    def columns(self) -> Sequence[str]:
        """All columns any part reads."""
        return tuple(dict.fromkeys(n for part in self.parts.values() for n in part.columns()))

    def start(self) -> Question:
        """The states of all parts."""
        return _joined({name: part.start() for name, part in self.parts.items()})

    def ask(self, state: Question) -> Question | None:
        """The questions of those that have one, each marked by its name."""
        asked = {n: p.ask(part_of(state, n)) for n, p in self.parts.items()}
        open_ones = {name: q for name, q in asked.items() if q is not None}
        if not open_ones:
            return None
        # A part may ask without a word; that it asks must be told.
        return _joined({name: {_ASKS: _ONE, **q} for name, q in open_ones.items()})

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """The sums of those that ask."""
        found = {}
        for name, part in self.parts.items():
            own = part_of(question, name)
            if own:
                asked = {n: v for n, v in own.items() if n != _ASKS}
                found[name] = part.sums(asked, data, site=site, sites=sites)
        return _joined(found)

    def learn(self, state: Question, totals: Question) -> Question:
        """The next states; parts without totals stay as they are."""
        following = {}
        for name, part in self.parts.items():
            own = part_of(state, name)
            answered = part.ask(own) is not None
            following[name] = part.learn(own, part_of(totals, name)) if answered else own
        return _joined(following)

    def result(self, state: Question) -> dict[str, Any]:
        """Results by name."""
        return {name: read() for name, read in self.results(state).items()}

    def results(self, state: Question) -> dict[str, Callable[[], Any]]:
        """What reads each part's result, by name: one that refuses does not keep the others back."""
        return {
            name: partial(part.result, part_of(state, name)) for name, part in self.parts.items()
        }

    def released(self, data: Columns) -> Sequence[Released]:
        """What any part releases."""
        return [one for part in self.parts.values() for one in released_by(part, data)]


_ASKS = "asks"
_ONE = np.ones(1)


def _joined(parts: Mapping[str, Question]) -> dict[str, Array]:
    return {f"{part}{_MARK}{n}": v for part, values in parts.items() for n, v in values.items()}


def part_of(whole: Question, part: str) -> dict[str, Array]:
    """What belongs to one part of a state, a question or an answer of :class:`Together`."""
    start = part + _MARK
    return {n.removeprefix(start): v for n, v in whole.items() if n.startswith(start)}
