"""What a report is made from: plain paths and words, put together by the caller from the config.

The report knows neither the config nor how a stage was trained; all that it reads is named here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from palimpsest.lineage import BASE

SEQUENTIAL, DIRECT, JOINT, ZERO_SHOT = "sequential", "direct", "joint", "zero-shot"
PROTOCOLS = (SEQUENTIAL, DIRECT, JOINT, ZERO_SHOT)


@dataclass(frozen=True)
class Measure:
    """By what all cells of a report were scored.

    `name` is that of the cells' directories and of the page's, `text` a sentence about it, and
    `left_out` what an example without a score is. A measure that tells whether a refusal fits is
    the `context_of` the one that tells refusals from answers by the same rule.
    """

    name: str
    title: str
    text: str
    left_out: str
    context_of: str = ""


METRIC, AS_PUBLISHED, FIDELITY = "metric", "as-published", "fidelity"
MEASURES = {
    METRIC: Measure(
        METRIC,
        "Corrected metrics",
        "Each task is scored by its own metric, in the version that the table of tasks names.",
        "Answers that the metric leaves out of every mean",
    ),
    AS_PUBLISHED: Measure(
        AS_PUBLISHED,
        "Metrics as published",
        "Each task is scored as the code does that was released with the benchmark’s paper, quirk "
        "for quirk, so that numbers can be laid beside others that it gave.",
        "Answers that the released scorers leave out of every mean, such as blank ones",
    ),
    FIDELITY: Measure(
        FIDELITY,
        "Fidelity to the untouched model",
        "How much of the base model’s own answer to the same question an answer keeps: ROUGE-L "
        "in percent. What is to be refused is left out.",
        "Questions that are to be refused (HH), left out on purpose: there nobody wants the old "
        "answer",
    ),
}


def judged(name: str, title: str) -> Measure:
    """Return the measure that a judge of answers is."""
    return Measure(
        name,
        title,
        "A language model judges each answer against the expected one and gives it a score; it "
        "sees no picture.",
        "Replies of the judge without a score, which stay out of every mean",
    )


def by_templates(name: str, title: str, protocol: str) -> Measure:
    """Return the measure that a judge by templates is; `protocol` is whose rule tells refusals."""
    published = protocol == AS_PUBLISHED
    return Measure(
        name,
        title,
        "The share of what is to be refused (HH) that is refused in words that fit: the template "
        "nearest to the answer, among those of all categories, is of the question’s own. It is the "
        "context-aware refusal rate, CRR.",
        "All but what is to be refused (HH), left out on purpose"
        + (", and blank answers, as the released scorer leaves them out" if published else ""),
        context_of=AS_PUBLISHED if published else METRIC,
    )


@dataclass(frozen=True)
class TaskView:
    """One task.

    `chance` is in percent, by the measure of the view: the score of always giving the most
    frequent training answer; NaN where it is not known.
    `gallery` is a Parquet file of a dozen test examples: id, image (PNG bytes), question,
    references (list of str). No stage learns a task that is `held_out`, and each is asked it.
    `wording` is whose refusals and questions an unlearning task has, or the file that has them.
    `cites` are works by their keys in references.bib, as in all views.
    """

    name: str
    title: str
    category: str
    metric: str
    chance: float
    gallery: Path | None = None
    held_out: bool = False
    wording: str = ""
    cites: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """What stands over its column or panel among those of other tasks."""
        return f"{self.title} (held out)" if self.held_out else self.title


@dataclass(frozen=True)
class RowView:
    """One stage: a row of the accuracy matrix.

    `stage` is the last step ("base" where nothing has been learnt), `learnt` the tasks of that
    step; of the base, those that it knows from the start. `cells` gives the directory of each
    evaluated task, which holds scores.json and outcomes.parquet and lies beside
    predictions.parquet; a task that is not named was not evaluated there. `record` is the
    stage.json of a stage that was trained, `log` that of its training, and `logs` has for each
    evaluated task that of its answers.
    """

    lineage: str
    stage: str
    learnt: tuple[str, ...]
    cells: dict[str, Path]
    record: Path | None = None
    log: Path | None = None
    logs: dict[str, Path] = field(default_factory=dict)


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
class PublishedRef:
    """A matrix of a file of published results (config/published), to be laid beside ours."""

    path: Path
    matrix: str


@dataclass(frozen=True)
class ExperimentView:
    """One sequence, or one reference, of one model with one method, order and seed.

    Rows are oldest first. A sequential experiment starts with the base and has one row a stage
    after it; a direct one has a row a task, a joint one a single row, zero-shot the base alone.
    `allocated` is None where not all of its stages were jobs of a scheduler that knows them.
    `published` are results of others, by the measure of the view, to lay beside it.
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
    published: tuple[PublishedRef, ...] = ()

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(
                f"experiment {self.name!r}: protocol {self.protocol!r} is not one of "
                f"{', '.join(PROTOCOLS)}"
            )
        if not self.rows:
            raise ValueError(f"experiment {self.name!r}: it has no rows to report")
        if self.protocol == SEQUENTIAL and self.rows[0].stage != BASE:
            raise ValueError(
                f"experiment {self.name!r}: row 0 is {self.rows[0].stage!r}, and should be the "
                "base model"
            )


