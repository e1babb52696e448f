"""FedJAX with its jit backend; ``--workers 1`` keeps XLA on one thread, 2 leaves it its pool."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.peers.given import NETWORKS, Given, asked, finish

for name in ("tree_map", "tree_leaves", "tree_flatten", "tree_unflatten"):
    if not hasattr(jax, name):  # newer JAX removed what FedJAX 0.0.17 calls
        setattr(jax, name, getattr(jax.tree_util, name))

import fedjax  # noqa: E402 - it needs the names above

Weights = list[Any]


def forward(name: str) -> Callable[[Weights, Any], Any]:
    """A workload's network on rows, images as NHWC, weights in torch's layouts."""

    def pool(x: Any) -> Any:
        n, h, w, c = x.shape
        return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))

    def convolve(x: Any, kernel: Any, bias: Any, padding: int) -> Any:
        kernel, pad = jnp.transpose(kernel, (2, 3, 1, 0)), [(padding, padding)] * 2
        made = lax.conv_general_dilated(
            x, kernel, (1, 1), pad, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return made + bias

    def apply(weights: Weights, x: Any) -> Any:
        own = iter(weights)
        for kind, *sizes in NETWORKS[name]:
            if kind == "dense":
                x = x @ next(own).T + next(own)
            elif kind == "conv":
                x = convolve(x, next(own), next(own), int(sizes[3]))
            elif kind == "relu":
                x = jax.nn.relu(x)
            elif kind == "pool":
                x = pool(x)
            else:
                x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)
        return x

    return apply


class Drawn(fedjax.ClientDataset):
    """Rows that are already in the order to train in.

    FedJAX would fill a short last batch with rows of the next epoch; here it stays short, as everywhere.
    """

    def shuffle_repeat_batch(self, hparams: Any = None, **_: Any) -> Iterable[Any]:
        """Batches in order."""
        return self.batch(batch_size=hparams.batch_size)


def server_adam(o: Any) -> Any:
    """The adaptive step of Reddi et al. with Flower's bias correction, as a FedJAX optimiser."""

    def init(weights: Weights) -> Any:
        return 0, [jnp.zeros_like(w) for w in weights], [jnp.zeros_like(w) for w in weights]

    @jax.jit
    def apply(gradients: Weights, state: Any, weights: Weights) -> Any:
        done, m, v = state
        t = done + 2.0
        lr = o["server_lr"] * jnp.sqrt(1 - o["beta2"] ** t) / (1 - o["beta1"] ** t)
        m = [o["beta1"] * a + (1 - o["beta1"]) * g for a, g in zip(m, gradients, strict=True)]
        v = [o["beta2"] * a + (1 - o["beta2"]) * g * g for a, g in zip(v, gradients, strict=True)]
        moved = [
            w - lr * a / (jnp.sqrt(b) + o["tau"]) for w, a, b in zip(weights, m, v, strict=True)
        ]
        return (done + 1, m, v), moved

    return fedjax.optimizers.Optimizer(init, apply)


def algorithm(given: Given) -> Any:
    """FedJAX's algorithm of the method."""
    network, o = forward(given.name), given.options

    def losses(weights: Weights, batch: Any, key: Any) -> Any:
        scores = jax.nn.log_softmax(network(weights, batch["x"]))
        return -jnp.take_along_axis(scores, batch["y"][:, None], 1)[:, 0]

    own = given.optimizer
    local = (
        fedjax.optimizers.adam(own["lr"])
        if own["name"] == "adam"
        else fedjax.optimizers.sgd(own["lr"], own["momentum"] or None)
    )
    batches = fedjax.ShuffleRepeatBatchHParams(batch_size=given.facts["batch"], num_epochs=1)
    if given.method == "fedprox":
        server = fedjax.optimizers.sgd(1.0)
        return fedjax.algorithms.fed_prox.fed_prox(losses, local, server, batches, o["mu"])
    server = server_adam(o) if given.method == "fedadam" else fedjax.optimizers.sgd(1.0)
    gradient = jax.grad(lambda *a: losses(*a).mean())
    return fedjax.algorithms.fed_avg.federated_averaging(gradient, local, server, batches)


def main() -> None:
    """Entry point."""
    given = asked(__doc__)
    if given.workers == 1:  # read when the first array is made
        one = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = one
    fedjax.set_for_each_client_backend("jit")
    x, y = given.array("x"), given.array("y").astype("int32")
    if x.ndim == 5:
        x = x.transpose(0, 1, 3, 4, 2)
    cohorts, orders = given.array("cohorts"), given.array("orders")
    method = algorithm(given)
    state = method.init([jnp.asarray(w) for w in given.initial()])
    ends = [time.time()]
    for number in range(given.rounds):
        keys = jax.random.split(jax.random.PRNGKey(number), cohorts.shape[1])
        clients = [
            (int(c), Drawn({"x": x[c][order], "y": y[c][order]}), key)
            for c, order, key in zip(cohorts[number], orders[number], keys, strict=True)
        ]
        state, _ = method.apply(state, clients)
        jax.block_until_ready(state.params)
        ends.append(time.time())
    finish(given, ends, state.params)


if __name__ == "__main__":
    main()
