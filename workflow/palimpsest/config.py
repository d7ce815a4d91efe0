"""Studies, benchmarks, tasks, models and methods: YAML files as typed, frozen, validated objects.

    config/<study>.yaml   config/benchmarks/   config/tasks/   config/models/   config/methods/

Everything that is wrong in a file is reported at once, each with the file, the key, what was
found, what is allowed, and the nearest right name. This module imports no torch.
"""

from __future__ import annotations

import re
from functools import cache, cached_property
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from palimpsest import metrics
from palimpsest.data.downloads.settings import Download
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
    fraction: float | None = Field(None, gt=0, lt=1)  # of the training examples; all if not given
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


class AsPublished(Settings):
    """How a paper's released scripts have a model answer, where that differs from its training.

    Tasks are named by shell patterns, such as `coin-vqav2*`; the first that fits counts.
    """

    source: str  # the scripts
    chat: Chat | None = None
    max_new_tokens: dict[str, int]
    crop: tuple[str, ...] = ()  # the tasks whose pictures are cropped
    drop_first: bool = False  # the first character of every answer is thrown away
    metrics: dict[str, str] = Field({})  # where the scorer is not the task's `as_published`

    @field_validator("metrics")
    @classmethod
    def _metrics_exist(cls, metrics: dict[str, str]) -> dict[str, str]:
        for name in metrics.values():
            one_of(name, modules("metrics"), "metric")
        return metrics


class Model(Science):
    """An LMM: its weights, how it is spoken to, what a stage may train, what a job needs."""

    cosmetic: ClassVar = {
        "title", "citation", "micro_batch", "zero_stage", "resources", "as_published",
    }  # fmt: skip
    family: str  # models/families/<family>.py
    weights: str  # a directory, or a hub id together with a revision
    parts: dict[str, str] | None = None  # of which `palimpsest assemble` makes them: downloads
    revision: str | None = None
    sha256: str | None = None  # of model.safetensors, for weights in a directory
    chat: Chat
    pictures: str | dict[str, Any] | None = None  # pad, crop or squash; or processor settings
    max_length: int = Field(gt=0)  # tokens of a training sequence, the picture's included
    adapter_targets: str  # regular expression over module names: the layers an adapter is put on
    projector: str  # name of the module between pictures and language model
    precision: Literal["fp32", "bf16"]
    micro_batch: int = Field(gt=0)  # examples a rank and forward pass
    zero_stage: Literal[0, 1, 2, 3] = 1
    resources: Resources
    as_published: AsPublished | None = None
    citation: str | None = None

    @field_validator("family")
    @classmethod
    def _family_exists(cls, name: str) -> str:
        return one_of(name, modules("models/families"), "family")

    @field_validator("pictures")
    @classmethod
    def _pictures_are_fitted(cls, pictures: str | dict | None) -> str | dict | None:
        if isinstance(pictures, str):
            one_of(pictures, ("pad", "crop", "squash"), "way to fit pictures")
        return pictures

    def micro_batch_of(self, batch: int, ranks: int) -> int:
        """Return the examples a rank and forward pass, by which a global batch is reached exactly.

        It is the largest divisor of a rank's share that is no larger than `micro_batch`.
        ValueError if the ranks cannot share the batch evenly.
        """
        if batch % ranks:
            nearest = max(1, round(batch / ranks)) * ranks
            raise ValueError(f"{batch} cannot be shared by {ranks} ranks; nearest: {nearest}")
        share = batch // ranks
        return next(n for n in range(min(self.micro_batch, share), 0, -1) if share % n == 0)


class Method(Science):
    """A continual-learning method, composed from parts, with the hyper-parameters of its source."""

    cosmetic: ClassVar = {"title", "source", "models"}
    source: str  # the paper, or where the hyper-parameters come from
    adapter: Adapter
    rehearsal: Rehearsal | None = None
    train_projector: bool = False
    training: Training
    models: dict[str, dict[str, Any]] = Field({})  # keys that are others for a model

    @model_validator(mode="after")
    def _holds_for_every_model(self) -> Method:
        for model in self.models:
            try:
                self.of(model)
            except ValidationError as errors:
                found = errors.errors(include_url=False)
                where = [".".join(map(str, ("models", model, *e["loc"]))) for e in found]
                lines = [f"{w}: {e['msg']}" for w, e in zip(where, found, strict=True)]
                raise ValueError("; ".join(lines)) from None
        return self

    def of(self, model: str, tasks: tuple[str, ...] = ()) -> Method:
        """Return the method as it is for a model, and for a step that learns some tasks."""
        own = {**self.model_dump(exclude={"models"}), **self.models.get(model, {})}
        resolved = Method.model_validate(own)
        training = resolved.training.of(tasks)
        return resolved.model_copy(update={"training": training})


class Reference(Settings):
    """What the sequential methods are read against: another protocol, or another benchmark."""

    title: str
    protocol: Literal["zero-shot", "direct", "joint"]
    method: str | None = None  # the preset that is tuned; none for zero-shot
    benchmark: str | None = None  # the study's own if not given


