"""The training loop of a stage, to be read and trusted.

One step: micro-batches x ranks x accumulation = the global batch, and the loss is the mean over
all answer tokens of the global batch, so that 1 rank or 16 take the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice

import torch
import torch.distributed as dist
from torch import nn

from palimpsest.config import Training
from palimpsest.models.lmm import IGNORE
from palimpsest.training.engine import Engine, World


class AnswerLoss(nn.Module):
    """Negative log-likelihood of the answers, summed over their tokens.

    The output layer, D x V and the widest of a small-picture batch, is applied only where a
    label is supervised: S positions of B x L.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, labels: torch.Tensor, **batch: torch.Tensor) -> torch.Tensor:
        """Return the sum for labels_BL and the other inputs of a batch."""
        hidden_BLD = self.module.base_model(**batch, use_cache=False).last_hidden_state
        target_BL = labels[:, 1:]
        supervised_BL = target_BL != IGNORE
        logits_SV = self.module.get_output_embeddings()(hidden_BLD[:, :-1][supervised_BL])
        return nn.functional.cross_entropy(
            logits_SV.float(), target_BL[supervised_BL], reduction="sum"
        )


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


def steps(
    engine: Engine,
    loader: Iterator[dict[str, torch.Tensor]],
    world: World,
    seed_of: Callable[[int], int],
    stopped: Callable[[], bool],
    first: int,
    last: int,
) -> Iterator[tuple[int, float, int, bool]]:
    """Take steps `first` … `last` - 1; after each, yield (steps done, loss, tokens, stop?).

    `stop?` is true on every rank as soon as `stopped` is on one: what a rank learns of a signal
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
        total = torch.zeros((), device=world.device)
        for batch in batches:
            batch = {name: t.to(world.device, non_blocking=True) for name, t in batch.items()}
            loss = engine(**batch) / num_answers
            total += loss.detach()
            # The engine averages over ranks and micro-batches; the mean over tokens needs a sum.
            engine.backward(loss * world.size * world.accumulation)
            engine.step()
        dist.all_reduce(total)
        yield step + 1, total.item(), num_tokens, bool(stop)
