"""CORE in stages: killed and gone on with, one after another, on ranks, and when it answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from palimpsest import study
from palimpsest.config import Evaluation, Method, load
from palimpsest.data.example import characters
from palimpsest.evaluation import generate
from palimpsest.files import read_json, write_json
from palimpsest.methods import experts
from palimpsest.methods.concepts import Concepts
from palimpsest.models.lmm import IGNORE, Encoded
from palimpsest.models.queries import Queries
from palimpsest.refusal import ConfigError
from palimpsest.study import Manner
from palimpsest.study.vocabulary import vocabulary
from palimpsest.tasks import Examples
from palimpsest.training.stage import _told
from workspace import (
    MODEL,
    STUDY,
    Job,
    change,
    convert,
    entered,
    handed_on,
    stage_of,
    train,
    write,
)

RESULTS = Path("results")
PROJECTOR = "model.multi_modal_projector"
CORE = {
    "extends": "lora",
    "title": "CORE",
    "adapter": {
        "name": "refusers", "experts": 4, "top": 2, "width": 8, "heads": 2, "dropout": 0.0,
        "temperature": 0.5,
    },
    "router": {
        "name": "concepts", "described": "tiny", "epochs": 4, "learning_rate": 0.02, "batch": 8,
        "drawn": 8, "task_scale": 1.0, "task_threshold": 0.0, "gate": "soft",
        "replay": {"drawn": 8, "epochs": 3, "learning_rate": 0.001, "batch": 8},
    },
}  # fmt: skip
NAMES = {"digits": ["zero", "one"], "shapes": ["circle", "square"]}
KEPT = {"digits": ["four", "six"], "shapes": ["diamond", "ring"]}
DESCRIBED = {
    "zero": {"image": ["a closed line", "nothing within"], "text": ["which digit", "as a word"]},
    "one": {"image": ["a straight line", "upright"], "text": ["which digit", "written here"]},
    "circle": {"image": ["a closed line", "round"], "text": ["left of", "which shape"]},
    "square": {"image": ["four corners"], "text": ["above", "which shape"]},
}
ORDER = ["digits", "shapes"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace with two tasks to refuse, and CORE alone and beside other parts."""
    with entered(tmp_path_factory.mktemp("core"), train=8, test=4) as path:
        change(path, "models/tiny", tower="model.vision_tower")
        for category in ORDER:
            source = {"refuse": category, "keywords": NAMES[category], "kept": KEPT[category],
                      "seed": 3, "sizes": {"train": 24, "test": 12}}  # fmt: skip
            write(path, f"tasks/{category}", {"extends": "reading", "source": source})
        write(path, "concepts/tiny", DESCRIBED)
        orders = {"first": ORDER}
        write(path, "benchmarks/two", {"title": "Two", "initial": ["choice"], "orders": orders})
        write(path, "methods/core", CORE)
        beside = {"regulariser": {"name": "lwf", "strength": 1.0},
                  "rehearsal": {"name": "proportional", "ratio": 1.0}}  # fmt: skip
        write(path, "methods/core-beside", {"extends": "core", **beside})
        convert(*ORDER)
        yield path


def of(lineage, method="core"):
    return stage_of(lineage, method, "two")


@pytest.fixture(scope="module")
def trained(root):
    """The stages of `digits/shapes`, and what was printed of the last."""
    stages = [of("digits"), of("digits/shapes")]
    return stages, [train(stage) for stage in stages]


def losses(stage):
    lines = (stage.directory(RESULTS) / "metrics.jsonl").read_text().splitlines()
    return [{k: json.loads(line)[k] for k in ("loss", "penalty")} for line in lines]


def tensors(stage, name="router"):
    return load_file(stage.directory(RESULTS) / f"{name}.safetensors")


def test_a_task_after_another_is_learnt_and_settled(trained):
    (first, second), _ = trained
    one, two = (Concepts(study.method_of(s).router, tensors(s)) for s in (first, second))
    assert [one.num_tasks, two.num_tasks] == [1, 2]
    assert (one.sizes, two.sizes) == ((4, 3), (6, 6))
    assert [*two._keywords()] == ["one", "zero", "circle", "square"]
    assert two.loads.sum(-1).tolist() == [24 * 2, 24 * 2]
    assert torch.equal(two.loads[:1], one.loads)
    held = int(one.loads[0].argmax())
    old, new = (tensors(s, "adapter/refusers") for s in (first, second))
    moved = {n.split(".experts.")[1][0] for n in old if "experts" in n and (old[n] != new[n]).any()}
    assert str(held) not in moved
    assert moved
    assert all(line["penalty"] == 0 for line in losses(first))
    assert all(line["penalty"] > 0 for line in losses(second))


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def die_if_asked_again():
    Queries.of = die


