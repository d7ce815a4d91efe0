"""Task-similarity-informed regularisation (TIR: He et al., arXiv 2311.16206)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from palimpsest.methods import quadratic
from palimpsest.methods.ewc import EWC
from palimpsest.methods.mas import MAS

BASES = {"ewc": EWC, "mas": MAS}


class TIR(quadratic.Quadratic):
    """The importances of EWC or MAS, discounted where they come from a task like the new one.

    A task's importances are scaled to a sum of 1 over all that is trained; of all tasks the
    largest is kept, I_i, and which task it comes from, k_i. Before a task with similarities S_k to
    the earlier ones is learnt, I_i becomes (1 - S_{k_i}) I_i. As in the released code the product
    takes the place of I_i, so that discounts accumulate over tasks, and a later task competes with
    what they left. Ours is the clamp of S to 0 … 1: a negative one would tighten the hold.

    State: as of EWC, and `source/<parameter>`, k_i in int16 as an index in the history, and
    `entries`, how many entries of the history it has seen.
    """

    def importance(
        self, model: nn.Module, labels_BL: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the importances of the base, not yet scaled."""
        base = BASES[self.settings.base](self.settings, {})
        return base.importance(model, labels_BL, batch)

    def begin(self, model: nn.Module, similarities: Sequence[float]) -> None:
        """See `Regulariser.begin`; the state is discounted too."""
        assert len(similarities) == self.state["entries"]
        kept_T = 1 - torch.tensor(similarities, dtype=torch.float32).clamp(0, 1)
        for name, source in self.state.items():
            if name.startswith("source/"):
                name = name.replace("source/", "importance/", 1)
                self.state[name] = self.state[name] * kept_T[source.long()]
        super().begin(model, similarities)

    def remember(self, importance: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Keep the larger of old and new importances with its source, and move the anchor."""
        before, entry = self.state, self.state.get("entries", torch.tensor(0))
        total = sum(value.sum().item() for value in importance.values())
        self.state = {"entries": entry + 1}
        for name, value in importance.items():
            value = value / total if total else value
            old = before.get(f"importance/{name}", torch.zeros_like(value))
            source = before.get(f"source/{name}", entry.short().expand_as(value))
            larger = value > old
            self.state[f"importance/{name}"] = torch.where(larger, value, old)
            self.state[f"source/{name}"] = torch.where(larger, entry.short(), source)
            self.state[f"anchor/{name}"] = weights[name]
