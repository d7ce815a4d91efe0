"""What a model answered in the middle of its stages: the `probes` of the lines of metrics.jsonl.

A probe is a few test questions of each task that is known by then (evaluation/probe.py): it shows
when in a stage something is lost, and is too small for more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsest.report.matrix import Matrix
from palimpsest.report.paper.tables import identity
from palimpsest.report.results import Results
from palimpsest.report.spec import METRIC

METRICS = "metrics.jsonl"  # beside a stage's record
COLUMNS = ["benchmark", "model", "method", "order", "seed", "lineage", "stage", "step", "steps",
           "task", "value"]  # fmt: skip


def frames_of(results: Results) -> dict[str, pd.DataFrame]:
    """Return a row a probe and task: after `step` of the `steps` of a stage, the score in percent.

    Nothing if no stage was probed, and on the pages of other measures than the tasks' metrics.
    """
    if results.view.measure.name != METRIC:
        return {}
    rows = [
        {**identity(results, matrix.experiment), **row}
        for group in results.sequential
        for matrix in group.matrices
        for row in probed(matrix)
    ]
    return {"probes": pd.DataFrame(rows, columns=COLUMNS)} if rows else {}


def probed(matrix: Matrix) -> Iterator[dict[str, Any]]:
    """Yield the probes of an experiment, oldest first; none where its stages were not asked."""
    for number, row in enumerate(matrix.experiment.rows):
        path = row.record.parent / METRICS if row.record else Path()
        lines = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        )
        for line in lines:
            for task, value in line.get("probes", {}).items():
                yield {
                    "lineage": row.lineage, "stage": number, "step": line["step"],
                    "steps": lines[-1]["step"], "task": task, "value": value,
                }  # fmt: skip
