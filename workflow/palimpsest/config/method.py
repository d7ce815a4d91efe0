"""A method: config/methods/<method>.yaml."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, ValidationError, model_validator

from palimpsest.config.science import Science
from palimpsest.methods.settings import (
    EWC,
    MAS,
    TIR,
    Adapter,
    Refusers,
    Regulariser,
    Rehearsal,
    Router,
    Training,
)

ROUTED_BY = {"projector": "keys", "refusers": "concepts"}  # adapters that have experts


class Method(Science):
    """A continual-learning method, composed from parts, with the hyper-parameters of its source."""

    cosmetic: ClassVar = {"title", "cites", "source", "models"}
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
        adapter, router = self.adapter.name, self.router.name if self.router else None
        for experts, routed_by in ROUTED_BY.items():
            if (adapter == experts) != (router == routed_by):
                raise ValueError(
                    f"adapter {experts!r} needs a `router` named {routed_by!r}, and that router "
                    "needs that adapter"
                )
        if router and (self.train_projector or self.training.projector_learning_rate):
            raise ValueError(
                f"adapter {adapter!r} trains a projector of its own: leave out the rest"
            )
        return self

    @model_validator(mode="after")
    def _what_is_weighed_keeps_its_size(self) -> Method:
        if isinstance(self.adapter, Refusers) and isinstance(self.regulariser, EWC | MAS | TIR):
            raise ValueError(
                f"regulariser {self.regulariser.name!r} weighs parameters one by one, and those of "
                "adapter 'refusers' grow in number from stage to stage"
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
    def looks_back(self) -> bool:
        """Whether what the base already knows has a part in what a stage learns."""
        routed = self.router is not None and self.router.looks_back
        return bool(self.regulariser or self.rehearsal) or routed

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
