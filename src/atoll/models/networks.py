"""Torch networks by name, and image augmentation.

Image networks take ``(n, 28, 28)``, ``(n, 1, 28, 28)`` or ``(n, 784)``. All give logits. Sizes are
those of the published comparisons they serve; the parameter counts are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from atoll.core.errors import DataError, JobError, MissingExtra, suggest
from atoll.models.undisturbed import undisturbed

try:
    with undisturbed():
        import torch
    from torch import Tensor, nn
    from torch.nn import functional
except ImportError as missing:  # pragma: no cover - depends on the installation
    raise MissingExtra(
        "torch is not installed", remedy="pip install 'atoll[torch]', or use a linear model"
    ) from missing

__all__ = [
    "NETWORKS",
    "CropFlip",
    "cnn_thesis",
    "lenet_niid",
    "logistic",
    "mlp",
    "network",
    "paper_cnn",
]


class Rows(nn.Module):
    """Gives each row one shape, whatever shape it came in."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], *self.shape)


def mlp(inputs: int = 784, hidden: Sequence[int] = (200,), classes: int = 10) -> nn.Module:
    """Dense layers with ReLU between them.

    >>> sum(p.numel() for p in mlp(4, (3,), 2).parameters())
    23
    """
    widths = [inputs, *hidden]
    layers: list[nn.Module] = [Rows(inputs)]
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def logistic(inputs: int = 784, classes: int = 10) -> nn.Module:
    """Multinomial logistic regression: one dense layer."""
    return nn.Sequential(Rows(inputs), nn.Linear(inputs, classes))


def _pooled(channels: int, out: int, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)]


def _dense(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return layers[:-1]


def cnn_thesis(classes: int = 10) -> nn.Module:
    """Two 5x5 convolutions (16, 32) and 512-128-classes: 80,202 parameters.

    The network of the 15-seed Fashion-MNIST comparison
    (samuele-lolli/Aggregation-Federated-Learning-Analysis).
    """
    return nn.Sequential(
        Rows(1, 28, 28), *_pooled(1, 16), *_pooled(16, 32), *_dense(512, 128, classes)
    )


def lenet_niid(classes: int = 10) -> nn.Module:
    """Two 5x5 convolutions (6, 16) and 256-120-84-classes: 44,426 parameters.

    The network of NIID-Bench (Li et al., ICDE 2022, doi:10.1109/ICDE53745.2022.00077).
    """
    return nn.Sequential(
        Rows(1, 28, 28), *_pooled(1, 6), *_pooled(6, 16), *_dense(256, 120, 84, classes)
    )


def paper_cnn(classes: int = 10) -> nn.Module:
    """Two padded 5x5 convolutions (32, 64) and 3136-512-classes: 1,663,370 parameters.

    The CNN of McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS 2017.
    """
    return nn.Sequential(
        Rows(1, 28, 28), *_pooled(1, 32, 2), *_pooled(32, 64, 2), *_dense(3136, 512, classes)
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cnn_thesis": cnn_thesis,
    "lenet_niid": lenet_niid,
    "logistic": logistic,
    "mlp": mlp,
    "paper_cnn": paper_cnn,
}
"""Building functions by name; pass one with its arguments to ``TorchTrainer``."""


def network(name: str) -> Callable[..., nn.Module]:
    """The building function called ``name``.

    Raises:
        JobError: with the nearest known name.
    """
    if name not in NETWORKS:
        raise JobError(f"unknown network {name!r}", remedy=suggest(name, NETWORKS))
    return NETWORKS[name]


@dataclass(frozen=True)
class CropFlip:
    """Random crop after padding, then a horizontal flip for half of the images.

    Each image gets its own offset; all of a batch are cut by one gather.

    Args:
        padding: pixels added on every side.
        fill: value of the added pixels. Where published code crops *before* it normalises, the
            padding is the normalised black: ``(0 - mean) / std`` when the data here are normalised.
        flip: whether to flip.
        size: height and width, for images that come as flat rows.
    """

    padding: int = 4
    fill: float = 0.0
    flip: bool = True
    size: tuple[int, int] = (28, 28)

    def __call__(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Images of the shape they came in: ``(n, h * w)``, ``(n, h, w)`` or ``(n, c, h, w)``.

        Raises:
            DataError: rows that are no images of this size.
        """
        height, width = self.size if batch.dim() == 2 else batch.shape[-2:]
        pixels = height * width
        if batch[:1].numel() % pixels:
            raise DataError(
                f"rows of shape {tuple(batch.shape[1:])} are no images of {height} x {width}",
                remedy="set size=",
            )
        n, p = len(batch), self.padding
        padded = functional.pad(batch.reshape(n, -1, height, width), (p, p, p, p), value=self.fill)
        offset = torch.randint(0, 2 * p + 1, (2, n, 1), generator=generator)
        rows = offset[0] + torch.arange(height)
        columns = offset[1] + torch.arange(width)
        if self.flip:
            turned = torch.rand((n, 1), generator=generator) < 0.5
            columns = torch.where(turned, columns.flip(1), columns)
        cells = (rows[:, :, None] * (width + 2 * p) + columns[:, None, :]).reshape(n, 1, pixels)
        flat = padded.flatten(2)
        return flat.gather(2, cells.expand(-1, flat.shape[1], -1)).reshape(batch.shape)
