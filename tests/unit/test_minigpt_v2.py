"""MiniGPT-v2 against the released forward, written anew from the released files, and in use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from minigpt_forward import example, looked, picture, spoken
from palimpsest import models
from palimpsest.config import Method, Model, load
from palimpsest.data.example import Turn
from palimpsest.methods.adapter import target_layers
from palimpsest.models import checkpoint
from palimpsest.models.families.minigpt_v2 import assemble
from palimpsest.models.lmm import IGNORE
from palimpsest.models.miniatures.llava import LAYERS, PIECES
from palimpsest.models.miniatures.minigpt_v2 import TOWER_WIDTH, generate
from palimpsest.models.minigpt_v2 import MiniGPTv2ForConditionalGeneration
from palimpsest.training.loop import AnswerLoss
from workspace import LORA, MOELORA

CONFIG = Path(__file__).parents[2] / "config"


RED = example(Turn("Which colour is it?", "red"), image=picture(0))
BLUE = example(Turn("Is it blue, green or red? Answer the question.", "blue"), image=picture(1))
TEXT = example(Turn("Is it?", "no"), Turn("Or blue?", "yes"), image=None)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The published parts in small, by their roles."""
    root = tmp_path_factory.mktemp("released")
    generate(root, seed=4)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def config(released, tmp_path_factory):
    """MiniGPT-v2's own config, with weights assembled of the small parts."""
    out = tmp_path_factory.mktemp("assembled") / "minigpt-v2"
    assemble(released, out)
    config = load(Model, "minigpt-v2", CONFIG)
    return config.model_copy(update={"weights": str(out), "precision": "fp32"})


@pytest.fixture(scope="module")
def lmm(config):
    lmm = models.load(config)
    lmm.module.eval()
    return lmm


@pytest.fixture
def parts(released, tmp_path):
    """A copy of the published parts that a test may spoil."""
    return {role: shutil.copytree(path, tmp_path / role) for role, path in released.items()}


def read(released):
    """Return the three released files' tensors, in fp32."""
    language = {}
    for path in released["language_model"].glob("*.safetensors"):
        language |= load_file(path)
    tower = torch.load(released["vision"] / "eva_vit_g.pth")
    stage_2 = torch.load(released["checkpoint"] / "checkpoint_stage2.pth")["model"]
    return ({n: t.float() for n, t in part.items()} for part in (language, tower, stage_2))


def seen(image, tower, stage_2):
    """The released picture path: EVA-ViT without its last block, norm, four tokens joined."""
    x = looked(image, tower, grid=4)
    x = F.layer_norm(x, x.shape[1:])[1:]  # ln_vision, which the checkpoint does not hold
    joined = torch.stack([x[4 * n : 4 * n + 4].flatten() for n in range(4)])
    return F.linear(joined, stage_2["llama_proj.weight"], stage_2["llama_proj.bias"])


def released_ids(lmm, example):
    """The released reading: <s> and a turn's pieces, each by itself; None where the picture is."""
    alone = lambda text: lmm.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    ids = []
    for number, turn in enumerate(example.turns):
        image = "<Img><ImageHere></Img> " if example.image and number == 0 else ""
        before, *after = f"[INST] {image}{turn.question}  [/INST]".split("<ImageHere>")
        ids += [1, *alone(before)]
        ids += [None, *alone(after[0])] if after else []
        ids += [*alone(turn.answer), 2]
    return ids


def released_logits(released, ids, image):
    language, tower, stage_2 = read(released)
    rows = [
        seen(image, tower, stage_2) if i is None else language["model.embed_tokens.weight"][[i]]
        for i in ids
    ]
    return spoken(torch.cat(rows), language, stage_2)


def inputs(lmm, examples, side):
    batch = lmm.collate([lmm.encode(e) for e in examples], side)
    del batch["labels"]
    return batch


@torch.no_grad()
def logits(lmm, examples, side="right"):
    """Return the logits of each example over the published vocabulary, without its padding."""
    batch = inputs(lmm, examples, side)
    logits_BLV = lmm.module(**batch).logits[..., :PIECES]
    return [row[kept.bool()] for row, kept in zip(logits_BLV, batch["attention_mask"], strict=True)]


def test_logits_are_those_of_the_released_forward(released, lmm):
    examples = [RED, TEXT, BLUE]  # one of them without a picture
    for one, found in zip(examples, logits(lmm, examples), strict=True):
        expected = released_logits(released, released_ids(lmm, one), one.image)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(*(logits(lmm, [e])[0][-1] for e in (RED, BLUE)), atol=0.1)


def test_the_tokens_are_those_of_the_release(lmm):
    image_id = lmm.module.config.image_token_id
    for one in (RED, TEXT):
        expected = [
            token
            for i in released_ids(lmm, one)
            for token in ([image_id] * lmm.image_length if i is None else [i])
        ]
        assert lmm.encode(one).input_ids == expected
    assert lmm.image_length == 4
    encoded, prompt = lmm.encode(RED), lmm.encode_prompt(RED)
    length = len(prompt.input_ids)
    assert prompt.input_ids == encoded.input_ids[:length]
    assert encoded.labels == [IGNORE] * length + encoded.input_ids[length:]
    assert lmm.decode(encoded.input_ids[length:]).strip() == "red"


def test_padding_changes_nothing(lmm):
    for side in ("left", "right"):
        together = logits(lmm, [RED, TEXT, BLUE], side)
        for one, found in zip((RED, TEXT, BLUE), together, strict=True):
            assert torch.allclose(found, logits(lmm, [one])[0], atol=1e-5)


