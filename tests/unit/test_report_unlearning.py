"""The report of a study of unlearning: its numbers by brute force, and what the pages say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from palimpsest.report import MEASURES, ExperimentView, RowView, StudyView, TaskView, by_templates
from palimpsest.report.contents import contents
from palimpsest.report.figures import comparison, curves, unlearning
from palimpsest.report.page.render import render
from palimpsest.report.paper.tables import (
    held_out_tables,
    latex,
    matrix_table,
    task_table,
    with_interval,
)
from palimpsest.report.results import read_results
from palimpsest.report.sections import refusals
from palimpsest.report.sections.refusals import told
from palimpsest.report.statistics.bootstrap import resample_indices
from report_fixture import by_measure, write_scores

# Combinations of the examples of each task that is to be refused; the second lacks UH and UU.
ASKED = {
    "kettles": ["HH"] * 5 + ["HU"] * 4 + ["UH"] * 3 + ["UU"] * 3,
    "umbrellas": ["HH"] * 3 + ["HU"] * 5,
}
HELD_OUT = {"mmbench": 9, "seed-bench": 6}  # and how many questions they have
ROWS = ("base", "kettles", "kettles/umbrellas")
METHODS = {"lora": "Sequential LoRA", "core": "CORE"}
CONTEXT = by_templates("context", "Nearest template", "corrected")


def cell(root: Path, method: str, seed: int, lineage: str, task: str) -> Path:
    owner = "base" if lineage == "base" else f"{method}/seed-{seed}/{lineage}"
    return root / owner / "cells" / task


def write_cell(root: Path, path: Path, task: str) -> None:
    """Write a cell by the metric, which leaves an answer out, by a judge, and by fidelity."""
    if path.exists():  # the base is of every method and seed
        return
    rng = np.random.default_rng([*path.relative_to(root).as_posix().encode()])
    of_N = ASKED.get(task)
    n = len(of_N or range(HELD_OUT[task]))
    ids, kind = [f"{task}-{k}" for k in range(n)], np.ones(n, bool)
    right_N = (rng.random(n) < 0.7).astype(float)
    right_N[1] = np.nan
    to_refuse = np.array([name == "HH" for name in of_N or [""] * n])
    fits_N = np.where(to_refuse, right_N * (rng.random(n) < 0.6), np.nan)
    kept_N = np.where(to_refuse, np.nan, rng.random(n))
    for measure, score_N in (("metric", right_N), ("context", fits_N), ("fidelity", kept_N)):
        write_scores(path / measure, measure, ids, score_N, kind, of_N)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> StudyView:
    """Two methods, two seeds, two tasks to be refused and two that are held out."""
    root = tmp_path_factory.mktemp("unlearning")
    asked = (*ASKED, *HELD_OUT)
    tasks = tuple(TaskView(t, t.title(), "x", "refusal", 1.0, None, t in HELD_OUT) for t in asked)

    def row(method, seed, lineage):
        cells = {task: cell(root, method, seed, lineage, task) / "metric" for task in asked}
        for task, path in cells.items():
            write_cell(root, path.parent, task)
        learnt = () if lineage == "base" else (lineage.split("/")[-1],)
        return RowView(lineage, lineage.split("/")[-1], learnt, cells)

    experiments = [
        ExperimentView(
            method, title, "sequential", "mini", method, "first", seed,
            tuple(row(method, seed, lineage) for lineage in ROWS),
        )
        for method, title in METHODS.items()
        for seed in (0, 1)
    ]  # fmt: skip
    zero = (row("", 0, "base"),)
    experiments.append(
        ExperimentView("zero-shot", "Zero-shot", "zero-shot", "mini", "base", "any", None, zero)
    )
    return StudyView("erase", "Erase", "erase", tasks, tuple(experiments), root, "0123")


@pytest.fixture(scope="module")
def measured(study):
    """The results by the metric, by the judge and by fidelity."""
    others = [by_measure(study, CONTEXT), by_measure(study, MEASURES["fidelity"])]
    return [read_results(view) for view in (study, *others)]


@pytest.fixture(scope="module")
def found(measured):
    return told(measured[0], measured)


class Brute:
    """The numbers of one experiment, example by example, for any draw of examples."""

    def __init__(self, study: StudyView, method: str, seed: int) -> None:
        self.scores = {
            (measure, row, task): pd.read_parquet(
                cell(study.results_root, method, seed, lineage, task) / measure / "outcomes.parquet"
            )["score"].to_numpy()
            for measure in ("metric", "context", "fidelity")
            for row, lineage in enumerate(ROWS)
            for task in (*ASKED, *HELD_OUT)
        }

    def __call__(self, name: str, stage: int, draw: dict[str, np.ndarray]) -> float:
        """Return a quantity after a stage (1 or 2), of the examples that were drawn."""
        seen = list(ASKED)[:stage]

        def asked(measure, task, *names):
            score_N = self.scores[measure, stage, task]
            drawn = [score_N[k] for k in draw[task] if ASKED[task][k] in names]
            return [score for score in drawn if not np.isnan(score)]

        match name:
            case "refusal_rate" | "context_aware_refusal_rate":
                measure = "metric" if name == "refusal_rate" else "context"
                return 100 * np.mean([s for task in seen for s in asked(measure, task, "HH")])
            case "delta_refusal_rate":
                rates = ("refusal_rate", "context_aware_refusal_rate")
                return np.subtract(*[self(rate, stage, draw) for rate in rates])
            case "answer_rate":
                each = [[asked("metric", t, c) for t in seen] for c in ("HU", "UH", "UU")]
                by_combination = [[np.mean(s) for s in of if s] for of in each]
                return 100 * np.mean([np.mean(rates) for rates in by_combination if rates])
            case "specificity":
                after, before = (
                    [np.nanmean(self.scores["metric", row, t][draw[t]]) for t in HELD_OUT]
                    for row in (stage, 0)
                )
                return 100 * np.mean(np.divide(after, before)) if all(before) else np.nan
            case "fidelity":
                each = [asked("fidelity", t, "HU", "UH", "UU") for t in seen]
                return 100 * np.mean([np.mean(s) for s in each if s])


@pytest.fixture(scope="module")
def brute(study) -> dict[tuple[str, int], Brute]:
    return {(method, seed): Brute(study, method, seed) for method in METHODS for seed in (0, 1)}


WHOLE = {task: np.arange(len(of_N)) for task, of_N in ASKED.items()}
WHOLE |= {task: np.arange(n) for task, n in HELD_OUT.items()}
NAMES = (
    "specificity", "answer_rate", "refusal_rate", "context_aware_refusal_rate",
    "delta_refusal_rate", "fidelity",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_a_loop_over_examples(brute, found, name):
    for one in found:
        seeds = [brute[one.group.view.name, seed] for seed in (0, 1)]
        by_stage = [[of(name, stage, WHOLE) for stage in (1, 2)] for of in seeds]
        np.testing.assert_allclose(one.steps[name][0], np.mean(by_stage, axis=0))
        assert one.estimates[f"{name}_last"].value == pytest.approx(np.mean(by_stage, axis=0)[1])
        assert one.estimates[f"{name}_avg"].value == one.estimates[f"{name}_last"].value
        for estimates, (_, last) in zip(one.by_seed, by_stage, strict=True):
            assert estimates[f"{name}_last"].value == pytest.approx(last)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a draw may have no example of a kind
@pytest.mark.parametrize("name", NAMES)
def test_intervals_are_of_the_reports_own_draws(brute, found, name):
    index = {task: np.concatenate([*resample_indices(len(k), task)]) for task, k in WHOLE.items()}
    draws = [{task: of_B[b] for task, of_B in index.items()} for b in range(2000)]
    low, high = np.nanquantile([brute["core", 1](name, 2, draw) for draw in draws], [0.025, 0.975])
    e = found[1].by_seed[1][f"{name}_last"]
    assert (e.low, e.high) == pytest.approx((low, high))


def test_what_is_not_measured_is_not_told(study, measured):
    """Without its judge no CRR, and one that goes with the other rule is none of its own."""
    other = by_measure(study, by_templates("context", "Nearest template", "as-published"))
    for others in ([], [read_results(other)]):
        (one, _) = told(measured[0], [measured[0], *others])
        assert set(one.steps) == {"specificity", "answer_rate", "refusal_rate"}
    assert told(measured[1], measured) == []
    assert told(measured[2], measured) == []


def test_tables_have_every_number_and_what_it_is_compared_with(measured, found):
    table, differences = refusals.paper_tables(found)
    assert table[2] == ["", *METHODS.values()]
    titles = [
        f"{t} {w}" for t in ("S", "AR", "RR", "CRR", "ΔRR", "Fidelity") for w in ("Avg", "Last")
    ]
    assert [row[0][:-2] for row in table[3]] == titles
    assert table[3][9] == ["ΔRR Last ↓", *[with_interval(e["delta_refusal_rate_last"]) for e in (
        one.estimates for one in found)]]  # fmt: skip
    assert differences[2] == ["", "CORE minus Sequential LoRA"]
    assert r"$\Delta$RR Last" in latex(table)
    frames = refusals.frames_of(measured[0], found)
    row = frames["unlearning"].set_index(["method", "seed", "metric"]).loc
    lora, core = (row[method, "all", "answer_rate_last"].value for method in METHODS)
    minus = row["core", "all", "answer_rate_last_minus_lora"]
    assert minus.value == pytest.approx(core - lora)
    assert minus.low < minus.value < minus.high
    assert row["core", "1", "specificity_avg"].value == pytest.approx(
        found[1].by_seed[1]["specificity_avg"].value
    )
    steps = frames["unlearning_steps"].query("method == 'core' and metric == 'refusal_rate'")
    np.testing.assert_allclose(steps["value"], found[1].steps["refusal_rate"][0])
    assert [*steps["lineage"]] == [*ROWS[1:]]


def test_the_page_says_what_is_inferred_and_what_is_left_out(measured, found):
    pages = [render(contents(measured, k), [], []) for k in range(len(measured))]
    assert [page.count('id="unlearning"') for page in pages] == [1, 0, 0]
    assert "Inferred: which combinations belong to it" in pages[0]
    assert "answers most: " in pages[0]
    said = ("Answers that the metric leaves out", "All but what is to be refused (HH), left out on",
            "Questions that are to be refused (HH), left out on purpose")  # fmt: skip
    assert all(f"{text}" in page for text, page in zip(said, pages, strict=True))
    assert "judge without a score" not in "".join(pages)


def test_figures_show_every_method_at_the_width_of_a_column(found):
    by_stage, plane = unlearning.draw(found)
    assert [p.name for p in (by_stage, plane)] == ["unlearning-steps", "unlearning-plane"]
    assert {p.figure.get_figwidth() for p in (by_stage, plane)} == {3.3}
    titles = [axis.get_title(loc="left") for axis in by_stage.figure.axes]
    assert [title.split(":")[0] for title in titles] == ["RR", "CRR", "AR", "S"]
    drawn = [axis.lines[1].get_ydata() for axis in by_stage.figure.axes]
    np.testing.assert_allclose(drawn[2], found[1].steps["answer_rate"][0])
    place = [line.get_xydata() for line in plane.figure.axes[0].lines if line.get_marker() == "s"]
    ends = ("answer_rate_last", "context_aware_refusal_rate_last")
    np.testing.assert_allclose(place, [[[found[1].estimates[name].value for name in ends]]])


def test_no_average_has_what_is_held_out(measured):
    results = measured[0]
    group, zero = results.groups[0], results.references[0]
    assert group.tasks == (*ASKED, *HELD_OUT)
    assert zero.estimates["average_accuracy"].value == pytest.approx(zero.value_RT[0, :2].mean())
    last = group.estimates["average_accuracy"].value
    assert last == pytest.approx(group.value_RT[-1, :2].mean())
    (note,) = [note for note in results.notes if note.startswith("Held out")]
    assert note.startswith("Held out: Mmbench, Seed-Bench.")
    assert matrix_table(results, group)[2][-1] == "Seed-Bench (held out)"
    assert [row[0] for row in task_table(results)[3]] == ["Kettles", "Umbrellas", "Mean"]
    ((_, _, header, (row, _)),) = held_out_tables(results)
    value, low, high = (of[:, 2] for of in (group.value_RT, group.low_RT, group.high_RT))
    assert header[4:] == ["Sequential LoRA", "CORE", "Zero-shot"]
    expected = f"{value[0]:.1f} → {value[1]:.1f} → {value[2]:.1f} [{low[2]:.1f}, {high[2]:.1f}]"
    assert (row[4], row[6]) == (expected, f"{value[0]:.1f}")


def test_legends_tell_methods_apart_and_titles_models(study, measured):
    """A model stands in a legend only beside another; nothing of a name is cut."""
    titles = {"lora": "Sequential tuning of the projection alone", "core": "CORE"}
    models = ("miniature-minigpt-4", "instructblip-vicuna-7b-pretrained")
    experiments = tuple(
        replace(e, model=model, title=titles[e.name])
        for model in models
        for e in study.experiments
        if e.name in titles and e.seed == 0
    )
    results = read_results(replace(study, experiments=experiments))
    found = told(results, [results])
    drawn = [*unlearning.draw(found), *curves.draw(results)]
    each = [model for model in models for _ in range(2)]  # two figures of unlearning, two widths
    for picture, model in zip(drawn, each * 2, strict=True):
        (legend,) = picture.figure.legends
        labels = [text.get_text() for text in legend.get_texts()]
        assert labels[:2] == [*titles.values()]
        assert picture.title.endswith(f": {model}, first")
    labels = [
        text.get_text() for text in comparison.draw(results)[0].figure.axes[0].get_yticklabels()
    ]
    named = [f"{title} ({model})" for model in models for title in titles.values()]
    assert [label.replace("\n", " ") for label in labels[:4]] == named


def test_curves_of_many_methods_are_several_figures(study):
    many = [replace(e, name=f"m{k}", method=f"m{k}", title=f"Method {k}")
            for k in range(6) for e in study.experiments[:1]]  # fmt: skip
    drawn = curves.draw(read_results(replace(study, experiments=tuple(many))))
    names = [picture.name for picture in drawn]
    assert names == ["curves-1", "curves-1-column", "curves-2", "curves-2-column"]
