"""MiniGPT-v2 as CoIN tunes it: after its second stage, with pictures of 448 x 448 pixels.

It reads conversations and pictures as a LLaVA does; its chat puts <ImageHere> where they go.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Blip2VisionConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from palimpsest.config import Model
from palimpsest.models import assembly
from palimpsest.models.families.llava import Llava, load_as
from palimpsest.models.minigpt_v2 import (
    JOINED,
    MiniGPTv2Config,
    MiniGPTv2ForConditionalGeneration,
)

IMAGE = "<ImageHere>"
HEAD_WIDTH = 88  # of EVA-CLIP-g; no file says it
GRID = 2  # times the patches a side that EVA-CLIP-g was trained with: 448 pixels for 224
# The stage-2 checkpoint holds a LoRA of rank 64 on q_proj and v_proj, trained with alpha 16 (the
# released code's default). CoIN loads it into the LoRA that it trains on, with alpha 256 there and
# 16 again in its evaluation configs. Here it is merged into Llama at the alpha it was trained with
# (at 256 the start would be 16 times what its authors made), and CoIN's LoRA, carried from task to
# task, starts anew.
LORA_ALPHA = 16

TOWER = "model.vision_tower"
EVA: assembly.Rules = (
    (r"cls_token", f"{TOWER}.embeddings.class_embedding"),
    (r"pos_embed", f"{TOWER}.embeddings.position_embedding"),
    (r"patch_embed\.proj\.(.*)", rf"{TOWER}.embeddings.patch_embedding.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(.*)", rf"{TOWER}.encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.*)", rf"{TOWER}.encoder.layers.\1.self_attn.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", rf"{TOWER}.encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.mlp\.(.*)", rf"{TOWER}.encoder.layers.\1.mlp.\2"),
    (r"(norm|fc_norm|head)\.(weight|bias)", None),  # what classified EVA-CLIP-g's pictures
)
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
    vision = _vision_config(tower, eva)
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
        yield from assembly.renamed(_adapted(tower, vision.num_hidden_layers), EVA, eva)
        rest = {name: t for name, t in stage_2.items() if not LORA.fullmatch(name)}
        yield from assembly.renamed({**_fresh_norm(vision), **rest}.items(), PROJECTOR, checkpoint)

    assembly.write(tensors(), module, tokenizer, _image_processor(vision.image_size), out)


def _image_processor(side: int) -> CLIPImageProcessorPil:
    """Squash a picture into a square of `side` pixels, bicubically, with CLIP's mean and spread."""
    square = {"height": side, "width": side}
    return CLIPImageProcessorPil(
        size=square, do_center_crop=False, image_mean=OPENAI_CLIP_MEAN, image_std=OPENAI_CLIP_STD
    )


def _vision_config(tower: dict[str, Tensor], where: Path) -> Blip2VisionConfig:
    """Read the sizes of an EVA-ViT off its tensors; the last block is not used."""
    try:
        width = len(tower["patch_embed.proj.bias"])
        patch = tower["patch_embed.proj.weight"].shape[-1]
        grid = GRID * int((tower["pos_embed"].shape[1] - 1) ** 0.5)
        mlp = len(tower["blocks.0.mlp.fc1.bias"])
    except KeyError as name:
        raise ValueError(f"{where}: tensor {name} is missing: is this an EVA-ViT?") from None
    blocks = {name.split(".")[1] for name in tower if name.startswith("blocks.")}
    return Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=len(blocks) - 1,
        num_attention_heads=width // HEAD_WIDTH,
        image_size=grid * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _adapted(tower: dict[str, Tensor], num_blocks: int) -> assembly.Named:
    """Yield an EVA-ViT's tensors as our tower has them, still by their own names."""
    for name, tensor in tower.items():
        block, _, kind = name.removeprefix("blocks.").partition(".")
        if name == "pos_embed":
            yield name, _resampled(tensor, GRID)
        elif not name.startswith("blocks."):
            yield name, tensor
        elif int(block) >= num_blocks or kind == "attn.v_bias":
            continue
        elif kind == "attn.q_bias":  # and of v; k has none
            q, v = tensor, tower[f"blocks.{block}.attn.v_bias"]
            yield f"blocks.{block}.attn.qkv.bias", torch.cat([q, torch.zeros_like(q), v])
        else:
            yield name, tensor


def _resampled(table_1PC: Tensor, times: int) -> Tensor:
    """Stretch a table of positions, CLS first, to so many times the patches a side, bicubically."""
    cls, patches = table_1PC.float().split([1, table_1PC.shape[1] - 1], dim=1)
    side = int(patches.shape[1] ** 0.5)
    grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    size = (times * side, times * side)
    grid = nn.functional.interpolate(grid, size=size, mode="bicubic", align_corners=False)
    return torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1)


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


def _fresh_norm(vision: Blip2VisionConfig) -> dict[str, Tensor]:
    """Return `ln_vision` as it is created, for checkpoints that leave it out.

    MiniGPT-v2 freezes it and loads it from nowhere but the checkpoint, which holds what is trained.
    """
    width = vision.hidden_size
    return {"ln_vision.weight": torch.ones(width), "ln_vision.bias": torch.zeros(width)}
