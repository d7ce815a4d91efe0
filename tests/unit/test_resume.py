"""A stage that is killed goes on from its checkpoint, bit for bit as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest

from palimpsest.attempts import NEAR_LIMIT
from palimpsest.files import read_json, write_json
from palimpsest.training import stage as training
from palimpsest.training.progress import Progress
from palimpsest.training.resume import Resume
from workspace import Job, change, entered, handed_on, stage_of, train

RESULTS = Path("results")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A workspace whose stages take twelve steps, with a checkpoint after each fourth."""
    with entered(tmp_path_factory.mktemp("resume")) as path:
        yield path


@pytest.fixture(scope="module")
def undisturbed(root):
    """What stages that nothing disturbed hand on, by stage; each has dropout."""
    stages = [stage_of("choice"), stage_of("choice", "moelora")]
    stages += [stage_of("choice", "replay"), stage_of("choice/reading", "replay")]
    found = {}
    for stage in stages:
        train(stage)
        found[stage] = handed_on(stage)
    return found


@pytest.fixture
def fresh(undisturbed):
    """Return a function that makes a stage untrained again."""

    def untrained(stage):
        shutil.rmtree(stage.directory(RESULTS), ignore_errors=True)
        shutil.rmtree(stage.resume(RESULTS), ignore_errors=True)
        return stage

    return untrained


def checkpoints(stage):
    return sorted(p.name for p in stage.resume(RESULTS).iterdir() if p.is_dir())


def at(function, owner, step, send=signal.SIGKILL):
    """Send this process a signal when a method of Progress or Resume is called for a step."""
    original = getattr(owner, function)

    def wrapped(self, first, *rest, **named):
        found = rest[0]["step"] if isinstance(rest[-1], dict) else first
        if found == step:
            os.kill(os.getpid(), send)
        return original(self, first, *rest, **named)

    setattr(owner, function, wrapped)


