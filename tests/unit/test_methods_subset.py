"""The adapter `subset`: parts of the model itself learn, and nothing else does."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file

import tiny
from palimpsest.config import Method, Model
from palimpsest.methods import adapter
from palimpsest.methods.settings import Subset
from palimpsest.models import checkpoint
from workspace import LORA, MODEL

SETTINGS = Subset(name="subset")
METHOD = Method.model_validate(LORA | {"adapter": {"name": "subset"}})
ALL_BUT_TOWER = r"model\.(multi_modal_projector|language_model)|lm_head"


def attached(targets, dtype=torch.float32):
    part = adapter.build(SETTINGS)
    return part, part.attach(tiny.tiny_llava(dtype=dtype), targets)


def batch_of(dtype=torch.float32):
    batch = tiny.tiny_batch()
    return {**batch, "pixel_values": batch["pixel_values"].to(dtype)}


def learn(model, batch, steps=3):
    """Take steps of Adam on what may learn, and return the losses."""
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def beneath(*prefixes):
    """The names of the parameters of a tiny LLaVA that stand at or beneath some names."""
    names = [name for name, _ in tiny.tiny_llava().named_parameters()]
    return {n for n in names if any(n == p or n.startswith(f"{p}.") for p in prefixes)}


@pytest.mark.parametrize(
    ("targets", "prefixes"),
    [
        ("lm_head", ["lm_head"]),
        (ALL_BUT_TOWER, ["model.multi_modal_projector", "model.language_model", "lm_head"]),
        (r".*language_model\.layers\.1\.mlp", ["model.language_model.layers.1.mlp"]),
        (r"model\.language_model\.layers", ["model.language_model.layers"]),
        (
            r".*class_embedding|.*linear_1\.bias",  # parameters by themselves
            [
                "model.vision_tower.embeddings.class_embedding",
                "model.multi_modal_projector.linear_1.bias",
            ],
        ),
    ],
)
def test_what_is_named_learns_and_nothing_else(targets, prefixes):
    part, model = attached(targets)
    named = beneath(*prefixes)
    assert named
    assert {n for n, p in model.named_parameters() if p.requires_grad} == named
    assert {n for n, _ in model.named_parameters() if part.owns(n)} == named
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    learn(model, batch_of(), steps=1)
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == named


@pytest.mark.parametrize("targets", ["qformer", r".*\.act_fn"])  # what is not there, or is empty
def test_what_matches_no_weights_is_refused(targets):
    with pytest.raises(ValueError, match="match no module of LlavaForConditional"):
        attached(targets)


def test_a_model_that_names_nothing_trainable_is_refused():
    with pytest.raises(ValueError, match=r"trainable: is missing .*'subset' trains what it names"):
        checkpoint.attach(None, Model.model_validate(MODEL), METHOD)


@pytest.mark.parametrize("targets", [ALL_BUT_TOWER, "lm_head", tiny.TARGETS])
def test_a_half_precision_model_learns_in_fp32_and_computes_as_it_did(targets):
    batch = batch_of(torch.bfloat16)
    base = tiny.tiny_llava(dtype=torch.bfloat16)
    _, model = attached(targets, torch.bfloat16)
    held = {n: p.dtype for n, p in model.named_parameters()}
    assert {held[n] for n, p in model.named_parameters() if p.requires_grad} == {torch.float32}
    assert {held[n] for n, p in model.named_parameters() if not p.requires_grad} == {torch.bfloat16}
    found = model(**batch).logits
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found, base(**batch).logits, atol=0.02)
    seen = []
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    losses = learn(model, batch, steps=8)
    assert losses[-1] < 0.9 * losses[0]
    assert set(seen) == {torch.bfloat16}


def test_steps_that_half_precision_would_swallow_are_taken():
    _, model = attached("lm_head", torch.bfloat16)
    before = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.add_(1e-6)
    assert (model.lm_head.weight != before).float().mean() > 0.9


def test_a_copy_computes_with_its_own_weights():
    """A copy of the model may be a teacher: it stays when the model learns."""
    _, model = attached(ALL_BUT_TOWER, torch.bfloat16)
    batch, teacher = batch_of(torch.bfloat16), deepcopy(model)
    before = teacher(**batch).logits
    learn(model, batch)
    assert torch.equal(teacher(**batch).logits, before)
    assert not torch.equal(model(**batch).logits, before)


def test_a_merged_model_is_a_plain_one_in_its_own_precision():
    part, model = attached(ALL_BUT_TOWER, torch.bfloat16)
    batch = batch_of(torch.bfloat16)
    learn(model, batch, steps=8)
    learnt = model(**batch).logits
    part.merge(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.allclose(model(**batch).logits, learnt, atol=0.05)
    plain = tiny.tiny_llava(dtype=torch.bfloat16)
    assert not torch.allclose(plain(**batch).logits, learnt, atol=0.05)


def test_the_files_hold_the_models_own_names_in_fp32(tmp_path):
    part, model = attached("lm_head", torch.bfloat16)
    part.save({"lm_head.weight": model.lm_head.weight}, tmp_path, model, "a base")
    saved = load_file(tmp_path / "subset.safetensors")
    assert saved.keys() == {"lm_head.weight"}
    assert saved["lm_head.weight"].dtype == torch.float32
    about = json.loads((tmp_path / "subset.json").read_text())
    assert about == {"version": 1, "name": "subset", "base_model_name_or_path": "a base"}
    other, wider = attached(ALL_BUT_TOWER)
    with pytest.raises(ValueError, match=r"subset.safetensors: tensor .* is missing"):
        other.load(wider, tmp_path)
