"""One job at a time on a directory; whoever has ended has lost its lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest import lock, slurm
from palimpsest.lock import Held, locked

HOLD = """
import sys
from pathlib import Path
from palimpsest.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(lock, "SETTLED", 0.01)
    monkeypatch.setattr(lock, "PATIENCE", 0)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the directory."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def written(directory: Path, **facts: object) -> None:
    """Write the lock of a holder that is somewhere else."""
    other = {"job": None, "host": "elsewhere", "pid": 1, "started": 0.0}
    (directory / "lock.json").write_text(json.dumps(other | facts))


def test_a_lock_is_there_while_it_is_held(tmp_path):
    with locked(tmp_path / "resume"):
        assert json.loads((tmp_path / "resume/lock.json").read_text())["pid"] == os.getpid()
    assert list((tmp_path / "resume").iterdir()) == []


def test_a_living_process_keeps_others_off(tmp_path, holder):
    refusal = f"process {holder.pid} on .* is at work.*`kill {holder.pid}`"
    with pytest.raises(Held, match=refusal), locked(tmp_path):
        pass
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == holder.pid


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder, capsys):
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert f"taken over from process {holder.pid} on " in capsys.readouterr().out


def test_another_process_with_the_same_pid_is_not_the_holder(tmp_path):
    with locked(tmp_path):
        me = json.loads((tmp_path / "lock.json").read_text())
    written(tmp_path, **me | {"started": me["started"] - 1000})
    with locked(tmp_path):
        pass


def test_a_holder_that_ends_soon_is_waited_for(tmp_path, holder, monkeypatch):
    holder.stdin.close()
    monkeypatch.setattr(lock, "PATIENCE", 20)
    with locked(tmp_path):
        pass


def test_a_process_of_another_host_may_be_alive(tmp_path):
    written(tmp_path)
    refusal = r"on elsewhere is at work.*remove .*lock\.json"
    with pytest.raises(Held, match=refusal), locked(tmp_path):
        pass


def test_slurm_knows_that_a_job_is_alive(tmp_path, monkeypatch):
    written(tmp_path, job="17")
    monkeypatch.setattr(slurm, "is_active", lambda job: job == "17")
    refusal = "job 17 on elsewhere is at work here. .*`scancel 17`"
    with pytest.raises(Held, match=refusal), locked(tmp_path):
        pass


def test_slurm_knows_that_a_job_has_ended(tmp_path, monkeypatch):
    written(tmp_path, job="17")
    monkeypatch.setattr(slurm, "is_active", lambda job: False)
    with locked(tmp_path):
        pass


def test_a_requeued_job_takes_over_from_itself(tmp_path, monkeypatch):
    written(tmp_path, job="17")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with locked(tmp_path):
        pass


def test_a_lock_that_was_cut_short_belongs_to_nobody(tmp_path):
    (tmp_path / "lock.json").write_text('{"job": "1')
    with locked(tmp_path):
        pass