METRIC, AS_PUBLISHED = "metric", "as-published"  # measures; any other is a judge


class Evaluation(Settings):
    """How cells are computed; `fan_out` is one job a cell, or one job for all cells of a stage."""

    fan_out: Literal["cell", "stage"] = "cell"
    split: Literal["validation", "test"] = "test"
    sample: int | None = Field(None, gt=0)  # examples a task, if not all of the split
    generation: Literal["consistent", "as-published"] = "consistent"  # with the training
    cells: Literal["all", "learnt"] = "all"  # after a stage: all tasks, or those learnt by then
    batch: int = Field(gt=0)  # questions that are answered together

    @property
    def name(self) -> str:
        """What a cell's directory is called by: all that decides which answers are in it."""
        other = None if self.generation == "consistent" else self.generation
        return "-".join(str(part) for part in (self.split, self.sample, other) if part)


class Published(Settings):
    """What is laid beside a study's matrices: by measure, matrices of config/published/<file>.yaml.

    An experiment of the study is named by its model, its method or reference, and its order, which
    is `any` for a reference: `llava-1.5-7b lora-coin coin: R1`.
    """

    file: str
    beside: dict[str, dict[str, str]]


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
    measures: tuple[str, ...] = Field((METRIC,), min_length=1)  # by which cells are scored
    published: Published | None = None

    @field_validator("models", "methods", "orders", "seeds", "measures")
    @classmethod
    def _named_once(cls, values: tuple) -> tuple:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{value!r} is named twice")
        return values


class Sampling(Settings):
    """How a judge's tokens are drawn; at temperature 0 the likeliest is taken."""

    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    max_tokens: int = Field(20, gt=0)
    seed: int = 0


class Asking(Settings):
    """How a judge is asked; a server that is busy or away is asked again, later and later."""

    concurrency: int = Field(32, gt=0)  # questions at once; of a local judge, in one batch
    attempts: int = Field(8, gt=0)  # at one question
    backoff: float = Field(1.0, gt=0)  # seconds before the second attempt, doubled with each
    longest_wait: float = Field(120.0, gt=0)  # seconds before an attempt
    timeout: float = Field(300.0, gt=0)  # seconds for one reply


class Serving(Settings):
    """How a judge's server is started: by the first job that needs it, and not before.

    `command` is a template with {model}, {revision}, {port} and {gpus}; what it starts must listen
    on all addresses of its node, and speak OpenAI's protocol below /v1.
    """

    command: str
    start_minutes: float = Field(60.0, gt=0)  # that a job waits until it answers, queue included
    idle_minutes: float = Field(10.0, gt=0)  # without a question, after which it is ended

    @field_validator("command")
    @classmethod
    def _command_has_a_port(cls, command: str) -> str:
        named = {name for _, name, _, _ in Formatter().parse(command) if name is not None}
        for name in named:
            one_of(name, ("model", "revision", "port", "gpus"), "placeholder")
        if "port" not in named:
            raise ValueError("must contain {port}")
        return command


class JudgeResources(Settings):
    """What the job needs that has a judge's weights; `minutes` holds for jobs that ask, too."""

    gpus: int = Field(0, ge=0)
    cores: int = Field(1, gt=0)
    memory_mb: int = Field(gt=0)
    minutes: int = Field(gt=0)


class Judge(Science):
    """A language model that rates answers from 0 to 10 against the right one; it sees no picture.

    An `endpoint` speaks OpenAI's chat completions: one that is there (`url`), or one that is
    started for the study (`serving`). A `local` judge is a causal model of the hub, in the process.
    """

    cosmetic: ClassVar = {"title", "citation", "url", "api_key", "asking", "resources"}
    kind: Literal["endpoint", "local"]
    model: str  # hub id, a directory, or what the endpoint calls it
    revision: str | None = None
    protocol: Literal["as-published", "corrected"]  # of prompt and parsing
    sampling: Sampling = Sampling()
    url: str | None = Field(None, pattern="^https?://")  # up to and with /v1
    api_key: str | None = None  # the environment variable that holds it
    serving: Serving | None = None
    asking: Asking = Asking()
    resources: JudgeResources
    citation: str | None = None

    def science(self) -> dict[str, Any]:
        """Return the settings that can change a number: of `serving`, its command."""
        content = super().science()
        return content | {"serving": self.serving.command} if self.serving else content

    @model_validator(mode="after")
    def _is_to_be_had(self) -> Judge:
        if self.kind == "endpoint" and (self.url is None) == (self.serving is None):
            raise ValueError("an endpoint needs either `url` or `serving`")
        if self.kind == "local" and (self.url or self.serving or self.api_key):
            raise ValueError("a local judge has neither `url`, `serving` nor `api_key`")
        if self.kind == "local" and self.sampling.temperature > 0:
            raise ValueError("a local judge is greedy: sampling.temperature must be 0")
        return self


T = TypeVar("T", bound=BaseModel)
KINDS = {
    Task: "tasks", Benchmark: "benchmarks", Model: "models", Method: "methods", Judge: "judges",
    Download: "downloads", Study: ".",
}  # fmt: skip


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
