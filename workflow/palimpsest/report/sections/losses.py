"""Where forgetting comes from: what is said instead, where an answer was right after learning.

Every answer is one of five kinds, as scoring said by rule (evaluation/form.py). An answer is lost
if it was right just after its task was learnt and is not right now; what is lost splits into the
four other kinds. Resamples are those of the rest of the report.

Shapes: R rows (stages), T tasks, K kinds, L of these but right and then all of them together, N
examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palimpsest.report.matrix import SAID, Cell, Matrix
from palimpsest.report.paper.tables import Table, identity, score, seeds_of, with_interval
from palimpsest.report.results import Estimate, Group, Results, estimated
from palimpsest.report.spec import AS_PUBLISHED, METRIC, ExperimentView
from palimpsest.report.statistics.bootstrap import interval, pool_measured, with_resamples

TITLES = (
    "right", "right content, wrong form", "wrong answer, right form", "wrong answer, another form",
    "no answer",
)  # fmt: skip
KINDS = dict(zip(SAID, TITLES, strict=True))
LOST = (*SAID[1:], "lost")  # what a lost answer is now, and all of them together

Samples = dict[tuple[Path, Path], np.ndarray]  # own and later cell -> (1 + resamples, L)


@dataclass(frozen=True, eq=False)
class Split:
    """The answers of a sequence, in percent of the test examples; NaN where not evaluated.

    share_RTK  of which kind all answers are
    lost_RTL   of which kind those are that were right just after learning: NaN until after that
    low_RTL, high_RTL   the ends of their intervals
    """

    share_RTK: np.ndarray
    lost_RTL: np.ndarray
    low_RTL: np.ndarray
    high_RTL: np.ndarray


@dataclass(frozen=True, eq=False)
class Losses:
    """What a sequential group lost; of the tasks whose metric tells right from wrong.

    pooled   the mean over seeds;  by_seed  each of them
    mean     LOST after the last stage, a mean over the old tasks; empty if there are none
    parts    the same in percent of all that is lost
    """

    group: Group
    tasks: tuple[str, ...]
    pooled: Split
    by_seed: tuple[Split, ...]
    mean: dict[str, Estimate]
    parts: dict[str, Estimate]


# ------------------------------------------------------------------------------------ numbers


def losses(results: Results) -> list[Losses]:
    """Return what each sequential group lost that can; nothing by a measure that is no rule.

    ValueError names a cell that was scored before answers were told apart.
    """
    if results.view.measure.name not in (METRIC, AS_PUBLISHED):
        return []
    found = [(group, _tasks(group)) for group in results.sequential]
    found = [(group, tasks) for group, tasks in found if any(_later(group.matrices[0], tasks))]
    samples = _sample([(matrix, tasks) for group, tasks in found for matrix in group.matrices])
    return [_losses(group, tasks, samples) for group, tasks in found]


def _tasks(group: Group) -> tuple[str, ...]:
    """Return the tasks of a group whose answers are told apart."""
    open_ones = set()
    for matrix in group.matrices:
        for (_, task), cell in matrix.cells.items():
            if cell.said_N is None:
                raise ValueError(
                    f"cell {cell.path}: outcomes.parquet has no column `said`: it was scored "
                    "before right content in the wrong form was told from wrong answers. Scoring "
                    f"needs no model: remove {cell.path / 'scores.json'} and its like, ask "
                    "Snakemake for `evaluate_all`, then report again"
                )
            if (cell.said_N < 0).all():
                open_ones.add(task)
    return tuple(task for task in group.tasks if task not in open_ones)


def _sample(matrices: Sequence[tuple[Matrix, tuple[str, ...]]]) -> Samples:
    """Return what is lost from each task's own cell to each later one, resampled, in percent."""
    by_task: dict[str, dict[tuple[Path, Path], np.ndarray]] = {}
    for matrix, tasks in matrices:
        for _, task, own, now in _later(matrix, tasks):
            by_task.setdefault(task, {})[own.path, now.path] = _lost(own, now)
    samples = {}
    for task, lost in by_task.items():
        all_BK = 100 * with_resamples(np.concatenate([*lost.values()]), task)
        samples.update(zip(lost, np.split(all_BK, len(lost), axis=1), strict=True))
    return samples


