"""Apple's pfl-research; with several workers under ``python -m torch.distributed.run``."""

from __future__ import annotations

import math
import time
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.algorithm.fedprox import FedProx, FedProxParams
from pfl.algorithm.scaffold import SCAFFOLD, SCAFFOLDParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.user_state import InMemoryUserStateStorage
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.bridge.pytorch.scaffold import PyTorchSCAFFOLDBridge
from pfl.internal.ops.selector import get_default_framework_module
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional

from benchmarks.peers.given import Given, asked, finish
from benchmarks.peers.torch_work import Network, as_arrays, client_tensors, optimizer


class _ServerAdam(torch.optim.Optimizer):
    """The adaptive step of Reddi et al. with Flower's bias correction, as pfl's central optimiser."""

    def __init__(self, parameters: Any, o: Any) -> None:
        super().__init__(parameters, {**o, "lr": o["server_lr"]})  # pfl reports the rate
        self.moments = [
            (p, torch.zeros_like(p), torch.zeros_like(p))
            for group in self.param_groups
            for p in group["params"]
        ]
        self.done = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Gradients are the negated mean change."""
        o, self.done = self.defaults, self.done + 1
        t = self.done + 1
        lr = o["server_lr"] * math.sqrt(1 - o["beta2"] ** t) / (1 - o["beta1"] ** t)
        for p, m, v in self.moments:
            m.mul_(o["beta1"]).add_(p.grad, alpha=1 - o["beta1"])
            v.mul_(o["beta2"]).addcmul_(p.grad, p.grad, value=1 - o["beta2"])
            p.sub_(lr * m / (v.sqrt() + o["tau"]))


class _Marks(TrainingProcessCallback):
    """Notes when rounds end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *, model: Any) -> Metrics:
        self.ends.append(time.time())
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.ends.append(time.time())
        return False, Metrics()


def _data(given: Given) -> FederatedDataset:
    """Users are places in the rounds' cohorts, one after the other; each has its rows in the given order."""
    (x, y), cohorts, orders = (
        client_tensors(given),
        given.array("cohorts"),
        given.array("orders"),
    )

    def places() -> Iterator[int]:
        yield from range(cohorts.size)

    def rows(place: int) -> PyTorchTensorDataset:
        at = divmod(place, cohorts.shape[1])
        client, order = int(cohorts[at]), torch.from_numpy(orders[at])
        return PyTorchTensorDataset((x[client][order], y[client][order]), user_id=str(client))

    drawn = places()
    return FederatedDataset(rows, lambda: next(drawn))


def _model(given: Given, network: Network) -> PyTorchModel:
    def loss(self: Network, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self(x), y)

    def metrics(self: Network, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        return {"loss": Weighted(float(loss(self, x, y)), len(y))}

    for function in (loss, metrics):
        setattr(network, function.__name__, types.MethodType(function, network))
    own = network.parameters()
    adam = given.method == "fedadam"
    central = _ServerAdam(own, given.options) if adam else torch.optim.SGD(own, lr=1.0)
    return PyTorchModel(network, partial(optimizer, given), central)


def _right_sign() -> None:
    """Exchange c and c_i in the step: pfl 0.6 keeps both negated but adds ``c - c_i`` as the paper does."""
    given = PyTorchSCAFFOLDBridge.do_control_variate_sgd

    def exchanged(
        model: Any, user_dataset: Any, train_params: Any, local_c: Any, server_c: Any
    ) -> None:
        given(model, user_dataset, train_params, local_c=server_c, server_c=local_c)

    PyTorchSCAFFOLDBridge.do_control_variate_sgd = staticmethod(exchanged)


def _algorithm(given: Given) -> tuple[Any, Any]:
    common = {
        "central_num_iterations": given.rounds,
        "evaluation_frequency": math.nan,  # 0 % nan is not 0: no evaluation, not even in the first round
        "train_cohort_size": given.facts["cohort"],
        "val_cohort_size": 0,
    }
    if given.method == "fedprox":
        return FedProx(), FedProxParams(**common, mu=given.options["mu"])
    if given.method == "scaffold":
        _right_sign()
        return SCAFFOLD(), SCAFFOLDParams(
            **common,
            population=given.facts["clients"],
            use_gradient_as_control_variate=False,
            user_state_storage=InMemoryUserStateStorage(),
        )
    return FederatedAveraging(), NNAlgorithmParams(**common)


def main() -> None:
    """Entry point."""
    given = asked(__doc__)
    torch.set_num_threads(1)
    np.random.seed(0)  # noqa: NPY002 - pfl takes its seeds from there
    data, network, marks = _data(given), Network.of(given), _Marks()
    algorithm, parameters = _algorithm(given)
    algorithm.run(
        algorithm_params=parameters,
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=_model(given, network),
        model_train_params=NNTrainHyperParams(
            local_learning_rate=given.optimizer["lr"],
            local_num_epochs=1,
            local_batch_size=given.facts["batch"],
        ),
        callbacks=[marks],
    )
    if get_default_framework_module().distributed.global_rank == 0:
        finish(given, marks.ends, as_arrays(network))


if __name__ == "__main__":
    main()
