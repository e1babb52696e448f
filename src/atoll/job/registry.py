"""Names in a job file become algorithms and trainers. New ones come from installed packages.

A package adds an algorithm by an entry point in the group ``atoll.algorithms`` (decision D11): code
comes from what an operator installs, never from a job.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from atoll.algorithms import ALGORITHMS
from atoll.core.contracts import Algorithm, Trainer
from atoll.core.errors import (
    AtollError,
    Fault,
    JobError,
    LayoutError,
    MissingExtra,
    raise_faults,
    suggest,
)
from atoll.data.columns import FLAGS
from atoll.job.datasets import brings_sites
from atoll.job.islands import Islands
from atoll.job.options import checked_options
from atoll.job.schema import AlgorithmSpec, JobSpec, ModelSpec
from atoll.models.function import FunctionTrainer
from atoll.models.linear import LinearTrainer
from atoll.models.optimizers import OPTIMIZERS

__all__ = ["algorithm_named", "algorithms", "model_faults", "trainer_for"]

LINEAR = ("linear", "logistic", "multinomial")
_LIGHT = (*LINEAR, "function")
"""Kinds of models that need NumPy only."""


def algorithms() -> dict[str, Callable[..., Algorithm]]:
    """All algorithms by name: Atoll's own, and those of installed packages."""
    found = dict(ALGORITHMS)
    for point in entry_points(group="atoll.algorithms"):
        if point.name not in found:  # a package adds methods; it does not replace ours
            found[point.name] = point.load()
    return found


def algorithm_named(spec: AlgorithmSpec) -> Algorithm:
    """The algorithm with its options, checked against the fields of its class.

    Raises:
        JobError: an unknown name or option, or a value of the wrong type or range; all at once.
    """
    # Looking through what is installed takes milliseconds, and nothing installed can replace one of ours.
    known = ALGORITHMS if spec.name in ALGORITHMS else algorithms()
    if spec.name not in known:
        fault = Fault("algorithm.name", f"unknown {spec.name!r}", suggest(spec.name, known))
        raise JobError("unknown algorithm", faults=[fault])
    make: typing.Any = known[spec.name]
    kinds: dict[str, Any] = {}
    if dataclasses.is_dataclass(make):
        hints = _hints(make)
        kinds = {f.name: hints[f.name] for f in dataclasses.fields(make) if f.init}
    options = dict(spec.model_extra or {})
    # ``weights`` is read already; it is listed so that a misspelling of it is recognised.
    checked, faults = checked_options(options, kinds | {"weights": Any}, "algorithm", spec.name)
    try:
        made: Algorithm = make(**checked)
    except JobError as error:
        own = error.faults or [Fault("algorithm", error.message, error.remedy)]
        raise_faults(JobError, error.message, [*faults, *(_below("algorithm", f) for f in own)])
    raise_faults(JobError, f"algorithm {spec.name!r}", faults)
    return made


def _below(table: str, fault: Fault) -> Fault:
    place = fault.place if fault.place.startswith(table) else f"{table}.{fault.place}".rstrip(".")
    return Fault(place, fault.message, fault.remedy)


def _hints(kind: Any) -> Mapping[str, Any]:
    module = sys.modules[kind.__module__]
    return typing.get_type_hints(kind, vars(module))


def model_faults(spec: JobSpec, folder: Path) -> list[Fault]:
    """Faults of ``[model]`` that can be seen without the data.

    Raises:
        MissingExtra: the model needs a library that is not installed.
    """
    kind = spec.model.kind
    if kind not in _LIGHT:
        networks = _network_names(kind)
        if kind not in networks:
            remedy = suggest(kind, ("torch", *_LIGHT, *networks))
            return [Fault("model.kind", f"unknown {kind!r}", remedy)]
    found = [*_idle_keys(spec.model)]
    if kind in LINEAR:
        found += _linear_faults(spec)
    elif kind == "function":
        for key in ("fit", "evaluate", "initial"):
            found += _import_faults(spec.model, key, folder)
        found += checked_options(spec.model.options, _FUNCTION, "model.options", "function")[1]
        if "gradient" in spec.model.options and not found:
            gradient = str(spec.model.options["gradient"])
            found += _name_faults(gradient, folder, "model.options.gradient")
    else:
        found += _torch_faults(spec, folder)
    return found


def _network_names(kind: str) -> tuple[str, ...]:
    """Torch networks by name; without torch none, when ``kind`` looks like something else."""
    try:
        return (*_networks().NETWORKS, "torch")
    except MissingExtra:
        if suggest(kind, _LIGHT).startswith("did you mean"):
            return ()
        raise


_LINEAR_OPTIONS = {"intercept": bool, "exact_auc": bool}
_FUNCTION = {"gradient": str, "corrects": bool}
_ONLY_FOR = {
    "factory": ("torch",),
    "fit": ("function",),
    "evaluate": ("function",),
    "initial": ("function",),
    "l2": LINEAR,
    "dtype": LINEAR,
}


