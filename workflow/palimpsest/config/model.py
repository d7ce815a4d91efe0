"""A model: config/models/<model>.yaml."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from palimpsest.config.science import Science, modules
from palimpsest.methods.settings import Settings
from palimpsest.refusal import one_of


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


class Encoder(Settings):
    """A frozen model that embeds, beside the LMM, where tasks are compared or told apart."""

    weights: str  # a directory, or a hub id together with a revision
    revision: str | None = None
    sha256: str | None = None  # of model.safetensors, for weights in a directory


class TextEncoder(Encoder):
    """A BERT, or one of its kin, that reads instructions and answers."""

    pooling: Literal["cls", "mean"] = "cls"  # the first token of the last layer, or all of a text


class Model(Science):
    """An LMM: its weights, how it is spoken to, what a stage may train, what a job needs.

    `tower`, `text_encoder` and `image_text` change the numbers of methods that compare tasks or
    tell them apart, and of no other: the identity of their stages has them.
    """

    cosmetic: ClassVar = {
        "title", "cites", "licence", "micro_batch", "zero_stage", "resources", "as_published",
        "tower", "text_encoder", "image_text",
    }  # fmt: skip
    family: str  # models/families/<family>.py
    weights: str  # a directory, or a hub id together with a revision
    parts: dict[str, str] | None = None  # of which `palimpsest assemble` makes them: downloads
    exported: str | None = None  # the stage of which `palimpsest export` makes them
    revision: str | None = None
    sha256: str | None = None  # of model.safetensors, for weights in a directory
    licence: str | None = None  # of weights that are not made
    chat: Chat
    pictures: str | dict[str, Any] | None = None  # pad, crop or squash; or processor settings
    max_length: int = Field(gt=0)  # tokens of a training sequence, the picture's included
    adapter_targets: str  # regular expression over module names: the layers an adapter is put on
    trainable: str | None = None  # as such an expression: what the adapter `subset` trains
    projector: str  # name of the module between pictures and language model
    tower: str | None = None  # name of the module that looks at pictures, with a CLS token first
    text_encoder: TextEncoder | None = None  # if none, the mean of the model's own embeddings
    image_text: Encoder | None = None  # a BLIP-2 of the first stage: words for pictures, of CORE
    precision: Literal["fp32", "bf16"]
    # `auto` has a stage choose by its estimate of memory: see training/memory.py.
    micro_batch: int | Literal["auto"]  # examples a rank and forward pass
    zero_stage: Literal[0, 1, 2, 3, "auto"] = 1
    resources: Resources
    as_published: AsPublished | None = None

    @property
    def left_open(self) -> list[str]:
        """The settings that a stage chooses by its estimate of memory."""
        return [n for n in ("micro_batch", "zero_stage") if getattr(self, n) == "auto"]

    @property
    def comparing(self) -> dict[str, Any]:
        """The settings by which it compares questions and tasks."""
        return self.model_dump(mode="json", include={"tower", "text_encoder"})

    @property
    def aligning(self) -> dict[str, Any]:
        """The settings by which it compares what it sees with words, too."""
        return self.comparing | self.model_dump(mode="json", include={"image_text"})

    @property
    def is_made(self) -> bool:
        """Whether its weights are made here, and not published."""
        return self.parts is not None or self.exported is not None

    @property
    def downloads(self) -> tuple[str, ...]:
        """The downloads in which its parts are: a part may be a folder of one."""
        return tuple(dict.fromkeys(part.split("/")[0] for part in (self.parts or {}).values()))

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

    @field_validator("micro_batch", mode="plain")
    @classmethod
    def _micro_batch_is_a_number_or_auto(cls, found: Any) -> int | Literal["auto"]:
        if found == "auto" or (type(found) is int and found > 0):
            return found
        raise ValueError(f"found {found!r}: should be a number of examples above 0, or auto")

    def micro_batches_of(self, batch: int, ranks: int) -> list[int]:
        """Return the examples a rank and forward pass, by which a global batch is reached exactly.

        It is the largest divisor of a rank's share that is no larger than `micro_batch`; where
        that is `auto`, there is a choice of all divisors, the largest first.
        ValueError if the ranks cannot share the batch evenly.
        """
        if batch % ranks:
            nearest = max(1, round(batch / ranks)) * ranks
            raise ValueError(f"{batch} cannot be shared by {ranks} ranks; nearest: {nearest}")
        share = batch // ranks
        most = share if self.micro_batch == "auto" else self.micro_batch
        divisors = [n for n in range(min(most, share), 0, -1) if share % n == 0]
        return divisors if self.micro_batch == "auto" else divisors[:1]
