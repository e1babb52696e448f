"""What in a module stands against record-level privacy: everything at once, each with its way out.

The clipped gradient of a row says what the row contributes only if nothing else carries it: no layer may
mix rows, nothing may keep a statistic of them, and the loss must be a mean (or sum) over rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from atoll.core.errors import Fault
from atoll.models.torch.flat import Bench
from atoll.models.torch.private_dense import Chained
from atoll.models.torch.private_rows import Layers, Mapped, NoLayers, Rows, Total
from atoll.models.torch.record import Twin, Untraceable

__all__ = ["choose", "faults", "made_up", "mixes"]

Loss = Callable[[Tensor, Tensor], Tensor]

_ROWS = 4
_NEAR = 1e-4


def made_up(shape: tuple[int, ...], dtype: torch.dtype, rows: int = _ROWS) -> Tensor:
    """Rows of nobody: normal values, or the whole numbers 0 and 1."""
    draw = torch.Generator().manual_seed(1)
    if dtype.is_floating_point:
        return torch.randn((rows, *shape), dtype=dtype, generator=draw)
    if dtype == torch.bool:
        return torch.randint(0, 2, (rows, *shape), generator=draw).bool()
    return torch.randint(0, 2, (rows, *shape), dtype=dtype, generator=draw)


def faults(bench: Bench, loss: Loss, summed: bool, x: Tensor, y: Tensor) -> list[Fault]:
    """All that is wrong with training this module privately.

    Args:
        bench: the module.
        loss: (outputs, targets) -> scalar.
        summed: whether it is a sum over rows rather than a mean.
        x: some rows, at least two; they are replaced and shuffled, only shapes count.
        y: their targets.
    """
    found = [*_built_in(bench)]
    module = bench.module
    held = {name: value.clone() for name, value in module.named_buffers()}
    mixing = [m for m in module.modules() if isinstance(m, _BatchNorm | _InstanceNorm)]
    module.train()
    for part in mixing:  # named already: what else is wrong shows with them at rest
        part.eval()
    try:
        kept = [*_memories(module, loss, x, y)]  # before it has seen anything
        with torch.no_grad():
            found += _behaviour(module, loss, summed, x, y)
            found += [
                Fault(name, "a buffer that training changes", "it would leave without noise")
                for name, value in module.named_buffers()
                if name in held and not torch.equal(held[name], value)
            ]
        found = found or kept
        if not found:
            found += _differentiable(bench, loss, summed, x, y)
    finally:
        with torch.no_grad():
            for name, value in module.named_buffers():
                if name in held:
                    value.copy_(held[name])
    return found


def mixes(augment: Callable[[Tensor, torch.Generator], Tensor], x: Tensor) -> Iterator[Fault]:
    """Whether rows reach each other on the way to the module, for a few draws of its randomness."""

    def run(given: Tensor, seed: int) -> Tensor:
        return augment(given.clone(), torch.Generator().manual_seed(seed))

    for seed in range(_ROWS):
        whole = run(x, seed)
        alone = [run(row[None].expand_as(x), seed)[i] for i, row in enumerate(x)]
        if len(whole) != len(x) or not torch.equal(whole, torch.stack(alone)):
            yield Fault(
                "augment",
                "a row it gives depends on the other rows of the batch",
                "change each row by itself",
            )
            return


def _built_in(bench: Bench) -> Iterator[Fault]:
    if not bench.trained:
        yield Fault("module", "nothing in it is trained", "unfreeze some parameters")
    for value, _, slope in bench.copied:
        if slope is not None:
            shape = tuple(value.shape)
            yield Fault(
                "module", f"a parameter {shape} of {value.dtype}", "use one dtype throughout"
            )
    for name, part in bench.module.named_modules():
        kind = type(part).__name__
        if isinstance(part, _BatchNorm):
            yield Fault(name, f"{kind} mixes the rows of a batch", "use GroupNorm or LayerNorm")
        elif isinstance(part, _InstanceNorm) and part.track_running_stats:
            yield Fault(name, f"{kind} keeps statistics of rows", "set track_running_stats=False")
        elif isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.max_norm is not None:
            yield Fault(name, f"{kind} changes its weights in use", "leave out max_norm")


def _behaviour(
    module: nn.Module, loss: Loss, summed: bool, x: Tensor, y: Tensor
) -> Iterator[Fault]:
    state = torch.get_rng_state()

    def run(given: Tensor) -> Tensor:
        torch.set_rng_state(state)  # dropout must fall the same way
        out: Tensor = module(given)
        return out

    try:
        whole = run(x)
        other = x.clone()
        other[1:] = x[:1]
        alone = run(other)
    except (RuntimeError, IndexError) as error:
        yield Fault("module", f"it does not run on rows like these: {_first(error)}")
        return
    if len(whole) != len(x):
        yield Fault("module", f"{len(whole)} outputs for {len(x)} rows", "give one for each row")
        return
    if not torch.allclose(whole[0], alone[0], rtol=_NEAR, atol=_NEAR * _top(whole)):
        yield Fault(
            "module",
            "a row's output depends on the other rows of its batch",
            "take out what mixes rows: statistics, attention or products over the batch",
        )
    with suppress(RuntimeError, IndexError):
        single = sum(float(loss(whole[i : i + 1], y[i : i + 1])) for i in range(len(x)))
        joint = float(loss(whole, y)) * (1 if summed else len(x))
        same = abs(single - joint) <= _NEAR * max(abs(single), 1.0)
        if not same and not math.isnan(joint):  # a row whose class is ignored has no mean
            yield Fault(
                "loss",
                "it is no mean over rows",
                "average the loss of each row, with equal weights",
            )


def _memories(module: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> Iterator[Fault]:
    """What one batch leaves for the next, where it would move the gradients of all rows after it."""
    try:
        twin = Twin(module, loss)
    except Untraceable as why:
        yield Fault("module", str(why), "keep nothing in it that cannot be copied")
        return
    with torch.no_grad(), suppress(Exception):  # what fails is told by who runs it next
        twin.loss(twin.module(x), y)
    if twin.altered() or not all(torch.equal(t, real) for t, real in twin.bound):
        yield Fault(
            "module",
            "it keeps something of a batch in its attributes",
            "let the forward pass change nothing but its own values",
        )


def _differentiable(
    bench: Bench, loss: Loss, summed: bool, x: Tensor, y: Tensor
) -> Iterator[Fault]:
    def total(module: nn.Module, given: Tensor, target: Tensor) -> Tensor:
        return loss(module(given), target)

    try:
        Mapped(bench, total).gradients(x, y)
    except (RuntimeError, ValueError) as error:
        if "view size is not compatible" in str(error):
            raise
        yield Fault(
            "module", f"no gradients by row: {_first(error)}", "write it in plain operations"
        )


def choose(
    bench: Bench, total: Total, x: Tensor, y: Tensor, loss: object = None
) -> tuple[Rows, str]:
    """The fastest way that gives the right row gradients, and why it is not the layers' if it is not.

    A chain of dense layers needs nothing of the module; other layers are watched while it runs. Their sums
    are held against mapped ones on made-up rows, in eval mode: whatever a module does with its layers beside
    calling them shows there.
    """
    mapped = Mapped(bench, total)
    chained = Chained.of(bench, total, loss, x)
    if chained is not None and _agree(bench, chained, mapped, x, y):
        return chained, ""
    try:
        layers = Layers(bench, total)
        if _agree(bench, layers, mapped, x, y):
            return layers, ""
    except NoLayers as why:
        return mapped, str(why)
    return mapped, "its layers do more than their outputs show"


def _agree(bench: Bench, rows: Rows, mapped: Mapped, x: Tensor, y: Tensor) -> bool:
    """Whether norms and sums are those of mapped row gradients."""
    was = bench.module.training
    bench.module.eval()
    try:
        wanted, norms = _sum(bench, mapped, x, y)
        got, own = _sum(bench, rows, x, y)
    finally:
        bench.module.train(was)
        bench.gradient.zero_()
    near = torch.allclose(got, wanted, rtol=1e-3, atol=1e-4 * _top(wanted))
    return near and torch.allclose(own, norms, rtol=1e-3, atol=1e-4 * _top(norms))


def _sum(bench: Bench, rows: Rows, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    bench.gradient.zero_()
    norms = rows.add(x, y, 1e6)
    return bench.gradient.clone(), norms


def _top(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
