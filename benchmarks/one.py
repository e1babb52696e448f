"""One measured run in a process of its own: ``python -m benchmarks.one CONTESTANT WORKLOAD``.

Prints one line, ``RESULT`` and JSON. ``BENCH_START`` in the environment is the moment the process was
asked for, so that the time to the end of the first round holds the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))

CONTESTANTS = ("atoll", "atoll-numpy", "plain", "central")


def _fields(options: Sequence[str]) -> dict[str, Any]:
    """What ``NAME=VALUE`` says: JSON where it is JSON, else text."""
    fields: dict[str, Any] = {}
    for option in options:
        field, _, text = option.partition("=")
        try:
            fields[field] = json.loads(text)
        except ValueError:
            fields[field] = text
    return fields


def chosen(made: Any, method: str, options: Sequence[str], local: Sequence[str]) -> Any:
    """A job with another method, and with fields of its trainer and local optimiser set."""
    from atoll.algorithms import ALGORITHMS
    from benchmarks.peers.given import LOCAL, METHODS

    if method not in ("fedavg", *LOCAL):
        made = replace(made, algorithm=ALGORITHMS[method](**METHODS[method]))
    changed = {**LOCAL.get(method, {}), **_fields(local)}
    if changed:
        optimizer = replace(made.local.optimizer, **changed)
        made = replace(made, local=replace(made.local, optimizer=optimizer))
    fields = _fields(options)
    return replace(made, trainer=replace(made.trainer, **fields)) if fields else made


def _atoll(name: str, rounds: int, workers: int, kind: str, **choices: Any) -> dict[str, Any]:
    from atoll import simulate
    from benchmarks.machine import memory
    from benchmarks.peers.given import rounds_over
    from benchmarks.workloads import job

    made, clients = job(name, rounds, kind)
    made = chosen(made, **choices)
    ends, cpu, held = [time.time()], [time.process_time()], list[float]()

    def watch(record: Mapping[str, Any]) -> None:
        ends.append(time.time())
        cpu.append(time.process_time())
        if record["round"] == rounds:
            held.append(memory(os.getpid()))

    executor = "serial" if workers == 1 else "processes"
    done = simulate(made, clients, executor=executor, workers=workers, observers=[watch])
    rounds_over()
    from benchmarks.plain import loss_and_accuracy, network

    model = done.model
    if kind == "numpy":
        import torch

        model = network(name)
        given = {"weight": done.parameters["weight"], "bias": done.parameters["intercept"]}
        model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in given.items()})
    loss, accuracy = loss_and_accuracy(name, model)
    found = {"ends": ends, "cpu": cpu, "loss": loss, "accuracy": accuracy, "held": held[0]}
    return {**found, "training": done.manifest["training"]}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("workload")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--method", default="fedavg", help="of benchmarks.peers.given; Atoll only")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--local", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    asked = float(os.environ.get("BENCH_START", time.time()))
    if given.contestant.startswith("atoll"):
        choices = {"method": given.method, "options": given.option, "local": given.local}
        kind = "numpy" if given.contestant == "atoll-numpy" else "torch"
        found = _atoll(given.workload, given.rounds, given.workers, kind, **choices)
    else:
        from benchmarks.plain import run

        federated = given.contestant == "plain"
        found = vars(run(given.workload, given.rounds, given.workers, federated))
    from benchmarks.plain import settle

    ends = found.pop("ends")
    times = {"first": ends[1] - asked, "round": settle(ends), "cpu": settle(found.pop("cpu"))}
    result = {**vars(given), **found, **times}
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
