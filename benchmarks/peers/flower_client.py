"""Flower's client. A module of its own: Ray then pickles it by name, and workers keep model and data."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.peers.given import Array, Given
from benchmarks.peers.torch_work import Network, train

__all__ = ["app"]

app = ClientApp()


@cache
def _kept(name: str, method: str) -> tuple[Given, Network, dict[str, Array]]:
    torch.set_num_threads(1)
    given = Given(name, method, 0, 1, "", "")
    arrays = {what: given.array(what, mapped=True) for what in ("x", "y", "cohorts", "orders")}
    return given, Network(name), arrays


@app.train()
def local(message: Message, context: Context) -> Message:
    """Train the client that stands at this place of the round's cohort."""
    config = message.content["config"]
    if not isinstance(config, ConfigRecord):
        raise TypeError("the server sends a configuration")
    given, model, arrays = _kept(str(config["workload"]), str(config["method"]))
    number, place = int(config["server-round"]) - 1, int(config["place"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    client = arrays["cohorts"][number, place]
    x, y = (torch.from_numpy(np.array(arrays[what][client])) for what in "xy")
    train(model, given, x, y, np.array(arrays["orders"][number, place]))
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(y)}),
    }
    return Message(content=RecordDict(content), reply_to=message)
