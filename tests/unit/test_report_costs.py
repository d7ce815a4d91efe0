"""What a study costs: the plan's estimate before it runs, and the report's tables after."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from palimpsest import plan as plans
from palimpsest.files import write_json
from palimpsest.lineage import Stage
from palimpsest.report import Allocation
from palimpsest.report.paper.tables import cost_rows, cost_tables
from palimpsest.report.results import read_results
from palimpsest.report.sections.costs import clock, gigabytes, hours
from palimpsest.slurm import Usage
from palimpsest.study import RESULTS, plan
from report_fixture import COST, build_without_figures, write_study

ALLOCATED = Allocation(
    runs=9,
    seconds=500.0,
    gpu_seconds=1000.0,
    core_seconds=4000.0,
    peak_memory_bytes=1_234_000_000,
)


@pytest.fixture
def study(workplace):
    """A study of LoRA and a slower method, of which nothing is trained; its data is converted."""
    for task in ("signs", "count", "boxes"):
        manifest = {"splits": {"train": {"examples": 1000}}}
        write_json(RESULTS / f"data/{task}/manifest.json", manifest)
        write_json(RESULTS / f"data/{task}/chance.json", {"value": 10.0})
    workplace.write("methods/slow", {"extends": "lora", "title": "Slow"})
    workplace.change("small", methods=["lora", "slow"], references={})
    return workplace


def finish(*stages: Stage, seconds: float = 10.0, jobs: tuple = (None,)) -> None:
    """Write the records of stages: each learnt 1000 samples in so many seconds, in these jobs."""
    for stage in stages:
        attempts = [{"job": job} for job in jobs]
        record = COST | {"samples": 1000, "wall_seconds": seconds, "attempts": attempts}
        write_json(stage.directory(RESULTS) / "stage.json", record)


def trained(method: str) -> list[Stage]:
    return [stage for stage in plan("small").trained if stage.method == method]


def cost_lines() -> list[str]:
    """Return what a plan says after the cells, with single spaces."""
    after = plans.describe(plan("small")).split("\n\n")[-1]
    return [" ".join(line.split()) for line in after.splitlines()]


def test_nothing_measured_gives_a_bound(study):
    study.change("models/tiny", resources__minutes=90, resources__gpus=2)
    assert cost_lines()[:4] == [
        "training left method stages samples samples/s job time GPU-hours",
        "tiny lora 3 3,000 – ≤ 4:30:00 ≤ 9.00",
        "tiny slow 3 3,000 – ≤ 4:30:00 ≤ 9.00",
        "total 6 6,000 ≤ 9:00:00 ≤ 18.00",
    ]
    assert "a bound and no estimate" in cost_lines()[4]


def test_a_method_is_estimated_by_its_own_stages(study):
    finish(trained("lora")[0], seconds=10.0)
    assert "tiny slow 3 3,000 100.0 (1 stage of other methods) 0:00:30 < 0.01" in cost_lines()
    finish(*trained("slow")[:2], seconds=40.0)
    assert cost_lines() == [
        "training left method stages samples samples/s job time core-hours",
        "tiny lora 2 2,000 100.0 (1 stage) 0:00:20 < 0.01",
        "tiny slow 1 1,000 25.0 (2 stages) 0:00:40 0.01",
        "total 3 3,000 0:01:00 0.02",
    ]


def test_data_that_is_not_converted_leaves_a_bound(study):
    finish(trained("lora")[0])
    (RESULTS / "data/boxes/manifest.json").unlink()
    assert "tiny lora 2 – 100.0 (1 stage) ≤ 0:02:00 ≤ 0.03" in cost_lines()


def test_models_with_and_without_gpus_are_told_apart(study):
    resources = {"nodes": 1, "gpus": 4, "memory_mb": 100, "minutes": 1, "checkpoint_steps": 10}
    study.write("models/big", {"extends": "tiny", "title": "Big", "resources": resources})
    study.change("small", models=["tiny", "big"], methods=["lora"])
    assert cost_lines()[:4] == [
        "training left method stages samples samples/s job time GPU-hours core-hours",
        "tiny lora 3 3,000 – ≤ 0:03:00 – ≤ 0.05",
        "big lora 3 3,000 – ≤ 0:03:00 ≤ 0.20 –",
        "total 6 6,000 ≤ 0:06:00 ≤ 0.20 ≤ 0.05",
    ]


def test_a_study_that_is_done_costs_nothing_more(study):
    finish(*plan("small").trained)
    assert cost_lines() == ["nothing is left to train"]


@pytest.fixture
def accounting(monkeypatch):
    """A Slurm that knows some jobs, by their ids; each ran a minute on two cores for each run."""
    runs: dict[str, int] = {}

    def usage(jobs, workdir):
        known = set(jobs) & runs.keys()
        num_runs = sum(runs[job] for job in known)
        return Usage(known, num_runs, 60.0 * num_runs, 0.0, 120.0 * num_runs, 5000)

    monkeypatch.setattr(plans.slurm, "usage", usage)
    return runs


def allocated_runs() -> dict[str, int | None]:
    """Return the runs that a report is told of, by experiment and in all."""
    view = plans.views(plan("small"))[0]
    told = {e.name: e.allocated for e in view.experiments} | {"all": view.allocated}
    return {name: allocation and allocation.runs for name, allocation in told.items()}


def test_slurm_tells_what_the_jobs_of_an_experiment_took(study, accounting):
    study.change("small", orders=["first", "second"])  # the second order shares its first stage
    stages = plan("small").trained
    assert len(stages) == 10
    for number, stage in enumerate(stages):
        finish(stage, jobs=(str(number), str(number)))  # requeued: one job, two runs
        accounting[str(number)] = 2
    view = plans.views(plan("small"))[0]
    assert [e.allocated.runs for e in view.experiments] == [6, 6, 6, 6]
    assert view.allocated == Allocation(20, 1200.0, 0.0, 2400.0, 5000)


def test_an_allocation_is_whole_or_not_told(study, accounting):
    lora, slow = trained("lora"), trained("slow")
    for number, stage in enumerate((*lora, *slow)):
        finish(stage, jobs=(str(number),))
        accounting[str(number)] = 1
    assert allocated_runs() == {"lora": 3, "slow": 3, "all": 6}
    finish(lora[0], jobs=(None, "0"))  # its first attempt was not in a job
    assert allocated_runs() == {"lora": None, "slow": 3, "all": None}
    finish(lora[0], jobs=("0",))
    del accounting["0"]  # the accounting has forgotten it
    assert allocated_runs() == {"lora": None, "slow": 3, "all": None}
    finish(*lora, jobs=("7",))  # Snakemake itself ran in a job
    accounting["7"] = 1
    assert allocated_runs() == {"lora": None, "slow": 3, "all": None}
    accounting.clear()
    assert allocated_runs() == {"lora": None, "slow": None, "all": None}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A synthetic study, and the page and tables of a report of it that knows allocations."""
    root = tmp_path_factory.mktemp("report")
    view = write_study(root / "results", n=30, methods=("lora",))
    lora = replace(view.experiments[-1], allocated=ALLOCATED)
    view = replace(view, experiments=(*view.experiments[:-1], lora))
    build_without_figures([view], root / "out")
    return view, root / "out"


