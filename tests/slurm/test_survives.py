"""What befalls a job on a cluster: each time the stage goes on, and hands on the same bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import chdir

import pytest

from palimpsest.attempts import MEMORY, NEAR_LIMIT, SIGNALLED
from studies import (
    STAGE,
    StudyOnCluster,
    change,
    copy_of,
    slurm_workspace,
    stage_record,
    wait_until,
)
from workspace import convert, forget


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A workspace with data, and what its first stage hands on if nothing befalls it."""
    root = slurm_workspace(tmp_path_factory.mktemp("undisturbed") / "workspace")
    with chdir(root):
        convert()
    forget()
    alone = copy_of(root, root.with_name("alone"))
    subprocess.run(
        [sys.executable, "-m", "palimpsest.cli", "train", STAGE],
        cwd=alone,
        env={**os.environ, "PYTHONPATH": str((alone / "workflow").resolve())},
        check=True,
    )
    return root, StudyOnCluster(None, alone).files()


@pytest.fixture(scope="module", autouse=True)
def limited(cluster, undisturbed):
    """A study with a long stage, whose jobs may run for a minute."""
    study = StudyOnCluster(cluster, copy_of(undisturbed[0], undisturbed[0].with_name("limited")))
    change(study.root, "methods/lora", training__epochs=3000)
    change(study.root, "models/tiny", resources__minutes=1)
    study.train()
    yield study
    study.end()


@pytest.fixture
def study(cluster, undisturbed, tmp_path):
    """A study whose data is there; afterwards nothing of it is in the queue."""
    study = StudyOnCluster(cluster, copy_of(undisturbed[0], tmp_path / "workspace"))
    yield study
    study.end()


@pytest.fixture
def same(study, undisturbed):
    """A check that the stage ends well, with as many attempts and the bytes of one undisturbed."""

    def check(attempts: int) -> None:
        found = study.finish()
        assert found.code == 0, found.text
        assert len(study.attempts()) == attempts, study.attempts()
        assert study.files() == undisturbed[1]
        assert study.log().count("resumed from step") == attempts - 1

    return check


def test_a_killed_process_is_tried_again(study, same):
    study.train()
    os.kill(study.wait_for_step(25).pid, signal.SIGKILL)
    same(attempts=2)
    assert study.attempts()[0].why == "killed"


def test_a_killed_batch_step_is_tried_again(study, same, cluster):
    study.train()
    os.kill(cluster.batch_step(study.wait_for_step(25).job), signal.SIGKILL)
    same(attempts=2)


def test_a_cancelled_job_is_tried_again(study, same, cluster):
    study.train()
    cluster.run("scancel", study.wait_for_step(25).job)
    same(attempts=2)
    first, second = study.attempts()
    assert first.why == SIGNALLED
    assert second.job != first.job


def test_a_requeued_job_goes_on_as_the_same_job(study, same, cluster):
    study.train()
    cluster.run("scontrol", "requeue", study.wait_for_step(25).job)
    same(attempts=2)
    first, second = study.attempts()
    assert first.why == SIGNALLED
    assert second.job == first.job


def test_near_its_time_limit_a_stage_goes_back_into_the_queue(limited):
    """It was started before the other tests, for a limit is a minute at least."""
    wait_until(lambda: len(limited.attempts()) > 1, 120, "a second attempt", lambda: limited.text)
    first, second, *_ = limited.attempts()
    assert (first.why, first.job) == (NEAR_LIMIT, second.job)
    wait_until(lambda: "resumed from step" in limited.log(), 60, "a resumed stage")
    assert limited.snakemake.poll() is None  # it has seen no failure
    limited.end()


def test_a_lost_node_gives_its_job_back(study, same, cluster):
    study.train()
    attempt = study.wait_for_step(25)
    [node] = cluster.run("squeue", "-h", "-j", attempt.job, "-o", "%N").split()
    cluster.kill_node(node)
    cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
    try:
        same(attempts=2)
    finally:
        cluster.start_node(node)
    assert study.attempts()[0].why != SIGNALLED  # there was no time for a word


def test_a_preempted_job_checkpoints_and_goes_on(study, same, cluster):
    study.train("--default-resources", "slurm_account=ci", "slurm_partition=low", "mem_mb=500")
    attempt = study.wait_for_step(25)
    # All cores of all nodes are wanted in a partition of higher priority.
    cluster.run("sbatch", "-A", "ci", "-p", "main", "-N3", "--ntasks-per-node=8", "--mem=100",
                "-o", "/dev/null", "--wrap", "sleep 1")  # fmt: skip
    same(attempts=2)
    first, second = study.attempts()
    assert first.why == SIGNALLED
    assert second.job == attempt.job


def test_a_slurm_controller_that_dies_and_comes_back_harms_nothing(study, same, cluster):
    study.train()
    study.wait_for_step(25)
    status = subprocess.run(
        ["palimpsest", "status", "tiny"], cwd=study.root, env=study.environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.search(rf"running  {STAGE}  job \d+ on node\d, step \d+ of 240, ", status.stdout)
    cluster.kill_controller()
    study.wait_for_step(60)
    cluster.start_controller()
    same(attempts=1)


def test_the_job_of_a_killed_snakemake_is_waited_for(study, same):
    study.train()
    job = study.wait_for_step(25).job
    study.snakemake.kill()
    study.snakemake.wait()
    study.train()
    same(attempts=1)
    assert "the locks that it left are removed" in study.text
    assert f"job {job} trains {STAGE} (running on node" in study.text
    assert "another job has finished it since this run began" in study.log()


def test_a_stage_that_a_killed_snakemake_did_not_see_end_is_kept(study, same, cluster):
    study.train()
    job = study.wait_for_step(25).job
    study.snakemake.kill()
    study.snakemake.wait()
    record = stage_record(study.root, STAGE)
    wait_until(record.exists, 120, "the end of the stage")
    wait_until(lambda: not cluster.run("squeue", "-h", "-j", job), 30, "the end of its job")
    before = record.stat().st_mtime_ns
    study.train()
    same(attempts=1)
    assert record.stat().st_mtime_ns == before
    assert "Nothing to be done" in study.text


def test_more_memory_is_asked_for_where_it_was_short(study, undisturbed):
    change(study.root, "models/tiny", resources__memory_mb=450)
    study.train()
    found = study.finish()
    assert found.code == 0, found.text
    assert study.files() == undisturbed[1]
    *short, _ = study.attempts()
    assert [attempt.why for attempt in short] in ([MEMORY], [MEMORY, MEMORY])
    asked = [memory for [memory] in study.job_lines("ReqMem")]
    assert asked == ["450M", "675M", "1012M"][: len(short) + 1]