def _idle_keys(model: ModelSpec) -> Iterator[Fault]:
    """Keys that this kind of model would silently ignore."""
    only = dict(_ONLY_FOR)
    if model.kind in (*LINEAR, "function"):
        only |= dict.fromkeys(
            ("loss", "augment", "path", "precision", "lanes", "devices"), ("torch networks",)
        )
    elif "devices" in model.said and model.lanes == 1:
        yield Fault("model.devices", "is for clients in lanes", "set model.lanes above 1")
    for key, kinds in only.items():
        if key in model.said and model.kind not in kinds:
            reason = f"has no meaning for kind {model.kind!r}"
            yield Fault(f"model.{key}", reason, f"remove it; it is for {', '.join(kinds)}")


def _linear_faults(spec: JobSpec) -> Iterator[Fault]:
    kind, task = spec.model.kind, spec.data.task
    yield from checked_options(spec.model.options, _LINEAR_OPTIONS, "model.options", kind)[1]
    if (kind == "linear") != (task == "regression"):
        remedy = "use kind 'logistic'" if kind == "linear" else "use kind 'linear'"
        yield Fault("model.kind", f"{kind!r} does not fit data.task {task!r}", remedy)
    if spec.local.optimizer not in OPTIMIZERS:
        yield Fault(
            "local.optimizer",
            f"linear models offer {', '.join(OPTIMIZERS)}, not {spec.local.optimizer!r}",
            suggest(spec.local.optimizer, OPTIMIZERS),
        )


def _torch_faults(spec: JobSpec, folder: Path) -> list[Fault]:
    model = spec.model
    losses = import_module("atoll.models.torch.adapter").LOSSES
    found: list[Fault] = []
    if ":" in model.loss:
        found += _loss_faults(model.loss, folder)
    elif model.loss and model.loss not in losses:
        found.append(Fault("model.loss", f"unknown {model.loss!r}", suggest(model.loss, losses)))
    elif model.loss and (model.loss in ("mse", "l1")) != (spec.data.task == "regression"):
        reason = f"{model.loss!r} does not fit data.task {spec.data.task!r}"
        found.append(Fault("model.loss", reason, "leave it out, or choose another"))
    if model.kind == "torch":
        wrong = _import_faults(model, "factory", folder)
        if wrong:
            return [*found, *wrong]
        factory = import_name(model.factory, folder, "model.factory")
    else:
        factory = _networks().network(model.kind)
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # no signature to be had: building it will tell
        return found
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        kinds = dict.fromkeys(parameters, Any)
        found += checked_options(model.options, kinds, "model.options", model.kind)[1]
    return found


def _loss_faults(text: str, folder: Path) -> list[Fault]:
    wrong = _name_faults(text, folder, "model.loss")
    if wrong:
        return wrong
    made = import_name(text, folder, "model.loss")
    if callable(made) and not isinstance(made, type):
        return []
    reason = f"{text!r} is not a function of outputs and targets"
    return [Fault("model.loss", reason, "name a function, or an object such as a module of torch")]


def _import_faults(model: ModelSpec, key: str, folder: Path) -> list[Fault]:
    text = getattr(model, key)
    if not text:
        return [Fault(f"model.{key}", f"kind {model.kind!r} needs it", "give 'file.py:name'")]
    return _name_faults(text, folder, f"model.{key}")


def _name_faults(text: str, folder: Path, place: str) -> list[Fault]:
    try:
        import_name(text, folder, place)
    except JobError as error:
        return list(error.faults)
    return []


def _networks() -> ModuleType:
    return import_module("atoll.models.networks")


def trainer_for(spec: JobSpec, islands: Islands, folder: Path) -> Trainer:
    """The trainer of ``[model]`` for these data.

    Where sites have rows of their own, areas under ROC curves come from histograms of scores, as they
    do in a deployment: single scores stay at their site. The option ``exact_auc`` of linear models
    overrides that in a simulation.

    Raises:
        JobError: options the model does not have, code that cannot be imported or run, or personal
            patterns without an entry.
    """
    try:
        made = _trainer(spec, islands, folder)
        _ = made.layout
    except LayoutError as error:
        fault = Fault("model", error.message, error.remedy)
        raise JobError("the model cannot be built", faults=[fault]) from error
    return made


