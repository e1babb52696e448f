"""How far local steps carry a client: the norm of FedNova's accumulation vector a_i.

Local training with a constant learning rate eta moves a client by ``-eta * sum_k a_ik g_k``. The sum of
the weights ``|a_i|_1`` is how many plain steps its steps are worth. It is found by running the local
optimiser, in one scalar, on gradients that are all 1; that gives the closed forms of Wang et al. 2020,
section 4.1, and their combinations:

* plain: ``tau``
* momentum rho: ``(tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho)``
* proximal mu: ``(1 - (1 - eta mu)^tau) / (eta mu)``
"""

from __future__ import annotations

__all__ = ["reach"]


def reach(steps: int, momentum: float = 0.0, nesterov: bool = False, pull: float = 0.0) -> float:
    """``|a_i|_1`` of ``steps`` steps.

    Args:
        steps: tau_i, local steps.
        momentum: rho, heavy-ball coefficient in [0, 1).
        nesterov: whether the momentum is Nesterov's.
        pull: eta * mu, the share of the way back to the anchor that the proximal term takes per step.

    >>> reach(5), reach(2, momentum=0.5), reach(2, pull=0.25)
    (5.0, 2.5, 1.75)
    """
    if momentum == 0.0 and pull == 0.0:
        return float(steps)
    way, velocity = 0.0, 0.0
    for _ in range(steps):
        gradient = 1.0 - pull * way
        velocity = momentum * velocity + gradient
        way += gradient + momentum * velocity if nesterov else velocity
    return way
