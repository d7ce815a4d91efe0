"""What a stage does before and after its steps, for the parts of its method that ask for it.

    routes        before the steps: where the router sends what the new task asks (`routes.py`)
    importance    after the steps: what the regulariser holds on to when the next task is learnt

Tasks that the base already knows (`initial` of a benchmark) take phases in the first stage.
A phase depends on nothing but the model, the examples and the seed, and its result is kept in the
resume directory: a stage that is killed between two phases goes on with the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from palimpsest.config import Method
from palimpsest.data.example import Example
from palimpsest.embeddings import read_steps
from palimpsest.lineage import Stage
from palimpsest.methods import regulariser
from palimpsest.methods.similarity import to_history
from palimpsest.models.lmm import LMM
from palimpsest.models.routing import ROUTER
from palimpsest.study import history
from palimpsest.tasks import Examples
from palimpsest.training.engine import World
from palimpsest.training.order import generator
from palimpsest.training.resume import Resume
from palimpsest.training.routes import Routes

REGULARISER = "regulariser.safetensors"


class Phases:
    """The regulariser and the router of one stage, as its parent left them."""

    def __init__(
        self, stage: Stage, results: Path, method: Method, lmm: LMM, world: World, resume: Resume
    ) -> None:
        """Read what the parent handed on; `lmm` is as the parent left it, on its device."""
        self.stage, self.results, self.method = stage, results, method
        self.lmm, self.world, self.resume = lmm, world, resume
        self.history = history(stage)
        self.is_first = stage.parent.parent is None
        parent = stage.parent.directory(results)
        self.regulariser = self.routes = None
        if method.regulariser:
            state = {} if self.is_first else load_file(parent / REGULARISER)
            self.regulariser = regulariser.build(method.regulariser, state)
        if method.router:
            self.routes = Routes(stage, results, method, lmm, resume)

    @property
    def protector(self) -> regulariser.Regulariser | None:
        """The regulariser, if there is something that it protects in this stage."""
        return self.regulariser if self.history else None

    @property
    def weighs(self) -> bool:
        """Whether the regulariser asks, after the steps, what was important."""
        return self.regulariser is not None and self.regulariser.needs_importance

    def before(self, pool: Sequence[Example], sharded: bool) -> dict[str, Tensor]:
        """Take the phases before the steps, while the model is plain; later it may be `sharded`.

        Returns what the model is told beside the pictures of what is learnt: see `Routes.before`.
        """
        initial = self.history if self.is_first else ()
        if self.weighs and initial:
            self.regulariser.state = self.resume.once("importance-initial", self._initially)
        beside = self.routes.before(pool) if self.routes else {}
        if self.protector:
            module = deepcopy(self.lmm.module) if sharded else self.lmm.module
            self.protector.begin(module, self._similarities())
        return beside

    def settled(self, learnt: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what has been learnt, by name, as it is after the router had its say."""
        return self.routes.after(learnt) if self.routes else learnt

    def remember(self, lmm: LMM, weights: Mapping[str, Tensor]) -> None:
        """Take the phase after the steps, if it `weighs`; `weights` were trained, by name."""
        if self.weighs:
            self.regulariser.state = self.resume.once(
                "importance", lambda: self._remembered(lmm, self.stage.lineage.last, weights)
            )

    def save(self, out: Path) -> None:
        """Write what the next stage will need into a stage directory."""
        router = self.routes and self.routes.router
        for part, name in ((self.regulariser, REGULARISER), (router, ROUTER)):
            if part:
                save_file({k: t.contiguous() for k, t in part.state.items()}, out / name)

    def _initially(self) -> dict[str, Tensor]:
        """Return the regulariser's state after the tasks that the base already knows."""
        module = self.lmm.module
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        weights = {name: p.detach().float().cpu().clone() for name, p in trained.items()}
        for step in self.history:
            state = self._remembered(self.lmm, step, weights)
        return state

    def _remembered(
        self, lmm: LMM, step: tuple[str, ...], weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Have the regulariser remember a step, by some of its examples; the ranks share them."""
        examples = self._sample(step, self.method.regulariser.examples, "importance")
        total = {name: torch.zeros_like(w, device=self.world.device) for name, w in weights.items()}
        lmm.module.eval()
        mine = range(self.world.rank, len(examples), self.world.size)
        for i in tqdm(mine, f"importance of {'+'.join(step)}", disable=self._is_quiet):
            batch = lmm.collate([lmm.encode(examples[i])], "right")
            batch = {name: t.to(self.world.device) for name, t in batch.items()}
            labels = batch.pop("labels")
            for name, value in self.regulariser.importance(lmm.module, labels, batch).items():
                total[name] += value
        for value in total.values():
            dist.all_reduce(value)
        mean = {name: value.cpu() / len(examples) for name, value in total.items()}
        self.regulariser.remember(mean, weights)
        return self.regulariser.state

    def _similarities(self) -> list[float]:
        """Return how similar the step to come is to each of the history, if that is asked."""
        if not self.method.compares_tasks:
            return []
        steps = (*self.history, self.stage.lineage.last)
        return to_history(read_steps(self.results, self.stage.model, steps))

    def _sample(self, step: tuple[str, ...], most: int, purpose: str) -> Subset:
        """Return at most so many training examples of a step, drawn at random."""
        examples = Examples(self.results, self.stage.benchmark, step, "train")
        rng = generator(self.stage.seed, self.stage.lineage, *step, purpose)
        return Subset(examples, rng.permutation(len(examples))[:most].tolist())

    @property
    def _is_quiet(self) -> bool | None:
        return True if self.world.rank else None  # None: where there is no terminal
