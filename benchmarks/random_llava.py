"""LLaVAs of any size with random weights, which know the words of the test workspace's tasks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from palimpsest.models.demo import IMAGE, build_image_processor


def config(
    tokenizer: PreTrainedTokenizerFast, vision: dict[str, Any], text: dict[str, Any]
) -> LlavaConfig:
    """Return the config of a LLaVA: `vision` and `text` are given to those of CLIP and Llama."""
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    eyes = CLIPVisionConfig(**vision)
    return LlavaConfig(
        vision_config=eyes,
        text_config=LlamaConfig(**{"vocab_size": len(tokenizer), **text, **special}),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(eyes.image_size // eyes.patch_size) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **special,
    )


def build(
    shape: LlavaConfig, device: str, dtype: torch.dtype, seed: int = 0
) -> LlavaForConditionalGeneration:
    """Make a model where it is to be, with weights as transformers draws them."""
    torch.manual_seed(seed)
    with torch.device(device):
        return LlavaForConditionalGeneration._from_config(shape, dtype=dtype)


def image_processor(side: int) -> CLIPImageProcessorPil:
    """Scale a picture to a square of so many pixels."""
    processor = build_image_processor()
    return processor.from_dict(processor.to_dict(), size={"height": side, "width": side})
