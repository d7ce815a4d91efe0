"""Tables: CSV and Parquet for programs, Markdown and LaTeX for papers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palimpsest.report.paper.latex import Table, latex, markdown
from palimpsest.report.results import Estimate, Group, Results
from palimpsest.report.sections import costs
from palimpsest.report.spec import ExperimentView, TaskView
from palimpsest.report.statistics.aggregates import AGGREGATES, by_name

BySeed = Sequence[dict[str, Estimate]]
# A column's title -> the key of cost_rows, and how it is written.
WHOSE = {"": ("title", str), "seed": ("seed", str), "stages": ("stages", str)}
KEPT = WHOSE | {
    "restarts": ("restarts", str), "samples": ("samples", "{:,}".format),
    "time": ("wall_seconds", costs.clock), "GPU-hours": ("gpu_hours", costs.hours),
    "core-hours": ("core_hours", costs.hours),
    "peak memory (GB)": ("peak_memory_bytes", costs.gigabytes),
}  # fmt: skip
ALLOCATED = WHOSE | {
    "runs": ("runs", str), "time": ("allocated_seconds", costs.clock),
    "GPU-hours": ("allocated_gpu_hours", costs.hours),
    "core-hours": ("allocated_core_hours", costs.hours),
    "peak memory of a task (GB)": ("task_peak_memory_bytes", costs.gigabytes),
}  # fmt: skip


# ------------------------------------------------------------------------------ for programs


def matrix_frame(results: Results, of: str = "value") -> pd.DataFrame:
    """Return every cell, long form; `of` is "value" (the metric) or "right_kind", in percent.

    The interval is of the test examples of that seed alone.
    `n` counts the test examples; `unparsable` those that are left out, and are not in the value.
    """
    rows = []
    for group in results.groups:
        for matrix in group.matrices:
            view = matrix.experiment
            for (index, task), cell in matrix.cells.items():
                stage, e = view.rows[index], results.cells[cell.path][of]
                rows.append({
                    **identity(results, view),
                    "lineage": stage.lineage, "stage": stage.stage, "task": task,
                    "metric": cell.metric if of == "value" else of,
                    "version": cell.version, "value": getattr(cell, of), "low": e.low,
                    "high": e.high, "n": cell.n,
                    **({"unparsable": cell.unparsable} if of == "value" else {}),
                    "cell": cell.path.as_posix(),
                })  # fmt: skip
    frame = pd.DataFrame(rows)
    depth = frame["lineage"].str.count("/") + (frame["lineage"] != "base")
    keys = ["benchmark", "model", "method", "order", "seed", "depth", "lineage", "task"]
    return frame.assign(depth=depth).sort_values(keys, ignore_index=True).drop(columns="depth")


def summary_frame(results: Results) -> pd.DataFrame:
    """Return every aggregate with its interval; seed "all" pools several seeds."""
    return estimate_frame(results, [(g, g.by_seed, g.estimates) for g in results.groups])


def estimate_frame(
    results: Results, found: Iterable[tuple[Group, BySeed, dict[str, Estimate]]]
) -> pd.DataFrame:
    """Return a row an estimate: of each group those of each seed, and those of all together."""
    rows = []
    for group, by_seed, pooled in found:
        named = [
            (identity(results, matrix.experiment), estimates)
            for matrix, estimates in zip(group.matrices, by_seed, strict=True)
            if len(by_seed) > 1
        ]
        named.append((identity(results, group.view) | {"seed": seeds_of(group)}, pooled))
        for of_group, estimates in named:
            for metric, e in estimates.items():
                ends = {"value": e.value, "low": e.low, "high": e.high}
                rows.append({**of_group, "metric": metric, **ends})
    keys = ["benchmark", "model", "method", "order", "seed", "metric"]
    frame = pd.DataFrame(rows, columns=[*keys, "value", "low", "high"])
    return frame.sort_values(keys, ignore_index=True)


def task_frame(results: Results) -> pd.DataFrame:
    """Return the tasks with the score of the most frequent training answer (chance, percent)."""
    rows = []
    for task in results.view.tasks:
        metric, version, n = results.metrics.get(task.name, (task.metric, "", 0))
        rows.append({
            "task": task.name, "title": task.title, "category": task.category, "metric": metric,
            "version": version, "n": n, "chance": task.chance, "held_out": task.held_out,
        })  # fmt: skip
    return pd.DataFrame(rows)


def cost_frame(results: Results) -> pd.DataFrame | None:
    """Return what the stages of each experiment cost, and what all cost; None if there are none."""
    frame = pd.DataFrame(cost_rows(results))
    counts = {name: "Int64" for name in ("runs", "task_peak_memory_bytes") if name in frame}
    hours = {name: float for name in frame if name.startswith(("allocated_", "core_"))}
    return None if frame.empty else frame.astype(counts | hours)


def cost_rows(results: Results) -> list[dict[str, Any]]:
    """Return the cost of each experiment by itself, then that of every stage of the study once."""
    rows, paths = [], {}
    for group in results.groups:
        for matrix in group.matrices:
            view = matrix.experiment
            if own := costs.records(view):
                paths.update(dict.fromkeys(own))
                named = {**identity(results, view), "title": group.title}
                rows.append({**named, **costs.cost(own, view.allocated)})
    if rows:
        named = dict.fromkeys(("model", "method", "order", "seed"), "all")
        named = {"benchmark": results.view.benchmark, **named, "title": "All, every stage once"}
        rows.append({**named, **costs.cost(paths, results.view.allocated)})
    return rows


def frames_of(results: Results) -> dict[str, pd.DataFrame]:
    """Return the tables for programs that every page has, by the names of their files."""
    return {
        "matrix": matrix_frame(results),
        "right_kind": matrix_frame(results, "right_kind"),
        "summary": summary_frame(results),
        "tasks": task_frame(results),
    }


def front_frames(measured: Sequence[Results]) -> dict[str, pd.DataFrame]:
    """Return those of the front page alone: all aggregates of all measures, and the costs."""
    found = {"costs": cost_frame(measured[0])}
    if len(measured) > 1:
        each = [summary_frame(one).assign(measure=one.view.measure.name) for one in measured]
        found["measures"] = pd.concat(each, ignore_index=True)
    return {name: frame for name, frame in found.items() if frame is not None}


def write_tables(frames: dict[str, pd.DataFrame], papers: Iterable[Table], out: Path) -> None:
    """Write tables for programs and for papers into the directory of a page."""
    for name, frame in frames.items():
        write_frame(frame, out / name)
    (out / "tables").mkdir()
    for table in papers:
        (out / f"tables/{table[0]}.md").write_text(markdown(table), encoding="utf-8")
        (out / f"tables/{table[0]}.tex").write_text(latex(table), encoding="utf-8")


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV (4 decimals, the same bytes for the same numbers) and as Parquet."""
    floats = frame.select_dtypes("float").columns
    rounded = frame.assign(**{name: frame[name].round(9).round(4) + 0.0 for name in floats})
    rounded.to_csv(path.with_suffix(".csv"), index=False, float_format="%.4f", lineterminator="\n")
    frame.to_parquet(path.with_suffix(".parquet"), index=False)


