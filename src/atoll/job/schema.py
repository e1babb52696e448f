"""The job file's schema: every key, its type, range and default.

pydantic stands at this edge only (decision D17): it reports all faults at once, and what it accepts
is turned into frozen dataclasses by :mod:`atoll.job.build`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from atoll.job.definition import definition_hash

__all__ = ["JobSpec"]

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Seeded = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A table of the job file: closed (unknown keys are errors), strict about types, and frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @property
    def said(self) -> frozenset[str]:
        """Keys with another value than their default: one at its default says nothing."""
        fields = type(self).model_fields
        return frozenset(
            key
            for key in self.model_fields_set
            if getattr(self, key) != fields[key].get_default(call_default_factory=True)
        )


class ColumnSpec(Section):
    """``[data.columns.NAME]``: what a column means and which values are allowed."""

    type: Literal["number", "integer", "category", "boolean"] = "number"
    unit: str = ""
    range: tuple[float, float] | None = None
    categories: tuple[str, ...] = ()
    missing: tuple[str | float, ...] = ()


class PartitionSpec(Section):
    """``[data.partition]``: how one dataset is dealt out to simulated clients."""

    kind: Literal["iid", "dirichlet", "classes", "quantity", "feature_noise", "rotation"] = "iid"
    clients: int = Field(10, ge=1)
    alpha: Positive = 0.5
    balance: bool = False
    min_rows: int = Field(1, ge=1)
    classes_per_client: int = Field(2, ge=1)
    noise: NotNegative = 0.1


class DataSpec(Section):
    """``[data]``: where the rows are, whose they are, and what is predicted."""

    source: str
    site_column: str = ""
    target: str = ""
    task: Literal["classification", "regression"] = "classification"
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    columns: dict[str, ColumnSpec] = Field(default_factory=dict)
    classes: tuple[str, ...] = ()
    partition: PartitionSpec | None = None
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    central_test: bool = False
    stratify: bool = False
    options: dict[str, Any] = Field(default_factory=dict)


class PreprocessingSpec(Section):
    """``[preprocessing]``: fitted from sums over all sites, or at each site by itself."""

    mode: Literal["federated", "site"] = "federated"
    impute: Literal["mean", "most_frequent", "constant", "none"] = "mean"
    fill: float = 0.0
    scale: Literal["standard", "minmax", "none"] = "standard"
    encode: Literal["onehot", "ordinal"] = "onehot"
    indicate_missing: bool = False
    scale_target: bool = False


class ModelSpec(Section):
    """``[model]``: a linear model, a built-in network, or your own factory."""

    kind: str = "logistic"
    factory: str = ""
    fit: str = ""
    evaluate: str = ""
    initial: str = ""
    start: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    options: dict[str, Any] = Field(default_factory=dict)
    loss: str = ""
    l2: NotNegative = 0.0
    dtype: Literal["float32", "float64"] = "float64"
    personal: tuple[str, ...] = ()
    augment: Literal["", "crop_flip"] = ""
    path: Literal["auto", "general", "compiled", "algebra"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    lanes: int = Field(1, ge=1)
    devices: tuple[str, ...] = ("cpu",)


class ScheduleSpec(Section):
    """``[local.schedule]``: the learning rate over rounds or local epochs."""

    kind: Literal["constant", "step", "cosine"] = "constant"
    gamma: Positive = 0.1
    every: int = Field(1, ge=1)
    floor: NotNegative = 0.0
    unit: Literal["round", "epoch"] = "round"


class LocalSpec(Section):
    """``[local]``: what a client does with a task."""

    epochs: Positive = 1.0
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=0)
    optimizer: Literal["sgd", "adam", "adamw", "nadam", "radam", "adagrad", "rmsprop"] = "sgd"
    lr: Positive = 0.01
    momentum: Decay = 0.0
    nesterov: bool = False
    weight_decay: NotNegative = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Positive = 1e-8
    clip_norm: NotNegative = 0.0
    drop_last: bool = False
    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec)


class AlgorithmSpec(BaseModel):
    """``[algorithm]``: a name, the rule for weights, and the method's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    name: str = "fedavg"
    weights: Literal["examples", "uniform"] | dict[str, NotNegative] = "examples"


