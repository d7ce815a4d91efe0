"""The numbers of a report: one group for the experiments that differ in their seed alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from palimpsest.report.matrix import Cell, CellReader, Matrix, read_matrix
from palimpsest.report.spec import JOINT, SEQUENTIAL, ExperimentView, StudyView
from palimpsest.report.statistics.aggregates import AGGREGATES, average_accuracy, by_name
from palimpsest.report.statistics.bootstrap import interval, pool_measured, with_resamples

Samples = dict[str, np.ndarray]  # an aggregate's name -> (1 + resamples,), the first as measured
OF_CELL = ("value", "right_kind")  # what is told of a cell, in percent
Joint = tuple[list[Matrix], np.ndarray]  # joint training by seed, and (1 + resamples, R, T) of all


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95 % interval, in percent or percentage points."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Group:
    """The experiments that differ in their seed alone; arrays are means over seeds, in percent.

    value_RT   the accuracy matrix; low_RT, high_RT the ends of each cell's interval
    kind_RT    the rate of answers of the right kind
    samples    the aggregates, pooled over seeds, with their resamples
    by_seed    those of each experiment, with their intervals
    key        by which what its seeds say of training again is drawn
    """

    key: str
    slug: str
    title: str
    matrices: tuple[Matrix, ...]
    value_RT: np.ndarray
    low_RT: np.ndarray
    high_RT: np.ndarray
    kind_RT: np.ndarray
    samples: Samples
    by_seed: tuple[dict[str, Estimate], ...]

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The aggregates, pooled over seeds, with their intervals."""
        return estimated(self.samples)

    @property
    def view(self) -> ExperimentView:
        """The experiment of the first seed, which names what all seeds share."""
        return self.matrices[0].experiment

    @property
    def sequential(self) -> bool:
        """Whether tasks were learnt one after another, so that something can be forgotten."""
        return self.view.protocol == SEQUENTIAL

    @property
    def tasks(self) -> tuple[str, ...]:
        """The columns of the matrix."""
        return self.matrices[0].tasks

    @property
    def own_T(self) -> np.ndarray:
        """The row right after which each task was learnt; -1 if never."""
        return self.matrices[0].own_T

    @property
    def known_T(self) -> np.ndarray:
        """Whether each task is known in the end; those held out are not, and stand last."""
        return self.matrices[0].known_T

    def end(self, task: str) -> float:
        """Return how a task ends (last row; own stage if tuned directly), NaN if not evaluated."""
        if task not in self.tasks:
            return float("nan")
        column = self.tasks.index(task)
        row = self.matrices[0].end_T[column]
        return self.value_RT[row, column] if row >= 0 else float("nan")

    def own(self, task: str) -> float:
        """Return the score right after a task's own stage, NaN where it was never learnt."""
        if task not in self.tasks or self.own_T[self.tasks.index(task)] < 0:
            return float("nan")
        column = self.tasks.index(task)
        return self.value_RT[self.own_T[column], column]


