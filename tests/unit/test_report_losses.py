"""What is lost and what is said instead: against loops, on a study of four tasks and two seeds."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palimpsest.report.figures.losses import draw
from palimpsest.report.matrix import SAID
from palimpsest.report.page.examples import lost_examples
from palimpsest.report.results import read_results
from palimpsest.report.sections.losses import LOST, findings, frames_of, losses, paper_tables
from palimpsest.report.spec import ExperimentView, RowView, StudyView, TaskView, judged
from palimpsest.report.statistics.bootstrap import resample_indices
from report_fixture import by_measure, write_scores

TASKS = ("one", "two", "captions", "three")  # in the order of learning; captions is a likeness
N = 40
IDS = [f"{n:02d}" for n in range(N)]


def said_in(seed: int, row: int, task: str) -> np.ndarray:
    """Draw what is said of each answer: mostly right after the own stage, anything before."""
    rng = np.random.default_rng([seed, row, TASKS.index(task)])
    own = TASKS.index(task) + 1
    weights = [0.8 if row == own else 0.3, 0.1, 0.2, 0.3, 0.1]
    return rng.choice(SAID, N, p=np.array(weights) / sum(weights))


@pytest.fixture
def study(tmp_path) -> StudyView:
    return write_study(tmp_path)


def write_study(root, seeds=(0, 1)) -> StudyView:
    """Write the cells of one method, and return the view that a report reads."""
    experiments = []
    for seed in seeds:
        rows = []
        for row in range(len(TASKS) + 1):
            learnt = TASKS[row - 1 : row] if row else ()
            cells = {task: root / f"{seed}/{row}/{task}/metric" for task in TASKS}
            for task, cell in cells.items():
                said_N = said_in(seed, row, task)
                score_N = (said_N == "right").astype(float)
                kind_N = np.isin(said_N, ["right", "wrong"])
                open_ones = [None] * N if task == "captions" else said_N
                write_scores(cell, "metric", IDS, score_N, kind_N, said_N=open_ones)
            rows.append(
                RowView("/".join(TASKS[:row]) or "base", *(learnt or ("base",)), learnt, cells)
            )
        experiments.append(
            ExperimentView("lora", "LoRA", "sequential", "m", "lora", "o", seed, tuple(rows))
        )
    tasks = tuple(TaskView(task, task.title(), "", "metric", 0.0) for task in TASKS)
    return StudyView("s", "S", "b", tasks, tuple(experiments), root, "0" * 16)


def lost_in(seed: int, row: int, task: str, kind: str) -> np.ndarray:
    """Say by a loop of each example whether it was lost to a kind."""
    own = said_in(seed, TASKS.index(task) + 1, task)
    now = said_in(seed, row, task)
    return np.array([
        then == "right" and (later == kind if kind != "lost" else later != "right")
        for then, later in zip(own, now, strict=True)
    ])  # fmt: skip


def test_the_frame_is_that_of_loops(study):
    results = read_results(study)
    frame = frames_of(results, losses(results))["losses"]
    assert set(frame["task"]) == {"one", "two", "three"}
    assert set(frame["seed"]) == {"0", "1", "all"}
    for (seed, lineage, task, kind), row in frame.set_index(
        ["seed", "lineage", "task", "kind"]
    ).iterrows():
        seeds = (0, 1) if seed == "all" else (int(seed),)
        stage = 0 if lineage == "base" else lineage.count("/") + 1
        share = 100 * np.mean([said_in(one, stage, task) == kind for one in seeds])
        assert row["share"] == pytest.approx(share)
        if kind == "right" or stage <= TASKS.index(task) + 1:
            assert np.isnan(row["lost"])
            continue
        lost = np.array([lost_in(one, stage, task, kind) for one in seeds])
        assert row["lost"] == pytest.approx(100 * lost.mean())
        assert row["low"] <= row["lost"] <= row["high"]
    sums = frame.groupby(["seed", "lineage", "task"])["share"].sum()
    assert len(sums) == 3 * 5 * 3
    assert sums.to_numpy() == pytest.approx(100)


def test_intervals_are_those_of_a_loop_over_resamples(tmp_path):
    results = read_results(write_study(tmp_path, seeds=(0,)))
    [found] = losses(results)
    last, picked = len(TASKS), np.concatenate(list(resample_indices(N, "one")))
    for k, kind in enumerate(LOST):
        lost_N = lost_in(0, last, "one", kind)
        means = [100 * lost_N[index_N].mean() for index_N in picked]
        ends = found.pooled.low_RTL[-1, 0, k], found.pooled.high_RTL[-1, 0, k]
        assert ends == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_the_mean_is_over_the_old_tasks_and_its_parts_are_a_whole(study):
    [found] = losses(read_results(study))
    last = len(TASKS)
    for kind in LOST:
        lost = [lost_in(seed, last, task, kind).mean() for seed in (0, 1) for task in TASKS[:2]]
        assert found.mean[kind].value == pytest.approx(100 * np.mean(lost))
    parts = {kind: e.value for kind, e in found.parts.items()}
    assert sum(parts.values()) == pytest.approx(100)
    assert parts["form"] == pytest.approx(100 * found.mean["form"].value / found.mean["lost"].value)
    assert found.parts["form"].low < parts["form"] < found.parts["form"].high


def test_tables_and_finding_say_the_same(study):
    results = read_results(study)
    found = losses(results)
    (name, caption, header, [row]), by_task = paper_tables(results, found)
    assert (name, len(header)) == ("losses", 6)
    assert "mean over the old tasks" in caption
    mean = found[0].mean
    assert row[0] == "LoRA"
    assert row[1].startswith(f"{mean['lost'].value:.1f} [")
    assert row[2].startswith(f"{mean['form'].value:.1f} [")
    assert [line[0] for line in by_task[3]] == ["One", "Two", "Mean of the old tasks"]
    assert by_task[3][-1][1:3] == [f"{mean['lost'].value:.1f}", f"{mean['form'].value:.1f}"]
    [said] = findings(found)
    assert f"LoRA lost {mean['lost'].value:.1f}\u00a0% of the answers" in said
    assert f"{found[0].parts['form'].value:.0f}\u00a0% are right content" in said


def test_figures_have_a_bar_of_a_hundred_for_each_stage(study):
    results = read_results(study)
    in_the_end, by_stage, narrow = draw(results, losses(results))
    assert (in_the_end.name, by_stage.name) == ("lost", "losses-lora")
    assert (narrow.name, narrow.section) == ("losses-lora-column", "")
    assert len(by_stage.figure.axes) == len(narrow.figure.axes) == 3
    for axis in (*by_stage.figure.axes, *narrow.figure.axes):
        for stage in range(5):
            bars = [bar for bar in axis.patches if round(bar.get_x() + 0.46) == stage]
            assert len(bars) == len(SAID)
            assert sum(bar.get_height() for bar in bars) == pytest.approx(100)
    widths = sum(bar.get_width() for bar in in_the_end.figure.axes[0].patches)
    assert widths == pytest.approx(losses(results)[0].mean["lost"].value)


def test_only_rules_tell_kinds_apart(study):
    assert losses(read_results(study)) != []
    for e in study.experiments:
        for row in e.rows:
            for cell in row.cells.values():
                table = pq.read_table(cell / "outcomes.parquet").to_pydict()
                args = table["id"], np.array(table["score"]), np.array(table["right_kind"])
                write_scores(cell.parent / "clerk", "clerk", *args)
    assert losses(read_results(by_measure(study, judged("clerk", "The clerk")))) == []


def test_cells_that_were_scored_before_are_named(study):
    """All of them, as another rule's or none's beside this one's is refused before."""
    for e in study.experiments:
        for row in e.rows:
            for cell in row.cells.values():
                table = pq.read_table(cell / "outcomes.parquet")
                pq.write_table(table.drop_columns("said"), cell / "outcomes.parquet")
                change(cell, form="")
    with pytest.raises(ValueError, match=r"cell .*metric: outcomes.parquet has no column `said`"):
        losses(read_results(study))


