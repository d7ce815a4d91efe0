"""The training loop of a stage, to be read and trusted.

One step: micro-batches x ranks x accumulation = the global batch, and the loss is the mean over
all answer tokens of the global batch, so that 1 rank or 16 take the same steps. To it come the
penalties of a method, in each micro-batch by its share of the answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from palimpsest.config import Training
from palimpsest.methods.adapter import Adapter
from palimpsest.methods.answers import IGNORE, logits
from palimpsest.methods.regulariser import Regulariser
from palimpsest.training.engine import Engine, World


class AnswerLoss(nn.Module):
    """Negative log-likelihood of the answers, and the penalties on forgetting beside it.

    Both are sums over the S answer tokens of a batch: a penalty counts S times.
    """

    def __init__(self, module: nn.Module, *protectors: Regulariser | Adapter) -> None:
        """Each of the `protectors` has a `penalty`."""
        super().__init__()
        self.module = module
        self.protectors = protectors

    def forward(
        self, labels: torch.Tensor, **batch: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both sums for labels_BL and the other inputs of a batch."""
        logits_SV, target_S = logits(self.module, labels, **batch)
        loss = nn.functional.cross_entropy(logits_SV, target_S, reduction="sum")
        total = torch.zeros_like(loss)
        for part in self.protectors:
            penalty = part.penalty(self.module, logits_SV, labels, batch)
            total = total + penalty * len(target_S)
        return loss, total


def schedule(training: Training, num_steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate by step: linear warm-up, then cosine or constant."""
    num_warmup = math.ceil(training.warmup * num_steps)

    def factor(step: int) -> float:
        if step < num_warmup:
            return (step + 1) / num_warmup
        if training.schedule == "constant":
            return 1.0
        done = (step - num_warmup) / max(1, num_steps - num_warmup)
        return 0.5 * (1 + math.cos(math.pi * done))

    return factor


class Step(NamedTuple):
    """What became of a step."""

    done: int  # steps so far
    loss: float  # mean over the answer tokens of the global batch
    penalty: float
    tokens: int
    stop: bool


def steps(
    engine: Engine,
    loader: Iterator[dict[str, torch.Tensor]],
    world: World,
    seed_of: Callable[[int], int],
    stopped: Callable[[], bool],
    first: int,
    last: int,
) -> Iterator[Step]:
    """Take steps `first` … `last` - 1, and yield each after it was taken.

    `stop` is true on every rank as soon as `stopped` is on one: what a rank learns of a signal
    travels with the count of answer tokens.
    """
    engine.train()
    for step in range(first, last):
        torch.manual_seed(seed_of(step))
        batches = list(islice(loader, world.accumulation))
        answers = sum(int((b["labels"][:, 1:] != IGNORE).sum()) for b in batches)
        tokens = sum(int(b["attention_mask"].sum()) for b in batches)
        totals = torch.tensor([answers, tokens, stopped()], device=world.device)
        dist.all_reduce(totals)
        num_answers, num_tokens, stop = totals.tolist()
        total = torch.zeros(2, device=world.device)
        for batch in batches:
            batch = {name: t.to(world.device, non_blocking=True) for name, t in batch.items()}
            loss, penalty = (part / num_answers for part in engine(**batch))
            total += torch.stack([loss.detach(), penalty.detach()])
            # The engine averages over ranks and micro-batches; the mean over tokens needs a sum.
            engine.backward((loss + penalty) * world.size * world.accumulation)
            engine.step()
        dist.all_reduce(total)
        yield Step(step + 1, *total.tolist(), num_tokens, bool(stop))
