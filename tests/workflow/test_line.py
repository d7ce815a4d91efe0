"""The whole line, from shards to report: run once, then repeated, broken and repaired."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palimpsest.attempts import Attempts
from runs import (
    JOINT,
    MOELORA,
    NOTHING,
    REPLAY,
    REPOSITORY,
    change,
    copy_of,
    finish,
    new_workspace,
    planned,
    run,
    snakemake,
    snakemake_command,
    stage_record,
    start,
    succeed,
    times,
    write,
)

REPORT = "results/reports/tiny"
DONE = {f"report {REPORT}", f"finished: {REPORT}/index.html"}
LINEAGES = ("choice", "choice/reading", "choice/reading/counting")
STAGES = [f"{method}/{lineage}" for method in (MOELORA, REPLAY) for lineage in LINEAGES] + [JOINT]
EVALUATED = [*STAGES, "three/tiny/base"]


def of_stages(stages, *verbs):
    return {f"{verb} {stage}" for verb in verbs for stage in stages}


def matrix(root):
    return (root / REPORT / "matrix.csv").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace in which the study has been run; tests change copies of it."""
    root = new_workspace(tmp_path_factory.mktemp("finished") / "workspace")
    found = succeed(root)
    assert found.jobs >= DONE | of_stages(STAGES, "train") | of_stages(EVALUATED, "score")
    return root


@pytest.fixture
def copy(finished, tmp_path):
    return copy_of(finished, tmp_path / "copy")


def test_the_report_is_there(finished):
    report = finished / REPORT
    names = ["index.html", "matrix.csv", "summary.csv", "tasks.csv", "forgetting.txt"]
    assert all((report / name).stat().st_size > 0 for name in names)
    rows = pd.read_csv(report / "matrix.csv")
    assert len(rows) == (4 + 4 + 1) * 3  # two sequences with their base, and the joint stage
    assert set(rows["lineage"]) == {"base", *LINEAGES, "choice+counting+reading"}
    assert rows["value"].between(0, 100).all()


def test_the_page_names_files_that_are_there(finished):
    page = (finished / REPORT / "index.html").read_text()
    behind = json.loads(page.split('id="behind">')[1].split("</script>")[0])
    seen = set()
    for group in behind["groups"].values():
        for place, cell in group["cells"].items():
            stages = group["rows"][int(place.split()[0])]["seeds"]
            for stage, (_, path, log) in zip(stages, cell["seeds"], strict=True):
                seen |= {f"{stage['cells']}/{path}/scores.json", f"{stage['logs']}/{log}"}
                seen |= {stage[name] for name in ("record", "log") if name in stage}
    assert len([path for path in seen if path.endswith("train.log")]) == len(STAGES)
    assert [path for path in seen if not (finished / path).is_file()] == []


def test_a_second_run_has_nothing_to_do(finished):
    before = times(finished)
    assert NOTHING in succeed(finished).text
    assert times(finished) == before


def test_snakemakes_own_report_has_every_figure_once(finished, tmp_path):
    out = tmp_path / "report.zip"
    succeed(finished, "--report", str(out))
    with zipfile.ZipFile(out) as archive:
        figures = sorted(name.split("/")[-1] for name in archive.namelist() if "figures" in name)
        page = archive.read("report/report.html").decode()
    drawn = [path.name for path in (finished / REPORT / "figures").glob("*.svg")]
    assert figures == sorted(name for name in drawn if not name.endswith("-column.svg"))
    assert '"labels": {"figure": "heatmap", "of": "replay"}' in page
    assert page.count("<strong>accuracy matrix</strong>") == 2  # the caption of each heatmap
    assert "measures what a large multimodal model forgets" in page


def test_a_removed_stage_is_trained_anew_with_all_that_follow(finished, copy):
    scores, before = matrix(copy), times(copy)
    shutil.rmtree(stage_record(copy, f"{REPLAY}/choice/reading").parent)
    anew = [f"{REPLAY}/{lineage}" for lineage in LINEAGES[1:]]
    expected = DONE | of_stages(anew, "train", "evaluate", "score")
    assert planned(finished, "-R", record_of(f"{REPLAY}/choice/reading")) == expected
    assert succeed(copy).jobs == expected
    after = times(copy)
    changed = {path for path in before if after[path] != before[path]}
    assert all(path.startswith((f"results/stages/{anew[0]}/", REPORT)) for path in changed)
    for stage in anew:
        assert files_of(copy, stage) == files_of(finished, stage)
    assert matrix(copy) == scores


def record_of(stage):
    """Return the name by which Snakemake knows a stage."""
    return f"results/stages/{stage}/stage/stage.json"


