"""What a model says where an answer is supervised: what losses and penalties are made of.

Shapes: B examples, L tokens, D hidden size, V vocabulary, S answer tokens of a batch.
"""

from __future__ import annotations

from torch import Tensor, nn

IGNORE = -100  # label of a token that is not learnt


def logits(module: nn.Module, labels_BL: Tensor, **batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits_SV in fp32 and target_S: what is foretold of each answer token, and the token.

    The output layer, D x V and the widest of a small-picture batch, is applied only where a label
    is supervised: S positions of B x L. A label at the first position is none: nothing comes
    before it.
    """
    hidden_BLD = module.base_model(**batch, use_cache=False).last_hidden_state
    target_BL = labels_BL[:, 1:]
    supervised_BL = target_BL != IGNORE
    logits_SV = module.get_output_embeddings()(hidden_BLD[:, :-1][supervised_BL])
    return logits_SV.float(), target_BL[supervised_BL]
