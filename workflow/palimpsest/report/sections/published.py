"""Published results: what others measured, and for each number where it is from and how sure it is.

A file of `config/published/` holds the matrices of one benchmark. Nothing in it is taken for
printed in a paper that was not read there: `certainty` says how a cell is known, `identified` how
it is known which run a matrix is of.
"""

from __future__ import annotations

from fnmatch import fnmatch
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from palimpsest.refusal import explain, one_of, read_yaml
from palimpsest.report.statistics.aggregates import AGGREGATES

Certainty = Literal["recovered", "recalled", "quoted"]  # from the surest to the least sure
Kind = Literal["rule-based", "judge"]
MARKS = {"recovered": "", "recalled": "†", "quoted": "‡"}
BASE, MULTITASK = "base", "multitask"
# The others need cells that hardly anybody publishes: those of tasks not learnt yet.
AGGREGATED = (
    "average_accuracy", "learning_accuracy", "mean_average_accuracy", "bwt_coin", "bwt_gem",
)  # fmt: skip


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Value(_Settings):
    """A number in percent (points for a difference), as sure as its matrix if nothing is said.

    `examples` is given where it is of another number of them than the rest of its column.
    """

    value: float = Field(ge=-100, le=100)
    certainty: Certainty | None = None
    examples: int | None = None


def _value(content: Any) -> Any:
    return content if isinstance(content, dict) else {"value": content}


Values = dict[str, Annotated[Value, BeforeValidator(_value)]]


class PublishedMatrix(_Settings):
    """What was measured of one run: a row after each stage, by task.

    `after` may hold `base`, the model before the first stage. `examples` is the number of test
    examples of a task, where it is known. `given` are aggregates that were not computed here.
    """

    model: str
    method: str
    instructions: str
    measure: Kind
    order: str
    source: str
    certainty: Certainty
    identified: Literal["matched", "deduced"]
    examples: dict[str, int] = {}
    notes: tuple[str, ...] = ()
    after: dict[str, Values] = Field(min_length=1)
    multitask: Values = {}
    given: Values = {}

    def certainty_of(self, cell: Value) -> Certainty:
        """Return how sure one of its numbers is."""
        return cell.certainty or self.certainty

    @property
    def least_certain(self) -> Certainty:
        """How sure an aggregate can be: as its least sure cell after a stage."""
        rows = [row for stage, row in self.after.items() if stage != BASE]
        found = [self.certainty_of(cell) for row in rows for cell in row.values()]
        return max(found, key=list(MARKS).index)


class Published(_Settings):
    """The published results of a benchmark, and why they are not like ours."""

    title: str
    repository: str
    certainty: dict[Certainty, str]
    identified: dict[Literal["matched", "deduced"], str]
    measures: dict[Kind, str]
    incomparable: dict[Literal["always", "rule-based", "judge"], tuple[str, ...]]
    tasks: dict[str, str]  # name here -> pattern of the names that a study may give it
    orders: dict[str, tuple[str, ...]]
    matrices: dict[str, PublishedMatrix]

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for order in self.orders.values():
            for task in order:
                one_of(task, self.tasks, "task")
        for name, matrix in self.matrices.items():
            try:
                self._check(matrix)
            except ValueError as error:
                raise ValueError(f"matrix {name}: {error}") from None
        return self

    def _check(self, matrix: PublishedMatrix) -> None:
        one_of(matrix.order, self.orders, "order")
        one_of(matrix.measure, self.measures, "measure")
        one_of(matrix.identified, self.identified, "word in `identified`")
        for task in chain(*matrix.after.values(), matrix.multitask, matrix.examples):
            one_of(task, self.tasks, "task")
        for row in (*matrix.after.values(), matrix.multitask, matrix.given):
            for cell in row.values():
                one_of(matrix.certainty_of(cell), self.certainty, "word in `certainty`")
        for row in matrix.after:
            one_of(row, (BASE, *self.orders[matrix.order]), "stage")
        for name in matrix.given:
            one_of(name, AGGREGATED, "aggregate")

    def task(self, name: str) -> str | None:
        """Return what a study's task is called here; None if it is none of these."""
        return next((own for own, names in self.tasks.items() if fnmatch(name, names)), None)

    def order(self, matrix: str) -> tuple[str, ...]:
        """Return the tasks of a matrix in the order in which they were learnt."""
        return self.orders[self.matrices[matrix].order]

    def grid(self, matrix: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the accuracy matrix (1 + T, T) in percent, the base model first, and own_T.

        NaN where nothing is known. Columns are in the order of learning.
        """
        order, after = self.order(matrix), self.matrices[matrix].after
        a_RT = np.full((1 + len(order), len(order)), np.nan)
        for row, stage in enumerate((BASE, *order)):
            for task, cell in after.get(stage, {}).items():
                a_RT[row, order.index(task)] = cell.value
        return a_RT, np.arange(1, 1 + len(order))

    def aggregates(self, matrix: str) -> dict[str, float]:
        """Return the aggregates that the cells of a matrix give, NaN where one is missing."""
        a_RT, own_T = self.grid(matrix)
        return {
            aggregate.name: float(aggregate.compute(a_RT, own_T))
            for aggregate in AGGREGATES
            if aggregate.name in AGGREGATED
        }


@cache
def load_published(path: Path) -> Published:
    """Read a file of published results; ValueError names the file, the key and the fix."""
    content = read_yaml(path)
    try:
        return Published.model_validate(content)
    except ValidationError as errors:
        found = errors.errors(include_url=False)
        raise ValueError("\n".join(explain(path, Published, e) for e in found)) from None