def files_of(root, stage):
    """Return the checksum of each file that a stage hands on."""
    return json.loads(stage_record(root, stage).read_text())["files"]


def test_a_killed_stage_goes_on_and_the_numbers_are_the_same(finished, tmp_path):
    """In a workspace of its own: the same seed gives the same bytes there, killed or not."""
    root, stage = new_workspace(tmp_path / "workspace"), f"{REPLAY}/choice"
    run = start(root, *snakemake_command())
    kill_after_checkpoint(root, stage, run)
    found = finish(run)
    assert found.code == 1
    log = f"results/logs/stages/{stage}/train.log"
    assert "Error in rule train" in found.text
    assert f"output: {record_of(stage)}\n" in found.text
    assert f"train {stage}    (process " in found.text  # it ends with what failed, and why
    assert f"log: {log}" in found.text

    left = root / "results" / "stages" / stage
    assert [path.name for path in left.iterdir()] == ["resume"]  # nothing half-written
    assert list(left.glob("resume/step-*/progress.json"))
    siblings = [s for s in STAGES if not s.startswith(REPLAY)]
    assert all(stage_record(root, sibling).exists() for sibling in siblings)
    assert not stage_record(root, f"{REPLAY}/choice/reading").exists()

    rest = [f"{REPLAY}/{lineage}" for lineage in LINEAGES]
    assert succeed(root).jobs == DONE | of_stages(rest, "train", "evaluate", "score")
    assert "resumed from step" in (left / "resume" / "train.log").read_text()
    first, second = json.loads(stage_record(root, stage).read_text())["attempts"]
    assert (first["why"], second["why"]) == ("killed", "finished")
    for trained in STAGES:
        assert files_of(root, trained) == files_of(finished, trained)
    assert matrix(root) == matrix(finished)


def kill_after_checkpoint(root, stage, run):
    """Kill the process that trains a stage as soon as it has a checkpoint."""
    resume = root / "results" / "stages" / stage / "resume"
    while not list(resume.glob("step-*/progress.json")):
        assert run.poll() is None, run.communicate()
        time.sleep(0.002)
    os.kill(Attempts(resume).last.pid, signal.SIGKILL)


def test_another_order_trains_only_what_is_new(copy):
    task = (copy / "config" / "tasks" / "choice.yaml").read_text()
    (copy / "config" / "tasks" / "digits.yaml").write_text(task.replace("choice", "digits"))
    orders = {
        "first": ["choice", "reading", "counting", "digits"],
        "other": ["choice", "reading", "digits", "counting"],
    }
    write(copy, "benchmarks/three", {"title": "Three and one", "orders": orders})
    study = {"extends": "tiny", "methods": ["replay"], "orders": ["other"], "references": {}}
    write(copy, "other", study)
    new = [f"{REPLAY}/choice/reading/digits", f"{REPLAY}/choice/reading/digits/counting"]
    found = planned(copy, study="other")
    assert {job for job in found if job.startswith("train")} == of_stages(new, "train")


def test_bad_files_fail_their_job_alone_and_are_named(copy):
    """A truncated shard, a changed one, and predictions of other questions: in one run."""
    shutil.rmtree(stage_record(copy, JOINT).parent)
    truncated = copy / "results/data/counting/train/00000.arrow"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    shutil.rmtree(copy / "results/stages/three/tiny/base/cells/test/reading")
    changed = copy / "results/data/reading/test/00000.arrow"
    content = bytearray(changed.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    cell = f"results/stages/{MOELORA}/choice/cells/test/counting"
    rename_ids(copy / cell / "predictions.parquet")

    found = snakemake(copy)
    assert found.code == 1
    assert "Traceback" not in found.text
    assert "counting/train/00000.arrow: has " in found.text
    assert "the file is truncated" in found.text
    assert "reading/test/00000.arrow: checksum differs from results/data/reading" in found.text
    assert f"{cell}/predictions.parquet: its ids are not exactly the 24 of the split" in found.text
    assert "1 missing" in found.text
    assert "1 foreign (x)" in found.text
    left = copy / "results" / "stages" / JOINT
    assert (left / "resume" / "train.log").exists()
    assert not (left / "stage").exists()


def rename_ids(path):
    """Give the first prediction of a file the id `x`."""
    table = pq.read_table(path)
    ids = pa.array(["x", *table["id"].to_pylist()[1:]])
    pq.write_table(table.set_column(0, "id", ids), path)


def test_a_job_a_cell_gives_the_same_scores(finished, copy):
    change(copy, "tiny", evaluation__fan_out="cell")
    cells = {f"{s} on {task}" for s in EVALUATED for task in ("choice", "reading", "counting")}
    assert planned(copy) == DONE | of_stages(cells, "evaluate", "score")
    cell = f"results/stages/{REPLAY}/choice/cells/test/reading"
    one = {f"{REPLAY}/choice on reading"}
    assert succeed(copy, f"{cell}/metric/scores.json").jobs == of_stages(one, "evaluate", "score")
    for name in ("metric/scores.json", "metric/outcomes.parquet", "predictions.parquet"):
        same = (copy / cell / name).read_bytes() == (finished / cell / name).read_bytes()
        assert same or name == "predictions.parquet"  # it holds the seconds that it took


CHANCE = {f"chance of {task}" for task in ("choice", "reading", "counting")}


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        # Where and how fast a stage is trained changes no number.
        ("models/tiny", {"resources__minutes": 7, "resources__memory_mb": 700}, set()),
        ("tiny", {"title": "Other"}, DONE),
        (
            "tasks/choice",
            {"answer_format": "[A-Z]"},
            DONE | {"chance of choice"} | of_stages(EVALUATED, "score"),
        ),
        (
            "tasks/choice",
            {"max_new_tokens": 5},
            DONE | of_stages(EVALUATED, "evaluate", "score"),
        ),
    ],
)
def test_what_a_change_runs_anew(copy, name, values, expected):
    change(copy, name, **values)
    assert planned(copy) == expected


