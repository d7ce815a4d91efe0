"""A study's judge on the cluster: one job that serves, jobs that ask."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import chdir
from datetime import UTC, datetime

import pyarrow.parquet as pq
import pytest
import yaml

import chat_server
from palimpsest import cli
from palimpsest.judging.prompts import prompt
from palimpsest.lineage import Stage
from palimpsest.slurm import job_comment
from palimpsest.status import look
from palimpsest.study import plan
from palimpsest.tasks import open_task
from studies import StudyOnCluster, change, copy_of, slurm_workspace, wait_until, write
from workspace import TASKS, convert, forget

BASE = "three/tiny/base"
CELLS = f"results/stages/{BASE}/cells/test"
JUDGE = {
    "title": "A strict judge",
    "kind": "endpoint",
    "model": "Judge-1B",
    "protocol": "corrected",
    "serving": {
        "command": f"{shlex.quote(sys.executable)} {chat_server.__file__} --port {{port}}",
        "start_minutes": 5,
        "idle_minutes": 0.2,
    },
    "asking": {"concurrency": 1, "attempts": 2, "backoff": 0.1},
    "resources": {"gpus": 1, "cores": 2, "memory_mb": 300, "minutes": 7},
}
STUDY = {
    "extends": "tiny",
    "title": "Judged",
    "methods": [],
    "evaluation": {"fan_out": "cell", "split": "test", "batch": 64},
    "references": {"zero-shot": {"title": "Zero-shot", "protocol": "zero-shot"}},
    "measures": ["metric", "strict"],
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A workspace with a study whose three cells are answered and scored, but for the judge."""
    root = slurm_workspace(tmp_path_factory.mktemp("answered") / "workspace")
    write(root, "judges/strict", JUDGE)
    write(root, "judged", STUDY)
    profile = root / "profiles" / "slurm" / "config.yaml"
    settings = yaml.safe_load(profile.read_text())
    settings["set-resources"] = {"judge": {"serving": "--partition=gpu"}}
    profile.write_text(yaml.safe_dump(settings))
    with chdir(root):
        convert()
        for command in ("evaluate", "score"):
            args = cli.parser().parse_args([command, BASE, "--tasks", *TASKS])
            args.work(args)
    forget()
    return root


@pytest.fixture
def study(cluster, answered, tmp_path):
    """The study, of which only the judge's jobs are left to do."""
    study = StudyOnCluster(cluster, copy_of(answered, tmp_path / "workspace"))
    yield study
    study.end()


def judged_as_served(study):
    """Check that all cells have what the stand-in replies to each example."""
    with chdir(study.root):
        for task in TASKS:
            cell = study.root / CELLS / task
            told = pq.read_table(cell / "predictions.parquet").to_pylist()
            said = {row["id"]: row["prediction"] for row in told}
            expected = {
                example.id: chat_server.rating(prompt(example, said[example.id], "corrected"))
                for example in open_task(study.root / "results", task, "test").without_pictures()
            }
            rows = pq.read_table(cell / "strict" / "outcomes.parquet").to_pylist()
            assert {row["id"]: row["reply"] for row in rows} == expected
            assert {row["id"]: row["score"] for row in rows} == {
                id: int(reply) / 10 for id, reply in expected.items()
            }
            scores = json.loads((cell / "strict" / "scores.json").read_text())
            mean = sum(map(int, expected.values())) / len(expected)
            assert scores["value"] == pytest.approx(10 * mean)
            assert (scores["n"], scores["unparsable"]) == (24, 0)
    forget()


def jobs(study, comment, *fields):
    """Return what accounting says of the jobs whose comment begins so."""
    rows = study.job_lines("Comment", *fields, "JobID")
    return [row[1:-1] for row in rows if row[0].startswith(comment)]


def test_one_job_serves_and_the_others_ask_it(study, cluster):
    study.succeed("evaluate_all", study="judged")
    judged_as_served(study)
    wait_until(lambda: not study.queue(), 60, "the end of the idle server", study.queue)
    log = (study.root / "results" / "logs" / "judges" / "strict.log").read_text()
    assert "not needed for 0.2 minutes: ended" in log

    asking = jobs(study, "rule_judge", "Comment", "Partition", "State", "Start")
    assert sorted(asked[:3] for asked in asking) == sorted(
        [job_comment("judge", BASE, task, "strict"), "main", "COMPLETED"] for task in TASKS
    )
    assert not jobs(study, "rule_evaluate")
    what = "JobName", "State", "Account", "Partition", "NCPUS", "ReqMem", "Timelimit"
    [[*serving, tres, submitted]] = jobs(study, "serve_strict", *what, "ReqTRES", "Submit")
    asked_for = ["ci", "gpu", "2", "300M", "00:07:00"]
    assert serving == ["palimpsest-serve-strict", "COMPLETED", *asked_for]
    assert "gres/gpu=1" in tres
    assert min(start for *_, start in asking) <= submitted
    assert len(study.job_lines("JobID")) == len(TASKS) + 1


def test_a_server_that_is_cancelled_is_replaced(study, cluster):
    slow = f"{JUDGE['serving']['command']} --delay 0.15"
    change(study.root, "judges/strict", serving__command=slow)
    change(study.root, "judged", evaluation__fan_out="stage")
    study.start("evaluate_all", study="judged")
    replies = study.root / "results" / "judgements" / "strict" / f"{TASKS[0]}.jsonl"
    wait_until(replies.exists, 120, "a reply", lambda: study.text)
    with chdir(study.root):
        [work] = look(plan("judged"), datetime.now(UTC)).cells[Stage.parse(BASE)].works
    forget()
    assert (work.name, work.state) == (f"judge {BASE} by strict", "running")
    [first] = [job.split()[0] for job in study.queue() if job.endswith("serve_strict")]
    cluster.run("scancel", first)
    found = study.finish()
    assert found.code == 0, found.text
    judged_as_served(study)

    assert jobs(study, job_comment("judge", BASE, "strict"), "State") == [["FAILED"], ["COMPLETED"]]
    rows = study.job_lines("JobName", "State")  # of a job that runs there is no comment yet
    states = [state.split()[0] for name, state in rows if name == "palimpsest-serve-strict"]
    assert states == ["CANCELLED", "RUNNING"]
