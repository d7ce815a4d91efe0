"""A whole study on the cluster, and the very lines by which its jobs are submitted."""

from __future__ import annotations

import json
import shutil

import pytest

from runs import finish, snakemake_command, start
from studies import (
    STAGE,
    StudyOnCluster,
    change,
    copy_of,
    slurm_workspace,
    stage_record,
    write,
)

LINEAGES = ("choice", "choice/reading", "choice/reading/counting")
STAGES = [f"three/tiny/replay/seed-0/{lineage}" for lineage in LINEAGES]
STAGES += ["three/tiny/lora/seed-0/choice+counting+reading"]
MATRIX = "results/reports/small/matrix.csv"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A workspace with a study of four short stages, in which nothing has been run."""
    root = slurm_workspace(tmp_path_factory.mktemp("study") / "workspace")
    change(root, "methods/lora", training__epochs=1)
    write(root, "small", {"extends": "tiny", "title": "Small", "methods": ["replay"]})
    return root


@pytest.fixture(scope="module")
def here(workspace):
    """The study as this machine runs it, without a cluster; it is at work beside the other."""
    root = copy_of(workspace, workspace.with_name("here"))
    return root, start(root, *snakemake_command("--cores", "1", study="small"))


@pytest.fixture(scope="module")
def finished(cluster, workspace, here):
    """The study after it was run on the cluster."""
    study = StudyOnCluster(cluster, copy_of(workspace, workspace.with_name("cluster")))
    study.succeed(study="small")
    return study


def test_the_tables_are_those_of_this_machine_alone(finished, here):
    root, running = here
    found = finish(running)
    assert found.code == 0, found.text
    assert (root / MATRIX).read_bytes() == (finished.root / MATRIX).read_bytes()
    for stage in STAGES:
        assert finished.files(stage) == StudyOnCluster(finished.cluster, root).files(stage)


def test_every_stage_is_a_job_that_says_what_it_trains(finished):
    rows = finished.job_lines("JobName", "Comment", "State", "ReqMem", "NCPUS", "Timelimit", "User")
    training = [row for row in rows if row[1].startswith("rule_train")]
    names = {f"rule_train_wildcards_{stage.replace('/', '_')}" for stage in STAGES}
    assert {row[1] for row in training} == names
    for name, _, *asked, _ in training:
        assert name.startswith("palimpsest_")
        assert asked == ["COMPLETED", "1500M", "1", "00:10:00"]
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


FORMS = {  # two ranks in four ways, and what sbatch is told of each
    "processes of a node": (
        {"ranks": 2},
        "--nodes=1 --ntasks=1 --cpus-per-task=2",
    ),
    "two nodes": (
        {"nodes": 2},
        "--nodes=2 --ntasks=2 --cpus-per-task=1 --ntasks-per-node=1",
    ),
    "GPUs of a node": (
        {"gpus": 2},
        "--nodes=1 --cpus-per-task=2 --gpus=2",
    ),
    "GPUs of two nodes": (
        {"nodes": 2, "gpus": 1, "threads": 2},
        "--nodes=2 --ntasks=2 --cpus-per-task=2 --ntasks-per-node=1 --gpus-per-node=1",
    ),
}


def test_ranks_learn_the_same_wherever_they_are(cluster, workspace, tmp_path):
    """On one node or two, and on GPUs, which are pretended; each submitted by its own line."""
    studies = {form: StudyOnCluster(cluster, copy_of(workspace, tmp_path / form)) for form in FORMS}
    for form, study in studies.items():
        given = {"memory_mb": 2500, "minutes": 7, "checkpoint_steps": 4} | FORMS[form][0]
        change(study.root, "models/tiny", resources=given, zero_stage=2)
        study.train("--retries", "0")
    for study in studies.values():
        found = study.finish()
        assert found.code == 0, found.text + study.log()
    assert {form: submitted(study) for form, study in studies.items()} == {
        form: line for form, (_, line) in FORMS.items()
    }
    records = [json.loads(stage_record(s.root, STAGE).read_text()) for s in studies.values()]
    assert [record["ranks"] for record in records] == [2, 2, 2, 2]
    assert all(record["files"] == records[0]["files"] for record in records)


def submitted(study):
    """Return what sbatch was told of the geometry of a study's training job."""
    lines = [
        line for comment, line in study.job_lines("Comment", "SubmitLine") if "train" in comment
    ]
    words = lines[0].partition(" --wrap")[0].partition("--export=ALL ")[2].split()
    return " ".join(word for word in words if word.startswith("--") and "=" in word)


def test_cells_as_a_job_array(finished, tmp_path):
    """With `slurm-array-jobs: evaluate`, the cells that are ready together are one submission."""
    study = StudyOnCluster(finished.cluster, copy_of(finished.root, tmp_path / "arrays"))
    change(study.root, "tiny", evaluation__fan_out="cell")
    before = scores(study)
    shutil.rmtree(study.root / "results" / "stages" / STAGE / "cells")
    targets = sorted(str(path.relative_to(study.root)) for path in before)
    study.succeed(*targets, "--slurm-array-jobs", "evaluate", study="small")
    assert scores(study) == before
    jobs = [id for id, comment in study.job_lines("JobID", "Comment") if "evaluate" in comment]
    assert [job.partition("_")[2] for job in jobs] == ["1", "2", "3"]
    assert len({job.partition("_")[0] for job in jobs}) == 1


def scores(study):
    """Return the scores of a stage's cells, by their files."""
    cells = study.root / "results" / "stages" / STAGE / "cells"
    return {path: path.read_bytes() for path in cells.glob("*/*/*/scores.json")}
