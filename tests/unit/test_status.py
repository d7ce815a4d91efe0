"""The state of a study, from files as jobs leave them and a queue as Slurm tells of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from palimpsest import cli, slurm
from palimpsest.attempts import SIGNALLED
from palimpsest.config import PACKAGE
from palimpsest.files import write_json
from palimpsest.lineage import Stage
from palimpsest.logs import last_lines
from palimpsest.slurm import Job, job_comment
from palimpsest.status import describe, describe_failed, look
from palimpsest.study import RESULTS, plan

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
TASKS = ("signs", "count", "boxes")
LORA = "three/tiny/lora/seed-0"
BASE, FIRST, SECOND = "three/tiny/base", f"{LORA}/signs", f"{LORA}/signs/count"


class Slurm:
    """What it answers: a queue, and the states of jobs that have ended."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.states: dict[str, str] = {}

    def submit(self, id, state, rule, *wildcards, reason="None", waits_for=""):
        nodes = "" if state == "PENDING" else "node2"
        self.jobs.append(Job(id, state, reason, nodes, waits_for, job_comment(rule, *wildcards)))


@pytest.fixture
def queue(workplace, monkeypatch):
    """A Slurm without jobs, and a study `small` of three stages whose data is converted."""
    workplace.change("small", references={}, evaluation__fan_out="stage")
    for task in TASKS:
        write_json(RESULTS / "data" / task / "manifest.json", {})
        write_json(RESULTS / "data" / task / "chance.json", {})
    answers = Slurm()
    monkeypatch.setattr(slurm, "queue", lambda workdir: answers.jobs)
    monkeypatch.setattr(slurm, "state", answers.states.get)
    monkeypatch.setattr(slurm, "is_active", lambda job: answers.states.get(job) == "RUNNING")
    return answers


def resume(path):
    return Stage.parse(path).resume(RESULTS)


