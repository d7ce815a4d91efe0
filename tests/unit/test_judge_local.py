"""A judge in the process: the miniature's random model, in the hub's format."""

from __future__ import annotations

import pytest

from palimpsest.config import Judge
from palimpsest.files import sha256
from palimpsest.judging.local import LocalJudge
from palimpsest.judging.parsing import corrected
from palimpsest.models.miniatures.judge import SAID, generate

PROMPTS = [f"Rate the answer {'a' * (n % 7)} {n}, please: {'x' * n}" for n in range(24)]


def judge(path, **settings) -> Judge:
    return Judge(
        title="Mini",
        kind="local",
        model=str(path),
        protocol="corrected",
        sampling={"max_tokens": 1},
        resources={"memory_mb": 100, "minutes": 1},
        **settings,
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The model, in a directory."""
    path = tmp_path_factory.mktemp("judge") / "mini"
    generate(path)
    return path


def test_it_says_numbers(weights):
    replies = dict(LocalJudge(judge(weights)).replies(PROMPTS))
    assert set(replies) == set(PROMPTS)
    assert set(replies.values()) <= set(SAID)
    assert len(set(replies.values())) > 3
    scores = [corrected(reply) for reply in replies.values()]
    assert sum(score is not None for score in scores) > len(scores) / 2


def test_replies_do_not_depend_on_the_batch(weights):
    together = LocalJudge(judge(weights, asking={"concurrency": 8})).replies(PROMPTS)
    alone = LocalJudge(judge(weights, asking={"concurrency": 1})).replies(PROMPTS[::-1])
    assert dict(together) == dict(alone)


def test_the_same_seed_gives_the_same_files(weights, tmp_path):
    generate(tmp_path / "again")
    generate(tmp_path / "other", seed=1)
    digest = sha256(weights / "model.safetensors")
    assert sha256(tmp_path / "again" / "model.safetensors") == digest
    assert sha256(tmp_path / "other" / "model.safetensors") != digest


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no model here \(config.json is missing\)"):
        LocalJudge(judge(tmp_path / "nowhere"))