def _later(matrix: Matrix, tasks: tuple[str, ...]) -> Iterator[tuple[int, str, Cell, Cell]]:
    """Yield each row after a task's own with the task, its own cell and the row's."""
    for task, learnt in zip(matrix.tasks, matrix.own_T, strict=True):
        own = matrix.cells.get((learnt, task))
        for row in range(learnt + 1, matrix.num_rows) if own and task in tasks else ():
            if now := matrix.cells.get((row, task)):
                yield row, task, own, now


def _lost(own: Cell, now: Cell) -> np.ndarray:
    """Return what was right and now is of each kind of LOST, (L, N); NaN where it is left open."""
    was_right, known = own.said_N == 0, (own.said_N >= 0) & (now.said_N >= 0)
    kinds_KN = now.said_N == np.arange(1, len(SAID))[:, None]
    each_LN = was_right & np.vstack([kinds_KN, now.said_N > 0])
    return np.where(known, each_LN, np.nan)


def _losses(group: Group, tasks: tuple[str, ...], samples: Samples) -> Losses:
    places = [(row, tasks.index(task)) for row, task, *_ in _later(group.matrices[0], tasks)]
    lost = [
        np.stack([samples[own.path, now.path] for *_, own, now in _later(matrix, tasks)], axis=1)
        for matrix in group.matrices
    ]  # (1 + resamples, places, L)
    last = [k for k, (row, _) in enumerate(places) if row == group.matrices[0].num_rows - 1]
    mean, parts = {}, {}
    if last:
        means = [one[:, last].mean(1) for one in lost]
        mean_BL = pool_measured(means, group.key).clip(0, 100)
        with np.errstate(invalid="ignore"):
            part_BL = 100 * mean_BL[:, :-1] / mean_BL[:, :-1].sum(1, keepdims=True)
        mean = estimated(dict(zip(LOST, mean_BL.T, strict=True)))
        parts = estimated(dict(zip(LOST[:-1], part_BL.T, strict=True)))
    shares = [_shares(matrix, tasks) for matrix in group.matrices]
    by_seed = tuple(_split(*one, places) for one in zip(shares, lost, strict=True))
    pooled = pool_measured(lost, group.key).clip(0, 100)
    return Losses(group, tasks, _split(np.mean(shares, 0), pooled, places), by_seed, mean, parts)


def _split(share_RTK: np.ndarray, lost: np.ndarray, places: list[tuple[int, int]]) -> Split:
    """Put what is lost at some places, (1 + resamples, places, L), into grids with its ends."""
    grids = np.full((3, *share_RTK.shape[:2], len(LOST)), np.nan)
    rows, columns = zip(*places, strict=True)
    grids[:, rows, columns] = np.stack([lost[0], *interval(lost[1:])])
    return Split(share_RTK, *grids)


def _shares(matrix: Matrix, tasks: tuple[str, ...]) -> np.ndarray:
    """Return of which kind the answers of an experiment are as (R, T, K), in percent."""
    out = np.full((matrix.num_rows, len(tasks), len(SAID)), np.nan)
    for (row, task), cell in matrix.cells.items():
        if task in tasks:
            count_K = np.bincount(cell.said_N[cell.said_N >= 0], minlength=len(SAID))
            out[row, tasks.index(task)] = 100 * count_K / count_K.sum()
    return out


# ------------------------------------------------------------------------------------ tables


