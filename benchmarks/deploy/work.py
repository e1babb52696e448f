"""The workloads of a deployment, and what each contestant prints (nothing but the standard library).

Training does nothing but add a constant: what is measured is everything around it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["WORKLOADS", "Given", "Workload", "asked", "finish"]


@dataclass(frozen=True)
class Workload:
    """How much there is to send.

    Args:
        values: float32 parameters of the model, in ten arrays.
        rounds: of a run.
        turns: runs of each contestant.
    """

    values: int
    rounds: int
    turns: int


WORKLOADS = MappingProxyType({"W5": Workload(25_000_000, 5, 3), "W6": Workload(100_000, 50, 5)})
"""A large model and a small one; four clients."""


@dataclass(frozen=True)
class Given:
    """One run to make.

    Args:
        name: of the workload.
        values: parameters of the model.
        rounds: to run.
        sites: clients.
        watch: whether memory is looked at, which costs time.
        keep: a folder to leave everything in; empty for none.
        aggregation: ``plain``, ``quantised``, ``masked`` or ``encrypted``; Atoll alone knows the others.
        buffered: whether rounds are FedBuff's, each a buffer of all sites; Atoll alone.
    """

    name: str
    values: int
    rounds: int
    sites: int
    watch: bool
    keep: str
    aggregation: str = "plain"
    buffered: bool = False


def asked(doc: str | None) -> Given:
    """Read the command line of a contestant."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("name", choices=list(WORKLOADS))
    parser.add_argument("--values", type=int, default=0, help="parameters; 0: the workload's")
    parser.add_argument("--rounds", type=int, default=0, help="0: the workload's")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--watch", action="store_true", help="look at the memory")
    parser.add_argument("--keep", default="", help="a folder to leave everything in")
    kinds = ("plain", "quantised", "masked", "encrypted")
    parser.add_argument("--aggregation", choices=kinds, default="plain", help="masked: 5 sites on")
    parser.add_argument("--buffered", action="store_true", help="FedBuff, a buffer of all sites")
    given = parser.parse_args()
    own = WORKLOADS[given.name]
    told = vars(given) | {
        "values": given.values or own.values,
        "rounds": given.rounds or own.rounds,
    }
    return Given(**told)


def finish(
    ends: Sequence[float], start: float, memory: Mapping[str, float], sent: float = 0.0
) -> None:
    """Print the clock's readings.

    Args:
        ends: seconds, when each round was done.
        start: when the first began.
        memory: MB by what; empty where it was not looked at.
        sent: bytes of a site's answers in a round; 0 where they were not counted.
    """
    result: dict[str, Any] = {"ends": [e - start for e in ends], "memory": dict(memory)}
    result["sent"] = sent
    print("\nRESULT " + json.dumps(result), flush=True)
