"""What a stage does for the router of its method: before its steps, beside them, and after.

    queries            of all that will be learnt, where a router says something of each example
    keys, concepts     the router's state, when it has learnt to tell the new step
    the steps          the model is told, beside a picture, what the router says of it
    after the steps    the router settles what has been learnt: seconds, of which nothing is kept

The router's part says what of it is asked; what it comes to is in `methods/router.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from palimpsest.config import Method
from palimpsest.data.example import Example
from palimpsest.lineage import Stage
from palimpsest.methods import router
from palimpsest.models.lmm import Conversing
from palimpsest.models.queries import Queries
from palimpsest.models.routing import ROUTER
from palimpsest.study import described, history
from palimpsest.tasks import Examples
from palimpsest.training.order import generator, step_seed
from palimpsest.training.resume import Resume

AT_ONCE = 32  # examples of which queries are computed


class Routes:
    """The router of one stage, as its parent left it."""

    def __init__(
        self, stage: Stage, results: Path, method: Method, lmm: Conversing, resume: Resume
    ) -> None:
        """Read what the parent handed on."""
        self.stage, self.results, self.method = stage, results, method
        self.lmm, self.resume, self.name = lmm, resume, method.router.name
        self.is_first = stage.parent.parent is None
        state = {} if self.is_first else load_file(stage.parent.directory(results) / ROUTER)
        self.router = router.build(method.router, state)
        self.beside: dict[str, Tensor] = {}

    def before(self, pool: Sequence[Example]) -> dict[str, Tensor]:
        """Have the router learn the new step, and the experts get ready to.

        Returns what the model is told beside the picture of each example of the `pool`, by the
        names of its inputs; the pool begins with the examples of the step.
        """
        queries = cache(lambda: Queries(self.lmm, self.router.aligned))  # loads weights
        known = {}
        if self.router.examples is None:
            known = self.resume.once("queries", lambda: self._queries(queries(), pool))
        looks_back = self.is_first and self.method.router.looks_back
        steps = (*(history(self.stage) if looks_back else ()), self.stage.lineage.last)
        self.router.state = self.resume.once(
            self.name, lambda: self._learnt(queries(), steps, known)
        )
        self.router.begin(self.experts, self._seed("experts"))
        self.beside = self.router.beside(known)
        return self.beside

    def after(self, learnt: dict[str, Tensor]) -> dict[str, Tensor]:
        """Have the router settle what the experts have learnt; return that as it is then."""
        prefix = f"{self.lmm.config.projector}."
        own = {n.removeprefix(prefix): t for n, t in learnt.items() if n.startswith(prefix)}
        changed = self.router.settle(self.experts, own, self.beside, self._seed("settle"))
        return learnt | {prefix + name: tensor for name, tensor in changed.items()}

    @property
    def experts(self) -> torch.nn.Module:
        """What the adapter has put in the place of the model's projector."""
        return self.lmm.module.get_submodule(self.lmm.config.projector)

    def _learnt(
        self, queries: Queries, steps: Sequence[tuple[str, ...]], known: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the router's state with more steps; `known` are queries that have been asked."""
        modalities = {"image": "image", "instruction": "text"}
        texts = {
            keyword: {m: getattr(concepts, key) for m, key in modalities.items()}
            for keyword, concepts in described(self.method).items()
        }
        for step in steps:
            examples = self._sample(step)
            found = {name: q_ND[: len(examples)] for name, q_ND in known.items()}
            asked = router.Asked(
                queries=found or self._queries(queries, examples),
                keywords=[examples[i].keyword for i in range(len(examples))],
                described=texts,
                embedded=queries.words,
            )
            self.router.learn(asked, step_seed(self.stage.seed, *step, self.name))
        return self.router.state

    def _queries(self, queries: Queries, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return q_ND of examples by modality."""
        quiet = True if dist.get_rank() else None  # None: where there is no terminal
        starts = tqdm(range(0, len(examples), AT_ONCE), "queries", unit="batch", disable=quiet)
        batches = ([examples[i] for i in range(k, min(k + AT_ONCE, len(examples)))] for k in starts)
        found = [queries.of(batch) for batch in batches]
        return {name: torch.cat([q[name] for q in found]) for name in found[0]}

    def _sample(self, step: tuple[str, ...]) -> Sequence[Example]:
        """Return the training examples of a step from which the router learns."""
        examples = Examples(self.results, self.stage.benchmark, step, "train")
        if self.router.examples is None:
            return examples
        rng = generator(self.stage.seed, self.stage.lineage, *step, self.name)
        return Subset(examples, rng.permutation(len(examples))[: self.router.examples].tolist())

    def _seed(self, purpose: str) -> int:
        return step_seed(self.stage.seed, self.stage.lineage, purpose)