def put(path, text="", after=NOW):
    """Write a file that was changed at some time."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (after.timestamp(), after.timestamp()))
    return path


def log(path, name, text="", after=NOW):
    return put(RESULTS / "logs" / "stages" / path / f"{name}.log", text, after)


def finish(path, attempts=1):
    """Leave what a finished stage leaves."""
    record = {"steps": 120, "wall_seconds": 250.2, "attempts": [{}] * attempts}
    put(Stage.parse(path).directory(RESULTS) / "stage.json", json.dumps(record), NOW)


def attempt(path, *, step=0, saved=(), job="7", **facts):
    """Leave what an attempt leaves that began ten minutes ago after step 20 of 120."""
    begun = (NOW - timedelta(minutes=10)).isoformat(timespec="seconds")
    lines = [{"begun": begun, "host": "node2", "pid": 5, "job": job}]
    lines += [{"after_step": 20, "num_steps": 120}] if step else []
    lines += [facts] if facts else []
    put(resume(path) / "attempts.jsonl", "\n" + "\n".join(map(json.dumps, lines)))
    rows = [json.dumps({"step": n + 1, "loss": 1.0}) for n in range(step)]
    put(resume(path) / "metrics.jsonl", "\n".join(rows) + "\n")
    for number in saved:
        put(resume(path) / f"step-{number:06}" / "progress.json", "{}")


def score(path, *tasks):
    for task in tasks:
        cell = Stage.parse(path).cell(RESULTS, "test", task)
        put(cell / "predictions.parquet")
        put(cell / "metric/scores.json")


def stages():
    """Return state, worker and detail of each stage."""
    found = look(plan("small"), NOW).stages
    return {str(stage): (work.state, work.worker, work.detail) for stage, work in found.items()}


def cells():
    """Return how many cells of each stage are in which state."""
    found = look(plan("small"), NOW).cells
    return {str(stage): dict(+of_stage.counts) for stage, of_stage in found.items()}


def test_the_comments_of_jobs():
    assert job_comment("train", SECOND) == "rule_train_wildcards_three_tiny_lora_seed-0_signs_count"
    assert job_comment("evaluate", BASE, "x") == "rule_evaluate_wildcards_three_tiny_base_x"
    assert job_comment("report") == "rule_report"


def test_waiting(queue):
    (RESULTS / "data/signs/manifest.json").unlink()
    assert stages()[FIRST] == ("waiting", "", "for its data")
    assert stages()[SECOND] == ("waiting", "", "for the stage before it")
    finish(FIRST)
    assert stages()[SECOND] == ("waiting", "", "")


def test_done(queue):
    finish(FIRST)
    finish(SECOND, attempts=3)
    assert stages()[FIRST] == ("done", "", "120 steps in 0:04:10")
    assert stages()[SECOND] == ("done", "", "120 steps in 0:04:10, 2 restarts")


def test_running_in_slurm(queue):
    queue.submit("7", "RUNNING", "train", FIRST)
    assert stages()[FIRST] == ("running", "job 7 on node2", "starting")
    attempt(FIRST)
    assert stages()[FIRST] == ("running", "job 7 on node2", "starting")
    attempt(FIRST, step=20)
    assert stages()[FIRST] == ("running", "job 7 on node2", "step 20 of 120")
    attempt(FIRST, step=70)  # 50 steps in 10 minutes
    assert stages()[FIRST] == ("running", "job 7 on node2", "step 70 of 120, 0:10:00 left")


def test_a_row_in_the_making(queue):
    queue.submit("7", "RUNNING", "train", FIRST)
    attempt(FIRST, step=70)
    with (resume(FIRST) / "metrics.jsonl").open("a") as f:
        f.write('{"step": 7')
    assert stages()[FIRST][2].startswith("step 70 of 120")


def test_running_here(queue):
    me = {"job": None, "host": os.uname().nodename, "pid": os.getpid()}
    attempt(FIRST, step=70, job=None)
    write_json(resume(FIRST) / "lock.json", me | {"started": psutil.Process().create_time()})
    assert stages()[FIRST][:2] == ("running", f"process {os.getpid()} on {os.uname().nodename}")
    write_json(resume(FIRST) / "lock.json", me | {"started": 0.0})  # it was another process
    assert stages()[FIRST][0] == "failed"


def test_running_by_a_job_that_snakemake_did_not_submit(queue):
    attempt(FIRST, step=70)
    holder = {"job": "7", "host": "node2", "pid": 5, "started": 0.0}
    write_json(resume(FIRST) / "lock.json", holder)
    queue.states["7"] = "RUNNING"
    assert stages()[FIRST][:2] == ("running", "job 7 on node2")
    queue.states["7"] = "NODE_FAIL"
    assert stages()[FIRST][0] == "failed"


def test_queued(queue):
    attempt(FIRST, step=70, why="out of memory")
    queue.submit("8", "PENDING", "train", FIRST, reason="Priority")
    assert stages()[FIRST] == ("queued", "job 8", "Priority")
    queue.jobs.clear()
    queue.submit("8", "PENDING", "train", FIRST, reason="launch failed requeued held")
    released = "launch failed requeued held: scontrol release 8"
    assert stages()[FIRST] == ("queued", "job 8", released)
    queue.jobs.clear()
    queue.submit("8", "PENDING", "train", FIRST, reason="Dependency", waits_for="afterany:7")
    assert stages()[FIRST] == ("queued", "job 8", "Dependency, after afterany:7")


def test_of_two_jobs_the_one_that_runs(queue):
    queue.submit("7", "RUNNING", "train", FIRST)
    queue.submit("8", "PENDING", "train", FIRST)
    assert stages()[FIRST][:2] == ("running", "job 7 on node2")


@pytest.mark.parametrize(
    ("saved", "goes_on"),
    [((), "starts anew"), ((40, 60), "goes on after step 60"), ((60, 70), "goes on from there")],
)
def test_failed(queue, saved, goes_on):
    attempt(FIRST, step=70, saved=saved, why="out of memory")
    told = f"after step 70 of 120: out of memory; its next attempt {goes_on}"
    assert stages()[FIRST] == ("failed", "job 7 on node2", told)


def test_killed_and_slurm_knows_why(queue):
    attempt(FIRST, step=70)
    queue.states["7"] = "TIMEOUT"
    assert stages()[FIRST][2].startswith("after step 70 of 120: time limit;")


def test_failed_before_its_first_step(queue):
    attempt(FIRST, why="ValueError: one thing\nand another.")
    told = "before its first step: ValueError: one thing and another; its next attempt starts anew"
    assert stages()[FIRST][2] == told


def test_failed_before_its_first_attempt(queue):
    put(resume(FIRST) / "train.log", "palimpsest: command not found")
    assert stages()[FIRST] == ("failed", "", "before it began")
    put(resume(FIRST) / "stage.json", "{}")  # a stage that was finished and then removed
    assert stages()[FIRST][0] == "waiting"


def test_stopped(queue):
    attempt(FIRST, step=70, saved=[70], why=SIGNALLED)
    state, _, detail = stages()[FIRST]
    assert state == "stopped"
    assert detail == f"after step 70 of 120: {SIGNALLED}; its next attempt goes on from there"


def test_cells_of_one_job(queue):
    assert list(cells()) == [BASE, FIRST, SECOND, f"{SECOND}/boxes"]
    assert cells()[BASE] == {"waiting": 3}
    score(BASE, "signs")
    queue.submit("7", "RUNNING", "evaluate", BASE)
    assert cells()[BASE] == {"done": 1, "running": 2}
    queue.jobs.clear()
    log(BASE, "evaluate-test", "Killed")
    assert cells()[BASE] == {"done": 1, "failed": 2}
    queue.submit("8", "PENDING", "evaluate", BASE)
    assert cells()[BASE] == {"done": 1, "queued": 2}


def test_cells_of_a_job_each(workplace, queue):
    workplace.change("small", evaluation__fan_out="cell")
    finish(FIRST)
    score(FIRST, "signs")
    log(FIRST, "evaluate-test-count")
    queue.submit("7", "RUNNING", "evaluate", FIRST, "boxes")
    assert cells()[FIRST] == {"done": 1, "running": 1, "failed": 1}


def judged(workplace, **values):
    """Have the study's cells judged, too."""
    judge = {"title": "J", "kind": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "m"}
    needs = {"protocol": "corrected", "resources": {"memory_mb": 100, "minutes": 10}}
    for name in ("kind", "strict"):
        workplace.write(f"judges/{name}", judge | needs)
    workplace.change("small", measures=["metric", "kind", "strict"], **values)