class RoundsSpec(Section):
    """``[rounds]``: how many, who is invited, and when the server has enough."""

    count: int = Field(10, ge=1)
    mode: Literal["sync", "async"] = "sync"
    cohort: Literal["all", "uniform", "poisson", "weighted"] = "all"
    size: int = Field(0, ge=0)
    rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    cohort_weights: dict[str, NotNegative] = Field(default_factory=dict)
    separation: int = Field(1, ge=1)
    over_selection: NotNegative = 0.0
    deadline: Positive | None = None
    quorum: NotNegative = 1
    max_aborts: int = Field(10, ge=1)
    buffer: int = Field(1, ge=1)
    concurrency: int = Field(0, ge=0)
    max_staleness: int | None = Field(None, ge=0)


class DelaySpec(Section):
    """``[clock.delay]``: virtual seconds a task takes."""

    kind: Literal["constant", "exponential", "half_normal", "log_normal", "trace"] = "constant"
    scale: NotNegative = 0.0
    sigma: NotNegative = 1.0
    per: Literal["task", "client"] = "task"
    per_example: bool = False
    trace: str = ""


class ClockSpec(Section):
    """``[clock]``: clients in virtual time."""

    delay: DelaySpec = Field(default_factory=DelaySpec)
    availability: Share = 1.0
    availability_trace: str = ""
    dropout: Decay = 0.0
    partial: Share = 0.0
    partial_low: Annotated[float, Field(gt=0, le=1)] = 0.1


class EvaluationSpec(Section):
    """``[evaluation]``: where, how often, and whether joining was worth it."""

    every: int = Field(1, ge=0)
    central: bool = True
    federated: bool = True
    compare: bool = True


class StopSpec(Section):
    """``[stop]``: early stopping and the watched metric of the best model."""

    metric: str = Field("", pattern=r"^$|^(central|federated)\.\w+$")
    patience: int = Field(0, ge=0)
    min_delta: NotNegative = 0.0
    target: float | None = None
    virtual_seconds: Positive | None = None


class CheckpointSpec(Section):
    """``[checkpoint]``: how often the run's state is written."""

    every: int = Field(1, ge=0)


class ExecutorSpec(Section):
    """``[executor]``: where tasks run; never changes a bit of the result."""

    name: Literal["serial", "processes", "ray"] = "serial"
    workers: int = Field(0, ge=0)
    method: Literal["auto", "fork", "forkserver", "spawn"] = "auto"
    address: str = ""
    gpus: NotNegative = 0.0


class ClientPrivacySpec(Section):
    """``[privacy.client]``: differential privacy whose unit is a client."""

    noise_multiplier: NotNegative = 0.0
    epsilon: NotNegative = 0.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    found: Annotated[float, Field(ge=0, lt=1)] = 0.0
    fpr: Annotated[float, Field(gt=0, lt=1)] = 0.01
    where: Literal["server", "sites", "client"] = "server"
    mechanism: Literal[
        "auto", "gaussian", "tree", "banded", "blt", "skellam", "discrete_gaussian"
    ] = "auto"
    amplified: bool = False
    bands: int = Field(0, ge=0)
    buffers: int = Field(4, ge=1, le=8)
    colluders: int = Field(0, ge=0)
    open_metrics: bool = False


class RowPrivacySpec(Section):
    """``[privacy.record]``: local training that hides single rows."""

    clip: Positive = 1.0
    noise_multiplier: NotNegative = 0.0
    epsilon: NotNegative = 0.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    found: Annotated[float, Field(ge=0, lt=1)] = 0.0
    fpr: Annotated[float, Field(gt=0, lt=1)] = 0.01
    micro_batch: int = Field(0, ge=0)
    open_metrics: bool = False


