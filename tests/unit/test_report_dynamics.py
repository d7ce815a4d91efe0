"""What the order of the tasks changes, what is learnt and kept, and what happens inside stages."""

import json
from dataclasses import replace

import numpy as np
import pytest

from palimpsest.report.figures import dynamics
from palimpsest.report.figures import probes as figure
from palimpsest.report.results import read_results
from palimpsest.report.sections import orders, probes
from report_fixture import write_study


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One method in two orders, of which the second is another method's answers; and one alone."""
    root = tmp_path_factory.mktemp("orders")
    view = write_study(root, methods=("lora", "moelora", "replay"))
    lora, moelora, replay = [e for e in view.experiments if e.protocol == "sequential"]
    other = replace(moelora, name=lora.name, title=lora.title, method=lora.method, order="turned")
    return read_results(replace(view, experiments=(lora, other, replay)))


def test_a_method_is_compared_with_itself_in_the_other_order(results):
    first, other, alone = results.sequential
    assert orders.methods(results) == [[first, other]]
    frame = orders.frames_of(results)["orders"].set_index("metric")
    assert set(frame["method"]) == {first.view.name}
    assert set(frame["order"]) == {"turned"}
    assert set(frame["other"]) == {first.view.order}
    for name in ("average_accuracy", "forgetting"):
        value = other.estimates[name].value - first.estimates[name].value
        assert frame["value"][name] == pytest.approx(value)
        resampled = other.samples[name][1:] - first.samples[name][1:]
        low, high = np.quantile(resampled, [0.025, 0.975])
        assert (frame["low"][name], frame["high"][name]) == pytest.approx((low, high))
    assert alone.view.name not in set(frame["method"])


def test_the_table_names_method_and_orders(results):
    ((name, _, header, rows),) = orders.paper_tables(results)
    first = results.sequential[0].view
    assert name == "orders"
    assert [row[0] for row in rows] == [f"{first.title}: turned − {first.order}"]
    assert len(rows[0]) == len(header)


def test_one_order_has_no_table(results):
    one = replace(results, groups=results.groups[1:])
    assert orders.frames_of(one) == {}
    assert orders.paper_tables(one) == []


def test_each_order_has_a_plane_and_all_have_one_figure(results):
    names = [picture.name for picture in dynamics.draw(results)]
    assert len(names) == 3
    assert sum(name.startswith("plane-") for name in names) == 2
    assert names[-1] == "orders"


def test_the_plane_has_what_is_learnt_and_what_is_forgotten(results):
    group = results.settings[next(iter(results.settings))][0]
    plane = dynamics.draw(results)[0].figure.axes[0]
    points = [
        line.get_xydata().ravel().tolist() for line in plane.lines if len(line.get_xdata()) == 1
    ]
    ends = [group.estimates[end].value for end in dynamics.ENDS]
    assert pytest.approx(ends) in points
    assert plane.yaxis_inverted()


@pytest.fixture
def probed(tmp_path):
    """A sequence whose first two stages were asked twice each, and the others never."""
    view = write_study(tmp_path, methods=("lora",))
    (lora,) = [e for e in view.experiments if e.protocol == "sequential"]
    for number, row in enumerate(lora.rows[1:3], start=1):
        lines = [{"step": step, "loss": 1.0} for step in (1, 2, 3, 4)]
        for step in (2, 4):
            known = [task for one in lora.rows[1 : number + 1] for task in one.learnt]
            lines[step - 1]["probes"] = dict.fromkeys(known, 10.0 * step)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (row.record.parent / "metrics.jsonl").write_text(text)
    return read_results(replace(view, experiments=(lora,)))


def test_probes_are_told_step_by_step(probed):
    frame = probes.frames_of(probed)["probes"]
    first, second = (row.learnt[0] for row in probed.groups[0].view.rows[1:3])
    told = frame[["stage", "step", "task", "value"]].to_records(index=False).tolist()
    assert told == [
        (1, 2, first, 20.0), (1, 4, first, 40.0),
        (2, 2, first, 20.0), (2, 2, second, 20.0), (2, 4, first, 40.0), (2, 4, second, 40.0),
    ]  # fmt: skip
    assert set(frame["steps"]) == {4}


def test_a_figure_has_a_line_a_task_along_the_stages(probed):
    (picture,) = figure.draw(probed)
    lines = [line for line in picture.figure.axes[0].lines if len(line.get_xdata()) > 2]
    assert [list(line.get_xdata()) for line in lines][:1] == [[0.5, 1.0, 1.5, 2.0]]


def test_what_was_not_asked_is_not_shown(results):
    assert probes.frames_of(results) == {}
    assert list(figure.draw(results)) == []
