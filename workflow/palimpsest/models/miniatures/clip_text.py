"""A text encoder of CLIP that costs nothing: random weights, and a token for every character.

Equal texts have equal embeddings, and that is all that these mean.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

BOS, EOS, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<unk>"
LONGEST = 160  # tokens


def generate(out: Path, seed: int = 0) -> None:
    """Write a model of some 30,000 weights, drawn from a seed, with its tokenizer, as the hub has.

    Its names and forms are those of openai/clip-vit-base-patch32, but for the tower.
    """
    tokenizer = _tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        initializer_factor=10.0,  # so that the last token's state depends on those before it
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPTextModelWithProjection(config)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _tokenizer() -> PreTrainedTokenizerFast:
    pieces = [BOS, EOS, UNKNOWN, *string.printable]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    ends = [(piece, vocabulary[piece]) for piece in (BOS, EOS)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=LONGEST,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=UNKNOWN,
    )
