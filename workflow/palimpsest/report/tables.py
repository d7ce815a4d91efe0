"""Tables: CSV and Parquet for programs, Markdown and LaTeX for papers, text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palimpsest.report import costs
from palimpsest.report.aggregates import AGGREGATES, by_name
from palimpsest.report.results import Estimate, Group, Results

LATEX_SPECIAL = {c: "\\" + c for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "→": r"$\to$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$",
    "–": "--", "[": "{[}", "]": "{]}", "†": r"\dag{}", "‡": r"\ddag{}", "|": r"\textbar{}",
}  # fmt: skip
Table = tuple[str, str, list[str], list[list[str]]]  # name, caption, header, rows of text
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

    `n` counts the test examples; `unparsable` those that have no score and stay out of the value.
    """
    rows = []
    for group in results.groups:
        for matrix in group.matrices:
            view = matrix.experiment
            for (index, task), cell in matrix.cells.items():
                stage = view.rows[index]
                rows.append({
                    **_identity(results, view),
                    "lineage": stage.lineage, "stage": stage.stage, "task": task,
                    "metric": cell.metric if of == "value" else of,
                    "version": cell.version, "value": getattr(cell, of), "n": cell.n,
                    **({"unparsable": cell.unparsable} if of == "value" else {}),
                })  # fmt: skip
    frame = pd.DataFrame(rows)
    depth = frame["lineage"].str.count("/") + (frame["lineage"] != "base")
    keys = ["benchmark", "model", "method", "order", "seed", "depth", "lineage", "task"]
    return frame.assign(depth=depth).sort_values(keys, ignore_index=True).drop(columns="depth")


def summary_frame(results: Results) -> pd.DataFrame:
    """Return every aggregate with its interval; seed "all" pools several seeds."""
    rows = []
    for group in results.groups:
        named = [(_identity(results, m.experiment), e) for m, e in _seeds(group)]
        if len(group.matrices) == 1:
            named = [(named[0][0], group.estimates)]
        else:
            named.append(({**named[0][0], "seed": "all"}, group.estimates))
        for identity, estimates in named:
            for metric, e in estimates.items():
                ends = {"value": e.value, "low": e.low, "high": e.high}
                rows.append({**identity, "metric": metric, **ends})
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
            "version": version, "n": n, "chance": task.chance,
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
                named = {**_identity(results, view), "title": group.title}
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


def _seeds(group: Group):
    return zip(group.matrices, group.by_seed, strict=True)


def _identity(results: Results, view) -> dict[str, str]:
    return {
        "benchmark": results.view.benchmark, "model": view.model, "method": view.name,
        "order": view.order, "seed": _text(view.seed),
    }  # fmt: skip


def _text(seed: int | None) -> str:
    return "" if seed is None else str(seed)


# --------------------------------------------------------------------------------- for papers


def matrix_table(results: Results, group: Group) -> Table:
    """Return the accuracy matrix of a group: a row a stage, chance below if it is known."""
    titles = [results.view.task(task).title for task in group.tasks]
    rows = [
        [stage_title(results, row.stage), *map(score, value_T)]
        for row, value_T in zip(group.view.rows, group.value_RT, strict=True)
    ]
    if results.view.knows_chance:
        rows.append(["chance", *[score(results.view.task(task).chance) for task in group.tasks]])
    caption = (
        f"Accuracy matrix of {group.title}: score (%) on each task (column) after each stage (row)"
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
    for task in results.view.tasks:
        metric, version, n = results.metrics.get(task.name, (task.metric, "", 0))
        cells = [
            f"{score(g.own(task.name))} → {score(g.end(task.name))}"
            if g.sequential
            else score(g.end(task.name))
            for g in results.groups
        ]
        rows.append([task.title, f"{metric} {version}".strip(), str(n), score(task.chance), *cells])
    chance = np.mean([task.chance for task in results.view.tasks])
    rows.append(["Mean", "", "", score(chance), *map(_mean, results.groups)])
    caption = (
        "Score (%) on each task; for a sequence: right after its own stage → after the last stage. "
        "Chance is the score of always giving the most frequent training answer"
    )
    return "tasks", _with_scales(results, caption), header, rows


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


def paper_tables(results: Results) -> list[Table]:
    """Return the method comparison, the scores by task, and the matrix of each sequence."""
    matrices = [matrix_table(results, group) for group in results.sequential]
    return [comparison_table(results), task_table(results), *matrices]


def front_tables(measured: Sequence[Results]) -> list[Table]:
    """Return those of the front page alone: the measures if there are several, and the costs."""
    several = [measure_table(measured)] if len(measured) > 1 else []
    return [*several, *cost_tables(measured[0])]


def measure_table(measured: Sequence[Results]) -> Table:
    """Return a column a measure: what CoIN reports of each group, never averaged over measures."""
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
    return "measures", caption, ["", *[one.view.measure.title for one in measured]], rows


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


def markdown(table: Table) -> str:
    """Return a table as GitHub Markdown."""
    _, caption, header, rows = table
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    body = "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)
    return f"{caption}.\n\n{body}\n"


def latex(table: Table) -> str:
    """Return a table as LaTeX that needs the booktabs package."""
    name, caption, header, rows = table
    head, *body = [" & ".join(map(_latex_text, row)) + r" \\" for row in [header, *rows]]
    return "\n".join([
        r"\begin{table}", r"  \centering", rf"  \caption{{{_latex_text(caption)}.}}",
        rf"  \label{{tab:{name}}}", rf"  \begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"    \toprule", f"    {head}", r"    \midrule", *[f"    {row}" for row in body],
        r"    \bottomrule", r"  \end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def _latex_text(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(char, char) for char in text)


# ------------------------------------------------------------------------------ for a terminal


def terminal(results: Results) -> str:
    """Return the forgetting table: aggregates of each group, then own → last for each task."""
    names = ("average_accuracy", "learning_accuracy", "bwt_coin", "forgetting")
    short = ("after the last stage", "just learnt", "BWT (CoIN: /T)", "forgetting (/(T-1))")
    first = [["", *short]] + [
        [group.title, *[_plain(group.estimates.get(name)) for name in names]]
        for group in results.groups
    ]
    sequences = results.sequential
    blocks = [_columns(first)]
    for start in range(0, len(sequences), 3):  # three beside each other fit a terminal
        blocks.append(_columns(_own_and_last(results, sequences[start : start + 3])))
    title = f"{results.view.title}: what was learnt, and what was kept (%, 95 % intervals)"
    return "\n\n".join([title, *blocks, *results.notes]) + "\n"


def _own_and_last(results: Results, groups: tuple[Group, ...]) -> list[list[str]]:
    rows = [["own stage → last (%)", "chance", *[group.title for group in groups]]]
    for task in results.view.tasks:
        pairs = [f"{g.own(task.name):.1f} → {g.end(task.name):5.1f}" for g in groups]
        rows.append([task.title, score(task.chance), *[p.replace("nan", "–") for p in pairs]])
    return rows


def _plain(e: Estimate | None) -> str:
    return "" if e is None else f"{e.value:.1f} [{e.low:.1f}, {e.high:.1f}]"


def _columns(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    rule = "─" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:]])
