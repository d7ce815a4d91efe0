"""Which expert answers: questions are sent where a router says, each by itself."""

from __future__ import annotations

from collections.abc import Sequence

from palimpsest.data.example import Example
from palimpsest.methods.router import Router
from palimpsest.models.lmm import Conversing, Encoded
from palimpsest.models.queries import Queries

ROUTER = "router.safetensors"  # the router's state, in a stage directory


class Routing:
    """A router before a model with experts in the place of its projector.

    `steps` are what the base knew and what was learnt since, such as `gqa` or `gqa+vizwiz`, oldest
    first.
    """

    def __init__(self, lmm: Conversing, router: Router, steps: Sequence[str]) -> None:
        self.experts = lmm.module.get_submodule(lmm.config.projector)
        self.queries, self.router = Queries(lmm, router.aligned), router
        self.device, self.steps = lmm.module.device, tuple(steps)

    def send(self, examples: Sequence[Example], prompts: Sequence[Encoded]) -> list[str]:
        """Have the model's next look at the examples' pictures done by the experts of their steps.

        `prompts` are the examples as the model reads them. Returns the step that each was sent to.
        """
        routed = self.router.route(self.queries.of(examples, prompts))
        looking = [row for row, prompt in enumerate(prompts) if prompt.pictures]
        told = {name: rows[looking].to(self.device) for name, rows in routed.told.items()}
        self.experts.send(**told)
        return [self.steps[-1 - ago] for ago in routed.ago_B.tolist()]