def after_engine_saved():
    """Die when the engine has written its files, and the checkpoint is not in its place."""
    from palimpsest.training import resume

    def replace(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    resume.os.replace = replace


def while_handing_on():
    """Die when the adapter is written, and the record of the stage is not."""

    def write(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    training.shutil.copy = write


die_at_step_6 = partial(at, "step", Progress, 6)
die_before_saving_8 = partial(at, "save", Resume, 8)


@pytest.mark.parametrize(
    ("lineage", "method", "die", "after"),
    [
        ("choice", "lora", die_at_step_6, 4),
        ("choice", "lora", die_before_saving_8, 4),
        ("choice", "lora", while_handing_on, 8),
        ("choice", "moelora", die_at_step_6, 4),
        ("choice/reading", "replay", die_at_step_6, 4),
    ],
)
def test_a_killed_stage_goes_on_bit_for_bit(fresh, undisturbed, lineage, method, die, after):
    stage = fresh(stage_of(lineage, method))
    assert Job(stage, prepare=die).wait() == [-signal.SIGKILL]
    assert not stage.directory(RESULTS).exists()
    assert checkpoints(stage)[-1] == f"step-{after:06}"
    assert f"{stage}: resumed from step {after}\n" in train(stage)
    assert handed_on(stage) == undisturbed[stage]
    first, second = read_json(stage.directory(RESULTS) / "stage.json")["attempts"]
    assert (first["after_step"], first["num_steps"], first["why"]) == (0, 12, "killed")
    assert (second["after_step"], second["num_steps"], second["why"]) == (after, 12, "finished")
    rows = (stage.directory(RESULTS) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 13))
    assert checkpoints(stage) == []


def test_a_checkpoint_that_is_half_written_is_not_used(fresh, undisturbed):
    stage = fresh(stage_of("choice"))
    assert Job(stage, prepare=after_engine_saved).wait() == [-signal.SIGKILL]
    assert checkpoints(stage) == [".step-000004.partial"]
    metrics = stage.resume(RESULTS) / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 5, "lo')  # a torn line
    assert "resumed" not in train(stage)
    assert handed_on(stage) == undisturbed[stage]


@pytest.mark.parametrize("damaged", ["mp_rank_00_model_states.pt", "progress.json"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(fresh, undisturbed, damaged):
    stage = fresh(stage_of("choice"))
    Job(stage, prepare=partial(at, "step", Progress, 10)).wait()
    newest = stage.resume(RESULTS) / "step-000008"
    content = (newest / damaged).read_bytes()
    (newest / damaged).write_bytes(content[: len(content) // 2])
    text = train(stage)
    assert f"{newest}: removed, for it is damaged: " in text
    assert "resumed from step 4\n" in text
    assert handed_on(stage) == undisturbed[stage]


def test_sigterm_checkpoints_and_asks_to_be_started_again(fresh, undisturbed):
    stage = fresh(stage_of("choice"))
    job = Job(stage, prepare=partial(at, "step", Progress, 6, signal.SIGTERM))
    assert job.wait() == [training.REQUEUE] == [75]
    assert "stopped after step 7 of 12, with a checkpoint\n" in job.text
    assert checkpoints(stage) == ["step-000004", "step-000007"]
    assert "resumed from step 7\n" in train(stage)
    assert handed_on(stage) == undisturbed[stage]


def test_before_the_time_limit_is_a_checkpoint(fresh, undisturbed):
    stage = fresh(stage_of("choice"))
    job = Job(stage, seconds_left=0.01)
    assert job.wait() == [training.REQUEUE]
    assert "stopped after step 1 of 12" in job.text
    assert Job(stage, seconds_left=0.01).wait() == [training.REQUEUE]
    assert checkpoints(stage) == ["step-000001", "step-000002"]
    train(stage)
    assert handed_on(stage) == undisturbed[stage]
    attempts = read_json(stage.directory(RESULTS) / "stage.json")["attempts"]
    assert [attempt["why"] for attempt in attempts] == [NEAR_LIMIT, NEAR_LIMIT, "finished"]


def test_no_more_than_two_checkpoints_are_kept(fresh):
    stage = fresh(stage_of("choice"))
    Job(stage, prepare=partial(at, "step", Progress, 12)).wait()
    assert checkpoints(stage) == ["step-000004", "step-000008"]


def test_the_time_before_a_restart_counts(fresh):
    stage = fresh(stage_of("choice"))
    Job(stage, prepare=die_at_step_6).wait()
    progress = stage.resume(RESULTS) / "step-000004" / "progress.json"
    assert read_json(progress)["seconds"] > 0
    write_json(progress, read_json(progress) | {"seconds": 5000.0})
    train(stage)
    assert read_json(stage.directory(RESULTS) / "stage.json")["wall_seconds"] > 5000


@pytest.mark.parametrize(
    ("name", "change_to", "complaint"),
    [
        ("methods/lora", {"training__learning_rate": 0.5}, "this checkpoint has fingerprint '"),
        ("models/tiny", {"zero_stage": 1}, "this checkpoint has zero_stage 0, the stage now has 1"),
    ],
)
def test_a_checkpoint_of_another_config_is_refused(root, fresh, name, change_to, complaint):
    stage = fresh(stage_of("choice"))
    Job(stage, prepare=die_at_step_6).wait()
    before = {p: p.read_bytes() for p in stage.resume(RESULTS).glob("step-*/**/*") if p.is_file()}
    config = (root / "config" / f"{name}.yaml").read_bytes()
    try:
        change(root, name, **change_to)
        job = Job(stage)
        assert job.wait() == [1]
    finally:
        (root / "config" / f"{name}.yaml").write_bytes(config)
    checkpoint = stage.resume(RESULTS) / "step-000004"
    assert f"palimpsest: error: {checkpoint}: {complaint}" in job.text
    after = {p: p.read_bytes() for p in stage.resume(RESULTS).glob("step-*/**/*") if p.is_file()}
    assert after == before
    assert "resumed from step 4\n" in train(stage)


def test_a_finished_stage_is_left_as_it_is(fresh):
    stage = fresh(stage_of("choice"))
    train(stage)
    record = stage.directory(RESULTS) / "stage.json"
    before = record.read_bytes()
    assert train(stage) == f"{stage.directory(RESULTS)}: already trained with this config\n"
    assert record.read_bytes() == before
