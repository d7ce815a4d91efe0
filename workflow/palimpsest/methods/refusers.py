"""CORE's refusers: a mixture of copies of the projector, beside the published one.

(Jin et al., arXiv 2603.21484; `Jin0316/CORE`, minigpt4/models/mini_gpt4.py.) With P the published
projector, V_e the refusers, each a copy of it at first, and alpha_e the shares that the router
gives them for a picture and its question (`experts.py`),

    y = P(x) + g dP(x),    dP(x) = (sum over e of alpha_e V_e(x) - P(x)) / 2.

While it learns, g = 1: y = (P + sum of alpha V) / 2. When it answers, the paper's g is soft,
P + beta dP with beta in 0 … 1, and the released code's is hard: (P + g sum of alpha V) / (1 + g)
with g 0 or 1 is the same y. That beta = 1 is what was trained is inferred: in the paper's terms dP
might be the sum itself, which is twice as far away.

The most used refuser of each finished task learns no more. In the released code its gradient is
zeroed, but weight decay goes on moving it; here nothing does.

Shapes: B pictures, C concepts of both kinds, E refusers, T finished tasks.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.files import read_json, write_json
from palimpsest.methods import adapter, experts
from palimpsest.methods import settings as s
from palimpsest.methods.projector import Projector


class Mixture(nn.Module):
    """The published projector and its refusers, which are held and compute in fp32.

    `concepts_BC` are the relevances of concepts to the pictures that are looked at next, as
    `Concepts.route` gives them, and `gates_B` their g, or None for 1. While `concepts_BC` is None
    the published projector alone answers. In training, `answers_B` are the answer tokens of each.
    """

    def __init__(self, settings: s.Refusers, base: nn.Module) -> None:
        super().__init__()
        self.settings, self.base = settings, base
        self.experts = nn.ModuleList(deepcopy(base).float() for _ in range(settings.experts))
        self.router: experts.ExpertRouter | None = None  # until the number of concepts is known
        self.loads_TE: Tensor | None = None
        self.similar_T: Tensor | None = None
        self.concepts_BC: Tensor | None = None
        self.gates_B: Tensor | None = None
        self.answers_B: Tensor | None = None
        self.logits_BE: Tensor | None = None  # of the pictures looked at last, in training

    def widen(self, sizes: tuple[int, int], seed: int) -> None:
        """Make the router read so many image and text concepts; what it has learnt is kept."""
        state = self.router.state_dict() if self.router else {}
        router = experts.initialised(self.settings, sizes, state, seed)
        self.router = router.to(next(self.base.parameters()).device).train(self.training)

    def send(self, concepts: Tensor, gates: Tensor) -> None:
        """Say how the pictures that are looked at next are mixed."""
        self.concepts_BC, self.gates_B = concepts, gates

    def begin(self, loads_TE: Tensor, similar_T: Tensor) -> None:
        """Get ready to learn a task, before an engine: see `experts.py` for what is given.

        All refusers and the router learn, but for the most used refuser of each finished task.
        """
        device = next(self.base.parameters()).device
        self.loads_TE, self.similar_T = loads_TE.to(device), similar_T.to(device)
        self.experts.requires_grad_(True)
        self.router.requires_grad_(True)
        for expert in set(loads_TE.argmax(-1).tolist()):
            self.experts[expert].requires_grad_(False)

    def forward(self, x_B: Tensor) -> Tensor:
        """Return y of each picture, in the precision of the base.

        Every refuser takes part in every pass, if with a share of 0: an engine that shares out
        the parameters needs gradients of the same ones on all ranks.
        """
        base_B = self.base(x_B)
        if self.concepts_BC is None:
            return base_B
        assert len(self.concepts_BC) == len(x_B), "each picture has its concepts"
        logits_BE = self.router(self.concepts_BC)
        shares_BE = experts.shares(logits_BE, self.settings.top)
        self.logits_BE = logits_BE if self.training else None
        gates_B = torch.ones_like(shares_BE[:, 0]) if self.gates_B is None else self.gates_B
        ones = [1] * (base_B.dim() - 1)  # axes of tokens and features
        mixed_B = sum(
            shares_B.view(-1, *ones) * expert(x_B.float())
            for shares_B, expert in zip(shares_BE.unbind(-1), self.experts, strict=True)
        )
        change_B = (mixed_B - base_B.float()) / 2
        return (base_B.float() + gates_B.view(-1, *ones) * change_B).to(base_B.dtype)

    def penalty(self) -> Tensor:
        """Return L_rec + L_reg summed over the answer tokens of the pictures looked at last.

        It is 0 in a first task, and where no picture was looked at since it was last asked.
        """
        logits_BE, self.logits_BE = self.logits_BE, None
        if logits_BE is None or not len(self.loads_TE):
            return torch.zeros((), device=self.similar_T.device)
        given, temperature = (logits_BE, self.loads_TE, self.similar_T), self.settings.temperature
        loss_B = experts.recommendation(*given, temperature) + experts.adaptation(*given)
        return (self.answers_B * loss_B).sum()


class Refusers(Projector):
    """The mixture in the place of a model's projector, whose name `targets` is.

    Its router is a part of it. In training, a batch brings two more inputs of the model, `concepts`
    and `answers`, of its pictures: see `Mixture`.
    """

    weights = "refusers.safetensors"
    config = "refusers.json"
    penalises = True

    def attach(self, model: nn.Module, targets: str) -> nn.Module:
        """Freeze a model and put the mixture into it; the router's size comes with the concepts.

        Raises ValueError if the model has no module of that name.
        """
        super().attach(model, targets)
        mixture = Mixture(self.settings, self.experts(model).base).train(model.training)
        model.set_submodule(targets, mixture.requires_grad_(False))
        where = next(n for n, m in model.base_model.named_modules() if m is mixture)

        def take(
            base: nn.Module, args: tuple, inputs: dict[str, Any]
        ) -> tuple[tuple, dict[str, Any]]:
            mixture = base.get_submodule(where)  # a copy of the model has its own
            if "concepts" in inputs:
                mixture.concepts_BC = inputs.pop("concepts")
                mixture.answers_B = inputs.pop("answers")
            return args, inputs

        model.base_model.register_forward_pre_hook(take, with_kwargs=True)
        return model

    def grow(self, model: nn.Module) -> None:
        """Do nothing: what learns is said by `Mixture.begin`, when the concepts are known."""

    def owns(self, name: str) -> bool:
        """Return whether a parameter is of a refuser or of the router."""
        return bool(self.name) and name.startswith(
            (f"{self.name}.experts.", f"{self.name}.router.")
        )

    def load(self, model: nn.Module, directory: Path) -> None:
        """See `Adapter.load`; the router gets the size that it was saved with, all is frozen."""
        self.experts(model).widen(tuple(read_json(directory / self.config)["concepts"]), seed=0)
        adapter.Adapter.load(self, model, directory)
        model.requires_grad_(False)

    def save_config(self, directory: Path, model: nn.Module, base: str) -> None:
        """Write the numbers of concepts and the base model's name to `refusers.json`."""
        sizes = self.experts(model).router.sizes
        about = {"concepts": sizes, "base_model_name_or_path": base}
        write_json(directory / self.config, {**self.identity(), **about})

    def penalty(self, model: nn.Module, logits_SV: Tensor, *_: Any) -> Tensor:
        """Return the mixture's penalty on a micro-batch; called as `Regulariser.penalty` is."""
        return self.experts(model).penalty() / max(1, len(logits_SV))