def test_cells_that_are_judged(workplace, queue):
    judged(workplace)
    score(BASE, *TASKS)
    assert cells()[BASE] == {"waiting": 3}
    queue.submit("7", "PENDING", "judge", BASE, "strict")
    assert cells()[BASE] == {"queued": 3}
    log(BASE, "judge-kind-test", "palimpsest: error: no server")
    assert cells()[BASE] == {"queued": 3}  # the other judge's job has failed
    failed = look(plan("small"), NOW).failed
    assert [(w.name, w.comment) for w in failed] == [
        (f"judge {BASE} by kind", job_comment("judge", BASE, "kind"))
    ]
    queue.submit("8", "RUNNING", "judge", BASE, "kind")
    assert cells()[BASE] == {"running": 3}
    for task in TASKS:
        for judge in ("kind", "strict"):
            put(Stage.parse(BASE).cell(RESULTS, "test", task) / judge / "scores.json")
    assert cells()[BASE] == {"done": 3}


def test_cells_of_a_judge_job_each(workplace, queue):
    judged(workplace, evaluation__fan_out="cell")
    score(BASE, "signs", "count")
    queue.submit("7", "RUNNING", "judge", BASE, "signs", "strict")
    log(BASE, "judge-strict-test-count")
    queue.submit("8", "RUNNING", "evaluate", BASE, "boxes")
    assert cells()[BASE] == {"running": 2, "failed": 1}
    assert [w.name for w in look(plan("small"), NOW).failed] == [f"judge {BASE} by strict on count"]


def test_a_log_of_an_earlier_life(queue):
    """The stage was trained anew, or the cells answered anew, after the log was written."""
    before = NOW - timedelta(days=1)
    finish(FIRST)
    log(FIRST, "evaluate-test", "a crash", after=before)
    assert cells()[FIRST] == {"waiting": 3}
    score(FIRST, *TASKS)
    (Stage.parse(FIRST).cell(RESULTS, "test", "count") / "metric/scores.json").unlink()
    log(FIRST, "score-test", "a crash", after=before)
    assert cells()[FIRST] == {"done": 2, "waiting": 1}
    log(FIRST, "score-test", "a crash")
    assert cells()[FIRST] == {"done": 2, "failed": 1}


def test_cells_that_a_process_of_this_machine_answers(workplace, queue):
    log(BASE, "evaluate-test", "loaded")
    program = put("bin/palimpsest", "import time; print(flush=True); time.sleep(60)")
    command = [sys.executable, program, "evaluate", BASE, "--tasks", *TASKS]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert cells()[BASE] == {"running": 3}
        workplace.change("small", evaluation__fan_out="cell")
        assert cells()[BASE] == {"running": 3}
        process.kill()