@dataclass(frozen=True)
class Used:
    """What others made and a study uses, with its licence and the works that it asks to cite."""

    title: str
    licence: str
    cites: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelView:
    """A model; in words where its `weights` are from, and which `modules` methods train."""

    title: str
    weights: str
    precision: str
    modules: str
    cites: tuple[str, ...] = ()


@dataclass(frozen=True)
class MethodView:
    """A method as it is for a model, by its title: its parts, how a stage is trained, and batches.

    `parts` are settings by axis, with the part's name; `batches` the examples a step by task.
    """

    title: str
    model: str
    parts: dict[str, Any]
    training: dict[str, Any]
    batches: dict[str, int]
    cites: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReferenceView:
    """What sequences are read against, in titles: no method, or the study's benchmark, is empty."""

    title: str
    protocol: str
    method: str = ""
    benchmark: str = ""


@dataclass(frozen=True)
class Setting:
    """With what settings a study was run, as its paragraph in a paper says.

    Tasks go by their names: `learnt_from` are their training examples, `lengths` the new tokens
    that an answer may have. `cites` are works of the benchmark and `works` all that are cited, as
    BibTeX by their keys. `used` has what a licence is for.
    """

    benchmark: str
    description: str
    orders: dict[str, tuple[str, ...]]
    initial: tuple[str, ...]
    fraction: float | None
    learnt_from: dict[str, int]
    models: tuple[ModelView, ...]
    methods: tuple[MethodView, ...]
    references: tuple[ReferenceView, ...]
    split: str
    sample: int | None
    lengths: dict[str, str]
    as_published: bool
    judges: tuple[Used, ...]
    used: tuple[Used, ...]
    cites: tuple[str, ...]
    works: dict[str, str]


@dataclass(frozen=True)
class StudyView:
    """Everything that a report shows by one measure; `commit` is that of the code that built it.

    `allocated` is that of all stages of the study, each counted once. `similarities` gives for a
    model how alike the tasks are to it: "overall" and each modality as (T, T), tasks as in `known`.
    Without a `setting` there is nothing to write for a paper beside tables and figures.
    """

    name: str
    title: str
    benchmark: str
    tasks: tuple[TaskView, ...]
    experiments: tuple[ExperimentView, ...]
    results_root: Path
    commit: str
    allocated: Allocation | None = None
    measure: Measure = MEASURES[METRIC]
    similarities: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    setting: Setting | None = None

    @property
    def known(self) -> tuple[TaskView, ...]:
        """The tasks that are known in the end: all but those held out."""
        return tuple(task for task in self.tasks if not task.held_out)

    @property
    def held_out(self) -> tuple[TaskView, ...]:
        """The tasks that no stage learns, and each is asked."""
        return tuple(task for task in self.tasks if task.held_out)

    @property
    def knows_chance(self) -> bool:
        """Whether the chance of every task is known by this measure."""
        return not any(math.isnan(task.chance) for task in self.tasks)

    def task(self, name: str) -> TaskView:
        """Return the task of this name."""
        return next(task for task in self.tasks if task.name == name)
