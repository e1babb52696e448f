"""What a torch trainer may be made with, checked all together where it is made."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from torch import nn

from atoll.core.errors import AtollError, Fault, JobConflict, JobError, suggest
from atoll.core.ranges import check
from atoll.models.torch.losses import LOSSES

__all__ = ["BUILT", "PATHS", "built", "check_options", "settled_task"]

PATHS = ("auto", "general", "compiled", "algebra")
"""How local training may be carried out."""

BUILT = "model.module"
"""What builds the module; a job file has another name for it."""

_REAL = ("mse", "l1")
"""Losses of real targets; the others are of classes."""


def check_options(trainer: Any) -> None:
    """Refuse what is of another kind or out of range.

    Args:
        trainer: a :class:`~atoll.models.torch.adapter.TorchTrainer` that is being made.

    Raises:
        JobError: with every such option.
    """
    check(
        trainer,
        "model",
        also=[*_odd(trainer)],
        optional=("task", "classes", "channels_last"),
        task=("classification", "regression"),
        classes="whole [1, inf)",
        exact_auc="bool",
        eval_batch_size="whole [1, inf)",
        channels_last="bool",
        path=PATHS,
        precision=("float32", "bfloat16"),
    )


def settled_task(
    loss: Any, task: Literal["classification", "regression"] | None
) -> tuple[Any, Literal["classification", "regression"]]:
    """Loss and task, where one of them or both are left to the other.

    Raises:
        JobConflict: a loss that does not fit the task.
    """
    if loss == "":
        loss = "mse" if task == "regression" else "cross_entropy"
    natural: Literal["classification", "regression"]
    natural = "regression" if loss in _REAL else "classification"
    if isinstance(loss, str) and task not in (None, natural):
        raise JobConflict(
            f"loss {loss!r} is for {natural}, not {task}",
            remedy="leave out the task or the loss, or choose another loss",
        )
    return loss, task or natural


def built(build: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    """The module that a class or function builds.

    Raises:
        JobError: it raises, with what and where; or what it builds is no module.
    """
    try:
        made = build(**arguments)
    except AtollError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        at = frames[-1] if frames else None
        place = f" ({at.filename}:{at.lineno} in {at.name})" if at else ""
        told = Fault(BUILT, f"{type(error).__name__}: {error}{place}", "mend it, or its arguments")
        raise JobError("the model cannot be built", faults=[told]) from error
    if not isinstance(made, nn.Module):
        told = Fault(BUILT, f"a {type(made).__name__} was built", "return a torch.nn.Module")
        raise JobError("the model cannot be built", faults=[told])
    return made


def _odd(trainer: Any) -> Iterator[Fault]:
    loss, module, augment = trainer.loss, trainer.module, trainer.augment
    if isinstance(loss, str):
        if loss and loss not in LOSSES:
            yield Fault("model.loss", f"unknown loss {loss!r:.60}", suggest(loss, LOSSES))
    elif isinstance(loss, type):
        remedy = f"give an object, such as {loss.__name__}()"
        yield Fault("model.loss", f"{loss.__name__} is a class", remedy)
    elif not callable(loss):
        remedy = "give a name, such as 'mse', or a function of outputs and targets"
        yield Fault("model.loss", f"{loss!r:.60} is no loss", remedy)
    if not isinstance(module, nn.Module) and not callable(module):
        remedy = "give a module, or a class or function that builds one"
        yield Fault(BUILT, f"{module!r:.60} is no module", remedy)
    if not isinstance(trainer.arguments, Mapping):
        told = f"{trainer.arguments!r:.60} is no mapping"
        yield Fault("model.arguments", told, "give arguments by name, such as {'classes': 2}")
    if augment is not None and not callable(augment):
        remedy = "give a function of features and a random generator"
        yield Fault("model.augment", f"{augment!r:.60} is no function", remedy)
