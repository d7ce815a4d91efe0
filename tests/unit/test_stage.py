"""A stage starts from its parent's weights, learns its tasks, and hands on all that is needed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from palimpsest import models
from palimpsest.attempts import MEMORY, Attempts
from palimpsest.config import Method, Model, load
from palimpsest.data.shards import read_examples
from palimpsest.evaluation.generate import load_stage
from palimpsest.files import read_json, sha256
from palimpsest.models import checkpoint
from palimpsest.study import stage_fingerprint
from palimpsest.tasks import Examples
from palimpsest.training import stage as training
from palimpsest.training.loop import AnswerLoss
from workspace import Job, change, entered, stage_of, train, write

RESULTS = Path("results")
RECORD = {
    "lineage", "fingerprint", "identity", "seed", "samples", "steps", "examples_seen",
    "final_loss", "wall_seconds", "gpu_seconds", "core_seconds", "peak_memory_bytes",
    "estimated_memory_bytes", "attempts", "ranks", "commit", "versions", "data", "files",
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace with a LoRA that also trains the projector, and a model in bf16."""
    with entered(tmp_path_factory.mktemp("stage"), train=40, test=8) as path:
        write(path, "methods/projector", {"extends": "lora", "train_projector": True})
        write(path, "methods/still", {"extends": "lora"})
        training = load(Method, "lora").training.model_dump(mode="json")
        change(path, "methods/still", training=training | {"learning_rate": 1e-30})
        content = load(Model, "tiny").model_dump(mode="json", exclude_none=True)
        write(path, "models/half", content | {"precision": "bf16"})
        yield path


@pytest.fixture(scope="module")
def trained(root):
    """Return a function that trains the stages of a lineage and returns the last one."""
    done = set()

    def trained(lineage, *owner, **more):
        stage = stage_of(lineage, *owner, **more)
        if stage.parent.parent:
            trained(str(stage.parent.lineage), *owner, **more)
        if stage not in done:
            train(stage)
            done.add(stage)
        return stage

    return trained


def learnt(stage):
    """Return the tensors of a stage, without the names of the files."""
    files = stage.directory(RESULTS).rglob("*.safetensors")
    return {name: t for file in files for name, t in load_file(file).items()}


