"""Qwen-VL from released files: the released arithmetic and tokens, batches, adapters, refusals."""

from __future__ import annotations

import base64
import io
import shutil
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
import regex
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from palimpsest import models
from palimpsest.config import Model, load
from palimpsest.data.example import Example, Turn
from palimpsest.files import read_json, write_json
from palimpsest.methods import adapter
from palimpsest.methods import settings as s
from palimpsest.models.families import qwen_vl
from palimpsest.models.lmm import IGNORE
from palimpsest.models.miniatures.qwen_vl import generate
from palimpsest.models.qwen_vl import QwenVLForConditionalGeneration
from palimpsest.training.loop import AnswerLoss

SHARDS = [f"pytorch_model-{n:05}-of-00002.bin" for n in (1, 2)]
ADAPTERS = [
    s.Lora(name="lora", rank=4, alpha=8),
    s.MoELora(name="moelora", rank=4, alpha=8, experts=2),
]


def png(size=(60, 40), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


ASKED = Turn("Which colour is the circle?\nAnswer with a word.", "Blue-green")
SEEN = Example("seen", png(), (ASKED, Turn("How many?", "2")), ("2",))
OTHER = Example("other", png((30, 70), seed=1), (Turn("Is there a bar?", "no"),), ("no",))
BLIND = Example("blind", None, (Turn("What is two and two, using a word?", "4"),), ("4",))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A checkpoint in the released format."""
    path = tmp_path_factory.mktemp("released")
    generate(path)
    return path


@pytest.fixture(scope="module")
def assembled(released, tmp_path_factory):
    """The directory that is made of it."""
    path = tmp_path_factory.mktemp("assembled") / "model"
    qwen_vl.assemble({"checkpoint": released}, path)
    return path


def opened(assembled, **changes):
    """Load the miniature with the config of Qwen-VL-Chat."""
    changes = {"weights": str(assembled), "max_length": 256, "precision": "fp32"} | changes
    lmm = models.load(load(Model, "qwen-vl-chat").model_copy(update=changes))
    lmm.module.eval()
    return lmm


@pytest.fixture(scope="module")
def lmm(assembled):
    return opened(assembled)


@pytest.fixture(scope="module")
def weights(released):
    """The released tensors."""
    shards = [torch.load(released / name, weights_only=True) for name in SHARDS]
    return {name: tensor for shard in shards for name, tensor in shard.items()}


# --- the released arithmetic, one text at a time and one head at a time -------------------------


def of_linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def of_norm(w, name, x):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def of_rms_norm(w, name, x):
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]


def of_head(q, k, v, mask=0.0):
    return torch.softmax(q @ k.T / q.shape[-1] ** 0.5 + mask, dim=-1) @ v


def of_grid(table, side):
    """Return a 16 x 16 (or 2 x 2) table at the cells of a grid of another size."""
    old = int(len(table) ** 0.5)
    square = table.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, (side, side), mode="bicubic", align_corners=False)
    return square.permute(0, 2, 3, 1).reshape(side * side, -1)


def of_picture(w, visual, pixels):
    """Return the features of one picture, 4 x 128."""
    name, patch = "transformer.visual", visual["patch_size"]
    side = visual["image_size"] // patch
    patches = pixels.unfold(1, patch, patch).unfold(2, patch, patch)  # 3 x side x side x 14 x 14
    patches = patches.permute(1, 2, 0, 3, 4).reshape(side * side, -1)
    x = patches @ w[f"{name}.conv1.weight"].flatten(1).T
    x = of_norm(w, f"{name}.ln_pre", x + of_grid(w[f"{name}.positional_embedding"], side))
    for layer in range(visual["layers"]):
        block = f"{name}.transformer.resblocks.{layer}"
        mixed = of_linear(w, f"{block}.attn.in_proj", of_norm(w, f"{block}.ln_1", x))
        per_head = mixed.chunk(visual["heads"], dim=-1)  # each: query, key and value of one head
        joined = torch.cat([of_head(*one.chunk(3, dim=-1)) for one in per_head], dim=-1)
        x = x + of_linear(w, f"{block}.attn.out_proj", joined)
        inner = F.gelu(of_linear(w, f"{block}.mlp.c_fc", of_norm(w, f"{block}.ln_2", x)))
        x = x + of_linear(w, f"{block}.mlp.c_proj", inner)
    pool = f"{name}.attn_pool"
    x = of_norm(w, f"{pool}.ln_kv", x @ w[f"{pool}.kv_proj.weight"].T)
    query = of_norm(w, f"{pool}.ln_q", w[f"{pool}.query"]) + w[f"{pool}.pos_embed"]
    inputs = (query, x + of_grid(w[f"{pool}.pos_embed"], side), x)
    parts = zip(
        inputs,
        w[f"{pool}.attn.in_proj_weight"].chunk(3),
        w[f"{pool}.attn.in_proj_bias"].chunk(3),
        strict=True,
    )
    q, k, v = (each @ weight.T + bias for each, weight, bias in parts)  # 128 wide: one head
    x = of_linear(w, f"{pool}.attn.out_proj", of_head(q, k, v))
    return of_norm(w, f"{name}.ln_post", x) @ w[f"{name}.proj"]


def of_rotary(x, base):
    """Turn each pair (x_i, x_{i + half}) of a head by its position's angle."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x))[:, None] / base ** (torch.arange(half) / half)
    pairs = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def of_text(w, config, ids, pixels=None):
    """Return logits_LV of one text, whose picture replaces what its tags enclose."""
    x = w["transformer.wte.weight"][ids].clone()
    if pixels is not None:
        start = ids.index(config["visual"]["image_start_id"])
        end = ids.index(config["visual"]["image_start_id"] + 1)
        x[start + 1 : end] = of_picture(w, config["visual"], pixels)
    future = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
    for layer in range(config["num_hidden_layers"]):
        block = f"transformer.h.{layer}"
        mixed = of_linear(w, f"{block}.attn.c_attn", of_rms_norm(w, f"{block}.ln_1", x))
        heads = (part.chunk(config["num_attention_heads"], dim=-1) for part in mixed.chunk(3, -1))
        turned = [
            of_head(*(of_rotary(t, config["rotary_emb_base"]) for t in (q, k)), v, future)
            for q, k, v in zip(*heads, strict=True)
        ]
        x = x + of_linear(w, f"{block}.attn.c_proj", torch.cat(turned, dim=-1))
        normed = of_rms_norm(w, f"{block}.ln_2", x)
        gated = of_linear(w, f"{block}.mlp.w1", normed) * F.silu(
            of_linear(w, f"{block}.mlp.w2", normed)
        )
        x = x + of_linear(w, f"{block}.mlp.c_proj", gated)
    return of_linear(w, "lm_head", of_rms_norm(w, "transformer.ln_f", x))


@pytest.mark.parametrize("example", [SEEN, OTHER, BLIND], ids=lambda e: e.id)
def test_an_assembled_model_computes_what_the_released_one_does(lmm, released, weights, example):
    encoded = lmm.encode(example)
    wanted = of_text(
        weights,
        read_json(released / "config.json"),
        encoded.input_ids,
        *(pixels[0] for pixels in encoded.pictures.values()),
    )
    with torch.no_grad():
        found = lmm.module(torch.tensor([encoded.input_ids]), **encoded.pictures).logits[0]
    assert wanted.std() > 0.3  # there is something to compare
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


# --- tokens and pictures ------------------------------------------------------------------------


def merged(word, ranks):
    """Return a word's tokens: the pair that comes first in the ranks is joined, the left one."""
    parts = [bytes([byte]) for byte in word]
    while True:
        pairs = [(ranks.get(a + b, len(ranks)), n) for n, (a, b) in enumerate(pairwise(parts))]
        rank, at = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            return [ranks[part] for part in parts]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.mark.parametrize(
    "text",
    [
        SEEN.turns[0].question,
        "the  theatre\n\n thethe aaaaaaa how howmany 12345 don't DON'T [0.12, 0.345]\r\n \t end  ",
        "Łódź 北京 🙂 Cafe\u0301, x\u00a0y: a thththe isis whichwhich",
    ],
)
def test_tokens_are_those_of_tiktoken(released, lmm, text):
    lines = (line.split() for line in (released / "qwen.tiktoken").read_text().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    normal = unicodedata.normalize("NFC", text)
    wanted = [t for word in regex.findall(pattern, normal) for t in merged(word.encode(), ranks)]
    found = lmm.tokenizer(text)["input_ids"]
    assert found == wanted
    assert any(token > 255 for token in found)
    assert lmm.tokenizer.decode(found) == normal


def test_special_tokens_follow_the_vocabulary(released, lmm):
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205))]
    names += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"]
    names += ["<img>", "</img>", "<imgpad>"]
    first = len((released / "qwen.tiktoken").read_text().splitlines())
    ids = lmm.tokenizer("".join(names))["input_ids"]
    assert ids == list(range(first, first + 217))
    assert (lmm.pad_id, lmm.end_id) == (first, first + 2)
    assert lmm.module.config.image_token_id == ids[-1]
    assert lmm.decode([*lmm.tokenizer(" no ")["input_ids"], *ids]) == " no "


