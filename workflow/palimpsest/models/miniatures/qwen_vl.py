"""A tiny Qwen-VL of random weights, in the files and layouts of the released checkpoint."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import torch

from palimpsest.files import write_json

WORDS = (  # that the vocabulary spells in one token
    "the and what how many which colour color is are there red blue green yellow white black "
    "circle square triangle picture image answer question using single word phrase option letter "
    "choices directly number bar shape one two three yes no object region sentence describes "
    "please provide bounding box coordinate user assistant system helpful you this from given"
)
NUM_SPECIAL = 217  # after the vocabulary: <|endoftext|> … <imgpad>
IMAGE_START = 214  # the number of <img> among them
WIDTH, LAYERS, INNER = 128, 2, 96  # of the language model: 128 is a head of its resampler
VISION = {"width": 32, "layers": 2, "heads": 2, "mlp_ratio": 2.0}
SIDE, PATCH, QUERIES = 28, 14, 4


def generate(out: Path, seed: int = 0) -> None:
    """Write config.json, qwen.tiktoken and two shards of 550,000 weights, drawn from a seed.

    A picture of 28 x 28 pixels is 4 patches and takes 4 tokens.
    """
    out.mkdir(parents=True, exist_ok=True)
    vocabulary = _vocabulary()
    lines = [f"{base64.b64encode(token).decode()} {n}\n" for n, token in enumerate(vocabulary)]
    (out / "qwen.tiktoken").write_text("".join(lines))
    config = _config(len(vocabulary))
    write_json(out / "config.json", config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: _weights(name, shape, generator) for name, shape in _shapes(config["vocab_size"])
    }
    first = [name for name in tensors if ".visual." not in name]
    shards = [first, [name for name in tensors if name not in first]]
    names = [f"pytorch_model-{n:05}-of-00002.bin" for n in (1, 2)]
    for file, shard in zip(names, shards, strict=True):
        torch.save({name: tensors[name] for name in shard}, out / file)
    index = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    size = sum(t.nbytes for t in tensors.values())
    write_json(
        out / "pytorch_model.bin.index.json",
        {"metadata": {"total_size": size}, "weight_map": index},
    )


def _vocabulary() -> list[bytes]:
    """Return every byte, and the words with a blank before them, each with all its beginnings."""
    tokens = [bytes([n]) for n in range(256)]
    for word in WORDS.split():
        text = f" {word}".encode()
        tokens += [text[:end] for end in range(2, len(text) + 1)]
    return list(dict.fromkeys(tokens))


def _config(num_tokens: int) -> dict:
    return {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "vocab_size": -(-(num_tokens + NUM_SPECIAL) // 64) * 64,  # a multiple of 64, as released
        "hidden_size": WIDTH,
        "intermediate_size": 2 * INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "kv_channels": WIDTH // 4,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "max_position_embeddings": 2048,
        "seq_length": 512,
        "no_bias": True,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "tie_word_embeddings": False,
        "visual": {
            **VISION,
            "image_size": SIDE,
            "patch_size": PATCH,
            "output_dim": WIDTH,
            "n_queries": QUERIES,
            "image_start_id": num_tokens + IMAGE_START,
        },
    }


def _shapes(vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor of the released checkpoint, made small."""
    yield "transformer.wte.weight", (vocabulary, WIDTH)
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        yield f"{block}.ln_1.weight", (WIDTH,)
        yield from _linear(f"{block}.attn.c_attn", WIDTH, 3 * WIDTH)
        yield f"{block}.attn.c_proj.weight", (WIDTH, WIDTH)
        yield f"{block}.ln_2.weight", (WIDTH,)
        yield f"{block}.mlp.w1.weight", (INNER, WIDTH)
        yield f"{block}.mlp.w2.weight", (INNER, WIDTH)
        yield f"{block}.mlp.c_proj.weight", (WIDTH, INNER)
    yield "transformer.ln_f.weight", (WIDTH,)
    yield "lm_head.weight", (vocabulary, WIDTH)
    yield from _visual_shapes("transformer.visual", VISION["width"])


def _visual_shapes(tower: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner = int(width * VISION["mlp_ratio"])
    yield f"{tower}.positional_embedding", (256, width)
    yield f"{tower}.proj", (WIDTH, WIDTH)
    yield f"{tower}.conv1.weight", (width, 3, PATCH, PATCH)
    yield from _norm(f"{tower}.ln_pre", width)
    for layer in range(VISION["layers"]):
        block = f"{tower}.transformer.resblocks.{layer}"
        yield from _norm(f"{block}.ln_1", width)
        yield from _norm(f"{block}.ln_2", width)
        yield from _linear(f"{block}.attn.in_proj", width, 3 * width)
        yield from _linear(f"{block}.attn.out_proj", width, width)
        yield from _linear(f"{block}.mlp.c_fc", width, inner)
        yield from _linear(f"{block}.mlp.c_proj", inner, width)
    pool = f"{tower}.attn_pool"
    yield f"{pool}.query", (QUERIES, WIDTH)
    yield f"{pool}.pos_embed", (QUERIES, WIDTH)
    yield f"{pool}.kv_proj.weight", (WIDTH, width)
    yield f"{pool}.attn.in_proj_weight", (3 * WIDTH, WIDTH)
    yield f"{pool}.attn.in_proj_bias", (3 * WIDTH,)
    yield from _linear(f"{pool}.attn.out_proj", WIDTH, WIDTH)
    yield from _norm(f"{pool}.ln_q", WIDTH)
    yield from _norm(f"{pool}.ln_kv", WIDTH)
    yield from _norm(f"{tower}.ln_post", WIDTH)


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _weights(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Draw a tensor: a norm's weights around 1, all else around 0."""
    mean = float(".ln_" in name and name.endswith(".weight"))
    return mean + 0.1 * torch.randn(shape, generator=generator)
