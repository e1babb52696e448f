"""Flower's simulation on Ray, plain or with its SecAgg+ workflow and client mod; no-op training.

A round counts from the strategy's configuration to the end of its average.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")

import numpy as np
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import Context, Message, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.serde import recorddict_to_proto
from flwr.server import Grid, LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.simulation import run_simulation

from benchmarks.masked.work import Given, asked, finish, trained, wrong

STEPS = {"plain": ("train",), "masked": ("keys", "shares", "train", "unmask")}
"""What the calls of a round are about, in order."""


class _Client(NumPyClient):
    """Adds its constant; counts as one example, as the others do."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict]:
        return [trained(array, self._number) for array in parameters], 1, {}


class _Timed(FedAvg):
    """Notes when rounds begin and end, and what they end in."""

    def configure_fit(self, *args: Any, **kwargs: Any) -> Any:
        self.begun = time.perf_counter()
        return super().configure_fit(*args, **kwargs)

    def aggregate_fit(self, *args: Any, **kwargs: Any) -> Any:
        found = super().aggregate_fit(*args, **kwargs)
        if found[0] is None:
            raise SystemExit("the round failed")
        self.seconds = [*getattr(self, "seconds", []), time.perf_counter() - self.begun]
        self.last = parameters_to_ndarrays(found[0])[0]
        return found


class _Counting:
    """A grid that counts what passes; by the place of a call within its round."""

    def __init__(self, grid: Grid, clients: int, steps: tuple[str, ...]) -> None:
        self._grid, self._clients, self._steps = grid, clients, steps
        self._calls = 0
        self.sizes: dict[str, tuple[float, float]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable[Message], **kwargs: Any) -> Iterable[Message]:
        sent = list(messages)
        replies = list(self._grid.send_and_receive(sent, **kwargs))
        down, up = (sum(map(_size, each)) / self._clients for each in (sent, replies))
        self.sizes[self._steps[self._calls % len(self._steps)]] = down, up
        self._calls += 1
        return replies


def _size(message: Message) -> int:
    return int(recorddict_to_proto(message.content).ByteSize())


def _workflow(given: Given) -> DefaultWorkflow:
    if given.way == "plain":
        return DefaultWorkflow()
    # Shares for everybody, and the same threshold as ours; no weights, as nobody has any.
    secure = SecAggPlusWorkflow(
        num_shares=given.clients,
        reconstruction_threshold=2 * given.clients // 3 + 1,
        max_weight=1,
    )
    return DefaultWorkflow(fit_workflow=secure)


def main() -> None:
    """Entry point."""
    given = asked(__doc__, tuple(STEPS))
    strategy = _Timed(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=given.clients,
        min_available_clients=given.clients,
        initial_parameters=ndarrays_to_parameters([np.zeros(given.values, np.float32)]),
    )
    server, sizes = ServerApp(), dict[str, tuple[float, float]]()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        counting = _Counting(grid, given.clients, STEPS[given.way])
        legacy = LegacyContext(
            context=context, config=ServerConfig(num_rounds=given.rounds), strategy=strategy
        )
        _workflow(given)(counting if given.sizes else grid, legacy)
        sizes.update(counting.sizes)

    mods = [secaggplus_mod] if given.way == "masked" else []
    number = "partition-id"
    run_simulation(
        server_app=server,
        client_app=ClientApp(
            client_fn=lambda context: _Client(int(context.node_config[number])).to_client(),
            mods=mods,
        ),
        num_supernodes=given.clients,
        backend_config={
            "init_args": {"num_cpus": os.cpu_count() or 1, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    finish(strategy.seconds, wrong(strategy.last, given.clients, given.rounds), sizes)


if __name__ == "__main__":
    main()
