"""A whole report of a synthetic study: its files, its page, and the cells that it refuses."""

import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latex import complaints
from palimpsest.report import build, terminal_table
from palimpsest.report.paper.tables import latex, matrix_frame, summary_frame
from palimpsest.report.results import read_results
from palimpsest.report.spec import StudyView
from report_fixture import NAMES, TASKS, write_cell, write_study

SIDE = re.compile(r">\{[^}]*\}p\{\w+\}")  # of a column whose cells are broken into lines


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    view = write_study(root / "results", n=60, methods=("lora", "replay"))
    build([view], root / "out")
    return view, root / "out"


@pytest.fixture
def study(tmp_path) -> StudyView:
    """Return a small study whose cells a test may spoil."""
    return write_study(tmp_path, n=30, methods=("lora",))


def last_row(view: StudyView):
    return view.experiments[-1].rows[-1]


def test_the_matrix_holds_every_cell_once(report):
    view, out = report
    frame = pd.read_csv(out / "matrix.csv", keep_default_na=False)
    assert list(frame.columns) == [
        "benchmark", "model", "method", "order", "seed", "lineage", "stage", "task", "metric",
        "version", "value", "low", "high", "n", "unparsable", "cell",
    ]  # fmt: skip
    assert len(frame) == sum(len(row.cells) for e in view.experiments for row in e.rows)
    assert not frame.duplicated(["method", "seed", "lineage", "task"]).any()
    scores = json.loads((last_row(view).cells["demo-reading"] / "scores.json").read_text())
    row = frame[
        (frame.method == "replay") & (frame.stage == "demo-card") & (frame.task == "demo-reading")
    ]
    assert row["value"].item() == pytest.approx(scores["value"], abs=1e-4)
    assert row["low"].item() < row["value"].item() < row["high"].item()
    kinds = pd.read_csv(out / "right_kind.csv")
    assert (kinds["low"] <= kinds["value"]).all()
    assert (kinds["value"] <= kinds["high"]).all()
    assert (kinds["low"] < kinds["high"]).any()
    parquet = pd.read_parquet(out / "matrix.parquet")
    assert parquet["value"].to_numpy() == pytest.approx(frame["value"].to_numpy(), abs=1e-4)


def test_the_summary_agrees_with_the_matrix(report):
    _, out = report
    matrix = pd.read_csv(out / "matrix.csv", keep_default_na=False)
    summary = pd.read_csv(out / "summary.csv", keep_default_na=False)
    assert list(summary.columns) == [
        "benchmark", "model", "method", "order", "seed", "metric", "value", "low", "high",
    ]  # fmt: skip
    lora = matrix[(matrix.method == "lora") & (matrix.lineage == "/".join(NAMES))]
    row = summary[(summary.method == "lora") & (summary.metric == "average_accuracy")]
    assert row["value"].item() == pytest.approx(lora["value"].mean(), abs=1e-3)
    assert (summary["low"] <= summary["value"]).all()
    assert (summary["value"] <= summary["high"]).all()
    blind = summary[summary.method == "blind"]
    assert list(blind["metric"]) == ["average_accuracy"]


def test_the_same_cells_give_the_same_bytes(report, tmp_path):
    view, out = report
    build([view], tmp_path / "again")
    names = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert names == sorted(
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
    )
    assert [n for n in names if digest(out / n) != digest(tmp_path / "again" / n)] == []
    assert b"\r" not in (out / "matrix.csv").read_bytes()


def test_the_matrix_does_not_depend_on_the_order_of_experiments(study):
    turned = replace(study, experiments=study.experiments[::-1])
    first, second = (matrix_frame(read_results(view)) for view in (study, turned))
    pd.testing.assert_frame_equal(first, second)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_figure_has_three_formats(report):
    _, out = report
    names = {p.stem for p in (out / "figures").iterdir()}
    assert {"comparison", "curves", "radar", "heatmap-lora", "losses-replay"} <= names
    assert "examples-lora" in names
    for name in names:
        for suffix, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
            assert (out / f"figures/{name}.{suffix}").read_bytes().startswith(magic)