def losses(stage):
    lines = (stage.directory(RESULTS) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("method", ["lora", "moelora", "replay", "projector"])
def test_a_stage_directory_is_complete(trained, method):
    stage = trained("choice", method)
    out = stage.directory(RESULTS)
    record = read_json(out / "stage.json")
    assert record.keys() == RECORD
    assert record["fingerprint"] == stage_fingerprint(stage)
    assert (record["samples"], record["steps"], record["ranks"]) == (40, 5, 1)
    assert record["final_loss"] == pytest.approx(sum(losses(stage)) / 5)
    assert record["examples_seen"] == (40 if method == "replay" else 0)
    assert record["peak_memory_bytes"] > 2**20
    assert record["wall_seconds"] > 0 == record["gpu_seconds"]
    assert [attempt["why"] for attempt in record["attempts"]] == ["finished"]
    assert record["data"] == {"choice": sha256(RESULTS / "data/choice/manifest.json")}
    files = {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()}
    assert files == {*record["files"], "stage.json"}
    assert all(sha256(out / name) == digest for name, digest in record["files"].items())
    assert ("rehearsal.arrow" in files) == (method == "replay")
    assert ("projector.safetensors" in files) == (method == "projector")
    assert not [p for p in out.parent.iterdir() if "partial" in p.name]


def test_every_step_is_recorded_with_the_rate_it_was_taken_at(trained):
    lines = (trained("choice").directory(RESULTS) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["learning_rate"] == 0.02  # a tenth of five steps of warm-up is one
    assert 0 < rows[-1]["learning_rate"] < rows[-2]["learning_rate"] < 0.02


@pytest.mark.parametrize("method", ["lora", "projector"])
def test_a_child_starts_exactly_from_its_parent(root, trained, method):
    """The first loss of the child is that of the parent's model on the child's first batch."""
    parent, child = trained("choice", method), trained("choice/reading", method)

    def remember():
        from palimpsest.training import stage

        start = stage.zero.start

        def look(module, *rest):
            state = {n: p for n, p in module.module.named_parameters() if p.requires_grad}
            torch.save(state, root / "first.pt")
            return start(module, *rest)

        stage.zero.start = look

    again = stage_of("choice/reading", method)
    again.directory(RESULTS).rename(RESULTS / f"kept-{method}")
    assert Job(again, prepare=remember).wait() == [0]
    first = torch.load(root / "first.pt")
    handed_on = learnt(parent)
    assert len(first) == len(handed_on)
    for name, tensor in first.items():
        key = "base_model.model." + name.replace(".default.weight", ".weight")
        assert torch.equal(tensor, handed_on.get(key, handed_on.get(name))), name
    # It has moved on, and a second training gives the same bits.
    assert any(not torch.equal(t, handed_on[n]) for n, t in learnt(child).items())
    for file in ("adapter/adapter_model.safetensors", "metrics.jsonl"):
        kept = (RESULTS / f"kept-{method}" / file).read_bytes()
        assert (child.directory(RESULTS) / file).read_bytes() == kept


def test_a_parent_of_another_config_is_refused_and_nothing_is_written(root, trained):
    parent = trained("reading")
    child = stage_of("reading/choice")
    before = (root / "config/methods/lora.yaml").read_bytes()
    try:
        change(root, "methods/lora", adapter={"name": "lora", "rank": 2, "alpha": 8})
        job = Job(child)
        assert job.wait() == [1]
    finally:
        (root / "config/methods/lora.yaml").write_bytes(before)
    assert f"palimpsest: error: {parent.directory(RESULTS)}: this stage was trained" in job.text
    assert "method.adapter.rank: was 4, is 2" in job.text
    assert not child.directory(RESULTS).exists()


def test_a_parent_that_is_missing_is_named(trained):
    job = Job(stage_of("counting/choice"))
    assert job.wait() == [1]
    missing = stage_of("counting").directory(RESULTS) / "stage.json"
    assert f"palimpsest: error: {missing}: file is missing\n" in job.text


def test_others_load_the_adapter_and_get_the_same_predictions(trained):
    """Upstream's own classes, without any of our code, on the directory we hand on."""
    stage = trained("choice/reading")
    directory = stage.directory(RESULTS) / "adapter"
    base = LlavaForConditionalGeneration.from_pretrained("weights/tiny")
    theirs = PeftModel.from_pretrained(base, directory).eval()
    model, method = load(Model, "tiny"), load(Method, "lora")
    lmm = models.load(model)
    adapter = checkpoint.attach(lmm, model, method)
    checkpoint.load(lmm, stage.directory(RESULTS), model, method, adapter)
    examples = Examples(RESULTS, "three", ["choice", "reading"], "test")
    batch = lmm.collate([lmm.encode_prompt(examples[i]) for i in (0, 1, 8, 9)], "left")
    del batch["labels"]
    untouched = LlavaForConditionalGeneration.from_pretrained("weights/tiny").eval()
    with torch.no_grad():
        ours_BLV = lmm.module.eval()(**batch).logits
        assert torch.equal(ours_BLV, theirs(**batch).logits)
        assert not torch.allclose(ours_BLV, untouched(**batch).logits, atol=0.1)
        merged_BLV = load_stage(stage, RESULTS).module(**batch).logits
    assert torch.allclose(merged_BLV, ours_BLV, atol=1e-4)
    settings = {"max_new_tokens": 5, "do_sample": False}
    tokens = [m.generate(**batch, **settings).tolist() for m in (lmm.module, theirs)]
    assert tokens[0] == tokens[1]


def test_the_projector_is_learnt_and_handed_on(trained):
    parent, child = trained("choice", "projector"), trained("choice/reading", "projector")
    base = load_file("weights/tiny/model.safetensors")
    published = [t for n, t in sorted(base.items()) if "multi_modal_projector" in n]
    handed_on = []
    for stage in (parent, child):
        state = load_file(stage.directory(RESULTS) / "projector.safetensors")
        handed_on.append([t for _, t in sorted(state.items())])
    assert len(published) == len(handed_on[0]) == 4  # two layers with a bias each
    for old, first, second in zip(published, *handed_on, strict=True):
        assert old.shape == first.shape
        assert not torch.equal(old, first)
        assert not torch.equal(first, second)
    evaluated = load_stage(child, RESULTS).module.model.multi_modal_projector.state_dict()
    for ours, theirs in zip([t for _, t in sorted(evaluated.items())], handed_on[1], strict=True):
        assert torch.equal(ours, theirs)


def test_a_projector_that_is_not_there_is_an_error(root):
    content = load(Model, "tiny").model_dump(mode="json", exclude_none=True)
    write(root, "models/misnamed", content | {"projector": "model.projector"})
    job = Job(stage_of("choice", "projector", model="misnamed"))
    assert job.wait() == [1]
    assert "projector: 'model.projector'" in job.text


def test_all_tasks_of_a_joint_stage_are_learnt(trained):
    stage = trained("choice+counting+reading")
    record = read_json(stage.directory(RESULTS) / "stage.json")
    assert (record["samples"], record["steps"]) == (120, 15)
    assert record["data"].keys() == {"choice", "counting", "reading"}


def test_a_stage_after_a_joint_one(trained):
    stage = trained("choice+counting/reading", "replay")
    buffer = read_examples(stage.directory(RESULTS) / "rehearsal.arrow")
    assert len(buffer) == 40
    assert {e.id.split("/")[0] for e in buffer} == {"demo-choice", "demo-counting", "demo-reading"}
    # 80 of the first stage, and of the second the 30 that are not rehearsed
    assert read_json(stage.directory(RESULTS) / "stage.json")["examples_seen"] == 110


def test_a_blind_model_sees_black_pictures(trained):
    sighted, blind = trained("choice"), trained("choice", benchmark="three-blind")
    assert losses(sighted)[0] != losses(blind)[0]
    assert not torch.equal(*(next(iter(learnt(s).values())) for s in (sighted, blind)))
    lmm = models.load(load(Model, "tiny"))
    for split in ("train", "test"):
        examples = Examples(RESULTS, "three-blind", ["choice"], split)
        assert all((pixels(lmm, e) == -1).all() for e in (examples[0], examples[7]))
        assert (pixels(lmm, Examples(RESULTS, "three", ["choice"], split)[0]) != -1).any()


def pixels(lmm, example):
    return lmm.encode(example).pictures["pixel_values"]


@pytest.mark.parametrize("method", ["lora", "moelora", "projector"])
def test_a_base_in_bf16_learns_in_fp32(trained, method):
    stage = trained("choice", method, model="half")
    assert {t.dtype for t in learnt(stage).values()} == {torch.float32}
    single = trained("choice", method)
    assert losses(stage) == pytest.approx(losses(single), rel=0.05)
    assert losses(stage) != losses(single)
    lmm = load_stage(stage, RESULTS)
    frozen = lmm.module.model.language_model.layers[0].mlp.up_proj.weight
    assert frozen.dtype == torch.bfloat16
    examples = Examples(RESULTS, "three", ["choice"], "test")
    batch = lmm.collate([lmm.encode(examples[0])], "right")
    with torch.no_grad():
        loss, _ = AnswerLoss(lmm.module)(**batch)
    assert loss.isfinite()


def test_a_step_without_learning_changes_nothing(trained):
    """At a learning rate of nothing a child is its parent, so nothing else touches the weights."""
    parent, child = trained("choice", "still"), trained("choice/reading", "still")
    torch.testing.assert_close(learnt(child), learnt(parent), rtol=0, atol=1e-20)


def fails_with(error):
    """Have the first step end with an exception."""

    def step(*_, **__):
        raise error

    training.Progress.step = step


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (MemoryError(), MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MEMORY),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "out of GPU memory: lower micro_batch in config/models/tiny.yaml",
        ),
        (KeyError("weight"), "KeyError: 'weight'"),
    ],
)
def test_an_attempt_says_what_ended_it(root, error, why):
    stage = stage_of("counting", seed=7)
    assert Job(stage, prepare=partial(fails_with, error)).wait() == [1]
    assert Attempts(stage.resume(RESULTS)).last.why == why
