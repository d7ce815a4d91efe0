"""The typed settings of every method part, without torch, so that a Snakefile can read them.

A part named `moelora` has its settings here and its work in `methods/moelora.py`.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """A frozen object that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lora(Settings):
    """Low-rank adaptation, y = Wx + (alpha / rank) B A x (Hu et al., arXiv 2106.09685)."""

    name: Literal["lora"]
    rank: int = Field(gt=0)
    alpha: float = Field(gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class MoELora(Settings):
    """A dense mixture of LoRA experts, gated per token (CoIN, arXiv 2403.08350).

    `rank` is the total over the experts, and the scale is alpha / rank with that total.
    """

    name: Literal["moelora"]
    rank: int = Field(gt=0)
    alpha: float = Field(gt=0)
    experts: int = Field(gt=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _rank_is_shared_out(self) -> MoELora:
        if self.rank % self.experts:
            raise ValueError(f"rank {self.rank} cannot be shared out over {self.experts} experts")
        return self


class Subset(Settings):
    """Modules of the model itself, trained as they are: the model's config names them."""

    name: Literal["subset"]


class Reservoir(Settings):
    """Replay from a uniform sample of all earlier examples (Vitter's algorithm R).

    `share` of the samples of a stage come from the reservoir in place of new ones, so that a
    stage with replay takes as many steps as one without.
    """

    name: Literal["reservoir"]
    capacity: int = Field(gt=0)  # examples
    share: float = Field(gt=0, lt=1)


Adapter = Annotated[Lora | MoELora | Subset, Field(discriminator="name")]
Rehearsal = Reservoir


class Training(Settings):
    """How a stage is optimised; the global batch is reached exactly, on any number of ranks."""

    batch: int = Field(gt=0)  # examples a step, over all ranks
    batches: dict[str, int] | None = None  # others for tasks learnt alone, by shell patterns
    epochs: float = Field(gt=0)
    learning_rate: float = Field(gt=0)
    projector_learning_rate: float | None = Field(None, gt=0)  # where the projector has its own
    schedule: Literal["cosine", "constant"]
    warmup: float = Field(0.0, ge=0, lt=1)  # share of the steps
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float = Field(1.0, gt=0)  # global norm

    def of(self, tasks: tuple[str, ...]) -> Training:
        """Return the settings of a step that learns some tasks: `batch` is theirs."""
        batches = (self.batches or {}).items() if len(tasks) == 1 else ()
        own = next((batch for names, batch in batches if fnmatch(tasks[0], names)), self.batch)
        return self.model_copy(update={"batch": own, "batches": None})
