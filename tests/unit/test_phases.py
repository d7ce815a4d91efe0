"""What a stage does besides its steps: kept when it is killed, handed on, always the same."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from palimpsest import cli
from palimpsest.config import Model, load
from palimpsest.evaluation.generate import load_stage
from palimpsest.methods import regulariser
from palimpsest.methods.keys import Keys
from palimpsest.models import checkpoint
from palimpsest.models import load as load_model
from palimpsest.study import method_of
from palimpsest.tasks import Examples
from palimpsest.training import stage as training
from palimpsest.training.order import generator
from palimpsest.training.resume import Resume
from workspace import TASKS, Job, change, entered, handed_on, stage_of, train, write

RESULTS = Path("results")
KEYS = {"name": "keys", "steps": 60, "learning_rate": 0.05, "strength": 0.1, "batch": 8}
PARTS = {
    "ewc": {"regulariser": {"name": "ewc", "strength": 50.0, "examples": 6}},
    "tir": {"regulariser": {"name": "tir", "base": "mas", "strength": 2000.0, "examples": 6}},
    "lwf": {"regulariser": {"name": "lwf", "strength": 1.0}},
    "eproj": {"adapter": {"name": "projector"}, "router": {**KEYS, "examples": 16}},
    # Parts that no paper combined.
    "eproj-replay": {"extends": "eproj", "rehearsal": {"name": "proportional", "ratio": 0.25}},
    "tir-replay": {"extends": "tir", "rehearsal": {"name": "proportional", "ratio": 0.25}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace of few examples with a method for every part, and the tasks' embeddings."""
    with entered(tmp_path_factory.mktemp("phases"), train=32, test=8) as path:
        change(path, "models/tiny", tower="model.vision_tower")
        for name, parts in PARTS.items():
            write(path, f"methods/{name}", {"extends": "lora", "title": name, **parts})
        orders = {"only": ["reading", "counting"]}
        knowing = {"title": "Knowing", "initial": ["choice"], "orders": orders}
        write(path, "benchmarks/knowing", knowing)
        cli.embed(cli.parser().parse_args(["embed", "tiny", *TASKS]))
        yield path


@pytest.fixture(scope="module")
def trained(root):
    """Return a function that trains the stages of a lineage once, and returns the last."""
    done = set()

    def of(lineage, method, benchmark="three"):
        last = stage_of(lineage, method, benchmark)
        for steps in last.lineage.prefixes:
            stage = stage_of(str(steps), method, benchmark)
            if stage not in done:
                train(stage)
                done.add(stage)
        return last

    return of


def state(stage, name="regulariser"):
    return load_file(stage.directory(RESULTS) / f"{name}.safetensors")


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_keys():
    training.loop.steps = die


def die_after_steps():
    training.zero.gather = die


def die_in_importance():
    """At the third example."""
    original, calls = regulariser.build, []

    def build(*arguments):
        built = original(*arguments)
        importance = built.importance

        def counted(*batch):
            calls.append(batch)
            return die() if len(calls) == 3 else importance(*batch)

        built.importance = counted
        return built

    regulariser.build = build


def die_while_importance_is_kept():
    original = Resume.once

    def once(self, phase, compute):
        return original(self, phase, lambda: compute() and die())

    Resume.once = once


def die_while_handing_on():
    training.shutil.copy = die


@pytest.mark.parametrize(
    ("method", "prepare", "kept", "after"),
    [
        ("eproj", die_after_keys, ["keys"], 0),
        ("ewc", die_after_steps, [], 4),
        ("ewc", die_in_importance, [], 4),
        ("ewc", die_while_importance_is_kept, [], 4),
        ("tir", die_while_handing_on, ["importance"], 4),
        ("tir-replay", die_in_importance, [], 5),
    ],
)
def test_a_stage_killed_between_phases_goes_on_bit_for_bit(trained, method, prepare, kept, after):
    stage = trained("choice/reading", method)
    undisturbed = handed_on(stage)
    shutil.rmtree(stage.directory(RESULTS))
    assert Job(stage, prepare=prepare).wait() == [-signal.SIGKILL]
    assert not stage.directory(RESULTS).exists()
    found = [path.stem for path in stage.resume(RESULTS).glob("*.safetensors")]
    assert found == kept
    assert (f"{stage}: resumed from step {after}\n" in train(stage)) == (after > 0)
    assert handed_on(stage) == undisturbed
    assert not list(stage.resume(RESULTS).glob("*.safetensors"))


def test_what_phases_gave_is_of_one_config(root, trained):
    stage = trained("choice", "eproj")
    shutil.rmtree(stage.directory(RESULTS))
    assert Job(stage, prepare=die_after_keys).wait() == [-signal.SIGKILL]
    change(root, "methods/eproj", title="Other", router={**KEYS, "examples": 8})
    job = Job(stage)
    assert job.wait() != [0]
    assert "keys.safetensors: this checkpoint has fingerprint" in job.text
    change(root, "methods/eproj", title="eproj", router={**KEYS, "examples": 16})
    train(stage)


