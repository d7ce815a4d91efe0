"""Llama-2, EVA-CLIP-g and MiniGPT-v2's stage 2 in small: random weights in published formats."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from palimpsest.models.eva_vit import HEAD_WIDTH
from palimpsest.models.miniatures.llava import LAYERS, PATCH_SIZE, WIDTH, drawn, llama

TOWER_WIDTH = 2 * HEAD_WIDTH
GRID = 2  # patches a side in the tower's own training: half of those that MiniGPT-v2 looks at
RANK = 4


def generate(out: Path, seed: int = 0) -> None:
    """Write `language_model/`, `vision/` and `checkpoint/`, of which `assemble` makes the model."""
    generator = torch.Generator().manual_seed(seed)
    directory = out / "language_model"
    weights = drawn(llama(directory), generator)
    names = list(weights)
    for number in range(2):
        shard = {name: weights[name] for name in names[number::2]}
        save_file(shard, directory / f"model-{number + 1:05d}-of-00002.safetensors")
    save(drawn(eva_vit(), generator), out / "vision" / "eva_vit_g.pth")
    stage_2 = drawn(_trained(), generator, torch.float)
    save({"model": stage_2, "epoch": 0}, out / "checkpoint" / "checkpoint_stage2.pth")


def save(value: dict, path: Path) -> None:
    """Write a checkpoint into a directory of its own."""
    path.parent.mkdir()
    torch.save(value, path)


def eva_vit() -> dict[str, tuple[int, ...]]:
    """Return the shapes of an EVA-ViT; its last block is not used."""
    width, mlp = TOWER_WIDTH, 2 * TOWER_WIDTH
    linear = {"attn.proj": (width, width), "mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
    block = {f"norm{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
    block |= {f"attn.{name}": (width,) for name in ("q_bias", "v_bias")}
    block["attn.qkv.weight"] = (3 * width, width)
    for name, shape in linear.items():
        block |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, GRID**2 + 1, width),
        "patch_embed.proj.weight": (width, 3, PATCH_SIZE, PATCH_SIZE),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    return shapes | {
        f"blocks.{n}.{name}": s for n in range(LAYERS + 1) for name, s in block.items()
    }


def _trained() -> dict[str, tuple[int, ...]]:
    """Return the shapes of what stage 2 has trained: the LoRA and the projector."""
    shapes = {"llama_proj.weight": (WIDTH, 4 * TOWER_WIDTH), "llama_proj.bias": (WIDTH,)}
    for layer in range(LAYERS):
        for name in ("q_proj", "v_proj"):
            base = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{name}"
            shapes[f"{base}.lora_A.weight"] = (RANK, WIDTH)
            shapes[f"{base}.lora_B.weight"] = (WIDTH, RANK)
    return shapes
