"""What a report says of the differences between methods: tables, stars, and what it could miss."""

from dataclasses import replace

import numpy as np
import pytest

from palimpsest.report.page.render import findings
from palimpsest.report.paper.tables import latex
from palimpsest.report.results import read_results
from palimpsest.report.sections.differences import (
    about,
    compare,
    frames_of,
    not_told_from,
    of_setting,
    paper_tables,
)
from report_fixture import write_study

RNG = np.random.default_rng(0)
NOISE_BP = np.vstack([np.zeros(3), RNG.standard_normal((2000, 3))])


def samples(*values: float) -> list[dict[str, np.ndarray]]:
    """Return an aggregate of some methods as measured, each with its own resamples."""
    return [{"forgetting": value + NOISE_BP[:, k]} for k, value in enumerate(values)]


PAIRS = [(1, 0), (2, 0), (2, 1)]


def test_a_star_is_harder_to_get_than_an_interval_without_zero():
    found = compare(samples(0.0, 3.1, 20.0), PAIRS)
    near, far = found[1, 0]["forgetting"], found[2, 0]["forgetting"]
    assert near.low > 0 > near.low_all
    assert (near.differs, far.differs) == (False, True)
    assert near.value < near.detectable < far.value
    alone = compare(samples(0.0, 3.1), [(1, 0)])[1, 0]["forgetting"]
    assert alone.differs
    assert alone.detectable < near.detectable


def test_what_only_some_methods_have_is_compared_among_them():
    some = samples(0.0, 5.0, 9.0)
    some[1] = {"intransigence": some[1]["forgetting"]}
    found = compare(some, PAIRS)
    assert [list(found[pair]) for pair in PAIRS] == [[], ["forgetting"], []]


def test_power_is_told_only_where_a_star_is_missing():
    titles = {"forgetting": "forgetting"}
    near = [*compare(samples(0.0, 3.1, 20.0), PAIRS).values()]
    least = near[0]["forgetting"].detectable
    assert f"80 % power, a true difference would have to be about {least:.1f} points" in about(
        near, titles
    )
    assert "1 of 3 have none" in about(near, titles)
    far = [*compare(samples(0.0, 20.0, 40.0), PAIRS).values()]
    assert about(far, titles) == "* differs from 0 even when corrected for all of its column"


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    root = tmp_path_factory.mktemp("differences")
    return write_study(root, n=30, methods=("lora", "moelora", "replay"))


@pytest.fixture(scope="module")
def results(view):
    return read_results(view)


def test_a_table_has_a_row_a_pair_and_stars(results):
    (table,) = paper_tables(results)
    name, caption, header, rows = table
    assert name == "differences"
    assert header == ["", "Average accuracy", "Learning accuracy", "Forgetting"]
    assert [row[0] for row in rows] == [
        "MoELoRA − Sequential LoRA",
        "Replay 30 % − Sequential LoRA",
        "Replay 30 % − MoELoRA",
    ]
    told = of_setting(results.sequential)
    forgot = told[2, 0]["forgetting"]
    assert forgot.differs
    assert rows[1][3] == f"−{-forgot.value:.1f} [−{-forgot.low:.1f}, −{-forgot.high:.1f}]*"
    learning = [each["learning_accuracy"] for each in told.values()]
    assert [row[2].endswith("*") for row in rows] == [d.differs for d in learning]
    missing = sum(not d.differs for d in learning)
    assert f"points for learning accuracy ({missing} of 3 have none)" in caption
    assert r"Replay 30 \% $-$ MoELoRA & " in latex(table)


def test_a_table_for_programs_has_both_intervals_of_every_aggregate(results):
    frame = frames_of(results)["differences"]
    assert len(frame) == 3 * len(results.sequential[0].estimates)
    row = frame[
        (frame.method == "replay") & (frame.other == "lora") & (frame.metric == "average_accuracy")
    ].iloc[0]
    lora, replay = (results.sequential[k].estimates["average_accuracy"].value for k in (0, 2))
    assert row["value"] == pytest.approx(replay - lora)
    assert (frame["low_all"] <= frame["low"]).all()
    assert (frame["high_all"] >= frame["high"]).all()
    assert (frame["differs"] == ((frame["low_all"] > 0) | (frame["high_all"] < 0))).all()
    assert row["detectable"] > row["high_all"] - row["value"] > 0


def test_who_forgot_least_is_told_from_whom(results, view):
    replay = results.sequential[2]
    assert not_told_from(results, replay, "forgetting") == []
    assert "not told from" not in " ".join(findings(results))
    twin = replace(view.experiments[-1], name="twin", title="Twin")
    both = read_results(replace(view, experiments=(*view.experiments, twin)))
    assert not_told_from(both, both.sequential[2], "forgetting") == ["Twin"]
    assert findings(both)[-1] == "By what it forgot it is not told from Twin."


def test_the_difference_of_a_method_from_itself_is_nothing(view):
    lora = next(e for e in view.experiments if e.name == "lora")
    twin = replace(lora, name="twin", title="Twin")
    groups = read_results(replace(view, experiments=(lora, twin))).groups
    d = of_setting(groups)[1, 0]["average_accuracy"]
    assert (d.value, d.low, d.high, d.low_all, d.high_all, d.differs) == (0, 0, 0, 0, 0, False)


def test_only_methods_of_one_model_and_order_are_compared(view):
    sequential = [e for e in view.experiments if e.protocol == "sequential"][:2]
    other = [replace(e, model="other") for e in sequential]
    turned = [replace(e, order="turned") for e in sequential[:1]]
    results = read_results(replace(view, experiments=(*sequential, *other, *turned)))
    tables = paper_tables(results)
    assert [table[0] for table in tables] == [
        "differences-demo-llava-default", "differences-other-default",
    ]  # fmt: skip
    assert [[row[0] for row in table[3]] for table in tables] == [["MoELoRA − Sequential LoRA"]] * 2
    assert "between methods (other, default)" in tables[1][1]
    assert set(frames_of(results)["differences"]["model"]) == {"demo-llava", "other"}


def test_one_method_alone_is_compared_with_nothing(view):
    alone = replace(view, experiments=view.experiments[:5])
    results = read_results(alone)
    assert len(results.sequential) == 1
    assert (paper_tables(results), frames_of(results)) == ([], {})
