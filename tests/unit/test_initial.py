"""Tasks that the base already knows: evaluated, first in the history, and never trained."""

import numpy as np
import pytest

from palimpsest.config import Benchmark, load
from palimpsest.files import write_json
from palimpsest.lineage import Lineage, Stage
from palimpsest.plan import views
from palimpsest.refusal import ConfigError
from palimpsest.report.paper.tables import comparison_table, task_table
from palimpsest.report.results import read_results
from palimpsest.report.statistics import aggregates as agg
from palimpsest.study import history, identity, plan, stage_fingerprint
from report_fixture import write_scores
from workspace import REPOSITORY

ORDERS = {"first": ["count", "boxes"], "second": ["boxes", "count"]}
EWC = {"name": "ewc", "strength": 1.0, "examples": 4}
# Rows are base, count, count/boxes; columns are signs (known from the start), count, boxes.
A = np.array([[80.0, 95.0, 20.0], [60.0, 90.0, 25.0], [70.0, 50.0, 85.0]])
OWN = np.array([0, 1, 2])
JOINT = np.array([75.0, 100.0, 90.0])
BY_HAND = {
    "average_accuracy": (70 + 50 + 85) / 3,
    "learning_accuracy": (80 + 90 + 85) / 3,
    "mean_average_accuracy": ((60 + 90) / 2 + (70 + 50 + 85) / 3) / 2,
    "bwt_coin": ((70 - 80) + (50 - 90) + 0) / 3,
    "bwt_gem": ((70 - 80) + (50 - 90)) / 2,
    "forgetting": ((80 - 70) + (90 - 50)) / 2,  # row 0 counts for signs, and not for count
    "final_minus_best": ((70 - 80) + (50 - 95) + 0) / 3,  # here it counts for all
    "forward_transfer": 25 - 20,
    "intransigence": ((100 - 90) + (90 - 85)) / 2,  # no stage learnt signs, and joint none either
}


def stage(lineage, method="lora"):
    if lineage == "base":
        return Stage("three", "tiny", Lineage())
    return Stage("three", "tiny", Lineage.parse(lineage), method, 0)


@pytest.fixture
def warm(workplace):
    """A study of two tasks after one that the base knows, by a plain method and by EWC."""
    workplace.change("benchmarks/three", initial=["signs"], orders=ORDERS)
    workplace.write("methods/ewc", {"extends": "lora", "title": "EWC", "regulariser": EWC})
    return workplace


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        (["count"], "initial: task 'count' is named in an order, too"),
        (["signs", "signs"], "initial: task 'signs' is named twice"),
        (["Signs"], "task 'Signs': a name is made of lower-case letters"),
    ],
)
def test_initial_tasks_that_cannot_be(warm, initial, message):
    warm.change("benchmarks/three", initial=initial)
    with pytest.raises(ConfigError, match=r"benchmarks/three\.yaml") as refused:
        plan("small")
    assert message in str(refused.value)


def test_an_initial_task_must_be_there(warm):
    warm.change("benchmarks/three", initial=["sings"])
    with pytest.raises(ConfigError, match=r"three\.yaml: initial: .*'sings'.*'signs'"):
        plan("small")


def test_it_is_evaluated_and_never_trained(warm):
    found = plan("small")
    assert found.tasks == ("signs", "count", "boxes")
    assert {task for s in found.trained for task in s.lineage.learnt} == {"count", "boxes"}
    joint = next(e for e in found.experiments if e.name == "joint")
    assert [str(s.lineage) for s in joint.stages] == ["boxes+count"]
    assert joint.cells(joint.stages[0], found.tasks) == found.tasks


def test_what_is_known_is_evaluated_where_only_that_is(warm):
    warm.change("small", evaluation__cells="learnt")
    found = plan("small")
    sequence = next(e for e in found.experiments if e.name == "lora")
    assert [sequence.cells(s, found.tasks) for s in sequence.stages] == [
        ("signs", "count", "boxes"), ("signs", "count"), ("signs", "count", "boxes"),
    ]  # fmt: skip
    direct = next(e for e in found.experiments if e.name == "direct")
    assert [direct.cells(s, found.tasks) for s in direct.stages] == [("count",), ("boxes",)]


