"""The released forward of MiniGPT-4 and MiniGPT-v2, written anew from the released files."""

from __future__ import annotations

from io import BytesIO
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from palimpsest.data.example import Example
from palimpsest.models.miniatures.llava import HEADS, LAYERS, WIDTH
from palimpsest.models.miniatures.minigpt_v2 import TOWER_WIDTH


def picture(seed):
    """Return a picture of noise, as a PNG file's bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def example(*turns, image):
    return Example("e", image, turns, (turns[-1].answer,))


def attention(q_LD, k_LD, v_LD, heads, mask_LL=None):
    split = [x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (q_LD, k_LD, v_LD)]
    q, k, v = split
    weights = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if mask_LL is not None:
        weights = weights.masked_fill(~mask_LL, -torch.inf)
    return (weights.softmax(-1) @ v).transpose(0, 1).flatten(1)


def looked(image, tower, grid):
    """EVA-ViT without its last block, for so many patches a side: tokens, [CLS] first."""
    side = 14 * grid
    pixels = Image.open(BytesIO(image)).convert("RGB").resize((side, side), Image.BICUBIC)
    x = (np.asarray(pixels) / 255 - OPENAI_CLIP_MEAN) / OPENAI_CLIP_STD
    x = torch.tensor(x, dtype=torch.float).permute(2, 0, 1).unsqueeze(0)
    kernel, bias = (tower[f"patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    x = F.conv2d(x, kernel, bias, stride=14).flatten(2)[0].T
    table = tower["pos_embed"][0]
    positions = table[1:].reshape(1, 2, 2, TOWER_WIDTH).permute(0, 3, 1, 2)
    if grid != 2:
        size = (grid, grid)
        positions = F.interpolate(positions, size=size, mode="bicubic", align_corners=False)
    table = torch.cat([table[:1], positions[0].flatten(1).T])
    x = torch.cat([tower["cls_token"][0], x]) + table

    def normed(x, name):
        return F.layer_norm(x, x.shape[1:], tower[f"{name}.weight"], tower[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, tower[f"{name}.weight"], tower[f"{name}.bias"])

    for n in range(LAYERS):
        block = f"blocks.{n}"
        q_bias, v_bias = (tower[f"{block}.attn.{name}_bias"] for name in "qv")
        qkv = F.linear(normed(x, f"{block}.norm1"), tower[f"{block}.attn.qkv.weight"])
        q, k, v = qkv.split(TOWER_WIDTH, dim=1)
        x = x + linear(attention(q + q_bias, k, v + v_bias, 2), f"{block}.attn.proj")
        inner = F.gelu(linear(normed(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(inner, f"{block}.mlp.fc2")
    return x


def rotated(x_LD):
    """Rotary positions: the halves of each head turn by an angle that grows with the position."""
    size = WIDTH // HEADS
    x = x_LD.unflatten(1, (HEADS, size))
    angle = 10_000 ** (-torch.arange(0, size, 2) / size) * torch.arange(len(x))[:, None]
    angle = torch.cat([angle, angle], dim=1).unsqueeze(1)
    turned = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1)
    return (x * angle.cos() + turned * angle.sin()).flatten(1)


def spoken(x, language, lora=MappingProxyType({})):
    """Llama, with a checkpoint's LoRA beside its q and v if it has one: 16 / rank of B A x."""

    def normed(x, name):
        return x * (x.pow(2).mean(1, keepdim=True) + 1e-5).rsqrt() * language[f"{name}.weight"]

    def linear(x, name):
        y = F.linear(x, language[f"{name}.weight"])
        a, b = (lora.get(f"llama_model.base_model.model.{name}.lora_{n}.weight") for n in "AB")
        if a is not None:
            y = y + 16 / len(a) * F.linear(F.linear(x, a), b)
        return y

    mask_LL = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        y = normed(x, f"{layer}.input_layernorm")
        q, k, v = (linear(y, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        y = attention(rotated(q), rotated(k), v, HEADS, mask_LL)
        x = x + linear(y, f"{layer}.self_attn.o_proj")
        y = normed(x, f"{layer}.post_attention_layernorm")
        gate, up = (linear(y, f"{layer}.mlp.{name}_proj") for name in ("gate", "up"))
        x = x + linear(F.silu(gate) * up, f"{layer}.mlp.down_proj")
    return F.linear(normed(x, "model.norm"), language["lm_head.weight"])
