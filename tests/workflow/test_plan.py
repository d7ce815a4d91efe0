"""What is planned and refused before any job runs; nothing here trains."""

from __future__ import annotations

import json

import pytest

from palimpsest.files import write_json
from palimpsest.lineage import Stage
from palimpsest.study import plan
from runs import (
    JOINT,
    MOELORA,
    REPLAY,
    REPOSITORY,
    change,
    new_workspace,
    planned,
    run,
    snakemake,
    write,
)

LINEAGES = ("choice", "choice/reading", "choice/reading/counting")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A workspace in which nothing has been run, as the working directory."""
    root = new_workspace(tmp_path / "workspace")
    monkeypatch.chdir(root)
    return root


def verbs(jobs):
    return {job.split()[0] for job in jobs}


def test_named_targets(fresh):
    assert verbs(planned(fresh, "data_all")) == {"convert"}
    assert verbs(planned(fresh, "train_all")) == {"convert", "train"}
    assert verbs(planned(fresh, "evaluate_all")) == {"convert", "train", "evaluate", "score"}


def test_the_report_needs_everything(fresh):
    jobs = planned(fresh, "report_all")
    assert verbs(jobs) == {"convert", "chance", "train", "evaluate", "score", "report"}
    stages = {f"train {method}/{line}" for method in (MOELORA, REPLAY) for line in LINEAGES}
    assert {job for job in jobs if job.startswith("train")} == stages | {f"train {JOINT}"}


def test_a_model_that_starts_from_a_stage_needs_it(fresh):
    made = {"extends": "tiny", "exported": JOINT, "weights": "results/models/own"}
    write(fresh, "models/own", made)
    change(fresh, "tiny", models=["own"], methods=["moelora"], references={})
    jobs = planned(fresh, "train_all")
    assert "export own" in jobs
    trained = {f"train {MOELORA.replace('tiny', 'own')}/{line}" for line in LINEAGES}
    assert {job for job in jobs if job.startswith("train")} == trained | {f"train {JOINT}"}


def refusal(root, study="tiny"):
    """Return what Snakemake says before it runs any job."""
    found = snakemake(root, study=study)
    assert found.code == 1
    assert "Traceback" not in found.text
    assert not found.jobs
    assert not (root / "results").exists()
    lines = [line for line in found.text.splitlines() if not line.startswith("Using profile")]
    assert lines[0].startswith("WorkflowError in file")
    assert len(lines) <= 6, found.text
    return found.text


def test_an_unknown_study(fresh):
    message = "config/tinny.yaml: there is no study 'tinny', did you mean 'tiny'? Known: tiny"
    assert message in refusal(fresh, "tinny")


def test_a_wrong_key(fresh):
    change(fresh, "models/tiny", micro_bach=4)
    assert "models/tiny.yaml: micro_bach: unknown key, did you mean 'micro_b" in refusal(fresh)


def test_a_wrong_name(fresh):
    change(fresh, "tiny", methods=["moelorra"])
    found = refusal(fresh)
    assert "config/tiny.yaml: methods: there is no method 'moelorra', did you mean 'mo" in found


def test_a_step_whose_name_is_no_file_name(fresh):
    tasks = [f"a-task-with-a-rather-long-name-{n}" for n in range(16)]
    with pytest.raises(ValueError, match="255"):
        Stage.parse(f"three/tiny/lora/seed-0/{'+'.join(tasks)}")


def test_the_longest_way_comes_first(fresh):
    ahead = {str(stage): tasks for stage, tasks in plan("tiny").ahead.items()}
    assert ahead[JOINT] == ahead[f"{REPLAY}/choice"] == ahead[f"{MOELORA}/choice"] == 3
    assert ahead[f"{REPLAY}/choice/reading"] == 2
    assert ahead[f"{REPLAY}/choice/reading/counting"] == 1


def test_the_plan_as_text(fresh):
    change(fresh, "tiny", methods=["lora", "replay"])
    reference = {"title": "Direct", "protocol": "direct", "method": "lora"}
    change(fresh, "tiny", references={"direct": reference})
    found = run(fresh, "palimpsest", "plan", "tiny")
    assert found.code == 0
    assert found.text.splitlines() == [
        "tiny: A tiny study",
        "",
        "  experiment  protocol    stages  benchmark  model  order  seed",
        "  Direct      direct      3       three      tiny   any    0",
        "  LoRA        sequential  3       three      tiny   first  0",
        "  Replay      sequential  3       three      tiny   first  0",
        "",
        "stages   8 to train: 0 done, 8 to do; experiments share 1",
        "cells    23 to score: 0 done, 23 to do",
        "",
        "  training left  method  stages  samples  samples/s   job time  core-hours",
        "  tiny           lora         5        –          –  ≤ 0:50:00      ≤ 0.83",
        "  tiny           replay       3        –          –  ≤ 0:30:00      ≤ 0.50",
        "  total                       8        –             ≤ 1:20:00      ≤ 1.33",
        "  ≤ is a bound and no estimate: every stage takes all `minutes` of its model's config.",
        "  An estimate needs converted data, and a stage of the model that is done.",
    ]


def test_the_plan_counts_what_is_left(fresh):
    for task in ("choice", "reading", "counting"):
        splits = {"train": {"examples": 96}}
        write_json(fresh / f"results/data/{task}/manifest.json", {"splits": splits})
    change(fresh, "models/tiny", resources__gpus=2)
    record = {"samples": 96, "wall_seconds": 36.0}
    write_json(fresh / f"results/stages/{REPLAY}/choice/stage/stage.json", record)
    text = run(fresh, "palimpsest", "plan", "tiny").text
    assert "stages   7 to train: 1 done, 6 to do\n" in text
    table = text.partition("to do\n\n")[2]
    assert [" ".join(line.split()) for line in table.splitlines()] == [
        "training left method stages samples samples/s job time GPU-hours",
        "tiny lora 1 288 2.7 (1 stage of other methods) 0:01:48 0.06",
        "tiny moelora 3 288 2.7 (1 stage of other methods) 0:01:48 0.06",
        "tiny replay 2 192 2.7 (1 stage) 0:01:12 0.04",
        "total 6 768 0:04:48 0.16",
    ]


def test_lint_and_form(fresh):
    found = snakemake(fresh, "--lint")
    assert found.code == 0, found.text
    found = run(REPOSITORY, "snakefmt", "--check", "Snakefile", "rules")
    assert found.code == 0, found.text


def test_profiles_hold_no_science(fresh):
    """Every key of a profile is explained beside it."""
    import yaml

    page = (REPOSITORY / "profiles" / "README.md").read_text()
    for profile in ("local", "slurm"):
        keys = yaml.safe_load((REPOSITORY / "profiles" / profile / "config.yaml").read_text())
        assert [key for key in keys if f"`{key}" not in page] == []
        assert keys["rerun-triggers"] == ["mtime", "params", "input"]
        assert json.dumps(keys).count("study") == 0


ASK = """
include: "Snakefile"


