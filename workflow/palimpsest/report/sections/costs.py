"""What stages cost: the work that was kept, by their records, and what a scheduler gave for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from palimpsest.files import read_json
from palimpsest.report.spec import Allocation, ExperimentView


def records(experiment: ExperimentView) -> list[Path]:
    """Return the stage.json of each row that was trained."""
    return [row.record for row in experiment.rows if row.record and row.record.is_file()]


def cost(paths: Iterable[Path], allocated: Allocation | None) -> dict[str, Any]:
    """Return what the stages of some records cost together; None for what nobody knows.

    `wall_seconds` and the hours below it are of the work that was kept: what was lost between a
    checkpoint and a kill is in the allocation alone. Core-hours are of stages without a GPU.
    """
    stages = [read_json(path) for path in paths]
    core_seconds = [stage.get("core_seconds") for stage in stages if not stage["gpu_seconds"]]
    return {
        "stages": len(stages),
        "samples": sum(stage["samples"] for stage in stages),
        "steps": sum(stage["steps"] for stage in stages),
        "restarts": sum(len(stage.get("attempts") or [None]) - 1 for stage in stages),
        "wall_seconds": sum(stage["wall_seconds"] for stage in stages),
        "gpu_hours": sum(stage["gpu_seconds"] for stage in stages) / 3600,
        "core_hours": None if None in core_seconds else sum(core_seconds) / 3600,
        "peak_memory_bytes": max(stage["peak_memory_bytes"] for stage in stages),
        "runs": allocated and allocated.runs,
        "allocated_seconds": allocated and allocated.seconds,
        "allocated_gpu_hours": allocated and allocated.gpu_seconds / 3600,
        "allocated_core_hours": allocated and allocated.core_seconds / 3600,
        "task_peak_memory_bytes": allocated and allocated.peak_memory_bytes,
    }


def clock(seconds: float) -> str:
    """Write a time as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60:,}:{minutes % 60:02}:{seconds:02}"


def hours(value: float) -> str:
    """Write GPU-hours or core-hours, with two decimals where they matter; a dash for none."""
    if value < 0.01:
        return "< 0.01" if value else "–"
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def gigabytes(num_bytes: int) -> str:
    """Write bytes as 10⁹ of them; a dash for none, as of what was not measured."""
    return f"{num_bytes / 1e9:.2f}" if num_bytes else "–"
