"""A small network, its rows, and a private trainer for it."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from atoll.core.contracts import Examples
from atoll.core.local import LocalRule
from atoll.core.seeds import Seed
from atoll.models.private import RecordPrivacy
from atoll.models.torch.adapter import TorchTrainer
from atoll.models.torch.private import PrivateTorchTrainer

sys.path.insert(0, str(Path(__file__).parent))

from replayed import Quiet

CLIP = 0.3
LOUD = RecordPrivacy(CLIP, 1.0)


def dense():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))


def some(shape, n=12, seed=0, classes=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, *shape)).astype(np.float32)
    if len(shape) == 1 and shape[0] in (3, 5):
        x = rng.integers(0, 9, size=(n, *shape))
    return Examples(x, rng.integers(0, classes, n))


def private(build, privacy=LOUD, randomness=Quiet, seed=0, **fields):
    torch.manual_seed(seed)
    return PrivateTorchTrainer(TorchTrainer(build(), **fields), privacy, randomness)


def fit(trainer, data, work, rule=None, start=None):
    start = trainer.initial(Seed(0)) if start is None else start
    return trainer.fit(start, data, work=work, rule=rule or LocalRule(), seed=Seed(1), round=0)
