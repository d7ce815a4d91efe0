"""Studies, benchmarks, tasks, models and methods: YAML files as typed, frozen, validated objects.

    config/<study>.yaml   config/benchmarks/   config/tasks/   config/models/   config/methods/

Everything that is wrong in a file is reported at once, each with the file, the key, what was
found, what is allowed, and the nearest right name. This module imports no torch.
"""

from __future__ import annotations

import re
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from palimpsest import metrics
from palimpsest.files import fingerprint
from palimpsest.lineage import check_task_name
from palimpsest.methods.settings import Adapter, Rehearsal, Settings, Training
from palimpsest.refusal import ConfigError, explain, one_of, read_yaml

PACKAGE = Path(__file__).parent


class Science(Settings):
    """Settings that are hashed into fingerprints, but for those that cannot change a number."""

    cosmetic: ClassVar[set[str]] = {"title"}
    title: str

    @cached_property
    def fingerprint(self) -> str:
        """Known by this: two objects with the same fingerprint give the same numbers."""
        return fingerprint(self.science())

    def science(self) -> dict[str, Any]:
        """Return the settings that can change a number; one that is None is as one not there."""
        return self.model_dump(mode="json", exclude=self.cosmetic, exclude_none=True)


class Task(Science):
    """One dataset with its prompt template, answer format and metric.

    The fingerprint is that of the data: how answers are generated and scored changes no stage.
    """

    cosmetic: ClassVar = {
        "title", "category", "licence", "citation",
        "answer_format", "metric", "metric_options", "as_published", "max_new_tokens",
        "downloads", "most_rejected",
    }  # fmt: skip
    version: int
    category: str
    reader: str  # data/readers/<reader>.py
    source: dict[str, Any]  # what the reader reads
    downloads: tuple[str, ...] = ()  # config/downloads/<download>.yaml, below which it reads
    most_rejected: float = Field(0.01, ge=0, lt=1)  # share of a split's records
    prompt: str  # template with {question}
    answer_format: str  # regular expression; an answer that matches it whole is of the right kind
    metric: str  # metrics/<metric>.py
    metric_options: dict[str, Any] = Field({})
    as_published: str | None = None  # the metric that follows the paper's released scorer
    max_new_tokens: int = Field(gt=0)
    licence: str
    citation: str | None = None

    @field_validator("reader")
    @classmethod
    def _reader_exists(cls, name: str) -> str:
        return one_of(name, modules("data/readers"), "reader")

    @field_validator("metric", "as_published")
    @classmethod
    def _metric_exists(cls, name: str | None) -> str | None:
        return name and one_of(name, modules("metrics"), "metric")

    @field_validator("metric_options")
    @classmethod
    def _metric_has_options(cls, options: dict, info: ValidationInfo) -> dict:
        if metric := info.data.get("metric"):  # else it is wrong itself
            types = metrics.options(metric)
            for name, value in options.items():
                one_of(name, types, f"option of {metric}")
                try:
                    TypeAdapter(types[name]).validate_python(value, strict=True)
                except ValidationError:
                    raise ValueError(f"{name} should be a {types[name].__name__}") from None
        return options

    @field_validator("prompt")
    @classmethod
    def _prompt_asks(cls, prompt: str) -> str:
        if "{question}" not in prompt:
            raise ValueError("must contain {question}")
        return prompt

    @field_validator("answer_format")
    @classmethod
    def _format_compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression ({error})") from None
        return pattern


class Benchmark(Science):
    """Tasks and the orders in which they are learnt; `pictures: blank` hides every picture."""

    cosmetic: ClassVar = {"title", "orders", "description"}
    description: str = ""
    orders: dict[str, tuple[str, ...]] = Field(min_length=1)
    pictures: Literal["real", "blank"] = "real"

    @field_validator("orders")
    @classmethod
    def _orders_name_the_same_tasks(cls, orders: dict) -> dict:
        first = next(iter(orders.values()))
        for name, order in orders.items():
            for task in order:
                check_task_name(task)
                if order.count(task) > 1:
                    raise ValueError(f"order {name!r} names task {task!r} twice")
            if set(order) != set(first):
                odd = ", ".join(sorted(set(order) ^ set(first)))
                raise ValueError(f"order {name!r} does not name the tasks of the first: {odd}")
        return orders

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks in the order that is named first."""
        return next(iter(self.orders.values()))


class Resources(Settings):
    """What one job of a model needs."""

    nodes: int = Field(1, gt=0)
    gpus: int = Field(0, ge=0)  # per node; 0 means CPU ranks
    ranks: int = Field(1, gt=0)  # per node, on CPU only: with GPUs there is one rank a GPU
    threads: int = Field(1, gt=0)  # per rank
    memory_mb: int = Field(gt=0)  # per node
    minutes: int = Field(gt=0)  # a stage
    workers: int = Field(0, ge=0)  # processes that read and encode examples for a rank
    checkpoint_steps: int = Field(gt=0)  # steps from one checkpoint to the next

    @property
    def world_size(self) -> int:
        """The number of ranks of a stage."""
        return self.nodes * (self.gpus or self.ranks)

    @property
    def cores(self) -> int:
        """The number of CPU cores that a stage keeps busy on a node."""
        return (self.gpus or self.ranks) * (self.threads + self.workers)


class Chat(Settings):
    """How a conversation is written for a model; `image` stands where the picture's tokens go."""

    system: str = ""
    user: str  # template with {question}
    assistant: str  # template with {answer}; the loss is taken on the answer and the end token
    image: str  # put before the first question of an example with a picture


