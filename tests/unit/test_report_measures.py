"""A report by several measures, and beside published results: pages, links, what is not mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from palimpsest.report import MEASURES, PublishedRef, build, judged, terminal_table
from palimpsest.report.page.examples import shown_examples
from palimpsest.report.paper.tables import (
    latex,
    matrix_frame,
    matrix_table,
    measure_tables,
    summary_frame,
)
from palimpsest.report.results import read_results
from palimpsest.report.sections.beside import (
    beside_matrix,
    beside_table,
    comparisons,
    frames_of,
    reasons,
    remarks,
)
from palimpsest.report.statistics.bootstrap import resampled_means
from report_fixture import (
    NAMES,
    build_without_figures,
    by_measure,
    judge,
    write_scores,
    write_study,
)

SHORT = [name.removeprefix("demo-") for name in NAMES]


def write_published(path: Path, order: list[str] = SHORT, **changes) -> Path:
    """Write a file in which matrix M starts at 90 and loses 10 points with every later task."""
    after = {
        row: {task: 90 - 10 * (k - i) for i, task in enumerate(order) if i <= k}
        for k, row in enumerate(order)
    }
    after["base"] = {order[0]: 3}
    after[order[-1]][order[0]] = {"value": 21.37, "certainty": "recalled"}
    after[order[2]][order[2]] = {"value": 90, "examples": 13290}
    after[order[1]][order[1]] = {"value": 80.25, "certainty": "quoted"}
    matrix = {
        "model": "Their model", "method": "LoRA", "instructions": "Original",
        "measure": "rule-based", "order": "first", "source": "results/<task>/<stage>.txt",
        "certainty": "recovered", "identified": "deduced", "notes": ["One stage was run twice."],
        "examples": {order[0]: 4000}, "after": after, "multitask": {order[0]: 77},
        "given": {"bwt_coin": {"value": -34.5, "certainty": "recalled"}},
    } | changes  # fmt: skip
    content = {
        "title": "Theirs 2024", "repository": "example.org/theirs",
        "certainty": {"recovered": "their file", "recalled": "from memory", "quoted": "by a user"},
        "identified": {"deduced": "from its name"},
        "measures": {"rule-based": "their scorers", "judge": "their judge"},
        "incomparable": {
            "always": ["Other test examples."], "rule-based": ["Other scorers."],
            "judge": ["Another judge."],
        },
        "tasks": {task: f"*-{task}" for task in order}, "orders": {"first": order},
        "matrices": {"M": matrix},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def beside(view, ref: PublishedRef, *names: str):
    """Return the view with experiments of these names laid beside a published matrix."""
    experiments = [replace(e, published=(ref,)) if e.name in names else e for e in view.experiments]
    return replace(view, experiments=tuple(experiments))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study, its published counterpart, and the view of its cells by a judge."""
    root = tmp_path_factory.mktemp("measures")
    view = write_study(root / "results", n=30, methods=("lora",))
    ref = PublishedRef(write_published(root / "theirs.yaml"), "M")
    return beside(view, ref, "lora", "joint", "zero-shot"), judge(view)


