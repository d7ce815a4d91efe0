"""Vicuna v0, EVA-CLIP-g, BLIP-2's Q-Former and MiniGPT-4's projection in small: random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig

from palimpsest.files import write_json
from palimpsest.models.families.minigpt_4 import HEAD_WIDTH, LLAMA_2, QFORMER, VICUNA
from palimpsest.models.miniatures.llava import LAYERS, PIECES, WIDTH, drawn, llama, save_pickled
from palimpsest.models.miniatures.minigpt_v2 import TOWER_WIDTH, eva_vit, save

QUERIES = 4
QFORMER_WIDTH = 2 * HEAD_WIDTH
T5_WIDTH = 24


def generate(out: Path, seed: int = 0) -> None:
    """Write the parts of which `assemble` makes the model, by the names of their roles.

    Beside the `checkpoint/` of the form with the Q-Former there is `checkpoint_llama_2/`, of the
    one without.
    """
    generator = torch.Generator().manual_seed(seed)
    _vicuna(out / "language_model", generator)
    save(drawn(eva_vit(), generator), out / "vision" / "eva_vit_g.pth")
    blip2 = drawn(_qformer(), generator, torch.float)
    blip2["Qformer.bert.embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
    save({"model": blip2}, out / "qformer" / QFORMER)
    _projection(out / "checkpoint" / VICUNA, QFORMER_WIDTH, generator)
    _projection(out / "checkpoint_llama_2" / LLAMA_2, 4 * TOWER_WIDTH, generator)


def _vicuna(directory: Path, generator: torch.Generator) -> None:
    """Write a Llama as Vicuna v0 is: with a row for a [PAD] that tokenizer.model does not hold."""
    shapes = llama(directory)
    config = LlamaConfig.from_pretrained(directory).to_diff_dict()
    other = {"vocab_size": PIECES + 1, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
    write_json(directory / "config.json", {**config, **other})
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes[name] = (PIECES + 1, WIDTH)
    weights = drawn(shapes, generator)
    for layer in range(LAYERS):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(WIDTH // 4)
    save_pickled(weights, directory)


def _projection(path: Path, width: int, generator: torch.Generator) -> None:
    """Write what the released trainer writes: what it trained, and where it was."""
    weights = drawn({"llama_proj.weight": (WIDTH, width), "llama_proj.bias": (WIDTH,)}, generator)
    learning = torch.optim.AdamW([torch.nn.Parameter(t.float()) for t in weights.values()])
    trainer = {"optimizer": learning.state_dict(), "config": {"run": {"lr": 3e-5}}, "epoch": 4}
    save({"model": weights, **trainer, "scaler": {"scale": 65536.0}}, path)


def _qformer() -> dict[str, tuple[int, ...]]:
    """Return the shapes of LAVIS's Q-Former, of which every other layer looks at the picture."""
    width, mlp = QFORMER_WIDTH, 2 * QFORMER_WIDTH
    shapes: dict[str, tuple[int, ...]] = {"query_tokens": (1, QUERIES, width)}

    def norm(name: str, size: int = width) -> None:
        shapes.update({f"{name}.{kind}": (size,) for kind in ("weight", "bias")})

    def linear(name: str, wide: int, long: int) -> None:
        shapes.update({f"{name}.weight": (long, wide), f"{name}.bias": (long,)})

    norm("ln_vision", TOWER_WIDTH)
    norm("Qformer.bert.embeddings.LayerNorm")
    for number in range(LAYERS):
        layer = f"Qformer.bert.encoder.layer.{number}"
        seen = {"attention": width} | ({} if number % 2 else {"crossattention": TOWER_WIDTH})
        for attention, source in seen.items():
            linear(f"{layer}.{attention}.self.query", width, width)
            linear(f"{layer}.{attention}.self.key", source, width)
            linear(f"{layer}.{attention}.self.value", source, width)
            linear(f"{layer}.{attention}.output.dense", width, width)
            norm(f"{layer}.{attention}.output.LayerNorm")
        linear(f"{layer}.intermediate_query.dense", width, mlp)
        linear(f"{layer}.output_query.dense", mlp, width)
        norm(f"{layer}.output_query.LayerNorm")
    linear("t5_proj", width, T5_WIDTH)
    return shapes