def test_cached_generation_is_that_of_full_passes(lmm):
    examples = [RED, BLUE, TEXT]
    batch = lmm.collate([lmm.encode_prompt(e) for e in examples], "left")
    del batch["labels"]
    found = lmm.module.generate(
        **batch, do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=lmm.pad_id
    )
    grown = dict(batch)
    for _ in range(8):
        with torch.no_grad():
            best = lmm.module(**grown, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        grown["input_ids"] = torch.cat([grown["input_ids"], best], dim=1)
        grown["attention_mask"] = F.pad(grown["attention_mask"], (0, 1), value=1)
    assert torch.equal(found, grown["input_ids"])
    assert len(found[:, -8:].unique()) > 3


@pytest.mark.parametrize("adapter", [LORA["adapter"], MOELORA], ids=["lora", "moelora"])
def test_adapter_and_projector_learn_and_nothing_else(config, adapter):
    lmm = models.load(config)
    before = logits(lmm, [RED])[0]
    method = Method.model_validate({**LORA, "adapter": adapter, "train_projector": True})
    attached = checkpoint.attach(lmm, config, method)
    lmm.module.eval()
    assert torch.allclose(logits(lmm, [RED])[0], before, atol=1e-6)
    batch = lmm.collate([lmm.encode(e) for e in (RED, TEXT, BLUE)], "right")
    AnswerLoss(lmm.module)(**batch)[0].backward()
    trained = {n: p.grad for n, p in lmm.module.named_parameters() if p.requires_grad}
    assert {n for n in trained if not attached.owns(n)} == {
        f"model.multi_modal_projector.linear.{kind}" for kind in ("weight", "bias")
    }
    # B starts at zero, so that A and the gates have no gradient yet.
    moving = {n for n, grad in trained.items() if grad is not None and grad.abs().sum() > 0}
    assert moving == {n for n in trained if "_B" in n or not attached.owns(n)}
    assert len({n for n in moving if attached.owns(n)}) == 2 * LAYERS


def test_adapters_go_on_query_and_value(lmm):
    found = target_layers(lmm.module, lmm.config.adapter_targets)
    assert len(found) == 2 * LAYERS
    assert all(name.endswith(("self_attn.q_proj", "self_attn.v_proj")) for name in found)


def test_what_is_saved_is_loaded(lmm, tmp_path):
    lmm.module.save_pretrained(tmp_path)
    again, info = MiniGPTv2ForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values())
    batch = inputs(lmm, [RED, TEXT], "right")
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch).logits, lmm.module(**batch).logits)


def test_all_that_the_tower_has_is_what_was_released(lmm):
    vision = lmm.module.config.vision_config
    assert (vision.image_size, vision.num_hidden_layers, vision.num_attention_heads) == (56, 2, 2)
    names = [n for n, _ in lmm.module.model.vision_tower.named_parameters()]
    assert not [n for n in names if "post_layernorm" in n]
    assert lmm.module.model.multi_modal_projector.norm.eps == 1e-5


def change(parts, to=None, without=(), **new):
    """Take tensors out of the stage-2 checkpoint, put others in, rename all."""
    path = parts["checkpoint"] / "checkpoint_stage2.pth"
    held = torch.load(path)["model"]
    held = {n: t for n, t in held.items() if n not in without} | new
    torch.save({"model": {to(n) if to else n: t for n, t in held.items()}}, path)


def test_a_checkpoint_of_a_later_peft_with_the_norm_in_it(parts, lmm, tmp_path):
    """PEFT came to write the adapter's name; `ln_vision` counts where there is one."""
    norm = {"ln_vision.weight": torch.full((TOWER_WIDTH,), 2.0)}
    norm["ln_vision.bias"] = torch.full((TOWER_WIDTH,), 0.5)
    change(parts, lambda n: n.replace("lora_A.", "lora_A.default.").replace("B.w", "B.default.w"))
    change(parts, **norm)
    assemble(parts, tmp_path / "out")
    again = models.load(lmm.config.model_copy(update={"weights": str(tmp_path / "out")})).module
    projector = again.model.multi_modal_projector
    assert (projector.norm.weight == 2).all()
    assert (projector.norm.bias == 0.5).all()
    own, state = lmm.module.state_dict(), again.state_dict()
    assert [n for n in own if not torch.equal(own[n], state[n])] == [
        "model.multi_modal_projector.norm.weight",
        "model.multi_modal_projector.norm.bias",
    ]


FIRST = "llama_model.base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"without": ["llama_proj.bias"]}, "no part has tensor .*projector.linear.bias"),
        ({"Qformer.x": torch.ones(1)}, "checkpoint_stage2.pth: tensor Qformer.x is foreign"),
        ({"without": [f"{FIRST}.lora_B.weight"]}, "lora_B is missing of .*layers.0.*q_proj"),
        (
            {"to": lambda name: name.replace("layers.1", "layers.7")},
            "the LoRA of model.language_model.layers.7.self_attn.q_proj.weight has no layer",
        ),
    ],
)
def test_what_is_wrong_with_the_checkpoint_is_named(parts, tmp_path, spoil, message):
    change(parts, **spoil)
    with pytest.raises(ValueError, match=message):
        assemble(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickle_that_runs_code_is_refused(parts, tmp_path):
    torch.save({"model": Path("x")}, parts["checkpoint"] / "checkpoint_stage2.pth")
    with pytest.raises(ValueError, match=r"checkpoint_stage2.pth: no torch file of plain tensors"):
        assemble(parts, tmp_path / "out")


def test_another_tower_is_refused(parts, tmp_path):
    torch.save({"visual.conv1.weight": torch.ones(1)}, parts["vision"] / "eva_vit_g.pth")
    with pytest.raises(ValueError, match=r"eva_vit_g.pth: tensor .* is missing: is this an EVA"):
        assemble(parts, tmp_path / "out")