def die_in_concepts():
    Concepts.learn = die


def die_in_replay():
    experts.replay = die


@pytest.mark.parametrize(
    ("prepare", "kept"),
    [(die_in_concepts, ["queries"]), (die_in_replay, ["concepts", "queries"])],
)
def test_a_stage_killed_between_phases_goes_on_bit_for_bit(trained, prepare, kept):
    stage = trained[0][1]
    undisturbed = handed_on(stage)
    shutil.rmtree(stage.directory(RESULTS))
    assert Job(stage, prepare=prepare).wait() == [-signal.SIGKILL]
    assert not stage.directory(RESULTS).exists()
    assert sorted(path.stem for path in stage.resume(RESULTS).glob("*.safetensors")) == kept
    train(stage, prepare=die_if_asked_again)
    assert handed_on(stage) == undisturbed
    assert not list(stage.resume(RESULTS).glob("*.safetensors"))


@pytest.mark.parametrize("zero", [0, 3])
def test_two_ranks_learn_what_one_learns(trained, root, zero):
    """The same task after the same first one, with as many answer tokens a rank as come to it."""
    (first, second), _ = trained
    shared = {"zero_stage": zero, "micro_batch": 2, "resources": MODEL["resources"] | {"ranks": 2}}
    write(root, f"models/shared-{zero}", {"extends": "tiny", **shared})
    other = stage_of("digits/shapes", "core", "two", model=f"shared-{zero}")
    shutil.copytree(first.directory(RESULTS), other.parent.directory(RESULTS))
    train(other, ranks=2)
    for one, same in zip(losses(second), losses(other), strict=True):
        assert same == pytest.approx(one, rel=1e-4)
    wanted, found = (tensors(s, "adapter/refusers") for s in (second, other))
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3)


def test_what_is_told_goes_beside_a_picture_and_counts_its_answer():
    concepts_1C = torch.ones(1, 3)
    shown = Encoded([1, 2, 3], [IGNORE, 2, 3], {"pixel_values": torch.zeros(1, 3, 4, 4)})
    told = _told(shown, {"concepts": concepts_1C}).pictures
    assert {name: value.tolist() for name, value in told.items() if name != "pixel_values"} == {
        "concepts": [[1, 1, 1]], "answers": [2],
    }  # fmt: skip
    assert told["pixel_values"] is shown.pictures["pixel_values"]
    blank = replace(shown, labels=[IGNORE] * 3)
    assert _told(blank, {"concepts": concepts_1C}).pictures["answers"].tolist() == [0]
    unseen = replace(shown, pictures={})
    assert _told(unseen, {"concepts": concepts_1C}) is unseen
    assert _told(shown, {}) is shown  # a method whose router says nothing


class Rows(list):
    """Some examples in some order, as `answer` reads them."""

    def characters(self):
        return [characters(e) for e in self]


def test_answers_do_not_depend_on_the_batch_mates(trained):
    stage, manner = trained[0][1], Manner("digits", {}, 6)
    lmm = generate.load_stage(stage, RESULTS)
    routing = generate.load_routing(stage, RESULTS, lmm)
    assert routing.steps == ("choice", "digits", "shapes")
    mixture = lmm.module.get_submodule(PROJECTOR)
    for n, parameter in enumerate(mixture.experts.parameters()):  # something to be seen
        generator = torch.Generator().manual_seed(n)
        parameter.data += 3 * torch.randn(parameter.shape, generator=generator)
    found = [e for task in ORDER for e in Examples(RESULTS, "two", [task], "test")]
    rows = Rows(replace(e, image=None) if n % 5 == 0 else e for n, e in enumerate(found))
    alone, _ = generate.answer(lmm, rows, manner, 1, routing)
    assert {row["expert"] for row in alone} == {"digits", "shapes"}
    assert generate.answer(lmm, rows, manner, 7, routing)[0] == alone
    assert generate.answer(lmm, Rows(reversed(rows)), manner, 24, routing)[0] == alone[::-1]
    route = routing.router.route

    def closed(queries):
        routed = route(queries)
        return routed._replace(told=routed.told | {"gates": torch.zeros(len(routed.ago_B))})

    routing.router.route = closed
    base, routing_of_none = generate.load_stage(of("base"), RESULTS), None
    shut, _ = generate.answer(lmm, rows, manner, 7, routing)
    wanted, _ = generate.answer(base, rows, manner, 7, routing_of_none)
    assert [r["prediction"] for r in shut] == [r["prediction"] for r in wanted]
    assert [r["prediction"] for r in shut] != [r["prediction"] for r in alone]