@dataclass(frozen=True, eq=False)
class Results:
    """All numbers of a study by one measure."""

    view: StudyView
    groups: tuple[Group, ...]
    cells: dict[Path, dict[str, Estimate]]  # a cell's directory -> OF_CELL
    # task -> metric, version, number of examples; a metric for each model joins them by commas
    metrics: dict[str, tuple[str, str, int]]
    unbounded: tuple[str, ...]  # tasks with an example that scored above 1: no share, so no %
    unparsable: dict[str, tuple[int, int]]  # task -> examples that are left out, and all of them

    @property
    def sequential(self) -> tuple[Group, ...]:
        """The groups in which something can be forgotten, in the study's order."""
        return tuple(group for group in self.groups if group.sequential)

    @property
    def references(self) -> tuple[Group, ...]:
        """Zero-shot, direct, joint and control groups, in the study's order."""
        return tuple(group for group in self.groups if not group.sequential)

    @cached_property
    def settings(self) -> dict[str, tuple[Group, ...]]:
        """Sequential groups that share model and order, by a name for files ("" if only one)."""
        found: dict[tuple[str, str], list[Group]] = {}
        for group in self.sequential:
            found.setdefault((group.view.model, group.view.order), []).append(group)
        if len(found) == 1:
            return {"": tuple(next(iter(found.values())))}
        return {slug("-".join(key)): tuple(groups) for key, groups in found.items()}

    def reference(self, protocol: str, model: str) -> Group | None:
        """Return the first reference of a protocol for a model."""
        for group in self.references:
            if group.view.protocol == protocol and group.view.model == model:
                return group
        return None

    @property
    def scales(self) -> str:
        """A sentence on scores that are no percentages; empty if there are none."""
        if not self.unbounded:
            return ""
        which = ", ".join(self.view.task(task).title for task in self.unbounded)
        return (
            f"Not percentages: {which} can score above 100, so averages over these and the other "
            "tasks weigh them by their scale."
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before averaging or comparing."""
        notes = []
        known = [task.name for task in self.view.known if task.name in self.metrics]
        used = Counter(self.metrics[task][:2] for task in known)
        if len(used) > 1:
            which = ", ".join(
                f"{metric} version {version} ({count} of {used.total()} tasks)"
                for (metric, version), count in used.most_common()
            )
            notes.append(f"Averages mix metrics: {which}.")
        notes += [self.scales] if self.scales else []
        known = {g.tasks[i]: None for g in self.sequential for i in np.flatnonzero(g.own_T == 0)}
        if known:
            which = ", ".join(self.view.task(task).title for task in known)
            notes.append(
                f"Known to the base from the start, and trained by no stage: {which}. Right after "
                "its own stage, such a task has the score of the base."
            )
        if self.view.held_out:
            which = ", ".join(task.title for task in self.view.held_out)
            notes.append(
                f"Held out: {which}. No stage learns these tasks and every stage is asked them; "
                "they are in no average and in nothing that is forgotten."
            )
        for wording in dict.fromkeys(task.wording for task in self.view.tasks if task.wording):
            which = [task.title for task in self.view.tasks if task.wording == wording]
            whose = "Palimpsest’s own" if wording == "Palimpsest" else f"those of {wording}"
            notes.append(f"Refusals and questions are {whose}: {', '.join(which)}.")
        if not self.view.knows_chance:
            notes.append("Chance is not known by this measure.")
        if self.unparsable:
            which = ", ".join(
                f"{self.view.task(task).title} {missing:,} of {total:,}"
                for task, (missing, total) in self.unparsable.items()
            )
            notes.append(f"{self.view.measure.left_out}; over all stages: {which}.")
        return tuple(notes)


def names(groups: Sequence[Group]) -> list[str]:
    """Return what tells groups apart among each other: without model and order if titles do."""
    short = [group.view.title for group in groups]
    return short if len({*short}) == len(short) else [group.title for group in groups]


def slug(text: str) -> str:
    """Return a name that is safe in file names, HTML ids and LaTeX labels."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read_results(view: StudyView) -> Results:
    """Read every cell of a study and compute its aggregates; ValueError names a bad cell."""
    reader = CellReader()
    names = tuple(task.name for task in view.tasks)
    matrices = [read_matrix(experiment, view.tasks, reader) for experiment in view.experiments]
    samples, cells = _sample_cells(matrices)
    unbounded = tuple(t for t in names if any(_above_1(m, t) for m in matrices))
    keyed: dict[tuple[str, ...], list[Matrix]] = {}
    for matrix in matrices:
        e = matrix.experiment
        keyed.setdefault((e.name, e.model, e.method, e.order), []).append(matrix)
    joints = {
        key[1]: (members, pool_measured([_grid(m, samples) for m in members], "/".join(key)))
        for key, members in reversed(keyed.items())
        if members[0].experiment.protocol == JOINT
    }
    top = np.inf if unbounded else 100.0
    groups = [
        _group(members, samples, joints.get(key[1]), "/".join(key), _detail(key, keyed), top)
        for key, members in keyed.items()
    ]
    _check_distinct(groups)
    return Results(
        view=view,
        groups=tuple(groups),
        cells=cells,
        metrics={task: _metric(cells) for task in names if (cells := reader.of_task(task))},
        unbounded=unbounded,
        unparsable=_unparsable(names, matrices),
    )


def _metric(cells: list[Cell]) -> tuple[str, str, int]:
    """Name the metric of a task, or all of them where models have their own."""
    named = [
        ", ".join(names) for names in zip(*((c.metric, c.version) for c in cells), strict=True)
    ]
    return named[0], named[1], cells[0].n


def _unparsable(tasks: Iterable[str], matrices: list[Matrix]) -> dict[str, tuple[int, int]]:
    """Count the examples left out, and all, over the cells of each task that has such."""
    found = {}
    for task in tasks:
        own = {c.path: c for m in matrices for (_, name), c in m.cells.items() if name == task}
        if missing := sum(cell.unparsable for cell in own.values()):
            found[task] = (missing, sum(cell.n for cell in own.values()))
    return found


def _check_distinct(groups: list[Group]) -> None:
    for name, count in Counter(group.slug for group in groups).items():
        if count > 1:
            raise ValueError(
                f"experiments: {count} groups would write to the same files ({name}); give them "
                "names that differ in letters or digits"
            )


def _detail(key: tuple[str, ...], keys: Iterable[tuple[str, ...]]) -> str:
    """Return what tells a group from those of its name: its model, method or order."""
    namesakes = [other for other in keys if other[0] == key[0]]
    return " ".join(
        key[part] for part in (1, 2, 3) if len({other[part] for other in namesakes}) > 1
    )


def _sample_cells(
    matrices: list[Matrix],
) -> tuple[dict[Path, np.ndarray], dict[Path, dict[str, Estimate]]]:
    """Return each cell’s score with its resamples, (1 + resamples,) in percent, and OF_CELL."""
    by_task: dict[str, dict[Path, Cell]] = {}
    for matrix in matrices:
        for (_, task), cell in matrix.cells.items():
            by_task.setdefault(task, {})[cell.path] = cell
    samples, told = {}, {}
    for task, cells in by_task.items():
        vectors = [cell.score_N for cell in cells.values()]
        vectors += [cell.kind_N for cell in cells.values()]
        all_BK = 100 * with_resamples(np.stack(vectors), task)
        samples.update(zip(cells, all_BK.T[: len(cells)], strict=True))
        of_each = estimates_of(all_BK)
        for path, *each in zip(cells, of_each[: len(cells)], of_each[len(cells) :], strict=True):
            told[path] = dict(zip(OF_CELL, each, strict=True))
    return samples, told


def _grid(matrix: Matrix, samples: dict[Path, np.ndarray]) -> np.ndarray:
    """Return a matrix with its resamples, (1 + resamples, R, T)."""
    return np.moveaxis(matrix.grid(lambda cell: samples[cell.path]), -1, 0)


def _group(
    members: list[Matrix],
    samples: dict[Path, np.ndarray],
    joint: Joint | None,
    key: str,
    detail: str,
    top: float,
) -> Group:
    """Pool the seeds of a group; a mean of scores lies between 0 and `top`, whatever seeds say."""
    view = members[0].experiment
    grids = [_grid(matrix, samples) for matrix in members]
    each = [_aggregate(m, grid, joint) for m, grid in zip(members, grids, strict=True)]
    shared = [name for name in each[0] if all(name in one for one in each)]
    pooled = {name: pool_measured([one[name] for one in each], key) for name in shared}
    for name in pooled:
        if by_name(name).unit == "%":
            pooled[name] = np.clip(pooled[name], 0, top)
    all_BRT = np.clip(pool_measured(grids, key), 0, top)
    low_RT, high_RT = interval(all_BRT[1:])
    return Group(
        key=key,
        slug=slug(f"{view.name} {detail}"),
        title=f"{view.title} ({detail})" if detail else view.title,
        matrices=tuple(members),
        value_RT=all_BRT[0],
        low_RT=low_RT,
        high_RT=high_RT,
        kind_RT=np.mean([m.grid(lambda cell: cell.right_kind) for m in members], axis=0),
        samples=pooled,
        by_seed=tuple(estimated(one) for one in each),
    )


def _aggregate(matrix: Matrix, all_BRT: np.ndarray, joint: Joint | None) -> Samples:
    """Return the aggregates of one experiment that its evaluated cells allow."""
    if matrix.experiment.protocol != SEQUENTIAL:
        end_T = matrix.end_T
        all_BT = all_BRT[:, end_T, np.arange(len(end_T))][:, matrix.known_T & (end_T >= 0)]
        samples = {"average_accuracy": average_accuracy(all_BT[:, None], end_T)}
    else:
        learnt_T = matrix.own_T >= 0
        a, own_T = all_BRT[:, :, learnt_T], matrix.own_T[learnt_T]
        names = [task for task, learnt in zip(matrix.tasks, learnt_T, strict=True) if learnt]
        joint_T = _joint_scores(joint, names)
        samples = {}
        for aggregate in AGGREGATES:
            if aggregate.name != "intransigence":
                samples[aggregate.name] = aggregate.compute(a, own_T)
            elif joint_T is not None:
                samples[aggregate.name] = aggregate.compute(a, own_T, joint_T)
    return {name: value for name, value in samples.items() if np.isfinite(value[0])}


def _joint_scores(joint: Joint | None, tasks: list[str]) -> np.ndarray | None:
    """Return the scores after joint training as (1 + resamples, T), if it saw all the tasks."""
    if joint is None:
        return None
    members, all_BRT = joint
    if not set(tasks) <= set(members[0].tasks):
        return None
    return all_BRT[:, -1, [members[0].tasks.index(task) for task in tasks]]


def estimated(samples: Samples) -> dict[str, Estimate]:
    """Return each aggregate as measured, with the interval of its resamples."""
    if not samples:
        return {}
    return dict(zip(samples, estimates_of(np.stack([*samples.values()], -1)), strict=True))


def estimates_of(all_BK: np.ndarray) -> list[Estimate]:
    """Return K values as measured, with the intervals of their resamples; (1 + resamples, K)."""
    ends_3K = np.stack([all_BK[0], *interval(all_BK[1:])])
    return [Estimate(*ends) for ends in ends_3K.T.tolist()]


def _above_1(matrix: Matrix, task: str) -> bool:
    cells = [cell for (_, name), cell in matrix.cells.items() if name == task]
    return any((cell.score_N > 1).any() for cell in cells)
