"""Published results: what CoIN's authors measured, how sure each number is, and bad files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from palimpsest.report.sections.published import load_published

COIN = Path(__file__).parents[2] / "config/published/coin.yaml"
ORDER = ("scienceqa", "textvqa", "imagenet", "gqa", "vizwiz", "grounding", "vqav2", "ocrvqa")


@pytest.fixture(scope="module")
def coin():
    return load_published(COIN)


@pytest.mark.parametrize(
    ("matrix", "own", "last", "bwt", "recalled"),
    [
        ("R1", [82.45, 49.99, 96.05, 56.40, 55.45, 31.27, 62.20, 57.08],
         [21.26, 28.74, 10.25, 36.78, 32.45, 0.83, 42.50, 57.08], -32.62, 32.97),
        ("R4", [75.78, 51.73, 96.70, 59.42, 58.88, 37.50, 64.22, 60.08],
         [63.09, 38.63, 10.50, 37.38, 43.62, 0.59, 43.15, 60.08], -25.91, 42.76),
    ],
)  # fmt: skip
def test_bwt_of_the_recovered_matrices_is_that_of_the_paper(coin, matrix, own, last, bwt, recalled):
    a_RT, own_T = coin.grid(matrix)
    assert a_RT[own_T, range(8)].tolist() == own
    assert a_RT[-1].tolist() == last
    found = coin.aggregates(matrix)
    assert f"{found['bwt_coin']:.2f}" == f"{bwt}"
    assert found["bwt_gem"] == pytest.approx(found["bwt_coin"] * 8 / 7)
    assert np.isnan(found["mean_average_accuracy"])  # ScienceQA in between is not known
    given = coin.matrices[matrix].given
    assert given["mean_average_accuracy"].value == recalled
    assert given["bwt_coin"].value == bwt
    assert {cell.certainty for cell in given.values()} == {"recalled"}


def test_what_no_file_says_is_said_to_be_recalled(coin):
    """All that is unsure in the whole file: no other cell may pass for what it is not."""
    unsure = {
        (name, stage, task): (cell.value, cell.certainty)
        for name, matrix in coin.matrices.items()
        for stage, row in {**matrix.after, "multitask": matrix.multitask}.items()
        for task, cell in row.items()
        if matrix.certainty_of(cell) != "recovered"
    }
    assert unsure == {
        ("R1", "base", "scienceqa"): (49.91, "quoted"),
        ("R1", "scienceqa", "scienceqa"): (82.45, "recalled"),
        ("R1", "ocrvqa", "scienceqa"): (21.26, "recalled"),
        ("R1", "imagenet", "imagenet"): (96.05, "recalled"),
        ("R4", "scienceqa", "scienceqa"): (75.78, "recalled"),
        ("R4", "ocrvqa", "scienceqa"): (63.09, "recalled"),
    }
    assert coin.matrices["R1"].least_certain == coin.matrices["R4"].least_certain == "recalled"
    assert coin.matrices["R2"].least_certain == "recovered"
    matched = [name for name, matrix in coin.matrices.items() if matrix.identified == "matched"]
    assert matched == ["R1", "R4"]


def test_every_matrix_says_where_it_is_from(coin):
    assert len(coin.matrices) == 46
    for name, matrix in coin.matrices.items():
        kind = "Prompt_Result.text" if "judge" in name else "Result.text"
        assert f"/<task>/<stage>/{kind} at commit " in matrix.source
        assert matrix.measure == ("judge" if "judge" in name else "rule-based")
        assert set(coin.certainty) == {"recovered", "recalled", "quoted"}


def test_cells_of_other_runs(coin):
    """Some cells of each kind, as the spec's tables have them."""

    def cell(matrix, row, task):
        found = coin.matrices[matrix]
        return (found.multitask if row == "multitask" else found.after[row])[task].value

    assert cell("R1", "base", "textvqa") == 2.88
    assert cell("R1", "multitask", "imagenet") == 95.55
    assert cell("R1-judge", "grounding", "imagenet") == 98
    assert cell("R1-judge-preprint", "ocrvqa", "scienceqa") == 69
    assert cell("R11-0.8", "ocrvqa", "grounding") == 0
    assert cell("R13-judge", "multitask", "grounding") == 33
    assert cell("R18", "vqav2", "vizwiz") == 42.85
    assert "imagenet" not in coin.matrices["R1-judge-preprint"].after["ocrvqa"]
    assert coin.matrices["R11-0.8"].after["ocrvqa"]["grounding"].examples == 1673
    assert coin.matrices["R17"].examples["textvqa"] == 4000
    assert coin.matrices["R17"].after["ocrvqa"]["textvqa"].examples == 93


