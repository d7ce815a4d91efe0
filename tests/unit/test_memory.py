"""The estimate of a rank's memory: arithmetic that a person can check, and what is chosen by it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from palimpsest.config import Model, load
from palimpsest.files import read_json
from palimpsest.launch import REQUEUE
from palimpsest.lineage import Stage
from palimpsest.methods import settings as s
from palimpsest.methods.adapter import build
from palimpsest.training import memory
from palimpsest.training.engine import World
from tiny import TARGETS, tiny_batch, tiny_llava
from workspace import Job, change, entered, handed_on, stage_of, train

RESULTS = Path("results")
MIB = 2**20
NEEDS = memory.Needs(
    libraries=100 * MIB,
    frozen=64 * MIB,
    num_frozen=16 * MIB,
    num_trained=MIB,  # 4 MiB
    held=0,
    tokens=50,
    first=20 * MIB,
    further=10 * MIB,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    with entered(tmp_path_factory.mktemp("memory"), train=48) as root:
        yield root


@pytest.mark.parametrize(
    ("zero_stage", "ranks", "expected"),
    [
        # libraries + frozen + trained + Adam + gradients + activations of 3 examples
        (0, 4, 100 + 64 + 4 + 8 + 4 + 40),
        (1, 4, 100 + 64 + 4 + 3 + (4 + 4) + 40),  # and Adam's master copy; a bucket
        (2, 4, 100 + 64 + 4 + 3 + (1 + 4) + 40),
        (3, 4, 100 + (16 + 64) + 1 + 3 + (1 + 4) + 40),  # all of the frozen may be gathered
        (2, 1, 100 + 64 + 4 + 12 + (4 + 4) + 40),
    ],
)
def test_the_total_is_the_sum_of_its_terms(zero_stage, ranks, expected):
    estimate = NEEDS.of(3, zero_stage, ranks)
    assert estimate.total == expected * MIB
    text = str(estimate)
    assert text.startswith(f"{expected}.0 MiB = libraries 100.0 + frozen ")
    assert "activations 40.0 (micro-batch: 3 x 13.3 MiB" in text
    assert "held" not in text


def test_a_step_may_hold_most_after_its_backward_pass():
    estimate = replace(NEEDS, first=MIB, held=5 * MIB).of(1, 0, 1)
    assert estimate.total == (100 + 64 + 4 + 8 + 5 + 4 + 4) * MIB
    assert "held 5.0 + gradients 4.0 + copies 4.0 (" in str(estimate)


def test_activations_are_the_tensors_that_are_alive_together():
    class Chain(nn.Module):
        """Two layers of squares: each keeps its input of 1 MiB until the way back."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.head = nn.Linear(64, 8)
            self.base_model = self._hidden

        def get_output_embeddings(self) -> nn.Module:
            return self.head

        def _hidden(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
            x_BLD = torch.ones(4, 1024, 64) * self.scale
            return SimpleNamespace(last_hidden_state=x_BLD.square().square())

    labels = torch.full((4, 1024), -100)
    labels[:, 1] = 3
    batch = {"input_ids": torch.ones(4, 1024, dtype=torch.long), "labels": labels}
    module = Chain()
    most = memory.activations(module, batch) - sum(t.nbytes for t in batch.values())
    # Kept are ones, their product with the scale, and both squares; on the way back there are the
    # gradient of a square, what it is multiplied by, and the product.
    assert most == pytest.approx(7 * MIB, rel=1e-3)
    assert all(p.grad is None for p in module.parameters())


def test_counting_changes_nothing():
    model = tiny_llava()
    build(s.Lora(name="lora", rank=4, alpha=1, dropout=0.5)).attach(model, TARGETS)
    labels = tiny_batch()["input_ids"]
    before, random = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    one = memory.activations(model, {**tiny_batch(1), "labels": labels[:1]})
    two, three = (
        memory.activations(model, {**tiny_batch(n), "labels": tiny_batch(n)["input_ids"]})
        for n in (2, 3)
    )
    assert three - two == pytest.approx(two - one, rel=0.02)
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.training
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in model.named_parameters())