def test_a_comment_in_a_rule_retrains_nothing(copy):
    for rules in (copy / "rules").glob("*.smk"):
        text = rules.read_text().replace("    output:", "    # A remark.\n    output:")
        rules.write_text(text.replace("> {log} 2>&1", " > {log}  2>&1"))
    assert planned(copy) == set()


def test_a_new_version_of_a_metric_scores_without_generating(copy):
    (copy / "workflow").unlink()
    shutil.copytree(REPOSITORY / "workflow" / "palimpsest", copy / "workflow" / "palimpsest")
    shutil.copytree(REPOSITORY / "workflow" / "report", copy / "workflow" / "report")
    metric = copy / "workflow" / "palimpsest" / "metrics" / "exact_match.py"
    old = metric.read_text()
    metric.write_text(old.replace('VERSION = "1"', 'VERSION = "2"'))
    assert metric.read_text() != old
    assert planned(copy) == DONE | CHANCE | of_stages(EVALUATED, "score")
    scores = "results/stages/three/tiny/base/cells/test/choice/metric/scores.json"
    assert succeed(copy, scores).jobs == {"score three/tiny/base"}
    assert json.loads((copy / scores).read_text())["version"] == "2"


def test_a_stage_of_another_config_is_refused_and_kept(copy):
    before = times(copy)
    change(copy, "methods/replay", training={"batch": 8, "epochs": 1, "learning_rate": 0.01,
                                             "schedule": "cosine", "warmup": 0.1})  # fmt: skip
    found = snakemake(copy)
    assert found.code == 1
    assert f"results/stages/{REPLAY}/choice/stage: this stage was trained with" in found.text
    assert "method.training.learning_rate: was 0.02, is 0.01" in found.text
    assert not found.jobs
    assert times(copy) == before


def test_recipes_for_a_part(finished, copy):
    """Those of docs/cluster.md: what each of them would run."""
    stage = f"{REPLAY}/choice/reading"
    cell = f"results/stages/{stage}/cells/test/choice"
    assert planned(finished, "-f", record_of(stage)) == of_stages([stage], "train")
    assert planned(finished, "-f", f"{cell}/predictions.parquet") == of_stages([stage], "evaluate")
    assert planned(finished, "-R", "score") == DONE | of_stages(EVALUATED, "score")
    scores = f"{cell}/metric/scores.json"
    assert planned(finished, "-R", scores) == DONE | of_stages([stage], "score")
    shutil.rmtree(copy / "results" / "stages" / MOELORA)
    targets = run(copy, "palimpsest", "targets", "tiny", "--method", "moelora", "--task", "choice")
    stages = [f"{MOELORA}/{lineage}" for lineage in LINEAGES]
    assert targets.text.splitlines() == [
        f"results/stages/{stage}/cells/test/choice/metric/scores.json" for stage in stages
    ]
    jobs = planned(copy, *targets.text.split())
    assert jobs == of_stages(stages, "train", "evaluate", "score")
    stages_only = run(copy, "palimpsest", "targets", "tiny", "--method", "moelora", "--stages")
    assert planned(copy, *stages_only.text.split()) == of_stages(stages, "train")


def test_a_target_that_the_study_does_not_have(copy):
    found = run(copy, "palimpsest", "targets", "tiny", "--method", "moelor")
    assert found.code == 1
    assert "config/tiny.yaml: there is no method 'moelor', did you mean 'moelora'?" in found.text