def seeds_of(group: Group) -> str:
    """Return the seed of a group, or "all" where it pools several."""
    return _text(group.view.seed) if len(group.matrices) == 1 else "all"


def identity(results: Results, view: ExperimentView) -> dict[str, str]:
    """Return what tells an experiment from the others in a table for programs."""
    return {
        "benchmark": results.view.benchmark, "model": view.model, "method": view.name,
        "order": view.order, "seed": _text(view.seed),
    }  # fmt: skip


def _text(seed: int | None) -> str:
    return "" if seed is None else str(seed)


# --------------------------------------------------------------------------------- for papers


def matrix_table(results: Results, group: Group) -> Table:
    """Return the accuracy matrix of a group: a row a stage, chance below if it is known."""
    titles = [results.view.task(task).heading for task in group.tasks]
    rows = [
        [stage_title(results, row.stage), *map(score, value_T)]
        for row, value_T in zip(group.view.rows, group.value_RT, strict=True)
    ]
    if results.view.knows_chance:
        rows.append(["chance", *[score(results.view.task(task).chance) for task in group.tasks]])
    caption = (
        f"Accuracy matrix of {group.title}: score (%) on each task (column) after each stage "
        f"(row); {_reach([group])}"
    )
    return f"matrix-{group.slug}", _with_scales(results, caption), ["after stage", *titles], rows


def comparison_table(results: Results) -> Table:
    """Return a row an aggregate and a column a method, with 95 % intervals."""
    groups = results.sequential or results.groups
    rows = [
        [
            f"{a.title} ({a.unit}) {'↑' if a.better == 'higher' else '↓'}",
            *[with_interval(group.estimates.get(a.name)) for group in groups],
        ]
        for a in AGGREGATES
        if any(a.name in group.estimates for group in groups)
    ]
    caption = (
        "Method comparison with 95 % paired bootstrap intervals; ↑ higher is better, ↓ lower is "
        "better, points are percentage points"
    )
    header = ["", *[group.title for group in groups]]
    return "comparison", _with_scales(results, caption), header, rows


def task_table(results: Results) -> Table:
    """Return a row a task: chance, references, and own stage → last stage of each sequence."""
    header = ["task", "metric", "n", "chance", *[g.title for g in results.groups]]
    rows = []
    for task in results.view.known:
        cells = [
            f"{score(g.own(task.name))} → {score(g.end(task.name))}"
            if g.sequential
            else score(g.end(task.name))
            for g in results.groups
        ]
        rows.append([*_about(results, task), *cells])
    chance = np.mean([task.chance for task in results.view.known])
    rows.append(["Mean", "", "", score(chance), *map(_mean, results.groups)])
    caption = (
        "Score (%) on each task; for a sequence: right after its own stage → after the last stage. "
        "Chance is the score of always giving the most frequent training answer; "
        f"{_reach(results.groups)}"
    )
    return "tasks", _with_scales(results, caption), header, rows


