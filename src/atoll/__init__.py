"""Atoll: federated learning for data that may not be pooled.

The public surface, written by hand. ``import atoll`` needs NumPy only: what is heavier is imported
when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atoll import stats
    from atoll.connection import Connection, connect
    from atoll.core.contracts import Examples, Weighting
    from atoll.core.errors import AtollError
    from atoll.core.local import LocalWork, Optimizer
    from atoll.job import Job, load_job
    from atoll.runtime.clock import Availability, Clock, Delay
    from atoll.runtime.cohort import Cohort
    from atoll.runtime.loop import Stop
    from atoll.runtime.schedule import Asynchronous, Synchronous
    from atoll.simulation import Run, simulate

__version__ = "0.1.0"

__all__ = [
    "Asynchronous",
    "AtollError",
    "Availability",
    "Clock",
    "Cohort",
    "Connection",
    "Delay",
    "Examples",
    "Job",
    "LocalWork",
    "Optimizer",
    "Run",
    "Stop",
    "Synchronous",
    "Weighting",
    "__version__",
    "connect",
    "load_job",
    "simulate",
    "stats",
]

_HOMES = {
    "Asynchronous": "atoll.runtime.schedule",
    "AtollError": "atoll.core.errors",
    "Availability": "atoll.runtime.clock",
    "Clock": "atoll.runtime.clock",
    "Cohort": "atoll.runtime.cohort",
    "Connection": "atoll.connection",
    "Delay": "atoll.runtime.clock",
    "Examples": "atoll.core.contracts",
    "Job": "atoll.job",
    "LocalWork": "atoll.core.local",
    "Optimizer": "atoll.core.local",
    "Run": "atoll.simulation",
    "Stop": "atoll.runtime.loop",
    "Synchronous": "atoll.runtime.schedule",
    "Weighting": "atoll.core.contracts",
    "connect": "atoll.connection",
    "load_job": "atoll.job",
    "simulate": "atoll.simulation",
    "stats": "atoll",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'atoll' has no attribute {name!r}")
    home = _HOMES[name]
    if home == "atoll":  # a package of its own
        return importlib.import_module(f"atoll.{name}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
