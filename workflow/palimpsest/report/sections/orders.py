"""What the order of the tasks changes: a method in one order minus the same in another."""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from palimpsest.report.paper.tables import Table, identity, seeds_of
from palimpsest.report.results import Group, Results
from palimpsest.report.sections.differences import (
    COLUMNS,
    Named,
    Pair,
    compare,
    pair_tables,
    rows_of,
)


def methods(results: Results) -> list[list[Group]]:
    """Return the groups of each method that was tuned in several orders, with one model."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in results.sequential:
        found.setdefault((group.view.model, group.view.name), []).append(group)
    return [groups for groups in found.values() if len(groups) > 1]


def frames_of(results: Results) -> dict[str, pd.DataFrame]:
    """Return a row a difference of two orders; `other` is the order that is subtracted."""
    groups, named = _between(results)
    rows = [
        {**identity(results, groups[a].view), "seed": seeds_of(groups[a]),
         "other": groups[b].view.order, **numbers}
        for (a, b), numbers in rows_of(named)
    ]  # fmt: skip
    return {"orders": pd.DataFrame(rows, columns=COLUMNS)} if rows else {}


def paper_tables(results: Results) -> list[Table]:
    """Return a row a method and a pair of orders; none if there is one order."""
    groups, named = _between(results)
    models = len({group.view.model for group in groups})
    titles = {}
    for a, b in named:
        first, other = groups[a].view, groups[b].view
        of = f"{first.title} ({first.model})" if models > 1 else first.title
        titles[a, b] = f"{of}: {first.order} − {other.order}"
    return pair_tables("orders", "Differences between orders of the tasks", named, titles)


def _between(results: Results) -> tuple[list[Group], Named]:
    """Return groups, and the differences of those of one method, which are one family."""
    groups: list[Group] = []
    pairs: list[Pair] = []
    for same in methods(results):
        pairs += [(len(groups) + b, len(groups) + a) for a, b in combinations(range(len(same)), 2)]
        groups += same
    return groups, compare([group.samples for group in groups], pairs)
