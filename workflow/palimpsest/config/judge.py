"""A judge: config/judges/<judge>.yaml."""

from __future__ import annotations

from string import Formatter
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from palimpsest.config.science import Science
from palimpsest.methods.settings import Settings
from palimpsest.refusal import one_of


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
    """A model that rates answers; it sees no picture.

    An `endpoint` speaks OpenAI's chat completions: one that is there (`url`), or one that is
    started for the study (`serving`). A `local` judge is a causal model of the hub, in the process.
    Both rate from 0 to 10 against the right answer. A judge by `templates` is a text encoder, in
    the process: it tells to which group of refusals an answer is nearest (judging/context.py).
    """

    cosmetic: ClassVar = {"title", "cites", "url", "api_key", "asking", "resources"}
    kind: Literal["endpoint", "local", "templates"]
    model: str  # hub id, a directory, or what the endpoint calls it
    revision: str | None = None
    protocol: Literal["as-published", "corrected"]  # of prompt and parsing, or of refusals
    sampling: Sampling = Sampling()
    url: str | None = Field(None, pattern="^https?://")  # up to and with /v1
    api_key: str | None = None  # the environment variable that holds it
    serving: Serving | None = None
    asking: Asking = Asking()
    resources: JudgeResources

    def science(self) -> dict[str, Any]:
        """Return the settings that can change a number: of `serving`, its command."""
        content = super().science()
        return content | {"serving": self.serving.command} if self.serving else content

    @model_validator(mode="after")
    def _is_to_be_had(self) -> Judge:
        if self.kind == "endpoint" and (self.url is None) == (self.serving is None):
            raise ValueError("an endpoint needs either `url` or `serving`")
        if self.kind != "endpoint" and (self.url or self.serving or self.api_key):
            raise ValueError("a local judge has neither `url`, `serving` nor `api_key`")
        if self.kind == "local" and self.sampling.temperature > 0:
            raise ValueError("a local judge is greedy: sampling.temperature must be 0")
        return self
