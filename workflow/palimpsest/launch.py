"""The command line of a training stage: from a model's resources to processes."""

from __future__ import annotations

from palimpsest.config import Model, load
from palimpsest.lineage import Stage
from palimpsest.study import CONFIG


def train_command(stage: Stage) -> str:
    """Return the shell command that trains a stage on one node: one process, or one a rank."""
    resources = load(Model, stage.model, CONFIG).resources
    train = f"palimpsest train {stage} --minutes {resources.minutes}"
    if resources.world_size == 1:
        return train
    return f"torchrun --standalone --nproc-per-node {resources.world_size} --no-python {train}"