def test_rows_and_columns_follow_the_order_of_learning(coin):
    order = coin.order("R8")
    assert order[:4] == ("gqa", "imagenet", "ocrvqa", "grounding")
    a_RT, own_T = coin.grid("R8")
    assert own_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert a_RT[1, 0] == 62.68  # GQA after itself
    assert a_RT[8, 6] == 25.27  # VizWiz after VQAv2
    assert a_RT[2, 3] == 0.0  # Grounding, not learnt yet
    assert np.isnan(a_RT[0]).all()
    assert coin.order("R1") == ORDER


@pytest.mark.parametrize("infix", ["", "miniature-"])
@pytest.mark.parametrize("suffix", ["", "-diverse", "-10type"])
def test_a_task_is_known_by_its_name(coin, infix, suffix):
    assert [coin.task(f"coin-{infix}{task}{suffix}") for task in ORDER] == list(ORDER)
    assert coin.task("demo-choice") is None


def test_a_judge_scores_all_tasks_so_every_aggregate_is_known(coin):
    found = coin.aggregates("R1-judge")
    own = [92, 75, 97, 72, 42, 58, 75, 78]
    last = [82, 74, 55, 56, 47, 52, 58, 78]
    assert found["learning_accuracy"] == pytest.approx(np.mean(own))
    assert found["bwt_coin"] == pytest.approx((sum(last) - sum(own)) / 8)
    assert np.isfinite(found["mean_average_accuracy"])


SMALL = {
    "title": "Small", "repository": "example.org/small",
    "certainty": {"recovered": "a file"}, "identified": {"matched": "agrees"},
    "measures": {"rule-based": "scorers"}, "incomparable": {"always": ["Everything."]},
    "tasks": {"a": "x-a", "b": "x-b"}, "orders": {"first": ["a", "b"]},
    "matrices": {
        "M": {
            "model": "m", "method": "l", "instructions": "i", "measure": "rule-based",
            "order": "first", "source": "here", "certainty": "recovered", "identified": "matched",
            "after": {"a": {"a": 50}, "b": {"a": 40.5, "b": {"value": 60, "examples": 3}}},
        }
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "content", "complaint"),
    [
        ("after", {"c": {"a": 1}}, "matrix M: there is no stage 'c'"),
        ("after", {"a": {"d": 1}}, "matrix M: there is no task 'd'"),
        ("after", {"a": {"a": 101}}, r"matrices\.M\.after\.a\.a\.value: found 101"),
        ("after", {"a": {"a": {"value": 1, "certainty": "sure"}}}, r"certainty: found 'sure'"),
        ("order", "second", "matrix M: there is no order 'second'"),
        ("measure", "rules", r"matrices\.M\.measure: found 'rules'"),
        ("metod", "l", r"matrices\.M\.metod: unknown key, did you mean 'method'"),
        ("identified", "deduced", "there is no word in `identified` 'deduced'"),
        ("certainty", "recalled", "there is no word in `certainty` 'recalled'"),
        ("given", {"forgetting": 1}, "there is no aggregate 'forgetting'"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name_and_key(tmp_path, key, content, complaint):
    path = tmp_path / "small.yaml"
    matrix = SMALL["matrices"]["M"] | {key: content}
    path.write_text(yaml.safe_dump(SMALL | {"matrices": {"M": matrix}}))
    with pytest.raises(ValueError, match=complaint) as error:
        load_published(path)
    assert str(path) in str(error.value)


def test_a_cell_is_as_sure_as_its_matrix_unless_it_says_otherwise(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    published = load_published(path)
    matrix = published.matrices["M"]
    assert matrix.certainty_of(matrix.after["b"]["a"]) == "recovered"
    assert published.aggregates("M")["average_accuracy"] == pytest.approx((40.5 + 60) / 2)
