"""Differences between methods: paired, corrected for their number, and what they could not see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from palimpsest.report.paper.tables import Table, identity, score, seeds_of, with_interval
from palimpsest.report.results import Estimate, Group, Results, Samples, estimates_of, names
from palimpsest.report.statistics.aggregates import by_name
from palimpsest.report.statistics.bootstrap import detectable, simultaneous

Pair = tuple[int, int]  # the index of a method, and of the one that is subtracted
SHOWN = ("average_accuracy", "learning_accuracy", "forgetting")  # in tables for papers
COLUMNS = ["benchmark", "model", "order", "seed", "method", "other", "metric", "value", "low",
           "high", "low_all", "high_all", "differs", "detectable"]  # fmt: skip


@dataclass(frozen=True)
class Difference(Estimate):
    """One method minus another in percentage points, with its own 95 % interval.

    low_all, high_all  its interval where those of all pairs are to hold at once, with 95 %
    detectable         how large the true difference must be to be told from 0, corrected so, with
                       80 % power
    """

    low_all: float
    high_all: float
    detectable: float

    @property
    def differs(self) -> bool:
        """Whether the corrected interval leaves 0 out."""
        return self.low_all > 0 or self.high_all < 0


Named = dict[Pair, dict[str, Difference]]  # by the names of aggregates


def compare(samples: Sequence[Samples], pairs: Sequence[Pair]) -> Named:
    """Return each difference of two methods, by the names that both have.

    `samples` are those of each method, resampled in pairs. The differences of one name in all
    `pairs` are one family: they are corrected for each other, and not for those of other names.
    """
    found: Named = {pair: {} for pair in pairs}
    for name in dict.fromkeys(name for one in samples for name in one):
        both = [(a, b) for a, b in pairs if name in samples[a] and name in samples[b]]
        if both:
            all_BP = np.stack([samples[a][name] - samples[b][name] for a, b in both], -1)
            reach_P = simultaneous(all_BP)
            least_P = detectable(all_BP, reach_P)
            for pair, own, reach, least in zip(
                both, estimates_of(all_BP), reach_P.tolist(), least_P.tolist(), strict=True
            ):
                all_low, all_high = own.value - reach, own.value + reach
                found[pair][name] = Difference(
                    own.value, own.low, own.high, all_low, all_high, least
                )
    return found


def of_setting(groups: Sequence[Group]) -> Named:
    """Return the differences of all pairs of methods, the later one minus the earlier one."""
    pairs = [(b, a) for a, b in combinations(range(len(groups)), 2)]
    return compare([group.samples for group in groups], pairs)


def frames_of(results: Results) -> dict[str, pd.DataFrame]:
    """Return a row a difference of two methods that share model and order; nothing of one alone."""
    rows = [
        {**identity(results, groups[a].view), "seed": seeds_of(groups[a]),
         "other": groups[b].view.name, **numbers}
        for groups in results.settings.values()
        for (a, b), numbers in rows_of(of_setting(groups))
    ]  # fmt: skip
    return {"differences": pd.DataFrame(rows, columns=COLUMNS)} if rows else {}


def rows_of(named: Named) -> Iterator[tuple[Pair, dict[str, Any]]]:
    """Yield each difference as a part of a row of a table for programs."""
    for pair, each in named.items():
        for name, d in each.items():
            yield pair, {"metric": name, **asdict(d), "differs": d.differs}


def paper_tables(results: Results) -> list[Table]:
    """Return a table for each model and order: a row a pair of methods, a column an aggregate."""
    found = []
    for where, groups in results.settings.items():
        titles, view, named = names(groups), groups[0].view, of_setting(groups)
        pairs = {(a, b): f"{titles[a]} − {titles[b]}" for a, b in named}
        caption = f"Differences between methods{f' ({view.model}, {view.order})' if where else ''}"
        name = f"differences-{where}".removesuffix("-")
        found += pair_tables(name, caption, named, pairs)
    return found


def pair_tables(name: str, caption: str, named: Named, titles: dict[Pair, str]) -> list[Table]:
    """Return a table with a row a pair and a column an aggregate; none if there are no pairs."""
    shown = [one for one in SHOWN if any(one in each for each in named.values())]
    if not shown:
        return []
    rows = [
        [titles[pair], *[with_mark(each.get(one)) for one in shown]] for pair, each in named.items()
    ]
    caption = f"{caption} in percentage points, resampled in pairs, with 95 % intervals; " + about(
        [*named.values()], {one: by_name(one).title.lower() for one in shown}
    )
    return [(name, caption, ["", *[by_name(one).title for one in shown]], rows)]


def not_told_from(results: Results, group: Group, name: str) -> list[str]:
    """Return the titles of the methods of its setting from which an aggregate does not differ."""
    groups = next(groups for groups in results.settings.values() if group in groups)
    here, titles = groups.index(group), names(groups)
    return [
        titles[a if b == here else b]
        for (a, b), named in of_setting(groups).items()
        if here in (a, b) and name in named and not named[name].differs
    ]


def with_mark(d: Difference | None) -> str:
    """Write a difference as `value [low, high]`, with a star where it differs when corrected."""
    return with_interval(d) + ("*" if d and d.differs else "")


def about(found: Sequence[dict[str, Difference]], titles: dict[str, str]) -> str:
    """Return what the stars of a table mean, and what those that are missing could have missed.

    `found` are its differences by name, and `titles` say what the names that it shows are called.
    """
    corrected = " even when corrected for all of its column" if found[1:] else ""
    missing = []
    for name, title in titles.items():
        each = [d[name] for d in found if name in d]
        if same := [d.detectable for d in each if not d.differs]:
            count = f"{len(same)} of {len(each)} have none"
            missing.append(f"{score(np.median(same))} points for {title} ({count})")
    power = (
        "No star is no sign of equality: to get one from these examples and seeds with 80 % power, "
        f"a true difference would have to be about {', '.join(missing)}"
    )
    return f"* differs from 0{corrected}" + (f". {power}" if missing else "")
