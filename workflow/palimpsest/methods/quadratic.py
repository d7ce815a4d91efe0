"""Quadratic penalties: each parameter is held near its old value, by its importance.

strength * sum_i I_i / 2 (theta_i - theta*_i)^2, where theta* are the weights that the stage before
left, the anchor, and I_i is the importance of parameter i for all tasks so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from palimpsest.methods import regulariser


class Quadratic(regulariser.Regulariser):
    """The penalty, and importances that are summed over tasks (Huszar, arXiv 1712.03847).

    State: `importance/<parameter>` and `anchor/<parameter>`, in fp32.
    """

    needs_importance = True
    bytes_held = 12  # importance, anchor, and their difference from the weight until the backward

    def begin(self, model: nn.Module, similarities: Sequence[float]) -> None:
        """See `Regulariser.begin`; what is new in the model is not held."""
        self.held = {
            name: (
                self.state[f"importance/{name}"].to(parameter.device),
                self.state[f"anchor/{name}"].to(parameter.device),
            )
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and f"anchor/{name}" in self.state
        }

    def penalty(
        self, model: nn.Module, logits_SV: Tensor, labels_BL: Tensor, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """See `Regulariser.penalty`; the batch has no part in it."""
        total = logits_SV.new_zeros(())
        for name, (importance, anchor) in self.held.items():
            total = total + (importance * (model.get_parameter(name) - anchor).square()).sum()
        return 0.5 * self.settings.strength * total

    def remember(self, importance: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Add the importances of a task to those of the tasks before, and move the anchor."""
        before = self.state
        self.state = {f"anchor/{name}": weights[name] for name in importance}
        for name, value in importance.items():
            self.state[f"importance/{name}"] = before.get(f"importance/{name}", 0.0) + value


def gradients(value: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Return the gradient of a scalar by each trained parameter, 0 where that has no part in it."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not value.requires_grad:  # as of a text, where only the projector of pictures learns
        return {name: torch.zeros_like(p) for name, p in trained.items()}
    found = torch.autograd.grad(
        value, list(trained.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(trained, found, strict=True))
