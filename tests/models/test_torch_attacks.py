"""Gradient matching finds the row of a gradient, and says how far it came."""

import numpy as np
import pytest
import torch

from atoll.core.contracts import Examples
from atoll.core.errors import LayoutError
from atoll.core.seeds import Seed
from atoll.models.torch.adapter import TorchTrainer
from atoll.models.torch.attacks import invert_gradient
from atoll.privacy.audit.inversion import cosine


def trainer():
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 3)
    return TorchTrainer(torch.nn.Sequential(*layers))


ROW = np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)
LABEL = np.array([1])


def attacked(seen, **how):
    model = trainer()
    return invert_gradient(model, model.initial(Seed(0)), seen, LABEL, (6,), seed=Seed(1), **how)


def gradient():
    model = trainer()
    return model.gradient(model.initial(Seed(0)), Examples(ROW, LABEL))[0]


def test_the_row_of_a_gradient_is_found_whatever_its_scale():
    for scale in (1.0, 1e-3):
        found = attacked(gradient() * np.float32(scale))
        assert cosine(found.rows[0], ROW[0]) > 0.99
        assert found.distance < 1e-4


def test_noise_leaves_a_distance_and_no_row():
    noise = np.random.default_rng(1).normal(size=gradient().shape).astype(np.float32)
    found = attacked(noise, steps=100)
    assert found.distance > 0.3


def test_the_best_of_several_starts_counts_and_repeats():
    once, best = (attacked(gradient(), steps=3, restarts=n) for n in (1, 4))
    assert best.distance <= once.distance
    again = attacked(gradient(), steps=3, restarts=4)
    assert np.array_equal(best.rows, again.rows)


def test_a_gradient_of_another_model_is_refused():
    with pytest.raises(LayoutError):
        attacked(np.zeros(5, np.float32))
