"""A whole study on the cluster, and the very lines by which its jobs are submitted."""

from __future__ import annotations

import json

import pytest

from runs import snakemake
from studies import (
    STAGE,
    StudyOnCluster,
    change,
    copy_of,
    slurm_workspace,
    stage_record,
    write,
)

STAGES = [
    "three/tiny/lora/seed-0/choice+counting+reading",
    "three/tiny/replay/seed-0/choice",
    "three/tiny/replay/seed-0/choice/reading",
    "three/tiny/replay/seed-0/choice/reading/counting",
]
MATRIX = "results/reports/small/matrix.csv"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A workspace with a study of four short stages, in which nothing has been run."""
    root = slurm_workspace(tmp_path_factory.mktemp("study") / "workspace")
    change(root, "methods/lora", training__epochs=1)
    write(root, "small", {"extends": "tiny", "title": "Small", "methods": ["replay"]})
    return root


@pytest.fixture(scope="module")
def finished(cluster, workspace):
    """The study after it was run on the cluster."""
    study = StudyOnCluster(cluster, copy_of(workspace, workspace.with_name("cluster")))
    study.succeed(study="small")
    return study


def test_the_tables_are_those_of_this_machine_alone(finished, workspace):
    here = copy_of(workspace, workspace.with_name("here"))
    found = snakemake(here, study="small")
    assert found.code == 0, found.text
    assert (here / MATRIX).read_bytes() == (finished.root / MATRIX).read_bytes()
    for stage in STAGES:
        assert finished.files(stage) == StudyOnCluster(finished.cluster, here).files(stage)


def test_every_stage_is_a_job_that_says_what_it_trains(finished):
    rows = finished.job_lines("JobName", "Comment", "State", "ReqMem", "NCPUS", "Timelimit", "User")
    training = [row for row in rows if row[1].startswith("rule_train")]
    names = {f"rule_train_wildcards_{stage.replace('/', '_')}" for stage in STAGES}
    assert {row[1] for row in training} == names
    for name, _, *asked, _ in training:
        assert name.startswith("palimpsest_")
        assert asked == ["COMPLETED", "1000M", "1", "00:10:00"]
    # Scoring and chance are no jobs; the bases and stages are evaluated, a job for all cells.
    rules = [row[1].split("_wildcards")[0] for row in rows]
    assert {rule: rules.count(rule) for rule in rules} == {
        "rule_convert": 3, "rule_train": 4, "rule_evaluate": 5, "rule_report": 1,
    }  # fmt: skip


def test_logs_are_found_and_kept(finished):
    for stage in STAGES:
        log = finished.root / "results" / "logs" / "stages" / stage / "train.log"
        [job] = {attempt.job for attempt in finished.attempts(stage)}
        assert log.read_text().startswith(f"attempt 1 at {stage}: job {job}, process ")
        around = f"results/logs/slurm/rule_train/{stage.replace('/', '_')}/{job}.log"
        assert (finished.root / around).exists()


def test_the_report_tells_what_slurm_gave(finished):
    costs = (finished.root / "results" / "reports" / "small" / "costs.csv").read_text()
    assert "allocated_seconds" in costs.splitlines()[0]


@pytest.fixture
def lines(cluster, workspace, tmp_path):
    """A function that trains a stage with some resources, and returns how it was submitted."""

    def train(**resources):
        study = StudyOnCluster(cluster, copy_of(workspace, tmp_path / f"run-{len(resources)}"))
        given = {"memory_mb": 2500, "minutes": 7, "checkpoint_steps": 4} | resources
        change(study.root, "models/tiny", resources=given, zero_stage=2)
        study.train("--retries", "0")
        found = study.finish()
        assert found.code == 0, found.text + study.log()
        rows = study.job_lines("Comment", "SubmitLine", "State", "NNodes")
        [[_, line, *outcome]] = [row for row in rows if row[0].startswith("rule_train")]
        options = [word for word in line.partition(" --wrap")[0].split() if word[:2] == "--"]
        return study, " ".join(word for word in options if "=" in word), outcome

    return train


def test_ranks_of_one_node_of_two_and_on_gpus_learn_the_same(lines):
    """Also the lines that sbatch is given: the CPU form, that of two nodes, that of GPUs."""
    here, line, _ = lines(ranks=2)
    assert line == "--nodes=1 --ntasks=1 --cpus-per-task=2"
    two, line, outcome = lines(ranks=1, nodes=2)
    assert line == "--nodes=2 --ntasks=2 --cpus-per-task=1 --ntasks-per-node=1"
    assert outcome == ["COMPLETED", "2"]
    gpus, line, _ = lines(gpus=2, nodes=1, threads=1)
    assert line == "--nodes=1 --cpus-per-task=2 --gpus=2"
    both, line, _ = lines(gpus=1, nodes=2, threads=2, workers=0)
    assert line == ("--nodes=2 --ntasks=2 --cpus-per-task=2 --ntasks-per-node=1 --gpus-per-node=1")
    records = [json.loads(stage_record(s.root, STAGE).read_text()) for s in (here, two, gpus, both)]
    assert [record["ranks"] for record in records] == [2, 2, 2, 2]
    assert records[0]["files"] == records[1]["files"] == records[2]["files"] == records[3]["files"]


def test_array_jobs(finished, tmp_path):
    """With `slurm-array-jobs: evaluate` the cells of a stage are one submission."""
    root = copy_of(finished.root, tmp_path / "arrays")
    study = StudyOnCluster(finished.cluster, root)
    before = (root / MATRIX).read_bytes()
    change(root, "tiny", evaluation__fan_out="cell")
    study.succeed("--slurm-array-jobs", "evaluate", study="small")
    assert (root / MATRIX).read_bytes() == before
    rows = study.job_lines("JobID", "Comment", "State")
    cells = [row for row in rows if row[1].startswith("rule_evaluate")]
    assert len(cells) == 15
    assert len({row[0].split("_")[0] for row in cells}) < 15
