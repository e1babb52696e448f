"""Runs to report on: a small one of three hospitals, and makers of odd ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SITES = {"north": 100, "south": 60, "west": 20}


def record(number: int, **changes: Any) -> dict[str, Any]:
    score = 0.9 - 0.3 / number
    return {
        "round": number,
        "version": number,
        "clock": float(number),
        "seconds": 0.25,
        "committed": True,
        "reason": "",
        "invited": list(SITES),
        "contributed": dict(SITES),
        "missing": {},
        "staleness": {"mean": 0.0, "max": 0},
        "train": {"loss": 1.0 / number},
        "central": {"loss": 1.1 / number, "accuracy": score, "auc": score + 0.05},
        "federated": {"loss": 1.2 / number, "accuracy": score - 0.01, "auc": score + 0.03},
        "sites": {site: {"auc": score} for site in SITES},
        **changes,
    }


@pytest.fixture
def make_record() -> Callable[..., dict[str, Any]]:
    return record


@pytest.fixture
def rounds() -> list[dict[str, Any]]:
    return [record(number) for number in range(1, 7)]


@pytest.fixture
def manifest() -> dict[str, Any]:
    values = {"north": (0.80, 0.85, 0.86), "south": (0.90, 0.902, 0.95), "west": (0.70, 0.60, None)}
    return {
        "name": "three hospitals",
        "atoll": "0.1.0",
        "job": {"algorithm": {"name": "fedavg"}, "rounds": 6},
        "job_hash": "ab" * 32,
        "seed": 7,
        "started": "2025-01-02T03:04:05Z",
        "finished": "2025-01-02T03:04:07Z",
        "seconds": 2.0,
        "status": "completed",
        "rounds": 6,
        "data": {site: {"rows": n, "fingerprint": "cd" * 32} for site, n in SITES.items()},
        "cards": [
            {
                "site": site,
                "rows": n,
                "missing": {"chol": n // 2, "age": 0},
                "labels": {"0": n // 4, "1": n - n // 4},
            }
            for site, n in SITES.items()
        ],
        "versions": {"python": "3.11.2", "numpy": "2.0"},
        "executor": "serial",
        "model_hash": "ef" * 32,
        "parameters": 1234,
        "best": {"round": 6, "metric": "central.auc", "value": 0.9},
        "comparison": {
            "metric": "auc",
            "sites": {
                site: {
                    way: {"auc": value, "accuracy": None if value is None else value - 0.1}
                    for way, value in zip(("alone", "federated", "pooled"), row, strict=True)
                }
                for site, row in values.items()
            },
        },
        "notes": ["west holds few rows"],
    }
