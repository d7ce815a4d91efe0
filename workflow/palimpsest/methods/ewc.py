"""Elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from palimpsest.methods import answers, quadratic


class EWC(quadratic.Quadratic):
    """Importance is the diagonal of the empirical Fisher information.

    I_i = mean over examples of (d/dtheta_i of the example's mean loss per answer token)^2: of the
    labels' likelihood, an example at a time. This is inferred: how He et al. (arXiv 2311.16206)
    estimate it is not known, as their released code holds another routine in its place.
    """

    def importance(
        self, model: nn.Module, labels_BL: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """See `Regulariser.importance`."""
        logits_SV, target_S = answers.logits(model, labels_BL, **batch)
        loss = F.cross_entropy(logits_SV, target_S)
        return {name: g.square() for name, g in quadratic.gradients(loss, model).items()}
