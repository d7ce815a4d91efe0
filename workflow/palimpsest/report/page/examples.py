"""Examples to look at: what a model answered right after learning, and after the last stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from palimpsest.report.matrix import SAID, Cell
from palimpsest.report.results import Group, Results


@dataclass(frozen=True)
class Shown:
    """One test example with the answers of two stages; `image` is PNG bytes, or none.

    `kind` is one of SAID for the later answer, or empty where that was not said.
    """

    task_title: str
    image: bytes | None
    question: str
    reference: str
    then: str
    then_right: bool
    now: str
    now_right: bool
    kind: str

    @property
    def rank(self) -> int:
        """0 for an example that was forgotten, 1 for one still right, 2 for others."""
        return 0 if self.then_right and not self.now_right else 1 if self.then_right else 2


def shown_examples(results: Results, group: Group, task: str) -> list[Shown]:
    """Return the gallery's examples of a task, forgotten ones first; none without a gallery."""
    view, cells = results.view.task(task), _ends(group, task)
    if view.gallery is None or cells is None:
        return []
    gallery = {example["id"]: example for example in pq.read_table(view.gallery).to_pylist()}
    shown = _shown(view.title, gallery, *(answers(cell, gallery) for cell in cells))
    return sorted(shown, key=lambda example: example.rank)


def lost_examples(results: Results, group: Group, task: str) -> list[Shown]:
    """Return an example of each kind of loss of a task, the most frequent kind first.

    It is one of the gallery if that has such, or else the first of the split, without a picture.
    None without a gallery, or where kinds were not said.
    """
    view, cells = results.view.task(task), _ends(group, task)
    if view.gallery is None or cells is None or any(cell.said_N is None for cell in cells):
        return []
    then, now = cells
    lost_N = np.where(then.said_N == 0, now.said_N, 0)
    count_K = np.bincount(lost_N[lost_N > 0], minlength=len(SAID))
    kinds = [k for k in np.argsort(-count_K, kind="stable") if count_K[k]]
    pictured: dict[str, Shown] = {}
    for example in shown_examples(results, group, task):
        if example.rank == 0:
            pictured.setdefault(example.kind, example)
    ids = pq.read_table(now.path / "outcomes.parquet", columns=["id"])["id"]
    first = [ids[int(np.argmax(lost_N == k))].as_py() for k in kinds if SAID[k] not in pictured]
    asked = {
        row["id"]: {"image": None, "question": row["prompt"], "references": row["references"]}
        for row in _predictions(now, first, ["prompt", "references"])
    }
    others = _shown(view.title, asked, *(answers(cell, first) for cell in cells))
    found = pictured | {example.kind: example for example in others}
    return [found[SAID[k]] for k in kinds]


def _ends(group: Group, task: str) -> tuple[Cell, Cell] | None:
    """Return the cells of a task after its own stage and in the end; None if one is missing."""
    matrix = group.matrices[0]
    column = matrix.tasks.index(task)
    then, now = (
        matrix.cells.get((row, task)) for row in (matrix.own_T[column], matrix.end_T[column])
    )
    return (then, now) if then and now else None


def _shown(title: str, asked: dict[str, dict], then: dict, now: dict) -> list[Shown]:
    return [
        Shown(
            title, e["image"], e["question"], " / ".join(dict.fromkeys(e["references"])),
            *then[id][:2], *now[id],
        )
        for id, e in asked.items()
        if id in then and id in now
    ]  # fmt: skip


def answers(cell: Cell, ids: Iterable[str]) -> dict[str, tuple[str, bool, str]]:
    """Return prediction, whether it scored at least a half, and its kind, for ids with a score."""
    outcomes = pq.read_table(cell.path / "outcomes.parquet", columns=["id"])
    place = {id: n for n, id in enumerate(outcomes["id"].to_pylist())}
    found = {}
    for row in _predictions(cell, ids):
        n = place[row["id"]]
        if not math.isnan(cell.score_N[n]):
            said = -1 if cell.said_N is None else cell.said_N[n]
            kind = "" if said < 0 else SAID[said]
            found[row["id"]] = row["prediction"], bool(cell.score_N[n] >= 0.5), kind
    return found


def _predictions(cell: Cell, ids: Iterable[str], also: Sequence[str] = ()) -> list[dict]:
    """Return the rows of some examples, with what was answered."""
    path = cell.path.parent / "predictions.parquet"
    chosen = pc.field("id").isin(pa.array(list(ids), pa.string()))
    return pq.read_table(path, columns=["id", "prediction", *also], filters=chosen).to_pylist()
