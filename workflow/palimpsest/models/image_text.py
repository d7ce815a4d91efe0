"""Pictures and texts in one space, by BLIP-2's first stage (Li et al., arXiv 2301.12597).

CORE sees pictures and the concepts of pictures so (`Jin0316/CORE`, utils/router/
similarity_extract.py, by LAVIS's `blip2_feature_extractor`, whose weights transformers has as
Blip2ForImageTextRetrieval). As there, an embedding is the mean over what the Q-Former gives, of its
queries or of a text's tokens, at length 1; BLIP-2 itself takes the best query and a text's [CLS].
Otherwise than there, padding has no part in the mean of a text.

Shapes: B pictures or texts, L tokens or queries, D width of the space.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, Blip2ForImageTextRetrieval
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from palimpsest.config import Encoder
from palimpsest.models.lmm import source
from palimpsest.models.pictures import opened

LONGEST = 32  # tokens of a text
MOST_WORDS = 50


class ImageText(nn.Module):
    """The Q-Former with its tower, in fp32; nothing of it is trained."""

    def __init__(self, config: Encoder) -> None:
        """Load weights, tokenizer and processor from a directory or a pinned hub revision."""
        super().__init__()
        where = source(config)
        self.tokenizer = AutoTokenizer.from_pretrained(**where)
        self.processor = BlipImageProcessorPil.from_pretrained(**where)
        self.module = Blip2ForImageTextRetrieval.from_pretrained(
            **where, dtype=torch.float32, use_safetensors=True
        )
        self.requires_grad_(False).eval()

    @property
    def width(self) -> int:
        """D."""
        return self.module.config.image_text_hidden_size

    def pictures(self, images: Sequence[bytes]) -> Tensor:
        """Return x_BD of pictures as files' bytes."""
        pixels = self.processor([opened(image) for image in images], return_tensors="pt")
        seen_BLE = self.module.vision_model(**pixels.to(self.module.device)).last_hidden_state
        queries = self.module.query_tokens.expand(len(images), -1, -1)
        out_BLE = self.module.qformer(query_embeds=queries, encoder_hidden_states=seen_BLE)
        x_BLD = self.module.vision_projection(out_BLE.last_hidden_state)
        return F.normalize(x_BLD.mean(1), dim=-1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return x_BD of texts."""
        tokens = self.tokenizer(
            [_plain(text) for text in texts],
            truncation=True,
            max_length=LONGEST,
            padding=True,
            return_tensors="pt",
        ).to(self.module.device)
        out_BLE = self.module.qformer(
            query_embeds=self.module.embeddings(input_ids=tokens["input_ids"]),
            query_length=0,
            attention_mask=tokens["attention_mask"],
        )
        x_BLD = self.module.text_projection(out_BLE.last_hidden_state)
        # Not the mean itself, whose length the next line does not mind.
        return F.normalize((x_BLD * tokens["attention_mask"][..., None]).sum(1), dim=-1)


def _plain(text: str) -> str:
    """Write a text as LAVIS does before its tokenizer: small letters, and few other marks."""
    return " ".join(re.sub(r"[.!\"()*#:;~]", " ", text.lower()).split()[:MOST_WORDS])
