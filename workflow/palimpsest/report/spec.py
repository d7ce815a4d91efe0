"""What a report is made from: plain paths and words, put together by the caller from the config.

The report knows neither the config nor how a stage was trained; all that it reads is named here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SEQUENTIAL, DIRECT, JOINT, ZERO_SHOT = "sequential", "direct", "joint", "zero-shot"
PROTOCOLS = (SEQUENTIAL, DIRECT, JOINT, ZERO_SHOT)


@dataclass(frozen=True)
class TaskView:
    """One task.

    `chance` is in percent: the score of always giving the most frequent training answer.
    `gallery` is a Parquet file of a dozen test examples: id, image (PNG bytes), question,
    references (list of str).
    """

    name: str
    title: str
    category: str
    metric: str
    chance: float
    gallery: Path | None = None


@dataclass(frozen=True)
class RowView:
    """One stage: a row of the accuracy matrix.

    `stage` is the last step ("base" where nothing has been learnt), `learnt` the tasks of that
    step. `cells` gives the directory of each evaluated task; a task that is not named was not
    evaluated there.
    """

    lineage: str
    stage: str
    learnt: tuple[str, ...]
    cells: dict[str, Path]


@dataclass(frozen=True)
class Allocation:
    """What a scheduler gave to the jobs of some stages, over all runs of them.

    Seconds of wall time, of GPUs and of CPU cores; the peak memory is that of one task.
    """

    runs: int
    seconds: float
    gpu_seconds: float
    core_seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class ExperimentView:
    """One sequence, or one reference, of one model with one method, order and seed.

    Rows are oldest first. A sequential experiment starts with the base and has one row a stage
    after it; a direct one has a row a task, a joint one a single row, zero-shot the base alone.
    `allocated` is None where not all of its stages were jobs of a scheduler that knows them.
    """

    name: str
    title: str
    protocol: str
    model: str
    method: str
    order: str
    seed: int | None
    rows: tuple[RowView, ...]
    allocated: Allocation | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(
                f"experiment {self.name!r}: protocol {self.protocol!r} is not one of "
                f"{', '.join(PROTOCOLS)}"
            )
        if not self.rows:
            raise ValueError(f"experiment {self.name!r}: it has no rows to report")
        if self.protocol == SEQUENTIAL and self.rows[0].learnt:
            raise ValueError(
                f"experiment {self.name!r}: row 0 is {self.rows[0].stage!r}, and should be the "
                "base model, which has learnt nothing"
            )


@dataclass(frozen=True)
class StudyView:
    """Everything that one report shows; `commit` is the git commit of the code that built it.

    `allocated` is that of all stages of the study, each counted once.
    """

    name: str
    title: str
    benchmark: str
    tasks: tuple[TaskView, ...]
    experiments: tuple[ExperimentView, ...]
    results_root: Path
    commit: str
    allocated: Allocation | None = None

    def task(self, name: str) -> TaskView:
        """Return the task of this name."""
        return next(task for task in self.tasks if task.name == name)
