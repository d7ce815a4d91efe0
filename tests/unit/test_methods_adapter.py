"""What holds for every adapter on a model: it changes nothing at first, learns, and round-trips."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tiny
from palimpsest.methods import adapter
from palimpsest.methods.settings import Lora, MoELora, Subset

LORA = Lora(name="lora", rank=4, alpha=8)
MOELORA = MoELora(name="moelora", rank=4, alpha=8, experts=2)
SUBSET = Subset(name="subset")
BASE = "example/tiny-llava"
ADDED = {"lora": LORA, "moelora": MOELORA}  # to the model, of which `subset` is a part
EVERY = {**ADDED, "subset": SUBSET}
every_adapter = pytest.mark.parametrize("settings", EVERY.values(), ids=EVERY)
every_added_adapter = pytest.mark.parametrize("settings", ADDED.values(), ids=ADDED)


def attached(settings, seed: int = 1, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return adapter.build(settings).attach(tiny.tiny_llava(dtype=dtype), tiny.TARGETS)


def part_of(settings) -> adapter.Adapter:
    """An adapter that knows which parameters are its own, as it has been attached to a model."""
    part = adapter.build(settings)
    part.attach(tiny.tiny_llava(), tiny.TARGETS)
    return part


def trained(settings, steps: int = 3) -> nn.Module:
    """A tiny LLaVA whose adapter has taken a few large steps."""
    model, batch = attached(settings).train(), tiny.tiny_batch()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(steps):
        optimiser.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimiser.step()
    return model.eval()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def saved(settings, model: nn.Module, directory: Path) -> Path:
    part_of(settings).save(state_of(model), directory, model, BASE)
    return directory


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(**tiny.tiny_batch(seed=5)).logits


@every_adapter
def test_an_untrained_adapter_changes_nothing(settings):
    base, model = tiny.tiny_llava(), attached(settings)
    assert type(model) is type(base)
    assert not any(module.training for module in model.modules())  # as the base was
    assert torch.equal(logits(model), logits(base))
    batch = tiny.tiny_batch()
    assert torch.equal(
        model.generate(**batch, max_new_tokens=4), base.generate(**batch, max_new_tokens=4)
    )


@every_adapter
def test_only_the_adapter_is_trainable_and_it_learns_everywhere(settings):
    part, model = part_of(settings), trained(settings)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == part.owns(name), name
        assert part.owns(name) == (parameter.grad is not None and bool(parameter.grad.any())), name
    assert not torch.allclose(logits(model), logits(tiny.tiny_llava()), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_computes_what_peft_does_to_the_last_bit(dtype):
    """Where its scale is a power of two, as 8 / 4 is; else up to rounding."""
    settings = LORA.model_copy(update={"dropout": 0.5})
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.5, target_modules=tiny.TARGETS)
    ours = attached(settings, dtype=dtype)
    theirs = peft.get_peft_model(tiny.tiny_llava(dtype=dtype), config)
    batch = tiny.tiny_batch()
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    found = []
    for model in (ours, theirs):
        learnt = [p for p in model.parameters() if p.requires_grad]
        torch.manual_seed(3)
        for parameter in learnt:
            nn.init.normal_(parameter, std=0.1)
        loss = model.train()(**batch, labels=batch["input_ids"]).loss
        found.append([loss, *torch.autograd.grad(loss, learnt)])
    assert all(g.any() for g in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@every_added_adapter
def test_initial_values_depend_on_the_seed_alone(settings):
    first, second = state_of(attached(settings)), state_of(attached(settings))
    other = state_of(attached(settings, seed=2))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


@every_adapter
def test_the_adapter_of_a_bf16_model_is_fp32(settings):
    model = attached(settings, dtype=torch.bfloat16)
    assert {p.dtype for p in state_of(model).values()} == {torch.float32}
    assert model.lm_head.weight.dtype == torch.bfloat16
    batch = tiny.tiny_batch()
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    assert model(**batch).logits.dtype == torch.bfloat16


@every_adapter
def test_a_saved_adapter_loads_bit_for_bit(settings, tmp_path):
    model = trained(settings)
    fresh = attached(settings, seed=2)
    part_of(settings).load(fresh, saved(settings, model, tmp_path))
    assert torch.equal(logits(fresh), logits(model))


@every_adapter
def test_wrong_files_are_refused_by_name_and_change_nothing(settings, tmp_path):
    part, model = part_of(settings), attached(settings, seed=2)
    before = {n: p.clone() for n, p in model.named_parameters()}
    whole = load_file(saved(settings, trained(settings), tmp_path) / part.weights)
    some = sorted(whole)[3]

    def refused(tensors: dict[str, Tensor], message: str) -> None:
        save_file(tensors, tmp_path / part.weights)
        with pytest.raises(ValueError, match=message) as error:
            part.load(model, tmp_path)
        assert str(tmp_path / part.weights) in str(error.value)

    refused({n: t for n, t in whole.items() if n != some}, f"{some} is missing")
    refused({**whole, "elsewhere.weight": torch.ones(1)}, "elsewhere.weight is foreign")
    refused({**whole, some: whole[some].T.contiguous()}, f"{some} has shape")
    (tmp_path / part.weights).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=f"{part.weights}: not a valid safetensors file"):
        part.load(model, tmp_path)
    (tmp_path / part.weights).unlink()
    with pytest.raises(ValueError, match=f"{part.weights}: file is missing"):
        part.load(model, tmp_path)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@every_added_adapter
@pytest.mark.parametrize("change", [{"alpha": 16.0}, {"rank": 8}], ids=["alpha", "rank"])
def test_an_adapter_of_other_settings_is_refused(settings, change, tmp_path):
    saved(settings, trained(settings), tmp_path)
    other = settings.model_copy(update=change)
    part = adapter.build(other)
    with pytest.raises(ValueError, match=f"{part.config}: .*(alpha|r|rank) is .*settings say"):
        part.load(attached(other), tmp_path)


@every_adapter
def test_a_state_that_is_not_whole_is_not_saved(settings, tmp_path):
    part, model = part_of(settings), attached(settings)
    state = state_of(model)
    name = next(iter(state))
    for wrong in (
        {n: t for n, t in state.items() if n != name},
        {**state, "model.projector.weight": torch.ones(1)},
        {**state, name: torch.empty(0)},  # a shard that was not gathered
    ):
        with pytest.raises(ValueError, match="the state to save: tensor"):
            part.save(wrong, tmp_path / "adapter", model, BASE)
    assert not (tmp_path / "adapter").exists()


@every_adapter
def test_a_model_that_is_sharded_saves_what_was_gathered_from_it(settings, tmp_path):
    part, model = part_of(settings), trained(settings)
    expected, gathered = logits(model), {n: p.detach() for n, p in state_of(model).items()}
    for parameter in state_of(model).values():  # as ZeRO-3 leaves a parameter
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    with pytest.raises(ValueError, match="has shape"):
        part.save(state_of(model), tmp_path, model, BASE)
    part.save(gathered, tmp_path, model, BASE)
    fresh = attached(settings, seed=2)
    part.load(fresh, tmp_path)
    assert torch.equal(logits(fresh), expected)


@every_added_adapter
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (r"model\.layers\..*", "match no module of LlavaForConditionalGeneration"),
        (r".*\.self_attn", "match model.*self_attn, which is a CLIPAttention"),
    ],
)
def test_targets_that_are_no_linear_layers_are_refused(settings, targets, message):
    with pytest.raises(ValueError, match=message):
        adapter.build(settings).attach(tiny.tiny_llava(), targets)


def test_peft_loads_our_lora_with_the_same_outputs(tmp_path):
    model = trained(LORA)
    theirs = peft.PeftModel.from_pretrained(tiny.tiny_llava(), saved(LORA, model, tmp_path))
    assert torch.equal(logits(theirs), logits(model))


def test_our_lora_files_are_those_that_peft_writes(tmp_path):
    base = tiny.tiny_llava()
    base.name_or_path = BASE
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=tiny.TARGETS)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "theirs")
    saved(LORA, attached(LORA), tmp_path / "ours")
    ours, theirs = (
        json.loads((tmp_path / who / "adapter_config.json").read_text())
        for who in ("ours", "theirs")
    )
    assert ours == theirs
    ours, theirs = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_merged_lora_is_the_plain_model_with_the_same_outputs():
    model, base = trained(LORA), tiny.tiny_llava()
    expected = logits(model)
    adapter.build(LORA).merge(model)
    assert model.state_dict().keys() == base.state_dict().keys()
    assert not hasattr(model, "peft_config")  # else PEFT would count it as a second adapter
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    model.load_state_dict(base.state_dict())  # as evaluation restores the base
    assert torch.equal(logits(adapter.build(LORA).attach(model, tiny.TARGETS)), logits(base))


def test_moelora_says_that_it_cannot_be_merged():
    assert adapter.build(LORA).mergeable
    assert not adapter.build(MOELORA).mergeable
    with pytest.raises(NotImplementedError, match="moelora cannot be merged"):
        adapter.build(MOELORA).merge(attached(MOELORA))