def change(cell, **values):
    path = cell / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_two_versions_of_the_rule_are_never_mixed(study):
    cell = study.experiments[0].rows[-1].cells["two"]
    change(cell, form="2")
    with pytest.raises(ValueError, match=re.escape(str(cell)) + ".* by version 2 .* by 1; a"):
        read_results(study)


def test_where_nothing_can_be_forgotten_there_is_nothing(study):
    short = [replace(e, rows=e.rows[:2]) for e in study.experiments]
    assert losses(read_results(replace(study, experiments=tuple(short)))) == []


def test_an_example_of_each_kind_of_loss_is_shown(study):
    """The most frequent kind first; of the gallery if it has one, or the first of the split."""
    then, now = said_in(0, 1, "one"), said_in(0, len(TASKS), "one")
    for row in (1, len(TASKS)):
        said_N = said_in(0, row, "one")
        answers = {
            "id": IDS, "prompt": [f"Question {id}?" for id in IDS],
            "prediction": [f"{word} of {row}" for word in said_N], "references": [["r"]] * N,
        }  # fmt: skip
        cell = study.experiments[0].rows[row].cells["one"]
        pq.write_table(pa.table(answers), cell.parent / "predictions.parquet")
    lost = {k: [n for n in range(N) if then[n] == "right" and now[n] == k] for k in SAID[1:]}
    lost = dict(sorted(lost.items(), key=lambda item: -len(item[1])))
    pictured = lost["other"][-1]
    assert pictured != lost["other"][0]
    gallery = {
        "id": [IDS[pictured]], "image": [b"png"], "question": ["Asked?"], "references": [["r"]]
    }  # fmt: skip
    pq.write_table(pa.table(gallery), study.results_root / "gallery.parquet")
    view = replace(study.tasks[0], gallery=study.results_root / "gallery.parquet")
    results = read_results(replace(study, tasks=(view, *study.tasks[1:])))
    shown = lost_examples(results, results.sequential[0], "one")
    assert [e.kind for e in shown] == [kind for kind, examples in lost.items() if examples]
    for e in shown:
        assert (e.then, e.then_right, e.now) == ("right of 1", True, f"{e.kind} of {len(TASKS)}")
        asked = "Asked?" if e.kind == "other" else f"Question {IDS[lost[e.kind][0]]}?"
        assert (e.question, e.image) == (asked, b"png" if e.kind == "other" else None)
        assert not e.now_right