class MetricsPrivacySpec(Section):
    """``[privacy.metrics]``: noise on figures of held-out rows."""

    noise_multiplier: NotNegative = 0.0
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    loss: Positive = 4.0


class CountsSpec(Section):
    """``[privacy.counts]``: how many persons stand at least behind a number that a site tells."""

    minimum: int = Field(11, ge=1)
    person: str = ""


class PrivacySpec(Section):
    """``[privacy]``: what an update passes on its way out."""

    aggregation: Literal["auto", "plain", "quantised", "masked", "encrypted"] = "auto"
    bound: Positive = 1.0
    cap: int = Field(0, ge=0)
    threshold: int = Field(0, ge=0)
    degree: int = Field(0, ge=0)
    max_norm: NotNegative = 0.0
    clip: NotNegative = 0.0
    clip_by: Literal["l2", "layer", "adaptive"] = "l2"
    quantile: Share = 0.5
    client: ClientPrivacySpec | None = None
    record: RowPrivacySpec | None = None
    metrics: MetricsPrivacySpec | None = None
    counts: CountsSpec | None = None

    @property
    def private(self) -> bool:
        """Whether the job promises differential privacy, of rows or of clients."""
        return self.record is not None or self.client is not None


class AnalysisSpec(BaseModel):
    """One of ``[[statistics.analyses]]``: its kind, its name, and the kind's own options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    kind: str
    name: str = Field("", pattern=r"^$|^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")


class StatisticsSpec(Section):
    """``[statistics]``: what is asked of tables, in place of a model."""

    analyses: tuple[AnalysisSpec, ...]
    complete: tuple[str, ...] = ()
    where: dict[str, Any] = Field(default_factory=dict)
    minimum: int = Field(11, ge=1)
    person: str = ""
    extremes: bool = False


class JobSpec(Section):
    """A whole job file."""

    name: str = Field("job", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    seed: Seeded = 0
    data: DataSpec
    preprocessing: PreprocessingSpec = Field(default_factory=PreprocessingSpec)
    model: ModelSpec = Field(default_factory=ModelSpec)
    local: LocalSpec = Field(default_factory=LocalSpec)
    algorithm: AlgorithmSpec = Field(default_factory=AlgorithmSpec)
    rounds: RoundsSpec = Field(default_factory=RoundsSpec)
    privacy: PrivacySpec = Field(default_factory=PrivacySpec)
    clock: ClockSpec = Field(default_factory=ClockSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    stop: StopSpec = Field(default_factory=StopSpec)
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    executor: ExecutorSpec = Field(default_factory=ExecutorSpec)
    statistics: StatisticsSpec | None = None

    def definition(self) -> dict[str, Any]:
        """What the job *is*: everything that can change the result's bits.

        Sections on privacy and statistics that ask for nothing, and keys that came later and say nothing,
        are left out: such jobs keep the hash they always had.
        """
        away = {"executor", "checkpoint"}
        if self.privacy == PrivacySpec():
            away.add("privacy")
        if self.statistics is None:
            away.add("statistics")
        plain = self.model_dump(mode="json", exclude=away)
        if self.privacy.counts is None and "privacy" in plain:
            del plain["privacy"]["counts"]
        if self.privacy.metrics is None and "privacy" in plain:
            del plain["privacy"]["metrics"]
        for unit in ("client", "record"):
            if (said := plain.get("privacy", {}).get(unit)) and not said["found"]:
                del said["found"], said["fpr"]
        if self.rounds.separation == 1:
            del plain["rounds"]["separation"]
        if not self.model.start:
            del plain["model"]["start"]
        return plain

    def hash(self) -> str:
        """SHA-256 of the canonical form of :meth:`definition`, in hex."""
        return definition_hash(self.definition())
