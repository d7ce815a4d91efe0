"""Ranks and ZeRO stages share out the work and change nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close

from palimpsest.data.example import Turn
from palimpsest.data.shards import Shards, write_dataset
from palimpsest.files import read_json, write_json
from palimpsest.models.families.instructblip import assemble
from palimpsest.models.miniatures.instructblip import generate
from palimpsest.training import engine
from workspace import LORA, REPOSITORY, Job, change, entered, palimpsest, stage_of, train, write

RESULTS = Path("results")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace without dropout, whose noise is a rank's own; a stage takes four steps."""
    with entered(tmp_path_factory.mktemp("zero"), train=32) as path:
        change(path, "methods/lora", adapter__dropout=0.0)
        # Not the tower: its keys' biases have no gradient but noise, which Adam makes large.
        trainable = r"model\.multi_modal_projector|.*language_model\.layers\.1"
        change(path, "models/tiny", trainable=trainable)
        write(path, "methods/subset", {"extends": "lora", "adapter": {"name": "subset"}})
        change(path, "methods/subset", training={**LORA["training"], "learning_rate": 0.002})
        yield path


def model(root, name, **values):
    """Write another form of the model `tiny`; its stages are its own."""
    content = yaml.safe_load((root / "config" / "models" / "tiny.yaml").read_text())
    write(root, f"models/{name}", content)
    change(root, f"models/{name}", **values)
    return name


def in_pieces():
    """Have ZeRO-3 share out and put away even small tensors, which it otherwise keeps whole."""
    original = engine.deepspeed.initialize

    def initialize(config, **others):
        limits = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance")
        config["zero_optimization"] |= {f"stage3_{limit}": 0 for limit in limits}
        return original(config=config, **others)

    engine.deepspeed.initialize = initialize


def losses(stage):
    lines = (stage.directory(RESULTS) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def tensors(stage):
    """Return all that a stage has learnt, by file and name."""
    out = stage.directory(RESULTS)
    files = sorted(out.rglob("*.safetensors"))
    return {f"{f.relative_to(out)}: {n}": t for f in files for n, t in load_file(f).items()}


def assert_same_training(stage, other):
    assert_close(losses(other), losses(stage), rtol=1e-5, atol=0)
    assert_close(tensors(other), tensors(stage), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def alone(root):
    """What one rank hands on, with the whole batch at once, by method."""
    stages = {method: stage_of("choice", method) for method in ("lora", "moelora", "subset")}
    for stage in stages.values():
        train(stage)
        assert losses(stage)[-1] < 0.95 * losses(stage)[0]  # it learns
    return stages


@pytest.mark.parametrize(
    ("method", "zero_stage"),
    [("lora", 0), ("lora", 1), ("lora", 2), ("lora", 3), ("moelora", 3)]
    + [("subset", stage) for stage in range(4)],
)
def test_two_ranks_learn_what_one_does(root, alone, method, zero_stage):
    name = model(root, f"zero-{zero_stage}", zero_stage=zero_stage)
    stage = stage_of("choice", method, model=name)
    train(stage, ranks=2, prepare=in_pieces)
    assert_same_training(alone[method], stage)
    assert read_json(stage.directory(RESULTS) / "stage.json")["ranks"] == 2


@pytest.fixture(scope="module")
def held(root):
    """What one rank hands on that is held to what it knew, by method; each stage has a parent."""
    ewc = {"name": "ewc", "strength": 50.0, "examples": 5}
    write(root, "methods/ewc", {"extends": "lora", "regulariser": ewc})
    write(root, "methods/lwf", {"extends": "lora", "regulariser": {"name": "lwf", "strength": 1}})
    stages = {method: stage_of("choice/reading", method) for method in ("ewc", "lwf")}
    for stage in stages.values():
        train(stage.parent)
        train(stage)
    return stages


@pytest.mark.parametrize(
    ("method", "zero_stage"), [("ewc", 1), ("ewc", 2), ("ewc", 3), ("lwf", 2), ("lwf", 3)]
)
def test_two_ranks_hold_on_to_what_one_does(root, held, method, zero_stage):
    """With importances after both stages, and the penalty in the second; see test_phases.py."""
    name = model(root, f"zero-{zero_stage}", zero_stage=zero_stage)
    stage = stage_of("choice/reading", method, model=name)
    train(stage.parent, ranks=2, prepare=in_pieces)
    train(stage, ranks=2, prepare=in_pieces)
    found, wanted = tensors(stage), tensors(held[method])
    assert_close(losses(stage), losses(held[method]), rtol=1e-4, atol=0)
    assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    importances = [tensor for key, tensor in found.items() if ": importance/" in key]
    assert all(t.any() for t in importances)
    assert bool(importances) == (method == "ewc")


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 2), (2, 1)])
def test_accumulated_micro_batches_are_one_batch(root, alone, ranks, micro_batch):
    name = model(root, f"micro-{micro_batch}", micro_batch=micro_batch)
    stage = stage_of("choice", model=name)
    train(stage, ranks)
    assert_same_training(alone["lora"], stage)


