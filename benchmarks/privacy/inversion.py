"""Row 9: rows out of updates, with protection off and on.

Digits of scikit-learn, 64 pixels, from which the mean of each class is taken off: a cosine then measures
what is seen of this row, and not what all digits of its class have in common, which the model itself tells.
The attacker knows the model, the labels and what was sent. With a sum it wins when its guess comes
close to any row of anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from atoll.core.layout import Array
from atoll.core.seeds import Seed
from atoll.privacy.audit.inversion import closest, cosine, row_of_dense
from atoll.privacy.dp.clipping import clip
from atoll.privacy.dp.noise import SystemSource, noised
from benchmarks.privacy.figures import Figure

BATCH = 32
"""Rows of a site's batch: the default of a job."""

Update = tuple[Array, Array]


def digits(by_class: bool = False) -> Update:
    """Rows ``(1797, 64)``, centred (each class by itself if so asked), and labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = x - x.mean(axis=0)
    if by_class:
        for label in range(10):
            x[y == label] -= x[y == label].mean(axis=0)
    return np.asarray(x / x.std()), np.asarray(y, np.int64)


def gradient(x: Array, y: Array) -> Update:
    """Mean gradient of softmax regression at zero: weight ``(10, 64)`` and bias ``(10,)``."""
    slope = np.full((len(x), 10), 0.1)
    slope[np.arange(len(x)), y] -= 1.0
    return slope.T @ x / len(x), slope.mean(axis=0)


def private(update: Update, z: float = 1.0) -> Update:
    """The same, clipped to norm 1, with noise of multiplier ``z``."""
    weight, bias = update
    flat = clip(np.concatenate([weight.ravel(), bias]), 1.0)
    flat = noised(SystemSource(), flat, 1.0, z)
    return flat[: weight.size].reshape(weight.shape), flat[weight.size :]


def closed_form(quick: bool = False) -> Sequence[Figure]:
    """The ratio of weight and bias, five ways."""
    trials = 20 if quick else 200

    def one(
        sites: int, batch: int, protect: Callable[[Update], Update], *, strangers: bool = False
    ) -> float:
        found = []
        for trial in range(trials):
            draw = np.random.default_rng([9, trial])
            taken = draw.choice(len(X), sites * batch, replace=False)
            guess = row_of_dense(*protect(gradient(X[taken], Y[taken])))
            near = np.delete(np.arange(len(X)), taken)[: len(taken)] if strangers else taken
            found.append(closest(guess, X[near]) if len(near) > 1 else cosine(guess, X[near[0]]))
        return float(np.median(found))

    X, Y = digits(by_class=True)  # noqa: N806 matrices
    off, five, dp = one(1, 1, _as_is), one(5, BATCH, _as_is), one(1, 1, private)
    return [
        _figure("closed form, one row, protection off", "> 0.99", off, off > 0.99),
        _figure(f"closed form, a sum of 5 sites of {BATCH} rows", "<= 0.6", five, five <= 0.6),
        _figure("closed form, one row, DP (clip 1, z = 1)", "<= 0.2", dp, dp <= 0.2),
        _figure(
            "the same sum, closest of as many rows of strangers",
            "",
            one(5, BATCH, _as_is, strangers=True),
        ),
        _figure(f"closed form, one site of {BATCH} rows, off", "", one(1, BATCH, _as_is)),
        _figure("closed form, a sum of 5 sites of 1 row", "", one(5, 1, _as_is)),
    ]


def _as_is(update: Update) -> Update:
    return update


def _figure(what: str, goal: str, value: float, holds: bool = True) -> Figure:
    return Figure(9, what, goal, f"cosine {value:.3f} (median)", holds)


def optimised(quick: bool = False) -> Sequence[Figure]:
    """Gradient matching on a network with one hidden layer."""
    trials = 3 if quick else 20
    X, Y = digits(by_class=True)  # noqa: N806 matrices
    off = _matched(X, Y, 1, trials, False)
    five = _matched(X, Y, 5 * BATCH, max(2, trials // 4), False, steps=60)
    dp = _matched(X, Y, 1, trials, True)
    return [
        _figure("optimised, one row, protection off", "> 0.99", off, off > 0.99),
        _figure(f"optimised, a sum of 5 sites of {BATCH} rows", "<= 0.6", five, five <= 0.6),
        _figure("optimised, one row, DP (clip 1, z = 1)", "<= 0.2", dp, dp <= 0.2),
    ]


def _matched(x: Array, y: Array, rows: int, trials: int, protect: bool, steps: int = 300) -> float:
    """Median over trials of how close the attack comes.

    With one row: to that row. With several: for each true row the closest guess with its label.
    """
    import torch
    from torch import nn

    from atoll.core.contracts import Examples
    from atoll.models.torch.adapter import TorchTrainer
    from atoll.models.torch.attacks import invert_gradient

    torch.manual_seed(0)
    trainer = TorchTrainer(nn.Sequential(nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 10)))
    start, found = trainer.initial(Seed(0)), list[float]()
    for trial in range(trials):
        taken = np.random.default_rng([9, trial]).choice(len(x), rows, replace=False)
        true, labels = x[taken].astype(np.float32), y[taken]
        seen, _ = trainer.gradient(start, Examples(true, labels))
        if protect:
            seen = noised(SystemSource(), clip(seen, 1.0), 1.0, 1.0).astype(np.float32)
        attack = invert_gradient(trainer, start, seen, labels, (64,), seed=Seed(trial), steps=steps)
        if rows == 1:
            found.append(cosine(attack.rows[0], true[0]))
            continue
        near = [closest(true[i], attack.rows[labels == labels[i]]) for i in range(rows)]
        found.append(float(np.mean(near)))
    return float(np.median(found))
