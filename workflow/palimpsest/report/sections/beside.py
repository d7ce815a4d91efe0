"""Our matrices beside published ones: the numbers of both, and why they are not quite alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pandas as pd

from palimpsest.refusal import check_known
from palimpsest.report.paper.tables import Table, signed, stage_title
from palimpsest.report.results import Group, Results, slug
from palimpsest.report.sections.published import (
    BASE,
    MARKS,
    MULTITASK,
    Published,
    PublishedMatrix,
    Value,
    load_published,
)
from palimpsest.report.spec import PublishedRef
from palimpsest.report.statistics.aggregates import by_name

Learnt = tuple[frozenset[str | None], ...]  # the tasks of each step: it names a matrix's row


@dataclass(frozen=True, eq=False)
class Comparison:
    """A group of ours beside one published matrix.

    `rows` are those that both have, after the same steps: ours by its index, theirs by its name.
    `columns` are the tasks that both have: the study's name -> theirs, in the order of learning.
    """

    group: Group
    published: Published
    name: str
    rows: tuple[tuple[int, str], ...]
    columns: dict[str, str]

    @property
    def theirs(self) -> PublishedMatrix:
        """The published matrix."""
        return self.published.matrices[self.name]

    @property
    def whole(self) -> bool:
        """Whether both learnt and measured all the same, so that aggregates can be compared."""
        same_rows = len(self.rows) == len(self.group.view.rows)
        return self.group.sequential and same_rows and len(self.columns) == self.group.known_T.sum()

    def their_row(self, row: str) -> dict[str, Value]:
        """Return the cells of a published row, by their name of the task."""
        theirs = self.theirs
        return theirs.multitask if row == MULTITASK else theirs.after.get(row, {})

    def cells(self) -> Iterator[tuple[int, str, float, Value | None]]:
        """Yield row, task, our value and theirs, where either is known."""
        for index, row in self.rows:
            for task, their_task in self.columns.items():
                ours = self.group.value_RT[index, self.group.tasks.index(task)]
                theirs = self.their_row(row).get(their_task)
                if theirs or not np.isnan(ours):
                    yield index, task, ours, theirs

    def written(self, cell: Value | None) -> str:
        """Write one of their numbers as it was given, with the mark of its certainty."""
        if cell is None:
            return "–"
        digits = 2 if self.theirs.measure == "rule-based" else 0
        text = _marked(f"{cell.value:.{digits}f}", self.theirs.certainty_of(cell))
        return f"{text} (n {cell.examples:,})" if cell.examples else text

    def legend(self, rows: list[list[str]]) -> str:
        """Say in words what the marks of some written numbers mean."""
        text = " ".join(cell for row in rows for cell in row)
        return "; ".join(
            f"{mark} {certainty} ({self.published.certainty[certainty]})".strip()
            for certainty, mark in MARKS.items()
            if (mark in text if mark else certainty == self.theirs.certainty)
        )


def comparisons(results: Results) -> list[Comparison]:
    """Return every comparison that the study asks for, those of sequences first."""
    groups = (*results.sequential, *results.references)
    return [_compare(group, ref) for group in groups for ref in group.view.published]


def _compare(group: Group, ref: PublishedRef) -> Comparison:
    published = load_published(ref.path)
    where = f"experiment {group.view.name!r} beside {ref.path}"
    check_known(ref.matrix, published.matrices, where, "matrix")
    order = published.order(ref.matrix)
    columns = {task: name for task in group.tasks if (name := published.task(task)) in order}
    theirs = _their_rows(order)
    rows = [(k, theirs[key]) for k, key in enumerate(_our_rows(group, published)) if key in theirs]
    if not columns or not (rows[1:] if group.sequential else rows):
        raise ValueError(
            f"{where}: {ref.matrix} learnt {' → '.join(order)}, and no stage of the experiment "
            "learnt the same; name a matrix of the same order (`tasks` there says what is what)"
        )
    return Comparison(group, published, ref.matrix, tuple(rows), columns)


def _our_rows(group: Group, published: Published) -> list[Learnt]:
    steps = [[published.task(task) for task in row.learnt] for row in group.view.rows]
    learnt = [(frozenset(step),) if step else () for step in steps]
    return [*accumulate(learnt)] if group.sequential else learnt


def _their_rows(order: tuple[str, ...]) -> dict[Learnt, str]:
    steps = [frozenset([task]) for task in order]
    after = {tuple(steps[: k + 1]): task for k, task in enumerate(order)}
    return {(): BASE, (frozenset(order),): MULTITASK, **after}


# ------------------------------------------------------------------------------------- tables


def frames_of(results: Results, compared: list[Comparison]) -> dict[str, pd.DataFrame]:
    """Return `published`: every compared cell, long form, in percent; nothing without any."""
    rows = []
    for one in compared:
        for index, task, ours, theirs in one.cells():
            their_task, matrix = one.columns[task], one.theirs
            n = (theirs and theirs.examples) or matrix.examples.get(their_task)
            rows.append({
                "benchmark": results.view.benchmark, "model": one.group.view.model,
                "method": one.group.view.name, "order": one.group.view.order,
                "measure": results.view.measure.name, "published": one.published.title,
                "matrix": one.name, "stage": one.group.view.rows[index].stage, "task": task,
                "ours": ours, "n": results.metrics[task][2],
                "theirs": theirs.value if theirs else np.nan, "their_n": n,
                "difference": ours - theirs.value if theirs else np.nan,
                "certainty": matrix.certainty_of(theirs) if theirs else "",
                "identified": matrix.identified,
                "source": matrix.source if theirs else "",
            })  # fmt: skip
    return {"published": pd.DataFrame(rows).astype({"their_n": "Int64"})} if rows else {}


def paper_tables(results: Results, compared: list[Comparison]) -> list[Table]:
    """Return the tables of every comparison."""
    return [
        table
        for one in compared
        for table in (beside_table(results, one), *beside_matrix(results, one))
    ]


def beside_table(results: Results, one: Comparison) -> Table:
    """Return a row a task: own stage and last stage, ours, theirs, and the difference."""
    last, their_last = one.rows[-1]
    spans, said = [""], ""
    if one.group.sequential:
        spans = ["own: ", "last: "]
        said = f"Own: after the task's own stage; last: after {_stage(results, one, last)}. "
    header = ["", "n", "their n", *[span + what for span in spans for what in _WHAT]]
    rows = []
    for task, name in one.columns.items():
        n = one.theirs.examples.get(name)
        row = [results.view.task(task).title, f"{results.metrics[task][2]:,}"]
        row.append(f"{n:,}" if n else "not known")
        if one.group.sequential:
            row += _pair(one, task, *_own_row(one, task))
        rows.append([*row, *_pair(one, task, last, their_last)])
    rows += _aggregate_rows(one, len(header))
    caption = (
        f"{one.group.title} beside matrix {one.name} of {one.published.title}: "
        f"{one.theirs.model}, {one.theirs.method}, {one.theirs.instructions} instructions. "
        f"{said}Scores in %, differences (ours minus theirs) in points. Theirs: {one.legend(rows)}"
    )
    return f"published-{one.group.slug}-{slug(one.name)}", caption, header, rows


def beside_matrix(results: Results, one: Comparison) -> list[Table]:
    """Return every row that both have, our value and theirs in each cell; none of one row."""
    if not one.group.sequential:
        return []
    rows = [
        [
            _stage(results, one, index),
            *[" | ".join(_pair(one, task, index, row)[:2]) for task in one.columns],
        ]
        for index, row in one.rows
    ]
    caption = (
        f"Both matrices, ours | theirs, of {one.group.title} and {one.name}: score (%) on each "
        f"task (column) after each stage (row). Theirs: {one.legend(rows)}"
    )
    header = ["after stage", *[results.view.task(task).title for task in one.columns]]
    return [(f"published-matrix-{one.group.slug}-{slug(one.name)}", caption, header, rows)]


def reasons(results: Results, published: Published, compared: list[Comparison]) -> list[str]:
    """Return what keeps ours from being like a file's numbers, whichever of them it is."""
    measure, kinds = results.view.measure, dict.fromkeys(c.theirs.measure for c in compared)
    theirs = "; ".join(published.measures[kind] for kind in kinds)
    return [
        f"Measure: ours is “{measure.title}”. {measure.text} Theirs: {theirs}.",
        *[reason for kind in ("always", *kinds) for reason in published.incomparable.get(kind, ())],
    ]


