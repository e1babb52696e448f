"""Workload S1: training that does nothing, so that a round is what surrounds it (NumPy and no more).

Client i adds ``SHIFT * (i + 1)`` to every parameter. The model starts at zeros, so it is known what every
mean must be.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["SHIFT", "Given", "asked", "finish", "trained", "wrong"]

SHIFT = 2.0**-10
"""What the first client adds; exact in float32."""

Vector = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Given:
    """One run to make.

    Args:
        way: ``plain``, ``masked`` or ``encrypted``.
        clients: in every round.
        values: float32 parameters.
        rounds: of the run.
        sizes: whether bytes are counted instead of seconds.
    """

    way: str
    clients: int
    values: int
    rounds: int
    sizes: bool


def asked(doc: str | None, ways: Sequence[str]) -> Given:
    """Read the command line of a contestant."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("way", choices=ways)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--sizes", action="store_true", help="count bytes instead of seconds")
    given = parser.parse_args()
    return Given(given.way, given.clients, given.values, given.rounds, given.sizes)


def trained(model: Vector, client: int) -> Vector:
    """The model of the client with this number (from 0) after its training."""
    return model + np.float32(SHIFT * (client + 1))


def wrong(model: Vector, clients: int, rounds: int) -> float:
    """How far a model is from the true one, at most."""
    mean = SHIFT * (clients + 1) / 2
    return float(np.abs(np.asarray(model, np.float64) - rounds * mean).max())


def finish(seconds: Sequence[float], off: float, sizes: Mapping[str, Sequence[float]]) -> None:
    """Print what was found.

    Args:
        seconds: of each round.
        off: see :func:`wrong`, after the last.
        sizes: bytes that go down to a client and up from it, by step of a round.
    """
    steps = {step: list(both) for step, both in sizes.items()}
    result = {"seconds": list(seconds), "off": off, "sizes": steps}
    print("\nRESULT " + json.dumps(result), flush=True)
