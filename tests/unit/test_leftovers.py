"""What a killed Snakemake leaves behind: locks and jobs, and what is done with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest import leftovers, slurm
from palimpsest.leftovers import hold_directory, left_in_queue
from palimpsest.lineage import Stage
from palimpsest.slurm import Job

FIRST, SECOND = (Stage.parse(f"three/tiny/lora/seed-0/{path}") for path in ("a", "a/b"))
COMMENT = "rule_train_wildcards_three_tiny_lora_seed-0_a"
HOLD = """
import sys
from palimpsest.leftovers import hold_directory
alone, held = hold_directory()
print(alone, flush=True)
sys.stdin.read()
"""


def job(id, comment, state="RUNNING", waits_for=""):
    return Job(id, state, "Priority", "" if state == "PENDING" else "node1", waits_for, comment)


@pytest.fixture
def queued(monkeypatch):
    """Put jobs into Slurm's queue; returns the list of those that are cancelled."""
    cancelled = []
    monkeypatch.setattr(slurm, "cancel", cancelled.append)

    def put(*jobs):
        monkeypatch.setattr(slurm, "queue", lambda workdir: list(jobs))
        return cancelled

    return put


def test_training_goes_on_and_the_rest_is_cancelled(queued, capsys):
    cancelled = queued(
        job("1", COMMENT),
        job("2", "rule_evaluate_wildcards_three_tiny_base"),
        job("3", "a job of the user's own"),
        job("4", "rule_train_wildcards_other_study"),
    )
    left = left_in_queue([FIRST, SECOND], Path(), alone=True)
    assert {stage: job.id for stage, job in left.training.items()} == {FIRST: "1"}
    left.take_over(Path("results"))
    assert cancelled == ["2"]
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "2 jobs of an earlier run are in the queue:"
    assert printed[1].startswith(f"  job 1 trains {FIRST} (running on node1): it goes on; the new")
    assert printed[2].endswith("(running): cancelled, and run anew")


def test_a_job_that_has_its_place_in_the_queue_keeps_it(queued, capsys):
    cancelled = queued(
        job("1", COMMENT, "PENDING"), job("2", COMMENT, "PENDING", waits_for="afterany:1")
    )
    left = left_in_queue([FIRST], Path(), alone=True)
    left.take_over(Path("results"))
    assert left.training[FIRST].id == "1"
    assert cancelled == ["2"]
    assert f"job 1 trains {FIRST} (pending: Priority)" in capsys.readouterr().err


def test_jobs_of_another_snakemake_that_is_alive_are_left_alone(queued):
    queued(job("1", COMMENT), job("2", "rule_evaluate_wildcards_three_tiny_base"))
    left = left_in_queue([FIRST], Path(), alone=False)
    assert left.training[FIRST].id == "1"
    assert left.useless == []


def test_nothing_is_said_where_nothing_is_left(queued, capsys):
    queued()
    left_in_queue([FIRST], Path(), alone=True).take_over(Path("results"))
    assert capsys.readouterr().err == ""


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """The lock of a Snakemake in the working directory."""
    monkeypatch.chdir(tmp_path)
    lock = tmp_path / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    return lock


def another():
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "True\n"
    return process


def test_locks_of_a_killed_snakemake_are_removed(locks, capsys):
    locks.unlink()
    other = another()
    locks.touch()
    other.kill()
    other.communicate()
    alone, held = hold_directory()
    assert alone
    assert not locks.exists()
    assert "the locks that it left are removed" in capsys.readouterr().err
    held.close()


def test_locks_of_a_living_snakemake_are_kept(locks):
    locks.unlink()
    other = another()
    locks.touch()
    alone, held = hold_directory()
    held.close()
    other.kill()
    other.communicate()
    assert not alone
    assert locks.exists()


def test_a_snakemake_of_another_host_may_be_alive(locks, monkeypatch):
    (locks.parents[1] / "controllers").write_text("login2\n")
    alone, held = hold_directory()
    held.close()
    assert not alone
    assert locks.exists()
    assert leftovers.socket.gethostname() in (locks.parents[1] / "controllers").read_text()