def remarks(one: Comparison) -> list[str]:
    """Return what is to be known of one published matrix: which run it is, and what is odd."""
    how = one.theirs.identified
    return [f"Which run it is was {how}: {one.published.identified[how]}.", *one.theirs.notes]


_WHAT = ("ours", "theirs", "difference")


def _own_row(one: Comparison, task: str) -> tuple[int, str] | tuple[None, None]:
    own = one.group.own_T[one.group.tasks.index(task)]
    return next(((index, row) for index, row in one.rows if index == own), (None, None))


def _pair(one: Comparison, task: str, index: int | None, row: str | None) -> list[str]:
    """Write our value, theirs, and the difference; dashes for what is not known."""
    if index is None:
        return ["–", "–", "–"]
    ours = one.group.value_RT[index, one.group.tasks.index(task)]
    theirs = one.their_row(row).get(one.columns[task])
    difference = ours - theirs.value if theirs else np.nan
    return [signed(ours), one.written(theirs), _difference(difference)]


def _aggregate_rows(one: Comparison, width: int) -> list[list[str]]:
    """Write the aggregates that their cells give, and those that are known without them."""
    rows = []
    for name, value in one.published.aggregates(one.name).items() if one.whole else ():
        aggregate, estimate = by_name(name), one.group.estimates.get(name)
        ours = estimate.value if estimate else np.nan
        computed = _marked(f"{round(value, 6):.2f}", one.theirs.least_certain)
        rows.append([aggregate.title, ours, "–" if np.isnan(value) else computed, value])
        if given := one.theirs.given.get(name):
            certainty = one.theirs.certainty_of(given)
            written = _marked(f"{given.value:.2f}", certainty)
            rows.append([f"{aggregate.title}, {certainty}", ours, written, given.value])
    return [
        [title, *[""] * (width - 4), signed(ours), theirs, _difference(ours - value)]
        for title, ours, theirs, value in rows
    ]


def _stage(results: Results, one: Comparison, index: int) -> str:
    return stage_title(results, one.group.view.rows[index].stage)


def _marked(text: str, certainty: str) -> str:
    return f"{text.replace('-', '−')} {MARKS[certainty]}".rstrip()


def _difference(value: float) -> str:
    text = signed(value)
    return f"+{text}" if value > 0 and text != "0.0" else text
