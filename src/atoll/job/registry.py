"""Names in a job file become algorithms and trainers. New ones come from installed packages.

A package adds an algorithm by an entry point in the group ``atoll.algorithms`` (decision D11): code
comes from what an operator installs, never from a job.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from atoll.algorithms import ALGORITHMS
from atoll.core.contracts import Algorithm, Trainer
from atoll.core.errors import AtollError, Fault, JobError, raise_faults, suggest
from atoll.job.datasets import Islands
from atoll.job.schema import AlgorithmSpec, JobSpec
from atoll.models.function import FunctionTrainer
from atoll.models.linear import LinearTrainer

__all__ = ["algorithm_named", "check_model", "trainer_for"]

LINEAR = ("linear", "logistic", "multinomial")


def _algorithms() -> dict[str, Callable[..., Algorithm]]:
    found = {p.name: p.load() for p in entry_points(group="atoll.algorithms")}
    return {**found, **ALGORITHMS}


def algorithm_named(spec: AlgorithmSpec) -> Algorithm:
    """The algorithm with its options, checked against the fields of its class.

    Raises:
        JobError: an unknown name or option, or a value of the wrong type or range; all at once.
    """
    known = _algorithms()
    if spec.name not in known:
        fault = Fault("algorithm.name", f"unknown {spec.name!r}", suggest(spec.name, known))
        raise JobError("unknown algorithm", faults=[fault])
    make: typing.Any = known[spec.name]
    options = dict(spec.model_extra or {})
    fields: dict[str, Any] = {}
    if dataclasses.is_dataclass(make):
        hints = _hints(make)
        fields = {f.name: hints[f.name] for f in dataclasses.fields(make)}
    faults = [
        Fault(f"algorithm.{key}", f"{spec.name} has no such option", suggest(key, fields))
        for key in options
        if key not in fields
    ]
    checked: dict[str, Any] = {}
    for key, value in options.items():
        if key not in fields:
            continue
        try:
            adapter = TypeAdapter(fields[key], config=ConfigDict(strict=False))
            checked[key] = adapter.validate_python(value)
        except ValidationError as error:
            faults.append(Fault(f"algorithm.{key}", f"{error.errors()[0]['msg']}; got {value!r}"))
    raise_faults(JobError, f"algorithm {spec.name!r}", faults)
    try:
        made: Algorithm = make(**checked)
        return made
    except JobError as error:
        own = error.faults or [Fault("algorithm", error.message, error.remedy)]
        raise JobError(error.message, faults=[_below("algorithm", f) for f in own]) from error


def _below(table: str, fault: Fault) -> Fault:
    place = fault.place if fault.place.startswith(table) else f"{table}.{fault.place}".rstrip(".")
    return Fault(place, fault.message, fault.remedy)


def _hints(kind: Any) -> Mapping[str, Any]:
    module = sys.modules[kind.__module__]
    return typing.get_type_hints(kind, vars(module))


def check_model(spec: JobSpec, folder: Path) -> list[Fault]:
    """Faults of ``[model]`` that can be seen without the data."""
    model, found = spec.model, []
    if model.kind in (*LINEAR, "torch", "function"):
        need = {"torch": ("factory",), "function": ("fit", "evaluate", "initial")}.get(
            model.kind, ()
        )
        for key in need:
            value = getattr(model, key)
            if not value:
                found.append(
                    Fault(f"model.{key}", f"kind {model.kind!r} needs it", "give 'file.py:name'")
                )
                continue
            try:
                import_name(value, folder, f"model.{key}")
            except AtollError as error:
                found += error.faults
    else:
        try:
            _networks().network(model.kind)
        except AtollError as error:
            known = ("torch", "function", *LINEAR, *_names())
            remedy = suggest(model.kind, known) if isinstance(error, JobError) else error.remedy
            found.append(Fault("model.kind", error.message, remedy))
    task = spec.data.task
    if (model.kind == "linear" and task == "classification") or (
        model.kind in ("logistic", "multinomial") and task == "regression"
    ):
        remedy = "use kind 'logistic'" if model.kind == "linear" else "use kind 'linear'"
        found.append(Fault("model.kind", f"{model.kind!r} does not fit data.task {task!r}", remedy))
    if model.kind in LINEAR and spec.local.optimizer not in ("sgd", "adam", "adamw"):
        found.append(
            Fault(
                "local.optimizer",
                f"linear models offer sgd, adam and adamw, not {spec.local.optimizer!r}",
            )
        )
    return found


def _networks() -> ModuleType:
    return import_module("atoll.models.networks")


def _names() -> list[str]:
    try:
        return list(_networks().NETWORKS)
    except AtollError:
        return []


def trainer_for(spec: JobSpec, islands: Islands, folder: Path) -> Trainer:
    """The trainer of ``[model]`` for these data.

    Raises:
        JobError: options the model does not have, or code that cannot be imported.
    """
    model = spec.model
    if model.kind in LINEAR:
        if model.kind == "logistic" and islands.classes > 2:
            fault = Fault(
                "model.kind", f"the target has {islands.classes} classes", "use kind 'multinomial'"
            )
            raise JobError("the model does not fit the data", faults=[fault])
        return LinearTrainer(
            model.kind,  # type: ignore[arg-type]  # checked against LINEAR
            islands.features,
            classes=islands.classes,
            l2=model.l2,
            dtype=model.dtype,
            personal=model.personal,
            **model.options,
        )
    if model.kind == "function":
        start, train, score = (
            import_name(getattr(model, key), folder, f"model.{key}")
            for key in ("initial", "fit", "evaluate")
        )
        return FunctionTrainer(start, train, score, personal=model.personal, **model.options)
    return _torch_trainer(spec, islands, folder)


def _torch_trainer(spec: JobSpec, islands: Islands, folder: Path) -> Trainer:
    model = spec.model
    trainer: Any = import_module("atoll.models.torch").TorchTrainer
    regression = spec.data.task == "regression"
    arguments = dict(model.options)
    if model.kind == "torch":
        factory = import_name(model.factory, folder, "model.factory")
    else:
        factory = _networks().network(model.kind)
        arguments.setdefault("classes", 1 if regression else islands.classes)
        if model.kind in ("mlp", "logistic"):
            arguments.setdefault("inputs", islands.features)
    augment = _networks().CropFlip(fill=islands.black) if model.augment else None
    try:
        made: Trainer = trainer(
            factory,
            arguments,
            loss=model.loss or ("mse" if regression else "cross_entropy"),
            classes=None if regression else islands.classes,
            personal=model.personal,
            augment=augment,
        )
        _ = made.layout
    except (TypeError, ValueError) as error:
        fault = Fault("model.options", str(error), "check the factory's arguments")
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
        raise wrong(f"{text!r} is not 'file.py:name' or 'package.module:name'")
    try:
        module = _load(folder / where) if where.endswith(".py") else import_module(where)
    except FileNotFoundError as error:
        raise wrong(f"no file {folder / where}", "paths are relative to the job file") from error
    except Exception as error:  # a user's module may raise anything at import
        raise wrong(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
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
