"""A stage as a model of its own: what it learnt is folded into the weights it started from."""

from __future__ import annotations

from pathlib import Path

from palimpsest.evaluation.generate import load_stage
from palimpsest.files import whole_directory
from palimpsest.lineage import Stage
from palimpsest.methods.adapter import build
from palimpsest.study import method_of


def export(stage: Stage, results: Path, out: Path) -> None:
    """Write a directory that a model's config can name as its `weights`, whole or not at all.

    Errors: ValueError if the stage has nothing to fold in, or what it has learnt cannot be folded.
    """
    if stage.method is None:
        raise ValueError(f"{stage}: has learnt nothing; its model is there already, as published")
    adapter = build(method_of(stage).adapter)
    if not adapter.mergeable:
        raise ValueError(
            f"{stage}: what its adapter {adapter.settings.name!r} has learnt depends on the "
            "question, and cannot be folded into the weights; export a stage of another method"
        )
    lmm = load_stage(stage, results)
    with whole_directory(out) as directory:
        lmm.save(directory)
