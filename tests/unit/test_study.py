"""Studies: which stages they come to, which they share, and when they refuse to go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from palimpsest import study
from palimpsest.config import Model, Task, load
from palimpsest.files import write_json
from palimpsest.lineage import Lineage, Stage
from palimpsest.refusal import ConfigError
from palimpsest.study import (
    history,
    manner_of,
    plan,
    refuse_foreign_stages,
    scorer,
    stage_fingerprint,
)
from workspace import forget

REPOSITORY = Path(__file__).parents[2]


def stage(lineage, benchmark="three", seed=0):
    if lineage == "base":
        return Stage(benchmark, "tiny", Lineage())
    return Stage(benchmark, "tiny", Lineage.parse(lineage), "lora", seed)


def experiment(found, name, order="first", seed=0):
    return next(
        e for e in found.experiments
        if (e.name, e.order) in ((name, order), (name, "any")) and e.seed in (seed, None)
    )  # fmt: skip


def test_experiments_of_a_study(workplace):
    found = plan("small")
    lineages = {e.name: [str(s.lineage) for s in e.stages] for e in found.experiments}
    assert lineages == {
        "zero-shot": ["base"],
        "direct": ["signs", "count", "boxes"],
        "joint": ["boxes+count+signs"],
        "blind": ["signs", "count", "boxes"],
        "lora": ["base", "signs", "signs/count", "signs/count/boxes"],
    }
    assert {s.benchmark for s in experiment(found, "blind").stages} == {"three-blind"}
    assert found.tasks == ("signs", "count", "boxes")


def test_direct_and_sequential_share_the_first_stage(workplace):
    found = plan("small")
    assert experiment(found, "direct").stages[0] == experiment(found, "lora").stages[1]
    assert len(found.trained) == 3 + 1 + 3 + 3 - 1


def test_orders_share_their_prefix(workplace):
    workplace.change("small", orders=["first", "second"], references={})
    found = plan("small")
    first, second = (experiment(found, "lora", order).stages for order in ("first", "second"))
    assert first[:2] == second[:2]
    assert set(first[2:]).isdisjoint(second[2:])
    assert len(found.trained) == 5


def test_studies_share_stages(workplace):
    one = plan("small")
    shutil.copy("config/small.yaml", "config/other.yaml")
    workplace.change("other", orders=["second"], title="Other", references={})
    shared = set(one.stages) & set(plan("other").stages)
    assert shared == {stage(s) for s in ("base", "signs")}


def test_every_stage_once_and_after_its_parent(workplace):
    workplace.change("small", orders=["first", "second"], seeds=[0, 1])
    found = plan("small")
    assert len(set(found.stages)) == len(found.stages)
    place = {s: n for n, s in enumerate(found.stages)}
    for s in found.trained:
        assert s.parent not in place or place[s.parent] < place[s]


def test_seeds_share_the_base_alone(workplace):
    workplace.change("small", seeds=[0, 1])
    found = plan("small")
    one, other = (experiment(found, "lora", seed=seed).stages for seed in (0, 1))
    assert set(one) & set(other) == {stage("base")}
    assert [e.name for e in found.experiments].count("zero-shot") == 1
    assert [e.name for e in found.experiments].count("joint") == 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("methods/lora", {"title": "Other"}),
        ("tasks/signs", {"title": "Other", "metric": "box_iou"}),
        ("models/tiny", {"micro_batch": 2, "resources__minutes": 7}),
        ("small", {"title": "Other", "evaluation__batch": 7}),
        ("tasks/boxes", {"source__seed": 5}),  # a task that the stage has not learnt
    ],
)
def test_fingerprints_stay(workplace, name, change):
    before = stage_fingerprint(stage("signs/count"))
    workplace.change(name, **change)
    assert stage_fingerprint(stage("signs/count")) == before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("methods/lora", {"training__learning_rate": 0.1}),
        ("tasks/count", {"source__seed": 5}),
        ("tasks/signs", {"source__seed": 5}),  # learnt by the parent
        ("models/tiny", {"max_length": 65}),
        ("benchmarks/three", {"pictures": "blank"}),
    ],
)
def test_fingerprints_change(workplace, name, change):
    before = stage_fingerprint(stage("signs/count"))
    workplace.change(name, **change)
    assert stage_fingerprint(stage("signs/count")) != before


def test_fingerprints_tell_stages_apart(workplace):
    stages = [
        stage("base"), stage("signs"), stage("count"), stage("signs/count"), stage("count/signs"),
        stage("count+signs"), stage("signs", seed=1), stage("signs", benchmark="three-blind"),
    ]  # fmt: skip
    assert len({stage_fingerprint(s) for s in stages}) == len(stages)


def test_the_base_does_not_depend_on_method_or_tasks(workplace):
    before = stage_fingerprint(stage("base"))
    workplace.change("methods/lora", training__learning_rate=0.1)
    workplace.change("tasks/signs", source__seed=5)
    assert stage_fingerprint(stage("base")) == before
    assert stage_fingerprint(stage("base", benchmark="three-blind")) == before


def finish(finished):
    """Write the record of a finished stage."""
    record = finished.directory(study.RESULTS) / "stage.json"
    identity = study.identity(finished)
    write_json(record, {"fingerprint": stage_fingerprint(finished), "identity": identity})
    return record


def test_own_stages_are_accepted(workplace):
    found = plan("small")
    refuse_foreign_stages(found.stages)  # none is finished
    for s in found.trained[:4]:
        finish(s)
    forget()
    refuse_foreign_stages(plan("small").stages)


def test_a_foreign_stage_is_refused_and_kept(workplace):
    record = finish(stage("signs"))
    content = record.read_bytes()
    workplace.change("methods/lora", training__learning_rate=0.01, adapter__rank=8)
    with pytest.raises(ConfigError) as error:
        refuse_foreign_stages(plan("small").stages)
    assert str(error.value).splitlines() == [
        "results/stages/three/tiny/lora/seed-0/signs/stage: this stage was trained with another "
        "config:",
        "    method.adapter.rank: was 4, is 8",
        "    method.training.learning_rate: was 0.001, is 0.01",
        "  Give the changed config a new name to keep both, or remove this directory (and those of "
        "the stages after it) to train anew.",
    ]
    assert record.read_bytes() == content
    assert len(list(study.RESULTS.rglob("*"))) == len(record.parents) - 1


def test_a_stage_of_another_parent_is_refused(workplace):
    finish(stage("signs/count"))
    workplace.change("tasks/signs", source__seed=5)
    with pytest.raises(ConfigError, match=r"signs/count/stage: this stage(.|\n)*parent: was '"):
        refuse_foreign_stages((stage("signs/count"),))


def test_identities_survive_json(workplace):
    identity = study.identity(stage("signs/count"))
    assert json.loads(json.dumps(identity)) == identity


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("tasks/count", {"downloads": ["coin"]}, "there is no download 'coin', did you"),
        ("models/tiny", {"parts": {"vision": "clipp/large"}}, "there is no download 'clipp', did"),
        (
            "models/tiny",
            {"parts": {"vision": "clip"}, "weights": "results/models/other"},
            "weights: found 'results/models/other': should be 'results/models/tiny'",
        ),
    ],
)
def test_what_cannot_be_fetched_or_put_together_is_refused(workplace, file, changes, message):
    manual = {"title": "F", "kind": "manual", "licence": "L", "size": "1 GB"}
    for name in ("coin-pictures", "clip"):
        workplace.write(f"downloads/{name}", manual | {"instructions": "I", "files": ["a"]})
    workplace.change(file, **changes)
    with pytest.raises(ConfigError, match=f"config/{file}.yaml: .*{message}"):
        plan("small")


def test_benchmarks_with_other_tasks_are_not_compared(workplace):
    workplace.write("benchmarks/two", {"title": "Two", "orders": {"o": ["signs", "count"]}})
    workplace.change("small", references__blind__benchmark="two")
    with pytest.raises(ConfigError, match=r"references\.blind\.benchmark: 'two' has other tasks"):
        plan("small")


@pytest.fixture
def shipped(monkeypatch):
    """The repository as working directory, with its own config."""
    monkeypatch.chdir(REPOSITORY)
    forget()
    yield
    forget()


@pytest.mark.parametrize("name", sorted(p.stem for p in (REPOSITORY / "config").glob("*.yaml")))
def test_the_studies_that_are_shipped_can_be_planned(name, shipped):
    found = plan(name)
    assert found.trained
    for s in found.stages:
        stage_fingerprint(s)


def test_the_demos_orders_share_two_stages(shipped):
    found = plan("demo-swapped")
    coin, swapped = (experiment(found, "lora", order).stages for order in ("coin", "swapped"))
    assert len(set(coin) & set(swapped)) == 1 + 2  # the base, and as benchmarks/demo.yaml says


def test_how_a_model_answers(workplace):
    small = load(Task, "signs").max_new_tokens
    as_trained = manner_of("tiny", "signs", "consistent")
    assert (as_trained.max_new_tokens, as_trained.drop_first) == (small, False)
    assert as_trained.of_model["chat"] == load(Model, "tiny").chat
    chat = {"user": "Q: {question}", "assistant": " A:{answer}", "image": "<image>"}
    published = {
        "source": "a paper's scripts",
        "chat": chat,
        "max_new_tokens": {"sign*": 99, "*": 7},
        "crop": ["count", "box*"],
        "drop_first": True,
        "metrics": {"box*": "coin_exact"},
    }
    workplace.change("models/tiny", as_published=published, pictures="pad")
    workplace.change("tasks/signs", as_published="coin_gqa")
    workplace.change("tasks/boxes", as_published="coin_gqa")
    signs, boxes = (manner_of("tiny", task, "as-published") for task in ("signs", "boxes"))
    assert (signs.max_new_tokens, boxes.max_new_tokens) == (99, 7)
    assert (signs.of_model["pictures"], boxes.of_model["pictures"]) == ("pad", "crop")
    assert signs.of_model["chat"].user == "Q: {question}"
    assert signs.drop_first
    assert scorer("tiny", "signs", "as-published") == ("coin_gqa", {})
    assert scorer("tiny", "boxes", "as-published") == ("coin_exact", {})
    assert scorer("tiny", "boxes", "metric")[0] == load(Task, "boxes").metric
    del published["max_new_tokens"]["*"]
    workplace.change("models/tiny", as_published=published)
    with pytest.raises(ConfigError, match="max_new_tokens: no line fits task 'boxes'"):
        manner_of("tiny", "boxes", "as-published")


HELD_OUT = {"orders": {"first": ["count", "boxes"]}, "held_out": ["signs"]}


def test_every_stage_is_asked_what_is_held_out_and_none_learns_it(workplace):
    workplace.change("benchmarks/three", **HELD_OUT)
    workplace.change("small", evaluation__cells="learnt")
    found = plan("small")
    assert (found.tasks, found.known) == (("count", "boxes", "signs"), ("count", "boxes"))
    assert {task for s in found.trained for task in s.lineage.learnt} == {"count", "boxes"}
    cells = {
        name: [e.cells(s, found.tasks) for s in e.stages]
        for name in ("lora", "zero-shot", "joint", "direct")
        for e in [experiment(found, name)]
    }
    assert cells == {
        "lora": [found.tasks, ("count", "signs"), found.tasks],
        "zero-shot": [found.tasks],
        "joint": [found.tasks],
        "direct": [("count",), ("boxes",)],
    }
    assert history(stage("count/boxes")) == (("count",),)


def test_what_is_held_out_decides_no_number(workplace):
    workplace.change("benchmarks/three", orders=HELD_OUT["orders"])
    before = stage_fingerprint(stage("count/boxes"))
    workplace.change("benchmarks/three", **HELD_OUT)
    assert stage_fingerprint(stage("count/boxes")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": ["count"]}, "held_out: task 'count' is named in an order, too"),
        ({"held_out": ["signs", "signs"]}, "held_out: task 'signs' is named twice"),
        ({"initial": ["signs"]}, "held_out: task 'signs' is named in `initial`, too"),
        ({"held_out": ["Signs"]}, "task 'Signs': a name is made of lower-case letters"),
        ({"held_out": ["sings"]}, r"three\.yaml: held_out: .*'sings'.*'signs'"),
    ],
)
def test_held_out_tasks_that_cannot_be(workplace, changes, message):
    workplace.change("benchmarks/three", **HELD_OUT | changes)
    with pytest.raises(ConfigError, match=message):
        plan("small")


def test_after_a_stage_the_tasks_learnt_by_then(workplace):
    everything = len(plan("small").cells)
    workplace.change("small", evaluation__cells="learnt")
    planned = plan("small")
    for stage, task in planned.cells:
        assert not stage.parent or task in stage.lineage.learnt
    assert {task for stage, task in planned.cells if not stage.parent} == set(planned.tasks)
    assert len(planned.cells) < everything
