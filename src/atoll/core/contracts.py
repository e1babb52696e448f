"""The contracts where algorithms, trainers and runtimes meet.

*An algorithm does not know where it runs, and a runtime does not know what it runs.*
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from atoll.core.errors import JobError
from atoll.core.layout import Array, Layout
from atoll.core.local import Fit, LocalRule, LocalWork
from atoll.core.metrics import Metrics
from atoll.core.ranges import check
from atoll.core.seeds import Seed
from atoll.core.values import Aggregate, Broadcast, ClientId, Memory, Merged, State, Update

__all__ = [
    "Algorithm",
    "CohortAlgorithm",
    "CohortTrainer",
    "ControlTrainer",
    "Controlled",
    "Examples",
    "Executor",
    "Federation",
    "Finishing",
    "Lane",
    "LaneTrainer",
    "Member",
    "Outcome",
    "Task",
    "Together",
    "Trainer",
    "Weighting",
    "Work",
    "halves_agree",
]


@dataclass(frozen=True, eq=False)
class Examples:
    """One client's rows.

    Args:
        features: ``(n, ...)``, float.
        targets: ``(n,)`` class indices (int) or real values (float).
    """

    features: Array
    targets: Array

    def __len__(self) -> int:
        """n, the number of rows."""
        return len(self.targets)


Federation = Mapping[ClientId, Any]
"""Client id -> its data: :class:`Examples`, or anything sized that the job's trainer understands."""


@runtime_checkable
class Trainer(Protocol):
    """How one client fits a model locally. Stateless between calls: all state goes in and comes out.

    ``corrects`` says whether :meth:`fit` honours a :class:`~atoll.core.local.LocalRule`.
    """

    @property
    def layout(self) -> Layout:
        """Layout of the model."""
        ...

    @property
    def corrects(self) -> bool:
        """Whether local rules (FedProx, SCAFFOLD, FedDyn) are applied."""
        ...

    def initial(self, seed: Seed) -> Array:
        """Initial parameters, ``(layout.size,)``."""
        ...

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
        """Train from ``parameters`` (left untouched) on ``data``."""
        ...

    def gradient(self, parameters: Array, data: Any) -> tuple[Array, float]:
        """Gradient of the mean loss over all rows, ``(layout.size,)`` (0 where not trained), and that loss."""
        ...

    def evaluate(self, parameters: Array, data: Any) -> Metrics:
        """Metrics of the model on ``data``; ``loss`` always among them. Plain numbers are means over rows."""
        ...


@dataclass(frozen=True, eq=False)
class Lane:
    """One client's part where many are trained at once; the arguments of :meth:`Trainer.fit`.

    Args:
        data: this client's rows.
        work: its local work.
        rule: its local rule.
        seed: the stream of this fit.
        weight: s_i w_i, what its change counts in a sum.
        own: a mean gradient of this client in the trainer's compact form; see :class:`ControlTrainer`.
    """

    data: Sized
    work: LocalWork
    rule: LocalRule
    seed: Seed
    weight: float
    own: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Together:
    """What training a group of clients gives when no single model is wanted.

    Args:
        change: ``sum_i weight_i (theta_i - theta_g)``, ``(layout.size,)``.
        steps: steps taken by each client.
        losses: mean training loss of each client.
    """

    change: Array
    steps: Sequence[int]
    losses: Sequence[float]


@runtime_checkable
class CohortTrainer(Protocol):
    """A trainer that can sum many clients' changes without forming their models.

    How many it takes at once may depend on shapes only: never on time or on the number of workers.
    """

    def together(self, work: LocalWork, rows: int, *, clients: int | None = None) -> int:
        """How many clients of up to ``rows`` rows to train in one go; 1 where that does not pay.

        Args:
            work: the local work.
            rows: most rows of a client.
            clients: in the round; None for very many. Where a group gains little it may be smaller in
                a small round, so that every worker has something to do.
        """
        ...

    def fit_together(self, parameters: Array, lanes: Sequence[Lane], *, round: int) -> Together:
        """Train every lane from ``parameters`` and add up their changes.

        Raises:
            AtollError: this group cannot be trained so; its clients are then taken one by one.
        """
        ...


@dataclass(frozen=True, eq=False)
class Controlled:
    """What training a group under control variates gives.

    Args:
        together: the sum of the changes.
        control: ``sum_i weight_i (g_i - own_i)``, g_i the client's mean gradient, ``(layout.size,)``.
        means: g_i of each client in the trainer's compact form.
    """

    together: Together
    control: Array
    means: Sequence[Mapping[str, Array]]


