"""The cluster of the tests is what the other tests take it for."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from cluster import NODES
from processes import wait_until

SLEEP = "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES; sleep 300"


class Job:
    """A batch job, and what it prints."""

    def __init__(self, cluster, directory, script, *options):
        output = ("--output", f"{directory}/%j.out", "--open-mode=append")
        self.cluster = cluster
        self.id = cluster.run("sbatch", "--parsable", *output, *options, "--wrap", script)
        self.output = directory / f"{self.id}.out"

    @property
    def state(self) -> str:
        """Its state and why it is in it, such as "PENDING (Resources)"."""
        return self.cluster.run("squeue", "-h", "-t", "all", "-j", self.id, "-o", "%T (%r)")

    def wait_for(self, state: str) -> None:
        """Wait until the job is in a state."""
        wait_until(lambda: self.state.startswith(state), 30, f"job {self.id} is {state}")

    def lines(self, number: int) -> list[list[str]]:
        """Wait until the job has printed a number of lines, and return their words."""

        def printed() -> list[list[str]]:
            text = self.output.read_text() if self.output.exists() else ""
            return [line.split() for line in text.splitlines()]

        wait_until(lambda: len(printed()) >= number, 30, f"{number} lines of job {self.id}")
        return printed()


@pytest.fixture
def submit(cluster, tmp_path):
    """A function that submits a job, which ends with the test."""
    jobs = []

    def submit(script: str, *options: str) -> Job:
        jobs.append(Job(cluster, tmp_path, script, *options))
        return jobs[-1]

    yield submit
    cluster.run("scancel", *[job.id for job in jobs])


def test_three_nodes_with_two_gpus_each(cluster):
    found = cluster.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %c %m %G")
    assert found.splitlines() == [f"{name} 8 6000 gpu:2" for name in NODES]


def test_a_command_runs_on_two_nodes(cluster):
    found = cluster.run("srun", "-N2", "--ntasks-per-node=1", "sh", "-c", "echo $SLURMD_NODENAME")
    assert len(set(found.split()) & set(NODES)) == 2


def test_a_failing_command_says_why(cluster):
    with pytest.raises(RuntimeError, match="invalid partition specified: none"):
        cluster.run("sbatch", "-p", "none", "--wrap", "true")


def test_a_job_gets_its_gpus_and_the_seventh_waits(submit):
    jobs = [submit(SLEEP, "-p", "gpu", "--gres=gpu:1") for _ in range(7)]
    found = [job.lines(1)[0] for job in jobs[:6]]
    assert sorted(map(tuple, found)) == [(node, gpu) for node in NODES for gpu in ("0", "1")]
    assert jobs[6].state in ("PENDING (Resources)", "PENDING (Priority)", "PENDING (None)")


def test_the_accounting_knows_how_a_job_ended(submit, cluster):
    job = submit("exit 3")
    command = ("sacct", "-n", "-X", "-P", "-j", job.id, "-o", "Account,State,ExitCode")
    wait_until(lambda: cluster.run(*command) == "ci|FAILED|3:0", 30, "the job's record")


def test_a_job_is_made_of_its_script_and_its_steps(submit, cluster):
    job = submit("srun sleep 300")
    wait_until(lambda: "sleep" in names(cluster, job), 30, "the step runs")
    script = psutil.Process(cluster.batch_step(job.id))
    assert script.name() == "slurm_script"
    assert script.pid == cluster.processes_of(job.id)[0]
    os.kill(script.pid, signal.SIGKILL)
    job.wait_for("FAILED")
    wait_until(lambda: not cluster.processes_of(job.id), 30, "the step is gone")


def test_the_job_of_a_lost_node_runs_again_on_another(submit, cluster):
    job = submit(SLEEP)
    [[lost]] = job.lines(1)
    cluster.kill_node(lost)
    try:
        assert not cluster.processes_of(job.id)
        # It would take the controller half a minute to notice.
        cluster.run("scontrol", "update", f"nodename={lost}", "state=down", "reason=lost")
        [_, [other]] = job.lines(2)
        assert other != lost
    finally:
        cluster.start_node(lost)
    assert cluster.node_state(lost) in ("idle", "mixed")


def test_a_job_outlives_the_controller(submit, cluster):
    job = submit(SLEEP)
    job.lines(1)
    processes = cluster.processes_of(job.id)
    # What the controller has not saved yet, it forgets: a later change of the job must be there.
    cluster.run("scontrol", "update", f"jobid={job.id}", "comment=this-is-saved")
    saved = ("grep", "-l", "this-is-saved", f"{cluster.directory}/slurmctld/job_state")
    wait_until(lambda: cluster.run(*saved, check=False), 30, "the controller's state is saved")
    cluster.kill_controller()
    try:
        assert "DOWN" in cluster.run("scontrol", "ping", check=False)
    finally:
        cluster.start_controller()
    assert job.state.startswith("RUNNING")
    assert cluster.processes_of(job.id) == processes
    submit("true").wait_for("COMPLETED")


def names(cluster, job: Job) -> set[str]:
    """The names of a job's processes."""
    return {psutil.Process(pid).name() for pid in cluster.processes_of(job.id)}
