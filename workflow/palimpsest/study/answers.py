"""How a model answers the questions of a task, and how its answers are scored."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from palimpsest.config import AS_PUBLISHED, CONFIG, FIDELITY, METRIC, Model, Task, load
from palimpsest.refusal import ConfigError


@dataclass(frozen=True)
class Manner:
    """How a model answers the questions of one task; `of_model` are keys of its config."""

    task: str
    of_model: dict[str, Any]
    max_new_tokens: int
    drop_first: bool = False  # the first character of every answer is thrown away


def manner_of(model_name: str, task: str, generation: str) -> Manner:
    """Return how a model answers a task: as it was trained, or as released scripts have it answer.

    ConfigError if the model's `as_published` gives no length for the task.
    """
    model = load(Model, model_name)
    of_model = {"chat": model.chat, "pictures": model.pictures}
    if generation != AS_PUBLISHED:
        return Manner(task, of_model, load(Task, task).max_new_tokens)
    published = model.as_published
    length = _fitting(published.max_new_tokens, task)
    if length is None:
        raise ConfigError(
            f"{CONFIG}/models/{model_name}.yaml: as_published.max_new_tokens: no line fits task "
            f"{task!r}"
        )
    if published.chat:
        of_model["chat"] = published.chat
    if any(fnmatch(task, names) for names in published.crop):
        of_model["pictures"] = "crop"
    return Manner(task, of_model, length, published.drop_first)


def scorer(model: str, task: str, measure: str) -> tuple[str, dict[str, Any]]:
    """Return the metric, with its options, by which a measure scores the answers of a model."""
    config = load(Task, task)
    if measure == METRIC:
        return config.metric, config.metric_options
    if measure == FIDELITY:
        return "fidelity", {}
    published = load(Model, model).as_published
    return (published and _fitting(published.metrics, task)) or config.as_published, {}


def _fitting(values: dict[str, Any], task: str) -> Any:
    """Return the value of the first pattern that fits a task's name; None if none does."""
    return next((value for names, value in values.items() if fnmatch(task, names)), None)