def choose(
    monkeypatch, micro_batch="auto", zero_stage="auto", memory_mb=1000, ranks=1, batch=12
) -> list[int]:
    """Return the micro-batch and the ZeRO stage that are chosen for NEEDS."""
    monkeypatch.setattr(memory.dist, "all_reduce", lambda *_: None)
    model = load(Model, "tiny").model_copy(
        update={"micro_batch": micro_batch, "zero_stage": zero_stage}
    )
    resources = model.resources.model_copy(update={"memory_mb": memory_mb * ranks, "ranks": ranks})
    model = model.model_copy(update={"resources": resources})
    world = World(0, ranks, torch.device("cpu"), 1, 1)
    return [int(t) for t in memory.choose(NEEDS, model, batch, world).values()]


def test_the_largest_micro_batch_that_fits_is_chosen(root, monkeypatch, capsys):
    # 190 MiB and 10 for each example, of 90 % of the memory
    assert choose(monkeypatch, memory_mb=345) == [12, 0]
    assert choose(monkeypatch, memory_mb=343) == [6, 0]
    assert choose(monkeypatch, memory_mb=277) == [4, 0]
    assert "auto: micro_batch 4 of 12, 6, 4, 3, 2, 1 and zero_stage 0 fit into the 249.3 MiB" in (
        capsys.readouterr().out
    )
    assert choose(monkeypatch, micro_batch=2, zero_stage="auto", memory_mb=345) == [2, 0]


def test_the_smallest_zero_stage_that_fits_is_chosen(root, monkeypatch):
    totals = [NEEDS.of(1, stage, 12).total / MIB for stage in range(3)]
    assert totals == sorted(totals, reverse=True)
    for stage, total in enumerate(totals):
        enough = int(total / (1 - memory.FREE)) + 1
        assert choose(monkeypatch, memory_mb=enough, ranks=12) == [1, stage]


def test_nothing_fits(root, monkeypatch):
    with pytest.raises(ValueError, match=r"nothing fits into the 90\.0 MiB of a rank") as refused:
        choose(monkeypatch, memory_mb=100)
    text = str(refused.value)
    assert text.startswith("micro_batch, zero_stage: auto: ")
    assert "The least would take 200.0 MiB = libraries 100.0 + " in text
    with pytest.raises(ValueError, match=r"^zero_stage: auto: nothing fits"):
        choose(monkeypatch, micro_batch=4, memory_mb=100)


def test_a_stage_goes_on_with_what_it_chose(root):
    stage = stage_of("choice")
    as_told = handed_on_by(stage)  # micro_batch 8, zero_stage 0
    change(root, "models/tiny", micro_batch="auto", zero_stage="auto", resources__memory_mb=8000)
    assert Job(stage, seconds_left=0).wait() == [REQUEUE]
    change(root, "models/tiny", resources__memory_mb=1)  # of which nothing could be chosen
    text = train(stage)
    assert "resumed from step 1\n" in text
    assert "auto: " not in text
    assert "(micro-batch: 8 x " in text
    assert handed_on(stage) == as_told

    shutil.rmtree(stage.directory(RESULTS).parent)
    job = Job(stage)
    assert job.wait() == [1]
    assert (
        "palimpsest: error: micro_batch, zero_stage: auto: nothing fits into the 0.9 MiB"
        in job.text
    )


def handed_on_by(stage: Stage) -> dict[str, bytes]:
    """Train a stage, remove it, and return what it handed on."""
    text = train(stage)
    record = read_json(stage.directory(RESULTS) / "stage.json")
    found = handed_on(stage)
    assert text.index("memory of a rank, estimated: ") < text.index("step 6/6")
    assert record["estimated_memory_bytes"] > 100 * MIB
    shutil.rmtree(stage.directory(RESULTS).parent)
    return found
