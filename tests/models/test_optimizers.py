import numpy as np
import pytest
import torch

from atoll.core.errors import JobError
from atoll.core.local import Optimizer
from atoll.models.optimizers import OPTIMIZERS, flat_optimizer

CASES = [
    (Optimizer("sgd"), torch.optim.SGD, {}),
    (Optimizer("sgd", weight_decay=0.1), torch.optim.SGD, {"weight_decay": 0.1}),
    (Optimizer("sgd", momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    (
        Optimizer("sgd", momentum=0.9, nesterov=True, weight_decay=0.1),
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    (
        Optimizer("adam", betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        torch.optim.Adam,
        {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1},
    ),
    (Optimizer("adamw", weight_decay=0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
    (Optimizer("adagrad", eps=1e-6), torch.optim.Adagrad, {"eps": 1e-6}),
    (
        Optimizer("rmsprop", momentum=0.5, weight_decay=0.1),
        torch.optim.RMSprop,
        {"momentum": 0.5, "weight_decay": 0.1},
    ),
]


@pytest.mark.parametrize(("optimizer", "kind", "fields"), CASES)
def test_flat_numpy_steps_equal_torch_optim(optimizer, kind, fields):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=7)
    theirs = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    torch_step = kind([theirs], lr=0.1, **fields)
    step = flat_optimizer(optimizer)
    for t in range(12):
        gradient, lr = rng.normal(size=7), 0.1 / (1 + t)
        torch_step.param_groups[0]["lr"] = lr
        theirs.grad = torch.from_numpy(gradient.copy())
        torch_step.step()
        step(weights, gradient, lr)
        np.testing.assert_allclose(weights, theirs.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_single_precision_stays_single_and_in_place(name):
    weights = np.ones(3, np.float32)
    step = flat_optimizer(Optimizer(name, momentum=0.5, weight_decay=0.1))
    for _ in range(2):
        step(weights, np.ones(3, np.float32), 0.1)
    assert weights.dtype == np.float32
    assert (weights < 1).all()


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(JobError, match="adam"):
        flat_optimizer(Optimizer("adma"))