def test_the_costs_as_csv(report):
    _, out = report
    frame = pd.read_csv(out / "costs.csv", keep_default_na=False).set_index("method")
    assert list(frame.columns) == [
        "benchmark", "model", "order", "seed", "title", "stages", "samples", "steps", "restarts",
        "wall_seconds", "gpu_hours", "core_hours", "peak_memory_bytes", "runs",
        "allocated_seconds", "allocated_gpu_hours", "allocated_core_hours",
        "task_peak_memory_bytes",
    ]  # fmt: skip
    assert list(frame.index) == ["direct", "blind", "joint", "lora", "all"]
    lora = frame.loc["lora"]
    assert (lora["stages"], lora["samples"], lora["wall_seconds"]) == (8, 51200, 240.0)
    assert lora["core_hours"] == pytest.approx(8 * 60 / 3600, abs=1e-4)
    assert (lora["runs"], lora["task_peak_memory_bytes"]) == ("9", "1234000000")
    assert float(lora["allocated_gpu_hours"]) == pytest.approx(1000 / 3600, abs=1e-4)
    assert set(frame.loc[["direct", "joint", "all"], "runs"]) == {""}
    pd.read_parquet(out / "costs.parquet")


def test_shared_stages_are_counted_once_in_all(study_with_twin):
    rows = {row["method"]: row for row in cost_rows(read_results(study_with_twin))}
    assert rows["twin"]["stages"] == rows["lora"]["stages"] == 8
    assert rows["all"]["stages"] == 8 + 8 + 8 + 1  # two direct, a sequence and a joint stage
    assert rows["all"]["wall_seconds"] == 25 * 30.0


