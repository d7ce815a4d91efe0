"""CORE's recommendation of refusers: how much of each a picture and its question go through.

(Jin et al., arXiv 2603.21484; the released code `Jin0316/CORE`, minigpt4/models/router.py.) The
relevances of image and text concepts are mapped to a token each, the two attend to each other
twice, and their mean gives the logits of the experts. The shares alpha are the softmax over the
largest `top` of them.

The load of a task is how often each expert was among the `top` for one of its examples. With the
loads l_t of the finished tasks, the logits x, p = softmax(x), and the similarity r_t of the new
task to each,

    L_rec = - mean over t of r_t log softmax_t(cos(x, l_t) / tau)
    L_reg = sum over t of w_t [cos(p, l_t) + 1 + 0.1 H(q_t, p)],   w_t = (1 - r_t) / sum of (1 - r),
            q_t = softmax(6 (1 - softmax(l_t))),  H the cross-entropy:

a similar task is drawn to the experts of the old one, another is driven to those it left. Losses
are means over examples, each by its answer's tokens, as that of the answers is.

Otherwise than in the released code, which averages the relevances of a batch and routes all of it
alike, each example is routed by itself; and the load is counted once, over the examples of the
task when it has been learnt, not over the batches while it is.

Shapes: B or N examples, C concepts of both kinds, E experts, T finished tasks, W a token's width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from palimpsest.methods import settings as s
from palimpsest.methods.growth import inherit

SHARPNESS = 6.0  # of q_t
CROSS_ENTROPY = 0.1  # its weight in L_reg


class ExpertRouter(nn.Module):
    """Relevances of image and text concepts, `sizes` of each, to logits of experts."""

    def __init__(self, settings: s.Refusers, sizes: tuple[int, int]) -> None:
        super().__init__()
        width, heads, dropout = settings.width, settings.heads, settings.dropout
        self.tokens = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(width, heads, dropout, batch_first=True) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.output = nn.Linear(width, settings.experts)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many image and text concepts it reads."""
        image, text = self.tokens
        return image.in_features, text.in_features

    def forward(self, concepts_BC: Tensor) -> Tensor:
        """Return logits_BE of relevances, those of image concepts first."""
        parts = zip(self.tokens, concepts_BC.split(self.sizes, dim=-1), strict=True)
        x_B2W = torch.stack([token(part_BC) for token, part_BC in parts], dim=1)
        for attention, norm in zip(self.attention, self.norms, strict=True):
            x_B2W = norm(x_B2W + attention(x_B2W, x_B2W, x_B2W, need_weights=False)[0])
        return self.output(x_B2W.mean(1))


def initialised(
    settings: s.Refusers, sizes: tuple[int, int], state: Mapping[str, Tensor], seed: int
) -> ExpertRouter:
    """Return a router with what `state`, of one for as many concepts or fewer, has learnt.

    What is new in it depends on the seed alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router = ExpertRouter(settings, sizes)
    inherit(router, state)
    return router.eval()


def shares(logits_BE: Tensor, top: int) -> Tensor:
    """Return alpha_BE: the softmax over the largest `top` logits, and 0 elsewhere."""
    largest_BK, experts_BK = logits_BE.topk(top)
    return torch.zeros_like(logits_BE).scatter(-1, experts_BK, largest_BK.softmax(-1))


def load(logits_NE: Tensor, top: int) -> Tensor:
    """Return load_E of a task by the logits of its examples: how often each expert is chosen."""
    return logits_NE.topk(top).indices.flatten().bincount(minlength=logits_NE.shape[1])


def recommendation(
    logits_BE: Tensor, loads_TE: Tensor, similar_T: Tensor, temperature: float
) -> Tensor:
    """Return L_rec of each example, a vector of B; `similar_T` is r."""
    near_BT = F.cosine_similarity(logits_BE[:, None], loads_TE.float(), dim=-1) / temperature
    return -(similar_T * near_BT.log_softmax(-1)).mean(-1)


def adaptation(logits_BE: Tensor, loads_TE: Tensor, similar_T: Tensor) -> Tensor:
    """Return L_reg of each example, a vector of B; 0 where all earlier tasks are like this one."""
    loads_TE = loads_TE.float()
    apart_T = 1 - similar_T
    weight_T = apart_T / apart_T.sum().clamp_min(1e-8)
    near_BT = F.cosine_similarity(logits_BE.softmax(-1)[:, None], loads_TE, dim=-1)
    unused_TE = (SHARPNESS * (1 - loads_TE.softmax(-1))).softmax(-1)
    entropy_BT = -logits_BE.log_softmax(-1) @ unused_TE.T
    return (near_BT + 1 + CROSS_ENTROPY * entropy_BT) @ weight_T


def replay(
    router: ExpertRouter, concepts_NC: Tensor, loads_NE: Tensor, settings: s.Replay, seed: int
) -> None:
    """Train a router, in place, to send the concepts of all tasks to the experts of each.

    `loads_NE` are of the task of each row. The target of a row is drawn anew in every epoch from
    the softmax of its load; of counts, that is nearly always the most used expert.
    """
    router.train()
    optimiser = torch.optim.Adam(router.parameters(), lr=settings.learning_rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(settings.epochs):
            experts_N = loads_NE.float().softmax(-1).multinomial(1).flatten()
            for rows_B in torch.randperm(len(concepts_NC)).split(settings.batch):
                loss = F.cross_entropy(router(concepts_NC[rows_B]), experts_N[rows_B])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    router.eval()
