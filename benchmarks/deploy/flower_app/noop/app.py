"""Both halves: clients that add a constant, and FedAvg that notes when rounds begin and end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """The model plus a constant."""
    arrays = message.content["arrays"].to_numpy_ndarrays()
    changed = [array + np.float32(1e-3) for array in arrays]
    metrics = MetricRecord({"num-examples": 1, "loss": 0.0})
    content = RecordDict({"arrays": ArrayRecord(changed), "metrics": metrics})
    return Message(content=content, reply_to=message)


class Timed(FedAvg):
    """Federated averaging with a clock."""

    def __init__(self, out: str, **options: Any) -> None:
        super().__init__(**options)
        self.out, self.marks = Path(out), list[list[float]]()

    def configure_train(self, *arguments: Any, **named: Any) -> Iterable[Message]:
        """A round begins."""
        self.marks.append([time.time()])
        return super().configure_train(*arguments, **named)

    def aggregate_train(self, *arguments: Any, **named: Any) -> Any:
        """It ends."""
        made = super().aggregate_train(*arguments, **named)
        self.marks[-1].append(time.time())
        self.out.write_text(json.dumps(self.marks))
        return made


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    config = context.run_config
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(config["values"] // 10, dtype=np.float32) for _ in range(10)]
    strategy = Timed(
        config["out"],
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=4,
        min_available_nodes=4,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(arrays),
        num_rounds=int(config["num-server-rounds"]),
    )
