"""From cells to accuracy matrices: read each cell once, and refuse what does not fit together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from palimpsest.files import read_json
from palimpsest.report.spec import DIRECT, SEQUENTIAL, ExperimentView, TaskView
from palimpsest.report.statistics.bootstrap import mean_parsed

COLUMNS = ("id", "score", "right_kind", "said", "combination")  # the last two are not in all
SAID = ("right", "form", "wrong", "other", "none")  # kinds of answers; losses.py names them


@dataclass(frozen=True, eq=False)
class Cell:
    """One stage evaluated on one task; `value` in percent, `score_N` in 0..1.

    A score is NaN where the measure leaves an example out, as a judge does whose reply was no
    number; `value` is the mean of the others. `kind_N` says which answers are of the right kind.
    `combination_N` is of unlearning, and None elsewhere. `said_N` has places in SAID, and -1 where
    an answer is none of these; None where nobody said it, as a judge does not. `form` is the
    version of the rule by which it was said.
    """

    path: Path
    metric: str
    version: str
    value: float
    kind_N: np.ndarray
    score_N: np.ndarray
    combination_N: np.ndarray | None = None
    said_N: np.ndarray | None = None
    form: str = ""

    @property
    def n(self) -> int:
        """The number of test examples."""
        return len(self.score_N)

    @property
    def right_kind(self) -> float:
        """The rate of answers of the right kind, in percent."""
        return 100 * float(self.kind_N.mean())

    @property
    def unparsable(self) -> int:
        """The number of examples that the measure leaves out: they have no score."""
        return int(np.isnan(self.score_N).sum())


@dataclass
class CellReader:
    """Reads cells, each once; those of a task must agree on examples, and by model on the metric.

    A released scorer may be another one for another model.
    """

    cells: dict[Path, Cell] = field(default_factory=dict)
    examples: dict[str, tuple[Path, pa.ChunkedArray]] = field(default_factory=dict)
    first: dict[tuple[str, str], Cell] = field(default_factory=dict)  # of a task and a model

    def read(self, task: str, path: Path, model: str) -> Cell:
        """Return the cell in a directory; ValueError names it where it is missing or differs."""
        if path not in self.cells:
            self.cells[path] = self._read(task, path, model)
        return self.cells[path]

    def of_task(self, task: str) -> list[Cell]:
        """Return a cell of the task for each metric and version that it was scored by."""
        found = [cell for (name, _), cell in self.first.items() if name == task]
        return list({(cell.metric, cell.version): cell for cell in found}.values())

    def _read(self, task: str, path: Path, model: str) -> Cell:
        for name in ("scores.json", "outcomes.parquet"):
            if not (path / name).is_file():
                raise ValueError(
                    f"cell {path}: {name} is missing, so the report of task {task!r} is "
                    "incomplete; ask Snakemake for `evaluate_all`, then report again"
                )
        scores = read_json(path / "scores.json")
        file = pq.ParquetFile(path / "outcomes.parquet")
        table = file.read([name for name in COLUMNS if name in file.schema_arrow.names])
        cell = Cell(
            path=path,
            metric=str(scores["metric"]),
            version=str(scores["version"]),
            value=float("nan" if scores["value"] is None else scores["value"]),
            kind_N=table["right_kind"].to_numpy(),
            score_N=table["score"].to_numpy().astype(np.float64),
            combination_N=(
                table["combination"].to_numpy() if "combination" in table.column_names else None
            ),
            said_N=_places(table["said"]) if "said" in table.column_names else None,
            form=str(scores.get("form", "")),
        )
        mean = 100 * mean_parsed(cell.score_N)
        if not np.isclose(mean, cell.value, rtol=0, atol=0.01, equal_nan=True):
            raise ValueError(
                f"cell {path}: scores.json says {cell.value:.4f}, but outcomes.parquet has a mean "
                f"of {mean:.4f}; score the cell again"
            )
        if cell.unparsable != scores.get("unparsable", 0):
            raise ValueError(
                f"cell {path}: scores.json counts {scores.get('unparsable', 0)} examples as left "
                f"out, but outcomes.parquet has {cell.unparsable} without a score; score the cell "
                "again"
            )
        self._check_same_as_first(task, model, cell, table["id"])
        return cell

    def _check_same_as_first(self, task: str, model: str, cell: Cell, ids: pa.ChunkedArray) -> None:
        first_path, first_ids = self.examples.setdefault(task, (cell.path, ids))
        if not ids.equals(first_ids):
            raise ValueError(
                f"cell {cell.path}: its example ids differ from those of {first_path} "
                f"({len(ids)} and {len(first_ids)} examples, or another order); a comparison needs "
                f"the same test examples of task {task!r}, so evaluate one of the two again"
            )
        first = self.first.setdefault((task, model), cell)
        if (cell.metric, cell.version) != (first.metric, first.version):
            raise ValueError(
                f"cell {cell.path}: metric {cell.metric} {cell.version}, but {first.path} has "
                f"{first.metric} {first.version}; a report never mixes them, so score task "
                f"{task!r} again"
            )
        if cell.form != first.form:
            raise ValueError(
                f"cell {cell.path}: what kind of answer each is was said by version "
                f"{cell.form or 'none'} of the rule, in {first.path} by {first.form or 'none'}; a "
                f"report never mixes them, so score task {task!r} again"
            )


def _places(said: pa.ChunkedArray) -> np.ndarray:
    """Return the places in SAID of what is said of each answer, -1 where it is left open."""
    return pc.index_in(said.cast(pa.string()), value_set=pa.array(SAID)).fill_null(-1).to_numpy()


@dataclass(frozen=True, eq=False)
class Matrix:
    """The accuracy matrix of one experiment.

    tasks   the columns: in the order of learning where there is one
    cells   by (row, task); what was not evaluated is absent
    own_T   the row right after which a task was learnt: 0 if the base knows it, -1 if never
    known_T whether a task is known in the end: those held out are not, and stand last
    """

    experiment: ExperimentView
    tasks: tuple[str, ...]
    cells: dict[tuple[int, str], Cell]
    own_T: np.ndarray
    known_T: np.ndarray

    @property
    def num_rows(self) -> int:
        """The number of stages, the base included where it has a row."""
        return len(self.experiment.rows)

    def grid(self, of: Callable[[Cell], Any]) -> np.ndarray:
        """Return `of(cell)` for every cell as (rows, tasks, ...), NaN where not evaluated."""
        shape = np.shape(of(next(iter(self.cells.values()))))
        out = np.full((self.num_rows, len(self.tasks), *shape), np.nan)
        for (row, task), cell in self.cells.items():
            out[row, self.tasks.index(task)] = of(cell)
        return out

    @property
    def end_T(self) -> np.ndarray:
        """The row that says how a task ends: its own stage if tuned directly, else the last."""
        if self.experiment.protocol == DIRECT:
            return self.own_T
        return np.full(len(self.tasks), self.num_rows - 1)


def read_matrix(
    experiment: ExperimentView, views: tuple[TaskView, ...], reader: CellReader
) -> Matrix:
    """Read every cell that an experiment names; `views` gives the order of unordered columns."""
    cells = {
        (index, task): reader.read(task, Path(path), experiment.model)
        for index, row in enumerate(experiment.rows)
        for task, path in sorted(row.cells.items())
    }
    if not cells:
        raise ValueError(f"experiment {experiment.name!r}: no cell was evaluated")
    own = {task: i for i, row in enumerate(experiment.rows) for task in row.learnt}
    tasks = [view.name for view in views]
    evaluated = {task for _, task in cells}
    unknown = sorted(evaluated - set(tasks))
    if unknown:
        raise ValueError(
            f"experiment {experiment.name!r}: cells of {', '.join(unknown)}, which is no task of "
            f"the study ({', '.join(tasks)})"
        )
    columns = [task for task in tasks if task in evaluated]
    if experiment.protocol == SEQUENTIAL:
        columns.sort(key=lambda task: own.get(task, len(experiment.rows)))
    own_T = np.array([own.get(task, -1) for task in columns])
    held_out = {view.name for view in views if view.held_out}
    known_T = np.array([task not in held_out for task in columns])
    return Matrix(experiment, tuple(columns), cells, own_T, known_T)
