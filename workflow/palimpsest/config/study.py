"""A study: config/<study>.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from palimpsest.methods.settings import Settings

METRIC, AS_PUBLISHED, FIDELITY = "metric", "as-published", "fidelity"
RULES = (METRIC, AS_PUBLISHED, FIDELITY)  # measures that ask no model; any other is a judge


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
    sample: int | None = Field(None, gt=0)  # examples a task, if not all of the split
    generation: Literal["consistent", "as-published"] = "consistent"  # with the training
    cells: Literal["all", "learnt"] = "all"  # after a stage: all tasks, or those learnt by then
    batch: int = Field(gt=0)  # questions that are answered together

    @property
    def name(self) -> str:
        """What a cell's directory is called by: all that decides which answers are in it."""
        other = None if self.generation == "consistent" else self.generation
        return "-".join(str(part) for part in (self.split, self.sample, other) if part)


class Probes(Settings):
    """Questions that a stage is asked while it is trained, of each task that is known by then."""

    every: int = Field(gt=0)  # steps
    sample: int = Field(gt=0)  # examples of a task


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
    probes: Probes | None = None
    published: Published | None = None
    similarity: bool = False  # whether the report shows how alike the tasks are to each model

    @field_validator("models", "methods", "orders", "seeds", "measures")
    @classmethod
    def _named_once(cls, values: tuple) -> tuple:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{value!r} is named twice")
        return values
