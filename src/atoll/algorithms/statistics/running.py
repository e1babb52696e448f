"""Any analysis as an algorithm of the round loop: executors, records, checkpoints and all.

The analysis' state lies in the slots of the round's :class:`~atoll.core.values.State`, so a run that was
killed goes on from its last round to the same bits. There is no model: its vector is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from atoll.algorithms.statistics.analysis import Analysis, Question
from atoll.algorithms.statistics.digits import COUNT, decode, encode
from atoll.algorithms.statistics.together import Together
from atoll.core.chain import COHORT
from atoll.core.contracts import Weighting, Work
from atoll.core.errors import DataError, Forbidden, StateError
from atoll.core.layout import Array, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Metrics
from atoll.core.seeds import Seed
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory, State, Update, freeze
from atoll.data.disclosure import Disclosure
from atoll.data.table import Table

__all__ = ["NoModel", "Statistic"]

_ASK = "ask/"
"""Before the names of a question in a broadcast, beside which others may add vectors of theirs."""

_PERSONS = "disclosure/persons"
"""Name of the sum of persons, which is looked at and not kept."""

_OWN = "statistic/"
"""Before the names of the analysis' state among a state's slots."""


@dataclass(frozen=True)
class Statistic:
    """Runs an :class:`~atoll.algorithms.statistics.analysis.Analysis` on tables, one per site.

    A site's data are a :class:`~atoll.data.table.Table` of float64 columns. All sites must answer in
    every round: the totals of a part of them are another statistic.

    Args:
        analysis: what is computed.
        sites: all sites of the run.
        rule: disclosure control at the sites; None for none.
        elsewhere: whether the rows are elsewhere, as at the coordinator of a deployment: the client half
            then shows what answers look like, with the sums of no row.
    """

    analysis: Analysis
    sites: tuple[ClientId, ...]
    rule: Disclosure | None = None
    elsewhere: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(sorted(self.sites)))

    @property
    def needs_correction(self) -> bool:
        """No: nothing is trained."""
        return False

    def faults(self, weighting: Weighting, local: LocalWork) -> Sequence[str]:
        """None: weights and local work are not used."""
        return []

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """The analysis' state before its first question; ``parameters`` are empty."""
        state = State.start(parameters, layout, population)
        return replace(state, slots=_kept(self.analysis.start(), {}))

    def finished(self, state: State) -> bool:
        """Whether there is no question left."""
        return self.analysis.ask(_own(state)) is None

    def broadcast(self, state: State) -> Broadcast:
        """The question of this round; nothing where the analysis is finished."""
        question = self.analysis.ask(_own(state)) or {}
        vectors = {_ASK + name: np.array(v, np.float64) for name, v in question.items()}
        return Broadcast(state.round, {"parameters": state.parameters, **vectors})

    def client(self, broadcast: Broadcast, memory: Memory, work: Work) -> tuple[Update, Memory]:
        """One site's sums as digits, with weight 1.

        Raises:
            DataError: the data are no table, a column is missing, or too few persons stand behind.
        """
        data = work.data
        if self.elsewhere:
            data = Table({name: np.zeros(0) for name in self.analysis.columns()})
        elif not isinstance(data, Table):
            raise DataError("a statistic is computed on tables", site=work.client)
        else:
            self._check(data, work.client)
        question = _below(_ASK, broadcast.vectors)
        site = self.sites.index(work.client)
        sums = self.analysis.sums(question, data.columns, site=site, sites=len(self.sites))
        vectors = {}
        for name, value in sums.items():
            array = np.asarray(value, np.float64)
            vectors[name] = encode(array.ravel()).reshape(COUNT, *array.shape)
        if self.rule is not None:
            vectors[_PERSONS] = encode(np.array([float(self.rule.count(data))]))
        return Update(vectors, 1.0, len(work.data)), memory

    def told(self, update: Update) -> dict[str, Array]:
        """The sums that an update in the clear holds."""
        return {
            name: decode(digits.reshape(COUNT, -1)).reshape(digits.shape[1:])
            for name, digits in update.vectors.items()
            if name != _PERSONS
        }

    def _check(self, data: Table, site: ClientId) -> None:
        absent = [name for name in self.analysis.columns() if name not in data.columns]
        if absent:
            raise DataError(f"column {absent[0]!r} is missing", site=site)
        if self.rule is not None:
            self.rule.enough(data, site)

    def server(self, state: State, aggregate: Aggregate) -> State:
        """The next state, from the totals of all sites.

        Raises:
            DataError: not every site has answered.
            Forbidden: all sites together have too few persons.
        """
        if aggregate.count != len(self.sites):
            raise DataError(f"{aggregate.count} of {len(self.sites)} sites answered; all must")
        sums = dict(aggregate.sums)
        persons = decode(sums.pop(_PERSONS).reshape(COUNT, -1))[0] if self.rule is not None else 0.0
        if self.rule is not None and persons < self.rule.minimum:
            raise Forbidden(f"fewer than {self.rule.minimum} persons stand behind this analysis")
        if COHORT in state.slots:  # behind a chain vectors are flat, and empty ones are left out
            sums = self._shaped(state, sums)
        totals = {
            name: decode(digits.reshape(COUNT, -1)).reshape(digits.shape[1:])
            for name, digits in sums.items()
        }
        learnt = self.analysis.learn(_own(state), totals)
        return replace(state, round=state.round + 1, slots=_kept(learnt, state.slots))

    def _shaped(self, state: State, sums: Mapping[str, Array]) -> dict[str, Array]:
        """Sums in the shape in which sites formed them."""
        question = self.analysis.ask(_own(state)) or {}
        empty = {name: np.zeros(0) for name in self.analysis.columns()}
        like = self.analysis.sums(question, empty, site=0, sites=len(self.sites))
        shapes = {name: (COUNT, *np.shape(value)) for name, value in like.items()}
        return {
            name: sums[name].reshape(shape) if name in sums else np.zeros(shape)
            for name, shape in shapes.items()
        }

    @property
    def blank(self) -> Statistic:
        """The same where the rows are elsewhere: it shows what answers look like."""
        return replace(self, elsewhere=True)

    def staleness(self, tau: int) -> float:
        """1: sums do not fade."""
        return 1.0

    def result(self, state: State) -> Any:
        """What was found.

        Raises:
            StateError: the analysis has not finished.
        """
        self._check_finished(state)
        return self.analysis.result(_own(state))

    def parts_of(self, state: State) -> Mapping[str, Callable[[], Any]]:
        """What was found by each part of analyses that share rounds; each is read when it is called.

        Raises:
            StateError: the analysis has not finished, or has no parts.
        """
        if not isinstance(self.analysis, Together):
            raise StateError("there are no analyses that share rounds")
        self._check_finished(state)
        return self.analysis.results(_own(state))

    def _check_finished(self, state: State) -> None:
        if not self.finished(state):
            raise StateError(
                f"the analysis has not finished after {state.round} rounds",
                remedy="resume the run, or allow more rounds",
            )


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}


def _own(state: State) -> Question:
    return _below(_OWN, state.slots)


def _kept(learnt: Question, slots: Mapping[str, Array]) -> dict[str, Array]:
    """The next slots: the analysis' own, whole, and those of others as they are."""
    others = {name: slot for name, slot in slots.items() if not name.startswith(_OWN)}
    return others | {_OWN + n: freeze(np.array(v, np.float64)) for n, v in learnt.items()}


@dataclass(frozen=True)
class NoModel:
    """The trainer of a job that trains nothing: an empty layout, and refusals."""

    @property
    def layout(self) -> Layout:
        """No entry."""
        return Layout((), "float64")

    @property
    def corrects(self) -> bool:
        """There is nothing to correct."""
        return False

    def initial(self, seed: Seed) -> Array:
        """The empty vector."""
        return np.zeros(0)

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
        """Refused: see the class."""
        raise StateError("a statistic has no model to train", remedy="use it with Statistic")

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        """Refused: see the class."""
        raise StateError("a statistic has no model to train", remedy="use it with Statistic")

    def evaluate(self, parameters: Array, data: Any) -> Metrics:
        """Nothing to evaluate."""
        return {}
