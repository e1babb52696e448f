"""BlazeFL's client trainers: ``--mode threads`` or ``processes`` (with shared memory)."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.multiprocessing
from blazefl.core import (
    IPCMode,
    ProcessPoolClientTrainer,
    SHMHandle,
    ThreadPoolClientTrainer,
    deserialize_model,
    serialize_model,
)

from benchmarks.peers.given import asked, finish
from benchmarks.peers.torch_work import Network, as_arrays, client_tensors, train


@dataclass
class Up:
    """What a client sends."""

    weights: Any
    rows: int


@dataclass
class Down:
    """What the server sends."""

    weights: torch.Tensor
    round: int


@dataclass
class Config:
    """Which place of the cohort a client has."""

    place: int


class _Held(threading.local):
    """One model a thread."""

    model: Network | None = None


given = asked(__doc__)
x, y = client_tensors(given)
cohorts, orders = given.array("cohorts"), given.array("orders")
held = _Held()


def work(place: int, down: Down) -> Up:
    """Train one client, as BlazeFL's examples do."""
    torch.set_num_threads(1)
    held.model = model = held.model or Network(given.name)
    with torch.no_grad():
        deserialize_model(model, down.weights)
    client = int(cohorts[down.round, place])
    train(model, given, x[client], y[client], orders[down.round, place])
    with torch.no_grad():
        return Up(serialize_model(model), len(y[client]))


class Threads(ThreadPoolClientTrainer[Up, Down]):
    """Clients in threads of this process."""

    def __init__(self) -> None:
        self.num_parallels, self.device, self.device_count = given.workers, "cpu", 0
        self.cache: list[Up] = []
        self.stop_event = threading.Event()

    def worker(self, cid: int, device: str, payload: Down, stop_event: threading.Event) -> Up:
        """Train one client."""
        return work(cid, payload)

    def uplink_package(self) -> list[Up]:
        """The round's updates."""
        taken, self.cache = self.cache, []
        return taken


class Processes(ProcessPoolClientTrainer[Up, Down, Config]):
    """Clients in forked processes."""

    def __init__(self, size: int) -> None:
        self.num_parallels, self.device, self.device_count = given.workers, "cpu", 0
        self.ipc_mode, self.size = IPCMode.SHARED_MEMORY, size
        self.cache: list[Up] = []
        self.stop_event = torch.multiprocessing.Manager().Event()

    def get_client_config(self, cid: int) -> Config:
        """The place."""
        return Config(cid)

    def prepare_uplink_package_buffer(self) -> Up:
        """Room for one update."""
        return Up(torch.empty(self.size), 0)

    @staticmethod
    def worker(
        config: Any, payload: Any, device: str, stop_event: Any, *, shm_buffer: Any = None
    ) -> Any:
        """Train one client."""
        up = work(config.place, payload)
        shm_buffer.weights.copy_(up.weights)
        return Up(SHMHandle(), up.rows)

    def uplink_package(self) -> list[Up]:
        """The round's updates."""
        taken, self.cache = self.cache, []
        return taken


def main() -> None:
    """Entry point."""
    torch.set_num_threads(1)
    model = Network.of(given)
    with torch.no_grad():
        weights = serialize_model(model).clone()
    trainer = Threads() if given.mode == "threads" else Processes(weights.numel())
    ends = [time.time()]
    for number in range(given.rounds):
        trainer.local_process(Down(weights.clone(), number), list(range(cohorts.shape[1])))
        ups = trainer.uplink_package()
        rows = sum(up.rows for up in ups)
        weights = torch.zeros_like(weights)
        for up in ups:
            weights.add_(up.weights, alpha=up.rows / rows)
        ends.append(time.time())
    with torch.no_grad():
        deserialize_model(model, weights)
    finish(given, ends, as_arrays(model))


if __name__ == "__main__":
    main()
