"""Lineages: what has been learnt so far, oldest first, written as a path.

    base                        nothing has been learnt: the model as it was published
    scienceqa/textvqa/imagenet  one task after the other
    scienceqa+textvqa+imagenet  all at once
    okvqa+vqav2/flickr30k       jointly first, then one more

The parent of a stage is the parent directory, so a prefix that two orders, protocols or studies
share is one stage, trained once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

BASE = "base"
RESERVED = frozenset({BASE, "stage", "cells", "resume"})  # directories beside or inside a lineage
LONGEST_NAME = 255  # characters of a directory, on the file systems of Linux
TASK_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Lineage:
    """Steps oldest first; a step is the sorted tuple of the tasks that it learns at once."""

    steps: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(tuple(sorted(step)) for step in self.steps))
        seen: set[str] = set()
        for step in self.steps:
            if not step:
                raise ValueError(f"lineage {self.steps}: a step names no task")
            for task in step:
                check_task_name(task)
                if task in seen:
                    raise ValueError(f"lineage {self}: task {task!r} is named twice")
                seen.add(task)
            if len("+".join(step)) > LONGEST_NAME:
                raise ValueError(
                    f"lineage {self}: a step is a directory, whose name may have {LONGEST_NAME} "
                    f"characters; this one has {len('+'.join(step))}. Give its tasks shorter names"
                )

    @classmethod
    def parse(cls, text: str) -> Lineage:
        """Read `base` or a path such as `a/b+c`; ValueError says what is wrong with it."""
        if text == BASE:
            return cls()
        return cls(tuple(tuple(step.split("+")) for step in text.split("/")))

    @classmethod
    def sequential(cls, order: tuple[str, ...]) -> Lineage:
        """Learn the tasks of an order one after another."""
        return cls(tuple((task,) for task in order))

    @classmethod
    def joint(cls, tasks: tuple[str, ...]) -> Lineage:
        """Learn all tasks in one step."""
        return cls((tuple(tasks),))

    def __str__(self) -> str:
        return "/".join("+".join(step) for step in self.steps) or BASE

    @property
    def parent(self) -> Lineage | None:
        """The lineage before the last step; None for the base."""
        return Lineage(self.steps[:-1]) if self.steps else None

    @property
    def last(self) -> tuple[str, ...]:
        """The tasks of the last step; none for the base."""
        return self.steps[-1] if self.steps else ()

    @property
    def learnt(self) -> tuple[str, ...]:
        """Every task learnt so far, oldest first."""
        return tuple(task for step in self.steps for task in step)

    @property
    def prefixes(self) -> tuple[Lineage, ...]:
        """This lineage and its ancestors without the base, oldest first."""
        return tuple(Lineage(self.steps[: n + 1]) for n in range(len(self.steps)))


@dataclass(frozen=True)
class Stage:
    """One training job, known by its place; the base belongs to no method and no seed."""

    benchmark: str
    model: str
    lineage: Lineage
    method: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if (self.lineage == Lineage()) != (self.method is None):
            raise ValueError(f"stage {self}: the base, and only the base, has no method")
        if (self.method is None) != (self.seed is None):
            raise ValueError(f"stage {self}: a seed goes with a method, and a method with a seed")

    @property
    def base(self) -> Stage:
        """The stage that all of its benchmark and model start from."""
        return Stage(self.benchmark, self.model, Lineage())

    @property
    def parent(self) -> Stage | None:
        """The stage that this one starts from; None for the base."""
        parent = self.lineage.parent
        if parent is None:
            return None
        if not parent.steps:
            return self.base
        return Stage(self.benchmark, self.model, parent, self.method, self.seed)

    @cached_property
    def path(self) -> str:
        """Where the stage lives below `results/stages/`."""
        owner = f"{self.method}/seed-{self.seed}/" if self.method else ""
        return f"{self.benchmark}/{self.model}/{owner}{self.lineage}"

    def directory(self, root: Path) -> Path:
        """Return the directory of the stage's checkpoint, below a results root."""
        return root / "stages" / self.path / "stage"

    def resume(self, root: Path) -> Path:
        """Return the directory from which a killed stage goes on; no rule declares it."""
        return root / "stages" / self.path / "resume"

    def cell(self, root: Path, evaluation: str, task: str) -> Path:
        """Return the directory of one of the stage's evaluations on one task."""
        return root / "stages" / self.path / "cells" / evaluation / task

    def __str__(self) -> str:
        return self.path

    @classmethod
    @cache  # asked a dozen times for each job of a study
    def parse(cls, path: str) -> Stage:
        """Read a path below `results/stages/`, as `str` writes it."""
        match path.split("/", 4):
            case [benchmark, model, "base"]:
                return cls(benchmark, model, Lineage())
            case [benchmark, model, method, seed, lineage] if re.fullmatch(r"seed-\d+", seed):
                return cls(benchmark, model, Lineage.parse(lineage), method, int(seed[5:]))
        raise ValueError(
            f"stage {path!r}: expected <benchmark>/<model>/base or "
            "<benchmark>/<model>/<method>/seed-<n>/<lineage>"
        )


def check_task_name(name: str) -> str:
    """Return a task's name if it can be a part of a lineage; ValueError says why it cannot."""
    if name in RESERVED:
        raise ValueError(f"task {name!r}: the name is reserved ({', '.join(sorted(RESERVED))})")
    if not TASK_NAME.fullmatch(name):
        raise ValueError(
            f"task {name!r}: a name is made of lower-case letters, digits, '.', '_' and '-' "
            "and starts with a letter or digit"
        )
    return name
