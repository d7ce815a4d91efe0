"""A task: config/tasks/<task>.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from palimpsest import metrics
from palimpsest.config.science import Science, modules
from palimpsest.files import sha256
from palimpsest.refusal import one_of

DOWNLOADS = Path("results/downloads")


class Task(Science):
    """One dataset with its prompt template, answer format and metric.

    The fingerprint is that of the data: how answers are generated and scored changes no stage. A
    file `source.wording` that no download of the task brings is read if it is there, and else the
    reader has its own words: the fingerprint has its checksum, so that data and stages that were
    made without it are not taken for those that are made with it.
    """

    cosmetic: ClassVar = {
        "title", "cites", "category", "licence",
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

    def science(self) -> dict[str, Any]:
        """Return the settings that can change a number, and what a file of wording does."""
        wording = self.source.get("wording", "")
        path = DOWNLOADS / wording
        if wording.split("/")[0] in self.downloads or not path.is_file():
            return super().science()
        return {**super().science(), "wording": {wording: sha256(path)}}
