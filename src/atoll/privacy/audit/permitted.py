"""What an account permits: no attack finds more members than this, whatever the rows and the model.

With an epsilon at each delta, an attack that takes a share a of the strangers for members finds at most
``e^epsilon a + delta`` of the members, and at most ``1 - (1 - a - delta) / e^epsilon`` (Kairouz, Oh,
Viswanath, *The Composition Theorem for Differential Privacy*, ICML 2015, https://arxiv.org/abs/1311.0776).
The smallest of these over delta is the bound. A measured risk lies below it, mostly far: the bound
is for the worst row in the worst company, and an attacker who knows everything else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from atoll.core.errors import JobError
from atoll.privacy.dp.accounting import epsilon
from atoll.privacy.dp.events import Event

__all__ = ["permitted"]

_POWERS = tuple(-k / 3 for k in range(2, 19))
"""Of ten: delta is looked for from 0.2 down to 1e-6, and then closer to the best of these."""


def permitted(events: Iterable[Event], fpr: float = 0.01) -> float:
    """Most of the members that any attack can find at a false positive rate of ``fpr``.

    Args:
        events: what was released; one unit more or less is what the attack is after.
        fpr: share of strangers that it takes for members, in (0, 1).

    Raises:
        JobConflict: no accountant reads these events.
        JobError: ``fpr`` is out of range.
        MissingExtra: dp-accounting is not installed.
    """
    if not 0 < fpr < 1:
        raise JobError(f"a false positive rate of {fpr} is not in (0, 1)")
    listed = list(events)

    def bound(power: float) -> float:
        delta = math.pow(10.0, power)
        grown = math.exp(min(epsilon(listed, delta), 700.0))
        return min(grown * fpr + delta, 1.0 - (1.0 - fpr - delta) / grown)

    best = min(_POWERS, key=bound)
    near = [best + k / 12 for k in range(-3, 4) if best + k / 12 < 0]
    return max(fpr, min(1.0, *map(bound, near)))
