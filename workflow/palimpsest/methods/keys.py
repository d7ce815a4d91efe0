"""EProj's router: an image key and an instruction key for each step, and no answer is needed.

He et al. (arXiv 2311.16206). The queries of a question are the [CLS] of its picture and the
embedding of its text, which nothing trains. A step's keys are drawn towards the queries of its
training examples,

    L = strength * sum over a batch of [(1 - cos(q_img, k_img)) + (1 - cos(q_ins, k_ins))],

and a question goes to argmax_t [cos(q_img, k_img^t) + cos(q_ins, k_ins^t)].

Otherwise than in the released code, the queries are computed once, of a sample of the examples, as
they never change; and there are no keys of steps that are still to come, at random as they would
be, to which a question could go.

Shapes: N examples of a step, B questions, T steps, E size of a picture's query, D of a text's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from palimpsest.methods import router


class Keys(router.Router):
    """The keys of the steps learnt so far, oldest first.

    `state` holds `image`, keys_TE, and `instruction`, keys_TD; it is empty before the first step.
    """

    @property
    def examples(self) -> int:
        """See `Router.examples`."""
        return self.settings.examples

    def learn(self, asked: router.Asked, seed: int) -> None:
        """Add the keys of a new step.

        Keys start uniform in [0, 1); batches are drawn with replacement. An example without a
        picture, whose query is zeros, does not pull the image key; one that nothing has pulled is
        zeros as well, and so is near to no picture.
        """
        queries = asked.queries
        generator = torch.Generator().manual_seed(seed)
        keys = {
            name: torch.rand(q_ND.shape[1], generator=generator).requires_grad_()
            for name, q_ND in queries.items()
        }
        rate = self.settings.learning_rate
        optimiser = torch.optim.AdamW(keys.values(), lr=rate, weight_decay=0)
        num_examples = len(queries["instruction"])
        for _ in range(self.settings.steps):
            rows_B = torch.randint(num_examples, (self.settings.batch,), generator=generator)
            apart = [
                (1 - F.cosine_similarity(queries[name][rows_B], key, dim=-1)).sum()
                for name, key in keys.items()
            ]
            optimiser.zero_grad()
            (self.settings.strength * sum(apart)).backward()
            optimiser.step()
        for name, key in keys.items():
            new_1D = key.detach()[None] * queries[name].any()
            self.state[name] = torch.cat([self.state.get(name, new_1D[:0]), new_1D])

    def route(self, queries: Mapping[str, Tensor]) -> router.Routed:
        """See `Router.route`; a question without a picture goes by its instruction alone."""
        near_BT = sum(
            F.cosine_similarity(q_BD[:, None], self.state[name], dim=-1)
            for name, q_BD in queries.items()
        )
        ago_B = near_BT.shape[1] - 1 - near_BT.argmax(-1)
        return router.Routed(ago_B, {"ago": ago_B})