class Page(HTMLParser):
    """Collects ids, references, and whether elements close in order."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data"):
                self.links.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone(report):
    _, out = report
    text = (out / "index.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?://|//cdn|@import", text)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith("data:"):
            assert (out / link).exists()
    for used in set(re.findall(r"url\(#([^)]+)\)", text)):
        assert used in page.ids


def test_the_page_names_tasks_chance_divisors_and_commit(report):
    view, out = report
    text = (out / "index.html").read_text()
    assert view.commit in text
    assert "T−1: only tasks learnt before the last stage" in text
    assert "box_iou" in text
    for task in view.tasks:
        assert task.title in text
        assert f"<td>{task.chance:.1f}</td>" in text


def test_the_page_tells_where_forgetting_comes_from(report):
    _, out = report
    text = (out / "index.html").read_text()
    section = text[text.index('<section id="losses">') : text.index('<section id="examples">')]
    assert re.search(
        r"Of these, 0\xa0% are right content in the wrong form, \d+\xa0% wrong", section
    )
    assert section.count("<svg") == 3  # of both methods together, and of each
    assert "What Sequential LoRA lost after the last stage" in section
    assert '<p class="kind">lost: wrong answer, another form</p>' in text
    assert '<a href="losses.csv">' in text
    frame = pd.read_csv(out / "losses.csv")
    assert set(frame["kind"]) == {"right", "form", "wrong", "other", "none"}


def test_what_comes_from_data_is_escaped(study, tmp_path):
    evil = replace(study, title="<script>alert(1)</script> & co_1 100%")
    build([replace(evil, experiments=evil.experiments[:1])], tmp_path / "out")
    text = (tmp_path / "out/index.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_a_model_may_answer_anything(study, tmp_path):
    """Dollars are no formulas, angle brackets no elements, control characters no SVG."""
    lora = study.experiments[-1]
    cell = lora.rows[-1].cells["demo-choice"]
    table = pq.read_table(cell.parent / "predictions.parquet")
    said = pa.array(["$\\frac{ costs $5 </text><b>\x00\x1b\ud7ff"] * len(table))
    pq.write_table(table.set_column(2, "prediction", said), cell.parent / "predictions.parquet")
    build([replace(study, experiments=(lora,))], tmp_path / "out")
    ElementTree.parse(tmp_path / "out/figures/examples-lora.svg")
    assert "costs $5 &lt;/text&gt;" in (tmp_path / "out/index.html").read_text()


def test_latex_is_balanced_and_escaped(report):
    _, out = report
    for path in (out / "tables").glob("*.tex"):
        text = path.read_text()
        for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}", r"\caption"):
            assert text.count(rule) == 1
        assert text.count(r"\begin{") == text.count(r"\end{") == 2
        columns = len(re.search(r"tabular}\{([lrp]+)\}", SIDE.sub("p", text)).group(1))
        body = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert body
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {columns - 1}
        assert not re.search(r"(?<!\\)[#_]", re.sub(r"\\(label|cite)\{.*?\}", "", text))
        assert len(re.findall(r"(?<!\\)%", text)) == text.count(r"\resizebox") == 1
        assert path.with_suffix(".md").is_file()


def test_latex_escapes_what_would_break_it():
    text = latex(("x", "50 % of a_b", ["", "A & B"], [["[1]", "−2"]]))
    assert r"50 \% of a\_b" in text
    assert r"A \& B" in text
    assert r"{[}1{]} & $-$2 \\" in text


def test_all_that_is_for_a_paper_compiles(report, tmp_path):
    view, out = report
    copy = shutil.copytree(out, tmp_path / "out")
    assert complaints(copy / "report.tex") == []
    named = re.findall(r"\\input\{tables/(.*)\}", (out / "report.tex").read_text())
    assert sorted(named) == sorted(path.stem for path in (out / "tables").glob("*.tex"))
    assert (out / "references.bib").read_text() == "\n\n".join(view.setting.works.values()) + "\n"


def test_the_methods_paragraph_has_the_exact_settings(report):
    _, out = report
    said, tex = ((out / name).read_text() for name in ("methods.md", "methods.tex"))
    assert "LoRA [@hu2022lora]: adapter lora (rank 16, alpha 32)." in said
    assert r"LoRA~\cite{hu2022lora}: adapter lora" in tex
    assert "adapter lora (rank 16, alpha 32); rehearsal reservoir (capacity 800, share 0.3)" in said
    assert "LoRA; Replay 30 %: batches of 32 examples, 1 epoch a stage, learning rate 0.002" in said
    assert "Choice (3,840 / 60), Reading (3,840 / 60)" in said
    assert "Pictures blanked (each task learnt by itself, by LoRA, on Demo, blind)" in said
    assert "exact_match 1 (Choice; Reading; Digits" in said
    assert "box_iou 1 (Grounding)" in said
    assert "2,000 resamples" in said
    assert (out / "index.html").read_text().count("CC BY 4.0 (UCI, through scikit-learn)") == 1


def test_the_terminal_table_tells_own_and_last(report):
    view, out = report
    text = terminal_table(out)
    lora = next(g for g in read_results(view).groups if g.view.name == "lora")
    line = next(line for line in text.splitlines() if line.startswith("Reading"))
    assert f"{lora.own('demo-reading'):.1f} →" in line
    assert f"{lora.end('demo-reading'):.1f}" in line
    assert "1.0" in line.split()[1]  # chance
    assert max(map(len, text.splitlines())) <= 120


def test_terminal_table_without_a_report_says_so(tmp_path):
    with pytest.raises(ValueError, match="build the report first"):
        terminal_table(tmp_path)


@pytest.mark.parametrize("name", ["scores.json", "outcomes.parquet"])
def test_a_missing_cell_is_named(study, name):
    cell = last_row(study).cells["demo-digits"]
    (cell / name).unlink()
    with pytest.raises(ValueError, match=re.escape(f"{cell}: {name} is missing")):
        read_results(study)


def test_cells_of_other_examples_are_refused(study):
    cell = last_row(study).cells["demo-digits"]
    table = pq.read_table(cell / "outcomes.parquet")
    ids = table["id"].to_pylist()
    spoilt = table.set_column(0, "id", pa.array([ids[1], ids[0], *ids[2:]]))
    pq.write_table(spoilt, cell / "outcomes.parquet")
    with pytest.raises(ValueError, match=re.escape(str(cell)) + ".*example ids differ"):
        read_results(study)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [("version", 2, "never mixes"), ("metric", "other", "never mixes"), ("value", 3.0, "mean of")],
)
def test_scores_that_do_not_fit_are_refused(study, key, value, complaint):
    path = last_row(study).cells["demo-digits"] / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=complaint):
        read_results(study)


def test_scores_above_100_are_said(study, tmp_path):
    cells = [row.cells["demo-digits"] for e in study.experiments for row in e.rows
             if "demo-digits" in row.cells]  # fmt: skip
    for cell in set(cells):
        table = pq.read_table(cell / "outcomes.parquet")
        score = np.full(len(table), 1.2)
        pq.write_table(table.set_column(1, "score", pa.array(score)), cell / "outcomes.parquet")
        path = cell / "scores.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"value": 120.0}))
    assert any("Digits can score above 100" in note for note in read_results(study).notes)


def test_seeds_are_reported_apart_and_together(tmp_path):
    view = write_study(tmp_path, n=30, seeds=(0, 1), methods=("lora", "replay"))
    results = read_results(view)
    frame = summary_frame(results)
    lora = frame[(frame.method == "lora") & (frame.metric == "bwt_coin")].set_index("seed")
    assert list(lora.index) == ["0", "1", "all"]
    assert lora.loc["all", "value"] == pytest.approx(lora.loc[["0", "1"], "value"].mean())
    assert len(results.sequential) == 2
    assert set(matrix_frame(results)["seed"]) == {"", "0", "1"}


def test_a_study_without_a_sequence_still_reports(tmp_path):
    view = write_study(tmp_path / "results", n=30, methods=())
    build([view], tmp_path / "out")
    assert (tmp_path / "out/index.html").is_file()
    assert "Joint training" in terminal_table(tmp_path / "out")


def test_a_failed_build_leaves_the_old_report(study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("old")
    (last_row(study).cells["demo-digits"] / "scores.json").unlink()
    with pytest.raises(ValueError, match=r"scores\.json"):
        build([study], out)
    assert (out / "index.html").read_text() == "old"


def test_a_cell_is_forgotten_only_where_it_was_known(tmp_path):
    """An example strip leads with what was right and is now wrong."""
    from palimpsest.report.page.examples import shown_examples

    view = write_study(tmp_path, n=30, methods=("lora",))
    lora = view.experiments[-1]
    own, end = lora.rows[1].cells[NAMES[0]], lora.rows[-1].cells[NAMES[0]]
    for cell, right in ((own, [0, 4]), (end, [0])):
        shutil.rmtree(cell.parent)
        write_cell(cell, NAMES[0], np.isin(np.arange(30), right), 0.0)
    results = read_results(view)
    first = shown_examples(results, results.groups[-1], NAMES[0])[0]
    assert (first.then_right, first.now_right) == (True, False)
    assert first.then == TASKS[0][9][4 % 3]


def test_what_a_report_cannot_show_is_refused_by_name(study):
    lora = study.experiments[-1]
    with pytest.raises(ValueError, match="'lora': protocol 'parallel' is not one of sequential"):
        replace(lora, protocol="parallel")
    with pytest.raises(ValueError, match="'lora': row 0 is 'demo-choice'"):
        replace(lora, rows=lora.rows[1:])
    with pytest.raises(ValueError, match="demo-card, which is no task of the study"):
        read_results(replace(study, tasks=study.tasks[:-1]))
    namesakes = (replace(lora, name="lo_ra"), replace(lora, name="lo-ra"))
    with pytest.raises(ValueError, match=r"2 groups would write to the same files \(lo-ra\)"):
        read_results(replace(study, experiments=namesakes))


def test_orders_of_one_method_are_told_apart(study):
    lora = study.experiments[-1]
    both = (lora, replace(lora, order="alphabet"))
    groups = read_results(replace(study, experiments=both)).groups
    assert [group.slug for group in groups] == ["lora-default", "lora-alphabet"]
    assert [group.title for group in groups][1] == "Sequential LoRA (alphabet)"
