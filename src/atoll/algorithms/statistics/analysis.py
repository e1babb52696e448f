"""What a statistic is: questions to all sites, and sums of what they answer (decision D4).

An :class:`Analysis` is pure and knows neither sites nor networks. Each round all sites are told the same
*question*, each answers with named arrays that add up, and the totals lead to the next question. It is
finished when there is no question left. :func:`solve` runs one on tables at hand;
:class:`~atoll.algorithms.statistics.running.Statistic` makes it an algorithm of the round loop, with the
same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from atoll.algorithms.statistics.digits import decode, encode
from atoll.core.errors import AtollError, DataError
from atoll.core.layout import Array

__all__ = ["Analysis", "Columns", "Question", "added", "solve"]

Columns = Mapping[str, Array]
"""One site's rows: column name -> ``(n,)`` float64 with NaN for missing; categories as float64 codes."""

Question = Mapping[str, Array]
"""Named float64 arrays: a state, what all sites are told, what one answers, or totals over sites."""


@runtime_checkable
class Analysis(Protocol):
    """A statistic as rounds of sums: what sites send adds up. Pure, no I/O."""

    def columns(self) -> Sequence[str]:
        """Names of the columns it reads."""
        ...

    def start(self) -> Question:
        """The state before the first round: named float64 arrays of any shape."""
        ...

    def ask(self, state: Question) -> Question | None:
        """What every site is told this round; None when the analysis is finished."""
        ...

    def sums(self, question: Question, data: Columns, *, site: int, sites: int) -> Question:
        """At a site: named float64 arrays that add up over sites.

        Args:
            question: what :meth:`ask` gave.
            data: this site's rows.
            site: position of this site in the sorted list of all.
            sites: how many there are.

        Returns:
            Arrays whose names and shapes do not depend on the rows.

        Raises:
            DataError: these rows cannot be analysed; names the column.
        """
        ...

    def learn(self, state: Question, totals: Question) -> Question:
        """The whole next state, from the totals over all sites."""
        ...

    def result(self, state: Question) -> Any:
        """What was found: a frozen dataclass. Called on the state of a finished analysis."""
        ...


def added(answers: Sequence[Question]) -> dict[str, Array]:
    """Totals of what sites answered, the same bits in any order.

    Raises:
        DataError: two sites answered in different names or shapes.
        UpdateRefused: a value that is not finite, or 2^112 or more.
    """
    shapes = {name: np.shape(array) for name, array in answers[0].items()}
    totals: dict[str, Array] = {name: np.zeros(0) for name in shapes}
    for name, shape in shapes.items():
        digits = None
        for answer in answers:
            if set(answer) != set(shapes) or np.shape(answer[name]) != shape:
                raise DataError(f"sites answer in different shapes; look at {name!r}")
            own = encode(np.asarray(answer[name], np.float64).ravel())
            digits = own if digits is None else digits + own
        totals[name] = decode(np.zeros((0, 0)) if digits is None else digits).reshape(shape)
    return totals


def solve(analysis: Analysis, sites: Mapping[str, Columns]) -> Any:
    """Run ``analysis`` over tables at hand, without a loop, records or disclosure control.

    Args:
        analysis: what is computed.
        sites: the rows of each site.

    Raises:
        DataError: there is no site, or a column is absent; names site and column.
        AtollError: what the analysis itself refuses; names the site it happened at.
    """
    if not sites:
        raise DataError("there are no sites", remedy="give {name: columns}")
    names = sorted(sites)
    wanted = analysis.columns()
    for name in names:
        absent = [column for column in wanted if column not in sites[name]]
        if absent:
            raise DataError(f"column {absent[0]!r} is missing", site=name)
    state = analysis.start()
    while (question := analysis.ask(state)) is not None:
        answers = []
        for index, name in enumerate(names):
            try:
                answers.append(analysis.sums(question, sites[name], site=index, sites=len(names)))
            except AtollError as error:
                error.site = error.site or name
                raise
        state = analysis.learn(state, added(answers))
    return analysis.result(state)
