"""A method: config/methods/<method>.yaml."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, ValidationError, model_validator

from palimpsest.config.science import Science
from palimpsest.methods.settings import TIR, Adapter, Regulariser, Rehearsal, Router, Training


class Method(Science):
    """A continual-learning method, composed from parts, with the hyper-parameters of its source."""

    cosmetic: ClassVar = {"title", "source", "models"}
    source: str  # the paper, or where the hyper-parameters come from
    adapter: Adapter
    regulariser: Regulariser | None = None
    rehearsal: Rehearsal | None = None
    router: Router | None = None
    train_projector: bool = False
    training: Training
    models: dict[str, dict[str, Any]] = Field({})  # keys that are others for a model

    @model_validator(mode="after")
    def _experts_are_routed(self) -> Method:
        has_experts = self.adapter.name == "projector"
        if has_experts != (self.router is not None):
            raise ValueError(
                "adapter 'projector' needs a `router`, and a router needs that adapter"
            )
        if has_experts and (self.train_projector or self.training.projector_learning_rate):
            raise ValueError(
                "adapter 'projector' trains a projector of its own: leave out the rest"
            )
        return self

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

    @property
    def compares_tasks(self) -> bool:
        """Whether a stage needs to know how similar its tasks are to the earlier ones."""
        return isinstance(self.regulariser, TIR)

    def of(self, model: str, tasks: tuple[str, ...] = ()) -> Method:
        """Return the method as it is for a model, and for a step that learns some tasks."""
        own = {**self.model_dump(exclude={"models"}), **self.models.get(model, {})}
        resolved = Method.model_validate(own)
        training = resolved.training.of(tasks)
        return resolved.model_copy(update={"training": training})
