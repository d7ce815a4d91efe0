"""The typed settings of every method part, without torch, so that a Snakefile can read them.

A part named `moelora` has its settings here and its work in `methods/moelora.py`.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Annotated, ClassVar, Literal

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


class Projector(Settings):
    """One projector a task beside the published one, each a copy of it at first: EProj's experts.

    (He et al., arXiv 2311.16206.) A router says which of them a picture goes through.
    """

    name: Literal["projector"]


class EWC(Settings):
    """Elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796).

    `examples` of a task, drawn at random, give its Fisher information; all where it has fewer.
    """

    name: Literal["ewc"]
    strength: float = Field(gt=0)  # lambda
    examples: int = Field(gt=0)


class MAS(Settings):
    """Memory aware synapses (Aljundi et al., arXiv 1711.09601); `examples` as for EWC."""

    name: Literal["mas"]
    strength: float = Field(gt=0)  # lambda
    examples: int = Field(gt=0)


class TIR(Settings):
    """Task-similarity-informed regularisation over EWC or MAS (He et al., arXiv 2311.16206)."""

    name: Literal["tir"]
    base: Literal["ewc", "mas"]
    strength: float = Field(gt=0)  # lambda
    examples: int = Field(gt=0)


class LwF(Settings):
    """Learning without forgetting (Li and Hoiem, arXiv 1606.09282), on the answers' tokens."""

    name: Literal["lwf"]
    strength: float = Field(gt=0)  # lambda


class Reservoir(Settings):
    """Replay from a uniform sample of all earlier examples (Vitter's algorithm R).

    `share` of the samples of a stage come from the reservoir in place of new ones, so that a
    stage with replay takes as many steps as one without.
    """

    name: Literal["reservoir"]
    capacity: int = Field(gt=0)  # examples
    share: float = Field(gt=0, lt=1)


class Proportional(Settings):
    """Replay of a uniform sample of every earlier task, as large a part of each (He et al.).

    The old examples are added to the new ones, so that a stage takes more steps than one without.
    """

    name: Literal["proportional"]
    ratio: float = Field(gt=0, le=1)  # of a task's training examples


class Keys(Settings):
    """A key for the pictures and one for the instructions of each task (He et al.'s EProj).

    A question goes to the task whose keys are nearest to it. The keys of a task are trained before
    all else, on `examples` of it: L = strength * sum over a batch of (1 - cos) for both.
    """

    looks_back: ClassVar = True  # it learns the tasks, too, that the base already knows
    name: Literal["keys"]
    steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    strength: float = Field(gt=0)
    batch: int = Field(gt=0)
    examples: int = Field(gt=0)


class Refusers(Settings):
    """CORE's mixture of copies of the projector, and the router before it (arXiv 2603.21484).

    `width`, `heads` and `dropout` are of the router's attention, and `temperature` is tau.
    """

    name: Literal["refusers"]
    experts: int = Field(gt=1)
    top: int = Field(gt=0)  # experts that a picture goes through
    width: int = Field(gt=0)
    heads: int = Field(gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    temperature: float = Field(gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Refusers:
        if self.top > self.experts:
            raise ValueError(f"top {self.top} is more than the {self.experts} experts")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be shared out over {self.heads} heads")
        return self


class Replay(Settings):
    """How CORE's router is trained again, on embeddings drawn from the Gaussian of each keyword."""

    drawn: int = Field(gt=0)  # of each keyword
    epochs: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    batch: int = Field(gt=0)


class Concepts(Settings):
    """CORE's concept modules, its modulator and its gate (arXiv 2603.21484).

    The similarity of two tasks is sigmoid(task_scale * (cos * cos - task_threshold)): 1 and 0 in
    the paper, 100 and 0.05 in the released code. The gate is the paper's or the released code's.
    """

    looks_back: ClassVar = False
    name: Literal["concepts"]
    described: str  # config/concepts/<described>.yaml: the concepts of each keyword
    epochs: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    batch: int = Field(gt=0)
    drawn: int = Field(gt=0)  # embeddings of each earlier keyword, in the place of its examples
    task_scale: float = Field(gt=0)
    task_threshold: float
    gate: Literal["soft", "hard"]
    replay: Replay


Adapter = Annotated[Lora | MoELora | Subset | Projector | Refusers, Field(discriminator="name")]
Regulariser = Annotated[EWC | MAS | TIR | LwF, Field(discriminator="name")]
Rehearsal = Annotated[Reservoir | Proportional, Field(discriminator="name")]
Router = Annotated[Keys | Concepts, Field(discriminator="name")]


class Training(Settings):
    """How a stage is optimised; the global batch is reached exactly, on any number of ranks."""

    batch: int = Field(gt=0)  # examples a step, over all ranks
    batches: dict[str, int] | None = None  # others for tasks learnt alone, by shell patterns
    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, gt=0)  # of a stage of any size, in the place of `epochs`
    learning_rate: float = Field(gt=0)
    projector_learning_rate: float | None = Field(None, gt=0)  # where the projector has its own
    schedule: Literal["cosine", "constant"]
    warmup: float = Field(0.0, ge=0, lt=1)  # share of the steps
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float = Field(1.0, gt=0)  # global norm

    @model_validator(mode="after")
    def _has_a_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a stage is as long as `epochs` or `steps` says: give one of them")
        return self

    def num_steps(self, num_examples: int) -> int:
        """Return the steps of a stage that learns from so many examples; one at least."""
        return self.steps or max(1, round(self.epochs * num_examples / self.batch))

    def of(self, tasks: tuple[str, ...]) -> Training:
        """Return the settings of a step that learns some tasks: `batch` is theirs."""
        batches = (self.batches or {}).items() if len(tasks) == 1 else ()
        own = next((batch for names, batch in batches if fnmatch(tasks[0], names)), self.batch)
        return self.model_copy(update={"batch": own, "batches": None})