@pytest.fixture(scope="module")
def report(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report"
    build(study, out)
    return out


# ---------------------------------------------------------------------------------- measures


def test_each_measure_has_its_page_and_its_numbers(study, report):
    for directory, name in ((report, "metric"), (report / "clerk", "clerk")):
        frame = pd.read_csv(directory / "matrix.csv", keep_default_na=False)
        assert set(frame["metric"]) == (
            {"clerk"} if name == "clerk" else {"exact_match", "box_iou"}
        )
        cell = study[0].experiments[-1].rows[-1].cells["demo-digits"].parent / name
        value = json.loads((cell / "scores.json").read_text())["value"]
        row = frame[(frame.method == "lora") & (frame.stage == "demo-card")].set_index("task")
        assert row.loc["demo-digits", "value"] == pytest.approx(value, abs=1e-4)
        assert (directory / "figures/comparison.svg").is_file()
    assert terminal_table(report) != terminal_table(report / "clerk")


def test_pages_name_their_measure_and_lead_to_each_other(report):
    front, other = (path / "index.html" for path in (report, report / "clerk"))
    assert '<a href="clerk/index.html">The clerk</a>' in front.read_text()
    assert '<a href="../index.html">Corrected metrics</a>' in other.read_text()
    assert "<strong>The clerk.</strong> A language model judges" in other.read_text()


def test_the_front_page_has_a_column_a_measure(study, report):
    measured = [read_results(view) for view in study]
    [(_, caption, header, rows)] = measure_tables(measured)
    assert header == ["", "Corrected metrics", "The clerk"]
    assert [row[0] for row in rows] == [
        "Sequential LoRA: Average accuracy (%)", "Sequential LoRA: Mean average accuracy (%)",
        "Sequential LoRA: BWT (CoIN) (points)",
    ]  # fmt: skip
    for column, results in enumerate(measured, 1):
        estimates = results.sequential[0].estimates
        assert rows[2][column].startswith(f"{estimates['bwt_coin'].value:.1f}".replace("-", "−"))
    assert "neither averaged" in caption
    text = (report / "index.html").read_text()
    assert text.index(rows[0][0]) < text.index('id="matrices"')
    assert rows[0][0] not in (report / "clerk/index.html").read_text()
    frame = pd.read_csv(report / "measures.csv")
    assert set(frame["measure"]) == {"metric", "clerk"}


def test_chance_is_of_one_measure_and_not_shown_by_another(study, report):
    text = (report / "clerk/index.html").read_text()
    assert "Chance is not known by this measure." in text
    assert ">34.0<" not in text
    assert ">34.0<" in (report / "index.html").read_text()
    assert "nan" not in terminal_table(report / "clerk")
    group = read_results(study[1]).sequential[0]
    assert matrix_table(read_results(study[1]), group)[3][-1][0] == "Card"


def test_the_costs_stand_on_the_front_page_alone(report):
    assert (report / "costs.csv").is_file()
    assert not list((report / "clerk").rglob("cost*"))
    assert "What it cost" not in (report / "clerk/index.html").read_text()


def test_one_measure_needs_no_table_of_measures(study, tmp_path):
    build_without_figures(
        [replace(study[1], experiments=study[1].experiments[:1])], tmp_path / "out"
    )
    assert not (tmp_path / "out/measures.csv").exists()
    assert "by another measure" not in (tmp_path / "out/index.html").read_text()


@pytest.mark.parametrize("name", ["metric", "figures"])
def test_measures_that_would_share_a_directory_are_refused(study, tmp_path, name):
    with pytest.raises(ValueError, match=f"measures metric, {name}: each names a directory"):
        build([study[0], replace(study[0], measure=judged(name, "x"))], tmp_path / "out")


# ------------------------------------------------------------------- replies that are no number


def test_a_reply_that_is_no_number_stays_out_and_is_counted(study):
    results = read_results(study[1])
    cell = study[1].experiments[-1].rows[-1].cells["demo-digits"]
    score = pq.read_table(cell / "outcomes.parquet")["score"].to_numpy()
    assert np.isnan(score).sum() == 3
    lora = results.sequential[0]
    assert lora.end("demo-digits") == pytest.approx(100 * np.nanmean(score))
    assert results.unparsable["demo-digits"] == (3 * 12, 30 * 12)  # base, 8, joint, two direct
    assert results.notes[-1].startswith("Replies of the judge without a score, which stay out")
    assert "Digits 36 of 360" in results.notes[-1]
    frame = matrix_frame(results)
    assert set(frame["unparsable"]) == {3}
    assert set(frame["n"]) == {30}
    assert set(matrix_frame(read_results(study[0]))["unparsable"]) == {0}


def test_resampled_means_leave_nan_out_of_their_own_row_alone():
    score_KN = np.random.default_rng(0).random((3, 25))
    whole = resampled_means(score_KN, "task", 40)
    score_KN[1, ::3] = np.nan
    score_KN[2] = np.nan
    found = resampled_means(score_KN, "task", 40)
    assert np.array_equal(found[:, 0], whole[:, 0])
    assert np.isnan(found[:, 2]).all()
    parsed = np.flatnonzero(np.isfinite(score_KN[1]))
    assert found[:, 1].min() >= score_KN[1, parsed].min()
    assert not np.allclose(found[:, 1], whole[:, 1])
    from palimpsest.report.statistics.bootstrap import resample_indices

    index_BN = np.concatenate(list(resample_indices(25, "task", 40)))
    brute = [np.nanmean(score_KN[1, index]) for index in index_BN]
    assert found[:, 1] == pytest.approx(np.array(brute))


def test_a_judge_that_only_answers_nonsense_is_reported_as_such(tmp_path):
    view = write_study(tmp_path / "results", n=8, methods=("lora",))
    view = replace(view, experiments=view.experiments[-1:])
    build_without_figures([view, judge(view, "mute", every=1)], tmp_path / "out")
    frame = pd.read_csv(tmp_path / "out/mute/matrix.csv")
    assert frame["value"].isna().all()
    assert (frame["unparsable"] == 8).all()
    assert summary_frame(read_results(by_measure(view, judged("mute", "Mute")))).empty
    assert "8 of" not in terminal_table(tmp_path / "out")
    assert "Card 72 of 72" in terminal_table(tmp_path / "out/mute")


def test_replies_that_are_not_counted_are_refused(study, tmp_path):
    view = judge(write_study(tmp_path, n=30, methods=("lora",)))
    path = view.experiments[-1].rows[-1].cells["demo-digits"] / "scores.json"
    scores = json.loads(path.read_text())
    del scores["unparsable"]
    path.write_text(json.dumps(scores))
    with pytest.raises(ValueError, match=r"counts 0 examples as left out.*3 without"):
        read_results(view)


def test_an_example_without_a_score_is_not_shown(study):
    results = read_results(study[1])
    shown = shown_examples(results, results.sequential[0], NAMES[0])
    assert len(shown) == 12 - 2  # of the gallery's ids, the first and the eleventh
    assert not np.isnan([example.rank for example in shown]).any()


def test_models_may_have_their_own_scorer_of_a_task(tmp_path):
    """CoIN's released code scores the boxes of one model otherwise than those of another."""
    view = write_study(tmp_path, n=30, methods=("lora",))
    lora = view.experiments[-1]
    other = by_measure(replace(view, experiments=(lora,)), judged("other", "x")).experiments[0]
    for row in other.rows:
        for task, cell in row.cells.items():
            table = pq.read_table(cell.parent / "metric/outcomes.parquet").to_pydict()
            columns = table["id"], np.array(table["score"]), np.array(table["right_kind"])
            write_scores(cell, "box_of_b" if task == "demo-grounding" else "exact_match", *columns)
    both = replace(view, experiments=(lora, replace(other, model="b")))
    metrics = read_results(both).metrics
    assert metrics["demo-grounding"] == ("box_iou, box_of_b", "1, 1", 30)
    assert metrics["demo-card"] == ("exact_match", "1", 30)
    with pytest.raises(ValueError, match="never mixes"):
        read_results(replace(view, experiments=(lora, replace(other, name="twin"))))


# --------------------------------------------------------------------- beside published results


def test_our_cells_stand_beside_theirs(study):
    results = read_results(study[0])
    lora = next(one for one in comparisons(results) if one.group.sequential)
    caption, header, rows = beside_table(results, lora)[1:]
    assert header[3:6] == ["own: ours", "own: theirs", "own: difference"]
    assert header[6:] == ["last: ours", "last: theirs", "last: difference"]
    assert "last: after Card." in caption
    table = {row[0]: row[1:] for row in rows}
    own, end = lora.group.own(NAMES[0]), lora.group.end(NAMES[0])
    assert table["Choice"][:2] == ["30", "4,000"]
    assert table["Reading"][1] == "not known"
    assert table["Choice"][2:] == [
        f"{own:.1f}", "90.00", f"+{own - 90:.1f}" if own >= 90 else f"−{90 - own:.1f}",
        f"{end:.1f}", "21.37 †", f"{end - 21.37:+.1f}".replace("-", "−"),
    ]  # fmt: skip
    assert table["Reading"][3] == "80.25 ‡"
    assert table["Digits"][3] == "90.00 (n 13,290)"


def test_aggregates_are_as_sure_as_their_cells(study):
    results = read_results(study[0])
    lora = next(one for one in comparisons(results) if one.group.sequential)
    rows = {row[0]: row for row in beside_table(results, lora)[3]}
    learning = (90 * 7 + 80.25) / 8
    assert rows["Learning accuracy"][-2] == f"{learning:.2f} ‡"
    assert rows["BWT (CoIN), recalled"][-2] == "−34.50 †"
    ours = lora.group.estimates["bwt_coin"].value
    assert rows["BWT (CoIN), recalled"][-3] == f"−{-ours:.1f}"


def test_what_is_not_verified_is_called_so_wherever_it_stands(study, report):
    results = read_results(study[0])
    for one in comparisons(results):
        for table in (beside_table(results, one), *beside_matrix(results, one)):
            text = " ".join(cell for row in table[3] for cell in row)
            assert ("†" in text) == ("† recalled (from memory)" in table[1])
            assert ("‡" in text) == ("‡ quoted (by a user)" in table[1])
            assert (r"\dag{}" in latex(table)) == ("†" in text)
    page = (report / "index.html").read_text()
    assert '<em class="unsure">21.37 †</em>' in page
    assert page.count("21.37") == page.count('<em class="unsure">21.37')
    assert "<td>90.00</td>" in page
    assert "Theirs: recovered (their file); † recalled (from memory)" in page
    frame = pd.read_csv(report / "published.csv", keep_default_na=False)
    certainty = frame[frame.theirs == "21.3700"]["certainty"]
    assert set(certainty) == {"recalled"}
    assert (report / "tables/published-lora-m.tex").is_file()
    assert (report / "tables/published-matrix-lora-m.md").is_file()


def test_the_page_says_what_keeps_the_two_apart(study, report):
    results = read_results(study[0])
    found = comparisons(results)
    said = reasons(results, found[0].published, found)
    assert said[0].startswith("Measure: ours is “Corrected metrics”.")
    assert said[0].endswith("Theirs: their scorers.")
    assert said[1:] == ["Other test examples.", "Other scorers."]
    page = (report / "index.html").read_text()
    for sentence in said[1:]:
        assert page.count(f"<li>{sentence}</li>") == 1
    assert remarks(found[0]) == [
        "Which run it is was deduced: from its name.", "One stage was run twice.",
    ]  # fmt: skip
    assert page.count(" ".join(remarks(found[0]))) == 3
    assert "example.org/theirs: results/&lt;task&gt;/&lt;stage&gt;.txt" in page
    assert 'id="published"' not in (report / "clerk/index.html").read_text()


def test_references_stand_beside_zero_shot_and_multitask(study):
    found = {one.group.view.name: one for one in comparisons(read_results(study[0]))}
    assert found["zero-shot"].rows == ((0, "base"),)
    assert found["joint"].rows == ((0, "multitask"),)
    results = read_results(study[0])
    header, rows = beside_table(results, found["joint"])[2:]
    assert header == ["", "n", "their n", "ours", "theirs", "difference"]
    assert rows[0][4] == "77.00"
    assert rows[1][4:] == ["–", "–"]
    assert beside_matrix(results, found["zero-shot"]) == []


def test_a_shorter_or_longer_sequence_is_compared_as_far_as_it_is_the_same(study, tmp_path):
    ref = PublishedRef(write_published(tmp_path / "five.yaml", SHORT[:5]), "M")
    results = read_results(beside(study[0], ref, "lora"))
    [lora] = [one for one in comparisons(results) if one.group.sequential]
    assert [row for _, row in lora.rows] == ["base", *SHORT[:5]]
    assert list(lora.columns) == NAMES[:5]
    caption, _, rows = beside_table(results, lora)[1:]
    assert "last: after Answerable." in caption
    assert [row[0] for row in rows] == ["Choice", "Reading", "Digits", "Relations", "Answerable"]
    assert rows[0][6] == f"{lora.group.value_RT[5, 0]:.1f}"


def test_numbers_agree_between_table_and_frame(study):
    results = read_results(study[0])
    found = comparisons(results)
    frame = frames_of(results, found)["published"]
    assert (frame["ours"] - frame["theirs"]).equals(frame["difference"])
    known = frame[frame["theirs"].notna()]
    assert len(known[known["method"] == "lora"]) == 8 * 9 / 2 + 1
    assert set(known["certainty"]) == {"recovered", "recalled", "quoted"}
    assert frames_of(results, []) == {}


@pytest.mark.parametrize(
    ("order", "matrix", "complaint"),
    [
        (SHORT, "N", "there is no matrix 'N'"),
        ([*SHORT[1:], SHORT[0]], "M", "no stage of the experiment learnt the same"),
        (["sums", "maps", "songs"], "M", "no stage of the experiment learnt the same"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(study, tmp_path, order, matrix, complaint):
    path = write_published(tmp_path / "other.yaml", order)
    view = beside(study[0], PublishedRef(path, matrix), "lora")
    with pytest.raises(ValueError, match=complaint) as error:
        comparisons(read_results(view))
    assert f"experiment 'lora' beside {path}" in str(error.value)


def test_the_measures_have_names_of_their_own():
    assert {name: measure.name for name, measure in MEASURES.items()} == {
        "metric": "metric", "as-published": "as-published", "fidelity": "fidelity",
    }  # fmt: skip