def _trainer(spec: JobSpec, islands: Islands, folder: Path) -> Trainer:
    model = spec.model
    if model.kind in LINEAR:
        if model.kind == "logistic" and islands.classes > 2:
            remedy = (
                "use kind 'multinomial'; where two were meant, name them in data.classes: then other values "
                "are faults with site and row"
            )
            if all(name.lower() in FLAGS for name in islands.labels) and islands.labels:
                table = f"[data.columns.{spec.data.target}]"
                remedy = f"if they mean true and false, declare {table} type = 'boolean'"
            told = f"the target has {islands.classes} classes{_named(islands.labels)}"
            fault = Fault("model.kind", told, remedy)
            raise JobError("the model does not fit the data", faults=[fault])
        return LinearTrainer(
            model.kind,  # type: ignore[arg-type]  # checked against LINEAR
            islands.features,
            classes=1 if spec.data.task == "regression" else islands.classes,
            l2=model.l2,
            dtype=model.dtype,
            personal=model.personal,
            **{
                "exact_auc": not brings_sites(spec.data),
                **checked_options(model.options, _LINEAR_OPTIONS, "model.options", model.kind)[0],
            },
        )
    if model.kind == "function":
        start, train, score = (
            import_name(getattr(model, key), folder, f"model.{key}")
            for key in ("initial", "fit", "evaluate")
        )
        options = dict(model.options)
        if "gradient" in options:
            options["gradient"] = import_name(options["gradient"], folder, "model.options.gradient")
        return _built(
            lambda: FunctionTrainer(start, train, score, personal=model.personal, **options),
            "model.initial",
        )
    return _torch_trainer(spec, islands, folder)


def _named(labels: Sequence[str]) -> str:
    """The first names of classes, for people."""
    more = ", …" if len(labels) > _SHOWN else ""
    return f": {', '.join(map(repr, labels[:_SHOWN]))}{more}" if labels else ""


_SHOWN = 8
"""Names that one line shows."""


def _torch_trainer(spec: JobSpec, islands: Islands, folder: Path) -> Trainer:
    model = spec.model
    trainer: Any = import_module("atoll.models.torch.adapter").TorchTrainer
    regression = spec.data.task == "regression"
    arguments = dict(model.options)
    if model.kind == "torch":
        factory = import_name(model.factory, folder, "model.factory")
    else:
        factory = _networks().network(model.kind)
        arguments.setdefault("classes", 1 if regression else islands.classes)
        if model.kind in ("mlp", "logistic"):
            arguments.setdefault("inputs", islands.features)
    loss: Any = model.loss or ("mse" if regression else "cross_entropy")
    if ":" in loss:  # of the user's own, whose name does not tell what it is for
        loss = import_name(loss, folder, "model.loss")
    augment = _networks().CropFlip(fill=islands.black) if model.augment else None
    made = _built(
        lambda: trainer(
            factory,
            arguments,
            loss=loss,
            task=None if isinstance(loss, str) else spec.data.task,
            classes=None if regression else islands.classes,
            personal=model.personal,
            augment=augment,
            exact_auc=not brings_sites(spec.data),
            path=model.path,
            precision=model.precision,
        ),
        "model.factory" if model.kind == "torch" else "model.options",
    )
    if model.lanes == 1:
        return made
    try:
        beside: Trainer = import_module("atoll.models.torch.lanes").LanesTrainer(
            made, model.lanes, model.devices
        )
    except JobError as error:
        fault = Fault("model.devices", error.message, error.remedy)
        raise JobError("the model cannot be trained there", faults=[fault]) from error
    return beside


def _built(make: Callable[[], Trainer], place: str) -> Trainer:
    """A trainer and its layout, for which code of the user's own may run."""
    try:
        made = make()
        _ = made.layout
    except AtollError as error:
        if [fault.place for fault in error.faults] != ["model.module"]:
            raise
        faults = [dataclasses.replace(fault, place=place) for fault in error.faults]
        # From the code's own error: what a site tells of it is decided by that.
        raise JobError(error.message, faults=faults) from error.__cause__
    except Exception as error:  # a user's code may raise anything
        fault = Fault(place, f"{type(error).__name__}: {error}", "mend it, or check model.options")
        raise JobError("the model cannot be built", faults=[fault]) from error
    return made


def import_name(text: str, folder: Path, place: str) -> Any:
    """The object at ``file.py:name`` (relative to the job's folder) or ``package.module:name``.

    Raises:
        JobError: no such file, module or name; the fault names ``place``.
    """
    where, colon, name = text.partition(":")

    def wrong(message: str, remedy: str = "") -> JobError:
        return JobError(message, faults=[Fault(place, message, remedy)])

    if not colon or not name:
        raise wrong(f"{text!r} names no function", "give 'file.py:name' or 'package.module:name'")
    try:
        module = _load(folder / where) if where.endswith(".py") else import_module(where)
    except FileNotFoundError as error:
        raise wrong(f"no file {folder / where}", "paths are relative to the job file") from error
    except Exception as error:  # a user's module may raise anything at import
        reason = f"{where} cannot be imported: {type(error).__name__}: {error}"
        raise wrong(reason, "mend it; it runs when the job is read") from error
    if not hasattr(module, name):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise wrong(f"{where} has no {name!r}", suggest(name, names))
    return getattr(module, name)


def _load(path: Path) -> ModuleType:
    """Import a job's file under its stem, with its folder on the path so that workers find it too."""
    if not path.is_file():
        raise FileNotFoundError(path)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    loaded = sys.modules.get(path.stem)
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "") == path.resolve():
        return loaded
    if loaded is not None:
        raise ImportError(f"another module is already called {path.stem!r}; rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