def frames_of(results: Results, found: Sequence[Losses]) -> dict[str, pd.DataFrame]:
    """Return `losses`: a row for each stage, task and kind of answer, of each seed and of all."""
    rows: list[dict[str, Any]] = []
    for one in found:
        group = one.group
        if len(group.matrices) > 1:
            for matrix, split in zip(group.matrices, one.by_seed, strict=True):
                named = identity(results, matrix.experiment)
                rows += _rows(named, matrix.experiment, one.tasks, split)
        named = identity(results, group.view) | {"seed": seeds_of(group)}
        rows += _rows(named, group.view, one.tasks, one.pooled)
    return {"losses": pd.DataFrame(rows)} if rows else {}


def _rows(
    named: dict[str, str], view: ExperimentView, tasks: tuple[str, ...], split: Split
) -> Iterator[dict[str, Any]]:
    for r, row in enumerate(view.rows):
        for t in np.flatnonzero(np.isfinite(split.share_RTK[r, :, 0])):
            about = {**named, "lineage": row.lineage, "stage": row.stage, "task": tasks[t]}
            for k, kind in enumerate(SAID):
                three = (split.lost_RTL, split.low_RTL, split.high_RTL)
                ends = [of[r, t, k - 1] if k else np.nan for of in three]
                yield {
                    **about, "kind": kind, "share": split.share_RTK[r, t, k],
                    **dict(zip(("lost", "low", "high"), ends, strict=True)),
                }  # fmt: skip


def paper_tables(results: Results, found: Sequence[Losses]) -> list[Table]:
    """Return a row a group with the mean over its old tasks, then a table a group, task by task."""
    told = [one for one in found if one.mean]
    if not told:
        return []
    header = ["", "lost", *TITLES[1:]]
    order = (LOST[-1], *LOST[:-1])
    rows = [[one.group.title, *[with_interval(one.mean[name]) for name in order]] for one in told]
    caption = (
        "Where forgetting comes from: answers that were right just after learning and are lost "
        "after the last stage, and what is said instead; in percent of the test examples, a mean "
        "over the old tasks, with 95 % paired bootstrap intervals"
    )
    return [("losses", caption, header, rows), *[_by_task(results, one) for one in told]]


def _by_task(results: Results, one: Losses) -> Table:
    last_TL = one.pooled.lost_RTL[-1]
    rows = [
        [results.view.task(one.tasks[t]).title, score(last_TL[t, -1]), *map(score, last_TL[t, :-1])]
        for t in np.flatnonzero(np.isfinite(last_TL[:, -1]))
    ]
    names = (LOST[-1], *LOST[:-1])
    rows.append(["Mean of the old tasks", *[score(one.mean[name].value) for name in names]])
    caption = (
        f"What {one.group.title} lost after the last stage, of what was right just after learning, "
        "and what it says instead; in percent of the test examples"
    )
    return f"losses-{one.group.slug}", caption, ["task", "lost", *TITLES[1:]], rows


def findings(found: Sequence[Losses]) -> list[str]:
    """Return in a sentence each what the first group's lost answers are now, and all groups'."""
    told = [one for one in found if one.mean and one.mean["lost"].value > 0]
    if not told:
        return []
    first, parts = told[0], {name: f"{e.value:.0f} %" for name, e in told[0].parts.items()}
    said = [
        f"{first.group.title} lost {first.mean['lost'].value:.1f} % of the answers to its old "
        f"tasks, right just after learning and not after the last stage. Of these, {parts['form']} "
        f"are right content in the wrong form, {parts['wrong']} wrong answers in the right form, "
        f"{parts['other']} wrong answers in another form, and {parts['none']} no answers."
    ]
    if len(told) > 1:
        least, *_, most = sorted(told, key=lambda one: one.parts["form"].value)
        said.append(
            "Right content in the wrong form is between "
            f"{least.parts['form'].value:.0f} % ({least.group.title}) and "
            f"{most.parts['form'].value:.0f} % ({most.group.title}) of what a method lost."
        )
    return [sentence.replace(" %", "\u00a0%") for sentence in said]
