"""The demo model: a genuine LLaVA of two million parameters, and the tokenizer trained for it.

CLIP's vision tower (64 x 64 pictures, 16 patches), a two-layer projector, a Llama decoder with tied
embeddings. Everything is built from nothing here; ``training.pretrain`` gives it its skill.
"""

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

PICTURE_SIDE = 64
PATCH_SIDE = 16
NUM_PATCHES = (PICTURE_SIDE // PATCH_SIDE) ** 2
PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
IMAGE, USER, ASSISTANT = "<image>", "USER:", "ASSISTANT:"
SPECIAL = (PAD, BOS, EOS, UNKNOWN, IMAGE, USER, ASSISTANT)
_ALONE = Regex(r"[A-Z](?![a-z])|[0-9]{1,2}")
_GLUED = Regex(r"(?<=[A-Z]) (?=[A-Z])| (?=[,.?:;\]])|(?<=[\[,]) ")


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn the words of ``texts``; a word never seen falls apart into letters.

    Spaces and line ends only separate words, so a text has the same tokens however it is put
    together. Capitals of a word in capitals and numbers up to 99 stand alone: a made-up word is
    read letter by letter. Decoding sets words apart by spaces, and glues capitals and boxes.
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(_ALONE, "isolated"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    characters = [chr(code) for code in range(33, 127)]
    pieces = [*SPECIAL, *characters, *(f"##{c}" for c in characters if c.isalnum())]
    pieces += sorted(words - set(pieces))
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(tokenizer_models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(_GLUED, ""),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": IMAGE,
            "user_token": USER,
            "assistant_token": ASSISTANT,
        },
    )


def build_image_processor() -> CLIPImageProcessorPil:
    """Scale a picture to 64 x 64 and its values to -1 .. 1."""
    return CLIPImageProcessorPil(
        do_resize=True,
        size={"height": PICTURE_SIDE, "width": PICTURE_SIDE},
        do_center_crop=False,
        do_rescale=True,
        do_normalize=True,
        do_convert_rgb=True,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def build(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """The untrained model, with weights drawn from ``seed``."""
    vision = CLIPVisionConfig(
        image_size=PICTURE_SIDE,
        patch_size=PATCH_SIDE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_act="gelu",
    )
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,
        **special,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=NUM_PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        **special,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    for linear in (
        model.model.multi_modal_projector.linear_1,
        model.model.multi_modal_projector.linear_2,
    ):
        torch.nn.init.xavier_uniform_(linear.weight)
    return model


def chat(question: str) -> str:
    """The prompt of the demo model, up to where its answer begins."""
    return f"{BOS}{USER} {IMAGE * NUM_PATCHES}\n{question} {ASSISTANT}"
