"""Memory aware synapses (Aljundi et al., arXiv 1711.09601)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from palimpsest.methods import answers, quadratic


class MAS(quadratic.Quadratic):
    """Importance is how much the size of the output changes with a parameter.

    I_i = mean over examples of |d/dtheta_i of the mean over answer tokens of ||logits||^2|. This
    follows the paper on the method: in the released code of He et al. (arXiv 2311.16206) the
    function is never called, and gradients of the training loss take its place.
    """

    def importance(
        self, model: nn.Module, labels_BL: Tensor, batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """See `Regulariser.importance`."""
        logits_SV, _ = answers.logits(model, labels_BL, **batch)
        size = logits_SV.square().sum(dim=-1).mean()
        return {name: g.abs() for name, g in quadratic.gradients(size, model).items()}