@pytest.fixture(scope="module")
def mixed(root, alone):
    """A task of which every second example has no picture, and what one rank learns of it."""
    shutil.copy(root / "config/tasks/choice.yaml", root / "config/tasks/mixed.yaml")
    write(root, "benchmarks/mixed", {"title": "Mixed", "orders": {"only": ["mixed"]}})
    write(root, "methods/projector", {"extends": "lora", "train_projector": True})
    choice = Shards(RESULTS / "data" / "choice", "train")
    examples = [replace(e, image=e.image if n % 2 else None) for n, e in enumerate(choice)]
    # Of one length each kind, so that batches are of one kind, and some ranks see no picture.
    examples = [replace(e, turns=(Turn("a " * (5 if e.image else 15), "A"),)) for e in examples]
    about = {"task_fingerprint": choice.manifest["task_fingerprint"]}
    write_dataset(RESULTS / "data" / "mixed", {"train": examples, "test": examples}, about)
    stages = {method: stage_of("mixed", method, "mixed") for method in ("projector", "subset")}
    for stage in stages.values():
        train(stage)
    return stages


@pytest.mark.parametrize(
    ("method", "zero_stage"), [("projector", 2), ("projector", 3), ("subset", 2), ("subset", 3)]
)
def test_a_rank_may_see_no_picture(root, mixed, method, zero_stage):
    name = model(root, f"zero-{zero_stage}-micro-1", zero_stage=zero_stage, micro_batch=1)
    stage = stage_of("mixed", method, "mixed", model=name)
    job = Job(stage, ranks=2, prepare=in_pieces)
    assert job.wait(60) == [0, 0], job.text
    assert_same_training(mixed[method], stage)


@pytest.fixture(scope="module")
def blip(root):
    """A small InstructBLIP without dropout, whose query tokens, Q-Former and projection learn."""
    generate(root / "parts")
    weights = root / "weights" / "blip"
    assemble({"instructblip": root / "parts" / "instructblip"}, weights)
    config = read_json(weights / "config.json")
    config["qformer_config"] |= dict.fromkeys(
        ("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0
    )
    write_json(weights / "config.json", config)
    content = yaml.safe_load((REPOSITORY / "config/models/instructblip-vicuna-7b.yaml").read_text())
    tiny = yaml.safe_load((root / "config/models/tiny.yaml").read_text())
    kept = ("family", "chat", "trainable", "projector", "adapter_targets")
    content = {**tiny, "weights": "weights/blip", **{key: content[key] for key in kept}}
    write(root, "models/blip", content)
    write(root, "models/blip-shared", {**content, "zero_stage": 3})
    return "blip"


def test_two_ranks_share_a_q_former(root, blip):
    """The query tokens stand by themselves in the model; what reads text ends without a use."""
    stages = [stage_of("choice", "subset", model=name) for name in (blip, f"{blip}-shared")]
    for ranks, stage in enumerate(stages, 1):
        train(stage, ranks)
    alone, shared = stages
    assert_close(losses(shared), losses(alone), rtol=1e-5, atol=0)
    own, found = tensors(alone), tensors(shared)
    before = load_file(root / "weights" / "blip" / "model-00001.safetensors")["query_tokens"]
    assert (own["adapter/subset.safetensors: query_tokens"] != before).all()
    # The gradient of a key's bias is nothing but noise, which Adam makes large.
    told = [name for name in own if not name.endswith("key.bias")]
    assert_close({n: found[n] for n in told}, {n: own[n] for n in told}, rtol=1e-3, atol=1e-5)


DROPPING = {"name": "lora", "rank": 4, "alpha": 8, "dropout": 0.1}


@pytest.mark.parametrize("adapter", [DROPPING, {"name": "subset"}], ids=["lora", "subset"])
def test_ranks_that_are_stopped_go_on_bit_for_bit(root, adapter):
    """By the command line, as Slurm does it: SIGTERM to the command, and the same command again."""
    name = model(root, "shared", zero_stage=2, resources__ranks=2, resources__checkpoint_steps=100)
    method = f"longer-{adapter['name']}"
    write(root, f"methods/{method}", {"extends": "lora", "adapter": adapter})
    change(root, f"methods/{method}", training={
        "batch": 8, "epochs": 3, "learning_rate": 0.02, "schedule": "cosine",
    })  # fmt: skip
    stage = stage_of("choice", method, model=name)
    train(stage, ranks=2)
    whole = stage.directory(RESULTS).rename(RESULTS / f"whole-{method}")
    shutil.rmtree(stage.resume(RESULTS))

    metrics = stage.resume(RESULTS) / "metrics.jsonl"
    command = palimpsest(root, "train", str(stage))
    try:
        end = time.monotonic() + 100
        while not metrics.exists() or metrics.stat().st_size < 100:
            assert command.poll() is None, command.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        command.send_signal(signal.SIGTERM)
        output, _ = command.communicate(timeout=60)
        assert command.returncode == 75, output
        assert output.count("with a checkpoint") == 1
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
    assert "resumed from step" in train(stage, ranks=2)
    (learnt,) = whole.glob("adapter/*.safetensors")
    for file in (learnt.relative_to(whole), "metrics.jsonl"):
        assert (stage.directory(RESULTS) / file).read_bytes() == (whole / file).read_bytes()
