"""EVA-CLIP-g as LAVIS publishes it, for the tower that transformers has for BLIP-2.

The MiniGPTs leave out its last block and the norm after it, and put a norm of their own there,
which the released code calls `ln_vision`.

Shapes: P patches of a picture, C width of the tower.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Blip2VisionConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from palimpsest.models import assembly

HEAD_WIDTH = 88  # of EVA-CLIP-g; no file says it
TOWER = "model.vision_tower"
NAMES: assembly.Rules = (
    (r"cls_token", f"{TOWER}.embeddings.class_embedding"),
    (r"pos_embed", f"{TOWER}.embeddings.position_embedding"),
    (r"patch_embed\.proj\.(.*)", rf"{TOWER}.embeddings.patch_embedding.\1"),
    (r"blocks\.(\d+)\.norm([12])\.(.*)", rf"{TOWER}.encoder.layers.\1.layer_norm\2.\3"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.*)", rf"{TOWER}.encoder.layers.\1.self_attn.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", rf"{TOWER}.encoder.layers.\1.self_attn.projection.\2"),
    (r"blocks\.(\d+)\.mlp\.(.*)", rf"{TOWER}.encoder.layers.\1.mlp.\2"),
    (r"(norm|fc_norm|head)\.(weight|bias)", None),  # what classified EVA-CLIP-g's pictures
)


def vision_config(tower: dict[str, Tensor], where: Path, times: int = 1) -> Blip2VisionConfig:
    """Read the sizes of an EVA-ViT off its tensors; the last block is not used.

    The pictures have so many times the patches a side that it was trained with.

    Errors: ValueError if the tensors, which are from `where`, are not an EVA-ViT's.
    """
    try:
        width = len(tower["patch_embed.proj.bias"])
        patch = tower["patch_embed.proj.weight"].shape[-1]
        grid = times * _side(tower["pos_embed"])
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


def tensors(tower: dict[str, Tensor], vision: Blip2VisionConfig, where: Path) -> assembly.Named:
    """Yield an EVA-ViT's tensors as a model names and holds them whose tower has this config.

    Errors: ValueError names a tensor that is foreign, and `where` it is from.
    """
    return assembly.renamed(_adapted(tower, vision), NAMES, where)


def fresh_norm(vision: Blip2VisionConfig) -> dict[str, Tensor]:
    """Return `ln_vision` as it is created, for checkpoints that leave it out.

    It is frozen, and a checkpoint holds what is trained.
    """
    width = vision.hidden_size
    return {"ln_vision.weight": torch.ones(width), "ln_vision.bias": torch.zeros(width)}


def image_processor(side: int) -> CLIPImageProcessorPil:
    """Squash a picture into a square of `side` pixels, bicubically, with CLIP's mean and spread."""
    square = {"height": side, "width": side}
    return CLIPImageProcessorPil(
        size=square, do_center_crop=False, image_mean=OPENAI_CLIP_MEAN, image_std=OPENAI_CLIP_STD
    )


def _adapted(tower: dict[str, Tensor], vision: Blip2VisionConfig) -> assembly.Named:
    """Yield an EVA-ViT's tensors as our tower has them, still by their own names."""
    for name, tensor in tower.items():
        block, _, kind = name.removeprefix("blocks.").partition(".")
        if name == "pos_embed":
            yield name, _resampled(tensor, vision.image_size // vision.patch_size)
        elif not name.startswith("blocks."):
            yield name, tensor
        elif int(block) >= vision.num_hidden_layers or kind == "attn.v_bias":
            continue
        elif kind == "attn.q_bias":  # and of v; k has none
            q, v = tensor, tower[f"blocks.{block}.attn.v_bias"]
            yield f"blocks.{block}.attn.qkv.bias", torch.cat([q, torch.zeros_like(q), v])
        else:
            yield name, tensor


def _resampled(table_1PC: Tensor, side: int) -> Tensor:
    """Stretch a table of positions, CLS first, to so many patches a side, bicubically."""
    own = _side(table_1PC)
    cls, patches = table_1PC.float().split([1, own**2], dim=1)
    grid = patches.unflatten(1, (own, own)).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1)


def _side(table_1PC: Tensor) -> int:
    """Return the patches a side of a table of positions, CLS first."""
    return int((table_1PC.shape[1] - 1) ** 0.5)