def test_history_begins_with_it(warm):
    assert history(stage("base")) == (("signs",),)
    assert history(stage("count")) == (("signs",),)
    assert history(stage("count/boxes")) == (("signs",), ("count",))
    warm.change("benchmarks/three", initial=[])
    assert history(stage("count")) == ()


def test_it_decides_the_numbers_of_methods_that_look_back(warm):
    plain, ewc = stage("count"), stage("count", "ewc")
    after = stage("count/boxes", "ewc")
    assert "history" not in identity(plain)
    assert [task for task, _ in identity(ewc)["history"]] == ["signs"]
    assert "history" not in identity(after)  # the parent's fingerprint says it
    before = [stage_fingerprint(s) for s in (plain, ewc, after)]
    warm.change("tasks/signs", version=2)
    same = [stage_fingerprint(s) == b for s, b in zip((plain, ewc, after), before, strict=True)]
    assert same == [True, False, False]


def test_benchmarks_without_it_are_what_they_were():
    for name in ("demo", "coin"):
        benchmark = load(Benchmark, name, REPOSITORY / "config")
        assert benchmark.fingerprint == "4df6dbfaf5bcd15b"
        assert benchmark.tasks == benchmark.to_learn


@pytest.mark.parametrize("name", [name for name in BY_HAND if name != "intransigence"])
def test_an_aggregate_by_hand(name):
    compute = agg.by_name(name).compute
    assert compute(A, OWN) == pytest.approx(BY_HAND[name])
    assert compute(np.stack([A + 1, A]), OWN)[1] == pytest.approx(BY_HAND[name])  # resamples


def test_after_one_stage_nothing_was_transferred():
    a, own = A[:2, :2], OWN[:2]
    assert agg.forgetting(a, own) == pytest.approx(80 - 60)
    assert np.isnan(agg.forward_transfer(a, own))


def write_cells(found, rows, metric):
    """Write the cells of some stages with scores whose means are the rows; 20 examples each."""
    for lineage, row in rows.items():
        for task, value in zip(found.tasks, row, strict=True):
            score_N = np.arange(20) < value / 5
            if metric[task] == "cider":
                score_N = score_N + np.eye(20)[0] - np.eye(20)[1]  # the same mean, one above 1
            ids = [f"{task}-{n}" for n in range(20)]
            cell = found.cell(stage(lineage), task) / "metric"
            write_scores(cell, metric[task], ids, score_N.astype(float), np.ones(20, bool))


@pytest.fixture
def results(warm):
    """What a report of the matrix above reads, with signs scored by CIDEr."""
    warm.change("small", references={
        "joint": {"title": "Joint", "protocol": "joint", "method": "lora"},
    })  # fmt: skip
    found = plan("small")
    rows = dict(zip(("base", "count", "count/boxes"), A, strict=True))
    metric = {"signs": "cider", "count": "exact_match", "boxes": "exact_match"}
    write_cells(found, rows | {"boxes+count": JOINT}, metric)
    for task in found.tasks:
        data = warm.root / "results" / "data" / task
        data.mkdir(parents=True)
        write_json(data / "manifest.json", {"splits": {"train": {"examples": 8}}})
        write_json(data / "chance.json", {"value": 5.0})
    (view,) = views(found)
    return read_results(view)


def test_a_report_has_the_aggregates_by_hand(results):
    (group,) = results.sequential
    assert group.tasks == ("signs", "count", "boxes")
    assert group.own_T.tolist() == [0, 1, 2]
    np.testing.assert_allclose(group.value_RT, A)
    found = {name: e.value for name, e in group.estimates.items()}
    assert found == pytest.approx(BY_HAND)


def test_a_report_says_what_is_known_and_what_is_no_percentage(results):
    notes = " ".join(results.notes)
    assert "Known to the base from the start, and trained by no stage: Signs." in notes
    assert "Not percentages: Signs can score above 100" in notes
    for table in (comparison_table(results), task_table(results)):
        assert "Not percentages: Signs can score above 100" in table[1]
