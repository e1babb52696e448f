"""What is computed, one file per published method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from atoll.algorithms.fedadagrad import FedAdagrad
from atoll.algorithms.fedadam import FedAdam
from atoll.algorithms.fedasync import FedAsync
from atoll.algorithms.fedavg import FedAvg
from atoll.algorithms.fedavgm import FedAvgM
from atoll.algorithms.fedbuff import FedBuff
from atoll.algorithms.feddyn import FedDyn
from atoll.algorithms.fednova import FedNova
from atoll.algorithms.fedprox import FedProx
from atoll.algorithms.fedsgd import FedSGD
from atoll.algorithms.fedyogi import FedYogi
from atoll.algorithms.qfedavg import QFedAvg
from atoll.algorithms.scaffold import Scaffold
from atoll.core.contracts import Algorithm

__all__ = [
    "ALGORITHMS",
    "FedAdagrad",
    "FedAdam",
    "FedAsync",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedSGD",
    "FedYogi",
    "QFedAvg",
    "Scaffold",
]

ALGORITHMS: Mapping[str, Callable[..., Algorithm]] = MappingProxyType(
    {
        "fedsgd": FedSGD,
        "fedavg": FedAvg,
        "fedavgm": FedAvgM,
        "fedadagrad": FedAdagrad,
        "fedadam": FedAdam,
        "fedyogi": FedYogi,
        "fedprox": FedProx,
        "scaffold": Scaffold,
        "fednova": FedNova,
        "feddyn": FedDyn,
        "qfedavg": QFedAvg,
        "fedasync": FedAsync,
        "fedbuff": FedBuff,
    }
)
"""Each method by its name in a job file: a frozen dataclass whose fields are its options."""
