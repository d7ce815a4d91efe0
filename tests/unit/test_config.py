"""What is wrong in a configuration is said with file, key, what was found, what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest.config import Benchmark, Evaluation, Method, Model, Task, load, modules
from palimpsest.lineage import Stage
from palimpsest.refusal import ConfigError, one_of, read_yaml
from palimpsest.study import method_of, plan, stage_fingerprint


def refusal():
    """Return the message with which the study `small` is refused."""
    with pytest.raises(ConfigError) as error:
        plan("small")
    return str(error.value)


WRONG = {
    "unknown key": (
        ("tasks/signs", {"metrc": "exact_match"}),
        "config/tasks/signs.yaml: metrc: unknown key, did you mean 'metric'? Allowed: "
        "answer_format, as_published, category, cites, downloads, licence, max_new_tokens, "
        "metric, metric_options, most_rejected, prompt, reader, source, title, version",
    ),
    "unknown key of a part": (
        ("methods/lora", {"adapter__rnk": 3}),
        "config/methods/lora.yaml: adapter.rnk: unknown key, did you mean 'rank'? "
        "Allowed: alpha, dropout, name, rank",
    ),
    "unknown key of a nested part": (
        ("small", {"references__direct__methd": "lora"}),
        "config/small.yaml: references.direct.methd: unknown key, did you mean 'method'? "
        "Allowed: benchmark, method, protocol, title",
    ),
    "unknown key like none": (
        ("methods/lora", {"training__xyz": 3}),
        "config/methods/lora.yaml: training.xyz: unknown key. Allowed: batch, batches, betas, "
        "epochs, gradient_clip, learning_rate, projector_learning_rate, schedule, steps, "
        "warmup, weight_decay",
    ),
    "no length of a stage": (
        ("methods/lora", {"training__epochs": None}),
        "config/methods/lora.yaml: training: found {'batch': 8, 'epochs': None, 'learning_rate': "
        "0.001, 'schedule': 'cosine'}: a stage is as long as `epochs` or `steps` says: give one of "
        "them",
    ),
    "unknown metric": (
        ("tasks/signs", {"metric": "exact-match"}),
        "config/tasks/signs.yaml: metric: there is no metric 'exact-match', "
        "did you mean 'exact_match'? Known: " + ", ".join(sorted(modules("metrics"))),
    ),
    "unknown option of a metric": (
        ("tasks/signs", {"metric": "box_iou", "metric_options": {"gird": 3}}),
        "config/tasks/signs.yaml: metric_options: found {'gird': 3}: there is no option of box_iou "
        "'gird', did you mean 'grid'? Known: grid, square, threshold",
    ),
    "option of another type": (
        ("tasks/signs", {"metric": "box_iou", "metric_options": {"grid": "16"}}),
        "config/tasks/signs.yaml: metric_options: found {'grid': '16'}: grid should be a float",
    ),
    "prompt without a question": (
        ("tasks/signs", {"prompt": "Answer!"}),
        "config/tasks/signs.yaml: prompt: found 'Answer!': must contain {question}",
    ),
    "bad regular expression": (
        ("tasks/signs", {"answer_format": "[A-Z"}),
        "config/tasks/signs.yaml: answer_format: found '[A-Z': not a regular expression "
        "(unterminated character set at position 0)",
    ),
    "wrong type": (
        ("tasks/signs", {"max_new_tokens": "many"}),
        "config/tasks/signs.yaml: max_new_tokens: found 'many': Input should be a valid integer, "
        "unable to parse string as an integer",
    ),
    "out of range": (
        ("methods/lora", {"training__warmup": 1}),
        "config/methods/lora.yaml: training.warmup: found 1: Input should be less than 1",
    ),
    "no list": (
        ("small", {"models": "tiny"}),
        "config/small.yaml: models: found 'tiny': should be a list",
    ),
    "no mapping": (
        ("methods/lora", {"adapter": 3}),
        "config/methods/lora.yaml: adapter: found 3: should be keys and values",
    ),
    "unknown word": (
        ("methods/lora", {"training__schedule": "cosin"}),
        "config/methods/lora.yaml: training.schedule: found 'cosin', did you mean 'cosine'? "
        "Allowed: cosine, constant",
    ),
    "unknown adapter": (
        ("methods/lora", {"adapter__name": "lorra"}),
        "config/methods/lora.yaml: adapter.name: found 'lorra', did you mean 'lora'? "
        "Allowed: lora, moelora, subset, projector, refusers",
    ),
    "adapter without a name": (
        ("methods/lora", {"adapter": {"rank": 3, "alpha": 1}}),
        "config/methods/lora.yaml: adapter: a name is required, which says what part it is",
    ),
    "rank that cannot be shared out": (
        ("methods/lora", {"adapter": {"name": "moelora", "rank": 3, "alpha": 2, "experts": 2}}),
        "config/methods/lora.yaml: adapter: found {'name': 'moelora', 'rank': 3, 'alpha': 2, "
        "'experts': 2}: rank 3 cannot be shared out over 2 experts",
    ),
    "order that names a task twice": (
        ("benchmarks/three", {"orders": {"first": ["signs", "signs"]}}),
        "config/benchmarks/three.yaml: orders: found {'first': ['signs', 'signs']}: "
        "order 'first' names task 'signs' twice",
    ),
    "order with other tasks": (
        ("benchmarks/three", {"orders": {"first": ["signs"], "x": ["count"]}}),
        "config/benchmarks/three.yaml: orders: found {'first': ['signs'], 'x': ['count']}: "
        "order 'x' does not name the tasks of the first: count, signs",
    ),
    "task that cannot be a directory": (
        ("benchmarks/three", {"orders": {"first": ["stage"]}}),
        "config/benchmarks/three.yaml: orders: found {'first': ['stage']}: "
        "task 'stage': the name is reserved (base, cells, resume, stage)",
    ),
    "unknown task": (
        ("benchmarks/three", {"orders": {"first": ["signs", "cuont"]}}),
        "config/benchmarks/three.yaml: orders: there is no task 'cuont', did you mean 'count'? "
        "Known: boxes, count, signs",
    ),
    "unknown benchmark": (
        ("small", {"benchmark": "thre"}),
        "config/small.yaml: benchmark: there is no benchmark 'thre', did you mean 'three'? "
        "Known: three, three-blind",
    ),
    "unknown order": (
        ("small", {"orders": ["frist"]}),
        "config/small.yaml: orders: there is no order 'frist', did you mean 'first'? "
        "Known: first, second",
    ),
    "unknown method": (
        ("small", {"methods": ["lroa"]}),
        "config/small.yaml: methods: there is no method 'lroa', did you mean 'lora'? Known: lora",
    ),
    "unknown method of a reference": (
        ("small", {"references__direct__method": "lroa"}),
        "config/small.yaml: references.direct.method: there is no method 'lroa', "
        "did you mean 'lora'? Known: lora",
    ),
    "unknown benchmark of a reference": (
        ("small", {"references__blind__benchmark": "three-bind"}),
        "config/small.yaml: references.blind.benchmark: there is no benchmark 'three-bind', "
        "did you mean 'three-blind'? Known: three, three-blind",
    ),
    "unknown model": (
        ("small", {"models": ["tyni"]}),
        "config/small.yaml: models: there is no model 'tyni', did you mean 'tiny'? Known: tiny",
    ),
    "named twice": (
        ("small", {"seeds": [0, 1, 0]}),
        "config/small.yaml: seeds: found [0, 1, 0]: 0 is named twice",
    ),
    "method for nothing": (
        ("small", {"references__zero-shot__method": "lora"}),
        "config/small.yaml: references.zero-shot: protocol zero-shot, and only it, has no method",
    ),
    "reference named as a method": (
        ("small", {"references": {"lora": {"title": "Zero", "protocol": "zero-shot"}}}),
        "config/small.yaml: references.lora: the study has a method of this name; "
        "call it otherwise",
    ),
    "batch that cannot be reached": (
        ("models/tiny", {"resources__ranks": 3}),
        "config/methods/lora.yaml: training.batch: 8 cannot be shared by 3 ranks; nearest: 9 "
        "(resources of config/models/tiny.yaml)",
    ),
    "key that stands twice": (
        ("small", "title: a\nseeds: [0]\ntitle: b\n"),
        "config/small.yaml: not valid YAML: key 'title' stands twice, again in line 3",
    ),
    "empty file": (("small", ""), "config/small.yaml: expected keys and values, found NoneType"),
    "extends nothing": (
        ("benchmarks/three", {"extends": "three-blnd"}),
        "config/benchmarks/three.yaml: extends: there is no file 'three-blnd', "
        "did you mean 'three-blind'? Known: three-blind",
    ),
    "extends itself": (
        ("benchmarks/three", {"extends": "three"}),
        "config/benchmarks/three.yaml: extends: there is no file 'three', "
        "did you mean 'three-blind'? Known: three-blind",
    ),
    "extends in a circle": (
        ("benchmarks/three", {"extends": "three-blind"}),
        "config/benchmarks/three-blind.yaml: extends: there is no file 'three'. Known: none",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(workplace, case):
    (name, content), message = WRONG[case]
    if isinstance(content, str):
        workplace.write(name, content)
    else:
        workplace.change(name, **content)
    assert refusal() == message


def test_everything_wrong_in_a_file_is_said_at_once(workplace):
    workplace.write("tasks/signs", {"titel": "Signs", "reader": "renderd", "max_new_tokens": 0})
    lines = refusal().splitlines()
    assert all(line.startswith("config/tasks/signs.yaml: ") for line in lines)
    keys = [line.split(": ")[1] for line in lines]
    assert {"titel", "title", "reader", "max_new_tokens", "prompt"} <= set(keys)
    assert "config/tasks/signs.yaml: prompt: this key is required" in lines


def test_a_long_value_is_not_repeated(workplace):
    workplace.change("tasks/signs", version="x" * 200)
    assert "xxx" not in refusal()


def test_an_unknown_study_is_refused(workplace):
    with pytest.raises(ConfigError, match="no study 'smal', did you mean 'small'"):
        plan("smal")


def test_broken_yaml_is_refused_with_its_place(workplace):
    workplace.write("small", "title: [1\nbenchmark: b\n")
    assert 'in "config/small.yaml", line 2' in refusal()


@pytest.mark.parametrize(
    ("batch", "ranks", "micro"),
    [(8, 1, 4), (8, 2, 4), (8, 4, 2), (8, 8, 1), (12, 2, 3), (14, 2, 1)],
)
def test_micro_batches_reach_the_global_batch_exactly(workplace, batch, ranks, micro):
    assert load(Model, "tiny").micro_batches_of(batch, ranks) == [micro]  # the config says 4


def test_a_stage_may_choose_its_micro_batch_and_zero_stage(workplace):
    before = load(Model, "tiny")
    workplace.change("models/tiny", micro_batch="auto", zero_stage="auto")
    model = load(Model, "tiny")
    assert model.micro_batches_of(12, 2) == [6, 3, 2, 1]
    assert model.left_open == ["micro_batch", "zero_stage"]
    assert model.fingerprint == before.fingerprint
    assert not before.left_open


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        (
            "micro_batch",
            "automatic",
            "'automatic': should be a number of examples above 0, or auto",
        ),
        ("micro_batch", 0, "0: should be a number of examples above 0, or auto"),
        ("micro_batch", True, "True: should be a number of examples above 0, or auto"),
        ("zero_stage", 4, "4. Allowed: 0, 1, 2, 3, auto"),
    ],
)
def test_what_else_than_auto_is_no_number_is_refused(workplace, key, value, complaint):
    workplace.change("models/tiny", **{key: value})
    with pytest.raises(ConfigError, match=f"models/tiny.yaml: {key}: found {complaint}"):
        load(Model, "tiny")


def test_a_batch_of_its_own_for_a_task(workplace):
    workplace.change("methods/lora", training__batches={"signs": 6})
    lora, stage = load(Method, "lora"), Stage.parse("three/tiny/lora/seed-0/count/signs")
    assert method_of(stage).training.batch == lora.of("tiny", ("signs",)).training.batch == 6
    assert method_of(stage.parent).training.batch == 8
    assert lora.of("tiny", ("count", "signs")).training.batch == 8  # learnt jointly
    workplace.change("models/tiny", resources__ranks=4)
    assert "training.batch: 6 cannot be shared by 4 ranks; nearest: 8" in refusal()


def test_a_method_is_another_for_a_model(workplace):
    stage = Stage.parse("three/tiny/lora/seed-0/signs")
    before = stage_fingerprint(stage)
    workplace.change("methods/lora", models={"other": {"train_projector": True}})
    assert stage_fingerprint(stage) == before
    own = {"name": "lora", "rank": 2, "alpha": 4}
    workplace.change("methods/lora", models={"tiny": {"adapter": own}})
    assert method_of(stage).adapter.rank == 2
    assert stage_fingerprint(stage) != before
    workplace.change("methods/lora", models={"tiny": {"adapter": own | {"rank": -1}}})
    assert "models.tiny.adapter.lora.rank: Input should be greater than 0" in refusal()


def test_what_a_study_measures_must_be_there(workplace):
    workplace.change("small", measures=["metric", "as-published"])
    assert (
        "config/small.yaml: measures: 'as-published' needs `as_published` in config/" in refusal()
    )
    workplace.change("small", measures=["metric", "a-judge"])
    assert "config/small.yaml: measures: there is no judge 'a-judge'" in refusal()
    workplace.change("small", measures=["metric"], evaluation__generation="as-published")
    assert "config/models/tiny.yaml: how the released scripts have it answer" in refusal()


def test_a_method_that_trains_modules_needs_a_model_that_names_them(workplace):
    workplace.change("methods/lora", adapter={"name": "subset"})
    assert "config/models/tiny.yaml: trainable: is missing: adapter 'subset' of" in refusal()
    workplace.change("models/tiny", trainable=".*projector")
    plan("small")


def test_names_that_make_a_path_too_long_are_refused(workplace):
    workplace.write("methods/" + "m" * 180, (Path("config/methods/lora.yaml")).read_text())
    workplace.change("small", methods=["lora", "m" * 180])
    assert "config/small.yaml: the path of a stage has 20" in refusal()


def test_an_evaluation_is_called_by_what_decides_its_answers():
    assert Evaluation(batch=3).name == "test"
    other = Evaluation(batch=1, split="validation", sample=40, generation="as-published")
    assert other.name == "validation-40-as-published"


def test_a_benchmark_is_derived_from_another(workplace):
    blind = load(Benchmark, "three-blind")
    assert blind.pictures == "blank"
    assert blind.orders == load(Benchmark, "three").orders


def test_objects_are_frozen(workplace):
    with pytest.raises(ValueError, match="frozen"):
        load(Task, "signs").metric = "box_iou"


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        (Task, "tasks/signs", {"title": "Other", "category": "x", "licence": "y", "cites": ["z"]}),
        (Task, "tasks/signs", {"metric": "box_iou", "metric_options": {"grid": 16}}),
        (Task, "tasks/signs", {"answer_format": "[a-z]+", "max_new_tokens": 99}),
        (Benchmark, "benchmarks/three", {"title": "Other", "description": "long"}),
        (Model, "models/tiny", {"title": "Other", "micro_batch": 2, "resources__minutes": 9}),
        (Method, "methods/lora", {"title": "Other", "source": "another"}),
    ],
)
def test_what_cannot_change_a_stage_is_not_in_the_fingerprint(workplace, kind, name, change):
    Path("config/references.bib").write_text("@misc{z,\n}\n")
    before = load(kind, name.split("/")[1])
    workplace.change(name, **change)
    after = load(kind, name.split("/")[1])
    assert after != before
    assert after.fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        (Task, "tasks/signs", {"source__seed": 22}),
        (Task, "tasks/signs", {"prompt": "{question}"}),
        (Task, "tasks/signs", {"version": 2}),
        (Benchmark, "benchmarks/three", {"pictures": "blank"}),
        (Model, "models/tiny", {"revision": "abc"}),
        (Model, "models/tiny", {"precision": "bf16"}),
        (Model, "models/tiny", {"chat__user": "{question}"}),
        (Method, "methods/lora", {"adapter__rank": 8}),
        (Method, "methods/lora", {"adapter__dropout": 0.1}),
        (Method, "methods/lora", {"training__learning_rate": 0.002}),
    ],
)
def test_what_can_change_a_stage_is_in_the_fingerprint(workplace, kind, name, change):
    before = load(kind, name.split("/")[1]).fingerprint
    workplace.change(name, **change)
    assert load(kind, name.split("/")[1]).fingerprint != before


def test_one_of_returns_what_is_known():
    assert one_of("a", ["b", "a"], "letter") == "a"
    with pytest.raises(ValueError, match=r"^there is no letter 'c'\. Known: none$"):
        one_of("c", [], "letter")


def test_read_yaml_keeps_merge_keys(tmp_path):
    path = Path(tmp_path / "a.yaml")
    path.write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\n")
    assert read_yaml(path)["b"] == {"x": 1, "y": 2}


def test_a_wrong_key_is_reported_in_the_file_that_has_it(workplace):
    workplace.change("benchmarks/three", picture="blank")
    with pytest.raises(ConfigError, match=r"config/benchmarks/three\.yaml: picture: unknown key"):
        load(Benchmark, "three-blind")
    workplace.change("benchmarks/three-blind", pictures="blnk")
    with pytest.raises(ConfigError, match=r"config/benchmarks/three-blind\.yaml: pictures: found"):
        load(Benchmark, "three-blind")