for model in STUDY.study.models:
    stage = {"stage": f"three/{model}/lora/seed-0/choice"}
    asked = workflow.get_rule("train").expand_resources(stage, [], attempt=1)
    print("asked", *(asked.get(name) for name in ("mem_mb", "_cores", "nodes", "mpi", "tasks")))
"""


@pytest.mark.parametrize("models", [["wide"], ["tiny", "wide"]])
def test_a_job_asks_for_what_its_model_needs(fresh, models):
    needs = {"memory_mb": 700, "minutes": 9, "checkpoint_steps": 4, "nodes": 2, "threads": 2}
    write(fresh, "models/wide", {"extends": "tiny", "title": "Wide", "resources": needs})
    change(fresh, "tiny", models=models, methods=["lora"], references={})
    (fresh / "ask").write_text(ASK)
    found = snakemake(fresh, "data_all", "--snakefile", "ask", "--dry-run")
    expected = {"tiny": "asked 500 1 1 None None", "wide": "asked 700 2 2 srun 2"}
    asked = [line for line in found.text.splitlines() if line.startswith("asked")]
    assert asked == [expected[model] for model in models], found.text


def test_stages_of_other_models_are_not_the_studys(fresh):
    write(fresh, "models/other", {"extends": "tiny", "title": "Other"})
    stage = f"results/stages/{JOINT}/stage/stage.json"
    assert snakemake(fresh, "--dry-run", stage).code == 0
    found = snakemake(fresh, "--dry-run", stage.replace("/tiny/", "/other/"))
    assert found.code == 1
    assert "MissingRuleException" in found.text
