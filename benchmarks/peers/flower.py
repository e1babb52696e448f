"""Flower's simulation on Ray: ``--workers`` actors of one thread each."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx
from flwr.simulation import run_simulation

from benchmarks.peers.flower_client import app as client
from benchmarks.peers.given import Given, asked, finish
from benchmarks.peers.torch_work import Network


class _Told(FedAvg):
    """Tells each node of a round which client of the given cohort it is, and notes when rounds end.

    Flower draws nodes itself and hides their partitions from the server, so the cohort goes by places.
    """

    def note(self, given: Given) -> Any:
        self.given, self.ends = given, list[float]()
        return self

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        made = super().configure_train(server_round, arrays, config, grid)
        self.ends = self.ends or [time.time()]
        names = {"workload": self.given.name, "method": self.given.method}
        for place, message in enumerate(made):
            own = ConfigRecord({**config, **names, "place": place})
            yield Message(
                content=RecordDict({"arrays": arrays, "config": own}),
                message_type=message.metadata.message_type,
                dst_node_id=message.metadata.dst_node_id,
            )

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        made = super().aggregate_train(server_round, replies)
        self.ends.append(time.time())
        return made


class _FedProx(_Told, FedProx):
    """FedProx: the client trains with the term, the strategy announces it."""


class _FedAdam(_Told, FedAdam):
    """FedAdam."""


def _strategy(given: Given) -> Any:
    facts, o = given.facts, given.options
    common = {
        "fraction_train": facts["cohort"] / facts["clients"],
        "fraction_evaluate": 0.0,
        "min_train_nodes": facts["cohort"],
        "min_available_nodes": facts["clients"],
    }
    if given.method == "fedprox":
        return _FedProx(**common, proximal_mu=o["mu"]).note(given)
    if given.method == "fedadam":
        rates = {"eta": o["server_lr"], "beta_1": o["beta1"], "beta_2": o["beta2"]}
        return _FedAdam(**common, **rates, tau=o["tau"]).note(given)
    return _Told(**common).note(given)


def main() -> None:
    """Entry point."""
    given = asked(__doc__)
    torch.set_num_threads(1)
    model, strategy = Network.of(given), _strategy(given)
    server, found = ServerApp(), {}

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        start = ArrayRecord(model.state_dict())
        found["result"] = strategy.start(grid=grid, initial_arrays=start, num_rounds=given.rounds)

    cores = os.cpu_count() or 1
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=given.facts["clients"],
        backend_config={
            "init_args": {"num_cpus": cores, "include_dashboard": False},
            "client_resources": {"num_cpus": cores / given.workers, "num_gpus": 0.0},
        },
    )
    finish(given, strategy.ends, found["result"].arrays.to_numpy_ndarrays())


if __name__ == "__main__":
    main()
