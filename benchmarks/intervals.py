"""How long a report's statistics take: every cell read, every aggregate and difference told.

Eight methods, three seeds each, 36 cells a run (each of eight stages asked the tasks learnt by
then) of 5,000 examples, on one core. Answers are drawn by chance: the work does not depend on them.
Drawing the figures and writing the page are not in it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from bench import Claim, seconds, side_by_side
from palimpsest.report import ExperimentView, RowView, StudyView, TaskView
from palimpsest.report.paper import tables
from palimpsest.report.results import read_results
from palimpsest.report.sections import differences, losses
from report_fixture import write_scores

METHODS, SEEDS, TASKS, EXAMPLES = 8, 3, 8, 5000


def claims() -> list[Claim]:
    """Measure all numbers of a study's report, from its cells."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as directory:
        view = study(Path(directory))
        costs, given = side_by_side({"numbers": lambda: numbers(view)}, warm_up=False)
    frames = given["numbers"]
    what = (
        f"all numbers of {METHODS} methods × {SEEDS} seeds × "
        f"{len(frames['matrix']) // METHODS // SEEDS} cells × {EXAMPLES:,} examples"
    )
    beside = f"{len(frames['differences'])} differences of pairs of methods"
    return [seconds(what, costs["numbers"], goal="≤ 60", beside=beside)]


def numbers(view: StudyView) -> dict:
    """Return a report's tables for programs: matrices, aggregates, differences, what was lost."""
    results = read_results(view)
    frames = tables.frames_of(results) | differences.frames_of(results)
    return frames | losses.frames_of(results, losses.losses(results))


def study(root: Path) -> StudyView:
    """Write the cells of a study below `root` and return its view."""
    names = [f"task-{k}" for k in range(TASKS)]
    experiments = [
        ExperimentView(
            f"method-{m}", f"Method {m}", "sequential", "model", f"method-{m}", "first", seed,
            (RowView("base", "base", (), {}), *rows(root / f"{m}-{seed}", names, m, seed)),
        )
        for m in range(METHODS)
        for seed in range(SEEDS)
    ]  # fmt: skip
    tasks = tuple(TaskView(name, name, "", "exact_match", 0.0) for name in names)
    return StudyView("statistics", "Statistics", "made", tasks, tuple(experiments), root, "0")


def rows(root: Path, names: list[str], method: int, seed: int) -> list[RowView]:
    """Write the cells of one run, and return its stages."""
    rng = np.random.default_rng([method, seed])
    found = []
    for stage, last in enumerate(names):
        learnt = names[: stage + 1]
        cells = {task: root / f"{stage}/{task}/metric" for task in learnt}
        for task, path in cells.items():
            right_N = rng.random(EXAMPLES) < 0.8 - 0.05 * (stage - names.index(task))
            ids = [f"{task}-{k}" for k in range(EXAMPLES)]
            write_scores(path, "exact_match", ids, right_N.astype(float), right_N)
        found.append(RowView("/".join(learnt), last, (last,), cells))
    return found
