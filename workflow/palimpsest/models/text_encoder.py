"""A BERT (Devlin et al., arXiv 1810.04805) that embeds texts, as He et al. (2311.16206) use it.

Its [CLS] is theirs; the mean over a text's tokens is that of the kin made for sentences, such as
all-mpnet-base-v2, which CORE takes.

Shapes: B texts, L tokens, D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from palimpsest.config import TextEncoder
from palimpsest.models.lmm import source

LONGEST = 128  # tokens; what is over is cut off on the left


class Bert(nn.Module):
    """Texts to what the config's `pooling` makes of the last layer, in fp32; nothing is trained."""

    def __init__(self, config: TextEncoder) -> None:
        """Load weights and tokenizer from a directory or a pinned hub revision."""
        super().__init__()
        self.pooling, where = config.pooling, source(config)
        self.tokenizer = AutoTokenizer.from_pretrained(**where, truncation_side="left")
        self.module = AutoModel.from_pretrained(**where, dtype=torch.float32, use_safetensors=True)
        self.requires_grad_(False).eval()

    def forward(self, texts: list[str]) -> Tensor:
        """Return x_BD."""
        tokens_BL = self.tokenizer(
            texts, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt"
        )
        tokens_BL = tokens_BL.to(self.module.device)
        x_BLD = self.module(**tokens_BL).last_hidden_state
        if self.pooling == "cls":
            return x_BLD[:, 0]
        mask_BL1 = tokens_BL["attention_mask"][..., None]
        return (x_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
