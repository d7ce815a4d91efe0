"""A LLaVA with random weights, small enough that a test trains it in a moment."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

VOCABULARY = 64
IMAGE_TOKEN = 3
IMAGE_SIZE = 16  # pixels
IMAGE_TOKENS = 4  # of one image: 2 x 2 patches of 8 pixels
LAYERS = 2
WIDTH = 32
TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def tiny_llava(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlavaForConditionalGeneration:
    """Return a LLaVA of 31,968 weights, drawn from a seed, in evaluation mode."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=8,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        image_seq_length=IMAGE_TOKENS,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config).to(dtype).eval()


def tiny_batch(batch: int = 2, length: int = 6, seed: int = 0) -> dict[str, Tensor]:
    """Return random inputs of `tiny_llava`: each row an image and `length` words, no padding."""
    generator = torch.Generator().manual_seed(seed)
    words_BL = torch.randint(4, VOCABULARY, (batch, length), generator=generator)
    image_BL = torch.full((batch, IMAGE_TOKENS), IMAGE_TOKEN)
    input_ids_BL = torch.cat([image_BL, words_BL], dim=1)
    return {
        "input_ids": input_ids_BL,
        "attention_mask": torch.ones_like(input_ids_BL),
        "pixel_values": torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator),
    }
