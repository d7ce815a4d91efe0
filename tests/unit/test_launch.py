"""From a model's resources to a job, and what a job does before and after it trains."""

from __future__ import annotations

import os
import time

import pytest

from palimpsest import launch, slurm
from palimpsest.attempts import MEMORY, NEAR_LIMIT, SIGNALLED, TIME, Attempts
from palimpsest.config import Resources
from palimpsest.files import sha256, write_json
from palimpsest.launch import DECIDED, REQUEUE, job_resources, run_stage
from palimpsest.lineage import Stage
from palimpsest.lock import Held
from palimpsest.study import RESULTS, stage_fingerprint

STAGE = Stage.parse("three/tiny/lora/seed-0/signs")
ONE_NODE = {
    "mem_mb": 1000, "runtime": 60, "nodes": 1,
    "gpu": None, "mpi": None, "tasks": None, "slurm_extra": None,
}  # fmt: skip


def asked(tmp_path, **settings):
    given = {"memory_mb": 1000, "minutes": 60, "checkpoint_steps": 1} | settings
    return job_resources(Resources(**given), Attempts(tmp_path))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ranks": 4, "threads": 2}, {}),
        ({"gpus": 4}, {"gpu": 4}),
        (
            {"nodes": 2, "ranks": 4},
            {"nodes": 2, "tasks": 2, "mpi": "srun", "slurm_extra": "--ntasks-per-node=1"},
        ),
        (
            {"nodes": 3, "gpus": 8},
            {
                "nodes": 3, "tasks": 3, "mpi": "srun",
                "slurm_extra": "--ntasks-per-node=1 --gpus-per-node=8",
            },
        ),
    ],
)  # fmt: skip
def test_what_a_stage_asks_for(tmp_path, settings, expected):
    assert asked(tmp_path, **settings) == ONE_NODE | expected


def test_more_is_asked_of_what_was_short(tmp_path):
    attempts = Attempts(tmp_path)
    for why in (MEMORY, SIGNALLED, "killed", MEMORY, TIME):
        attempts.begin()
        attempts.end(why)
    found = asked(tmp_path)
    assert (found["mem_mb"], found["runtime"]) == (2250, 90)


def ends(why, code):
    """A training that says how it ended and returns an exit code."""

    def train():
        if why:
            Attempts(STAGE.resume(RESULTS)).end(why)
        return code

    return train


@pytest.mark.parametrize(
    ("state", "why", "code", "returned", "requeued"),
    [
        ("RUNNING", NEAR_LIMIT, REQUEUE, REQUEUE, 1),
        ("RUNNING", SIGNALLED, REQUEUE, REQUEUE, 1),  # a warning of preemption
        ("COMPLETING", SIGNALLED, REQUEUE, REQUEUE, 0),  # it is cancelled, or requeued by another
        (None, NEAR_LIMIT, REQUEUE, REQUEUE, 0),  # no job of Slurm's
        ("RUNNING", SIGNALLED, 137, REQUEUE, 1),  # a rank was killed after the checkpoint
        ("RUNNING", None, 137, 137, 0),
        ("RUNNING", None, 0, 0, 0),
    ],
)
def test_a_job_that_stopped_goes_back_into_the_queue(
    workplace, monkeypatch, state, why, code, returned, requeued
):
    calls = []
    monkeypatch.setattr(slurm, "own_job", lambda: state and "17")
    monkeypatch.setattr(slurm, "state", {"17": state}.get)
    monkeypatch.setattr(slurm, "requeue", lambda: calls.append(1) or True)
    assert run_stage(STAGE, ends(why, code)) == returned
    assert len(calls) == requeued
    last = Attempts(STAGE.resume(RESULTS)).last
    assert last is None if code == 0 else last.why == (why or "ended with exit code 137")


def test_two_jobs_do_not_work_on_a_stage(workplace, monkeypatch):
    monkeypatch.setattr("palimpsest.lock.PATIENCE", 0)
    write_json(
        STAGE.resume(RESULTS) / "lock.json",
        {"job": "5", "host": "node1", "pid": 1, "started": 0},
    )
    monkeypatch.setattr(slurm, "is_active", lambda job: True)
    with pytest.raises(Held, match="job 5 on node1 is at work here"):
        run_stage(STAGE, lambda: pytest.fail("it trained"))


@pytest.fixture
def finished(workplace):
    """A stage that is finished, but whose record Snakemake has removed."""
    out, kept = STAGE.directory(RESULTS), STAGE.resume(RESULTS) / "stage.json"
    out.mkdir(parents=True)
    (out / "weights").write_text("learnt")
    record = {
        "fingerprint": stage_fingerprint(STAGE),
        "files": {"weights": sha256(out / "weights")},
    }
    write_json(kept, record)
    return out / "stage.json", kept


def test_a_stage_that_was_finished_meanwhile_is_taken_as_it_is(finished, monkeypatch, capsys):
    record, kept = finished
    monkeypatch.setenv(DECIDED, str(time.time() - 60))
    assert run_stage(STAGE, lambda: pytest.fail("it trained")) == 0
    assert record.read_bytes() == kept.read_bytes()
    assert record.stat().st_mtime == kept.stat().st_mtime
    assert "another job has finished it since this run began" in capsys.readouterr().out


def test_a_stage_that_was_there_when_the_run_began_is_trained_anew(finished, monkeypatch):
    monkeypatch.setenv(DECIDED, str(time.time() + 60))
    assert run_stage(STAGE, lambda: 3) == 3


def test_without_a_run_nothing_is_taken_over(finished, monkeypatch):
    monkeypatch.delenv(DECIDED, raising=False)
    assert run_stage(STAGE, lambda: 3) == 3


def test_a_damaged_stage_is_not_taken_over(finished, monkeypatch):
    monkeypatch.setenv(DECIDED, str(time.time() - 60))
    (finished[0].parent / "weights").write_text("changed")
    assert run_stage(STAGE, lambda: 3) == 3
    assert not os.path.exists(finished[0])


def test_a_rank_dies_with_its_launcher(tmp_path):
    """A launcher that is killed by force leaves no rank behind."""
    import subprocess
    import sys

    import psutil

    code = (
        "import subprocess, sys, time\n"
        "from palimpsest.launch import _die_with_parent\n"
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=_die_with_parent)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_launch_is_a_command_of_srun_over_nodes():
    command = launch._by_srun(Resources(
        nodes=2, gpus=4, threads=3, workers=5, memory_mb=1, minutes=1, checkpoint_steps=1
    ), ["python", "-m", "palimpsest.cli", "train", "a b"])  # fmt: skip
    assert command[:6] == [
        "srun", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=8",
        "--gpus-per-node=4",
    ]  # fmt: skip
    assert command[-1] == (
        "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python -m palimpsest.cli train 'a b'"
    )