def test_cells_that_a_process_of_this_machine_judges(workplace, queue):
    judged(workplace)
    score(BASE, *TASKS)
    program = put("bin/palimpsest", "import time; print(flush=True); time.sleep(60)")
    command = [sys.executable, program, "judge", BASE, "--judge", "strict", "--tasks", *TASKS]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        for fan_out in ("stage", "cell"):
            workplace.change("small", evaluation__fan_out=fan_out)
            works = look(plan("small"), NOW).cells[Stage.parse(BASE)].works
            assert {work.worker for work in works} == {f"process {process.pid}"}
            assert {work.name.split(" on ")[0] for work in works} == {f"judge {BASE} by strict"}
        process.kill()


def test_a_refusal_is_told_whole(tmp_path):
    text = "loaded\npalimpsest: error: a.yaml: wrong\n  Give it another name.\n"
    found = ["palimpsest: error: a.yaml: wrong", "  Give it another name."]
    assert last_lines(put(tmp_path / "a.log", text)) == found


def test_an_exception_is_told_with_our_last_frame(tmp_path):
    frame = f'File "{PACKAGE}/training/loop.py", line 5, in steps'
    text = f"""x: step 40/120, loss 1.2
Traceback (most recent call last):
  File "{PACKAGE}/cli.py", line 3, in main
    return train()
  {frame}
    engine.backward(loss)
  File "/opt/torch/tensor.py", line 9, in backward
    run(self)
torch.OutOfMemoryError: 2 GiB are not free
/usr/bin/ld: cannot find -laio: No such file or directory
"""
    expected = [frame, "torch.OutOfMemoryError: 2 GiB are not free"]
    assert last_lines(put(tmp_path / "a.log", text)) == expected
    ranks = "".join(f"[rank1]: {line}\n" for line in text.splitlines())
    assert last_lines(put(tmp_path / "ranks.log", ranks)) == expected


def test_an_exception_of_an_earlier_attempt_is_not_told(tmp_path):
    text = "Traceback (most recent call last):\nKeyError: 1\nattempt 2 at x: job 7\nslurmstepd: x"
    assert last_lines(put(tmp_path / "a.log", text)) == ["slurmstepd: x"]


def test_noise_and_progress_bars_are_not_told(tmp_path):
    text = (
        "the last word\n\n"
        "a.py:3: FutureWarning: soon\n  warnings.warn(\n"
        "[2026-11-21 12:00:00] [INFO] [real_accelerator.py:260] cuda\n"
        "[rank0]:[W1121 12:00:00 socket.cpp:752] no\n"
        "load:  10%|#\rload: 100%|##########| 9/9\n"
        "one\rtwo\r\n"
    )
    assert last_lines(put(tmp_path / "a.log", text)) == ["the last word", "two"]


def test_a_log_of_any_size_and_kind(tmp_path):
    lines = "\n".join(f"line {n}" for n in range(100_000))
    assert last_lines(put(tmp_path / "a.log", lines), most=2) == ["line 99998", "line 99999"]
    assert last_lines(put(tmp_path / "empty.log")) == []
    assert last_lines(tmp_path / "none.log") == []
    (tmp_path / "bytes.log").write_bytes(b"\xff\xfe end")
    assert last_lines(tmp_path / "bytes.log")[0].endswith("end")


def test_the_whole_status(queue):
    finish(FIRST, attempts=2)
    score(BASE, *TASKS)
    score(FIRST, "signs")
    log(FIRST, "evaluate-test", "Traceback (most recent call last):\nRuntimeError: no\n")
    attempt(SECOND, step=70, saved=[60], why="out of memory")
    assert describe(plan("small"), NOW).splitlines() == [
        "small: A study",
        "",
        "stages   3 to train: 1 done, 1 failed, 1 waiting",
        "cells    12 to score: 4 done, 2 failed, 6 waiting",
        "",
        f"  done     {FIRST}  120 steps in 0:04:10, 1 restart",
        f"  failed   {SECOND}  job 7 on node2, after step 70 of 120: out of memory; "
        "its next attempt goes on after step 60",
        f"           results/logs/stages/{SECOND}/train.log",
        f"  waiting  {SECOND}/boxes  for the stage before it",
        "",
        "cells to score",
        f"  {FIRST}  1 done, 2 failed; RuntimeError: no",
        "  and those of 2 stages not trained yet",
        "",
        "2 jobs failed: `palimpsest status small --failed` tells how",
    ]


