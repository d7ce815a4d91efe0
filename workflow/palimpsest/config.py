"""Studies, benchmarks, tasks, models and methods: YAML files as typed, frozen, validated objects.

    config/<study>.yaml   config/benchmarks/   config/tasks/   config/models/   config/methods/

Everything that is wrong in a file is reported at once, each with the file, the key, what was
found, what is allowed, and the nearest right name. This module imports no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
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

PACKAGE = Path(__file__).parent
LONGEST_FOUND = 80  # characters of a value that is shown in a message


class ConfigError(ValueError):
    """A configuration that cannot be run; its message names file, key and fix."""


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
        "answer_format", "metric", "metric_options", "max_new_tokens",
    }  # fmt: skip
    version: int
    category: str
    reader: str  # data/readers/<reader>.py
    source: dict[str, Any]  # what the reader reads
    prompt: str  # template with {question}
    answer_format: str  # regular expression; an answer that matches it whole is of the right kind
    metric: str  # metrics/<metric>.py
    metric_options: dict[str, Any] = Field({})
    max_new_tokens: int = Field(gt=0)
    licence: str
    citation: str | None = None

    @field_validator("reader")
    @classmethod
    def _reader_exists(cls, name: str) -> str:
        return one_of(name, modules("data/readers"), "reader")

    @field_validator("metric")
    @classmethod
    def _metric_exists(cls, name: str) -> str:
        return one_of(name, modules("metrics"), "metric")

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
    content = _extended(read_yaml(path), path)
    try:
        return kind.model_validate(content)
    except ValidationError as errors:
        lines = [_explain(path, kind, error) for error in errors.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def check_named(kind: type[BaseModel], name: str, where: str, root: Path = Path("config")) -> None:
    """ConfigError, naming where the name was found, if no object of the kind has it."""
    known = [path.stem for path in (root / KINDS[kind]).glob("*.yaml")]
    try:
        one_of(name, known, kind.__name__.lower())
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; ConfigError if it cannot be parsed or names a key twice."""
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content


def one_of(name: str, known: Iterable[str], what: str) -> str:
    """Return the name if it is known; ValueError proposes the nearest one."""
    known = sorted(known)
    if name not in known:
        raise ValueError(
            f"there is no {what} {name!r}{nearest(name, known)} Known: {', '.join(known) or 'none'}"
        )
    return name


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean …?" with the nearest known name, or a full stop."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {match[0]!r}?" if match else "."


def modules(package: str) -> set[str]:
    """Return the names of the modules in a folder of this package, without importing any."""
    return {p.stem for p in (PACKAGE / package).glob("*.py") if p.stem != "__init__"}


def _extended(content: dict[str, Any], path: Path, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Lay the content over that of the file it names with `extends`, key by key."""
    if "extends" not in content:
        return content
    content = dict(content)
    heirs = (*heirs, path)
    name = content.pop("extends")
    known = {p.stem: p for p in path.parent.glob("*.yaml") if p not in heirs}
    try:
        parent = known[one_of(name, known, "file")]
    except ValueError as error:
        raise ConfigError(f"{path}: extends: {error}") from None
    return {**_extended(read_yaml(parent), parent, heirs), **content}


def _explain(path: Path, kind: type[BaseModel], error: dict[str, Any]) -> str:
    """Write one pydantic error as file, key, what was found, what is allowed, nearest name."""
    key = _key(kind, error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    found = repr(error["input"])
    match error["type"]:
        case "extra_forbidden":
            known = _fields_at(kind, error["loc"][:-1])
            message = f"unknown key{nearest(str(error['loc'][-1]), known)}"
            message += f" Allowed: {', '.join(known)}"
        case "missing":
            message = "this key is required"
        case "literal_error":
            known = re.findall(r"'(.*?)'", error["ctx"]["expected"])
            message = f"found {found}{nearest(found, known)} Allowed: {', '.join(known)}"
        case "union_tag_not_found":
            message = "a name is required, which says what part it is"
        case "union_tag_invalid":
            tag, known = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "")
            key = f"{key}.name"
            message = f"found {tag!r}{nearest(tag, known.split(', '))} Allowed: {known}"
        case "tuple_type":
            message = f"found {found}: should be a list"
        case "model_type" | "model_attributes_type":
            message = f"found {found}: should be keys and values"
        case "value_error" if found in message:
            pass
        case _ if len(found) <= LONGEST_FOUND:
            message = f"found {found}: {message}"
    return f"{path}: {key}: {message}"


def _fields_at(kind: Any, location: tuple[Any, ...]) -> list[str]:
    """Return the allowed keys at a location inside a model, through unions and mappings."""
    models = _models_in(kind)
    for part in location:
        inner = [m for m in models if part in _names_of(m)]
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = inner or [m for f in fields for m in _models_in(f)] or models
    return sorted({name for m in models for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models_in(a)]


def _key(kind: type[BaseModel], location: tuple[Any, ...]) -> str:
    """Write a location as a person finds it in the file: without the tags that choose a part."""
    parts = [part for f in kind.model_fields.values() for part in _models_in(f.annotation)]
    tags = {tag for part in parts for tag in _names_of(part)}
    return ".".join(str(name) for name in location if name not in tags) or "(whole file)"


def _names_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of the tag by which a part is chosen, such as `lora`."""
    field = model.model_fields.get("name")
    return getattr(field.annotation, "__args__", ()) if field else ()


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key may stand once only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = []
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.YAMLError(f"key {key!r} stands twice, again in line {line}")
            seen.append(key)
        return super().construct_mapping(node, deep)
