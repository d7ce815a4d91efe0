"""The estimate of a rank's memory: an arithmetic that a person can check."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from pydantic import TypeAdapter

from palimpsest.methods import regulariser
from palimpsest.methods import settings as s
from palimpsest.methods.adapter import build
from palimpsest.training.engine import World
from palimpsest.training.memory import estimate
from tiny import TARGETS, tiny_llava

RANK = 256  # so that a megabyte is trained


@pytest.fixture(scope="module")
def lmm():
    """A model of which a known number of parameters is trained."""
    model = tiny_llava()
    build(s.Lora(name="lora", rank=RANK, alpha=1)).attach(model, TARGETS)
    return SimpleNamespace(module=model, image_length=4)


def parts(lmm, zero_stage=0, ranks=1, micro_batch=64, longest=100, precision="fp32"):
    """Return the text of an estimate and its numbers in MiB."""
    config = SimpleNamespace(zero_stage=zero_stage, max_length=40, precision=precision)
    world = World(0, ranks, torch.device("cpu"), micro_batch, 1)
    text = estimate(lmm, config, world, longest)
    numbers = [float(n) for n in re.findall(r"([\d.]+) MiB", text)]
    names = ("total", "frozen", "trained", "gradients", "adam", "activations")
    return text, dict(zip(names, numbers, strict=True))


def test_the_parts_are_those_of_the_model(lmm):
    _, found = parts(lmm)
    sizes = {True: 0, False: 0}
    for p in lmm.module.parameters():
        sizes[p.requires_grad] += p.numel() * 4 / 2**20
    assert sizes[True] > 0.5
    assert found["frozen"] == pytest.approx(sizes[False], abs=0.051)
    assert found["trained"] == pytest.approx(sizes[True], abs=0.051)
    assert found["gradients"] == found["trained"]
    assert found["adam"] == pytest.approx(3 * sizes[True], abs=0.051)
    # 64 examples x 40 tokens x 2 layers x (8 x 32 + 4 x 64) values x 4 bytes
    assert found["activations"] == 10.0


def test_the_sum_is_printed_with_its_terms(lmm):
    text, found = parts(lmm)
    total = found.pop("total")
    assert total == pytest.approx(sum(found.values()), abs=0.3)
    assert "64 examples x 40 tokens x 2 layers x 512 values x 4 bytes" in text
    # 10 characters are five tokens, and the picture four
    assert "64 examples x 9 tokens" in parts(lmm, longest=10)[0]


@pytest.mark.parametrize(
    ("zero_stage", "shared"),
    [
        (0, set()),
        (1, {"adam"}),
        (2, {"adam", "gradients"}),
        (3, {"adam", "gradients", "frozen", "trained"}),
    ],
)
def test_zero_shares_out(lmm, zero_stage, shared):
    alone, of_four = parts(lmm)[1], parts(lmm, zero_stage, ranks=4)[1]
    for name in ("adam", "gradients", "frozen", "trained", "activations"):
        expected = alone[name] / 4 if name in shared else alone[name]
        assert of_four[name] == pytest.approx(expected, abs=0.06), name


def test_activations_scale(lmm):
    assert parts(lmm, micro_batch=128)[1]["activations"] == 20.0
    assert parts(lmm, precision="bf16")[1]["activations"] == 5.0


@pytest.mark.parametrize(("name", "share"), [("ewc", 3), ("mas", 3), ("tir", 3), ("lwf", 1)])
def test_what_is_held_on_to_takes_memory(lmm, name, share):
    """Importance, anchor and difference of each trained weight, or a teacher's weight."""
    values = {"tir": {"base": "mas", "examples": 1}, "lwf": {}}.get(name, {"examples": 1})
    settings = TypeAdapter(s.Regulariser).validate_python({"name": name, "strength": 1, **values})
    config = SimpleNamespace(zero_stage=3, max_length=40, precision="fp32")
    world = World(0, 2, torch.device("cpu"), 64, 1)
    text = estimate(lmm, config, world, 100, regulariser.build(settings, {}))
    trained = sum(p.numel() for p in lmm.module.parameters() if p.requires_grad) * 4 / 2**20
    held = float(re.search(rf"\+ {name} ([\d.]+) MiB \+ activations", text)[1])
    assert held == pytest.approx(share * trained, abs=0.051)