def test_a_conversation_is_chatml_and_its_answers_are_learnt(lmm):
    encoded = lmm.encode(SEEN)
    written = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>"
        "\n<|im_start|>user\nPicture 1: <img><imgpad><imgpad><imgpad><imgpad></img>\n"
        "Which colour is the circle?\nAnswer with a word.<|im_end|>"
        "\n<|im_start|>assistant\nBlue-green<|im_end|>"
        "\n<|im_start|>user\nHow many?<|im_end|>"
        "\n<|im_start|>assistant\n2<|im_end|>"
    )
    assert lmm.tokenizer.decode(encoded.input_ids) == written
    learnt = [label for label in encoded.labels if label != IGNORE]
    assert lmm.tokenizer.decode(learnt) == "Blue-green<|im_end|>2<|im_end|>"
    prompt = lmm.encode_prompt(SEEN).input_ids
    assert prompt == encoded.input_ids[: len(prompt)]
    assert encoded.labels[len(prompt) :] == encoded.input_ids[len(prompt) :]
    assert lmm.tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    assert lmm.image_length == 4


def test_a_picture_is_squashed(lmm):
    pixels = lmm.encode(OTHER).pictures["pixel_values"]
    picture = Image.open(io.BytesIO(OTHER.image)).resize((28, 28), Image.Resampling.BICUBIC)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    wanted = (np.asarray(picture) / 255 - mean) / std
    np.testing.assert_allclose(pixels[0], wanted.transpose(2, 0, 1), atol=1e-5)