def importance_by_hand(stage):
    """Return EWC's importance of a stage's last task, in plain torch, an example at a time."""
    model, method = load(Model, stage.model), method_of(stage)
    lmm = load_model(model)
    adapter = checkpoint.attach(lmm, model, method)
    checkpoint.load(lmm, stage.directory(RESULTS), model, method, adapter)
    examples = Examples(RESULTS, stage.benchmark, stage.lineage.last, "train")
    rng = generator(stage.seed, stage.lineage, *stage.lineage.last, "importance")
    drawn = rng.permutation(len(examples))[: method.regulariser.examples]
    total = {n: torch.zeros_like(p) for n, p in lmm.module.named_parameters() if p.requires_grad}
    for i in drawn.tolist():
        batch = lmm.collate([lmm.encode(examples[i])], "right")
        lmm.module.zero_grad()
        lmm.module(**batch).loss.backward()  # transformers' own: the mean over answer tokens
        for name in total:
            total[name] += lmm.module.get_parameter(name).grad.square() / len(drawn)
    return total


def test_importance_is_that_of_plain_torch(trained):
    stage = trained("choice/reading", "ewc")
    before, after = state(stage.parent), state(stage)
    for name, value in importance_by_hand(stage).items():
        key = f"importance/{name}"
        torch.testing.assert_close(after[key] - before[key], value, rtol=1e-3, atol=1e-8)
    own = load_file(stage.directory(RESULTS) / "adapter" / "adapter_model.safetensors")
    name, anchor = next((n, t) for n, t in after.items() if n.startswith("anchor/"))
    path = name.removeprefix("anchor/").replace(".default", "")
    assert (own[f"base_model.model.{path}"] == anchor).all()


@pytest.mark.parametrize("method", ["ewc", "tir", "lwf"])
def test_what_is_held_moves_less(trained, method):
    """The first stage is that of plain LoRA; from the second on the penalty is there, and holds."""
    first, plain = trained("choice", method), trained("choice", "lora")
    adapter = "adapter/adapter_model.safetensors"
    assert handed_on(first)[adapter] == handed_on(plain)[adapter]
    assert b"penalty" not in handed_on(first)["metrics.jsonl"]
    second = trained("choice/reading", method)
    assert b"penalty" in handed_on(second)["metrics.jsonl"]
    moved = {}
    for stage in (second, trained("choice/reading", "lora")):
        parts = [load_file(s.directory(RESULTS) / adapter) for s in (stage, plain)]
        moved[stage] = sum((parts[0][n] - parts[1][n]).square().sum() for n in parts[0])
    assert moved[second] < 0.95 * moved[trained("choice/reading", "lora")]


def test_a_new_expert_learns_and_the_old_stay(trained):
    first, second = trained("choice", "eproj"), trained("choice/reading", "eproj")
    old, new = (
        load_file(s.directory(RESULTS) / "adapter" / "experts.safetensors") for s in (first, second)
    )
    assert len(new) == 2 * len(old)
    assert all((new[name] == old[name]).all() for name in old)
    keys = state(second, "router")["instruction"]
    assert (keys[:1] == state(first, "router")["instruction"]).all()
    assert len(keys) == 2
    asked = Keys(method_of(second).router, state(second, "router"))
    assert asked.route({"instruction": keys}).ago_B.tolist() == [1, 0]
    assert load_stage(second, RESULTS).module.model.multi_modal_projector.experts_B is None


def test_parts_are_combined_by_a_config_alone(trained):
    stage = trained("choice/reading", "eproj-replay")
    files = set(handed_on(stage))
    assert {"rehearsal.arrow", "router.safetensors", "adapter/experts.safetensors"} <= files
    assert {"rehearsal.arrow", "regulariser.safetensors"} <= set(
        handed_on(trained("choice/reading", "tir-replay"))
    )


def test_what_the_base_knows_is_looked_back_on(trained):
    """The initial task is the first of the history: it has importances, a key, old examples."""
    held = trained("reading", "tir-replay", "knowing")
    assert state(held)["entries"] == 2
    assert {0, 1} == {
        int(v) for n, t in state(held).items() if n.startswith("source/") for v in t.unique()
    }
    assert b"penalty" in handed_on(held)["metrics.jsonl"]
    sent = trained("reading", "eproj-replay", "knowing")
    assert [len(t) for t in state(sent, "router").values()] == [2, 2]
    experts = load_file(sent.directory(RESULTS) / "adapter" / "experts.safetensors")
    assert {name.split(".experts.")[1][0] for name in experts} == {"0"}
