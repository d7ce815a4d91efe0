"""Which expert answers: questions are sent where their keys say, each by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from palimpsest.data.example import Example
from palimpsest.methods.keys import Keys
from palimpsest.models.lmm import Conversing, Encoded
from palimpsest.models.queries import Queries

ROUTER = "router.safetensors"  # the router's state, in a stage directory


class Routing:
    """A router before a model with projector experts.

    `steps` are what the router's slots stand for, such as `gqa` or `gqa+vizwiz`, oldest first; the
    first `num_initial` of them, which the base knew already, have no expert but the base.
    """

    def __init__(self, lmm: Conversing, keys: Keys, steps: Sequence[str], num_initial: int) -> None:
        self.experts = lmm.module.get_submodule(lmm.config.projector)
        self.queries, self.keys = Queries(lmm), keys
        self.device, self.steps, self.num_initial = lmm.module.device, tuple(steps), num_initial

    def send(self, examples: Sequence[Example], prompts: Sequence[Encoded]) -> list[str]:
        """Have the model's next look at the examples' pictures done by the experts of their steps.

        `prompts` are the examples as the model reads them. Returns the step that each was sent to.
        """
        slots = self.keys.route(self.queries.of(examples, prompts)).tolist()
        experts = [max(0, slot - self.num_initial + 1) for slot in slots]
        looking = [n for n, prompt in zip(experts, prompts, strict=True) if prompt.pictures]
        self.experts.experts_B = torch.tensor(looking, device=self.device)
        return [self.steps[slot] for slot in slots]
