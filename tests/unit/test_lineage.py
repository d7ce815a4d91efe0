"""Lineages and stages as paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.lineage import RESERVED, TASK_NAME, Lineage, Stage

names = st.from_regex(TASK_NAME, fullmatch=True).filter(lambda name: name not in RESERVED)


@st.composite
def any_lineages(draw):
    steps: list[list[str]] = []
    for task in draw(st.lists(names, max_size=6, unique=True)):
        if steps and draw(st.booleans()):
            steps[-1].append(task)
        else:
            steps.append([task])
    return Lineage(tuple(map(tuple, steps)))


def lineages(min_steps=0):
    return any_lineages().filter(lambda lineage: len(lineage.steps) >= min_steps)


def stages():
    trained = st.builds(
        Stage, names, names, lineages(min_steps=1), names, st.integers(0, 2**31 - 1)
    )
    return trained | st.builds(Stage, names, names, st.just(Lineage()))


@given(lineages())
def test_text_is_read_back(lineage):
    assert Lineage.parse(str(lineage)) == lineage


@given(lineages(min_steps=2))
def test_the_parent_is_the_parent_directory(lineage):
    assert Path(str(lineage)).parent == Path(str(lineage.parent))


@given(lineages(min_steps=1))
def test_prefixes_lead_from_the_first_step_to_the_lineage(lineage):
    prefixes = lineage.prefixes
    assert prefixes[-1] == lineage
    assert prefixes[0].parent == Lineage()
    assert [p.parent for p in prefixes[1:]] == list(prefixes[:-1])
    assert lineage.learnt == tuple(task for p in prefixes for task in p.last)


def test_the_base_has_learnt_nothing():
    base = Lineage.parse("base")
    assert (base.steps, base.parent, base.last, base.learnt, base.prefixes) == (
        (),
        None,
        (),
        (),
        (),
    )


@given(st.lists(names, min_size=1, max_size=5, unique=True).flatmap(st.permutations))
def test_joint_tasks_have_one_order(tasks):
    assert Lineage.joint(tuple(tasks)) == Lineage.joint(tuple(sorted(tasks)))
    assert Lineage.parse("+".join(tasks)) == Lineage.joint(tuple(tasks))
    assert str(Lineage.joint(tuple(tasks))) == "+".join(sorted(tasks))


def test_sequential_keeps_the_order():
    assert str(Lineage.sequential(("b", "a", "c"))) == "b/a/c"


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names_are_refused(name):
    with pytest.raises(ValueError, match=f"task '{name}': the name is reserved"):
        Lineage.parse(f"a/{name}")


@pytest.mark.parametrize("text", ["a/b/a", "a+a", "a/b+a"])
def test_a_task_is_learnt_once(text):
    with pytest.raises(ValueError, match="task 'a' is named twice"):
        Lineage.parse(text)


@pytest.mark.parametrize("text", ["", "a//b", "a+", "/a", "a/", "../a", "A", "a b", "-a", "a\n"])
def test_names_that_are_no_directories_are_refused(text):
    with pytest.raises(ValueError, match="a name is made of lower-case letters"):
        Lineage.parse(text)


def test_a_step_names_a_task():
    with pytest.raises(ValueError, match="a step names no task"):
        Lineage(((),))


@given(stages())
def test_a_stage_is_known_by_its_path(stage):
    assert Stage.parse(str(stage)) == stage


@given(stages())
def test_parents_end_at_the_base(stage):
    line = []
    while stage is not None:
        line.append(stage)
        stage = stage.parent
    assert line[-1] == Stage(line[0].benchmark, line[0].model, Lineage())
    assert {(s.method, s.seed) for s in line[:-1]} in (set(), {(line[0].method, line[0].seed)})


def test_places_below_results():
    stage = Stage("coin", "llava", Lineage.parse("a/b"), "lora", 3)
    root = Path("results")
    place = root / "stages/coin/llava/lora/seed-3/a/b"
    assert stage.directory(root) == place / "stage"
    assert stage.resume(root) == place / "resume"
    assert stage.cell(root, "test", "a") == place / "cells/test/a"
    base = Stage("coin", "llava", Lineage())
    assert base.cell(root, "test", "a") == root / "stages/coin/llava/base/cells/test/a"


@pytest.mark.parametrize(
    "path",
    ["coin", "coin/llava", "coin/llava/lora", "coin/llava/lora/0/a", "coin/llava/lora/seed-0"],
)
def test_a_path_that_is_no_stage_is_refused(path):
    with pytest.raises(ValueError, match="expected <benchmark>/<model>/base or"):
        Stage.parse(path)


@pytest.mark.parametrize(
    ("lineage", "method", "seed"),
    [("base", "lora", 0), ("a", None, None), ("a", "lora", None), ("base", None, 0)],
)
def test_method_and_seed_go_with_training(lineage, method, seed):
    with pytest.raises(ValueError, match=r"base, and only the base|a seed goes with a method"):
        Stage("coin", "llava", Lineage.parse(lineage), method, seed)
