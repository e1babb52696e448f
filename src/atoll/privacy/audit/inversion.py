"""Rows out of the change of a dense layer, in closed form.

For a dense layer z = W x + b and one row, the chain rule gives dL/dW = g x^T and dL/db = g, with
g = dL/dz. Each output i with g_i != 0 therefore shows the row: x = (dL/dW)_i / (dL/db)_i. The change
after one gradient step is the gradient times a constant, which cancels. Over several rows the ratio is
their mean weighted by g_i, which is why sums protect.

Reference: Phong, Aono, Hayashi, Wang, Moriai, "Privacy-Preserving Deep Learning via Additively
Homomorphic Encryption", IEEE TIFS 13 (2018), https://eprint.iacr.org/2017/715, section III.
"""

from __future__ import annotations

import numpy as np

from atoll.core.errors import LayoutError
from atoll.core.layout import Array

__all__ = ["closest", "cosine", "row_of_dense", "rows_of_dense"]


def rows_of_dense(weight: Array, bias: Array) -> Array:
    """One guess of an input row per output, ``(outputs, inputs)``; zeros where an output was silent.

    Args:
        weight: change or gradient of W, ``(outputs, inputs)``.
        bias: change or gradient of b, ``(outputs,)``.

    Raises:
        LayoutError: the shapes are not those of one layer.

    >>> rows_of_dense(np.array([[2.0, -4.0], [0.0, 0.0]]), np.array([-2.0, 0.0])).tolist()
    [[-1.0, 2.0], [0.0, 0.0]]
    """
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise LayoutError(f"weight {weight.shape} and bias {bias.shape} are not of one dense layer")
    change, shift = weight.astype(np.float64), bias.astype(np.float64)
    guesses = np.zeros_like(change)
    heard = shift != 0
    guesses[heard] = change[heard] / shift[heard, None]
    return guesses


def row_of_dense(weight: Array, bias: Array) -> Array:
    """The guess of the output that changed most, ``(inputs,)``: an attacker who must decide.

    Args:
        weight: change or gradient of W, ``(outputs, inputs)``.
        bias: change or gradient of b, ``(outputs,)``.
    """
    guess: Array = rows_of_dense(weight, bias)[int(np.argmax(np.abs(bias)))]
    return guess


def cosine(one: Array, other: Array) -> float:
    """Cosine of the angle between two vectors; 0 when one of them is zero."""
    a, b = np.ravel(one).astype(np.float64), np.ravel(other).astype(np.float64)
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else 0.0


def closest(guess: Array, rows: Array) -> float:
    """The largest cosine between ``guess`` ``(inputs,)`` and any of ``rows`` ``(n, inputs)``."""
    return max((cosine(guess, row) for row in rows), default=0.0)
