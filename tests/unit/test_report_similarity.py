"""Similarity in the report: what a stage lost of each earlier task, and the correlation with it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from palimpsest.files import read_json
from palimpsest.methods.similarity import MODALITIES
from palimpsest.report import ExperimentView, RowView, build
from palimpsest.report.figures import comparison, curves, examples, heatmap, radar
from palimpsest.report.figures import losses as lost
from palimpsest.report.figures.similarity import draw
from palimpsest.report.matrix import Cell, Matrix
from palimpsest.report.results import read_results
from palimpsest.report.sections.similarity import (
    correlation,
    frames_of,
    losses,
    paper_tables,
    pearson,
    relations,
)
from palimpsest.report.statistics.bootstrap import RESAMPLES, resample_indices
from report_fixture import NAMES, write_study

TASKS = ("a", "b", "c")
# Row 0 the base, then a, b and c are learnt; what is NaN was not evaluated.
A = np.array([[10.0, 0, 0], [90, 5, 0], [60, 80, 0], [70, 50, 75]])


def matrix_of(a_RT, order=TASKS, known=(), where=""):
    """Return the matrix of an experiment that learnt tasks in an order, `known` ones aside."""
    learnt = [known, *((task,) for task in order)]
    lineages = ["base", *("/".join(order[: t + 1]) for t in range(len(order)))]
    rows = tuple(
        RowView(lineage, lineage.split("/")[-1], step, {})
        for lineage, step in zip(lineages, learnt, strict=True)
    )
    view = ExperimentView("lora", "LoRA", "sequential", "tiny", "lora", "first", 0, rows)
    cells = {
        (t, task): Cell(Path(where, lineages[t], task), "m", "1", value, 0.0, np.zeros(1))
        for t, row in enumerate(a_RT)
        for task, value in zip(TASKS, row, strict=True)
        if np.isfinite(value)
    }
    own = {task: t for t, step in enumerate(learnt) for task in step}
    own_T = np.array([own.get(task, -1) for task in TASKS])
    return Matrix(view, TASKS, cells, own_T, known_T=np.ones(len(TASKS), bool))


def mean_losses(*matrices):
    return {pair: np.mean(list(lost.values())) for pair, lost in losses(matrices).items()}


def test_what_a_stage_lost_by_hand():
    assert mean_losses(matrix_of(A)) == {("a", "b"): 30, ("a", "c"): -10, ("b", "c"): 30}


def test_what_was_not_evaluated_is_no_pair():
    after_own = np.where(np.tri(4, 3, -1, dtype=bool), A, np.nan)  # `cells: learnt`
    assert mean_losses(matrix_of(after_own)) == {("a", "b"): 30, ("a", "c"): -10, ("b", "c"): 30}
    after_own[2, 0] = np.nan
    assert mean_losses(matrix_of(after_own)) == {("b", "c"): 30}


def test_what_the_base_knows_can_be_forgotten_from_the_first_stage_on():
    known = matrix_of(A[:3], order=("b", "c"), known=("a",))
    assert mean_losses(known) == {("a", "b"): -80, ("a", "c"): 30, ("b", "c"): -75}


def test_orders_and_seeds_are_averaged_and_a_shared_stage_counts_once():
    seeds = matrix_of(A, where="seed-0"), matrix_of(A + np.eye(4, 3, -1) * 8, where="seed-1")
    assert mean_losses(*seeds)["a", "b"] == 34
    same = matrix_of(A), matrix_of(A, order=("a", "c", "b"))
    assert [len(losses(same)[pair]) for pair in (("a", "b"), ("a", "c"), ("c", "b"))] == [2, 2, 1]
    shared = matrix_of(A), matrix_of(A)
    assert {len(lost) for lost in losses(shared).values()} == {1}


def test_a_correlation_and_its_interval_against_a_loop():
    rng = np.random.default_rng(0)
    x_P = rng.random(12)
    y_P = 30 * x_P + 10 * rng.random(12)
    found = correlation(x_P, y_P)
    assert found.value == pytest.approx(np.corrcoef(x_P, y_P)[0, 1])
    drawn = np.concatenate(list(resample_indices(12, "similarity")))
    each = [np.corrcoef(x_P[index], y_P[index])[0, 1] for index in drawn]
    assert len(each) == RESAMPLES
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(each, [0.025, 0.975])))
    assert found.low < found.value < found.high


def test_a_correlation_that_is_not_defined_is_not_told():
    assert correlation(np.array([0.1, 0.2]), np.array([1.0, 2.0])) is None
    assert correlation(np.array([0.1, 0.1, 0.1]), np.array([1.0, 2.0, 3.0])) is None
    assert correlation(np.array([0.1, 0.2, 0.3]), np.zeros(3)) is None
    assert np.isnan(pearson(np.array([[0.1, 0.1]]), np.array([[1.0, 2.0]]))).all()
    some = correlation(np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 4.0]))
    assert np.isfinite([some.value, some.low, some.high]).all()  # resamples of one pair stay out


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    """Two methods, of which one learnt in two orders, and how alike the eight tasks are."""
    root = tmp_path_factory.mktemp("report")
    view = write_study(root, n=30, methods=("lora", "replay"))
    lora, replay = view.experiments[-2:]
    upper = np.triu(np.random.default_rng(0).random((8, 8)), k=1)
    overall = upper + upper.T + np.eye(8)
    alike = {"overall": overall, **dict.fromkeys(MODALITIES, overall**0.3)}
    experiments = (lora, replace(lora, order="again"), replay)
    return replace(view, experiments=experiments, similarities={"demo-llava": alike})


@pytest.fixture(scope="module")
def results(view):
    return read_results(view)


def test_tables_hold_every_pair_once(view, results):
    frames = frames_of(results)
    alike, lost = frames["similarity"], frames["similarity_forgetting"]
    overall_TT = view.similarities["demo-llava"]["overall"]
    assert len(alike) == 4 * 8 * 7 / 2
    row = alike[(alike.modality == "overall") & (alike.task_i == NAMES[1])]
    assert row[row.task_j == NAMES[5]]["value"].item() == overall_TT[1, 5]
    assert len(lost) == 2 * 8 * 7 / 2
    assert set(lost["stages"]) == {1}  # the two orders have the same stages
    pair = lost[(lost.method == "lora") & (lost.old == NAMES[0]) & (lost.new == NAMES[2])]
    scores = [
        read_json(view.experiments[0].rows[t].cells[NAMES[0]] / "scores.json")["value"]
        for t in (2, 3)
    ]
    assert pair["forgetting"].item() == pytest.approx(scores[0] - scores[1])
    assert pair["similarity"].item() == overall_TT[0, 2]


def test_each_method_has_its_correlation(results):
    name, _, header, rows = paper_tables(results)[0]
    found = {one.title: one for one in relations(results)}
    assert (name, header) == ("similarity", ["", "pairs", "r"])
    assert [row[:2] for row in rows] == [["Sequential LoRA", "28"], ["Replay 30 %", "28"]]
    for title, _, told in rows:
        r = found[title].correlation
        assert told == f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]".replace("-", "−")


def test_the_page_shows_it(view, tmp_path, monkeypatch):
    for other in (comparison, curves, examples, heatmap, lost, radar):
        monkeypatch.setattr(other, "draw", lambda *_: [])
    one = replace(view, experiments=view.experiments[:1])
    build([one], tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()
    for name in ("similarity-demo-llava", "scatter-demo-llava"):
        assert (tmp_path / f"out/figures/{name}.png").is_file()
        assert f'id="caption-{name}"' in text
    assert paper_tables(read_results(one))[0][3][0][2] in text
    for name in ("similarity", "similarity_forgetting"):
        assert f'href="{name}.csv"' in text
        assert len(pd.read_csv(tmp_path / f"out/{name}.csv")) >= 28


def test_a_study_that_asks_for_no_similarity_has_none(view, results):
    results = replace(results, view=replace(view, similarities={}))
    assert (frames_of(results), paper_tables(results), draw(results)) == ({}, [], [])
