"""Networks that worker processes can import."""

import torch
from torch import nn

WIDTH = 6


def dense(dtype="float32"):
    net = nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    return net.to(getattr(torch, dtype))


def image(dtype="float32"):
    net = nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, 2, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return net.to(getattr(torch, dtype))


def wide(dtype="float32"):
    """Large enough that a few clients share a sum."""
    net = nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 32, 2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 150),
        nn.ReLU(),
        nn.Linear(150, 3),
    )
    return net.to(getattr(torch, dtype))