@runtime_checkable
class ControlTrainer(Protocol):
    """A trainer that keeps a client's mean gradient in terms of its rows, far smaller than a model."""

    def fit_controlled(
        self, parameters: Array, lanes: Sequence[Lane], plus: Array, *, round: int
    ) -> Controlled:
        """Train every lane with each gradient g corrected to ``g + plus - own_i``.

        Raises:
            AtollError: this group cannot be trained so; its clients are then taken one by one.
        """
        ...

    def dense(self, own: Mapping[str, Array], data: Any) -> Array:
        """The vector ``(layout.size,)`` that ``own`` stands for at the client with ``data``."""
        ...


@runtime_checkable
class LaneTrainer(Protocol):
    """A trainer that fits several clients side by side, each from its own parameters."""

    @property
    def lanes(self) -> int:
        """How many clients it takes at once; 1 for one after the other."""
        ...

    def fit_lanes(
        self, parameters: Sequence[Array], lanes: Sequence[Lane], *, round: int
    ) -> Sequence[Fit]:
        """:meth:`Trainer.fit` for every lane, in their order."""
        ...


@dataclass(frozen=True)
class Weighting:
    """w_i of a client: its number of examples, 1, or a given lambda_i.

    Args:
        kind: ``examples``, ``uniform`` or ``given``.
        given: lambda_i by client, for ``given``.
    """

    kind: Literal["examples", "uniform", "given"] = "examples"
    given: Mapping[ClientId, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an unknown kind: it must not pass for another; and weights below 0.

        Raises:
            JobError: with every one of them.
        """
        check(
            self,
            "algorithm",
            names={"kind": "weights", "given": "weights"},
            kind=("examples", "uniform", "given"),
            given="each [0, inf)",
        )

    def of(self, client: ClientId, examples: int) -> float:
        """The weight of ``client`` holding ``examples`` rows.

        Raises:
            JobError: no weight is given for it.
        """
        if self.kind == "examples":
            return float(examples)
        if self.kind == "uniform":
            return 1.0
        if client not in self.given:
            raise JobError(f"no weight is given for client {client!r}", remedy="add its lambda_i")
        return float(self.given[client])


@dataclass(frozen=True, eq=False)
class Work:
    """What an algorithm's client half can do: this client's data behind a trainer.

    Args:
        client: who.
        weight: w_i.
        trainer: the local trainer.
        data: this client's rows.
        local: the local work of this task.
        seed: the stream of this client in this round.
        round: version of the model the task started from.
        first: the whole vector that the run began at; None for the trainer's own.
    """

    client: ClientId
    weight: float
    trainer: Trainer
    data: Sized
    local: LocalWork
    seed: Seed
    round: int
    first: Array | None = None

    @property
    def layout(self) -> Layout:
        """Layout of the model."""
        return self.trainer.layout

    @property
    def examples(self) -> int:
        """n_k, rows at this client."""
        return len(self.data)

    def full(self, shared: Array, memory: Memory) -> Array:
        """The whole vector: the global shared region and this client's own personal one."""
        layout = self.layout
        if layout.shared.stop == layout.size:
            return shared
        personal = memory.get("personal")
        if personal is None:
            first = self.first
            if first is None:
                first = self.trainer.initial(Seed(self.seed.root) / "initial")
            personal = first[layout.personal]
        return np.concatenate([shared, personal])

    def fit(self, parameters: Array, rule: LocalRule | None = None) -> Fit:
        """Train from the whole vector ``parameters`` under ``rule``.

        Raises:
            JobError: the trainer gives no :class:`~atoll.core.local.Fit` of this layout.
        """
        made: Any = self.trainer.fit(
            parameters,
            self.data,
            work=self.local,
            rule=rule or LocalRule(),
            seed=self.seed / "fit",
            round=self.round,
        )
        given = f"a {type(made).__name__}"
        if isinstance(made, Fit):
            own: Any = made.parameters
            if isinstance(own, np.ndarray) and own.shape == parameters.shape:
                return made
            given = f"{type(own).__name__} {np.shape(own)} as parameters {parameters.shape}"
        raise JobError(
            f"fit() of {type(self.trainer).__name__} gave {given}",
            remedy="return atoll.core.local.Fit(parameters, steps, lr_sum, examples, loss)",
        )

    def gradient(self, parameters: Array) -> tuple[Array, float]:
        """Full-batch gradient of the mean loss and the loss, at the whole vector."""
        return self.trainer.gradient(parameters, self.data)


class Algorithm(Protocol):
    """What is computed: pure functions over one frozen state (decision D2)."""

    @property
    def needs_correction(self) -> bool:
        """Whether the trainer must honour local rules."""
        ...

    def faults(self, weighting: Weighting, local: LocalWork) -> Sequence[str]:
        """What in this combination contradicts the method; empty when all is well."""
        ...

    def init(self, parameters: Array, layout: Layout, population: int) -> State:
        """State before the first round, from the full initial vector."""
        ...

    def broadcast(self, state: State) -> Broadcast:
        """What the cohort gets."""
        ...

    def client(self, broadcast: Broadcast, memory: Memory, work: Work) -> tuple[Update, Memory]:
        """One client's half of a round."""
        ...

    def server(self, state: State, aggregate: Aggregate) -> State:
        """The server's half of a round."""
        ...

    def staleness(self, tau: int) -> float:
        """s(tau): factor on an update that started ``tau`` versions ago; 1 at 0."""
        ...


Member = tuple[Work, float, Memory]
"""One client of a group: its work, its staleness factor s_i and its memory."""


@runtime_checkable
class CohortAlgorithm(Protocol):
    """An algorithm whose client half can be run for a whole group when only the sum is wanted.

    Executors ask :func:`halves_agree` first: a subclass that changes ``client`` alone is taken one
    client at a time.
    """

    def groups(self, trainer: Trainer, local: LocalWork) -> bool:
        """Whether clients with this trainer and local work can be run as a group."""
        ...

    def cohort(
        self, broadcast: Broadcast, works: Sequence[Member]
    ) -> tuple[Aggregate, Sequence[Memory]]:
        """What the updates of ``works`` add up to, and each client's new memory.

        Raises:
            AtollError: this group cannot be trained in one go.
        """
        ...


@runtime_checkable
class Finishing(Protocol):
    """An algorithm that knows when it is done, such as a statistic; asked before every round."""

    def finished(self, state: State) -> bool:
        """Whether no further round is wanted."""
        ...


def halves_agree(algorithm: Any) -> bool:
    """Whether ``client`` and ``cohort`` come from the same class, and so mean the same."""
    owners = [
        next((k for k in type(algorithm).__mro__ if name in vars(k)), None)
        for name in ("client", "cohort")
    ]
    return owners[0] is not None and owners[0] is owners[1]


@dataclass(frozen=True)
class Task:
    """What one client gets for one server step.

    Args:
        client: who.
        version: model version its training starts from.
        scale: s(tau), the staleness factor of its update.
        fraction: share of the planned local work it does, in (0, 1].
        repeat: earlier tasks of this client that started from the same version; client, version
            and repeat name its random stream.
    """

    client: ClientId
    version: int
    scale: float = 1.0
    fraction: float = 1.0
    repeat: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Args:
        client: who.
        status: ``contributed``, or why not: ``refused`` (its update was not valid), ``failed`` (its
            code raised), ``unavailable``, ``dropped`` (left in the middle), ``late``, ``surplus``.
        examples: rows it contributed.
        reason: for people; empty when it contributed.
        seconds: measured working time.
    """

    client: ClientId
    status: str
    examples: int = 0
    reason: str = ""
    seconds: float = 0.0


class Executor(Protocol):
    """Where tasks run. The serial executor is the definition of correct (decision D7).

    An executor is opened once per run with the run's fixed parts and closed at its end. Memory of
    clients is handed in and out by the loop through ``memories``.
    """

    def run(
        self,
        tasks: Sequence[Task],
        broadcasts: Mapping[int, Broadcast],
        memories: Mapping[ClientId, Memory],
    ) -> tuple[Aggregate, Sequence[Outcome], Mapping[ClientId, Memory]]:
        """Run ``tasks`` and fold their updates; returns also the memories that changed.

        ``broadcasts`` maps each version that a task names to what it starts from. A task whose
        update is refused or whose code raises is left out of the aggregate and says so in its outcome.
        """
        ...

    def evaluate(
        self,
        parameters: Broadcast,
        clients: Sequence[ClientId],
        memories: Mapping[ClientId, Memory],
    ) -> Mapping[ClientId, Metrics] | Merged:
        """Metrics of the shared vector (with each client's personal part) on clients' held-out rows.

        Of all clients together, where updates are masked and so these are.
        """
        ...

    def close(self) -> None:
        """Release processes and shared memory; safe to call twice."""
        ...


Observer = Callable[[Mapping[str, Any]], None]
"""Is told each committed round's record (progress bar, JSONL, TensorBoard, report)."""
