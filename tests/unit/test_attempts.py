"""Attempts at a stage: what is written of them, and what Slurm is asked."""

from __future__ import annotations

import os

import pytest

from palimpsest import slurm
from palimpsest.attempts import FINISHED, KILLED, MEMORY, SIGNALLED, TIME, Attempts


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path / "resume")


def test_an_attempt_grows_line_by_line(attempts):
    attempts.begin()
    attempts.note(after_step=0, num_steps=12)
    attempts.end(SIGNALLED)
    attempts.begin()
    first, second = attempts.all()
    assert (first.pid, first.after_step, first.num_steps) == (os.getpid(), 0, 12)
    assert first.why == SIGNALLED
    assert first.ended >= first.begun
    assert (second.after_step, second.ended, second.why) == (None, None, None)


def test_the_first_reason_is_kept(attempts):
    attempts.begin()
    attempts.end(MEMORY)
    attempts.end("ended with exit code 1")
    assert attempts.last.why == MEMORY


def test_nothing_is_said_of_an_attempt_that_did_not_begin(attempts):
    attempts.end(MEMORY)
    assert attempts.all() == []
    assert attempts.last is None


def test_a_line_that_was_cut_short_is_no_loss(attempts):
    attempts.begin()
    with attempts.path.open("a") as f:
        f.write('\n{"after_st')
    attempts.begin()
    assert [attempt.why for attempt in attempts.all()] == [KILLED, None]


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("OUT_OF_MEMORY", MEMORY),
        ("TIMEOUT", TIME),
        ("NODE_FAIL", "its node failed"),
        ("CANCELLED", "cancelled"),
        ("FAILED", KILLED),
        (None, KILLED),
    ],
)
def test_slurm_knows_why_a_job_was_killed(attempts, monkeypatch, state, why):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    attempts.begin()
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    monkeypatch.setattr(slurm, "state", {"17": state}.get)
    attempts.begin()
    assert attempts.all()[0].why == why


def test_a_job_that_slurm_starts_again_was_requeued(attempts, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    attempts.begin()
    attempts.begin()
    assert attempts.all()[0].why == "requeued by Slurm"


def test_a_finished_stage_has_them_in_its_record(attempts):
    attempts.begin()
    attempts.note(after_step=3, num_steps=12)
    [record] = attempts.finished()
    assert (record["after_step"], record["why"]) == (3, FINISHED)
    attempts.clear()
    assert attempts.all() == []
