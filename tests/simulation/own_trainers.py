"""Trainers as people write them, importable by worker processes."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from atoll.models.linear import LinearTrainer


@dataclass(frozen=True, eq=False)
class Odd:
    """One of its methods gives what it should not."""

    where: str = ""
    what: Any = None
    corrects: bool = True

    @property
    def inner(self):
        return LinearTrainer("logistic", 3, dtype="float32")

    @property
    def layout(self):
        return self.inner.layout

    def initial(self, seed):
        return self.what if self.where == "initial" else self.inner.initial(seed)

    def fit(self, parameters, data, **how):
        made = self.inner.fit(parameters, data, **how)
        if self.where == "parameters":
            return replace(made, parameters=np.asarray(made.parameters)[self.what])
        if self.where == "list":
            return replace(made, parameters=made.parameters.tolist())
        return self.what if self.where == "fit" else made

    def gradient(self, parameters, data):
        return self.inner.gradient(parameters, data)

    def evaluate(self, parameters, data):
        return self.inner.evaluate(parameters, data)
