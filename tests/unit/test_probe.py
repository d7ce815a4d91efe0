"""A stage that is asked while it is trained: it learns the same, to the last bit."""

import json
from itertools import chain
from pathlib import Path

import pytest

from palimpsest.config import Probes
from palimpsest.evaluation.generate import load_stage
from palimpsest.evaluation.probe import probe
from palimpsest.refusal import ConfigError
from palimpsest.study import plan
from workspace import change, entered, forget, handed_on, palimpsest, stage_of, train, write

RESULTS = Path("results")
TASKS = "choice/reading"
PROBES = ("--probes", "2", "--sample", "6", "--split", "train")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace in which two stages have been trained, and not been asked."""
    with entered(tmp_path_factory.mktemp("probe"), train=32, test=8) as path:
        train(stage_of("choice"))
        train(stage_of(TASKS))
        yield path


def lines(stage):
    text = (stage.directory(RESULTS) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def asked(root):
    """The last stage once more, now with probes; and what it handed on without."""
    stage = stage_of(TASKS)
    before = handed_on(stage), lines(stage)
    (stage.directory(RESULTS) / "stage.json").unlink()
    (stage.resume(RESULTS) / "stage.json").unlink()
    job = palimpsest(root, "train", str(stage), *PROBES)
    out, _ = job.communicate(timeout=120)
    assert job.returncode == 0, out
    return stage, *before


def test_what_is_learnt_is_the_same(asked):
    stage, files, before = asked
    now = handed_on(stage)
    assert now.keys() == files.keys()
    assert all(now[name] == files[name] for name in files if name != "metrics.jsonl")
    assert [line["loss"] for line in lines(stage)] == [line["loss"] for line in before]
    assert not any("probes" in line for line in before)


def test_tasks_known_so_far_are_asked_every_so_many_steps(asked):
    stage, *_ = asked
    told = {line["step"]: line["probes"] for line in lines(stage) if "probes" in line}
    assert list(told) == [line["step"] for line in lines(stage) if line["step"] % 2 == 0]
    assert {tuple(each) for each in told.values()} == {("choice", "reading")}
    assert all(0 <= value <= 100 for value in chain(*(each.values() for each in told.values())))


def test_the_scores_are_those_of_the_model_as_it_is(asked):
    """The probe after the last step says what the stage's model says."""
    stage, *_ = asked
    steps = lines(stage)
    ask = probe(stage, RESULTS, Probes(every=1, sample=6), "train")
    assert ask(load_stage(stage, RESULTS), 1) == pytest.approx(steps[-1]["probes"])


def test_a_method_with_a_router_is_not_asked(root):
    router = {"name": "keys", "steps": 2, "learning_rate": 1e-2, "strength": 0.1}
    router |= {"batch": 4, "examples": 4}
    adapter = {"adapter": {"name": "projector"}, "router": router}
    write(root, "methods/routed", {"extends": "lora", **adapter})
    forget()
    assert probe(stage_of("choice", "routed"), RESULTS, Probes(every=1, sample=2), "test") is None


@pytest.mark.parametrize("zero_stage", [3, "auto"])
def test_a_model_in_pieces_cannot_answer(root, zero_stage):
    change(root, "tiny", probes={"every": 2, "sample": 4})
    change(root, "models/tiny", zero_stage=zero_stage)
    with pytest.raises(ConfigError, match="probes: a model whose weights are shared out"):
        plan("tiny")