@pytest.fixture
def study_with_twin(tmp_path):
    """A study in which two experiments have all their stages in common."""
    view = write_study(tmp_path, n=30, methods=("lora",))
    twin = replace(view.experiments[-1], name="twin", title="Twin")
    return replace(view, experiments=(*view.experiments, twin))


def test_restarts_and_gpus_are_counted(tmp_path):
    view = write_study(tmp_path, n=30, methods=("lora",))
    record = tmp_path / "stages/demo/demo-llava/lora/seed-0/demo-choice/stage/stage.json"
    attempts = [{"job": None}] * 3
    write_json(record, COST | {"gpu_seconds": 7200.0, "attempts": attempts})
    rows = {row["method"]: row for row in cost_rows(read_results(view))}
    assert (rows["lora"]["restarts"], rows["direct"]["restarts"]) == (2, 0)
    assert rows["lora"]["gpu_hours"] == rows["all"]["gpu_hours"] == 2.0
    assert rows["lora"]["core_hours"] == pytest.approx(7 * 60 / 3600)  # of the others
    write_json(record, {key: value for key, value in COST.items() if key != "core_seconds"})
    rows = {row["method"]: row for row in cost_rows(read_results(view))}
    assert rows["lora"]["core_hours"] is None


def test_without_accounting_there_is_one_table(report):
    view, _ = report
    lora = replace(view.experiments[-1], allocated=None)
    [table] = cost_tables(read_results(replace(view, experiments=(lora,))))
    assert table[0] == "costs"
    assert table[2:] == (
        ["", "seed", "stages", "restarts", "samples", "time", "core-hours", "peak memory (GB)"],
        [
            ["Sequential LoRA", "0", "8", "0", "51,200", "0:04:00", "0.13", "0.70"],
            ["All, every stage once", "all", "8", "0", "51,200", "0:04:00", "0.13", "0.70"],
        ],
    )


def test_with_accounting_a_second_table_says_what_was_allocated(report):
    _, (name, _, header, rows) = cost_tables(read_results(report[0]))
    assert name == "allocation"
    assert header == [
        "", "seed", "stages", "runs", "time", "GPU-hours", "core-hours",
        "peak memory of a task (GB)",
    ]  # fmt: skip
    assert rows[-2] == ["Sequential LoRA", "0", "8", "9", "0:08:20", "0.28", "1.11", "1.23"]
    assert rows[0][3:] == ["–"] * 5


def test_the_page_says_what_it_cost(report):
    text = (report[1] / "index.html").read_text()
    section = text[text.index('<section id="cost">') : text.index('<section id="formulas">')]
    assert '<a href="#cost">Cost</a>' in text
    assert '<a href="costs.csv">' in text
    assert "<h2>What it cost</h2>" in section
    assert section.count("<table>") == 2
    for cell in ("All, every stage once", "0:04:00", "0:08:20", "core-hours"):
        assert cell in section
    assert (report[1] / "tables/costs.tex").is_file()
    assert (report[1] / "tables/allocation.md").is_file()


def test_a_study_that_trained_nothing_has_no_costs(report, tmp_path):
    view, _ = report
    build_without_figures([replace(view, experiments=view.experiments[:1])], tmp_path / "out")
    assert "What it cost" not in (tmp_path / "out/index.html").read_text()
    assert not list((tmp_path / "out").rglob("cost*"))


def test_amounts_as_a_person_reads_them():
    assert [clock(s) for s in (30, 59.6, 3725, 360_000)] == [
        "0:00:30", "0:01:00", "1:02:05", "100:00:00",
    ]  # fmt: skip
    assert [hours(h) for h in (0, 0.001, 0.5, 12.346, 1234.4)] == [
        "–", "< 0.01", "0.50", "12.35", "1,234",
    ]  # fmt: skip
    assert [gigabytes(b) for b in (0, 1_500_000_000)] == ["–", "1.50"]
