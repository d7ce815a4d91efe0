"""The forgetting table as text, for a terminal."""

from __future__ import annotations

from palimpsest.report.paper.tables import score
from palimpsest.report.results import Estimate, Group, Results


def terminal(results: Results) -> str:
    """Return the forgetting table: aggregates of each group, then own → last for each task."""
    names = ("average_accuracy", "learning_accuracy", "bwt_coin", "forgetting")
    short = ("after the last stage", "just learnt", "BWT (CoIN: /T)", "forgetting (/(T-1))")
    first = [["", *short]] + [
        [group.title, *[_plain(group.estimates.get(name)) for name in names]]
        for group in results.groups
    ]
    sequences = results.sequential
    blocks = [columns(first)]
    for start in range(0, len(sequences), 3):  # three beside each other fit a terminal
        blocks.append(columns(_own_and_last(results, sequences[start : start + 3])))
    title = f"{results.view.title}: what was learnt, and what was kept (%, 95 % intervals)"
    return "\n\n".join([title, *blocks, *results.notes]) + "\n"


def _own_and_last(results: Results, groups: tuple[Group, ...]) -> list[list[str]]:
    rows = [["own stage → last (%)", "chance", *[group.title for group in groups]]]
    for task in results.view.tasks:
        pairs = [f"{g.own(task.name):.1f} → {g.end(task.name):5.1f}" for g in groups]
        rows.append([task.heading, score(task.chance), *[p.replace("nan", "–") for p in pairs]])
    return rows


def _plain(e: Estimate | None) -> str:
    return "" if e is None else f"{e.value:.1f} [{e.low:.1f}, {e.high:.1f}]"


def columns(rows: list[list[str]]) -> str:
    """Return rows as lines under a heading, all but the first column flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    rule = "─" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:]])