def test_a_download_and_weights_that_failed(workplace, queue):
    workplace.write("downloads/photos", "title: P\nkind: manual\ninstructions: x\nfiles: [a]\n"
                    "licence: none\nsize: 1 MB\n")  # fmt: skip
    workplace.change("tasks/signs", downloads=["photos"])
    parts = {"weights": "results/models/tiny", "parts": {"checkpoint": "photos/tiny"}}
    workplace.change("models/tiny", **parts)
    assert not [line for line in describe_failed(plan("small"), NOW).splitlines() if "load" in line]
    put(RESULTS / "logs/downloads/photos.log", "palimpsest: error: photos: put them there")
    put(RESULTS / "logs/models/tiny.log", "palimpsest: error: tiny: a tensor is missing")
    found = describe_failed(plan("small"), NOW).splitlines()
    assert found[0] == "2 jobs of small failed:"
    assert {"download photos", "assemble tiny"} < set(found)
    put(RESULTS / "downloads/photos/download.json", "{}")
    put(RESULTS / "models/tiny/config.json", "{}")
    assert "No job of small has failed" in describe_failed(plan("small"), NOW)


def test_all_that_failed(queue):
    (RESULTS / "data/boxes/manifest.json").unlink()
    refusal = put(RESULTS / "logs/data/boxes/convert.log", "palimpsest: error: boxes: no such file")
    finish(FIRST)
    attempt(SECOND, step=70, saved=[60], why="out of memory")
    training = log(SECOND, "train", "x: step 70/120\nTraceback (most):\nOutOfMemoryError: 2 GiB\n")
    answering = log(FIRST, "evaluate-test")
    put(RESULTS / f"logs/slurm/rule_evaluate/{FIRST.replace('/', '_')}/9.log")
    queue.states["9"] = "TIMEOUT"
    assert describe_failed(plan("small"), NOW).splitlines() == [
        "3 jobs of small failed:",
        "",
        "convert boxes",
        f"  log: {refusal}",
        "    palimpsest: error: boxes: no such file",
        "",
        f"train {SECOND}    (job 7 on node2)",
        "  after step 70 of 120: out of memory; its next attempt goes on after step 60",
        f"  log: {training}",
        "    OutOfMemoryError: 2 GiB",
        "",
        f"evaluate {FIRST}    (job 9)",
        "  time limit",
        f"  log: {answering}, which tells nothing",
    ]


def test_stages_that_stopped_did_not_fail(queue):
    attempt(FIRST, step=70, saved=[70], why=SIGNALLED)
    assert describe_failed(plan("small"), NOW).splitlines() == [
        "No job of small has failed, as far as its logs tell.",
        "",
        "1 stage stopped with a checkpoint; the same command goes on from there:",
        f"  {FIRST}",
    ]


def test_a_report_that_failed(queue):
    put(RESULTS / "logs/reports/small.log", "ValueError: no")
    assert not look(plan("small"), NOW).others  # cells are missing: it is an old log
    for stage in (FIRST, SECOND, f"{SECOND}/boxes"):
        finish(stage)
        score(stage, *TASKS)
    score(BASE, *TASKS)
    (RESULTS / "data/count/chance.json").unlink()
    put(RESULTS / "data/count/manifest.json", "{}")
    put(RESULTS / "logs/data/count/chance.log", "Killed")
    found = look(plan("small"), NOW)
    assert [w.name for w in found.failed] == ["chance of count", "report results/reports/small"]
    (RESULTS / "reports/small").mkdir(parents=True)
    (RESULTS / "data/count/chance.json").write_text("{}")
    assert not look(plan("small"), NOW).failed


def test_many_failures_are_not_all_shown(workplace, queue):
    workplace.change("small", seeds=list(range(12)))
    for seed in range(12):
        attempt(FIRST.replace("seed-0", f"seed-{seed}"), why="preempted")
    lines = describe_failed(plan("small"), NOW).splitlines()
    assert lines[0] == "12 jobs of small failed:"
    assert sum(line.startswith("train ") for line in lines) == 10
    assert lines[-1] == "And 2 more, which `palimpsest status small` names."


def test_the_command(queue, monkeypatch, capsys):
    for arguments, first in (([], "small: A study\n"), (["--failed"], "No job of small has")):
        monkeypatch.setattr(sys, "argv", ["palimpsest", "status", "small", *arguments])
        assert cli.main() == 0
        assert capsys.readouterr().out.startswith(first)
