"""Algorithms as people write them, importable by worker processes."""

from dataclasses import dataclass, replace

import numpy as np

from atoll.algorithms import FedAvg
from atoll.core.metrics import Confusion
from atoll.core.values import Broadcast, moved


@dataclass(frozen=True)
class Numbers(FedAvg):
    """Plain numbers and lists wherever a vector may stand, and a number among the metrics."""

    def init(self, parameters, layout, population):
        return replace(super().init(parameters, layout, population), slots={"rate": np.array(1.0)})

    def broadcast(self, state):
        return Broadcast(
            state.round, {"parameters": state.parameters, "rate": state.slots["rate"][()]}
        )

    def client(self, broadcast, memory, work):
        update, _ = super().client(broadcast, memory, work)
        rate = float(broadcast.vectors["rate"])
        vectors = {"delta": rate * update.vectors["delta"]}
        kept = {"times": memory.get("times", 0) + 1, "rates": [rate, rate / 2]}
        return replace(update, vectors=vectors, metrics={"rate": rate}), kept

    def server(self, state, aggregate):
        rate = state.slots["rate"] * 0.5
        return state.next(moved(state.parameters, aggregate.mean("delta")), rate=float(rate))


@dataclass(frozen=True)
class Writes(FedAvg):
    """Changes what it remembers instead of returning something new."""

    def client(self, broadcast, memory, work):
        update, _ = super().client(broadcast, memory, work)
        seen = memory.get("seen", np.zeros(2))
        seen += 1
        return update, {"seen": seen}


@dataclass(frozen=True)
class Server(FedAvg):
    """A server half that ends as it should not."""

    how: str = "unchanged"

    def server(self, state, aggregate):
        step = aggregate.mean("delta")
        if self.how == "precision":
            return state.next(state.parameters + step)
        if self.how == "shape":
            return state.next(np.append(state.parameters, state.parameters[:1]))
        if self.how == "version":
            return replace(state, parameters=moved(state.parameters, step))
        return moved(state.parameters, step)


@dataclass(frozen=True)
class Unlike(FedAvg):
    """Clients with many rows send something else than the others."""

    how: str = "shape"

    def client(self, broadcast, memory, work):
        update, kept = super().client(broadcast, memory, work)
        if work.examples < 10:
            return update, kept
        delta = update.vectors["delta"]
        vectors = {
            "shape": {"delta": delta[:-1]},
            "name": {"delta": delta, "more": np.ones(1, np.float32)},
            "dtype": {"delta": delta.astype(np.float64)},
            "metric": {"delta": delta},
        }[self.how]
        metrics = {name: Confusion(((1, 1), (1, 1))) for name in update.metrics}
        if self.how == "metric":
            return replace(update, metrics=metrics), kept
        return replace(update, vectors=vectors), kept


@dataclass(frozen=True)
class Odd(FedAvg):
    """One of its methods gives what it should not."""

    where: str = ""
    what: object = None

    def init(self, parameters, layout, population):
        made = super().init(parameters, layout, population)
        if self.where == "init slots":
            return replace(made, slots={"kept": self.what})
        return self.what if self.where == "init" else made

    def broadcast(self, state):
        made = super().broadcast(state)
        if self.where == "broadcast vectors":
            return Broadcast(made.version, {**made.vectors, "kept": self.what})
        if self.where == "broadcast model":
            return Broadcast(made.version, {"model": made.parameters})
        return self.what if self.where == "broadcast" else made

    def client(self, broadcast, memory, work):
        update, kept = super().client(broadcast, memory, work)
        if self.where == "client vectors":
            return replace(update, vectors={**update.vectors, "kept": self.what}), kept
        if self.where == "client memory":
            return update, self.what
        return update if self.where == "client" else (update, kept)

    def server(self, state, aggregate):
        made = super().server(state, aggregate)
        return replace(made, slots={"kept": self.what}) if self.where == "server slots" else made

    def faults(self, weighting, local):
        return self.what if self.where == "faults" else []