# --- batches and generation ---------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_example_is_answered_alike_in_any_batch(lmm, side):
    rows = [lmm.encode(example) for example in (OTHER, BLIND, SEEN)]
    batch = lmm.collate(rows, side)
    assert len(batch["pixel_values"]) == 2
    seen = batch.pop("attention_mask").bool()
    assert not seen.all()
    del batch["labels"]
    with torch.no_grad():
        together = lmm.module(**batch, attention_mask=seen.long()).logits
        for n, row in enumerate(rows):
            alone = lmm.module(torch.tensor([row.input_ids]), **row.pictures).logits[0]
            torch.testing.assert_close(together[n, seen[n]], alone, atol=1e-5, rtol=1e-5)


def test_generation_with_a_cache_equals_full_passes(lmm):
    prompts = [lmm.encode_prompt(example) for example in (SEEN, OTHER, BLIND)]
    batch = lmm.collate(prompts, "left")
    del batch["labels"]
    asked = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": lmm.pad_id}
    found = lmm.module.generate(**batch, **asked, eos_token_id=lmm.end_id)
    length = batch["input_ids"].shape[1]
    assert torch.equal(found[:, :length], batch["input_ids"])
    for row, prompt in zip(found, prompts, strict=True):
        ids = list(prompt.input_ids)
        for token in row[length:].tolist():
            with torch.no_grad():
                logits = lmm.module(torch.tensor([ids]), **prompt.pictures, use_cache=False).logits
            assert token == logits[0, -1].argmax()
            ids.append(token)
            if token == lmm.end_id:
                break


def test_what_is_saved_is_loaded_again(lmm, tmp_path):
    lmm.module.save_pretrained(tmp_path)
    again = QwenVLForConditionalGeneration.from_pretrained(tmp_path)
    state, other = lmm.module.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())
    assert again.config.text_config.to_dict() == lmm.module.config.text_config.to_dict()


# --- adapters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", ADAPTERS, ids=lambda settings: settings.name)
def test_adapters_train_in_the_language_model_alone(assembled, settings):
    lmm = opened(assembled)
    batch = lmm.collate([lmm.encode(example) for example in (SEEN, BLIND)], "right")
    answer_loss = AnswerLoss(lmm.module)

    def loss(**batch):
        return answer_loss(**batch)[0]

    before = loss(**batch).item()
    part = adapter.build(settings)
    part.attach(lmm.module, lmm.config.adapter_targets)
    assert loss(**batch).item() == pytest.approx(before, rel=1e-6)  # an untrained one does nothing
    learnt = {n: p for n, p in lmm.module.named_parameters() if p.requires_grad}
    layers = {name.split(part.mark)[0].removesuffix(".base_layer") for name in learnt}
    assert layers == {
        f"transformer.h.{n}.{name}"
        for n in range(2)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2")
    }
    optimiser = torch.optim.AdamW(learnt.values(), lr=1e-2)
    for _ in range(5):
        optimiser.zero_grad()
        loss(**batch).backward()
        assert all(p.grad is not None for p in learnt.values())
        optimiser.step()
    assert all(p.grad.abs().sum() > 0 for p in learnt.values())
    after = loss(**batch).item()
    assert after < 0.9 * before
    if part.mergeable:
        part.merge(lmm.module)
        assert loss(**batch).item() == pytest.approx(after, rel=1e-5)