def held_out_tables(results: Results) -> list[Table]:
    """Return a row a held-out task: base → after the first stage → after the last one."""
    rows = [
        [*_about(results, task), *[_held_out(group, task.name) for group in results.groups]]
        for task in results.view.held_out
    ]
    caption = (
        "Score (%) on each task that is held out, which no stage learns; for a sequence: the base "
        "model → after the first stage → after the last stage with its 95 % interval. No average "
        "has them"
    )
    header = ["task", "metric", "n", "chance", *[group.title for group in results.groups]]
    return [("held-out", _with_scales(results, caption), header, rows)] if rows else []


def _held_out(group: Group, task: str) -> str:
    if not group.sequential or task not in group.tasks:
        return score(group.end(task))
    column = group.tasks.index(task)
    base, first, last = group.value_RT[[0, 1, -1], column]
    ends = Estimate(last, group.low_RT[-1, column], group.high_RT[-1, column])
    return f"{score(base)} → {score(first)} → {with_interval(ends)}"


def _about(results: Results, task: TaskView) -> list[str]:
    """Return what a table says of a task first: title, metric, number of examples, chance."""
    metric, version, n = results.metrics.get(task.name, (task.metric, "", 0))
    return [task.title, f"{metric} {version}".strip(), str(n), score(task.chance)]


def cost_tables(results: Results) -> list[Table]:
    """Return what the stages took, and what Slurm allocated for them where that is known."""
    rows = cost_rows(results)
    kept = (
        "What training took, without the work that was lost. The row of an experiment is what it "
        "costs by itself, with the stages that it shares; the last row counts every stage once"
    )
    allocated = (
        "What Slurm allocated for it, over all runs of the jobs, with the work that was lost and "
        "the time until all ranks were there; – where a stage was no Slurm job of its own, or the "
        "accounting does not know it"
    )
    tables = [_cost_table("costs", kept, KEPT, rows)] if rows else []
    if any(row["runs"] for row in rows):
        tables.append(_cost_table("allocation", allocated, ALLOCATED, rows))
    return tables


def _cost_table(name: str, caption: str, columns: dict, rows: list[dict[str, Any]]) -> Table:
    """Return a table without the columns of which nothing is known."""
    texts = {
        title: ["–" if row[key] is None else text(row[key]) for row in rows]
        for title, (key, text) in columns.items()
    }
    shown = {title: column for title, column in texts.items() if set(column) != {"–"}}
    return name, caption, list(shown), [list(row) for row in zip(*shown.values(), strict=True)]


def measure_tables(measured: Sequence[Results]) -> list[Table]:
    """Return a column a measure: what CoIN reports of each group, never averaged over measures."""
    if len(measured) < 2:
        return []
    rows = []
    for group in measured[0].sequential or measured[0].groups:
        for name in ("average_accuracy", "mean_average_accuracy", "bwt_coin"):
            same = [next(g for g in one.groups if g.slug == group.slug) for one in measured]
            cells = [with_interval(each.estimates.get(name)) for each in same]
            if set(cells) != {"–"}:
                aggregate = by_name(name)
                rows.append([f"{group.title}: {aggregate.title} ({aggregate.unit})", *cells])
    caption = (
        "The same cells by each measure, with 95 % paired bootstrap intervals. A column is one "
        "measure; two of them are different questions, so their numbers are neither averaged nor "
        "subtracted"
    )
    return [("measures", caption, ["", *[one.view.measure.title for one in measured]], rows)]


def _reach(groups: Sequence[Group]) -> str:
    """Say how far the intervals of the scores of some groups reach."""
    each = [np.maximum(g.value_RT - g.low_RT, g.high_RT - g.value_RT).ravel() for g in groups]
    arms = np.concatenate(each)
    if not np.isfinite(arms).any():
        return "no score has an interval"
    middle, most = np.nanquantile(arms, [0.5, 1])
    return (
        f"the 95 % interval of a score reaches {score(middle)} points to either side (median), and "
        f"{score(most)} at most"
    )


def _with_scales(results: Results, caption: str) -> str:
    """Say in a caption, which ends without a stop, what is no percentage."""
    return f"{caption}. {results.scales}".removesuffix(".") if results.scales else caption


def _mean(group: Group) -> str:
    ends = [group.estimates.get(name) for name in ("learning_accuracy", "average_accuracy")]
    return " → ".join(score(e.value) for e in ends if e) or "–"


def stage_title(results: Results, stage: str) -> str:
    """Return how a row is called: the titles of the tasks that its step learnt."""
    titles = {task.name: task.title for task in results.view.tasks}
    return " + ".join(titles.get(name, name) for name in stage.split("+"))


def score(value: float) -> str:
    """Write a score with one decimal; a dash where there is none."""
    return "–" if np.isnan(value) else f"{value + 0.0:.1f}".replace("-0.0", "0.0")


def signed(value: float) -> str:
    """Write a score, its minus as the typographic one."""
    return score(value).replace("-", "−")


def with_interval(e: Estimate | None) -> str:
    """Write an estimate as `value [low, high]`."""
    return "–" if e is None else f"{signed(e.value)} [{signed(e.low)}, {signed(e.high)}]"
