"""Examples to look at: what a model answered right after learning, and after the last stage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

from palimpsest.report.matrix import Cell
from palimpsest.report.results import Group, Results


@dataclass(frozen=True)
class Shown:
    """One test example with the answers of two stages; `image` is PNG bytes, or none."""

    task_title: str
    image: bytes | None
    question: str
    reference: str
    then: str
    then_right: bool
    now: str
    now_right: bool

    @property
    def rank(self) -> int:
        """0 for an example that was forgotten, 1 for one still right, 2 for others."""
        return 0 if self.then_right and not self.now_right else 1 if self.then_right else 2


def shown_examples(results: Results, group: Group, task: str) -> list[Shown]:
    """Return the gallery's examples of a task, forgotten ones first; none without a gallery."""
    view, matrix = results.view.task(task), group.matrices[0]
    column = matrix.tasks.index(task)
    cells = [matrix.cells.get((row, task)) for row in (matrix.own_T[column], matrix.end_T[column])]
    if view.gallery is None or None in cells:
        return []
    gallery = pq.read_table(view.gallery).to_pylist()
    ids = [example["id"] for example in gallery]
    then, now = (_answers(cell, ids) for cell in cells)
    shown = [
        Shown(
            view.title, e["image"], e["question"], " / ".join(dict.fromkeys(e["references"])),
            *then[e["id"]], *now[e["id"]],
        )
        for e in gallery
        if e["id"] in then and e["id"] in now
    ]  # fmt: skip
    return sorted(shown, key=lambda example: example.rank)


def _answers(cell: Cell, ids: list[str]) -> dict[str, tuple[str, bool]]:
    """Return prediction, and whether it scored at least a half, for the ids that have a score."""
    path = cell.path.parent / "predictions.parquet"
    said = pq.read_table(path, columns=["id", "prediction"], filters=pc.field("id").isin(ids))
    score = pq.read_table(cell.path / "outcomes.parquet", columns=["id", "score"])
    score = dict(zip(score["id"].to_pylist(), score["score"].to_pylist(), strict=True))
    return {
        answer["id"]: (answer["prediction"], score[answer["id"]] >= 0.5)
        for answer in said.to_pylist()
        if not math.isnan(score[answer["id"]])
    }
