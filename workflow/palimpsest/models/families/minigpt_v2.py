"""MiniGPT-v2 as CoIN tunes it: after its second stage, with pictures of 448 x 448 pixels.

It reads conversations and pictures as a LLaVA does; its chat puts <ImageHere> where they go.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.config import Model
from palimpsest.models import assembly, eva_vit
from palimpsest.models.families.llava import Llava, load_as
from palimpsest.models.minigpt_v2 import (
    JOINED,
    MiniGPTv2Config,
    MiniGPTv2ForConditionalGeneration,
)

IMAGE = "<ImageHere>"
GRID = 2  # times the patches a side that EVA-CLIP-g was trained with: 448 pixels for 224
# The stage-2 checkpoint holds a LoRA of rank 64 on q_proj and v_proj, trained with alpha 16 (the
# released code's default). CoIN loads it into the LoRA that it trains on, with alpha 256 there and
# 16 again in its evaluation configs. Here it is merged into Llama at the alpha it was trained with
# (at 256 the start would be 16 times what its authors made), and CoIN's LoRA, carried from task to
# task, starts anew.
LORA_ALPHA = 16

PROJECTOR: assembly.Rules = (
    (r"llama_proj\.(.*)", r"model.multi_modal_projector.linear.\1"),
    (r"ln_vision\.(.*)", r"model.multi_modal_projector.norm.\1"),
)
LORA = re.compile(r"llama_model\.base_model\.model\.(.*)\.lora_([AB])(?:\.default)?\.weight")


def load(config: Model) -> Llava:
    """Load what `assemble` has made."""
    return load_as(MiniGPTv2ForConditionalGeneration, config)


def assemble(parts: dict[str, Path], out: Path) -> None:
    """Make the model's directory from its published parts.

    Parts: `language_model` (Llama-2-7b-chat of the hub), `vision` (eva_vit_g.pth of LAVIS, of
    which MiniGPT-v2 leaves out the last block), `checkpoint` (checkpoint_stage2.pth, which holds
    the projector and the LoRA of the language model under the key `model`).

    Errors: ValueError names a part, file or tensor that is missing, foreign or of another shape.
    """
    language = assembly.part(parts, "language_model")
    eva = assembly.part(parts, "vision") / "eva_vit_g.pth"
    checkpoint = assembly.part(parts, "checkpoint") / "checkpoint_stage2.pth"
    tower = assembly.unpickled(eva)
    stage_2 = assembly.unpickled(checkpoint).get("model", {})
    tokenizer = assembly.llama_tokenizer(language, IMAGE)
    vision = eva_vit.vision_config(tower, eva, GRID)
    text = assembly.llama_config(language, tokenizer)
    config = MiniGPTv2Config(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2 // JOINED,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    with torch.device("meta"):
        module = MiniGPTv2ForConditionalGeneration(config)

    def tensors() -> assembly.Named:
        yield from _merged(assembly.llama(language, text.vocab_size), stage_2, checkpoint)
        yield from eva_vit.tensors(tower, vision, eva)
        rest = {name: t for name, t in stage_2.items() if not LORA.fullmatch(name)}
        rest = {**eva_vit.fresh_norm(vision), **rest}  # the checkpoint may leave it out
        yield from assembly.renamed(rest.items(), PROJECTOR, checkpoint)

    image_processor = eva_vit.image_processor(vision.image_size)
    assembly.write(tensors(), module, tokenizer, image_processor, out)


def _merged(named: assembly.Named, stage_2: dict[str, Tensor], where: Path) -> assembly.Named:
    """Fold the checkpoint's LoRA into the language model: W + (alpha / rank) B A, in fp32.

    What is merged stays in fp32, so that it is rounded once, when the model is loaded.
    """
    lora: dict[str, dict[str, Tensor]] = {}
    for match in filter(None, map(LORA.fullmatch, stage_2)):
        name = f"{match[1]}.weight".replace("model.", "model.language_model.", 1)
        lora.setdefault(name, {})[match[2]] = stage_2[match[0]].float()
    for name, tensor in named:
        if factors := lora.pop(name, None):
            if factors.keys() != {"A", "B"}:
                raise ValueError(f"{where}: lora_A or lora_B is missing of {name}")
            scale = LORA_ALPHA / len(factors["A"])
            tensor = tensor.float() + scale * factors["B"] @ factors["A"]
        yield name, tensor
    if lora:
        raise ValueError(f"{where}: the LoRA of {min(lora)} has no layer in the language model")
