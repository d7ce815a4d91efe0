"""What decides a stage's numbers, and the fingerprint by which its results are known."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from palimpsest.config import Benchmark, Method, Model, Task, load
from palimpsest.files import fingerprint, read_json
from palimpsest.lineage import Stage
from palimpsest.refusal import ConfigError

RESULTS = Path("results")


@cache
def identity(stage: Stage) -> dict[str, Any]:
    """Return everything that decides a stage's numbers, the parent's fingerprint included."""
    model = load(Model, stage.model)
    if stage.parent is None:
        return {"model": model.science()}
    method = method_of(stage)
    decisive = {
        "lineage": str(stage.lineage),
        "seed": stage.seed,
        "model": model.science(),
        "method": method.science(),
        "benchmark": load(Benchmark, stage.benchmark).science(),
        "tasks": {task: load(Task, task).science() for task in stage.lineage.last},
        "parent": stage_fingerprint(stage.parent),
    }
    if method.router or method.compares_tasks:
        decisive["comparing"] = model.comparing
    if initial := initial_of(stage):  # a list: the order counts
        decisive["history"] = [[task, load(Task, task).science()] for task in initial]
    return decisive


def history(stage: Stage) -> tuple[tuple[str, ...], ...]:
    """Return the steps that are known before a stage's last one, oldest first.

    They are the benchmark's initial tasks, each a step, and then the steps of the parent.
    """
    initial = load(Benchmark, stage.benchmark).initial
    return (*((task,) for task in initial), *stage.lineage.steps[:-1])


def initial_of(stage: Stage) -> tuple[str, ...]:
    """Return the initial tasks that a stage looks back on: the first of its lineage sees to all.

    A method looks back if it has a regulariser, rehearsal or a router; what they need of these
    tasks (importances, examples, keys) they hand on to the stages after it.
    """
    initial = load(Benchmark, stage.benchmark).initial
    if not initial or len(stage.lineage.steps) != 1:
        return ()
    method = method_of(stage)
    return initial if method.regulariser or method.rehearsal or method.router else ()


def method_of(stage: Stage) -> Method:
    """Return the method of a stage, as it is for its model and its last step."""
    return load(Method, stage.method).of(stage.model, stage.lineage.last)


def stage_fingerprint(stage: Stage) -> str:
    """Return the fingerprint by which a stage's directory, resume state and cells are known."""
    return fingerprint(identity(stage))


def refuse_foreign_stages(stages: tuple[Stage, ...]) -> None:
    """ConfigError if a finished stage was trained with another config than the present one.

    Nothing is retrained over it: a name stands for one configuration.
    """
    for stage in stages:
        record = stage.directory(RESULTS) / "stage.json"
        if record.exists():
            check_record(record, stage)


def check_record(record: Path, stage: Stage) -> dict[str, Any]:
    """Read a stage.json and return it; ConfigError if it is not of this stage and config."""
    found = read_json(record)
    if found["fingerprint"] != stage_fingerprint(stage):
        changes = "\n".join(_differences(found["identity"], identity(stage)))
        raise ConfigError(
            f"{record.parent}: this stage was trained with another config:\n{changes}\n"
            "  Give the changed config a new name to keep both, or remove this directory (and "
            "those of the stages after it) to train anew."
        )
    return found


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """Yield one line for each setting that differs between two identities."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif old != new:
        yield f"    {key}: was {old!r}, is {new!r}"
