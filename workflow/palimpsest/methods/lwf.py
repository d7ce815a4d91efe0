"""Learning without forgetting (Li and Hoiem, arXiv 1606.09282), on the answers' tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from palimpsest.methods import answers, regulariser


class LwF(regulariser.Regulariser):
    """On the new task's inputs the model is held to what it said before it learnt them.

    strength * mean over answer tokens of KL(p_teacher || p_student), at temperature 1. The teacher
    is the model that the stage before left, without dropout; there is no other state.
    """

    bytes_held = 4  # the teacher's weight

    def begin(self, model: nn.Module, similarities: Sequence[float]) -> None:
        """Make the teacher: it shares with the model what is frozen there, and copies the rest."""
        frozen = (p for p in model.parameters() if not p.requires_grad)
        shared = {id(tensor): tensor for tensor in chain(frozen, model.buffers())}
        self.teacher = deepcopy(model, shared).requires_grad_(False).eval()

    def penalty(
        self, model: nn.Module, logits_SV: Tensor, labels_BL: Tensor, batch: Mapping[str, Tensor]
    ) -> Tensor:
        """See `Regulariser.penalty`."""
        with torch.no_grad():
            teacher_SV, _ = answers.logits(self.teacher, labels_BL, **batch)
        divergence = F.kl_div(
            logits_SV.log_softmax(-1), teacher_SV.log_softmax(-1), reduction="sum", log_target=True
        )
        return self.settings.strength * divergence / max(1, len(logits_SV))