def test_the_loss_is_that_of_the_answers(lmm):
    encoded = lmm.encode(SEEN)
    batch = lmm.collate([encoded], "right")
    with torch.no_grad():
        found, _ = AnswerLoss(lmm.module)(**batch)
        logits = lmm.module(torch.tensor([encoded.input_ids]), **encoded.pictures).logits[0]
    chances = logits.log_softmax(-1)
    answers = [(n, label) for n, label in enumerate(encoded.labels) if label != IGNORE]
    wanted = -sum(chances[n - 1, label] for n, label in answers)
    torch.testing.assert_close(found, wanted)


# --- assembling and refusing --------------------------------------------------------------------


def test_weights_keep_their_precision_from_safetensors_too(released, tmp_path):
    source, out = tmp_path / "released", tmp_path / "out"
    shutil.copytree(released, source)
    for name in SHARDS:
        shard = torch.load(source / name, weights_only=True)
        (source / name).unlink()
        halves = {n: t.bfloat16() for n, t in shard.items()}
        save_file(halves, source / f"model-{name[14:28]}.safetensors")
    qwen_vl.assemble({"checkpoint": source}, out)
    module = QwenVLForConditionalGeneration.from_pretrained(out, dtype="auto")
    first = torch.load(released / SHARDS[0], weights_only=True)
    for name, tensor in first.items():
        assert torch.equal(module.get_parameter(name), tensor.bfloat16()), name


def broken(released, path, change):
    """Return a copy of the released files in which one thing was changed."""
    shutil.copytree(released, path)
    change(path)
    return path


def without_shard(path):
    (path / SHARDS[1]).unlink()


def without_key(path):
    config = read_json(path / "config.json")
    del config["seq_length"]
    write_json(path / "config.json", config)


def other_start(path):
    config = read_json(path / "config.json")
    config["visual"]["image_start_id"] += 1
    write_json(path / "config.json", config)


def other_shape(path):
    shard = torch.load(path / SHARDS[0], weights_only=True)
    shard["transformer.h.1.mlp.w1.weight"] = torch.zeros(3, 5)
    torch.save(shard, path / SHARDS[0])


def foreign(path):
    shard = torch.load(path / SHARDS[0], weights_only=True)
    torch.save({**shard, "transformer.h.7.mlp.w1.weight": torch.zeros(3, 5)}, path / SHARDS[0])


def no_tokens(path):
    (path / "qwen.tiktoken").write_text("not base64 and a rank\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_shard, "transformer.visual"),
        (without_key, r"config.json: 'seq_length' is missing"),
        (other_start, "<img> is token"),
        (other_shape, r"transformer.h.1.mlp.w1.weight has shape \(3, 5\)"),
        (foreign, "transformer.h.7.mlp.w1.weight"),
        (no_tokens, "qwen.tiktoken: not a vocabulary"),
    ],
)
def test_a_broken_release_is_named_and_nothing_is_written(released, tmp_path, change, message):
    source = broken(released, tmp_path / "broken", change)
    with pytest.raises(ValueError, match=message):
        qwen_vl.assemble({"checkpoint": source}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_texts_longer_than_the_model_was_trained_with_are_refused(assembled, lmm):
    ids = torch.ones(1, 513, dtype=torch.long)
    with pytest.raises(ValueError, match=r"513 tokens, .* more than the 512"):
        lmm.module(ids)
    assert lmm.module(ids[:, :512], logits_to_keep=1).logits.shape[1] == 1
    with pytest.raises(ValueError, match="max_length: 513 is more than the 512"):
        opened(assembled, max_length=513)


def test_a_picture_without_its_place_is_refused(lmm):
    encoded = lmm.encode(SEEN)
    with pytest.raises(ValueError, match="4 tokens stand between <img> and </img>, but 2 pictures"):
        lmm.module(
            torch.tensor([encoded.input_ids]),
            pixel_values=encoded.pictures["pixel_values"].repeat(2, 1, 1, 1),
        )


def test_missing_weights_are_named(assembled):
    with pytest.raises(ValueError, match="nowhere: no model here"):
        opened(assembled, weights="nowhere")