def test_cells_are_evaluated_by_the_step_of_each_question(trained):
    stage = trained[0][1]
    generate.evaluate(stage, ["digits", "choice"], RESULTS, Evaluation(batch=8))
    for task, num in (("digits", 12), ("choice", 4)):
        table = pq.read_table(stage.cell(RESULTS, "test", task) / "predictions.parquet")
        assert len(table) == num
        assert set(table["expert"].to_pylist()) <= set(ORDER)


def test_refusers_are_learnt_beside_other_parts(trained):
    """A teacher and old examples, which are told their concepts as well."""
    stage = of("digits", "core-beside")
    train(stage)
    assert {"rehearsal.arrow", "router.safetensors"} <= set(handed_on(stage))
    record = read_json(stage.directory(RESULTS) / "stage.json")
    assert record["steps"] == 4  # of 8: 24 new examples, and the 8 of the task that the base knows
    assert losses(stage)[-1]["penalty"] > 0  # the teacher's
    assert tensors(stage)["count"].sum() == 24  # of what the base knows nothing is to be refused


def test_what_no_concept_describes_is_refused_before_any_job(root):
    concepts = {k: v for k, v in DESCRIBED.items() if k != "square"}
    write(root, "studies", {**STUDY, "benchmark": "two", "methods": ["core"], "references": {}})
    where = "config/concepts/tiny.yaml"
    for content, message in (
        (concepts, f"{where}: square: is missing: a keyword of config/tasks/shapes.yaml"),
        (DESCRIBED | {"one": {"image": ["a"]}}, f"{where}: one.text: this key is required"),
        ({"files": {"image": "a/b/x", "text": "a/b/y"}}, "there is no download 'b'"),
    ):
        write(root, "concepts/tiny", content)
        vocabulary.cache_clear()
        with pytest.raises(ConfigError, match=re.escape(message)):
            study.plan("studies")
    write(root, "concepts/tiny", DESCRIBED)
    vocabulary.cache_clear()
    assert len(study.plan("studies").trained) == 2


def test_what_decides_a_stage_are_the_texts_of_its_own_keywords(root):
    stage = of("digits/shapes")
    before = study.identity(stage)["described"]
    for content, same in (
        (DESCRIBED | {"four": DESCRIBED["one"]}, True),
        (DESCRIBED | {"circle": DESCRIBED["one"]}, False),
        (DESCRIBED, True),
    ):
        write(root, "concepts/tiny", content)
        vocabulary.cache_clear()
        assert (study.identity(stage)["described"] == before) == same


def test_released_concepts_are_read_as_they_are(root):
    ours = vocabulary("tiny")
    for kind in ("image", "text"):
        records = [{"category": "x", "keyword": k, "descriptions": d[kind]} for k, d in
                   DESCRIBED.items()]  # fmt: skip
        write_json(root / f"{kind}.json", records)
    write(root, "concepts/tiny", {"files": {"image": "image.json", "text": "text.json"}})
    vocabulary.cache_clear()
    assert vocabulary("tiny") == ours
    write_json(root / "text.json", {"keyword": "one"})
    vocabulary.cache_clear()
    with pytest.raises(ConfigError, match=r"text.json is not as CORE releases it"):
        vocabulary("tiny")
    (root / "text.json").unlink()
    with pytest.raises(ConfigError, match=r"text.json is missing; `palimpsest download"):
        vocabulary("tiny")
    write(root, "concepts/tiny", DESCRIBED)
    vocabulary.cache_clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": None}, "adapter 'refusers' needs a `router` named 'concepts', and that router"),
        ({"adapter": {"name": "projector"}}, "adapter 'projector' needs a `router` named 'keys'"),
        ({"train_projector": True}, "adapter 'refusers' trains a projector of its own"),
        ({"regulariser": {"name": "ewc", "strength": 1, "examples": 2}}, "'ewc' weighs parameters"),
    ],
)
def test_parts_that_do_not_fit_are_refused(root, changes, message):
    settings = load(Method, "core").model_dump() | changes
    with pytest.raises(ValidationError, match=message):
        Method.model_validate(settings)