class Model(Science):
    """An LMM: its weights, how it is spoken to, what a stage may train, what a job needs."""

    cosmetic: ClassVar = {"title", "citation", "micro_batch", "zero_stage", "resources"}
    family: str  # models/families/<family>.py
    weights: str  # a directory, or a hub id together with a revision
    revision: str | None = None
    sha256: str | None = None  # of model.safetensors, for weights in a directory
    chat: Chat
    max_length: int = Field(gt=0)  # tokens of a training sequence, the picture's included
    adapter_targets: str  # regular expression over module names: the layers an adapter is put on
    projector: str  # name of the module between pictures and language model
    precision: Literal["fp32", "bf16"]
    micro_batch: int = Field(gt=0)  # examples a rank and forward pass
    zero_stage: Literal[0, 1, 2, 3] = 1
    resources: Resources
    citation: str | None = None

    @field_validator("family")
    @classmethod
    def _family_exists(cls, name: str) -> str:
        return one_of(name, modules("models/families"), "family")


class Method(Science):
    """A continual-learning method, composed from parts, with the hyper-parameters of its source."""

    cosmetic: ClassVar = {"title", "source"}
    source: str  # the paper, or where the hyper-parameters come from
    adapter: Adapter
    rehearsal: Rehearsal | None = None
    train_projector: bool = False
    training: Training


class Reference(Settings):
    """What the sequential methods are read against: another protocol, or another benchmark."""

    title: str
    protocol: Literal["zero-shot", "direct", "joint"]
    method: str | None = None  # the preset that is tuned; none for zero-shot
    benchmark: str | None = None  # the study's own if not given


class Evaluation(Settings):
    """How cells are computed; `fan_out` is one job a cell, or one job for all cells of a stage."""

    fan_out: Literal["cell", "stage"] = "cell"
    split: Literal["validation", "test"] = "test"
    batch: int = Field(gt=0)  # questions that are answered together


class Study(Settings):
    """What a person runs: benchmark x models x methods x orders x seeds, and the references."""

    title: str
    benchmark: str
    models: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str, ...]  # tuned sequentially, a stage a task
    orders: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    references: dict[str, Reference] = Field({})
    evaluation: Evaluation

    @field_validator("models", "methods", "orders", "seeds")
    @classmethod
    def _named_once(cls, values: tuple) -> tuple:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{value!r} is named twice")
        return values


T = TypeVar("T", bound=BaseModel)
KINDS = {Task: "tasks", Benchmark: "benchmarks", Model: "models", Method: "methods", Study: "."}


def load(kind: type[T], name: str, root: Path = Path("config")) -> T:
    """Load the object of a kind by its name; ConfigError if there is none or it is wrong."""
    return _load(kind, name, root)


@cache
def _load(kind: type[T], name: str, root: Path) -> T:
    path = root / KINDS[kind] / f"{name}.yaml"
    if not path.is_file():
        check_named(kind, name, str(path), root)
    content, sources = _extended(path)
    try:
        return kind.model_validate(content)
    except ValidationError as errors:
        found = errors.errors(include_url=False)
        lines = [explain(sources.get(next(iter(e["loc"]), ""), path), kind, e) for e in found]
        raise ConfigError("\n".join(lines)) from None


def check_named(kind: type[BaseModel], name: str, where: str, root: Path = Path("config")) -> None:
    """ConfigError, naming where the name was found, if no object of the kind has it."""
    known = [path.stem for path in (root / KINDS[kind]).glob("*.yaml")]
    try:
        one_of(name, known, kind.__name__.lower())
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def modules(package: str) -> set[str]:
    """Return the names of the modules in a folder of this package, without importing any."""
    return {p.stem for p in (PACKAGE / package).glob("*.py") if p.stem != "__init__"}


def _extended(path: Path, heirs: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, Path]]:
    """Read a file laid over the one it `extends`, and say which file each key is from."""
    content = read_yaml(path)
    own = dict.fromkeys(content, path)
    if "extends" not in content:
        return content, own
    heirs = (*heirs, path)
    name = content.pop("extends")
    known = {p.stem: p for p in path.parent.glob("*.yaml") if p not in heirs}
    try:
        parent = known[one_of(name, known, "file")]
    except ValueError as error:
        raise ConfigError(f"{path}: extends: {error}") from None
    inherited, sources = _extended(parent, heirs)
    return {**inherited, **content}, {**sources, **own}
