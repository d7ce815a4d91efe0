"""What stands behind the cells of the page's matrices: answers to a few examples, and files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from palimpsest.files import read_json
from palimpsest.report.matrix import Cell, Matrix
from palimpsest.report.page.examples import answers
from palimpsest.report.page.pictures import data_uri
from palimpsest.report.paper.tables import score, stage_title, with_interval
from palimpsest.report.results import Estimate, Group, Results
from palimpsest.report.sections.losses import KINDS
from palimpsest.report.spec import RowView

SHOWN = 6  # examples of a task, the same for all of its cells
LONGEST = 160  # characters of an answer or question; what is longer is cut


@dataclass(frozen=True)
class Square:
    """A cell in a table: its address, how dark it is, and whether the row has just learnt it."""

    address: str
    level: int | None
    own: bool


def squares(group: Group, levels: int) -> list[list[Square | None]]:
    """Return (R, T) squares of a group's matrix, None where nothing was evaluated.

    `levels` is the number of a heat map's colours, from 0 to the highest score, at least 100.
    """
    high = max(100.0, float(np.nanmax(group.value_RT, initial=0)))
    level_RT = np.minimum(group.value_RT / high * levels, levels - 1)
    return [
        [
            Square(
                f"{group.slug} {r} {t}",
                None if np.isnan(level_RT[r, t]) else int(level_RT[r, t]),
                own=group.own_T[t] == r,
            )
            if (r, task) in group.matrices[0].cells
            else None
            for t, task in enumerate(group.tasks)
        ]
        for r in range(len(group.view.rows))
    ]


def behind(results: Results) -> dict[str, Any]:
    """Return what the page's script knows; texts are whole words for people, paths as given.

    {"kinds": {kind of answer: its title},
     "tasks": {name: {"title", "examples": [{"image", "question", "expected"}]}},
     "groups": {slug: {"title", "method", "model", "order", "tasks": [names],
                       "rows": [{"title", "seeds": [{"seed", "cells", "logs", …}]}],
                       "cells": {"row task": {"value", "n", "right_kind", "seeds", "answers"}}}}}

    Of a cell's seeds each is [value, path below the row's `cells`, log below its `logs`], and the
    answers are the first seed's: [answer, whether right, its kind] in the order of the examples,
    null where there is none.
    """
    asked = {task.name: _asked(task.gallery) for task in results.view.tasks}
    return {
        "kinds": KINDS,
        "tasks": {
            task.name: {
                "title": task.title,
                "examples": [{k: e[k] for k in e if k != "id"} for e in asked[task.name]],
            }
            for task in results.view.tasks
        },
        "groups": {group.slug: _group(results, group, asked) for group in results.groups},
    }


def _asked(gallery: Path | None) -> list[dict[str, str]]:
    """Return the first examples of a gallery as texts, with their ids."""
    rows = pq.read_table(gallery).slice(0, SHOWN).to_pylist() if gallery else []
    return [
        {
            "id": row["id"],
            "image": data_uri(row["image"]) if row["image"] else "",
            "question": _cut(row["question"]),
            "expected": _cut(" / ".join(dict.fromkeys(row["references"]))),
        }
        for row in rows
    ]


def _group(results: Results, group: Group, asked: dict[str, list[dict]]) -> dict[str, Any]:
    view = group.view
    rows = [[_row(m, r) for m in group.matrices] for r in range(len(view.rows))]
    cells = {}
    for r, task in group.matrices[0].cells:
        t = group.tasks.index(task)
        each = [matrix.cells[r, task] for matrix in group.matrices]
        ends = Estimate(*(float(of[r, t]) for of in (group.value_RT, group.low_RT, group.high_RT)))
        cells[f"{r} {t}"] = {
            "value": with_interval(ends),
            "n": each[0].n,
            "right_kind": score(group.kind_RT[r, t]),
            "seeds": [
                _seed(results, matrix.experiment.rows[r], task, cell, row)
                for matrix, cell, row in zip(group.matrices, each, rows[r], strict=True)
            ],
            "answers": _answers(each[0], asked[task]),
        }
    titles = [stage_title(results, row.stage) for row in view.rows]
    return {
        "title": group.title, "method": view.name, "model": view.model,
        "order": view.order if group.sequential else "", "tasks": group.tasks, "cells": cells,
        "rows": [{"title": t, "seeds": row} for t, row in zip(titles, rows, strict=True)],
    }  # fmt: skip


def _row(matrix: Matrix, r: int) -> dict[str, str]:
    """Return where the files of one stage are; what all of its cells share is said once."""
    row, seed = matrix.experiment.rows[r], matrix.experiment.seed
    found = {
        "seed": "" if seed is None else str(seed),
        "cells": _shared(path.parents[1] for path in row.cells.values()),
        "logs": _shared(path.parent for path in row.logs.values()),
    }
    if row.record:
        found |= {"checkpoint": row.record.parent.as_posix(), "record": row.record.as_posix()}
        if row.record.is_file():
            found["commit"] = str(read_json(row.record).get("commit") or "")
    return found | ({"log": row.log.as_posix()} if row.log else {})


def _shared(directories: Iterable[Path]) -> str:
    found = [directory.as_posix() for directory in directories]
    return os.path.commonpath(found) if found else ""


def _seed(results: Results, row: RowView, task: str, cell: Cell, shared: dict) -> list[str]:
    """Return the score of a cell of one seed, and its directory and log below what is shared."""
    log = row.logs.get(task)
    return [
        with_interval(results.cells[cell.path]["value"]),
        cell.path.relative_to(shared["cells"]).as_posix(),
        log.relative_to(shared["logs"]).as_posix() if log else "",
    ]


def _answers(cell: Cell, asked: list[dict]) -> list[tuple[str, bool, str] | None]:
    found = answers(cell, [example["id"] for example in asked]) if asked else {}
    return [
        (_cut(said[0]), *said[1:]) if (said := found.get(example["id"])) else None
        for example in asked
    ]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
